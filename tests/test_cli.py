from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judges.chat_server import completion, serving
from judges.test_storm import right
from PIL import Image

from capreward import LiteJudge, Rollout, __version__
from capreward.cli import main
from capreward.ledger import Ledger
from capreward.presets import everything

Write = Callable[..., Path]
ROWS = [
    {
        "id": "cup",
        "references": ["A white cup stands on a brown table."],
        "rollouts": [
            {"caption": "A white cup is standing on a table.", "id": "good", "metadata": {"step": 1}},
            {"caption": "A dog.", "id": "bad", "metadata": {"step": 2}},
        ],
    },
    {"id": "bare", "rollouts": ["A train crosses a bridge.", ""]},
]


@pytest.fixture(autouse=True)
def _one_judge_and_an_empty_folder(lite: LiteJudge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Loading a judge anew for each command takes seconds; and whatever is written by default lands in `tmp_path`."""
    monkeypatch.setattr("capreward.judges.lite.LiteJudge", lambda: lite)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: Any, name: str = "captions.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def written(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


class TestJudge:
    """`score --judge`."""

    def test_a_server_is_asked_once(self, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file, out = write(*ROWS), tmp_path / "out"
        with serving(right) as server:
            arguments = ("score", file, "--judge", "openai:m", "--base-url", server.url, "--out", out)
            more = ("--prices", "1", "2", "--concurrency", "2", "--weight", "precision_vs_facts=0.5")
            assert run(*arguments, *more) == 0
            asked, first = len(server.asked), written(out)
            assert asked > 0
            assert run(*arguments, *more) == 0
            assert len(server.asked) == asked
        assert written(out) == first
        assert first[0]["scores"]["fluency"]["value"] is not None
        assert (out / "replies.sqlite").exists()
        printed = capsys.readouterr().out
        assert "openai/m: " in printed

    def test_a_server_that_is_down_leaves_scores_missing(self, write: Write, tmp_path: Path) -> None:
        with serving(lambda _: (400, "{}")) as server:
            assert (
                run("score", write(*ROWS), "--judge", "openai:m", "--base-url", server.url, "--out", tmp_path / "out")
                == 0
            )
        cells = [cell for row in written(tmp_path / "out")[:3] for cell in row["scores"].values()]
        assert {cell["missing"] for cell in cells} >= {"refused"}
        assert all(cell["raw"] is None for cell in cells)

    def test_half_a_character_in_a_reply_is_written(self, write: Write, tmp_path: Path) -> None:
        row = {"id": "1", "rubric": [{"text": "Mentions a cup.", "weight": 1.0}], "rollouts": ["A cup."]}
        reply = {"verdicts": [{"number": 1, "why": "\ud83d", "holds": True}]}
        with serving(lambda _: completion(json.dumps(reply))) as server:
            options = ("--suite", "rubicap", "--judge", "openai:m", "--base-url", server.url, "--out", tmp_path / "out")
            assert run("score", write(row), *options) == 0
        (said,) = written(tmp_path / "out")
        assert said["scores"]["rubric"]["evidence"]["criteria"][0]["why"] == "\ud83d"

    def test_unknown(self, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("score", write(*ROWS), "--judge", "gpt") == 2
        assert "judge: got 'gpt', expected one of lite" in capsys.readouterr().err


class TestProbe:
    ITEM = {  # noqa: RUF012
        "id": "cup",
        "references": ["A white cup stands on a brown table."],
        "rubric": [{"text": "Mentions a white cup", "weight": 1.0}, {"text": "Mentions a red table", "weight": 1.0}],
        "questions": [{"text": "What is red?", "options": ["a table", "a dog"], "answer": 0}],
        "rollouts": ["A white cup is standing on something.", "A cup."],
    }

    def test_exit_status(self, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ("probe", write(self.ITEM), "--suite", "rubicap", "--out", tmp_path / "out", "--attacks")
        assert run(*arguments, "empty,self-praise") == 0
        said = capsys.readouterr().out
        assert "2 attacks on 2 honest captions in 1 groups" in said
        assert "0 of 2 attacks win" in said
        assert run(*arguments, "options added") == 1
        assert "! options added: rubric pays for it" in capsys.readouterr().out
        assert run(*arguments, "options added", "--threshold", "1") == 0
        assert run(*arguments, "options added", "--max-length", "9") == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["probe.json", "probe.png"]

    def test_samples(self, tmp_path: Path) -> None:
        few = ("--attacks", "empty, other image", "--out", tmp_path / "out")
        assert run("probe", "--samples", "shapes", *few) == 0
        data = json.loads((tmp_path / "out" / "probe.json").read_text(encoding="utf-8"))
        assert (data["components"], data["failed"]) == (["precision", "coverage", "fluency"], {})
        assert run("probe", "--samples", "photos", "--judge", "lite", "--suite", "rubicap", *few) == 0

    def test_replies_are_kept(self, write: Write, tmp_path: Path) -> None:
        with serving(right) as server:
            judge = ("--judge", "openai:m", "--base-url", server.url, "--out", tmp_path / "out")
            arguments = ("probe", write(self.ITEM), "--suite", "rubicap", *judge, "--attacks", "self-praise")
            run(*arguments)
            asked = len(server.asked)
            assert asked > 0
            run(*arguments)
            assert len(server.asked) == asked
        assert (tmp_path / "out" / "replies.sqlite").exists()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "probe: got file None and --samples None, expected one of them"),
            (["x.jsonl", "--samples", "photos"], "expected one of them"),
            (["x.jsonl"], "x.jsonl"),
            (["--samples", "shapes", "--threshold", "5"], "--threshold: got 5.0, expected a share in [0, 1]"),
            (["--samples", "shapes", "--attacks", "bribe"], "attacks: got 'bribe', expected some of empty, "),
        ],
    )
    def test_bad_input(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        assert run("probe", *arguments, "--out", tmp_path / "out") == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_judge_that_is_down(self, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with serving(lambda _: (400, "{}")) as server:
            judge = ("--judge", "openai:m", "--base-url", server.url, "--out", tmp_path / "out")
            assert run("probe", write(self.ITEM), "--suite", "rubicap", *judge, "--attacks", "empty") == 2
        assert "no honest caption has a score, such as refused" in capsys.readouterr().err


class TestDemo:
    def test_photos(
        self, lite: LiteJudge, photos: list[Rollout], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("demo", "--out", tmp_path / "demo") == 0
        rows = written(tmp_path / "demo")
        table = everything(lite).score(photos)
        assert [row["id"] for row in rows] == [rollout.id for rollout in photos]
        assert len(rows) == 54
        for estimator in ("grpo", "gdpo"):
            given = [row["advantages"][estimator] for row in rows]
            np.testing.assert_allclose(given, table.advantages(estimator), rtol=0, atol=1e-4)
        values = [[cell["value"] for cell in row["scores"].values()] for row in rows]
        np.testing.assert_allclose(np.array(values, float), table.values, rtol=0, atol=1e-4)
        spared = [row["scores"]["fluency"] for row in rows if row["scores"]["fluency"]["raw"] is None]
        assert spared
        assert all((cell["value"], cell["missing"], cell["gated"]) == (0, None, True) for cell in spared)
        with Image.open(tmp_path / "demo" / "scores.png") as picture:
            assert picture.format == "PNG"
        assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["ledger", "scores.jsonl", "scores.png"]
        out = capsys.readouterr().out
        assert "54 rollouts in 9 groups" in out
        assert "Mean by kind" in out
        assert f"wrote {tmp_path / 'demo' / 'scores.jsonl'}" in out

    def test_writes_to_a_folder_of_its_own_unless_told_otherwise(self, tmp_path: Path) -> None:
        assert run("demo", "--suite", "caprl") == 0
        assert [row["scores"].keys() for row in written(tmp_path / "capreward-demo")] == [{"qa"}] * 54

    def test_iiw(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--samples", "iiw", "--suite", "balcaprl", "--weight", "coverage=0", "--by", "author"]
        assert run("demo", *arguments, "--out", tmp_path / "iiw", "--max-length", "1") == 0
        assert len(written(tmp_path / "iiw")) == 200
        out = capsys.readouterr().out
        assert "and 140 more" in out
        assert "Mean by author" in out


class TestScore:
    def test_writes_what_the_table_holds(self, write: Write, tmp_path: Path) -> None:
        assert run("score", write(*ROWS), "--out", tmp_path / "scores") == 0
        good, bad, bare, empty = written(tmp_path / "scores")
        assert [(row["id"], row["group"], row["item"]) for row in (good, bad, bare, empty)] == [
            ("good", "cup", "cup"),
            ("bad", "cup", "cup"),
            ("bare#0", "bare", "bare"),
            ("bare#1", "bare", "bare"),
        ]
        assert good["caption"] == "A white cup is standing on a table."
        assert list(good["scores"]) == ["precision_vs_facts", "coverage", "fluency"]
        assert good["scores"]["coverage"]["value"] > 0.9 > 0.1 > bad["scores"]["coverage"]["value"]
        assert good["scores"]["coverage"]["evidence"]["units"][0]["text"] == "A white cup stands on a brown table."
        assert good["advantages"]["gdpo"] > 0 > bad["advantages"]["gdpo"]
        assert bad["scores"]["fluency"]["gated"] is True

    def test_missing_is_null_and_says_why(self, write: Write, tmp_path: Path) -> None:
        assert run("score", write(*ROWS), "--out", tmp_path / "scores") == 0
        good, _, bare, empty = written(tmp_path / "scores")
        cell = bare["scores"]["coverage"]
        assert (cell["raw"], cell["value"], cell["missing"]) == (None, None, "no_reference")
        assert cell["why"] == "missing (no_reference): item 'bare' has no references, units or facts"
        assert good["scores"]["precision_vs_facts"]["missing"] == "no_facts"
        assert bare["total"] is None
        assert bare["advantages"] == {"grpo": 0, "gdpo": 0}
        assert {name: cell["value"] for name, cell in empty["scores"].items()} == dict.fromkeys(empty["scores"], 0)

    def test_prints_and_writes_nothing_unless_asked(
        self, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("score", write(*ROWS)) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["captions.jsonl"]
        out = capsys.readouterr().out
        assert "4 rollouts in 2 groups" in out
        assert "no_facts 3" in out
        assert "Mean by" not in out

    def test_by(self, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("score", write(*ROWS), "--by", "step") == 0
        table = capsys.readouterr().out.partition("Mean by step")[2]
        assert [line.split()[:2] for line in table.splitlines() if line.strip()][-3:] == [
            ["1", "1"],
            ["2", "1"],
            ["-", "2"],
        ]

    def test_weights(self, write: Write, tmp_path: Path) -> None:
        weights = ["--weight", "coverage=0", "--weight", "fluency=2.5"]
        assert run("score", write(*ROWS), *weights, "--out", tmp_path / "scores") == 0
        good = written(tmp_path / "scores")[0]
        assert good["total"] == good["scores"]["fluency"]["value"]

    def test_precise(self, write: Write, tmp_path: Path) -> None:
        assert run("score", write(*ROWS), "--precise", "0.5", "--suite", "rubicap", "--out", tmp_path / "scores") == 0
        good, *_ = written(tmp_path / "scores")
        assert list(good["scores"]) == ["rubric", "precision_vs_facts"]

    def test_max_length(self, write: Write, tmp_path: Path) -> None:
        assert run("score", write(*ROWS), "--max-length", "5", "--out", tmp_path / "scores") == 0
        good, bad, *_ = written(tmp_path / "scores")
        assert {cell["value"] for cell in good["scores"].values()} == {0}
        assert good["scores"]["coverage"]["why"] == "caption of length 8, longer than the limit of 5"
        assert bad["scores"]["coverage"]["value"] > 0

    def test_items_by_id(self, write: Write, tmp_path: Path) -> None:
        items = write({"id": "cup", "references": ["A white cup stands on a table."]}, name="items.jsonl")
        captions = write({"item": "cup", "caption": "A white cup stands on a table."})
        assert run("score", captions, "--items", items, "--suite", "balcaprl", "--out", tmp_path / "scores") == 0
        (row,) = written(tmp_path / "scores")
        assert row["scores"]["coverage"]["value"] > 0.99

    def test_replaces_old_results(self, write: Write, tmp_path: Path) -> None:
        folder = tmp_path / "deep" / "scores"
        assert run("score", write(*ROWS), "--out", folder) == 0
        assert run("score", write(ROWS[1]), "--out", folder) == 0
        assert len(written(folder)) == 2
        assert sorted(path.name for path in folder.iterdir()) == ["ledger", "scores.jsonl", "scores.png"]
        assert len(list(Ledger(folder / "ledger").records())) == 2

    def test_an_old_ledger_stays_until_there_is_a_new_one(
        self, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        captions = write(*ROWS)
        assert run("score", captions, "--out", tmp_path / "scores") == 0
        assert run("score", captions, "--judge", "none", "--out", tmp_path / "scores") == 2
        assert len(list(Ledger(tmp_path / "scores" / "ledger").records())) == len(written(tmp_path / "scores"))
        (tmp_path / "run" / "ledger").mkdir(parents=True)
        of_a_run = tmp_path / "run" / "ledger" / "rollouts-0.jsonl"
        of_a_run.write_text("{}\n")
        assert run("score", captions, "--out", tmp_path / "run") == 2
        assert "is the ledger of a training run; expected another folder" in capsys.readouterr().err
        assert of_a_run.read_text() == "{}\n"
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "ledger").touch()
        assert run("score", captions, "--out", tmp_path / "taken") == 2


class TestAblate:
    @pytest.fixture
    def ledger(self, write: Write, tmp_path: Path) -> Path:
        rows = [{**ROWS[0], "id": name, "rollouts": ["A white cup on a table.", "A dog.", ""]} for name in "xy"]
        assert run("score", write(*rows), "--out", tmp_path / "scores") == 0
        return tmp_path / "scores" / "ledger"

    def test_default(self, ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        assert run("ablate", ledger, "--out", tmp_path / "new" / "report.html") == 0
        page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
        for name in ("grpo", "fluency x 2", "coverage x 2", "without fluency"):
            assert f'<th scope="row">{name}</th>' in page
        out = capsys.readouterr().out
        assert "Furthest from the recorded advantages: " in out
        assert f"wrote {tmp_path / 'new' / 'report.html'}" in out

    def test_what_is_asked_for(self, ledger: Path, tmp_path: Path) -> None:
        options = ("--weights", "fluency=2,coverage=0.5", "--drop", "fluency", "--length-mask", "fluency=0.25:4")
        out = tmp_path / "report.html"
        assert run("ablate", ledger, *options, "--estimators", "gdpo,rvpo", "--seed", "3", "--out", out) == 0
        page = out.read_text(encoding="utf-8")
        for name in ("rvpo", "fluency=2, coverage=0.5", "without fluency", "mask fluency 0.25 to 4"):
            assert f'<th scope="row">{name}</th>' in page
        assert "seed 3" in page
        assert "x 2" not in page
        assert "grpo</th>" not in page

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--weights", "fluency"], "--weights: got 'fluency', expected NAME=NUMBER"),
            (["--weights", "grammar=1"], "weights: got component 'grammar', expected one of"),
            (["--drop", "grammar"], "drop: got component 'grammar', expected one of"),
            (["--length-mask", "fluency=2"], "--length-mask: got 'fluency=2', expected TARGET=LOW:HIGH"),
            (["--length-mask", "fluency=2:1"], "got low=2.0, high=1.0, expected 0 <= low < high"),
            (["--estimators", "ppo"], "estimator: got 'ppo', expected one of"),
            (["--out", "."], "--out: got '.', a folder; expected a file"),
        ],
    )
    def test_cannot_be(
        self, ledger: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert run("ablate", ledger, "--out", tmp_path / "report.html", *options) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "report.html").exists()

    def test_no_ledger(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("ablate", tmp_path, "--out", tmp_path / "report.html") == 2
        assert "no ledger; expected a folder with rollouts.jsonl" in capsys.readouterr().err


class TestEvaluate:
    def test_lite(self, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = [
            {**ROWS[0], "questions": [{"text": "Which colour?", "options": ["white", "black"], "answer": 0}]},
            ROWS[1],
        ]
        out = tmp_path / "evaluation"
        assert run("evaluate", write(*rows), "--budget", "3", "--draws", "20", "--out", out) == 0
        said = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        assert said["judge"]["name"].startswith("lite")
        assert said["captioners"]["captions"]["prism"]["scored"] == 3  # the empty caption of the other item among them
        printed = capsys.readouterr().out
        assert "prism@3" in printed
        assert f"wrote {out / 'evaluation.json'}, " in printed
        assert (out / "replies.sqlite").exists()

    def test_a_server_is_asked_once(self, write: Write, tmp_path: Path) -> None:
        with serving(right) as server:
            options = (
                "--judge",
                "openai:m",
                "--base-url",
                server.url,
                "--by",
                "step",
                "--draws",
                "20",
                "--out",
                tmp_path / "out",
            )
            assert run("evaluate", write(ROWS[0]), *options) == 0
            asked = len(server.asked)
            assert asked > 0
            assert run("evaluate", tmp_path / "captions.jsonl", *options) == 0
            assert len(server.asked) == asked

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--metrics", "bleu"], "metrics: got 'bleu', expected some of bcapscore"),
            (["--metrics", "arena"], "metrics: got arena with one captioner, 'captions'"),
            (["--by", "model"], "a caption of item 'cup' has no metadata 'model'"),
            (["--budget", "long"], "--budget: got 'long', expected numbers of words"),
            (["--out", "captions.jsonl"], "--out: got 'captions.jsonl', but "),
        ],
    )
    def test_cannot_be(
        self, write: Write, options: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        out = [] if "--out" in options else ["--out", "evaluation"]
        assert run("evaluate", write(*ROWS), *options, *out) == 2
        assert said in capsys.readouterr().err


class TestErrors:
    """Exit status 2, one line that says what is wrong, and nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["none.jsonl"], "none.jsonl: no such file"),
            (["captions.txt"], "captions.txt: got a .txt file, expected .jsonl or .parquet"),
            (["broken.jsonl"], "broken.jsonl, line 2, column 1: not JSON"),
            (["empty.jsonl"], "empty.jsonl: holds no rollouts"),
            (["unknown.jsonl"], "unknown.jsonl, line 1: item: got 'cup', expected the id of an item given"),
            (["captions.jsonl", "--items", "none.jsonl"], "none.jsonl: no such file"),
            (["captions.jsonl", "--items", "broken.jsonl"], "broken.jsonl, line 2"),
            (["captions.jsonl", "--weight", "fluency"], "--weight: got 'fluency', expected NAME=NUMBER"),
            (["captions.jsonl", "--weight", "fluency=much"], "--weight: got 'fluency=much', expected NAME=NUMBER"),
            (["captions.jsonl", "--weight", "colour=1"], "weights: got component 'colour', expected one of ["),
            (["captions.jsonl", "--weight", "fluency=-1"], "weights['fluency']: got -1.0, expected a finite number >= 0"),
            (["captions.jsonl", "--weight", "fluency=nan"], "weights['fluency']: got nan, expected a finite number >= 0"),
            (["captions.jsonl", "--suite", "caprl", "--weight", "qa=0"], "weights: all are zero"),
            (["captions.jsonl", "--max-length", "0"], "max_length: got 0, expected a number >= 1"),
            (["captions.jsonl", "--max-missing", "2"], "max_missing: got 2.0, expected a share in [0, 1]"),
            (["broken.parquet"], "broken.parquet: not a parquet file"),
            (["captions.jsonl", "--out", "broken.jsonl"], "--out: got 'broken.jsonl', but "),
            (["captions.jsonl", "--out", "broken.jsonl/scores"], "--out: got 'broken.jsonl/scores'"),
        ],
    )  # fmt: skip
    def test_of_the_user(
        self, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        write(*ROWS)
        write(ROWS[0], "{", name="broken.jsonl")
        write({"item": "cup", "caption": "A cup."}, name="unknown.jsonl")
        for name in ("empty.jsonl", "captions.txt", "broken.parquet"):
            (tmp_path / name).touch()
        before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
        out = [] if "--out" in arguments else ["--out", "scores"]
        assert run("score", *arguments, *out) == 2
        message = capsys.readouterr().err
        assert message.startswith("capreward: error: ")
        assert said in message
        assert message.count("\n") == 1
        assert message.endswith("\n")
        assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before

    def test_what_was_judged_is_kept_when_too_much_is_missing(
        self, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(*ROWS)
        assert run("score", "captions.jsonl", "--max-missing", "0.5", "--out", "scores") == 2
        assert "component 'precision_vs_facts': missing for 3 of 4 rollouts" in capsys.readouterr().err
        assert len(list(Ledger(tmp_path / "scores" / "ledger").records())) == 4

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "the following arguments are required: COMMAND"),
            (["fly"], "invalid choice: 'fly'"),
            (["train"], "the following arguments are required: RECIPE"),
            (["sweep", "shapes"], "the following arguments are required: --out"),
            (["evaluate", "captions.jsonl"], "the following arguments are required: --out"),
            (["score"], "the following arguments are required: FILE"),
            (["score", "captions.jsonl", "--suite", "best"], "invalid choice: 'best'"),
            (["score", "captions.jsonl", "--max-length", "ten"], "invalid int value: 'ten'"),
            (["demo", "--samples", "videos"], "invalid choice: 'videos'"),
        ],
    )
    def test_of_usage(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
        assert list(tmp_path.iterdir()) == []

    def test_while_writing_leave_the_old_file_and_no_partial_one(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "scores"
        assert run("score", write(*ROWS), "--out", folder) == 0
        old = (folder / "scores.jsonl").read_bytes()

        def disk_is_full(*_: Any, **__: Any) -> str:
            raise OSError("no space left on device")

        monkeypatch.setattr("capreward.data.json.dumps", disk_is_full)
        with pytest.raises(OSError, match="no space left"):
            run("score", tmp_path / "captions.jsonl", "--out", folder)
        assert (folder / "scores.jsonl").read_bytes() == old
        assert sorted(path.name for path in folder.iterdir()) == ["ledger", "scores.jsonl", "scores.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], ["score", "demo", "--version"]),
        (["score", "--help"], ["--items", "--suite", "--weight", "--max-length", "--max-missing", "--by", "--out"]),
        (["score", "--help"], ["--judge", "--base-url", "--cache", "examples:"]),
        (["probe", "--help"], ["--samples", "--threshold", "--attacks", "--injected", "--suite", "--judge", "examples"]),
        (["demo", "--help"], ["--samples", "--suite", "--weight", "capreward-demo", "examples:"]),
        (["sweep", "--help"], ["--weights", "--estimators", "--seeds", "--set-grid", "--set", "--jobs", "examples:"]),
        (["ablate", "--help"], ["--weights", "--drop", "--length-mask", "--estimators", "--out", "--seed", "examples:"]),
        (["agree", "--help"], ["LABELS", "--layout", "--images", "--items", "--limit", "--suite", "--component", "example"]),
        (["agree", "--help"], ["--resamples", "--seed", "--judge", "--cache", "--out"]),
        (["evaluate", "--help"], ["--by", "--metrics", "--budget", "--baselines", "--draws", "--judge", "--out", "examples"]),
        (["verl-overrides", "--help"], ["FILE[:NAME]", "--mode", "--legacy", "example"]),
        (["curate", "--help"], ["questions", "rubrics", "references"]),
        (["curate", "questions", "--help"], ["SOURCE", "--writer", "--sight", "--blind", "--guessed-at-most", "examples:"]),
        (["curate", "rubrics", "--help"], ["--teachers", "--teacher-captions", "--student-captions", "--agree", "examples:"]),
        (["curate", "references", "--help"], ["--describer", "--extractor", "--verifier", "--keep-old", "examples:"]),
        (["annotate", "--help"], ["--captioner", "--checkpoint", "--max-tokens", "--seed", "examples:"]),
        (["annotate", "--help"], ["--base-url", "--price ", "--dry-run", "--sample", "--limit", "--again", "--workers"]),
        (["--version"], [f"capreward {__version__}"]),
    ],
)  # fmt: skip
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for words in said:
        assert words in out


def test_is_installed_as_a_command() -> None:
    command = Path(sys.executable).with_name("capreward")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"capreward {__version__}\n"
