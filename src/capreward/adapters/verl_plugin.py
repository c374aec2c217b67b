"""Puts capreward's GDPO in the place of verl's own. verl imports it in every process where VERL_USE_EXTERNAL_MODULES names it.

- The estimator "gdpo" is replaced, since verl hands the components to no other name.
- verl's default (v1) trainers hand them to none at all. So each mode gets a subclass under a name of its own, "capreward_sync"
  and so on (`trainer.v1.trainer_mode`), which reads them from verl's transfer queue first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

from capreward.adapters.verl import MODES
from capreward.advantage import gdpo
from capreward.errors import InputError
from capreward.groups import Float, check_weights
from capreward.missing import Missing, Reason
from capreward.scoring import ScoreTable

_advantages: ContextVar[Float | None] = ContextVar("capreward_advantages", default=None)
"""Of each row, [B]: what a v1 trainer hands to the estimator behind verl's back."""


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
    advantages = _advantages.get()
    if advantages is None:
        columns: Mapping[str, Any] = non_tensor_batch or {}
        if absent := [name for name in names if name not in columns]:
            raise InputError(
                f"algorithm.gdpo_reward_keys: no scores of {absent[0]!r}; there are {sorted(columns)}. verl's default trainer "
                f"hands none over: set trainer.v1.trainer_mode to one of {[f'capreward_{mode}' for mode in MODES]}"
            )
        values = np.stack([np.asarray(columns[name]).astype(np.float64) for name in names], axis=1)
        advantages = gdpo(values, np.asarray(index).astype(str), config.get("gdpo_reward_weights"))
    per_row = torch.tensor(advantages, dtype=torch.float32, device=token_level_rewards.device)
    per_token = per_row[:, None] * response_mask
    return per_token, per_token


def names_of(config: Any) -> tuple[str, ...]:
    """The components, from verl's `algorithm` settings."""
    names = tuple(config.get("gdpo_reward_keys") or ())
    if not names:
        raise InputError(
            "algorithm.gdpo_reward_keys: got none, expected the suite's components; `capreward verl-overrides` prints them"
        )
    return names


def table_of(infos: Mapping[str, Mapping[str, Any]], groups: Sequence[str], config: Any) -> ScoreTable:
    """What the score function returned, as a table.

    Args:
        infos: of N rollouts, by their ids.
        groups: of each, [N].
        config: verl's `algorithm` settings.
    """
    names = names_of(config)
    for id, info in infos.items():
        if absent := [name for name in names if name not in info]:
            raise InputError(
                f"algorithm.gdpo_reward_keys: rollout {id} has no score {absent[0]!r}; there are {sorted(info)}. Is the reward "
                "function capreward's, and no reward model colocated with the policy?"
            )
    # None becomes NaN
    values = np.array([[info[name] for name in names] for info in infos.values()], np.float64)
    raw = np.array([[info.get(f"raw.{name}", info[name]) for name in names] for info in infos.values()], np.float64)
    changed = (raw != values) & ~np.isnan(values)
    return ScoreTable(
        names=names,
        ids=tuple(infos),
        groups=np.array(groups, np.str_),
        raw=raw,
        values=values,
        weights=check_weights(config.get("gdpo_reward_weights"), len(names)),
        scores=(),
        gated={(int(row), int(k)): "" for row, k in np.argwhere(changed)},
        missing={
            (row, k): Missing(Reason(info[f"missing.{name}"]))
            for row, info in enumerate(infos.values())
            for k, name in enumerate(names)
            if info.get(f"missing.{name}")
        },
    )


def register() -> None:
    """Once a process."""
    ADV_ESTIMATOR_REGISTRY["gdpo"] = rollout_gdpo
    with suppress(
        ImportError
    ):  # without the transfer queue only the legacy trainer runs; verl says so where v1 is asked for
        from verl.trainer.ppo.v1 import get_trainer_cls, register_trainer

        for mode in MODES:
            register_trainer(f"capreward_{mode}")(_trainer(mode, get_trainer_cls(mode)))


def _trainer(mode: str, base: Any) -> Any:
    """verl's trainer of a mode, with the advantages where the estimator that verl calls looks for them."""
    import transfer_queue

    class Trainer(base):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            config.trainer.v1.trainer_mode = mode  # verl compares it with its own modes in many places
            super().__init__(config)

        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            fields = transfer_queue.kv_batch_get(
                keys=batch.keys, partition_id=batch.partition_id, select_fields=["uid", "extra_fields"]
            )
            uids, extras = list(fields["uid"]), list(fields["extra_fields"])
            # verl fills a batch up with rows that say what its first one says; they are no rollouts
            real = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding")]
            # key: {uid}_{rollout}_{output}; an agent loop may write several rows of one rollout, and they share its scores
            rollouts = [batch.keys[row].rsplit("_", 1)[0] for row in real]
            infos = {id: extras[row].get("reward_extra_info") or {} for id, row in zip(rollouts, real, strict=True)}
            groups = dict(zip(rollouts, (uids[row] for row in real), strict=True))
            table = table_of(infos, list(groups.values()), self.config.algorithm)
            metrics.update({f"capreward/{key}": value for key, value in table.metrics().items() if not np.isnan(value)})
            by_rollout = dict(zip(table.ids, table.advantages(), strict=True))
            advantages = np.zeros(len(batch.keys))
            advantages[real] = [by_rollout[id] for id in rollouts]
            token = _advantages.set(advantages)
            try:
                return super()._compute_advantage(batch, metrics)
            finally:
                _advantages.reset(token)

    return Trainer


register()
