"""Environments as a user makes them: `python -m venv`, pip, the built wheel. They need a package index."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LIMIT = 1800
"""Seconds that one process may take, on a slow machine too."""


def brought_by(extra: str) -> set[str]:
    """The extra and those that it holds."""
    held = re.findall(rf"^{PROJECT['name']}\[(.+)\]", "\n".join(EXTRAS.get(extra, ())), re.MULTILINE)
    return {extra}.union(*(brought_by(name) for names in held for name in names.split(",")))


class Environment:
    """A new virtual environment with a home and a working folder of its own.

    Args:
        folder: for all of it; has to be empty.
        beside: another environment, whose packages this one sees behind its own.
    """

    def __init__(self, folder: Path, *, beside: Path | None = None) -> None:
        self.bin, self.home, self.work = folder / "env/bin", folder / "home", folder / "work"
        for new in (self.home, self.work):
            new.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True, timeout=LIMIT)
        (self.site,) = (folder / "env").glob("lib/python*/site-packages")
        if beside:
            (seen,) = beside.glob("lib/python*/site-packages")
            (self.site / "beside.pth").write_text(f"{seen}\n")

    def install(self, *what: str | Path) -> None:
        """By pip."""
        command = [self.bin / "python", "-m", "pip", "install", "--quiet", "--no-compile", *what]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert done.returncode == 0, done.stderr

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command of this environment, in its working folder, with nothing of this process's environment."""
        clean = {
            "HF_HUB_OFFLINE": "1",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join(map(str, (self.bin, "/usr/bin", "/bin"))),
            "TOKENIZERS_PARALLELISM": "false",
        }
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            env=clean | variables,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def succeed(self, *command: str | Path, **variables: str) -> str:
        """What a command prints that has to succeed."""
        done = self.run(*command, **variables)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def packages(self) -> Sequence[str]:
        """Names of what is installed in it, but for what a new environment holds."""
        listed = self.succeed("python", "-m", "pip", "list", "--format=freeze").split()
        names = [line.partition("==")[0].lower().replace("_", "-") for line in listed]
        return sorted(set(names) - {"pip", "setuptools"})

    def megabytes(self) -> float:
        return sum(path.stat().st_size for path in self.site.rglob("*") if path.is_file()) / 1e6
