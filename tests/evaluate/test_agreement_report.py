from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeComponent, FakeJudge
from judges.chat_server import serving
from judges.test_storm import right
from PIL import Image
from rich.console import Console
from scipy import stats

from capreward import LiteJudge, Missing, Reason, RewardSuite
from capreward.cli import main
from capreward.errors import InputError
from capreward.evaluate.agreement_report import COMPONENTS, components, figure, measure, print_agreement
from capreward.evaluate.labels import Labels, read_labels
from capreward.judges import Task
from capreward.records import count_words
from capreward.samples import IIW

ROWS = [
    {"item": {"id": f"{n}"}, "first": "word " * (n + 2), "second": "word", "labels": {"detail": n - 2, "style": -n}}
    for n in range(6)
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def labels(path: Path) -> Labels:
    return read_labels(path)


def run(*arguments: str | Path) -> int:
    return main(["agree", *map(str, arguments)])


class TestMeasure:
    def test_each_component_on_each_axis(self, labels: Labels) -> None:
        suite = RewardSuite(
            {
                "short": FakeComponent(lambda rollout: 1 / count_words(rollout.caption)),
                "none": FakeComponent(Missing(Reason.NO_IMAGE)),
            }
        )
        result = measure(suite.score(labels.rollouts), labels, total=True, resamples=50)
        found = {(name, axis.name): measured for name, axis, measured in result.rows}
        assert list(found) == [(name, axis) for axis in ("detail", "style") for name in ("short", "none", "total")]
        assert found["short", "detail"].score["tau_b"].value == pytest.approx(-1)
        assert found["short", "detail"].length["tau_b"].value == pytest.approx(1)
        assert found["short", "style"].score["tau_b"].value == pytest.approx(1)
        assert found["total", "style"].score == found["short", "style"].score
        assert (found["none", "style"].labels, found["none", "style"].missing) == (0, 6)
        assert result.missing == {"short": {}, "none": {"no_image": 12}}

    def test_json_has_no_nan(self, labels: Labels) -> None:
        table = RewardSuite({"same": FakeComponent(0.5)}).score(labels.rollouts)
        text = json.dumps(measure(table, labels, resamples=10).to_json(), allow_nan=False)
        assert json.loads(text)["rows"][0]["score"]["tau_b"] == [None, None, None]


class TestPrint:
    def test_one_line_a_component(self, labels: Labels) -> None:
        suite = RewardSuite({"short": FakeComponent(lambda rollout: 1 / count_words(rollout.caption))})
        console = Console(width=120, record=True)
        print_agreement(measure(suite.score(labels.rollouts), labels, resamples=50), console)
        lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
        assert "detail: side by side, 6 labels" in lines
        assert "short 6 -1.00 [-1.00 -1.00] +1.00 [+1.00 +1.00] -2.00 [-2.00 -2.00] -" in lines

    def test_one_image_has_no_interval(self, tmp_path: Path) -> None:
        rows = [{"item": {"id": "a"}, "caption": "word " * n, "labels": {"quality": -n}} for n in (1, 2)]
        (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        labels = read_labels(tmp_path / "one.jsonl")
        console = Console(width=120, record=True)
        suite = RewardSuite({"short": FakeComponent(lambda rollout: 1 / count_words(rollout.caption))})
        result = measure(suite.score(labels.rollouts), labels, resamples=10)
        print_agreement(result, console)
        text = console.export_text()
        assert "+1.00" in text
        assert "nan" not in text

    def test_choices_show_accuracy(self, tmp_path: Path) -> None:
        keys = ("img", "caption1", "caption2", "source1", "source2", "winner", "ref")
        battles = [dict(zip(keys, (f"{n}", "a b", "a", "x", "y", "xxy"[n], "a"), strict=True)) for n in range(3)]
        (tmp_path / "battles.json").write_text(json.dumps(battles))
        labels = read_labels(tmp_path / "battles.json")
        console = Console(width=120, record=True)
        print_agreement(
            measure(RewardSuite({"same": FakeComponent(0.5)}).score(labels.rollouts), labels, resamples=50), console
        )
        text = console.export_text()
        assert "0.50 [0.50 0.50]" in text
        assert "always preferring the same side: 0.67" in text


class TestComponents:
    def test_all_that_the_judge_can_do(self) -> None:
        assert list(components(FakeJudge(tasks={Task.RATE, Task.LIKERT}), ()).components) == [
            "fluency",
            "likert",
            "likert_with_reference",
        ]

    def test_by_name(self) -> None:
        for name in COMPONENTS.keys() - {"precision"}:
            assert components(FakeJudge(), [name]).components[name].name == name

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("style", "component: got 'style', expected one of qa, precision, "),
            ("fluency", "judge 'fake' cannot rate"),
        ],
    )
    def test_cannot_be(self, name: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            components(FakeJudge(tasks={Task.LIKERT}), [name])


def test_figure_has_a_panel_for_each_axis() -> None:
    labels = read_labels(IIW).first(5)
    result = measure(RewardSuite({"same": FakeComponent(0.5)}).score(labels.rollouts), labels, resamples=10)
    panels = [panel for panel in figure(result).axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == [axis.name for axis in labels.axes]
    assert len({panel.get_xlim() for panel in panels}) == 1


class TestCommand:
    @pytest.fixture(autouse=True)
    def _one_judge(self, lite: LiteJudge, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("capreward.judges.lite.LiteJudge", lambda: lite)

    def test_writes_and_prints(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--limit", "8", "--resamples", "20", "--component", "coverage", "--component", "qa")
        assert run("iiw", *options, "--out", tmp_path / "out") == 0
        written: dict[str, Any] = json.loads((tmp_path / "out" / "agreement.json").read_text())
        assert written["layout"] == "iiw"
        assert written["missing"] == {"coverage": {}, "qa": {"no_questions": 16}}
        scores = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
        x = np.array([row["scores"]["coverage"]["value"] for row in scores])
        labels = read_labels(IIW).first(8)
        row = next(row for row in written["rows"] if row["component"] == "coverage")
        expected = stats.kendalltau(x[::2] - x[1::2], labels.axes[0].label).statistic
        assert row["score"]["tau_b"][0] == pytest.approx(expected, abs=1e-4)
        with Image.open(tmp_path / "out" / "agreement.png") as picture:
            assert picture.format == "PNG"
        out = capsys.readouterr().out
        assert "Comprehensiveness: side by side, 8 labels" in out
        assert "qa: captions without a score: no_questions 16" in out
        assert "left out: 100 labels against gpt4v" in out

    def test_a_suite_has_a_total(self, path: Path, tmp_path: Path) -> None:
        assert run(path, "--suite", "balcaprl", "--resamples", "5", "--out", tmp_path / "out") == 0
        rows = json.loads((tmp_path / "out" / "agreement.json").read_text())["rows"]
        assert [row["component"] for row in rows[:4]] == ["precision_vs_facts", "coverage", "fluency", "total"]

    def test_nothing_is_asked_twice(self, path: Path, tmp_path: Path) -> None:
        with serving(right) as server:
            options = ("--judge", "openai:m", "--base-url", server.url, "--component", "fluency", "--resamples", "5")
            assert run(path, *options, "--out", tmp_path / "out") == 0
            asked, first = len(server.asked), (tmp_path / "out" / "agreement.json").read_text()
            assert run(path, *options, "--out", tmp_path / "out") == 0
            assert len(server.asked) == asked > 0
        assert (tmp_path / "out" / "agreement.json").read_text() == first

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--limit", "0"], "--limit: got 0, expected a number >= 1"),
            (["--resamples", "0"], "--resamples: got 0, expected a number >= 1"),
            (["--layout", "coco"], "layout: got 'coco', expected one of"),
            (["--component", "style"], "component: got 'style', expected one of"),
            (["--component", "likert"], "cannot likert, only choose, extract, rate, support"),
            (["--items", "none.jsonl"], "none.jsonl: no such file"),
        ],
    )
    def test_unusable(
        self, path: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(path, *options, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
