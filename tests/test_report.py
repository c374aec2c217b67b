from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeComponent, FakeGate
from rich.console import Console

from capreward import Fluency, Item, Missing, Reason, RewardSuite, Rollout, ScoreTable, report
from capreward.data import write_rows
from capreward.judges.fake import FunctionJudge
from capreward.report import Run, print_run, run_figure
from capreward.shapes import items

DOWN = Missing(Reason.SERVER, "server is down")
VERDICTS = {"a1": (0.25, 0.5), "a2": (0.75, DOWN), "b1": (1.0, DOWN), "b2": (1.0, 0.125), "c1": (DOWN, DOWN)}
KINDS = {"a1": "dense", "a2": "short", "b1": "dense", "b2": "short"}


@pytest.fixture
def rollouts() -> list[Rollout]:
    return [
        Rollout(item=Item(id=name[0]), caption=name, id=name, metadata={"kind": KINDS[name]} if name in KINDS else {})
        for name in VERDICTS
    ]


@pytest.fixture
def table(rollouts: list[Rollout]) -> ScoreTable:
    suite = RewardSuite(
        {
            "qa": FakeComponent(lambda rollout: VERDICTS[rollout.caption][0]),
            "precision_vs_facts": FakeComponent(lambda rollout: VERDICTS[rollout.caption][1]),
        },
        weights={"qa": 3},
        gates=[FakeGate("qa", lambda rollout: 0.0 if rollout.caption == "b1" else 1.0)],
    )
    return suite.score(rollouts)


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=120, file=io.StringIO())


def lines(console: Console) -> dict[str, list[str]]:
    """The cells of each printed line, by its first word."""
    return {line.split()[0]: line.split()[1:] for line in console.export_text().splitlines() if line.strip()}


class TestPrintScores:
    def test_a_line_a_rollout(self, table: ScoreTable, console: Console) -> None:
        report.print_scores(table, console)
        printed = lines(console)
        grpo, gdpo = table.advantages("grpo"), table.advantages("gdpo")
        advantages = {name: [f"{grpo[n]:+.2f}", f"{gdpo[n]:+.2f}"] for n, name in enumerate(VERDICTS)}
        assert printed["a1"] == ["0.25", "0.50", "0.31", *advantages["a1"]]  # (3 x 0.25 + 0.5) / 4
        assert printed["a2"] == ["0.75", "-", "0.75", *advantages["a2"]]
        assert printed["b1"] == ["0.00*", "-", "0.00", *advantages["b1"]]
        assert printed["b2"] == ["1.00", "0.12", "0.78", *advantages["b2"]]
        assert printed["c1"] == ["-", "-", "-", "+0.00", "+0.00"]
        assert advantages["a1"] != ["+0.00", "+0.00"]

    def test_says_how_much_it_shows_and_what_the_signs_mean(self, table: ScoreTable, console: Console) -> None:
        report.print_scores(table, console)
        text = console.export_text()
        assert "5 rollouts in 3 groups" in text
        assert "* changed by a gate   - missing" in text
        assert "more" not in text

    def test_shows_the_first_rows_of_many(self, table: ScoreTable, console: Console) -> None:
        report.print_scores(table, console, rows=2)
        text = console.export_text()
        assert "... and 3 more" in text
        assert "a2" in text
        assert "b1" not in text

    def test_components_stand_below(self, table: ScoreTable, console: Console) -> None:
        report.print_scores(table, console)
        text = console.export_text()
        assert text.index("Components") > text.index("c1")


def test_print_components(table: ScoreTable, console: Console) -> None:
    report.print_components(table, console)
    printed = lines(console)
    # qa: one not asked and one missing of five; gated once; it varies in groups a and b, not in c
    assert printed["qa"] == ["3", "0.67", "20%", "0.50", "67%", "of", "groups", "server", "1"]
    assert printed["precision_vs_facts"] == ["1", "0.31", "0%", "0.31", "0%", "of", "groups", "server", "3"]


def test_print_components_says_what_the_judges_did(cup: Item, console: Console) -> None:
    judge = FunctionJudge((1.0, 0.5, 0.0), name="some [judge]")
    report.print_components(
        RewardSuite({"fluency": Fluency(judge)}).score([Rollout(item=cup, caption="A cup.")]), console
    )
    assert "some [judge]: 1 request: 1 call" in console.export_text()


def test_print_means(table: ScoreTable, rollouts: list[Rollout], console: Console) -> None:
    report.print_means(table, rollouts, "kind", console)
    printed = lines(console)
    assert list(printed)[-3:] == ["dense", "short", "-"]
    assert printed["dense"][:4] == ["2", "0.12", "0.50", "0.16"]
    assert printed["short"][:3] == ["2", "0.88", "0.12"]
    assert printed["-"] == ["1", "-", "-", "-", "+0.00", "+0.00"]
    gdpo = table.advantages("gdpo")
    assert printed["short"][-1] == f"{gdpo[[1, 3]].mean():+.2f}"


def test_rows_by(rollouts: list[Rollout]) -> None:
    assert report.rows_by(rollouts, "kind") == {"dense": [0, 2], "short": [1, 3], "-": [4]}
    assert report.rows_by(rollouts, "author") == {"-": [0, 1, 2, 3, 4]}


