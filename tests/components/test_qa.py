from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from fakes import FakeJudge, score
from hypothesis import given, strategies as st

from capreward import Item, Missing, QAUtility, Reason, Rollout, Score
from capreward.errors import InputError
from capreward.judges import Reply, Request, Sampling, Task

REPLIES = {"Colour?": (0.2, 0.8), "Where?": (0.3, 0.6, 0.1), "How many?": (0.1, 0.9)}
ITEM = Item(
    id="cup",
    questions=[
        {"text": "Colour?", "options": ["blue", "white"], "answer": 1},
        {"text": "Where?", "options": ["table", "floor", "shelf"], "answer": 0},
        {"text": "How many?", "options": ["one", "two"], "answer": 1},
    ],
)
WORTH = {
    (question.text, option): p
    for question in ITEM.questions
    for option, p in zip(question.options, REPLIES[question.text], strict=True)
}


def knowing(request: Request) -> tuple[float, ...]:
    """The replies above, in whatever order the options are put."""
    return tuple(WORTH[request.question, option] for option in request.options)


REFUSED = Missing(Reason.REFUSED, "no")


def test_match_is_the_share_of_right_answers() -> None:
    (result,) = score(QAUtility(FakeJudge(knowing)), "A cup.", item=ITEM)
    assert result.value == 2 / 3
    assert result.why == "2 of 3 right"


def test_probability_is_the_mean_probability_of_the_right_option() -> None:
    judge = FakeJudge(knowing)
    (result,) = score(QAUtility(judge, score="probability"), "A cup.", item=ITEM)
    assert result.value == pytest.approx((0.8 + 0.3 + 0.9) / 3)


def test_evidence_is_the_answer_to_each_question() -> None:
    (result,) = score(QAUtility(FakeJudge(knowing)), "A cup.", item=ITEM)
    assert result.evidence["answers"][1] == {
        "question": "Where?",
        "chosen": "floor",
        "right": False,
        "probability_of_right": 0.3,
        "earned": 0.0,
    }
    assert [answer["right"] for answer in result.evidence["answers"]] == [True, False, True]


def test_judge_sees_caption_question_and_options() -> None:
    judge = FakeJudge(knowing)
    score(QAUtility(judge), "A cup.", "A dog.", item=ITEM)
    assert len(judge.asked) == 6
    assert [(r.context, r.question) for r in judge.asked[3:]] == [("A dog.", q.text) for q in ITEM.questions]
    assert sorted(judge.asked[4].options) == ["floor", "shelf", "table"]
    assert [r.options for r in judge.asked[:3]] == [r.options for r in judge.asked[3:]]


def test_no_questions() -> None:
    judge = FakeJudge((1.0,))
    assert score(QAUtility(judge), "A cup.") == [Missing(Reason.NO_QUESTIONS, "item 'bare' has no questions")]
    assert judge.asked == []


def test_an_unanswered_question_makes_the_score_missing() -> None:
    """Leaving it out would compare the rollouts of a group on different questions."""
    judge = FakeJudge(lambda request: REFUSED if request.question == "Where?" else knowing(request))
    assert score(QAUtility(judge), "A cup.", item=ITEM) == [REFUSED]


@pytest.mark.parametrize("values", [(), (1.0,), (0.5, 1.5, -1.0, 0.0), (float("nan"),) * 3, (2.0, 0.0)])
def test_malformed_reply_is_unparseable(values: tuple[float, ...]) -> None:
    item = Item(id="cup", questions=[ITEM.questions[1]])
    judge = FakeJudge(Reply(values, raw="perhaps"))
    (result,) = score(QAUtility(judge), "A cup.", item=item)
    assert result.reason == Reason.UNPARSEABLE
    assert "'perhaps'" in result.detail


def test_empty_caption_is_zero_and_not_asked() -> None:
    judge = FakeJudge(knowing)
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


def asked(component: QAUtility, judge: FakeJudge, item: Item = ITEM, caption: str = "A cup.") -> list[Request]:
    score(component, caption, item=item)
    return judge.asked


def test_right_options_fall_on_every_position_equally_often() -> None:
    """So a judge that always takes the first option gets a quarter of four-option questions right, no more, no less."""
    questions = [{"text": f"q{n}", "options": list("abcd"), "answer": 0} for n in range(8)]
    item = Item(id="biased", questions=questions)
    judge = FakeJudge(lambda _: (1.0, 0.0, 0.0, 0.0))
    (result,) = score(QAUtility(judge), "A cup.", item=item)
    assert result.value == 0.25
    assert [request.options.index("a") for request in judge.asked[:4]] != [0, 0, 0, 0]
    assert all("".join(request.options) in "abcdabcd" for request in judge.asked)


@pytest.mark.parametrize("options", [{}, {"draws": 5}, {"closed_book": True}])
def test_options_in_the_items_order(options: Any) -> None:
    judge = FakeJudge(knowing)
    (result,) = score(QAUtility(judge, shuffle=False, **options), "A cup.", item=ITEM)
    order = {question.text: question.options for question in ITEM.questions}
    assert all(request.options == tuple(order[request.question]) for request in judge.asked)
    answers = result.evidence["answers"]
    assert all(answer["right"] == (answer["question"] != "Where?") for answer in answers)
    assert all(answer["earned"] == answer["right"] for answer in answers)
    if not options:
        assert result.value == 2 / 3


