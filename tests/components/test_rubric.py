from __future__ import annotations

import pytest
from fakes import FakeJudge, score
from hypothesis import given, strategies as st

from capreward import Item, Missing, Reason, RubricJudge, Score
from capreward.errors import InputError
from capreward.judges import Reply, Request, Task

ITEM = Item(
    id="cup",
    rubric=[
        {"text": "Mentions a cup", "weight": 3},
        {"text": "Mentions a spoon", "weight": 2},
        {"text": "Says that it is quiet"},
    ],
)
DOWN = Missing(Reason.SERVER, "server is down")


@pytest.mark.parametrize(
    ("replies", "value", "why"),
    [
        ((1.0, 1.0, 1.0), 1.0, "met 6 of 6"),
        ((0.9, 0.1, 0.7), 4 / 6, "met 4 of 6"),
        ((0.0, 0.5, 0.49), 2 / 6, "met 2 of 6"),
        ((0.0, 0.0, 0.0), 0.0, "met 0 of 6"),
    ],
)
def test_weight_met_over_weight_of_all(replies: tuple[float, ...], value: float, why: str) -> None:
    (result,) = score(RubricJudge(FakeJudge(replies)), "A cup.", item=ITEM)
    assert result.value == pytest.approx(value)
    assert result.why == why


def test_evidence_is_met_or_not_by_criterion() -> None:
    (result,) = score(RubricJudge(FakeJudge((0.9, 0.49, 0.5))), "A cup.", item=ITEM)
    assert result.evidence["criteria"] == [
        {"criterion": "Mentions a cup", "weight": 3.0, "met": True},
        {"criterion": "Mentions a spoon", "weight": 2.0, "met": False},
        {"criterion": "Says that it is quiet", "weight": 1.0, "met": True},
    ]


def test_one_request_a_caption_holds_every_criterion() -> None:
    judge = FakeJudge((1.0, 1.0, 1.0))
    score(RubricJudge(judge), "A cup.", "A dog.", item=ITEM)
    criteria = ("Mentions a cup", "Mentions a spoon", "Says that it is quiet")
    assert judge.asked == [Request(Task.SUPPORT, caption, criteria) for caption in ("A cup.", "A dog.")]


def test_no_rubric() -> None:
    judge = FakeJudge((1.0,))
    assert score(RubricJudge(judge), "A cup.") == [Missing(Reason.NO_RUBRIC, "item 'bare' has no rubric")]
    assert judge.asked == []


def test_failed_judge_is_no_bad_caption() -> None:
    judge = FakeJudge(lambda request: DOWN if request.context == "A cup." else (1.0, 1.0, 1.0))
    failed, fine = score(RubricJudge(judge), "A cup.", "A dog.", item=ITEM)
    assert failed == DOWN
    assert fine.value == 1


@pytest.mark.parametrize("values", [(), (1.0, 1.0), (1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.1), (-0.1, 1.0, 1.0)])
def test_reply_has_to_cover_every_criterion_once(values: tuple[float, ...]) -> None:
    (result,) = score(RubricJudge(FakeJudge(Reply(values))), "A cup.", item=ITEM)
    assert result.reason == Reason.UNPARSEABLE


def test_empty_caption_is_zero_and_not_asked() -> None:
    judge = FakeJudge((1.0, 1.0, 1.0))
    assert score(RubricJudge(judge), " ", item=ITEM) == [Score(0.0, "empty caption")]
    assert judge.asked == []


def test_judge_that_cannot_support() -> None:
    with pytest.raises(InputError, match="RubricJudge: judge 'fake' cannot support, only choose, rate"):
        RubricJudge(FakeJudge(tasks=[Task.RATE, Task.CHOOSE]))


@given(st.tuples(*[st.floats(0, 1)] * 3), st.tuples(*[st.floats(1e-6, 1e6)] * 3))
def test_values_lie_in_the_unit_interval(replies: tuple[float, ...], weights: tuple[float, ...]) -> None:
    item = Item(id="cup", rubric=[{"text": f"criterion {n}", "weight": w} for n, w in enumerate(weights)])
    (result,) = score(RubricJudge(FakeJudge(replies)), "A cup.", item=item)
    assert 0 <= result.value <= 1
    if min(replies) >= 0.5:
        assert result.value == 1
