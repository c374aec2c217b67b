"""Our GDPO beside verl's: equal where both mean the same, and each difference shown. verl runs in its own environment."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from verl_formula import VERL_PYTHON, VerlResults, verl_gdpo

from capreward import gdpo

Case = dict[str, np.ndarray]

EPS = 1e-6  # verl's, in the group; in the batch it has 1e-8 under the root
TOLERANCE = 1e-4  # verl computes in float32


def random_case(seed: int, tokens: int = 1) -> Case:
    """Unequal, interleaved groups of 2 to 16 and weights of both signs; all responses of equal length."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 17, 12)
    groups = rng.permutation(np.repeat(np.arange(12), sizes))
    k = rng.integers(1, 6)
    return {
        "rewards": rng.random((len(groups), k)).astype(np.float32),
        "groups": groups,
        "weights": rng.uniform(-1, 2, k).astype(np.float32),
        "lengths": np.full(len(groups), tokens),
    }


def four_groups(seed: int = 0, **changes: Any) -> Case:
    rewards = np.random.default_rng(seed).random((32, 2)).astype(np.float32)
    return {"rewards": rewards, "groups": np.repeat(np.arange(4), 8), **changes}


def with_one_missing() -> Case:
    case = four_groups()
    case["rewards"][3, 1] = np.nan
    return case


def with_a_group_of_one(reward: float) -> Case:
    case = four_groups()
    case["groups"][0] = 99
    case["rewards"][0] = reward
    return case


def nothing_varies(size: int) -> Case:
    rewards = np.random.default_rng(size).random((16, 4))
    return {"rewards": np.repeat(rewards, size, axis=0), "groups": np.repeat(np.arange(16), size)}


def short_captions_are_better() -> Case:
    case = four_groups()
    quality = case["rewards"].mean(axis=1)
    return {**case, "lengths": np.maximum(2, (200 * (1 - quality) ** 3).astype(np.int64))}


CASES = {
    **{f"random {seed}": random_case(seed) for seed in range(20)},
    **{f"{tokens} tokens": random_case(tokens, tokens) for tokens in (2, 5, 30)},
    "no weights": four_groups(),
    "string ids": four_groups(groups=np.tile(["cup", "dog", "house", "tree"], 8)),
    "unequal lengths": short_captions_are_better(),
    "one missing": with_one_missing(),
    "group of one, 0": with_a_group_of_one(0.0),
    "group of one, 5": with_a_group_of_one(5.0),
    "nothing varies, 7": nothing_varies(7),
    "nothing varies, 8": nothing_varies(8),
}


@pytest.fixture(scope="module")
def verl(tmp_path_factory: pytest.TempPathFactory) -> VerlResults:
    """All cases at once: importing verl takes seconds."""
    if not VERL_PYTHON.exists():
        message = "verl's environment .venv-verl is not there; `make test` sets it up"
        if os.environ.get("CAPREWARD_PEERS") == "required":
            pytest.fail(message)
        pytest.skip(message)
    return verl_gdpo(CASES, tmp_path_factory.mktemp("verl"))


def beside(verl: VerlResults, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(ours, verl's) per rollout; verl's stands on each of a rollout's tokens."""
    case = CASES[name]
    per_token = verl.advantages[name]
    for row, length in zip(per_token, case.get("lengths", np.ones(len(per_token), int)), strict=True):
        np.testing.assert_array_equal(row[:length], row[0])
        assert not row[length:].any()
    return gdpo(case["rewards"], case["groups"], case.get("weights"), eps=EPS), per_token[:, 0]


# ---------------------------------------------------------------------------------------------- equal


@pytest.mark.parametrize("name", [*(f"random {seed}" for seed in range(20)), "no weights", "string ids"])
def test_equal(verl: VerlResults, name: str) -> None:
    ours, theirs = beside(verl, name)
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tokens", [2, 5, 30])
def test_equal_but_for_the_count_with_more_tokens(verl: VerlResults, tokens: int) -> None:
    """The mean over tokens of equally long responses is that over rollouts; only ddof 1 counts B T tokens, not B."""
    ours, theirs = beside(verl, f"{tokens} tokens")
    b = len(ours)
    over_rollouts = theirs * np.sqrt((1 - 1 / b) / (1 - 1 / (b * tokens)))
    np.testing.assert_allclose(ours, over_rollouts, rtol=0, atol=TOLERANCE)
    assert np.abs(ours - theirs).max() > TOLERANCE


# ---------------------------------------------------------------------------------------------- different


def test_verl_whitens_over_tokens(verl: VerlResults) -> None:
    """Where short captions are the better ones, all advantages are pushed up, and rollouts below average get rewarded."""
    ours, theirs = beside(verl, "unequal lengths")
    assert abs(ours.mean()) < 1e-9
    assert theirs.mean() > 0.5
    assert np.count_nonzero((ours < 0) & (theirs > 0)) >= 5

    # Nothing else differs: S, our advantage before the batch step, whitened over tokens is verl's.
    case = CASES["unequal lengths"]
    s = np.repeat(gdpo(case["rewards"], case["groups"], eps=EPS, whiten=False), case["lengths"])
    last_tokens = np.cumsum(case["lengths"]) - 1
    over_tokens = ((s - s.mean()) / s.std(ddof=1))[last_tokens]
    np.testing.assert_allclose(over_tokens, theirs, rtol=0, atol=TOLERANCE)


def test_one_missing_cell_makes_the_whole_batch_nan_in_verl(verl: VerlResults) -> None:
    ours, theirs = beside(verl, "one missing")
    assert np.isnan(theirs).all()
    assert np.isfinite(ours).all()
    assert ours.all()


def test_a_group_of_one_leaks_its_raw_reward_in_verl(verl: VerlResults) -> None:
    """Nothing can be learnt from a single rollout; verl takes its rewards for normalised ones, whatever their scale."""
    ours_low, theirs_low = beside(verl, "group of one, 0")
    ours_high, theirs_high = beside(verl, "group of one, 5")
    assert ours_low[0] == ours_high[0] == 0
    np.testing.assert_array_equal(ours_low, ours_high)
    np.testing.assert_allclose(theirs_low, ours_low, rtol=0, atol=TOLERANCE)  # a reward of 0 happens to do no harm
    assert theirs_high[0] > 4
    assert theirs_high[1:].mean() < -0.1  # and the others pay for it


@pytest.mark.parametrize("size", [7, 8])
def test_groups_that_do_not_vary_train_on_noise_in_verl(verl: VerlResults, size: int) -> None:
    ours, theirs = beside(verl, f"nothing varies, {size}")
    assert not ours.any()
    assert np.abs(theirs).max() > 0.5
