"""Our advantages beside those of TRL's own code: equal where both mean the same, and each difference shown."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import numpy as np
import pytest
import torch
import trl_formula
from trl.trainer import grpo_trainer
from trl_formula import find_block, trl_advantages

from capreward import gdpo, grpo

NAN = float("nan")
ESTIMATORS = {"sum_then_normalize": grpo, "normalize_then_sum": gdpo}
both = pytest.mark.parametrize("aggregation", ESTIMATORS)

# TRL computes in float32, which keeps 7 digits of a score. In pairs of nearly equal scores few of them are left.
TOLERANCE = 1e-4


def beside(rewards: Any, size: int, aggregation: str, weights: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """(ours, TRL's) for groups of `size` in a row; both read the same float32 numbers."""
    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    groups = np.repeat(np.arange(len(rewards) // size), size)
    ours = ESTIMATORS[aggregation](rewards.double().numpy(), groups, weights)
    return ours, trl_advantages(rewards, weights, size, aggregation).numpy()


# ---------------------------------------------------------------------------------------------- equal


@both
@pytest.mark.parametrize("size", range(1, 17))
def test_equal_with_nothing_missing(size: int, aggregation: str) -> None:
    rng = np.random.default_rng(size)
    for _ in range(20):
        k = rng.integers(1, 6)
        rewards = rng.random((rng.integers(2, 9) * size, k))
        ours, theirs = beside(rewards, size, aggregation, rng.uniform(-1, 2, k))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
        assert (np.abs(ours).max() > 0.5) == (size > 1)  # the comparison is not one of zeros, but where it must be


@pytest.mark.parametrize("size", range(1, 17))
def test_gdpo_equal_with_missing_cells(size: int) -> None:
    """Both give a missing cell z = 0, and leave a rollout without a score out of the batch step."""
    rng = np.random.default_rng(size)
    for _ in range(20):
        rewards = rng.random((6 * size, 3))
        rewards[rng.random(rewards.shape) < 0.3] = NAN
        rewards[rng.random(len(rewards)) < 0.1] = NAN
        ours, theirs = beside(rewards, size, "normalize_then_sum", [1.0, 0.5, 2.0])
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@both
def test_equal_with_rollouts_that_have_no_score_at_all(aggregation: str) -> None:
    rng = np.random.default_rng(0)
    rewards = rng.random((64, 3))
    rewards[rng.random(64) < 0.3] = NAN
    ours, theirs = beside(rewards, 8, aggregation)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    gone = np.isnan(rewards).all(axis=1)
    assert gone.any()
    assert not ours[gone].any()
    assert not theirs[gone].any()


@both
def test_equal_where_a_group_has_one_score_of_a_component(aggregation: str) -> None:
    """TRL's deviation is then NaN, and so is the whole component in that group; its sum over components skips NaN."""
    one_score = [[NAN], [0.9], [NAN], [NAN], [0.1], [0.2], [0.3], [0.4]]
    ours, theirs = beside(one_score, 4, aggregation)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(theirs[:4], 0, atol=TOLERANCE)
    assert np.abs(theirs[4:]).min() > 0.1


def test_gdpo_equal_where_one_of_several_components_has_one_score() -> None:
    rewards = [[1, NAN], [2, 0.5], [3, NAN], [0, NAN]]
    ours, theirs = beside(rewards, 4, "normalize_then_sum")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        ours, beside([[1], [2], [3], [0]], 4, "normalize_then_sum")[0]
    )  # as if it were not there


# ---------------------------------------------------------------------------------------------- different


@pytest.mark.parametrize("size", [7, 8])
def test_groups_that_do_not_vary_train_on_noise_in_trl(size: int) -> None:
    """GDPO's batch step divides rounding errors by their own deviation: full-sized advantages for equal rollouts."""
    rng = np.random.default_rng(size)
    for _ in range(200):
        rewards = np.repeat(rng.random((16, 4)), size, axis=0)
        ours, theirs = beside(rewards, size, "normalize_then_sum")
        assert not ours.any()
        assert np.abs(theirs).max() > 0.5


@both
def test_groups_that_do_not_vary_beside_groups_that_do(aggregation: str) -> None:
    """Beside groups that vary the noise is small, and still a gradient where there is nothing to learn."""
    rng = np.random.default_rng(0)
    rewards = np.vstack([np.repeat(rng.random((20, 4)), 7, axis=0), rng.random((20 * 7, 4))])
    ours, theirs = beside(rewards, 7, aggregation)
    assert not ours[: 20 * 7].any()
    assert theirs[: 20 * 7].any()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2)


def test_a_missing_cell_is_a_reward_of_zero_in_trls_grpo() -> None:
    """The four rollouts differ in nothing but that a judge failed on one; TRL punishes it for that."""
    ours, theirs = beside([[0.5, NAN], [0.5, 1], [0.5, 1], [0.5, 1]], 4, "sum_then_normalize")
    assert ours.tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(theirs, [-1.5, 0.5, 0.5, 0.5], atol=1e-3)
    as_zero, _ = beside([[0.5, 0], [0.5, 1], [0.5, 1], [0.5, 1]], 4, "sum_then_normalize")
    np.testing.assert_allclose(theirs, as_zero, rtol=0, atol=TOLERANCE)


@both
def test_trl_knows_no_group_ids(aggregation: str) -> None:
    """Interleaved groups are normalised across prompts without a word; groups of different sizes do not fit at all."""
    rng = np.random.default_rng(0)
    rewards, groups = rng.random((16, 2)), np.tile([0, 1], 8)
    rewards[groups == 1] += 3  # an easier prompt
    ours = ESTIMATORS[aggregation](rewards, groups)
    theirs = trl_advantages(torch.tensor(rewards), None, 8, aggregation).numpy()
    assert abs(ours[groups == 1].mean()) < 1e-9
    assert theirs[groups == 1].mean() > 0.5
    in_a_row = np.argsort(groups, kind="stable")
    theirs[in_a_row] = trl_advantages(torch.tensor(rewards[in_a_row]), None, 8, aggregation).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        trl_advantages(torch.tensor(rewards[:15]), None, 8, aggregation)
    assert ESTIMATORS[aggregation](rewards[:15], groups[:15]).all()


@both
def test_an_infinite_reward_silences_its_group_in_trl_and_is_refused_here(aggregation: str) -> None:
    rewards = torch.tensor([[float("inf")], [0.5], [0.1], [0.9], [0.1], [0.2], [0.3], [0.4]])
    theirs = trl_advantages(rewards, None, 4, aggregation)
    np.testing.assert_allclose(theirs[:4], 0, atol=TOLERANCE)
    with pytest.raises(ValueError, match=r"values\[0, 0\]: got inf"):
        ESTIMATORS[aggregation](rewards, [0] * 4 + [1] * 4)


# ---------------------------------------------------------------------------------------------- the extraction itself


def test_the_block_is_the_arithmetic_and_nothing_else() -> None:
    block = find_block(inspect.getsource(grpo_trainer.GRPOTrainer._generate_and_score_completions))
    assert [ast.unparse(statement).splitlines()[0] for statement in block] == [
        "unscorable_mask = torch.isnan(rewards_per_func).all(dim=1)",
        "if self.multi_objective_aggregation == 'sum_then_normalize':",
        "advantages = torch.nan_to_num(advantages, nan=0.0)",
    ]


def test_a_trl_without_the_block_fails_loudly() -> None:
    source = inspect.getsource(grpo_trainer.GRPOTrainer._generate_and_score_completions)
    for changed in (
        source.replace("unscorable_mask = ", "mask = "),
        source.replace("advantages = torch.nan_to_num(", "advantages = torch.clamp("),
        "def method(self): pass",
    ):
        with pytest.raises(LookupError, match=r"look where TRL computes advantages now"):
            find_block(changed)


def test_the_callers_rewards_stay_as_they_are() -> None:
    rewards = torch.tensor([[1.0], [NAN], [3.0], [4.0]])
    copy = rewards.clone()
    for aggregation in trl_formula.AGGREGATIONS:
        trl_advantages(rewards, None, 2, aggregation)
    assert torch.equal(rewards.nan_to_num(9), copy.nan_to_num(9))