@pytest.mark.parametrize(("answer", "value"), [(0, 1.0), (3, 0.0)])
def test_without_shuffling_a_liking_for_the_first_option_is_paid(answer: int, value: float) -> None:
    item = Item(id="q", questions=[{"text": f"q{n}", "options": list("abcd"), "answer": answer} for n in range(8)])
    judge = FakeJudge(lambda _: (1.0, 0.0, 0.0, 0.0))
    (result,) = score(QAUtility(judge, shuffle=False), "A cup.", item=item)
    assert result.value == value
    (result,) = score(QAUtility(judge), "A cup.", item=item)
    assert result.value == 0.25


def test_without_shuffling_the_same_questions_are_drawn() -> None:
    def texts(shuffle: bool) -> list[str]:
        judge = FakeJudge(knowing)
        return [request.question for request in asked(QAUtility(judge, draws=2, shuffle=shuffle), judge)]

    assert texts(True) == texts(False)


def test_without_shuffling_cannot_answer_comes_last() -> None:
    judge = FakeJudge(lambda request: tuple(float(option.startswith("cannot")) for option in request.options))
    item = Item(id="q", questions=[ITEM.questions[1]])
    (result,) = score(QAUtility(judge, shuffle=False, cannot_answer=True), "A cup.", item=item)
    assert judge.asked[0].options == ("table", "floor", "shelf", "cannot be answered from the description")
    assert result.value == pytest.approx(1 / 3 + 0.05)


def test_draws_are_spread_over_the_questions_and_belong_to_the_group() -> None:
    def texts(group: str, seed: int = 0) -> list[str]:
        judge = FakeJudge(knowing)
        batch = [Rollout(item=ITEM, caption=caption, group=group) for caption in ("A cup.", "A dog.")]
        asyncio.run(QAUtility(judge, draws=2, seed=seed).score(batch))
        first, second = judge.asked[:2], judge.asked[2:]
        assert [(r.question, r.options) for r in first] == [(r.question, r.options) for r in second]
        return [r.question for r in first]

    assert all(len(set(texts(f"g{n}"))) == 2 for n in range(10))
    assert len({tuple(texts(f"g{n}")) for n in range(10)}) > 1
    assert len({tuple(texts("g", seed)) for seed in range(10)}) > 1
    assert texts("g") == texts("g")


def test_more_draws_than_questions_ask_each_almost_equally_often() -> None:
    judge = FakeJudge(knowing)
    (result,) = score(QAUtility(judge, draws=7), "A cup.", item=ITEM)
    counts = Counter(answer["question"] for answer in result.evidence["answers"])
    assert sorted(counts.values()) == [2, 2, 3]


def test_one_draw_asks_one_question() -> None:
    (result,) = score(QAUtility(FakeJudge(knowing), draws=1), "A cup.", item=ITEM)
    assert len(result.evidence["answers"]) == 1


def test_sampled_replies_are_told_apart_by_their_seed() -> None:
    judge = FakeJudge(knowing)
    requests = asked(QAUtility(judge, draws=6, temperature=0.6, seed=10), judge)
    assert [request.sampling for request in requests] == [Sampling(0.6, 10 + n) for n in range(6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": 0.6, "score": "probability"}, "temperature=0.6"),
    ],
)
def test_options_out_of_range(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        QAUtility(FakeJudge(), **options)


def test_closed_book_weighs_a_question_by_how_hard_it_is_to_guess() -> None:
    def answer(request: Request) -> tuple[float, ...]:
        if request.context:
            return knowing(request)
        guess = {"Colour?": 1.0, "Where?": 0.0, "How many?": 0.5}[request.question]
        right = {q.text: q.options[q.answer] for q in ITEM.questions}[request.question]
        rest = (1 - guess) / (len(request.options) - 1)
        return tuple(guess if option == right else rest for option in request.options)

    judge = FakeJudge(answer)
    (result,) = score(QAUtility(judge, score="probability", closed_book=True), "A cup.", item=ITEM)
    assert result.value == pytest.approx((0 * 0.8 + 1 * 0.3 + 0.5 * 0.9) / 1.5)
    assert len(judge.asked) == 6


def test_questions_that_all_can_be_guessed_tell_nothing() -> None:
    judge = FakeJudge(lambda request: tuple(float(option in ("white", "table", "two")) for option in request.options))
    (result,) = score(QAUtility(judge, closed_book=True), "A cup.", item=ITEM)
    assert isinstance(result, Missing)
    assert result.reason is Reason.NO_QUESTIONS


def test_cannot_answer_is_worth_a_little_more_than_chance_but_not_offered_on_yes_and_no() -> None:
    item = Item(
        id="q",
        questions=[
            {"text": "four", "options": list("abcd"), "answer": 0},
            {"text": "yes", "options": ["Yes", "No"], "answer": 0},
        ],
    )
    judge = FakeJudge(lambda request: tuple(float(i == len(request.options) - 1) for i in range(len(request.options))))
    (result,) = score(QAUtility(judge, cannot_answer=True), "A cup.", item=item)
    four, yes = result.evidence["answers"]
    assert four["chosen"] == "cannot be answered from the description"
    assert four["earned"] == pytest.approx(0.25 + 0.05)
    assert len(judge.asked[0].options) == 5
    assert len(judge.asked[1].options) == 2
    assert yes["earned"] in (0.0, 1.0)
