"""`capreward completion`: the scripts in real shells."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from capreward.cli import main

NAMES = {
    "demo",
    "score",
    "curate",
    "annotate",
    "train",
    "sweep",
    "serve",
    "ablate",
    "evaluate",
    "agree",
    "probe",
    "completion",
}
SUITES = {"balcaprl", "caprl", "rubicap", "everything"}

BASH = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
entry=$(complete -p capreward)
entry=${entry#*-F }
${entry%% *}
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = r"""
import os, pty, select, sys, time
functions, typed = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "COLUMNS": "200", "LINES": "60"})


def read(until, seconds):
    said, end = "", time.monotonic() + seconds
    while until not in said and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            said += os.read(terminal, 65536).decode(errors="replace")
    return said


def send(text):
    os.write(terminal, text.encode())


send(f"fpath=({functions} $fpath); autoload -Uz compinit; compinit -u -D; LISTMAX=1000; PS1='>>'; echo rea''dy\n")
read("ready", 60)
send("bindkey '^I' list-choices; bindkey '^X' accept-line; echo bo''und\n")
read("bound", 60)
send(typed)
read(typed, 60)
send("\t")  # lists below the line, and then the line again
said = read(">>" + typed, 20)
print(said)
os.kill(pid, 9)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("captions.jsonl", "capture.txt"):
        (tmp_path / name).touch()
    (tmp_path / "capfolder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    path = folder / f".completion.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


CASES = [
    (["capreward", ""], NAMES, {"photos", "captions.jsonl"}),
    (["capreward", "ev"], {"evaluate"}, {"score"}),
    (["capreward", "curate", ""], {"questions", "rubrics", "references"}, {"score"}),
    (["capreward", "score", "--m"], {"--max-length", "--max-missing"}, {"--suite", "--metrics"}),
    (["capreward", "curate", "rubrics", "--teacher"], {"--teachers", "--teacher-captions"}, {"--sight"}),
    (["capreward", "score", "--suite", ""], SUITES, {"captions.jsonl"}),
    (["capreward", "probe", "--samples", "s"], {"shapes"}, {"photos"}),
    (["capreward", "score", "cap"], {"captions.jsonl", "capture.txt", "capfolder"}, {"score"}),
    (["capreward", "score", "--items", "capt"], {"captions.jsonl", "capture.txt"}, {"capfolder"}),
    (["capreward", "annotate", "--checkpoint", "cap"], {"capfolder"}, {"captions.jsonl"}),
    (["capreward", "score", "--out", "cap"], {"capfolder"}, {"captions.jsonl"}),
    (["capreward", "completion", ""], {"bash", "zsh", "fish"}, {"captions.jsonl"}),
]
"""Words so far; what has to be offered, and what must not be."""
IDS = [" ".join(words) for words, _, _ in CASES]


def check(offered: set[str], wanted: set[str], unwanted: set[str]) -> None:
    offered = {word.rstrip("/") for word in offered}
    assert wanted <= offered
    assert not unwanted & offered


@pytest.mark.parametrize(("words", "wanted", "unwanted"), CASES, ids=IDS)
def test_bash(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], wanted: set[str], unwanted: set[str]
) -> None:
    command = ["bash", "-c", BASH, "bash", str(script("bash", folder, capsys)), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    check(set(done.stdout.split()), wanted, unwanted)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(("words", "wanted", "unwanted"), CASES, ids=IDS)
def test_zsh(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], wanted: set[str], unwanted: set[str]
) -> None:
    functions = folder / ".zfunc"
    functions.mkdir()
    script("zsh", folder, capsys).rename(functions / "_capreward")
    command = [sys.executable, "-c", ZSH, str(functions), " ".join(words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    lines = [line.partition(" -- ")[0] for line in done.stdout.splitlines() if not line.startswith(">>")]
    check(set(" ".join(lines).split()), wanted, unwanted)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("words", "wanted", "unwanted"), CASES, ids=IDS)
def test_fish(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], wanted: set[str], unwanted: set[str]
) -> None:
    code = f"source {script('fish', folder, capsys)}; complete -C '{' '.join(words)}'"
    done = subprocess.run(["fish", "-N", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    check({line.partition("\t")[0] for line in done.stdout.splitlines()}, wanted, unwanted)


def test_needs_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    said = (
        "capreward: error: Completion needs shtab, which is not installed; run: pip install 'capreward[completion]'\n"
    )
    assert capsys.readouterr().err == said
