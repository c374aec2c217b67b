from __future__ import annotations

import io
from typing import Any

import pytest
from asked_judge import answer
from fakes import FakeJudge
from rich.console import Console

from capreward import Item, Rollout
from capreward.evaluate import Evaluation, evaluate_captions
from capreward.evaluate.report import arena_figure, budget_figure, figure, print_evaluation

ITEMS = [
    Item(
        id=f"item{number}",
        references=(f"a white cup {number}",),
        questions=({"text": "colour", "options": ("white", "red"), "answer": 0},),
    )
    for number in range(3)
]


def evaluated(*names: str, judge: Any = None, **options: Any) -> Evaluation:
    captions = {
        name: [Rollout(item=item, caption=f"a white cup {place} {item.id}") for item in ITEMS]
        for place, name in enumerate(names)
    }
    options = {"metrics": ["qa", "statistics", "arena"], "draws": 20, **options}
    return evaluate_captions(captions, judge or FakeJudge(answer), **options)


def printed(evaluation: Evaluation) -> str:
    out = io.StringIO()
    print_evaluation(evaluation, Console(file=out, width=120))
    return out.getvalue()


@pytest.fixture(scope="module")
def three() -> Evaluation:
    return evaluated("x", "$y$", "[red]z[/red]", budgets=[2, 100], baselines=["x"])


def test_table(three: Evaluation) -> None:
    lines = printed(three).splitlines()
    assert next(line for line in lines if "metric" in line).split() == ["metric", "x", "$y$", "[red]z[/red]"]
    assert next(line for line in lines if "captions" in line).split() == ["captions", "3", "3", "3"]
    assert next(line for line in lines if "prism@100" in line).split()[1:4] == ["1.000", "[1.000,", "1.000]"]
    assert next(line for line in lines if "words" in line).split()[1:4] == ["5.0", "[5.0,", "5.0]"]
    assert "Arena: 6 battles, 0 missing" in lines
    assert any(line.startswith("A caption e times as long gains") for line in lines)
    assert lines[-1].startswith("fake: ")


def test_many_captioners_have_room() -> None:
    lines = printed(evaluated("one", "two", "three", "four", "five", "six", metrics=["statistics"])).splitlines()
    assert max(map(len, lines)) <= 120
    assert next(line for line in lines if "words" in line).split() == ["words", *["5.0"] * 6]


def test_missing_is_a_dash_and_says_why() -> None:
    bare = {name: [Rollout(item=Item(id="bare"), caption=name)] for name in ("x", "y")}
    said = printed(evaluate_captions(bare, FakeJudge(answer), metrics=["qa", "arena"], draws=20))
    assert next(line for line in said.splitlines() if "prism" in line).split() == ["prism", "-", "-"]
    assert "missing: prism of 1 of 1 captions of x (no_questions 1)" in said
    assert "Arena: none of 1 battles has an outcome" in said


def test_one_item_has_no_intervals() -> None:
    one = {name: [Rollout(item=ITEMS[0], caption=text)] for name, text in {"x": "a white cup", "y": "a dog"}.items()}
    said = printed(evaluate_captions(one, FakeJudge(answer), metrics=["qa", "statistics", "arena"], draws=20))
    assert "nan" not in said
    assert "log odds." in said


def test_figures(three: Evaluation) -> None:
    panels = figure(three).get_axes()
    assert [panel.get_title() for panel in panels] == ["prism", "words", "repetition", "meta_commentary", "distinct_2"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["x", "$y$", "[red]z[/red]"]
    (panel,) = budget_figure(three).get_axes()
    assert panel.get_title() == "prism within a budget"
    assert len(panel.containers) == 3
    first, second = arena_figure(three).get_axes()
    assert (first.get_title(), second.get_title()) == ("as fought", "at equal length")
    assert sorted(label.get_text() for label in first.get_yticklabels()) == ["$y$", "[red]z[/red]", "x"]


def test_figures_can_be_saved(three: Evaluation) -> None:
    for draw in (figure, budget_figure, arena_figure):
        file = io.BytesIO()
        draw(three).savefig(file, format="png", dpi=40)
        assert file.getvalue().startswith(b"\x89PNG")
