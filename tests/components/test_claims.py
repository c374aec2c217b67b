from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakes import FakeJudge, rollouts, score
from hypothesis import given, strategies as st

from capreward import Coverage, Item, Missing, Precision, Reason, Score
from capreward.errors import InputError
from capreward.judges import Reply, Request, Task
from capreward.judges.fake import FunctionJudge

DOWN = Missing(Reason.SERVER, "server is down")


class ReadingJudge(FakeJudge):
    """Splits at full stops; holds a statement for made when its text occurs. `fails` says which requests fail."""

    def __init__(self, fails: Any = None) -> None:
        super().__init__(lambda request: DOWN if fails and fails(request) else self._read(request))

    @staticmethod
    def _read(request: Request) -> Reply:
        if request.task is Task.EXTRACT:
            return Reply(texts=tuple(f"{part.strip()}." for part in request.context.split(".") if part.strip()))
        return Reply(tuple(float(option in request.context) for option in request.options))

    def extracted(self) -> list[str]:
        return [request.context for request in self.asked if request.task is Task.EXTRACT]


@pytest.mark.parametrize("task", [Task.SUPPORT, Task.EXTRACT])
@pytest.mark.parametrize("component", [Coverage, Precision])
def test_judge_that_cannot_do_the_task(component: Any, task: Task) -> None:
    with pytest.raises(InputError, match=f"{component.__name__}: judge 'fake' cannot {task}"):
        component(FakeJudge(tasks=set(Task) - {task}))


@pytest.mark.parametrize("component", [Coverage, Precision])
def test_empty_caption_is_zero_and_not_asked(component: Any, cup: Item) -> None:
    judge = ReadingJudge()
    assert score(component(judge), "…", item=cup) == [Score(0.0, "empty caption")]
    assert judge.asked == []


class TestCoverage:
    UNITS = Item(id="cup", reference_units=["A cup.", "A spoon."], references=["A dog."], facts=[{"text": "A cat."}])

    @pytest.mark.parametrize(
        ("replies", "value", "why"),
        [
            ((1.0, 0.0), 0.5, "1 of 2 units covered"),
            ((0.9, 0.5), 0.7, "1.4 of 2 units covered"),
            ((0.4, 0.2), 0.3, "0.6 of 2 units covered"),
        ],
    )
    def test_mean_probability_of_the_units(self, replies: tuple[float, ...], value: float, why: str) -> None:
        (result,) = score(Coverage(FakeJudge(replies)), "A cup.", item=self.UNITS)
        assert result.value == pytest.approx(value)
        assert result.why == why
        assert result.evidence["units"] == [
            {"text": "A cup.", "probability": replies[0]},
            {"text": "A spoon.", "probability": replies[1]},
        ]

    def test_units_given_come_first(self) -> None:
        judge = ReadingJudge()
        (result,) = score(Coverage(judge), "A cup. A dog. A cat.", item=self.UNITS)
        assert result.value == 0.5
        assert judge.asked == [Request(Task.SUPPORT, "A cup. A dog. A cat.", ("A cup.", "A spoon."))]

    def test_then_true_and_pointable_facts(self, cup: Item) -> None:
        judge = ReadingJudge()
        (result,) = score(Coverage(judge), "The cup is white. A dog sleeps under the table.", item=cup)
        assert result.value == 0.5
        assert judge.asked[0].options == ("The cup is white.", "A spoon lies next to the cup.")
        assert judge.extracted() == []

    def test_then_what_the_judge_extracts_from_the_references(self) -> None:
        item = Item(id="cup", references=["A cup. A spoon.", "A spoon. A table."])
        judge = ReadingJudge()
        (result,) = score(Coverage(judge), "A cup. A table.", item=item)
        assert result.value == pytest.approx(2 / 3)
        assert [unit["text"] for unit in result.evidence["units"]] == ["A cup.", "A spoon.", "A table."]

    def test_units_are_extracted_once_for_each_set_of_references(self) -> None:
        judge = ReadingJudge()
        coverage = Coverage(judge)
        cups = [Item(id=name, references=["A cup. A spoon."]) for name in "ab"]
        batch = rollouts("A cup.", "A spoon.", item=cups[0]) + rollouts("A cup.", item=cups[1])
        batch += rollouts("A dog.", item=Item(id="dog", references=["A dog."]))
        first = asyncio.run(coverage.score(batch))
        assert sorted(judge.extracted()) == ["A cup. A spoon.", "A dog."]
        assert [result.value for result in first] == [0.5, 0.5, 0.5, 1]
        assert asyncio.run(coverage.score(batch)) == first
        assert len(judge.extracted()) == 2

    def test_nothing_to_cover(self) -> None:
        judge = ReadingJudge()
        (result,) = score(Coverage(judge), "A cup.", item=Item(id="cup", facts=[{"text": "A dog.", "true": False}]))
        assert result == Missing(Reason.NO_REFERENCE, "item 'cup' has no references, units or facts")
        assert judge.asked == []

    def test_judge_failed_on_one_caption(self) -> None:
        judge = ReadingJudge(lambda request: request.context == "A spoon.")
        results = score(Coverage(judge), "A cup.", "A spoon.", item=self.UNITS)
        assert results[1] == DOWN
        assert results[0].value == 0.5

    def test_judge_failed_on_the_references_and_is_asked_again(self) -> None:
        fails = [True]
        judge = ReadingJudge(lambda request: request.task is Task.EXTRACT and fails[0])
        coverage, item = Coverage(judge), Item(id="cup", references=["A cup."])
        assert score(coverage, "A cup.", item=item) == [DOWN]
        fails[0] = False
        assert [result.value for result in score(coverage, "A cup.", item=item)] == [1]

    def test_judge_failed_on_one_of_several_references(self) -> None:
        judge = ReadingJudge(lambda request: request.context == "A spoon.")
        item = Item(id="cup", references=["A cup.", "A spoon."])
        assert score(Coverage(judge), "A cup.", item=item) == [DOWN]

    @pytest.mark.parametrize("values", [(), (1.0,), (1.0, 1.0, 1.0), (1.0, 1.5)])
    def test_malformed_reply_is_unparseable(self, values: tuple[float, ...]) -> None:
        (result,) = score(Coverage(FakeJudge(values)), "A cup.", item=self.UNITS)
        assert result.reason == Reason.UNPARSEABLE

    def test_judge_that_finds_nothing_in_the_references(self) -> None:
        judge = FakeJudge(Reply())
        (result,) = score(Coverage(judge), "A cup.", item=Item(id="cup", references=["A cup."]))
        assert result == Missing(Reason.NO_REFERENCE, "item 'cup' has references without a statement in them")

    @given(st.tuples(*[st.floats(0, 1)] * 2))
    def test_values_lie_in_the_unit_interval(self, replies: tuple[float, ...]) -> None:
        (result,) = score(Coverage(FakeJudge(replies)), "A cup.", item=self.UNITS)
        assert 0 <= result.value <= 1


