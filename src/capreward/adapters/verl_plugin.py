"""Puts capreward's GDPO in the place of verl's own. verl imports it in every process where VERL_USE_EXTERNAL_MODULES names it.

- The estimator "gdpo" is replaced, since verl hands the components to no other name.
- verl's default (v1) trainers hand them to none at all. So each mode gets a subclass under a name of its own, "capreward_sync"
  and so on (`trainer.v1.trainer_mode`), which reads them from verl's transfer queue first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

from capreward.adapters.verl import MODES
from capreward.advantage import gdpo, varies
from capreward.errors import InputError

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """What a v1 trainer hands to the estimator behind verl's back."""

    values: Float
    """[B, K]; NaN = missing."""
    sessions: Sequence[str]
    """Rollout that each row is of, [B]: an agent loop may write several rows of one, and they share its scores."""


_components: ContextVar[Components | None] = ContextVar("capreward_components", default=None)


def rollout_gdpo(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: Any,
    config: Any,
    non_tensor_batch: Mapping[str, Any] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`capreward.gdpo` with the signature of verl's estimators: over rollouts, not tokens, and with missing scores left out.

    Args:
        token_level_rewards: [B, T]; only its device is read.
        response_mask: [B, T], 1 on the tokens that the policy wrote.
        index: group of each row, [B].
        config: verl's `algorithm` settings: `gdpo_reward_keys`, `gdpo_reward_weights` (1 each when left out).
        non_tensor_batch: in the legacy trainer, the components by name, [B] each; None or NaN = missing.

    Returns:
        The advantage of each row on each token in the mask, 0 elsewhere, [B, T], float32; and the same as returns.

    Raises:
        InputError: components that are not there, or a KL penalty inside the reward, which would be dropped.
    """
    names = names_of(config)
    if config.get("use_kl_in_reward"):
        raise InputError(
            "algorithm.use_kl_in_reward: got true, expected false: GDPO is made of the components, so the penalty would be "
            "dropped; use actor_rollout_ref.actor.use_kl_loss"
        )
    given = _components.get()
    if given is None:
        columns: Mapping[str, Any] = non_tensor_batch or {}
        if absent := [name for name in names if name not in columns]:
            raise InputError(
                f"algorithm.gdpo_reward_keys: no scores of {absent[0]!r}; there are {sorted(columns)}. verl's default trainer "
                f"hands none over: set trainer.v1.trainer_mode to one of {[f'capreward_{mode}' for mode in MODES]}"
            )
        values = np.stack([np.asarray(columns[name]).astype(np.float64) for name in names], axis=1)
        given = Components(values, [str(row) for row in range(len(values))])
    first, rollout = np.unique(given.sessions, return_index=True, return_inverse=True)[1:]
    groups = np.asarray(index).astype(str)[first]
    per_rollout = gdpo(given.values[first], groups, config.get("gdpo_reward_weights"))
    per_row = torch.tensor(per_rollout[rollout], dtype=torch.float32, device=token_level_rewards.device)
    per_token = per_row[:, None] * response_mask
    return per_token, per_token


def names_of(config: Any) -> list[str]:
    """The components, from verl's `algorithm` settings."""
    names = list(config.get("gdpo_reward_keys") or ())
    if not names:
        raise InputError(
            "algorithm.gdpo_reward_keys: got none, expected the suite's components; `capreward verl-overrides` prints them"
        )
    return names


def metrics_of(names: Sequence[str], values: Float, groups: Any) -> dict[str, float]:
    """`capreward/NAME/...` of each component: `value` (mean of what is present), `missing` (share of the rollouts) and `varies`
    (share of the groups in which it takes more than one value), as in `ScoreTable.diagnostics`."""
    result = {}
    for k, name in enumerate(names):
        present = values[~np.isnan(values[:, k]), k]
        if len(present):
            result[f"capreward/{name}/value"] = float(present.mean())
        result[f"capreward/{name}/missing"] = 1 - len(present) / len(values)
        result[f"capreward/{name}/varies"] = float(varies(values[:, [k]], groups).mean())
    return result


def register() -> None:
    """Once a process."""
    ADV_ESTIMATOR_REGISTRY["gdpo"] = rollout_gdpo
    with suppress(
        ImportError
    ):  # without the transfer queue, only the legacy trainer runs; verl says so where v1 is asked for
        from verl.trainer.ppo.v1 import get_trainer_cls, register_trainer

        for mode in MODES:
            register_trainer(f"capreward_{mode}")(_trainer(mode, get_trainer_cls(mode)))


def _trainer(mode: str, base: Any) -> Any:
    """verl's trainer of a mode, which finds the components where its estimator looks for them."""
    import transfer_queue

    class Trainer(base):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            config.trainer.v1.trainer_mode = mode  # verl compares it with its own modes in many places
            super().__init__(config)

        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            names = names_of(self.config.algorithm)
            rows = transfer_queue.kv_batch_get(
                keys=batch.keys, partition_id=batch.partition_id, select_fields=["uid", "extra_fields"]
            )
            # verl fills a batch up with copies of its first row; what they say is that row's
            real = np.array([not tag.get("is_padding", False) for tag in batch.tags])
            values = np.full((len(batch.keys), len(names)), np.nan)
            for row, extra in enumerate(rows["extra_fields"].tolist()):
                if real[row]:
                    values[row] = _scores(names, extra.get("reward_extra_info") or {}, batch.keys[row])
            metrics.update(metrics_of(names, values[real], np.array(rows["uid"].tolist())[real]))
            token = _components.set(Components(values, [key.rsplit("_", 1)[0] for key in batch.keys]))
            try:
                return super()._compute_advantage(batch, metrics)
            finally:
                _components.reset(token)

    return Trainer


def _scores(names: Sequence[str], info: Mapping[str, Any], key: str) -> Float:
    if absent := [name for name in names if name not in info]:
        raise InputError(
            f"algorithm.gdpo_reward_keys: rollout {key} has no score {absent[0]!r}; there are {sorted(info)}. Is the reward "
            "function capreward's, and no reward model colocated with the policy?"
        )
    return np.array([info[name] for name in names], np.float64)  # None becomes NaN


register()
