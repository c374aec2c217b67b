"""On real photographs, each kind of caption loses to the dense, right one on the axis that it should lose on.

This is the lite judge's report card: where it gets a photograph wrong, the case is listed here by name.
"""

from __future__ import annotations

import pytest

from capreward import LiteJudge, Rollout, ScoreTable
from capreward.presets import everything
from capreward.samples import SHOULD_LOSE

WRONG = {("false", "qa"): {"astronaut"}}
"""(kind, component) -> photographs on which the lite judge does not score the kind below the dense caption."""


@pytest.fixture(scope="module")
def table(lite: LiteJudge, photos: list[Rollout]) -> ScoreTable:
    return everything(lite, spare=False).score(photos, progress=False)


def raw(table: ScoreTable, rollout: str, component: str) -> float:
    return float(table.raw[table.ids.index(rollout), table.names.index(component)])


@pytest.mark.parametrize(("kind", "component"), SHOULD_LOSE)
def test_kind_loses_where_it_should(table: ScoreTable, kind: str, component: str) -> None:
    wrong = set()
    for photo in dict.fromkeys(table.groups.tolist()):
        dense, other = raw(table, f"{photo}/dense", component), raw(table, f"{photo}/{kind}", component)
        if other >= dense:
            wrong.add(photo)
    assert wrong == WRONG.get((kind, component), set())


@pytest.mark.parametrize("kind", ["short", "overlong", "telegraphic"])
def test_length_mask_takes_the_fluency_of_captions_out_of_bounds(table: ScoreTable, kind: str) -> None:
    fluency = table.names.index("fluency")
    rows = [row for row, name in enumerate(table.ids) if name.endswith(f"/{kind}")]
    assert len(rows) == 9
    assert all((row, fluency) in table.gated and table.values[row, fluency] == 0 for row in rows)


@pytest.mark.parametrize("estimator", ["grpo", "gdpo"])
def test_the_dense_caption_has_the_best_advantage_of_its_group(table: ScoreTable, estimator: str) -> None:
    advantages = table.advantages(estimator)
    for photo in dict.fromkeys(table.groups.tolist()):
        rows = [row for row, group in enumerate(table.groups) if group == photo]
        assert table.ids[max(rows, key=lambda row: advantages[row])] == f"{photo}/dense"
