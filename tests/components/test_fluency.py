from __future__ import annotations

import pytest
from fakes import FakeJudge, score
from hypothesis import given, strategies as st

from capreward import Fluency, Missing, Reason, Score
from capreward.errors import InputError
from capreward.judges import Reply, Request, Task

REFUSED = Missing(Reason.REFUSED, "no")


def test_mean_of_three_ratings() -> None:
    judge = FakeJudge((1.0, 0.5, 0.3))
    (result,) = score(Fluency(judge), "A cup.")
    assert result.value == pytest.approx(0.6)
    assert result.evidence == {"clarity": 1.0, "fluency": 0.5, "coherence": 0.3}
    assert result.why == "clarity 1.00, fluency 0.50, coherence 0.30"
    assert judge.asked == [Request(Task.RATE, "A cup.", ("clarity", "fluency", "coherence"))]


def test_failed_judge_is_no_bad_caption() -> None:
    judge = FakeJudge(lambda request: REFUSED if request.context == "A cup." else (1.0, 1.0, 1.0))
    assert [type(result) for result in score(Fluency(judge), "A cup.", "A dog.")] == [Missing, Score]


@pytest.mark.parametrize("values", [(), (1.0, 1.0), (1.0,) * 4, (1.0, 1.0, 5.0), (float("nan"), 1.0, 1.0)])
def test_malformed_reply_is_unparseable(values: tuple[float, ...]) -> None:
    (result,) = score(Fluency(FakeJudge(Reply(values))), "A cup.")
    assert result.reason == Reason.UNPARSEABLE


def test_empty_caption_is_zero_and_not_asked() -> None:
    judge = FakeJudge((1.0, 1.0, 1.0))
    assert score(Fluency(judge), "?!") == [Score(0.0, "empty caption")]
    assert judge.asked == []


def test_judge_that_cannot_rate() -> None:
    with pytest.raises(InputError, match="Fluency: judge 'fake' cannot rate, only choose"):
        Fluency(FakeJudge(tasks=[Task.CHOOSE]))


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_values_lie_in_the_unit_interval(ratings: tuple[float, ...]) -> None:
    (result,) = score(Fluency(FakeJudge(ratings)), "A cup.")
    assert min(ratings) - 1e-9 <= result.value <= min(1.0, max(ratings) + 1e-9)
