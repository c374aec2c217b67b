"""A suite as plugins of ms-swift (4.6): one asynchronous reward for each component.

>>> names = register(suite)  # in the file of `--external_plugins`, with `--reward_funcs` as `names` has them     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capreward.adapters.batches import Batches
from capreward.errors import InputError, missing_extra
from capreward.suite import RewardSuite


def register(suite: RewardSuite, *, columns: Mapping[str, str] | None = None) -> list[str]:
    """Add a reward for each component to ms-swift's `orms`, under the component's name.

    All are answered by one `suite.ascore` a batch: gated scores, None where missing, which ``--scale_rewards gdpo`` leaves out
    of its group's mean. Pass the suite's weights as ``--reward_weights``.

    Args:
        columns: field of `Item` -> column of the dataset, as in `capreward.adapters.trl.reward_funcs`.

    Returns:
        The names, in the suite's order.

    Raises:
        InputError: ms-swift has a reward of that name already.
        MissingExtraError: ms-swift is not installed.
    """
    try:
        from swift.rewards import AsyncORM, orms
    except ImportError as error:
        raise missing_extra("register", "swift", error) from error
    batches = Batches(suite, columns)
    for k, name in enumerate(suite.names):
        if name in orms:
            raise InputError(f"register: got component {name!r}, expected none of ms-swift's {sorted(orms)}; rename it")
        orms[name] = type(name, (AsyncORM,), {"__call__": _called(batches.component(k))})
    return list(suite.names)


def _called(reward: Any) -> Any:
    async def call(_: Any, completions: list[str], messages: list[Any], **given: Any) -> list[float | None]:
        answers: list[float | None] = await reward(completions, prompts=[each[:-1] for each in messages], **given)
        return answers

    return call
