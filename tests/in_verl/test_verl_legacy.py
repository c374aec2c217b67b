"""The trainer before v1 (`trainer.use_v1=false`): its `compute_advantage` calls our estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, compute_gdpo_outcome_advantage
from verl.trainer.ppo.ray_trainer import compute_advantage

from capreward import gdpo
from capreward.adapters.verl_plugin import rollout_gdpo
from capreward.errors import InputError

NAMES = ["a", "b", "c"]
WEIGHTS = [1.0, 0.5, 2.0]
ALGORITHM = {"adv_estimator": "gdpo", "gdpo_reward_keys": NAMES, "gdpo_reward_weights": WEIGHTS}


def random_case(seed: int, missing: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values [B, K], groups [B], response lengths [B]): interleaved groups of 1 to 9."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat([f"uid{g}" for g in range(8)], [1, 2, 3, 5, 7, 8, 8, 9]))
    values = rng.random((len(groups), 3))
    values[groups == "uid5", 0] = 0.3  # does not vary there
    values[rng.random(values.shape) < missing] = np.nan
    return values, groups, rng.integers(1, 12, len(groups))


def advantages(values: np.ndarray, groups: np.ndarray, lengths: np.ndarray, **settings: Any) -> torch.Tensor:
    """What the trainer gets for a batch as it has it after scoring; [B, T]."""
    t = int(lengths.max())
    mask = (torch.arange(t)[None] < torch.from_numpy(lengths)[:, None]).long()
    ones = torch.ones(len(values), 2, dtype=torch.int64)
    columns = {name: np.array([None if np.isnan(v) else v for v in values[:, k]]) for k, name in enumerate(NAMES)}
    data = DataProto.from_dict(
        tensors={
            "prompts": ones,
            "attention_mask": torch.cat([ones, mask], dim=1),
            "response_mask": mask,
            "token_level_rewards": torch.zeros(len(values), t),
        },
        non_tensors={"uid": groups.astype(object), **columns},
    )
    config = OmegaConf.create({**ALGORITHM, **settings})
    done = compute_advantage(data, adv_estimator=config.adv_estimator, config=config).batch
    assert done["advantages"].dtype == torch.float32
    torch.testing.assert_close(done["returns"], done["advantages"], rtol=0, atol=0, equal_nan=True)
    return done["advantages"]


def per_rollout(per_token: torch.Tensor, lengths: np.ndarray) -> np.ndarray:
    for row, length in zip(per_token, lengths, strict=True):
        assert bool((row[:length] == row[0]).all())
        assert not row[length:].any()
    return per_token[:, 0].numpy()


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_capreward_gdpo_on_each_token(seed: int, missing: float) -> None:
    values, groups, lengths = random_case(seed, missing)
    expected = gdpo(values, groups, WEIGHTS)
    np.testing.assert_array_equal(per_rollout(advantages(values, groups, lengths), lengths), np.float32(expected))
    assert np.isfinite(expected).all()
    assert expected[groups == "uid0"] == 0  # a group of one


def test_verls_own_gives_nan_where_ours_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values, groups, lengths = random_case(0)
    values[5, 1] = np.nan
    ours = advantages(values, groups, lengths)
    monkeypatch.setitem(ADV_ESTIMATOR_REGISTRY, "gdpo", compute_gdpo_outcome_advantage)
    theirs = advantages(values, groups, lengths)
    assert bool(theirs.isnan().any(dim=1).all())
    assert bool(ours.isfinite().all())


def test_groups_that_do_not_vary_get_exactly_nothing() -> None:
    values = np.repeat(np.random.default_rng(0).random((8, 3)), 7, axis=0)
    groups = np.repeat([f"uid{g}" for g in range(8)], 7)
    assert not advantages(values, groups, np.full(56, 3)).any()


def test_short_captions_do_not_shift_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    values, groups, _ = random_case(1)
    lengths = np.maximum(2, (100 * (1 - values.mean(axis=1)) ** 3).astype(np.int64))  # the better the shorter
    ours = per_rollout(advantages(values, groups, lengths), lengths)
    assert abs(ours.mean()) < 1e-6
    np.testing.assert_array_equal(ours, advantages(values, groups, np.ones_like(lengths))[:, 0].numpy())
    monkeypatch.setitem(ADV_ESTIMATOR_REGISTRY, "gdpo", compute_gdpo_outcome_advantage)
    theirs = advantages(values, groups, lengths)[:, 0].numpy()
    assert theirs.mean() > 0.1
    assert ((ours < 0) & (theirs > 0)).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gdpo_reward_keys": None}, "gdpo_reward_keys: got none"),
        ({"gdpo_reward_keys": ["a", "d"]}, "no scores of 'd'"),
        ({"use_kl_in_reward": True}, "use_kl_in_reward: got true, expected false"),
    ],
)
def test_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        advantages(*random_case(0), **settings)


def test_verl_has_been_given_ours() -> None:
    assert ADV_ESTIMATOR_REGISTRY["gdpo"] is rollout_gdpo
