"""The distributions, built once, and an environment for each extra, made one after the other and deleted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from environments import EXTRAS, ROOT, Environment

MADE: list[str] = []
"""A line about each environment."""


@dataclass(frozen=True)
class Distributions:
    wheel: Path
    sdist: Path
    from_sdist: Path
    """The wheel that the source distribution builds, where there is no git."""
    tools: Environment


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    folder = tmp_path_factory.mktemp("built")
    tools = Environment(folder / "tools")
    tools.install("-r", ROOT / "tests/packaging/tools.txt")
    # not isolated: build would fetch the backend itself, in a clean environment, without the user's settings of an index
    tools.succeed("python", "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT)
    tools.succeed("python", "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    tools.succeed("python", "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "again", source)
    (from_sdist,) = (folder / "again").glob("*.whl")
    return Distributions(wheel, sdist, from_sdist, tools)


@pytest.fixture(scope="session")
def unpacked(built: Distributions) -> Path:
    """Of the source distribution."""
    (folder,) = (built.sdist.parent / "unpacked").iterdir()
    return folder


@pytest.fixture(scope="module")
def environment(
    request: pytest.FixtureRequest, built: Distributions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Environment]:
    """The wheel with one extra, or "core"."""
    extra: str = request.param
    folder = tmp_path_factory.mktemp(extra)
    start = time.perf_counter()
    made = Environment(folder)
    what = f"{built.wheel}[{extra}]" if extra in EXTRAS else str(built.wheel)
    made.install("-c", ROOT / "constraints.txt", what)
    seconds = time.perf_counter() - start
    MADE.append(f"{extra}: {len(made.packages()) - 1} packages, {made.megabytes():.0f} MB, {seconds:.0f} s")
    yield made
    shutil.rmtree(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MADE:
        terminalreporter.section("environments: packages beside ours, their size, how long it took to make them")
        terminalreporter.line("\n".join(MADE))
