"""Advantages: numbers worked out by hand, a slow second implementation, and the properties that the docstrings promise."""

from __future__ import annotations

import functools
import math
import statistics
import string
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from capreward.advantage import ESTIMATORS, dr_grpo, gdpo, grpo, varies

NAN = math.nan
unwhitened = functools.partial(gdpo, whiten=False)
ALL = {"grpo": grpo, "dr_grpo": dr_grpo, "gdpo": gdpo, "gdpo, not whitened": unwhitened}
PER_GROUP = {name: estimator for name, estimator in ALL.items() if name != "gdpo"}
"""The estimators in which a group sees nothing of the others."""

every_estimator = pytest.mark.parametrize("estimator", ALL.values(), ids=ALL.keys())
every_per_group_estimator = pytest.mark.parametrize("estimator", PER_GROUP.values(), ids=PER_GROUP.keys())


# ---------------------------------------------------------------------------------------------- by hand

# Group a, scores less their mean: first component (-1, 1), variance 2; second never varies.
# Group b:                         first component (-1, 0, 1), variance 1; second (-1, -1, 2), variance 6 / 2 = 3.
BY_HAND = [[0, 5], [1, 0], [2, 0], [2, 5], [3, 3]]
GROUPS = ["a", "b", "b", "a", "b"]
WEIGHTS = [2, 1]
R2, R3, R13 = math.sqrt(2), math.sqrt(3), math.sqrt(13)


def test_dr_grpo_by_hand() -> None:
    # 2 * first + second
    assert dr_grpo(BY_HAND, GROUPS, WEIGHTS).tolist() == pytest.approx([-2, -3, -1, 2, 4], rel=1e-15)


def test_grpo_by_hand() -> None:
    # The sums of dr_grpo; variance in a (4 + 4) / 1 = 8, in b (9 + 1 + 16) / 2 = 13.
    exact = [-1 / R2, -3 / R13, -1 / R13, 1 / R2, 4 / R13]
    assert grpo(BY_HAND, GROUPS, WEIGHTS, eps=0).tolist() == pytest.approx(exact, rel=1e-15)
    damped = [-2 / (2 * R2 + 1), -3 / (R13 + 1), -1 / (R13 + 1), 2 / (2 * R2 + 1), 4 / (R13 + 1)]
    assert grpo(BY_HAND, GROUPS, WEIGHTS, eps=1).tolist() == pytest.approx(damped, rel=1e-15)


def test_gdpo_by_hand() -> None:
    # 2 z_1 + z_2, with z_1 = (-1, 1) / sqrt(2) in a and (-1, 0, 1) in b, z_2 = (-1, -1, 2) / sqrt(3) in b.
    s = [-R2, -2 - 1 / R3, -1 / R3, R2, 2 + 2 / R3]
    assert gdpo(BY_HAND, GROUPS, WEIGHTS, eps=0, whiten=False).tolist() == pytest.approx(s, rel=1e-15)
    # The squares of s add up to 14 + 4 sqrt(3); over 5 - 1 rollouts the variance is 3.5 + sqrt(3).
    whitened = [x / math.sqrt(3.5 + R3) for x in s]
    assert gdpo(BY_HAND, GROUPS, WEIGHTS, eps=0).tolist() == pytest.approx(whitened, rel=1e-14)
    # eps = 1 makes the deviations sqrt(2) + 1; 1 + 1 and sqrt(3) + 1.
    damped = [-2 / (R2 + 1), -1 - 1 / (R3 + 1), -1 / (R3 + 1), 2 / (R2 + 1), 1 + 2 / (R3 + 1)]
    assert gdpo(BY_HAND, GROUPS, WEIGHTS, eps=1, whiten=False).tolist() == pytest.approx(damped, rel=1e-15)
    batch_std = math.sqrt(sum(x * x for x in damped) / 4)
    damped_twice = [x / (batch_std + 1) for x in damped]
    assert gdpo(BY_HAND, GROUPS, WEIGHTS, eps=1).tolist() == pytest.approx(damped_twice, rel=1e-14)


