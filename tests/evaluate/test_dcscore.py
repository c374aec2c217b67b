from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import FakeJudge, score

from capreward import Coverage, Item, Missing, Precision, Reason, Reply, Rollout, Score
from capreward.errors import InputError
from capreward.evaluate import Counts, dc_score, dc_score_of_set
from capreward.evaluate.dcscore import counts_of
from capreward.judges import Request, Task
from capreward.judges.lite import LiteJudge


def test_f1_by_hand() -> None:
    # precision 8/10; recall (5 + 2) / (8 + 2), since two verified facts are not in the oracle
    counts = Counts(claims=10, verified=8, extra=2, covered=5, oracle=8)
    assert counts.f1() == pytest.approx(2 * 0.8 * 0.7 / 1.5)


def test_facts_beyond_the_oracle_are_no_loss() -> None:
    without = Counts(claims=4, verified=4, extra=0, covered=4, oracle=8)
    more = Counts(claims=8, verified=8, extra=4, covered=4, oracle=8)
    assert (without.f1(), more.f1()) == pytest.approx((2 / 3, 0.8))


def test_score_by_hand() -> None:
    every, relevant = Counts(10, 8, 2, 5, 8), Counts(6, 6, 1, 4, 5)
    # relevant: precision 1, recall 5/6, F1 10/11
    assert dc_score(every, relevant) == pytest.approx(100 * (2 * 0.8 * 0.7 / 1.5 + 10 / 11) / 2)
    assert dc_score_of_set([(every, relevant), (Counts(0, 0, 0, 0, 8), Counts(0, 0, 0, 0, 5))]) == pytest.approx(
        dc_score(every, relevant) / 2
    )


def test_nothing_said_is_zero_and_nothing_to_say_is_missing() -> None:
    assert Counts(0, 0, 0, 0, 3).f1() == 0
    assert Counts(4, 0, 0, 0, 3).f1() == 0
    assert Counts(4, 2, 0, 0, 3).f1() == 0
    assert np.isnan(Counts(4, 0, 0, 0, 0).f1())
    assert np.isnan(dc_score(Counts(4, 4, 0, 3, 3), Counts(0, 0, 0, 0, 0)))
    assert np.isnan(dc_score_of_set([]))
    assert dc_score_of_set([(Counts(3, 3, 0, 3, 3),) * 2, (Counts(0, 0, 0, 0, 0),) * 2]) == pytest.approx(100)


@pytest.mark.parametrize("counts", [(-1, 0, 0, 0, 0), (3, 4, 0, 0, 4), (3, 2, 3, 0, 4), (3, 2, 0, 5, 4)])
def test_counts_that_cannot_be(counts: Any) -> None:
    with pytest.raises(InputError, match=r"Counts\(claims=.*expected"):
        Counts(*counts)


def test_relevant_are_some_of_all() -> None:
    with pytest.raises(InputError, match="relevant: got claims=5, expected at most the 4 of all facts"):
        dc_score(Counts(4, 4, 0, 4, 4), Counts(5, 4, 0, 4, 4))


ITEM = Item(
    id="cup",
    facts=(
        {"text": "white cup"},
        {"text": "brown table"},
        {"text": "silver spoon"},
        {"text": "warm mood", "pointable": False},
        {"text": "red cup", "true": False},
        {"text": "sad mood", "true": False, "pointable": False},
    ),
)


def answer(request: Request) -> Reply:
    """Statements are what stands between full stops; they state what they contain."""
    if request.task is Task.EXTRACT:
        return Reply(texts=tuple(part.strip() for part in request.context.split(".") if part.strip()))
    return Reply(tuple(float(option in request.context) for option in request.options))


def found(caption: str, item: Item = ITEM) -> tuple[Counts, Counts] | Missing:
    judge = FakeJudge(answer)
    (precise,), (covered,) = (
        score(part, caption, item=item) for part in (Precision(judge, against="facts"), Coverage(judge))
    )
    return counts_of(item, precise, covered)


def test_counts_of_the_components_evidence() -> None:
    # said: a true fact, another, a false one, one that is in no fact, a true one and a false one that cannot be pointed at
    caption = "white cup. brown table. red cup. a dog. warm mood. sad mood"
    assert found(caption) == (Counts(6, 3, 0, 3, 4), Counts(4, 2, 0, 2, 3))


def test_a_fact_given_twice_counts_once() -> None:
    twice = Item(id="cup", facts=({"text": "white cup"}, *ITEM.facts))
    assert (
        found("white cup. warm mood", twice)
        == found("white cup. warm mood")
        == (Counts(2, 2, 0, 2, 4), Counts(1, 1, 0, 1, 3))
    )


def test_units_have_to_be_the_relevant_facts() -> None:
    """With other units, the facts that coverage has found are more than the relevant ones, or are not all that count."""
    relevant = ("white cup", "brown table", "silver spoon")
    same = Item(id="cup", facts=ITEM.facts, reference_units=relevant)
    assert found("white cup. warm mood", same) == found("white cup. warm mood")
    for units in ((*relevant, "warm mood"), relevant[:1]):
        other = Item(id="cup", facts=ITEM.facts, reference_units=units)
        reason = found("white cup. brown table. silver spoon. warm mood", other)
        assert isinstance(reason, Missing)
        assert reason.reason == Reason.NO_FACTS


def test_what_says_nothing() -> None:
    assert found("...") == (Counts(0, 0, 0, 0, 4), Counts(0, 0, 0, 0, 3))


def test_missing() -> None:
    units = Item(id="cup", facts=ITEM.facts, reference_units=("a cup of coffee",))
    assert isinstance(found("white cup", Item(id="bare")), Missing)
    reason = found("white cup", units)
    assert reason == Missing(Reason.NO_FACTS, "item 'cup': DCScore needs coverage of its facts, not of reference units")
    seen = Score(1.0, "", {"statements": [{"text": "white cup", "probability": 1.0}]})
    reason = counts_of(ITEM, seen, Score(1.0))
    assert reason == Missing(Reason.NO_FACTS, "item 'cup': DCScore needs precision against labelled facts")
    late = Missing(Reason.TIMEOUT, "late")
    assert counts_of(ITEM, Score(1.0), late) is late
    false = Item(id="cup", facts=({"text": "red cup", "true": False},))
    assert counts_of(false, Score(1.0), Score(1.0)) == Missing(Reason.NO_FACTS, "item 'cup' has no true facts")


def test_of_photographs(lite: LiteJudge, photos: list[Rollout]) -> None:
    """Captions that say much and truly come before false ones and self-praise."""
    one_item = [rollout for rollout in photos if rollout.item.id == "coffee"]
    scores = {}
    for rollout in one_item:
        (precise,), (covered,) = (
            score(part, rollout.caption, item=rollout.item)
            for part in (Precision(lite, against="facts"), Coverage(lite))
        )
        counts = counts_of(rollout.item, precise, covered)
        assert not isinstance(counts, Missing)
        scores[rollout.metadata["kind"]] = dc_score(*counts)
    assert scores["dense"] > max(scores["false"], scores["praise"], scores["short"])
