from __future__ import annotations

import pytest
from fakes import FakeJudge, score
from hypothesis import given
from hypothesis import strategies as st

from capreward import Item, Missing, QAUtility, Reason, Score
from capreward.errors import InputError
from capreward.judges import Reply, Request, Task

REPLIES = {"Colour?": (0.2, 0.8), "Where?": (0.3, 0.6, 0.1), "How many?": (0.1, 0.9)}
ITEM = Item(
    id="cup",
    questions=[
        {"text": "Colour?", "options": ["blue", "white"], "answer": 1},
        {"text": "Where?", "options": ["table", "floor", "shelf"], "answer": 0},
        {"text": "How many?", "options": ["one", "two"], "answer": 1},
    ],
)
REFUSED = Missing(Reason.REFUSED, "no")


def test_match_is_the_share_of_right_answers() -> None:
    (result,) = score(QAUtility(FakeJudge(lambda request: REPLIES[request.question])), "A cup.", item=ITEM)
    assert result.value == 2 / 3
    assert result.why == "2 of 3 right"


def test_probability_is_the_mean_probability_of_the_right_option() -> None:
    judge = FakeJudge(lambda request: REPLIES[request.question])
    (result,) = score(QAUtility(judge, score="probability"), "A cup.", item=ITEM)
    assert result.value == pytest.approx((0.8 + 0.3 + 0.9) / 3)


def test_evidence_is_the_answer_to_each_question() -> None:
    (result,) = score(QAUtility(FakeJudge(lambda request: REPLIES[request.question])), "A cup.", item=ITEM)
    assert result.evidence["answers"][1] == {
        "question": "Where?",
        "chosen": "floor",
        "right": False,
        "probability_of_right": 0.3,
    }
    assert [answer["right"] for answer in result.evidence["answers"]] == [True, False, True]


def test_judge_sees_caption_question_and_options() -> None:
    judge = FakeJudge(lambda request: REPLIES[request.question])
    score(QAUtility(judge), "A cup.", "A dog.", item=ITEM)
    assert len(judge.asked) == 6
    assert judge.asked[4] == Request(Task.CHOOSE, "A dog.", ("table", "floor", "shelf"), "Where?")


def test_no_questions() -> None:
    judge = FakeJudge((1.0,))
    assert score(QAUtility(judge), "A cup.") == [Missing(Reason.NO_QUESTIONS, "item 'bare' has no questions")]
    assert judge.asked == []


def test_an_unanswered_question_makes_the_score_missing() -> None:
    """Leaving it out would compare the rollouts of a group on different questions."""
    judge = FakeJudge(lambda request: REFUSED if request.question == "Where?" else REPLIES[request.question])
    assert score(QAUtility(judge), "A cup.", item=ITEM) == [REFUSED]


@pytest.mark.parametrize("values", [(), (1.0,), (0.5, 1.5, -1.0, 0.0), (float("nan"),) * 3, (2.0, 0.0)])
def test_malformed_reply_is_unparseable(values: tuple[float, ...]) -> None:
    item = Item(id="cup", questions=[ITEM.questions[1]])
    judge = FakeJudge(Reply(values, raw="perhaps"))
    (result,) = score(QAUtility(judge), "A cup.", item=item)
    assert result.reason == Reason.UNPARSEABLE
    assert "'perhaps'" in result.detail


def test_empty_caption_is_zero_and_not_asked() -> None:
    judge = FakeJudge(lambda request: REPLIES[request.question])
    assert score(QAUtility(judge), "...", item=ITEM) == [Score(0.0, "empty caption")]
    assert judge.asked == []


def test_judge_that_cannot_choose() -> None:
    with pytest.raises(InputError, match="QAUtility: judge 'fake' cannot choose, only support"):
        QAUtility(FakeJudge(tasks=[Task.SUPPORT]))


def test_unknown_kind_of_score() -> None:
    with pytest.raises(InputError, match="got score='mean', expected 'match' or 'probability'"):
        QAUtility(FakeJudge(), score="mean")


@given(
    st.sampled_from(["match", "probability"]),
    st.dictionaries(st.sampled_from(list(REPLIES)), st.tuples(*[st.floats(0.01, 1)] * 3), min_size=3),
)
def test_values_lie_in_the_unit_interval(kind: str, replies: dict[str, tuple[float, ...]]) -> None:
    def answer(request: Request) -> tuple[float, ...]:
        weights = replies[request.question][: len(request.options)]
        return tuple(weight / sum(weights) for weight in weights)

    (result,) = score(QAUtility(FakeJudge(answer), score=kind), "A cup.", item=ITEM)
    assert 0 <= result.value <= 1


@pytest.mark.parametrize("reply", [(0.0, 0.0), (1.0, 1.0), (0.5, 0.2)])
def test_probabilities_that_do_not_add_up_are_no_answer(reply: tuple[float, ...]) -> None:
    item = Item(id="q", questions=[{"text": "q", "options": ["a", "b"], "answer": 0}])
    (result,) = score(QAUtility(FakeJudge(lambda _: reply)), "A cup.", item=item)
    assert isinstance(result, Missing)
    assert result.reason is Reason.UNPARSEABLE


def test_a_tie_is_not_credited_to_the_first_option() -> None:
    item = Item(id="q", questions=[{"text": "q", "options": ["a", "b"], "answer": 0}])
    (result,) = score(QAUtility(FakeJudge(lambda _: (0.5, 0.5))), "A cup.", item=item)
    assert result.value == 0
    assert result.evidence["answers"][0]["chosen"] is None
