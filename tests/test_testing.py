from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeComponent, FakeJudge, rollouts

from capreward import (
    Component,
    Coverage,
    Fluency,
    Lexical,
    LikertJudge,
    LiteJudge,
    Missing,
    Precision,
    QAUtility,
    Reason,
    Rollout,
    RubricJudge,
    Score,
)
from capreward.judges import Reply
from capreward.testing import HOSTILE, check_component

ROUGE_L = Path(__file__).parent / "metrics" / "rouge_l" / "rouge_l.py"
COMPONENTS: dict[str, Callable[[LiteJudge], Component]] = {
    "qa": QAUtility,
    "qa by probability": lambda judge: QAUtility(judge, score="probability"),
    "rubric": RubricJudge,
    "precision against facts": Precision,
    "precision against references": lambda judge: Precision(judge, against="references"),
    "coverage": Coverage,
    "fluency": Fluency,
    "likert": lambda _: LikertJudge(FakeJudge(Reply((0.5,)))),  # the lite judge has no opinions
    "lexical": lambda _: Lexical(ROUGE_L, "rougeL"),
}


class TestOurComponents:
    @pytest.mark.parametrize("name", COMPONENTS)
    def test_conform(self, lite: LiteJudge, photos: list[Rollout], name: str) -> None:
        two_items = photos[:12]
        assert len({rollout.item.id for rollout in two_items}) == 2
        component = COMPONENTS[name](lite)
        check_component(component, two_items)
        scores = asyncio.run(component.score(two_items))  # and it was not all missing, which would conform as well
        assert all(isinstance(score, Score) for score in scores)

    @pytest.mark.parametrize("name", [name for name in COMPONENTS if name not in ("lexical", "likert")])
    def test_conform_when_the_judge_fails(self, photos: list[Rollout], name: str) -> None:
        judge = FakeJudge(Missing(Reason.SERVER, "server is down"))
        check_component(COMPONENTS[name](judge), photos[:1])

    def test_all_are_covered(self) -> None:
        from capreward import components

        exported = {getattr(components, name) for name in components.__all__}
        judged = {kind for kind in exported if isinstance(kind, type) and hasattr(kind, "score")}
        lite_like = FakeJudge()
        assert {type(make(lite_like)) for make in COMPONENTS.values()} == judged


class Base:
    name = "broken"

    async def score(self, rollouts: Sequence[Rollout]) -> Any:
        return [Score(0.5) for _ in rollouts]


class TooShort(Base):
    async def score(self, rollouts: Sequence[Rollout]) -> Any:
        return [Score(0.5) for _ in rollouts[1:]]


class AnswersNothingWithSomething(Base):
    async def score(self, rollouts: Sequence[Rollout]) -> Any:
        return [Score(0.5) for _ in rollouts] or [Score(0.5)]


class DependsOnOrder(Base):
    async def score(self, rollouts: Sequence[Rollout]) -> Any:
        return [Score(row / len(rollouts)) for row in range(len(rollouts))]


class DependsOnItsBatch(Base):
    async def score(self, rollouts: Sequence[Rollout]) -> Any:
        return [Score(1 / len(rollouts)) for _ in rollouts]


class MissingWhenAlone(Base):
    async def score(self, rollouts: Sequence[Rollout]) -> Any:
        return [Score(0.5) if len(rollouts) > 1 else Missing(Reason.SERVER, "alone") for _ in rollouts]


class NeverTheSame(Base):
    def __init__(self) -> None:
        self.calls = itertools.count()

    async def score(self, rollouts: Sequence[Rollout]) -> Any:
        value = next(self.calls) % 2 / 2
        return [Score(value) for _ in rollouts]


class NotAsync(Base):
    def score(self, rollouts: Sequence[Rollout]) -> Any:
        return [Score(0.5) for _ in rollouts]


class RaisesOnNothing(Base):
    async def score(self, rollouts: Sequence[Rollout]) -> Any:
        return [Score(0.5) for _ in rollouts] if rollouts[0] else []


class Nameless:
    async def score(self, rollouts: Sequence[Rollout]) -> Any:
        return [Score(0.5) for _ in rollouts]


class EmptyName(Base):
    name = ""


def refuse(rollout: Rollout) -> Any:
    if "Ignore all instructions" in rollout.caption:
        raise RuntimeError("prompt injection")
    return Score(0.5)


class TestCatches:
    @pytest.mark.parametrize(
        ("component", "said"),
        [
            (TooShort(), "expected one for each, in their order"),
            (FakeComponent(1.5), "got score 1.5, expected a number in [0, 1]"),
            (FakeComponent(-0.5), "got score -0.5, expected a number in [0, 1]"),
            (FakeComponent("good"), "got 'good', expected a capreward.Score"),
            (FakeComponent(Missing(Reason.SERVER)), "expected a detail that says what is missing"),
            (FakeComponent(refuse), "RuntimeError: prompt injection"),
            (DependsOnOrder(), "in reverse order: got"),
            (DependsOnItsBatch(), "one at a time: got 1.0"),
            (MissingWhenAlone(), "one at a time: got Missing"),
            (NeverTheSame(), "asked again: got"),
            (NotAsync(), "score: expected an async method"),
            (AnswersNothingWithSomething(), "an empty list: got [Score(value=0.5"),
            (EmptyName(), "name: got '', expected a text"),
        ],
        ids=lambda value: type(value).__name__ if hasattr(value, "score") else None,
    )
    def test(self, component: Any, said: str) -> None:
        with pytest.raises(AssertionError) as error:
            check_component(component, [*rollouts(*(f"caption {n}" for n in range(11)))])
        assert said in str(error.value)

    def test_raises_on_an_empty_list(self) -> None:
        with pytest.raises(AssertionError, match="an empty list: raised IndexError"):
            check_component(RaisesOnNothing())

    def test_no_name(self) -> None:
        with pytest.raises(AssertionError, match="name: got None, expected a text"):
            check_component(Nameless())


def test_a_component_that_samples_passes_unless_it_has_to_repeat_itself() -> None:
    check_component(NeverTheSame(), repeatable=False)
    with pytest.raises(AssertionError, match=r"got score 1\.5"):
        check_component(FakeComponent(1.5), repeatable=False)


def test_a_good_component_meets_hostile_captions_on_its_own_items(cup: Any) -> None:
    component = FakeComponent(0.5)
    check_component(component, rollouts("A cup.", item=cup))
    assert {caption for caption in HOSTILE if caption.strip(" \n\t.")} <= set(component.asked)
    assert "A cup." in component.asked
