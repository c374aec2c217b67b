"""Doubles that take a function and record what they were asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capreward import Component, Item, Missing, RewardSuite, Rollout, Score, ScoreTable
from capreward.judges import Task
from capreward.judges.fake import FunctionJudge

BARE = Item(id="bare")


def rollouts(*captions: str, item: Item = BARE, **fields: Any) -> list[Rollout]:
    """One rollout a caption, all of one item."""
    return [Rollout(item=item, caption=caption, **fields) for caption in captions]


def score(component: Component, *captions: str, item: Item = BARE) -> list[Score | Missing]:
    """What a component answers by itself, without a suite."""
    return list(asyncio.run(component.score(rollouts(*captions, item=item))))


class FakeJudge(FunctionJudge):
    """A `FunctionJudge` called "fake"."""

    def __init__(self, answer: Any = (), tasks: Iterable[Task] = Task) -> None:
        super().__init__(answer, tasks=tasks, name="fake")


class FakeComponent:
    """Scores each rollout with `verdict(rollout)`, or all of them with one constant.

    A number stands for a score; an exception is raised.
    """

    def __init__(self, verdict: Any, name: str = "fake") -> None:
        self.verdict, self.name = verdict, name
        self.batches: list[list[str]] = []

    @property
    def asked(self) -> list[str]:
        """The captions that it had to look at."""
        return [caption for batch in self.batches for caption in batch]

    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        self.batches.append([rollout.caption for rollout in rollouts])
        await asyncio.sleep(0)  # let others run, as a component with a judge does
        return [_verdict(self.verdict, rollout) for rollout in rollouts]


class FakeGate:
    """Multiplies `target` by `factor(rollout)`, or by one constant for all, given as to `FakeComponent`."""

    def __init__(self, target: str, factor: Any, *, reads: tuple[str, ...] = ()) -> None:
        self.target, self.factor, self.reads = target, factor, reads
        self.read: list[Mapping[str, Any]] = []

    def factors(self, rollouts: Sequence[Rollout], values: Mapping[str, Any]) -> list[Score | Missing]:
        self.read.append(values)
        return [_verdict(self.factor, rollout, "fake gate") for rollout in rollouts]


def _verdict(verdict: Any, rollout: Rollout, why: str = "") -> Any:
    if isinstance(verdict, Exception):
        raise verdict
    given = verdict(rollout) if callable(verdict) else verdict
    return Score(given, why) if isinstance(given, float) else given


def table_of(scores: dict[str, list[Any]], weights: Any = None, **options: Any) -> tuple[ScoreTable, list[Rollout]]:
    """Two groups of two, scored as given."""
    rollouts = [
        Rollout(item=Item(id=group), caption=f"caption {n}", id=f"{group}#{n}", group=group)
        for group in ("x", "y")
        for n in range(2)
    ]
    place = {rollout.id: n for n, rollout in enumerate(rollouts)}
    components = {
        name: FakeComponent(lambda rollout, column=column: column[place[rollout.id]]) for name, column in scores.items()
    }
    return RewardSuite(components, weights=weights, **options).score(rollouts), rollouts
