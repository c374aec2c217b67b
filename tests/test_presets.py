from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeJudge, rollouts

from capreward import Condition, Item, LengthMask, RewardSuite
from capreward.cli import SUITES
from capreward.errors import InputError
from capreward.judges import Reply, Request, Task
from capreward.presets import PRESETS, balcaprl, caprl, everything, rubicap


def answer(request: Request) -> Reply:
    """Extracts sentences, rates everything 0.9, and holds the first option for certain."""
    if request.task is Task.EXTRACT:
        return Reply(texts=tuple(part.strip() for part in request.context.split(".") if part.strip()))
    if request.task is Task.RATE:
        return Reply((0.9,) * len(request.options))
    if request.task is Task.CHOOSE:
        return Reply(tuple(float(option == "blue") for option in request.options))
    return Reply(tuple(float(n == 0) for n in range(len(request.options))))


JUDGE = FakeJudge(answer)


@pytest.mark.parametrize(
    ("preset", "names", "gated"),
    [
        (balcaprl, ("precision_vs_facts", "coverage", "fluency"), ["fluency"]),
        (caprl, ("qa",), []),
        (rubicap, ("rubric",), []),
        (everything, ("qa", "precision_vs_facts", "coverage", "rubric", "fluency"), ["fluency"]),
    ],
)
def test_components_weights_and_gates(preset: Any, names: tuple[str, ...], gated: list[str]) -> None:
    suite = preset(JUDGE)
    assert isinstance(suite, RewardSuite)
    assert suite.names == names
    assert suite.weights.tolist() == [1.0] * len(names)
    assert [gate.target for gate in suite.gates] == gated
    for gate in suite.gates:
        assert isinstance(gate, LengthMask)
        assert (gate.low, gate.high) == (0.5, 2.0)


def test_all_scores_by_hand(cup: Item) -> None:
    """The first fact is true, the second of the two units is not found, the first criterion weighs 2 of 3."""
    table = everything(JUDGE).score(rollouts("A white cup stands on the brown table.", "A cup.", item=cup))
    expected = {"qa": 0.0, "precision_vs_facts": 1.0, "coverage": 0.5, "rubric": 2 / 3, "fluency": 0.9}
    assert dict(zip(table.names, table.values[0].tolist(), strict=True)) == pytest.approx(expected)
    assert table.values[1].tolist() == pytest.approx([0.0, 1.0, 0.5, 2 / 3, 0.0])  # too short to be fluent


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_options_reach_the_suite(preset: Any) -> None:
    name = preset(JUDGE).names[0]
    suite = preset(JUDGE, weights={name: 0.5}, max_length=7, max_missing=0.2, spare=False)
    assert suite.weights[0] == 0.5
    assert (suite.max_length, suite.max_missing, suite.spare) == (7, 0.2, False)


def test_gates_can_be_replaced() -> None:
    assert balcaprl(JUDGE, gates=[]).gates == ()


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_precise_lets_all_else_count_only_for_captions_that_are_right(preset: Any, cup: Item) -> None:
    captions = rollouts("A white cup stands on a brown table next to a spoon.", "A dog.", item=cup)
    plain, guarded = preset(JUDGE), preset(JUDGE, precise=0.5)
    others = [name for name in plain.names if name != "precision_vs_facts"]
    assert [gate.target for gate in guarded.gates if isinstance(gate, Condition)] == others
    assert [gate.target for gate in guarded.gates if isinstance(gate, LengthMask)] == [g.target for g in plain.gates]
    assert guarded.names[: len(plain.names)] == plain.names
    weights = dict(zip(guarded.names, guarded.weights.tolist(), strict=True))
    assert weights == {"precision_vs_facts": 0.0, **dict.fromkeys(plain.names, 1.0)}
    reads = FakeJudge(
        lambda r: Reply(tuple(float(o == "white") for o in r.options)) if r.task is Task.CHOOSE else answer(r)
    )
    assert (preset(reads, precise=0.5).score(captions[:1]).values > 0).all()
    wrong = FakeJudge(lambda r: Reply((0.0,) * len(r.options)) if r.task is Task.SUPPORT else answer(r))
    assert (preset(wrong, precise=0.5).score(captions).values == 0).all()


def test_precise_comes_after_ones_own_gates_and_weights() -> None:
    suite = rubicap(JUDGE, precise=0.3, gates=[LengthMask("rubric")], weights={"rubric": 2.0})
    assert [type(gate) for gate in suite.gates] == [LengthMask, Condition]
    assert suite.weights.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("precise", [0, 1.5, float("nan")])
def test_precise_out_of_range(precise: float) -> None:
    with pytest.raises(InputError, match=r"precise: got .*, expected a number in \(0, 1\]"):
        rubicap(JUDGE, precise=precise)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_judge_that_can_do_nothing(preset: Any) -> None:
    with pytest.raises(InputError, match="judge 'fake' cannot"):
        preset(FakeJudge(answer, tasks=[]))


def test_command_line_knows_them_all() -> None:
    assert tuple(PRESETS) == SUITES