class TestFigure:
    def axes(self, table: ScoreTable, **options: Any) -> tuple[Any, Any]:
        heat, bars, *others = report.figure(table, **options).axes
        assert len(others) == 1  # the colour bar's
        return heat, bars

    def test_heat_map_shows_the_gated_values(self, table: ScoreTable) -> None:
        heat, _ = self.axes(table)
        (image,) = heat.images
        np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), table.values)
        assert [label.get_text() for label in heat.get_xticklabels()] == list(table.names)
        assert [label.get_text() for label in heat.get_yticklabels()] == list(table.ids)

    def test_missing_cells_are_hatched(self, table: ScoreTable) -> None:
        heat, _ = self.axes(table)
        hatched = {(patch.get_y() + 0.5, patch.get_x() + 0.5) for patch in heat.patches if patch.get_hatch()}
        assert hatched == set(table.missing) == {(1, 1), (2, 1), (4, 0), (4, 1)}

    def test_gated_cells_have_a_dot(self, table: ScoreTable) -> None:
        heat, _ = self.axes(table)
        dots = [line for line in heat.lines if line.get_marker() == "o"]
        assert [dot.get_xydata().tolist() for dot in dots] == [[[0, 2]]]

    def test_gated_cells_beyond_the_rows_shown_have_none(self, table: ScoreTable) -> None:
        heat, _ = self.axes(table, rows=2)
        assert [line.get_xydata().tolist() for line in heat.lines if line.get_marker() == "o"] == [[]]

    def test_bars_are_both_advantages(self, table: ScoreTable) -> None:
        _, bars = self.axes(table)
        assert [text.get_text() for text in bars.get_legend().get_texts()] == ["GRPO", "GDPO"]
        widths = [bar.get_width() for bar in bars.patches]
        np.testing.assert_array_equal(widths, [*table.advantages("grpo"), *table.advantages("gdpo")])

    def test_groups_are_parted(self, table: ScoreTable) -> None:
        _, bars = self.axes(table)
        assert [line.get_ydata()[0] for line in bars.lines if line.get_ydata()[0] == line.get_ydata()[1]] == [1.5, 3.5]

    def test_shows_the_first_rows_of_many(self, table: ScoreTable) -> None:
        figure = report.figure(table, rows=3)
        heat = figure.axes[0]
        assert heat.images[0].get_array().shape == (3, 2)
        assert len(heat.patches) == 2
        assert "the first 3 of 5 rollouts" in figure.get_suptitle()
        assert "rollouts" not in report.figure(table).get_suptitle()

    def test_can_be_written(self, table: ScoreTable) -> None:
        file = io.BytesIO()
        report.figure(table).savefig(file, format="png")
        assert file.getvalue().startswith(b"\x89PNG")


class TestHostileIds:
    """An id may hold what rich and matplotlib take for markup."""

    @pytest.fixture
    def strange(self) -> tuple[ScoreTable, list[Rollout]]:
        batch = [
            Rollout(item=Item(id="a"), caption=name, id=name, metadata={"kind": "[/kind]"})
            for name in ("[red]r1", "r2[/b]", "$\\frac$")
        ]
        return RewardSuite({"qa": FakeComponent(0.5)}).score(batch), batch

    def test_in_the_table_of_scores(self, strange: Any, console: Console) -> None:
        report.print_scores(strange[0], console)
        assert {"[red]r1", "r2[/b]", "$\\frac$"} <= set(lines(console))

    def test_in_the_table_of_means(self, strange: Any, console: Console) -> None:
        report.print_means(*strange, "kind", console)
        assert "[/kind]" in lines(console)

    def test_in_the_figure(self, strange: Any) -> None:
        file = io.BytesIO()
        report.figure(strange[0]).savefig(file, format="png")
        assert file.getvalue().startswith(b"\x89PNG")


class TestRun:
    """What a training run did, as a table and a figure."""

    @pytest.fixture
    def folder(self, tmp_path: Path, table: ScoreTable, rollouts: list[Rollout]) -> Path:
        before = list(table.to_rows(rollouts))
        after = [{**row, "scores": {**row["scores"], "qa": {**row["scores"]["qa"], "value": 1.0}}} for row in before]
        steps = [{"step": step, "qa/value": step / 3, "precision_vs_facts/value": None} for step in (1, 2, 3)]
        for name, rows in (("before", before), ("after", after), ("metrics", steps)):
            write_rows(tmp_path / f"{name}.jsonl", rows)
        return tmp_path

    def test_means_leave_out_what_is_missing(self, folder: Path) -> None:
        run = Run.read(folder, {})
        assert run.names == ["qa", "precision_vs_facts"]
        assert run.means("qa") == (pytest.approx((0.25 + 0.75 + 0.0 + 1.0) / 4), 1.0)
        assert run.means("precision_vs_facts") == (pytest.approx((0.5 + 0.125) / 2),) * 2

    def test_table_has_a_line_for_each_component(self, folder: Path) -> None:
        console = Console(file=io.StringIO(), width=100)
        print_run(Run.read(folder, {}), console)
        lines = {line.split()[0]: line.split()[1:] for line in console.file.getvalue().splitlines() if line.strip()}
        assert lines["qa"] == ["0.50", "1.00", "+0.50"]
        assert lines["precision_vs_facts"] == ["0.31", "0.31", "+0.00"]

    def test_figure_shows_curves_bars_and_captions(self, folder: Path) -> None:
        picture = run_figure(Run.read(folder, {"a": items(1)[0].image}), examples=2)
        curves, bars, *examples = picture.axes
        assert [line.get_label() for line in curves.lines] == ["qa", "precision_vs_facts"]
        assert [round(bar.get_width(), 2) for bar in bars.patches] == [0.5, 1.0, 0.31, 0.31]
        assert len(examples) == 4
        assert examples[0].images
        said = [text.get_text() for text in examples[1].texts]
        assert said[0].startswith("before:  qa 0.25, precision_vs_facts 0.50\na1")
        assert said[1].startswith("after:  qa 1.00")
        picture.savefig(io.BytesIO(), format="png")