def test_missing_by_hand() -> None:
    # Less the mean of what is there: first component (-1, 1, -), second (-, -1, 1). The last rollout has no score.
    values = [[1, NAN], [3, 0], [NAN, 2], [NAN, NAN]]
    groups = [7, 7, 7, 7]
    assert dr_grpo(values, groups).tolist() == [-1, 0, 1, 0]
    assert grpo(values, groups, eps=0).tolist() == [-1, 0, 1, 0]  # deviation sqrt((1 + 0 + 1) / 2), over three rollouts
    s = [-1 / R2, 0, 1 / R2, 0]
    assert gdpo(values, groups, eps=0, whiten=False).tolist() == pytest.approx(s, rel=1e-15)
    assert gdpo(values, groups, eps=0).tolist() == pytest.approx([-1, 0, 1, 0], rel=1e-15)  # again over three


def test_weights_default_to_one_each_and_estimators_have_names() -> None:
    assert set(ESTIMATORS) == {"gdpo", "grpo", "dr_grpo"}
    for estimator in ESTIMATORS.values():
        default, ones = estimator(BY_HAND, GROUPS), estimator(BY_HAND, GROUPS, [1, 1])
        assert default.any()
        np.testing.assert_array_equal(default, ones)


# ---------------------------------------------------------------------------------------------- a second implementation


def slow(
    method: str, values: Sequence[Sequence[float]], groups: Sequence[Any], weights: Sequence[float], eps: float = 1e-4
) -> list[float]:
    """Every estimator in loops. `statistics` computes means of floats exactly, so a group that does not vary gives 0."""
    s = [0.0] * len(values)
    members = {group: [i for i, other in enumerate(groups) if other == group] for group in groups}
    scored = [i for i, row in enumerate(values) if not all(math.isnan(x) for x in row)]
    for rows in members.values():
        for k, weight in enumerate(weights):
            present = {i: values[i][k] for i in rows if not math.isnan(values[i][k])}
            for i, x in present.items():
                centred = x - statistics.mean(present.values())
                s[i] += weight * (ratio(centred, deviation(present.values()) + eps) if "gdpo" in method else centred)
    if method == "grpo":
        for rows in members.values():
            normalise(s, [i for i in rows if i in scored], eps)
    if method == "gdpo":
        normalise(s, scored, eps)
    return s


def normalise(s: list[float], rows: Sequence[int], eps: float) -> None:
    """Subtract the mean of these rows and divide by their deviation, in place."""
    if rows:
        old = [s[i] for i in rows]
        mean, std = statistics.mean(old), deviation(old)
        for i in rows:
            s[i] = ratio(s[i] - mean, std + eps)


def deviation(numbers: Any) -> float:
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


@dataclass(frozen=True)
class Batch:
    values: np.ndarray
    groups: list[Any]
    weights: list[float]

    def members(self) -> list[list[int]]:
        """Rows of each group, in the batch's order."""
        return [[i for i, other in enumerate(self.groups) if other == group] for group in dict.fromkeys(self.groups)]

    def run(self, estimator: Callable[..., Any], **changes: Any) -> np.ndarray:
        return estimator(*(changes.get(name, getattr(self, name)) for name in ("values", "groups", "weights")))


@st.composite
def batches(draw: st.DrawFn, missing: bool = True, most_groups: int = 5) -> Batch:
    """Interleaved groups of 1 to 9 rollouts; 1 to 4 components with many ties; string or integer ids."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=most_groups))
    names = st.integers(-(2**40), 2**40) | st.none()
    texts = st.text(string.ascii_letters + string.digits + "-ßé", min_size=1, max_size=12)
    kind = draw(st.sampled_from([names.filter(lambda x: x is not None), texts]))
    ids = draw(st.lists(kind, min_size=len(sizes), max_size=len(sizes), unique=True))
    groups = draw(st.permutations([name for name, size in zip(ids, sizes, strict=True) for _ in range(size)]))
    k = draw(st.integers(1, 4))
    cell = st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 0.5, 1.0]) | st.floats(-2, 2)
    values = draw(arrays(np.float64, (len(groups), k), elements=cell | st.just(NAN) if missing else cell))
    weight = st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-3, 3)
    weights = draw(st.lists(weight, min_size=k, max_size=k).filter(any))
    return Batch(values, groups, weights)
