"""A suite in TRL's GRPOTrainer and RLOOTrainer (TRL 1.16), as reward functions that they call.

>>> trainer = GRPOTrainer(                                              # doctest: +SKIP
...     model, reward_funcs(suite), GRPOConfig(..., **grpo_kwargs(suite)), train_dataset=dataset
... )
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from capreward.adapters.batches import Batches, with_none
from capreward.advantage import ESTIMATORS
from capreward.errors import InputError, missing_extra
from capreward.groups import Float
from capreward.scoring import concatenated
from capreward.suite import RewardSuite

CENTRED = sorted(ESTIMATORS.keys() - {"rvpo", "gd2po"})
"""The estimators whose advantages add up to 0 over a group."""


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

    Once anything has been scored, a component that breaks leaves its batch without scores instead of ending the run.

    Args:
        suite: its weights and how they are joined reach TRL by `grpo_kwargs` or `rloo_kwargs`.
        columns: field of `Item` -> column of the dataset. By default the columns that are called as the fields are
            (`references`, `questions`, `rubric`, ...), and `image`, or `images` with one image in it.
        exact: rows that share item and prompt are a group; a dataset should hold such a pair once.
        trainer: whose arithmetic to undo. RLOOTrainer's own reads a missing score as 0, so for it `exact` has to be on.
        estimator: of the advantage, if `exact`: one whose advantages add up to 0 over a group.

    Raises:
        InputError: `trainer="rloo"` without `exact`; an estimator that is unknown, or that TRL's arithmetic would change; while
            training, rows that are no items.
        ComponentError: while training, if a component breaks before anything has been scored.
        TooManyMissingError: while training, if more is missing than the suite's `max_missing` allows.
    """
    if trainer == "rloo" and not exact:
        raise InputError(
            "reward_funcs: got trainer='rloo' with exact=False, expected exact=True: "
            "RLOOTrainer adds up raw rewards, and reads a missing one as 0"
        )
    batches = Batches(suite, columns)
    if exact:
        if estimator not in CENTRED:
            raise InputError(
                f"estimator: got {estimator!r}, expected one of {CENTRED} with exact=True: TRL subtracts the group's mean, which "
                "has to be 0"
            )
        return [_advantage(batches, trainer, estimator)]
    functions = [batches.component(k) for k in range(len(suite.names))]
    for function, name in zip(functions, suite.names, strict=True):
        function.__name__ = name  # as which TRL logs it
    return functions


def grpo_kwargs(suite: RewardSuite, *, exact: bool = False) -> dict[str, Any]:
    """Settings of GRPOConfig that belong to `reward_funcs(suite, exact=exact)`."""
    if exact:
        return {"reward_weights": [1.0], "multi_objective_aggregation": "sum_then_normalize", "scale_rewards": "none"}
    return {"reward_weights": suite.weights.tolist(), "multi_objective_aggregation": "normalize_then_sum"}


def rloo_kwargs() -> dict[str, Any]:
    """Settings of RLOOConfig that belong to `reward_funcs(suite, exact=True, trainer="rloo")`."""
    return {"reward_weights": [1.0], "normalize_advantages": False}


def _advantage(batches: Batches, trainer: str, estimator: str) -> Callable[..., Any]:
    try:
        from accelerate import PartialState
        from accelerate.utils import gather_object
    except ImportError as error:
        raise missing_extra("reward_funcs(exact=True)", "trl", error) from error

    # Not async: the processes have to gather in TRL's own thread, in which it gathers too.
    def advantage(completions: list[Any], **given: Any) -> list[float | None]:
        process = PartialState().process_index
        try:
            mine: Any = batches.score(completions, given, part=True, process=process).result()
        except Exception as error:  # noqa: BLE001  # the other processes wait, and have to hear of it
            mine = error
        every = gather_object([mine])
        if broken := [outcome for outcome in every if isinstance(outcome, Exception)]:
            raise mine if isinstance(mine, Exception) else broken[0]  # one's own has its traceback
        if mine is None:
            return [None] * len(completions)
        table = concatenated([table for table in every if table is not None])
        batches.suite.check_missing(table)
        values = table.advantages(estimator)
        values[np.isnan(table.total())] = np.nan  # without any score: TRL leaves it out, and makes it 0
        if trainer == "rloo":
            values = _before_leave_one_out(values, table.groups)
        return with_none(values[[table.ids.index(id) for id in mine.ids]])

    return advantage


def _before_leave_one_out(values: Float, groups: Any) -> Float:
    """(n - 1) / n of each value: taking the mean of the n - 1 others from it gives the value, as those of a group add up to 0."""
    _, group = np.unique(groups, return_inverse=True)
    n = np.bincount(group, weights=~np.isnan(values))[group]
    return np.asarray(values * (n - 1) / np.maximum(n, 1))
