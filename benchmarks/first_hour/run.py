"""What a stranger waits for: a clone of this repository's HEAD, an empty home, no pip cache, no environment.

    .venv/bin/python benchmarks/first_hour/run.py            # 4 to 8 minutes, most of it `make demo`; writes results/cpu.json
    .venv/bin/python benchmarks/first_hour/run.py --tests    # and `make test`: 10 to 20 minutes more
    .venv/bin/python benchmarks/first_hour/run.py --quick    # the core alone, under 50 seconds; prints one line

Needs git, a package index and 3 GB of temporary space. Commands take turns, so that what else the machine does falls on both
sides of a ratio.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ROOT, finish

RUNS = 10
OWN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "XDG_CACHE_HOME", "PIP_CACHE_DIR", "HF_HOME", "MAKEFLAGS")
"""Variables that would let the stranger share what this machine has."""
OF_EVERY_ENVIRONMENT = {"pip", "setuptools", "capreward"}

Command = Sequence[str | Path]


class Stranger:
    """Runs commands with an empty home."""

    def __init__(self, folder: Path) -> None:
        (folder / "home").mkdir()
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if name not in OWN}
        self.environment |= {"HOME": str(folder / "home"), "PIP_NO_CACHE_DIR": "1", "OMP_NUM_THREADS": "1"}

    def run(self, command: Command, **options: Any) -> str:
        """What it prints."""
        cwd = options.pop("cwd", self.folder)
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return done.stdout

    def seconds(self, command: Command, **options: Any) -> float:
        start = time.perf_counter()
        self.run(command, **options)
        return time.perf_counter() - start


def medians(stranger: Stranger, commands: Mapping[str, Command]) -> dict[str, float]:
    """Seconds of each command, the median of RUNS, after one run that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(RUNS + 1):
        for name, command in commands.items():
            taken = stranger.seconds(command)
            if turn:
                seconds[name].append(taken)
    return {name: median(taken) for name, taken in seconds.items()}


def of_the_core(stranger: Stranger, clone: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    folder = stranger.folder
    stranger.run([sys.executable, "-m", "venv", "core"])
    python = folder / "core/bin/python"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    stranger.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, clone])
    (wheel,) = folder.glob("*.whl")
    install = stranger.seconds([*pip, "install", "-c", clone / "constraints.txt", wheel])
    listed = stranger.run([*pip, "list", "--format=freeze"]).split()
    packages = sorted({line.partition("==")[0] for line in listed} - OF_EVERY_ENVIRONMENT)
    took = medians(
        stranger,
        {
            "help": [folder / "core/bin/capreward", "--help"],
            "nothing": [python, "-c", "pass"],
            "import": [python, "-c", "import capreward"],
            "numpy and pydantic": [python, "-c", "import numpy, pydantic"],
        },
    )
    headline = [
        {"name": "wheel", "value": wheel.stat().st_size / 1e6, "unit": "MB"},
        {"name": "packages that the core pulls", "value": len(packages), "unit": ""},
        {"name": "pip install of the core", "value": install, "unit": "s"},
        {"name": "capreward --help", "value": took["help"], "unit": "s"},
        {"name": "capreward --help / python -c pass", "value": took["help"] / took["nothing"], "unit": "x"},
        {"name": "import capreward", "value": took["import"], "unit": "s"},
        {
            "name": "import capreward / import numpy, pydantic",
            "value": took["import"] / took["numpy and pydantic"],
            "unit": "x",
        },
    ]
    return headline, {"packages": packages, "seconds": took}


def of_the_demo(stranger: Stranger, clone: Path) -> list[dict[str, Any]]:
    python = f"PYTHON={sys.executable}"
    install = stranger.seconds(["make", python, ".venv/.demo"], cwd=clone)
    demo = stranger.seconds(["make", python, "demo"], cwd=clone)
    block = re.findall(r"```python\n(.*?)```", (clone / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    readme = stranger.seconds([clone / ".venv/bin/python", "-c", block])
    return [
        {"name": "make demo", "value": install + demo, "unit": "s"},
        {"name": "of which installing", "value": install, "unit": "s"},
        {"name": "of which scoring and training", "value": demo, "unit": "s"},
        {"name": "the README's first block of Python", "value": readme, "unit": "s"},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the core alone; write nothing")
    parser.add_argument("--tests", action="store_true", help="`make test` too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stranger = Stranger(Path(folder))
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        commit = stranger.run(["git", "rev-parse", "--short", "HEAD"], cwd=clone).strip()
        headline, details = of_the_core(stranger, clone)
        before = os.getloadavg()[0]
        if not arguments.quick:
            headline += of_the_demo(stranger, clone)
        if arguments.tests:
            headline.append({"name": "make test", "value": stranger.seconds(["make", "test"], cwd=clone), "unit": "s"})
    load = {"load of the machine before the demo": before, "and at the end": os.getloadavg()[0]}
    finish(
        Path(__file__).parent, headline, {"commit": commit, **load, **details}, arguments.quick, packages=("capreward",)
    )


if __name__ == "__main__":
    main()
