from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import asked_judge
import pytest
from fakes import FakeJudge
from PIL import Image

from capreward.errors import InputError
from capreward.evaluate.command import evaluate, read_captioners

ITEM = {"references": ["a white cup"], "questions": [{"text": "colour", "options": ["white", "red"], "answer": 0}]}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count: int = 3) -> list[dict[str, Any]]:
    """Items with a caption of each of two models."""
    return [
        {
            "id": f"item{n}",
            **ITEM,
            "facts": [{"text": f"white cup {n}"}],
            "rollouts": [
                {"caption": f"white cup {n}. brown table", "metadata": {"model": "good"}},
                {"caption": f"red cup {n}", "metadata": {"model": "bad"}},
            ],
        }
        for n in range(count)
    ]


def test_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write(tmp_path / "captions.jsonl", *rows()), tmp_path / "deep" / "out"
    judge = FakeJudge(asked_judge.answer)
    written = evaluate([file], lambda: judge, out, by="model", budgets="2,3", draws=20)
    names = ["evaluation.json", "captions.jsonl", "battles.jsonl", "metrics.png", "budgets.png", "arena.png"]
    assert written == [out / name for name in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    said = json.loads((out / "evaluation.json").read_text())
    assert said["captioners"]["good"]["prism"]["mean"] == 1
    assert said["settings"]["metrics"] == ["bcapscore", "qa", "captionqa", "statistics", "arena"]
    assert len((out / "captions.jsonl").read_text().splitlines()) == 6
    battles = [json.loads(line) for line in (out / "battles.jsonl").read_text().splitlines()]
    assert battles[0] == {
        "item": "item0",
        "first": "good",
        "second": "bad",
        "outcome": "first",
        "missing": None,
        "words": [5, 3],
    }
    for name in names[3:]:
        with Image.open(out / name) as picture:
            assert picture.format == "PNG"
    printed = capsys.readouterr().out
    assert "Means, and 95% intervals" in printed
    assert "Arena: 3 battles, 0 missing" in printed


def test_one_captioner_has_no_arena(tmp_path: Path) -> None:
    file = write(tmp_path / "captions.jsonl", *rows())
    written = evaluate([file], lambda: FakeJudge(asked_judge.answer), tmp_path, draws=20)
    assert [path.name for path in written] == ["evaluation.json", "captions.jsonl", "metrics.png"]
    assert list(json.loads(written[0].read_text())["captioners"]) == ["captions"]


def test_battles_that_are_missing(tmp_path: Path) -> None:
    one, other = (write(tmp_path / f"{name}.jsonl", {"id": "bare", "caption": name}) for name in ("one", "other"))
    written = evaluate([one, other], FakeJudge, tmp_path, metrics="arena")
    assert [path.name for path in written] == ["evaluation.json", "captions.jsonl", "battles.jsonl"]
    (battle,) = map(json.loads, written[2].read_text().splitlines())
    assert battle["outcome"] is None
    assert battle["missing"] == "no_reference: item 'bare' has nothing to compare captions with"


def test_no_judge_is_made_without_need(tmp_path: Path) -> None:
    def make() -> Any:
        raise AssertionError("no judge is needed")

    evaluate([write(tmp_path / "captions.jsonl", *rows())], make, tmp_path, metrics="statistics")
    assert (tmp_path / "metrics.png").exists()


class TestReadCaptioners:
    def test_by_file(self, tmp_path: Path) -> None:
        items = write(tmp_path / "items.jsonl", {"id": "cup", **ITEM}, {"id": "dog"})
        one = write(tmp_path / "one.jsonl", {"item": "cup", "caption": "1"}, {"item": "dog", "caption": "2"})
        other = write(tmp_path / "other.jsonl", {"item": "cup", "caption": "3"})
        found = read_captioners([one, other], items=items)
        assert {name: [r.caption for r in rollouts] for name, rollouts in found.items()} == {
            "one": ["1", "2"],
            "other": ["3"],
        }
        assert found["one"][0].item.references == ("a white cup",)

    def test_by_key(self, tmp_path: Path) -> None:
        found = read_captioners([write(tmp_path / "captions.jsonl", *rows())], by="model")
        assert {name: len(rollouts) for name, rollouts in found.items()} == {"good": 3, "bad": 3}

    def test_cannot_be(self, tmp_path: Path) -> None:
        file = write(tmp_path / "captions.jsonl", *rows())
        with pytest.raises(InputError, match=r"a caption of item 'item0' has no metadata 'step', only \['model'\]"):
            read_captioners([file], by="step")
        (tmp_path / "more").mkdir()
        with pytest.raises(InputError, match="captions: two files of this name; rename one, or name the captioners"):
            read_captioners([file, write(tmp_path / "more" / "captions.jsonl", *rows())])
        with pytest.raises(InputError, match=r"empty.jsonl: holds no captions"):
            read_captioners([write(tmp_path / "empty.jsonl")])


def test_budgets_are_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--budget: got 'long', expected numbers of words, such as 100,200"):
        evaluate([write(tmp_path / "captions.jsonl", *rows())], FakeJudge, tmp_path, budgets="100,long")


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    file, log = write(tmp_path / "captions.jsonl", *rows(16)), tmp_path / "asked"
    out, whole = tmp_path / "out", tmp_path / "whole"

    def start(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, asked_judge.__file__, *map(str, arguments)], capture_output=True, timeout=600
        )

    killed = start(file, out, log, "12")
    assert killed.returncode == -signal.SIGKILL
    with sqlite3.connect(out / "replies.sqlite") as replies:
        kept = {key for (key,) in replies.execute("SELECT key FROM replies")}
    before = log.read_text().splitlines()
    assert len(kept) > 20
    assert kept <= set(before)

    log.unlink()
    assert start(file, out, log).returncode == 0
    after = log.read_text().splitlines()
    assert kept.isdisjoint(after)  # what was answered is not asked again
    assert len(after) == len(set(after))

    log.unlink()
    assert start(file, whole, log).returncode == 0
    assert set(log.read_text().splitlines()) == kept | set(after)
    for name in ("captions.jsonl", "battles.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    one, other = (json.loads((folder / "evaluation.json").read_text()) for folder in (out, whole))
    assert one["captioners"] == other["captioners"]
    assert one["arena"] == other["arena"]