SEES = FunctionJudge(images=True)


class TestPrecision:
    FACTS = Item(
        id="cup",
        references=["A cup. A spoon. It is quiet."],
        facts=[
            {"text": "A cup."},
            {"text": "A spoon."},
            {"text": "A dog.", "true": False},
            {"text": "It is quiet.", "pointable": False},
        ],
    )

    def test_name_says_against_what(self) -> None:
        judge = ReadingJudge()
        assert Precision(judge).name == "precision_vs_facts"
        assert Precision(judge, against="references").name == "precision_vs_references"
        assert Precision(SEES).name == "precision"
        assert Precision(SEES, against="facts").name == "precision_vs_facts"
        with pytest.raises(InputError, match="got against='photo', expected 'image', 'facts' or 'references'"):
            Precision(judge, against="photo")
        with pytest.raises(InputError, match="judge 'fake' sees no image; use against='facts'"):
            Precision(judge, against="image")

    def test_against_the_image(self) -> None:
        def answer(request: Request) -> Reply:
            if request.task is Task.EXTRACT:
                return Reply(texts=("A cup.", "A dog.", "It is quiet."))
            assert (request.task, request.images) == (Task.VERIFY, (b"image",))
            return Reply((1.0, 0.0, 0.0), why=("seen", "no dog", "a mood"))

        component = Precision(FunctionJudge(answer, images=True))
        (result,) = score(component, "A cup and a dog. Quiet.", item=Item(id="cup", image=b"image"))
        assert result.value == pytest.approx(1 / 3)
        assert result.why == "1 of 3 statements true and pointable"
        assert result.evidence["statements"][1] == {"text": "A dog.", "probability": 0.0, "why": "no dog"}
        (nothing,) = score(component, "A cup.")
        assert nothing.reason is Reason.NO_IMAGE

    @pytest.mark.parametrize(
        ("caption", "value", "why"),
        [
            ("A cup.", 1.0, "1 of 1 statements true and pointable"),
            ("A cup. A spoon. A dog. A cat.", 0.5, "2 of 4 statements true and pointable"),
            ("It is quiet.", 0.0, "0 of 1 statements true and pointable"),
            ("A spoon. A horse. A tree.", 1 / 3, "1 of 3 statements true and pointable"),
        ],
    )
    def test_against_facts_by_hand(self, caption: str, value: float, why: str) -> None:
        (result,) = score(Precision(ReadingJudge()), caption, item=self.FACTS)
        assert result.value == pytest.approx(value)
        assert result.why == why

    @pytest.mark.parametrize("order", [1, -1])
    def test_of_facts_that_are_equally_meant_the_one_against_the_caption_counts(self, order: int) -> None:
        facts = [{"text": "The cup is white."}, {"text": "The table is blue.", "true": False}][::order]
        judge = FakeJudge(lambda request: Reply(texts=("It.",)) if request.task is Task.EXTRACT else (1.0, 1.0))
        (result,) = score(Precision(judge), "A white cup on a blue table.", item=Item(id="cup", facts=facts))
        assert result.value == 0

    def test_evidence_is_each_statements_verdict(self) -> None:
        (result,) = score(Precision(ReadingJudge()), "A cup. A dog. It is quiet. A cat.", item=self.FACTS)
        assert result.evidence["statements"] == [
            {"text": "A cup.", "fact": "A cup.", "verdict": "true", "supported": True},
            {"text": "A dog.", "fact": "A dog.", "verdict": "false", "supported": False},
            {"text": "It is quiet.", "fact": "It is quiet.", "verdict": "not pointable", "supported": False},
            {"text": "A cat.", "fact": None, "verdict": "in no fact", "supported": False},
        ]

    def test_the_most_plausible_fact_decides(self) -> None:
        def answer(request: Request) -> Any:
            return Reply(texts=("A cup.",)) if request.task is Task.EXTRACT else (0.6, 0.1, 0.9, 0.2)

        (result,) = score(Precision(FakeJudge(answer)), "A cup.", item=self.FACTS)
        assert result.value == 0
        assert result.evidence["statements"][0]["fact"] == "A dog."

    @pytest.mark.parametrize(("probability", "verdict"), [(0.5, "true"), (0.49, "in no fact")])
    def test_a_fact_is_stated_from_a_half_on(self, probability: float, verdict: str) -> None:
        item = Item(id="cup", facts=[{"text": "A cup."}])
        judge = FakeJudge(lambda request: Reply(texts=("It.",)) if request.task is Task.EXTRACT else (probability,))
        (result,) = score(Precision(judge), "A cup.", item=item)
        assert result.value == (verdict == "true")
        assert result.evidence["statements"][0]["verdict"] == verdict

    def test_against_references_by_hand(self) -> None:
        judge = ReadingJudge()
        (result,) = score(Precision(judge, against="references"), "A cup. A dog. A spoon.", item=self.FACTS)
        assert result.value == pytest.approx(2 / 3)
        assert result.why == "2 of 3 statements supported"
        assert [s["probability"] for s in result.evidence["statements"]] == [1, 0, 1]
        assert judge.asked[-1] == Request(
            Task.SUPPORT, "A cup. A spoon. It is quiet.", ("A cup.", "A dog.", "A spoon.")
        )

    def test_several_references_are_read_together(self) -> None:
        item = Item(id="cup", references=["A cup.", "A spoon."])
        (result,) = score(Precision(ReadingJudge(), against="references"), "A cup. A spoon.", item=item)
        assert result.value == 1

    @pytest.mark.parametrize(
        ("against", "missing"),
        [
            ("facts", Missing(Reason.NO_FACTS, "item 'bare' has no facts")),
            ("references", Missing(Reason.NO_REFERENCE, "item 'bare' has no references")),
        ],
    )
    def test_nothing_to_hold_it_against(self, against: Any, missing: Missing) -> None:
        judge = ReadingJudge()
        assert score(Precision(judge, against=against), "A cup.") == [missing]
        assert judge.asked == []

    @pytest.mark.parametrize("against", ["facts", "references"])
    def test_no_statement_in_the_caption_is_zero(self, against: Any) -> None:
        judge = FakeJudge(Reply())
        assert score(Precision(judge, against=against), "Wow wow", item=self.FACTS) == [
            Score(0.0, "no statement in the caption")
        ]

    @pytest.mark.parametrize("against", ["facts", "references"])
    @pytest.mark.parametrize("task", [Task.EXTRACT, Task.SUPPORT])
    def test_judge_failed(self, against: Any, task: Task) -> None:
        judge = ReadingJudge(lambda request: request.task is task)
        assert score(Precision(judge, against=against), "A cup.", item=self.FACTS) == [DOWN]

    def test_judge_failed_on_one_statement(self) -> None:
        judge = ReadingJudge(lambda request: request.task is Task.SUPPORT and request.context == "A dog.")
        failed, fine = score(Precision(judge), "A cup. A dog.", "A cup. A spoon.", item=self.FACTS)
        assert failed == DOWN
        assert fine.value == 1

    @pytest.mark.parametrize("values", [(), (1.0,), (1.0,) * 5, (1.0, 0.0, 0.0, -1.0)])
    def test_malformed_reply_is_unparseable(self, values: tuple[float, ...]) -> None:
        def answer(request: Request) -> Any:
            return Reply(texts=("A cup.",)) if request.task is Task.EXTRACT else values

        (result,) = score(Precision(FakeJudge(answer)), "A cup.", item=self.FACTS)
        assert result.reason == Reason.UNPARSEABLE

    @given(
        st.sampled_from(["facts", "references"]),
        st.lists(st.sampled_from(["A cup.", "A spoon.", "A dog.", "A cat.", "It is quiet."]), min_size=1),
    )
    def test_values_lie_in_the_unit_interval(self, against: Any, statements: list[str]) -> None:
        (result,) = score(Precision(ReadingJudge(), against=against), " ".join(statements), item=self.FACTS)
        assert 0 <= result.value <= 1
