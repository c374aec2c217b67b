"""A trainer's batch as rollouts, scored once however many reward functions are asked about it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from capreward.coroutines import start
from capreward.data import digest, items_of
from capreward.errors import ComponentError
from capreward.groups import Float
from capreward.records import Rollout
from capreward.scoring import ScoreTable
from capreward.suite import RewardSuite

log = logging.getLogger("capreward")


def _unheard(name: str, value: Any) -> None:
    """For trainers that log nothing of a reward's."""


class Batches:
    """Scores each batch once, whichever function asks first.

    Once anything has been scored, a component that breaks leaves its batch without scores instead of ending the run; what breaks
    before then is a mistake in the set-up, and is raised.

    Args:
        columns: as in `capreward.data.items_of`.
    """

    def __init__(self, suite: RewardSuite, columns: Mapping[str, str] | None) -> None:
        self.suite, self.columns = suite, columns
        self.completions: object = None
        self.table: Future[ScoreTable | None]
        self.works = False
        self._seen = Counter[int]()

    def score(
        self, completions: list[Any], given: Mapping[str, Any], *, part: bool = False, process: int = 0
    ) -> Future[ScoreTable | None]:
        """The table of a batch's rollouts, as a future of the suite's own thread; None if it goes without scores.

        Args:
            completions: B texts, or lists of messages of which the last is the caption.
            given: what the trainer hands to reward functions besides: `prompts`, columns of the dataset as lists of B, and
                `log_extra`, `log_metric` and `trainer_state`, where it has them.
            part: as for `RewardSuite.ascore`.
            process: the trainer's, of whose rollouts the ids are.
        """
        if self.completions is not completions:  # the functions of one batch are handed the same list
            self.completions = completions
            self.table = start(self._score(completions, given, part, process))
        return self.table

    def component(self, k: int) -> Callable[..., Any]:
        """An async reward function that answers component k's gated scores, None where missing."""

        async def reward(completions: list[Any], **given: Any) -> list[float | None]:
            table = await asyncio.wrap_future(self.score(completions, given))
            return [None] * len(completions) if table is None else with_none(table.values[:, k])

        return reward

    def _when(self, trainer_state: Any) -> dict[str, Any]:
        """For a ledger: the training step, and a name for the batch, the same in all processes, which see as many batches."""
        step = getattr(trainer_state, "global_step", None)
        if step is None:
            return {}
        self._seen[step] += 1
        return {"step": step, "batch": f"step {step}, batch {self._seen[step]}"}

    async def _score(
        self,
        completions: list[Any],
        given: Mapping[str, Any],
        part: bool,
        process: int,
    ) -> ScoreTable | None:
        log_extra: Callable[[str, list[Any]], None] = given.get("log_extra", _unheard)
        log_metric: Callable[[str, float], None] = given.get("log_metric", _unheard)
        when = self._when(given.get("trainer_state"))
        columns = {name: column for name, column in given.items() if isinstance(column, list)}
        rows = ({name: column[row] for name, column in columns.items()} for row in range(len(completions)))
        items = items_of(rows, columns=self.columns)
        rollouts = [
            Rollout(
                item=item,
                caption=_text(completion),
                group=f"{item.id}/{digest(prompt)}",
                id=f"{process}.{row}",
                metadata=when,
            )
            for row, (item, prompt, completion) in enumerate(zip(items, given["prompts"], completions, strict=True))
        ]
        try:
            table = await self.suite.ascore(rollouts, part=part)
        except ComponentError as error:
            if not self.works:
                raise
            log.exception("a batch of %d rollouts goes without scores", len(rollouts))
            for name in self.suite.names:
                log_metric(f"{name}/missing", 1.0)
                log_extra(f"{name}/why", [f"the batch goes without scores: {error}"] * len(rollouts))
            return None
        self.works = self.works or has_scored(self.suite, table, rollouts)
        for name, number in table.metrics().items():
            if not np.isnan(number):
                log_metric(name, number)
        for k, name in enumerate(table.names):
            log_extra(f"{name}/why", [table.why(row, k) for row in range(len(table))])
        return table


def has_scored(suite: RewardSuite, table: ScoreTable, rollouts: Sequence[Rollout]) -> bool:
    """Whether a component has given a score: an empty or overlong caption is 0 without it."""
    asked = [suite.decided(rollout) is None for rollout in rollouts]
    return not np.isnan(table.raw[asked]).all()


def with_none(column: Float) -> list[float | None]:
    """A column [B] as trainers take it: None where missing."""
    return [None if np.isnan(value) else float(value) for value in column]


def _text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """A completion's text: a string, or messages whose content is text or a list of parts."""
    if isinstance(completion, str):
        return completion
    content = (completion[-1].get("content") if completion else None) or ""  # a call of a tool may have none
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
