"""What the commands in bash blocks do under test: the real thing, or, where that cannot be, a check of what they are given.

A check tells the test with `checked`, so that the test can say which blocks were not executed for real.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path

from docs.pages import ROOT
from server_process import serve_and_interrupt

Run = Callable[[list[str]], int | None]

SHORTENED = {
    "agree": ["--limit", "4", "--resamples", "20"],  # 100 images, and 1,000 resamples for each axis and component
    "probe": ["--attacks", "self-praise"],  # 33 captions for each honest one
    "evaluate": ["--draws", "20"],  # 1,000 resamples
}
"""Options that follow those of the page, and take their place, for what would take minutes."""


def capreward(arguments: list[str]) -> int:
    """The command itself, with the options of SHORTENED. A server is started, asked for /health, and interrupted."""
    from capreward.cli import main

    command = arguments[0]
    if command == "serve":
        checked("capreward serve", "does not return: started, asked for /health, interrupted")
        serve_and_interrupt([sys.executable, "-m", "capreward.cli", *arguments])
        return 0
    if command == "demo":
        return checked("capreward demo", "takes a minute; tests/test_cli.py runs it") or _parses(arguments)
    if command == "sweep":
        _first_run_alone()
    if command in SHORTENED:
        _parses(arguments)
    status = main([*arguments, *SHORTENED.get(command, [])])
    return 0 if command == "probe" and status == 1 else status  # 1: an attack wins, which is for the user to know


def accelerate(arguments: list[str]) -> int:
    """`accelerate launch -m capreward.cli ...`: accelerate's own parser reads its options; then one process trains."""
    from accelerate.commands.launch import launch_command_parser

    from capreward.cli import main

    assert arguments[0] == "launch", arguments
    launch = launch_command_parser().parse_args(arguments[1:])
    assert launch.module, "expected -m"
    assert launch.training_script == "capreward.cli", launch.training_script
    checked("accelerate launch", "several processes, or FSDP, on GPUs: its options are parsed, one process trains")
    return main(launch.training_script_args)


def make(arguments: list[str]) -> int:
    """The targets exist."""
    checked("make", "installs, or runs all tests: only the targets are looked up")
    command = ["/usr/bin/make", "-n", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode


def pip(arguments: list[str]) -> int:
    """`pip install`: this package with extras that it has, files that exist, other requirements that are well-formed."""
    from packaging.requirements import Requirement

    checked("pip install", "no network: the requirements are parsed, the extras looked up")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    parser = argparse.ArgumentParser(prog="pip")
    parser.add_argument("command", choices=["install"])
    parser.add_argument("-e", "--editable", action="append", default=[])
    parser.add_argument("-c", "-r", dest="files", action="append", default=[])
    parser.add_argument("--no-deps", "--quiet", "-q", "--upgrade", "-U", action="store_true")
    parser.add_argument("requirements", nargs="*")
    given = parser.parse_args(arguments)
    assert all((ROOT / file).is_file() for file in given.files), given.files
    for text in (*given.requirements, *(re.sub(r"^\.", "capreward", path) for path in given.editable)):
        requirement = Requirement(text)
        if requirement.name == "capreward":
            assert requirement.extras <= set(extras), f"{text}: the extras are {sorted(extras)}"
    return 0


def python(arguments: list[str]) -> int | None:
    """Modules, scripts and -c for real, but for the trainers and benchmarks below."""
    module = arguments[1] if arguments[:1] == ["-m"] else None
    if module == "verl.trainer.main_ppo":
        return _verl(arguments[2:])
    if module and module.startswith("openrlhf."):
        return checked("python -m openrlhf", "not executed: OpenRLHF wants GPUs and another transformers")
    if arguments[0].startswith("benchmarks/"):
        return _benchmark(arguments)
    if module is None and not arguments[0].startswith("-"):
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        return 0
    return subprocess.run([sys.executable, *arguments], check=False).returncode


COMMANDS: dict[str, Run] = {
    "accelerate": accelerate,
    "capreward": capreward,
    "make": make,
    "pip": pip,
    "python": python,
}
"""By name. All other commands are the system's."""


def checked(what: str, why: str) -> int:
    """Tells the test that a command was only looked at."""
    with Path(os.environ["CHECKED"]).open("a") as file:
        file.write(f"{what}: {why}\n")
    return 0


def _first_run_alone() -> None:
    """All runs of a sweep are planned, and one is trained."""
    from capreward import sweep

    checked("capreward sweep", "each run is a process that imports torch: all are planned, the first is trained")
    plan = sweep.plan
    sweep.plan = lambda *settings: plan(*settings)[:1]


def _parses(arguments: list[str]) -> int:
    """The options are the command's, before any others are put in their place."""
    from capreward.cli import make_parser

    make_parser().parse_args(arguments)
    return 0


def _verl(overrides: list[str]) -> int:
    """verl composes its configuration from the settings, and finds no fault in it."""
    assert any(setting.startswith("reward.custom_reward_function") for setting in overrides), (
        "verl-overrides has failed"
    )
    checked("python -m verl.trainer.main_ppo", "wants a GPU: verl composes and validates its settings")
    verl = ROOT / ".venv-verl/bin/python"
    if not verl.exists():
        assert os.environ.get("CAPREWARD_PEERS") != "required", f"{verl} is missing: make test"
        Path(os.environ["SKIPPED"]).write_text(f"{verl} is missing: make test")
        return 0
    paths = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests")))
    composed = subprocess.run(
        [verl, "-m", "docs.verl_settings", *overrides], env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    return composed.returncode


def _benchmark(arguments: list[str]) -> int:
    """The script exists, can be imported, and its --help has the options."""
    checked("python benchmarks/...", "takes minutes: its --help has the options")
    script, *options = arguments
    path = ROOT / script
    sys.path.insert(0, str(path.parent))
    sys.argv = [script, "--help"]
    with redirect_stdout(io.StringIO()) as told, suppress(SystemExit):
        runpy.run_path(str(path), run_name="__main__")
    for option in options:
        if option.startswith("-"):
            assert re.search(rf"^ +{option}\b", told.getvalue(), re.MULTILINE), (
                f"{script} has no {option}: {told.getvalue()}"
            )
    return 0
