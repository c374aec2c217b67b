"""The wheel with each extra alone, in an environment of its own: what it is for works, and what it lacks says what to install."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Distributions
from environments import EXTRAS, LIMIT, ROOT, Environment, brought_by

pytestmark = pytest.mark.package

HERE = Path(__file__).parent
OWN = {"swift", "vllm"}
"""They want other versions than the rest, or gigabytes of CUDA: tested beside an environment that holds a CPU's build."""
ALONE = ["core", *(extra for extra in EXTRAS if extra not in {"dev", *OWN})]

each = pytest.mark.parametrize("environment", ALONE, indirect=True)
core = pytest.mark.parametrize("environment", ["core"], indirect=True)


def doors(environment: Environment) -> dict[str, tuple[str, str]]:
    """NAME -> (extra, "open" or the error's text)."""
    printed = environment.succeed("python", "-P", HERE / "doors.py")
    return {name: (extra, outcome) for name, (extra, outcome) in json.loads(printed.splitlines()[-1]).items()}


def test_every_extra_is_tried() -> None:
    assert {path.stem for path in (HERE / "smoke").glob("*.py")} == set(ALONE)


@each
def test_does_what_it_is_for(environment: Environment, request: pytest.FixtureRequest) -> None:
    extra = request.node.callspec.params["environment"]
    environment.succeed("python", "-P", HERE / "smoke" / f"{extra}.py", ROOT)


@each
def test_what_it_lacks_says_what_to_install(environment: Environment, request: pytest.FixtureRequest) -> None:
    here = request.node.callspec.params["environment"]
    for name, (extra, outcome) in doors(environment).items():
        if outcome == "open":
            assert here != "core", f"{name} needs nothing?"
        else:
            assert extra not in brought_by(here), f"{name}: {outcome}"
            assert re.fullmatch(
                rf".+ needs \w+, which is not installed; run: pip install 'capreward\[{extra}\]'", outcome
            )


@core
def test_core_is_numpy_and_pydantic(environment: Environment) -> None:
    of_pydantic = {"annotated-types", "pydantic-core", "typing-extensions", "typing-inspection"}
    assert set(environment.packages()) == {"capreward", "numpy", "pydantic", *of_pydantic}


@core
def test_command_line(environment: Environment) -> None:
    version = (ROOT / "src/capreward/__init__.py").read_text().partition('__version__ = "')[2].partition('"')[0]
    assert environment.succeed("capreward", "--version") == f"capreward {version}\n"
    assert " score " in environment.succeed("capreward", "--help")
    assert environment.succeed("python", "-m", "capreward.cli", "--help").startswith("usage: capreward")


MODEL = "--base-url http://127.0.0.1:1/v1 --out out"


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("demo", "report"),
        ("score captions.jsonl", "report"),
        ("probe captions.jsonl --out out", "report"),
        ("evaluate captions.jsonl --out out", "report"),
        ("agree iiw --component coverage --out out", "report"),
        ("annotate . --captioner openai:m " + MODEL, "report"),
        ("curate questions captions.jsonl --writer openai:m " + MODEL, "report"),
        ("train shapes", "train"),
        ("sweep shapes --out out", "train"),
        ("serve", "lite"),
        ("serve --judge openai:m --base-url http://127.0.0.1:1/v1", "openai"),
        ("ablate ledger --out out.html", "data"),
    ],
)
@core
def test_commands_of_the_core_alone_end_with_what_to_install(
    environment: Environment, command: str, extra: str
) -> None:
    row = {"id": "cup", "references": ["A cup."], "rollouts": ["A cup.", "A white cup."]}
    (environment.work / "captions.jsonl").write_text(json.dumps(row) + "\n")
    done = environment.run("capreward", *command.split())
    assert done.returncode == 2
    assert re.fullmatch(rf"capreward: error: .+ run: pip install 'capreward\[{extra}\]'\n", done.stderr)


@core
def test_types_are_seen_from_outside(environment: Environment) -> None:
    right = (
        "from capreward import Score, gdpo\n\nscore: float = Score(0.5).value\nfirst = gdpo([[1.0]], groups=[0])[0]\n"
    )
    wrong = "from capreward import Score\n\nScore(value='high')\nScore(0.5).valeu\n"
    for name, text in (("right", right), ("wrong", wrong)):
        (environment.work / f"{name}.py").write_text(text)
    found = {
        name: subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--python-executable", environment.bin / "python", f"{name}.py"],
            cwd=environment.work,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        ).stdout
        for name in ("right", "wrong")
    }
    assert found["right"].startswith("Success"), found["right"]
    assert re.findall(r"wrong.py:(\d): error.*\[(.*)\]", found["wrong"]) == [("3", "arg-type"), ("4", "attr-defined")]


def test_vllm(built: Distributions, tmp_path: Path) -> None:
    """Beside the environment of `make test-vllm`."""
    from smollm2 import smollm2

    beside = ROOT / ".venv-vllm"
    if not beside.exists():
        pytest.skip("no vLLM here; run `make test-package`")
    environment = Environment(tmp_path / "vllm", beside=beside)
    environment.install("--no-deps", built.wheel)
    engine = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    out = tmp_path / "out.json"
    environment.succeed("python", "-P", HERE.parent / "engines/in_process.py", "text", out, smollm2(), **engine)
    assert sum(json.loads(out.read_text())["batch"][0]["values"]) == pytest.approx(1)


def test_swift(built: Distributions, tmp_path: Path) -> None:
    """Beside the environment of `make test-verl`, which holds ms-swift."""
    beside = ROOT / ".venv-verl"
    if not beside.exists():
        pytest.skip("no ms-swift here; run `make test-package`")
    environment = Environment(tmp_path / "swift", beside=beside)
    environment.install("--no-deps", built.wheel)
    tests = ROOT / "tests/in_verl"
    where = ("-p", "no:cacheprovider", "--rootdir", tmp_path, "--confcutdir", tests)
    printed = environment.succeed("python", "-m", "pytest", "-q", *where, tests / "test_swift_rewards.py")
    assert " passed" in printed
    found = doors(environment)
    assert found["ms-swift's plugin"] == ("swift", "open")
    assert found["LiteJudge"][1].endswith("pip install 'capreward[lite]'")
