"""A suite in TRL's GRPOTrainer and RLOOTrainer (TRL 1.16), as reward functions that they call.

>>> trainer = GRPOTrainer(                                              # doctest: +SKIP
...     model, reward_funcs(suite), GRPOConfig(..., **grpo_kwargs(suite)), train_dataset=dataset
... )
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal

import numpy as np

from capreward.data import digest, items_of
from capreward.errors import ComponentError, InputError, missing_extra
from capreward.records import Rollout
from capreward.scoring import Float, ScoreTable, concatenated
from capreward.suite import RewardSuite, start

log = logging.getLogger("capreward")


def reward_funcs(
    suite: RewardSuite,
    *,
    columns: Mapping[str, str] | None = None,
    exact: bool = False,
    trainer: Literal["grpo", "rloo"] = "grpo",
    estimator: str = "gdpo",
) -> list[Callable[..., Any]]:
    """What TRL takes as `reward_funcs`.

    One async function for each component, under its name, all answered by one `suite.ascore` a batch: gated scores, None
    where missing. With `exact` a single function instead, whose value TRL's arithmetic hands through as our own advantage,
    computed in float64 over all processes. Beside the rewards TRL logs `ScoreTable.metrics`, and in its table of completions
    why each rollout got its scores.

    Once a batch has been scored, a component that breaks leaves its batch without scores instead of ending the run.

    Args:
        suite: its weights and how they are joined reach TRL by `grpo_kwargs` or `rloo_kwargs`.
        columns: field of `Item` -> column of the dataset. By default the columns that are called as the fields are
            (`references`, `questions`, `rubric`, ...), and `image`, or `images` with one image in it.
        exact: rows that share item and prompt are a group; a dataset should hold such a pair once.
        trainer: whose arithmetic to undo. RLOOTrainer's own reads a missing score as 0, so for it `exact` has to be on.
        estimator: of the advantage, if `exact`.

    Raises:
        InputError: `trainer="rloo"` without `exact`; while training, rows that are no items.
        ComponentError: while training, if a component breaks before any batch has been scored.
        TooManyMissingError: while training, if more is missing than the suite's `max_missing` allows.
    """
    if trainer == "rloo" and not exact:
        raise InputError(
            "reward_funcs: got trainer='rloo' with exact=False, expected exact=True: "
            "RLOOTrainer adds up raw rewards, and reads a missing one as 0"
        )
    batches = _Batches(suite, columns)
    if exact:
        return [_advantage(batches, trainer, estimator)]
    return [_component(batches, k) for k in range(len(suite.names))]


def grpo_kwargs(suite: RewardSuite, *, exact: bool = False) -> dict[str, Any]:
    """Settings of GRPOConfig that belong to `reward_funcs(suite, exact=exact)`."""
    if exact:
        return {"reward_weights": [1.0], "multi_objective_aggregation": "sum_then_normalize", "scale_rewards": "none"}
    return {"reward_weights": suite.weights.tolist(), "multi_objective_aggregation": "normalize_then_sum"}


def rloo_kwargs() -> dict[str, Any]:
    """Settings of RLOOConfig that belong to `reward_funcs(suite, exact=True, trainer="rloo")`."""
    return {"reward_weights": [1.0], "normalize_advantages": False}


class _Batches:
    """Scores each batch once, whichever function asks first."""

    def __init__(self, suite: RewardSuite, columns: Mapping[str, str] | None) -> None:
        self.suite, self.columns = suite, columns
        self.completions: object = None
        self.table: Future[ScoreTable | None]
        self.works = False
        """Whether a batch has been scored: what breaks before then is a mistake, and ends the run."""

    def score(self, completions: list[Any], **given: Any) -> Future[ScoreTable | None]:
        if self.completions is not completions:  # the functions of one batch are handed the same list
            self.completions = completions
            self.table = start(self._score(completions, **given))
        return self.table

    async def _score(
        self,
        completions: list[Any],
        *,
        prompts: list[Any],
        log_extra: Callable[[str, list[Any]], None],
        log_metric: Callable[[str, float], None],
        process: int = 0,
        part: bool = False,
        **given: Any,
    ) -> ScoreTable | None:
        columns = {name: column for name, column in given.items() if isinstance(column, list)}
        rows = ({name: column[row] for name, column in columns.items()} for row in range(len(completions)))
        items = items_of(rows, columns=self.columns)
        rollouts = [
            Rollout(item=item, caption=_text(completion), group=f"{item.id}/{digest(prompt)}", id=f"{process}.{row}")
            for row, (item, prompt, completion) in enumerate(zip(items, prompts, completions, strict=True))
        ]
        try:
            table = await self.suite.ascore(rollouts, part=part)
        except ComponentError:
            if not self.works:
                raise
            log.exception("a batch of %d rollouts goes without scores", len(rollouts))
            for name in self.suite.names:
                log_metric(f"{name}/missing", 1.0)
            return None
        self.works = True
        for name, number in table.metrics().items():
            if not np.isnan(number):
                log_metric(name, number)
        for k, name in enumerate(table.names):
            log_extra(f"{name}/why", [table.why(row, k) for row in range(len(table))])
        return table


def _component(batches: _Batches, k: int) -> Callable[..., Any]:
    async def reward(completions: list[Any], **given: Any) -> list[float | None]:
        table = await asyncio.wrap_future(batches.score(completions, **given))
        return [None] * len(completions) if table is None else _with_none(table.values[:, k])

    reward.__name__ = batches.suite.names[k]  # as which TRL logs it
    return reward


def _advantage(batches: _Batches, trainer: str, estimator: str) -> Callable[..., Any]:
    try:
        from accelerate import PartialState
        from accelerate.utils import gather_object
    except ImportError as error:
        raise missing_extra("reward_funcs(exact=True)", "trl", error) from error

    # Not async: the processes have to gather in TRL's own thread, in which it gathers too.
    def advantage(completions: list[Any], **given: Any) -> list[float | None]:
        process = PartialState().process_index
        try:
            mine: Any = batches.score(completions, process=process, part=True, **given).result()
        except Exception as error:  # noqa: BLE001  # the other processes wait, and have to hear of it
            mine = error
        every = gather_object([mine])
        if broken := [outcome for outcome in every if isinstance(outcome, Exception)]:
            raise broken[0]
        if mine is None:
            return [None] * len(completions)
        table = concatenated([table for table in every if table is not None])
        batches.suite.check_missing(table)
        values = table.advantages(estimator)
        values[np.isnan(table.total())] = np.nan  # without any score: TRL leaves it out, and makes it 0
        if trainer == "rloo":
            values = _before_leave_one_out(values, table.groups)
        return _with_none(values[[table.ids.index(id) for id in mine.ids]])

    return advantage


def _before_leave_one_out(values: Float, groups: Any) -> Float:
    """(n - 1) / n of each value: taking the mean of the n - 1 others from it gives the value, as those of a group add up to 0."""
    _, group = np.unique(groups, return_inverse=True)
    n = np.bincount(group, weights=~np.isnan(values))[group]
    return np.asarray(values * (n - 1) / np.maximum(n, 1))


def _with_none(column: Float) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in column]


def _text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """A completion's text: a string, or messages whose content is text or a list of parts."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
