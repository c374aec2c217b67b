"""Advantages: numbers worked out by hand, a slow second implementation, and the properties that the docstrings promise."""

from __future__ import annotations

import doctest
import functools
import math
import statistics
import string
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import assume, given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from capreward import advantage
from capreward.advantage import (
    ESTIMATORS,
    corr_grpo,
    dara,
    dr_grpo,
    dvao,
    follows,
    gd2po,
    gdpo,
    grpo,
    mo_grpo,
    rvpo,
    sa_mrpo,
    saw,
    spread,
    varies,
)

NAN = math.nan


def lifted_saw(values: Any, groups: Any, weights: Any = None, **options: Any) -> Any:
    """SAW of the scores + 8, for tests whose scores are below 0, which SAW refuses."""
    values = values if isinstance(values, torch.Tensor) else np.asarray(values, dtype=float)
    return saw(values + 8, groups, weights, **options)


unwhitened = functools.partial(gdpo, whiten=False)
gd2po_soft = functools.partial(gd2po, soft=True, tau=0.2137)  # a ratio that tests with round numbers do not hit
wide_sa_mrpo = functools.partial(sa_mrpo, bounds=(-20.0, 2e6))
dara_positive = functools.partial(dara, positive_only=True)
ALL: dict[str, Any] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "gdpo": gdpo,
    "gdpo, not whitened": unwhitened,
    "mo_grpo": mo_grpo,
    "dvao": dvao,
    "rvpo": rvpo,
    "rvpo, k = 50": functools.partial(rvpo, k=50),
    "gd2po": gd2po,
    "gd2po, soft": gd2po_soft,
    "saw": lifted_saw,
    "sa_mrpo": wide_sa_mrpo,
    "corr_grpo": corr_grpo,
    "dara": dara,
    "dara, positive only": dara_positive,
}
OVER_THE_BATCH = {"gdpo", "gd2po", "gd2po, soft", "saw", "sa_mrpo", "dara", "dara, positive only"}
PER_GROUP = {name: estimator for name, estimator in ALL.items() if name not in OVER_THE_BATCH}
"""The estimators in which a group sees nothing of the others."""
DROPPING = (gd2po, gd2po_soft)
"""The estimators that give rollouts 0 because their components disagree."""
READS_THE_MEAN = {"saw", "sa_mrpo"}
"""The estimators whose weights hang on the mean of a component's scores over the batch."""
NOT_CENTRED = {"rvpo", "rvpo, k = 50", "gd2po", "gd2po, soft", "dara, positive only"}
"""The estimators whose values do not add up to 0 in a group."""
A_CONSTANT_COUNTS = {"rvpo", "rvpo, k = 50"}
"""The estimators in which a component that does not vary changes what the others teach: its z of 0 is part of a mean."""

some_examples = settings(max_examples=30)
"""For properties that are tested on every estimator: there are many."""
every_estimator = pytest.mark.parametrize("estimator", ALL.values(), ids=ALL.keys())
every_per_group_estimator = pytest.mark.parametrize("estimator", PER_GROUP.values(), ids=PER_GROUP.keys())


# ---------------------------------------------------------------------------------------------- by hand

# Group a, scores less their mean: first component (-1, 1), variance 2; second never varies.
# Group b:                         first component (-1, 0, 1), variance 1; second (-1, -1, 2), variance 6 / 2 = 3.
TINY = 1e-300  # as good as no eps: no sum of a deviation and this differs from the deviation
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
    assert grpo(BY_HAND, GROUPS, WEIGHTS, eps=TINY).tolist() == pytest.approx(exact, rel=1e-15)
    damped = [-2 / (2 * R2 + 1), -3 / (R13 + 1), -1 / (R13 + 1), 2 / (2 * R2 + 1), 4 / (R13 + 1)]
    assert grpo(BY_HAND, GROUPS, WEIGHTS, eps=1).tolist() == pytest.approx(damped, rel=1e-15)


def test_gdpo_by_hand() -> None:
    # 2 z_1 + z_2, with z_1 = (-1, 1) / sqrt(2) in a and (-1, 0, 1) in b, z_2 = (-1, -1, 2) / sqrt(3) in b.
    s = [-R2, -2 - 1 / R3, -1 / R3, R2, 2 + 2 / R3]
    assert gdpo(BY_HAND, GROUPS, WEIGHTS, eps=TINY, whiten=False).tolist() == pytest.approx(s, rel=1e-15)
    # The squares of s add up to 14 + 4 sqrt(3); over 5 - 1 rollouts the variance is 3.5 + sqrt(3).
    whitened = [x / math.sqrt(3.5 + R3) for x in s]
    assert gdpo(BY_HAND, GROUPS, WEIGHTS, eps=TINY).tolist() == pytest.approx(whitened, rel=1e-14)
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
    assert grpo(values, groups, eps=TINY).tolist() == [
        -1,
        0,
        1,
        0,
    ]  # deviation sqrt((1 + 0 + 1) / 2), over three rollouts
    s = [-1 / R2, 0, 1 / R2, 0]
    assert gdpo(values, groups, eps=TINY, whiten=False).tolist() == pytest.approx(s, rel=1e-15)
    assert gdpo(values, groups, eps=TINY).tolist() == pytest.approx([-1, 0, 1, 0], rel=1e-15)  # again over three


def test_weights_default_to_one_each_and_estimators_have_names() -> None:
    assert list(ESTIMATORS) == [
        "gdpo", "grpo", "dr_grpo", "mo_grpo", "dvao", "rvpo", "gd2po", "saw", "sa_mrpo", "corr_grpo", "dara"
    ]  # fmt: skip
    assert all(estimator.__name__ == name for name, estimator in ESTIMATORS.items())
    scores = np.array(BY_HAND) / 5
    for estimator in ESTIMATORS.values():
        default, ones = estimator(scores, GROUPS), estimator(scores, GROUPS, [1, 1])
        assert default.any()
        np.testing.assert_array_equal(default, ones)


# ---------------------------------------------------------------------------------------------- a second implementation


def slow(
    method: str, values: Sequence[Sequence[float]], groups: Sequence[Any], weights: Sequence[float], eps: float = 1e-4
) -> list[float]:
    """Every estimator in loops. `statistics` computes means of floats exactly, so a group that does not vary gives 0."""
    s = [0.0] * len(values)
    members = {group: [i for i, other in enumerate(groups) if other == group] for group in groups}
    counted = [k for k, weight in enumerate(weights) if weight]
    scored = [i for i, row in enumerate(values) if not all(math.isnan(row[k]) for k in counted)]
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
def batches(
    draw: st.DrawFn, missing: bool = True, most_groups: int = 5, lowest: float = -2, highest: float = 2
) -> Batch:
    """Interleaved groups of 1 to 9 rollouts; 1 to 4 components with many ties; string or integer ids."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=most_groups))
    name = draw(st.sampled_from([st.integers(-(2**40), 2**40), st.text(string.ascii_letters + "-é", max_size=12)]))
    ids = draw(st.lists(name, min_size=len(sizes), max_size=len(sizes), unique=True))
    groups = draw(st.permutations([name for name, size in zip(ids, sizes, strict=True) for _ in range(size)]))
    k = draw(st.integers(1, 4))
    cell = st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 0.5, 1.0]) | st.floats(lowest, highest)
    values = draw(arrays(np.float64, (len(groups), k), elements=cell | st.just(NAN) if missing else cell))
    weight = st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-3, 3)
    weights = draw(st.lists(weight, min_size=k, max_size=k).filter(any))
    return Batch(values, groups, weights)


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "gdpo, not whitened", "gdpo"])
@given(batch=batches(), eps=st.sampled_from([1e-4, 1e-2, 1.0]))
def test_equals_the_slow_implementation(method: str, batch: Batch, eps: float) -> None:
    estimator = ALL[method] if method == "dr_grpo" else functools.partial(ALL[method], eps=eps)
    expected = slow(method, batch.values.tolist(), batch.groups, batch.weights, eps)
    # Components that cancel leave sums of 1e-16 or so, which the two divisions by eps magnify.
    np.testing.assert_allclose(batch.run(estimator), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["grpo", "gdpo, not whitened", "gdpo"])
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    eps=st.sampled_from([TINY, 1e-8]),
)
def test_equals_the_slow_implementation_to_the_last_digits(
    method: str, seed: int, sizes: list[int], eps: float
) -> None:
    """Scores that do not cancel: here nothing hides behind eps, and the tolerance is that of a dozen additions."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    values = rng.uniform(0, 1, (len(groups), 1))
    values[rng.random(len(groups)) < 0.2] = NAN
    expected = slow(method, values.tolist(), groups.tolist(), [0.7], eps)
    np.testing.assert_allclose(ALL[method](values, groups, [0.7], eps=eps), expected, rtol=1e-11, atol=1e-13)


class Plain:
    """The estimators over components' z, one formula each, on lists; None stands for a missing score."""

    def __init__(self, batch: Batch, eps: float) -> None:
        self.r = [[None if math.isnan(x) else x for x in row] for row in batch.values.tolist()]
        self.w, self.eps, self.groups = batch.weights, eps, batch.members()
        self.rows, self.ks = range(len(self.r)), [k for k, weight in enumerate(batch.weights) if weight]
        self.scored = [i for i in self.rows if any(self.r[i][k] is not None for k in self.ks)]

    def scores(self, rows: Any, k: int) -> list[float]:
        return [x for i in rows if (x := self.r[i][k]) is not None]

    def centred(self, i: int, k: int) -> float:
        """0 where missing."""
        if self.r[i][k] is None:
            return 0.0
        return self.r[i][k] - statistics.mean(self.scores(self.group(i), k))

    def group(self, i: int) -> list[int]:
        return next(rows for rows in self.groups if i in rows)

    def z(self, i: int, k: int) -> float:
        return self.centred(i, k) / (deviation(self.scores(self.group(i), k)) + self.eps)

    def varies(self, rows: Any, k: int) -> bool:
        return len(set(self.scores(rows, k))) > 1

    def alive(self, i: int) -> bool:
        return i in self.scored and any(self.varies(self.group(i), k) for k in self.ks)

    def whitened(self, s: list[float], rows: list[int]) -> list[float]:
        result = [x if i in rows else 0.0 for i, x in enumerate(s)]
        normalise(result, rows, self.eps)
        return result

    def gdpo(self, w: dict[int, float]) -> list[float]:
        return self.whitened([sum(w[k] * self.z(i, k) for k in self.ks) for i in self.rows], self.scored)

    def mo_grpo(self) -> list[float]:
        return [sum(self.w[k] * self.z(i, k) for k in self.ks) for i in self.rows]

    def dvao(self) -> list[float]:
        def denominator(i: int) -> float:
            return sum(abs(self.w[k]) * deviation(self.scores(self.group(i), k)) for k in self.ks) + self.eps

        return [sum(self.w[k] * self.centred(i, k) for k in self.ks) / denominator(i) for i in self.rows]

    def rvpo(self, k: float = 1.0) -> list[float]:
        def soft_minimum(i: int) -> float:
            there = [j for j in self.ks if self.r[i][j] is not None and len(self.scores(self.group(i), j)) > 1]
            terms = [
                abs(self.w[j]) * math.exp(-k * math.copysign(self.z(i, j), self.z(i, j) * self.w[j])) for j in there
            ]
            return -math.log(math.fsum(terms) / math.fsum(abs(self.w[j]) for j in there)) / k if there else 0.0

        return [soft_minimum(i) for i in self.rows]

    def gd2po(self, soft: bool = False, tau: float = 0.2) -> list[float]:
        def keeps(i: int) -> bool:
            parts = [self.w[k] * self.z(i, k) for k in self.ks]
            conflict = max(parts) > 1e-8 and min(parts) < -1e-8
            return not (conflict and (not soft or abs(sum(parts)) / sum(map(abs, parts)) < tau))

        kept = [i for i in self.scored if keeps(i)]
        s = []
        for i, x in enumerate(self.mo_grpo()):
            there = [j for j in self.group(i) if j in self.scored]
            s.append(x * sum(j in kept for j in there) / max(len(there), 1))
        return self.whitened(s, [i for i in kept if self.alive(i)])

    def saw(self) -> list[float]:
        live = [k for k in self.ks if any(self.varies(rows, k) for rows in self.groups)]
        cv = {k: deviation(self.scores(self.rows, k)) / statistics.mean(self.scores(self.rows, k)) for k in live}
        return self.gdpo({k: self.w[k] * len(live) * cv[k] / sum(cv.values()) if k in live else 0.0 for k in self.ks})

    def sa_mrpo(self, gamma: float = 0.5) -> list[float]:
        def factor(k: int) -> float:
            return (1 - statistics.mean(self.scores(self.rows, k) or [0])) ** gamma

        return self.gdpo({k: self.w[k] * factor(k) for k in self.ks})

    def corr_grpo(self) -> list[float]:
        result = [0.0] * len(self.r)
        for rows in self.groups:
            columns = [[self.w[k] * self.centred(i, k) for i in rows] for k in self.ks]
            units = [[x / math.hypot(*column) for x in column] for column in columns if any(column)]
            rho = math.fsum(x * y for one in units for other in units for x, y in zip(one, other, strict=True))
            for n, i in enumerate(rows):
                result[i] = sum(column[n] for column in columns) / math.sqrt(max(rho, 0) + self.eps)
        return result

    def dara(self, w_max: float = 5.0, pi_ref: float | None = None, positive_only: bool = False) -> list[float]:
        groups = [rows for rows in self.groups if any(i in self.scored for i in rows)]
        pi = {k: sum(self.varies(rows, k) for rows in groups) / max(len(groups), 1) for k in self.ks}
        reference = pi_ref or max(pi.values())
        more = {k: min(w_max, math.sqrt(reference / pi[k])) if pi[k] else 0.0 for k in self.ks}
        if not positive_only:
            return self.gdpo({k: self.w[k] * more[k] for k in self.ks})
        parts = [
            [self.w[k] * self.z(i, k) * (more[k] if self.w[k] * self.z(i, k) > 0 else 1) for k in self.ks]
            for i in self.rows
        ]
        return self.whitened([sum(row) for row in parts], [i for i in self.scored if self.alive(i)])


@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        ("mo_grpo", {}),
        ("dvao", {}),
        ("rvpo", {}),
        ("rvpo", {"k": 0.01}),
        ("rvpo", {"k": 20}),
        ("gd2po", {}),
        ("gd2po", {"soft": True, "tau": 0.2137}),
        ("gd2po", {"soft": True, "tau": 0.7137}),
        ("saw", {}),
        ("sa_mrpo", {}),
        ("sa_mrpo", {"gamma": 2.5}),
        ("corr_grpo", {}),
        ("dara", {}),
        ("dara", {"w_max": 1.1}),
        ("dara", {"pi_ref": 0.3}),
        ("dara", {"positive_only": True}),
    ],
)
@some_examples
@given(batch=batches(lowest=0, highest=1), eps=st.sampled_from([1e-3, 1.0]))
def test_equals_the_plain_implementation(estimator: str, options: Any, batch: Batch, eps: float) -> None:
    expected = getattr(Plain(batch, eps), estimator)(**options)
    result = batch.run(functools.partial(ESTIMATORS[estimator], eps=eps, **options))
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------------- order of the rollouts


@every_estimator
@some_examples
@given(batch=batches(), data=st.data())
def test_permuting_rollouts_permutes_the_result(estimator: Any, batch: Batch, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(batch.groups))))
    permuted = batch.run(estimator, values=batch.values[order], groups=[batch.groups[i] for i in order])
    np.testing.assert_allclose(permuted, batch.run(estimator)[order], rtol=1e-9, atol=1e-9)


@every_estimator
@some_examples
@given(batch=batches(), data=st.data())
def test_interleaving_groups_otherwise_gives_the_same_bits(estimator: Any, batch: Batch, data: st.DataObject) -> None:
    groups = data.draw(st.permutations(batch.groups))
    next_row = {group: iter(rows) for group, rows in zip(dict.fromkeys(batch.groups), batch.members(), strict=True)}
    order = [next(next_row[group]) for group in groups]
    permuted = batch.run(estimator, values=batch.values[order], groups=groups)
    np.testing.assert_array_equal(permuted, batch.run(estimator)[order])


@every_estimator
def test_large_groups_give_the_same_bits_too(estimator: Any) -> None:
    """Numpy adds more than 8 and more than 128 numbers in other orders than a few; group by group or interleaved."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 400, 20)
    groups = np.repeat(np.arange(20), sizes)
    values = rng.random((len(groups), 3))
    order = np.argsort(rng.random(len(groups)))  # interleave, then put the rows of each group back in order
    for group in range(20):
        order[np.flatnonzero(groups[order] == group)] = np.flatnonzero(groups == group)
    assert (groups[order] != groups).any()
    np.testing.assert_array_equal(estimator(values[order], groups[order]), estimator(values, groups)[order])


# ---------------------------------------------------------------------------------------------- exact zeros


@pytest.mark.parametrize("size", [7, 8, 16])
@every_estimator
def test_a_group_that_does_not_vary_gives_exactly_zero(estimator: Any, size: int) -> None:
    """1,000 batches of 4 rewards in 4 groups: in one half of them two groups vary, in the other half none does."""
    rng = np.random.default_rng(size)
    constants = np.array([0.1, 0.3, 1 / 3, 0.7, 1e-3, 1e6 + 0.1, -2.2])
    groups = np.repeat(np.arange(4), size)
    for i in range(1000):
        values = np.repeat(rng.choice(constants, (4, 4)), size, axis=0)
        constant = groups < (2 if i % 2 else 4)
        values[~constant] = rng.random((np.count_nonzero(~constant), 4))
        rows = rng.permutation(len(groups))
        result = estimator(values[rows], groups[rows], rng.choice([0.3, 1.0, -0.7], 4))
        assert not result[constant[rows]].any()
        assert estimator in DROPPING or result[~constant[rows]].all()


def test_the_zeros_are_not_trivial() -> None:
    """The textbook's arithmetic, in the same float64, fails the test above: seven times 0.1 has another mean."""
    column = np.full(7, 0.1)
    assert (column - column.mean()).any()


@pytest.mark.parametrize("method", sorted(set(ALL) - A_CONSTANT_COUNTS))
def test_a_component_that_does_not_vary_adds_exactly_nothing(method: str) -> None:
    estimator = ALL[method]
    rng = np.random.default_rng(0)
    values, groups = rng.random((40, 1)), np.repeat(np.arange(5), 8)
    constants = np.repeat(rng.choice([0.1, 0.3, 1 / 3], (5, 2)), 8, axis=0)
    with_constants = estimator(np.hstack([constants[:, :1], values, constants[:, 1:]]), groups)
    np.testing.assert_array_equal(with_constants, estimator(values, groups))


@every_estimator
def test_a_group_of_one_gets_exactly_zero(estimator: Any) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((9, 3))
    values[1, 0] = NAN
    result = estimator(values, ["alone", "one", *["many"] * 7])
    assert not result[:2].any()
    assert estimator in DROPPING or result[2:].all()
    assert not estimator(values, range(9)).any()
    assert not estimator(values[:1], ["alone"]).any()


@pytest.mark.parametrize("method", sorted(set(ALL) - READS_THE_MEAN))
def test_a_component_with_one_score_in_its_group_adds_nothing(method: str) -> None:
    """One score has neither a mean to differ from nor a deviation."""
    rng = np.random.default_rng(0)
    values, groups = rng.random((16, 2)), np.repeat([0, 1], 8)
    values[:8, 1] = NAN
    none = ALL[method](values, groups)
    values[3, 1] = 0.9
    np.testing.assert_array_equal(ALL[method](values, groups), none)
    assert none[:8].all()


@pytest.mark.parametrize("eps", [TINY, 1e-6])
def test_a_tiny_eps_divides_nothing_by_zero(eps: float) -> None:
    values = [[0.1], [0.1], [0.1], [0.3], [0.5], [0.4]]
    for estimator in (grpo, gdpo, unwhitened):
        result = estimator(values, [0, 0, 0, 1, 1, 2], eps=eps)
        assert np.flatnonzero(result).tolist() == [3, 4]
        assert not estimator([[0.1], [0.1], [0.1]], [0, 0, 0], eps=eps).any()


# ---------------------------------------------------------------------------------------------- missing scores


@st.composite
def batches_and_a_cell(draw: st.DrawFn) -> tuple[Batch, np.ndarray, list[int]]:
    """A batch, its scores with one cell more missing, and the rows that are not of that cell's group."""
    batch = draw(batches().filter(lambda batch: len(set(batch.groups)) > 1))
    row = draw(st.integers(0, len(batch.values) - 1))
    column = draw(st.integers(0, batch.values.shape[1] - 1))
    assume(not math.isnan(batch.values[row, column]))
    values = batch.values.copy()
    values[row, column] = NAN
    return batch, values, [i for i, group in enumerate(batch.groups) if group != batch.groups[row]]


@every_estimator
@some_examples
@given(batch=batches())
def test_a_weight_of_zero_is_as_good_as_no_component(estimator: Any, batch: Batch) -> None:
    column = np.linspace(0, 1, len(batch.values))[:, None]
    more = estimator(np.hstack([batch.values, column]), batch.groups, [*batch.weights, 0.0])
    np.testing.assert_array_equal(more, batch.run(estimator))


@every_per_group_estimator
@some_examples
@given(case=batches_and_a_cell())
def test_a_missing_cell_changes_no_other_group(estimator: Any, case: Any) -> None:
    batch, values, others = case
    np.testing.assert_array_equal(batch.run(estimator, values=values)[others], batch.run(estimator)[others])


@some_examples
@given(case=batches_and_a_cell())
def test_a_missing_cell_changes_other_groups_by_one_factor_in_whitened_gdpo(case: Any) -> None:
    batch, values, others = case
    before, after = batch.run(gdpo)[others], batch.run(gdpo, values=values)[others]
    np.testing.assert_array_equal(after == 0, before == 0)
    if before.any():
        largest = np.argmax(np.abs(before))
        factor = after[largest] / before[largest]
        assert factor > 0
        np.testing.assert_allclose(after, before * factor, rtol=1e-12)


@pytest.mark.parametrize("method", [*PER_GROUP, "gdpo"])
def test_a_missing_cell_does_change_its_own_group(method: str) -> None:
    """Its group's mean moves, and the rollout itself stands at the mean: it is not read as a score of 0."""
    values, groups = np.array([[0.9], [0.8], [0.7], [0.2]]), [0] * 4
    missing = np.array([[0.9], [0.8], [0.7], [NAN]])
    before, after = ALL[method](values, groups), ALL[method](missing, groups)
    assert before[3] < 0
    assert after[3] == 0
    assert after[2] < 0 < before[2]  # 0.7 was above the mean of 0.65 and is below the mean of 0.8


@every_estimator
@some_examples
@given(batch=batches(), data=st.data())
def test_a_rollout_without_any_score_is_as_if_not_there(estimator: Any, batch: Batch, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.integers(0, len(batch.groups) - 1), min_size=1))
    kept = [i for i in range(len(batch.groups)) if i not in gone]
    values = batch.values.copy()
    values[list(gone)] = NAN
    result = batch.run(estimator, values=values)
    assert not result[list(gone)].any()
    without = batch.run(estimator, values=values[kept], groups=[batch.groups[i] for i in kept])
    np.testing.assert_allclose(result[kept], without, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------- shift, scale, sum


@pytest.mark.parametrize("method", sorted(set(ALL) - READS_THE_MEAN))
@some_examples
@given(batch=batches(), data=st.data())
def test_a_constant_added_to_a_component_of_a_group_changes_nothing(
    method: str, batch: Batch, data: st.DataObject
) -> None:
    rows = data.draw(st.sampled_from(batch.members()))
    column = data.draw(st.integers(0, batch.values.shape[1] - 1))
    original = batch.values
    if "corr" in method or "dara" in method or "gd2po" in method:
        original = np.round(
            original, 6
        )  # whether scores differ matters to them, however little: adding may not undo it
    values = original.copy()
    values[rows, column] += data.draw(st.floats(-5, 5))
    # Adding rounds scores off by up to 1e-15, which the two divisions by eps = 1e-4 may magnify to 1e-7.
    before, after = (batch.run(ALL[method], values=each) for each in (original, values))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


@some_examples
@given(seed=st.integers(0, 2**32 - 1), column=st.integers(0, 2))
def test_a_larger_scale_wins_grpo_and_not_gdpo(seed: int, column: int) -> None:
    rng = np.random.default_rng(seed)
    values, groups = rng.standard_normal((32, 3)), np.repeat(np.arange(4), 8)
    scaled = values.copy()
    scaled[:, column] *= 5
    change = {
        name: np.abs(ALL[name](scaled, groups) - ALL[name](values, groups)).max()
        for name in ("grpo", "dr_grpo", "gdpo", "gdpo, not whitened")
    }
    assert change["gdpo"] < 0.01  # eps is 1e-4 beside deviations of about 1
    assert change["gdpo, not whitened"] < 0.01
    assert change["grpo"] > 0.3
    assert change["dr_grpo"] > 0.3


@pytest.mark.parametrize("method", sorted(set(ALL) - NOT_CENTRED))
@some_examples
@given(batch=batches())
def test_advantages_of_a_group_add_up_to_zero(method: str, batch: Batch) -> None:
    """The reason why gdpo has no batch mean to subtract. It holds with missing scores too."""
    result = batch.run(ALL[method])
    for rows in batch.members():
        assert abs(result[rows].sum()) < 1e-7
    assert abs(result.sum()) < 1e-7


@some_examples
@given(batch=batches())
def test_whitened_gdpo_has_the_deviation_it_should(batch: Batch) -> None:
    """std / (std + eps), so 1 in practice, over the rollouts that have a score."""
    scored = ~np.isnan(batch.values[:, np.asarray(batch.weights) != 0]).all(axis=1)
    assume(np.count_nonzero(scored) > 1)
    std = np.std(batch.run(unwhitened)[scored], ddof=1)
    assert np.std(batch.run(gdpo)[scored], ddof=1) == pytest.approx(std / (std + 1e-4), abs=1e-7)


def test_two_equal_weights_with_a_constant_sum_cancel_in_gdpo_as_in_grpo() -> None:
    """Not what is often said of GDPO; it takes unequal weights, or a third component, to tell such rollouts apart."""
    rng = np.random.default_rng(0)
    first, groups = rng.random(40), np.repeat(np.arange(5), 8)
    values = np.column_stack([first, np.repeat(rng.random(5), 8) - first])
    for estimator in (grpo, dr_grpo, gdpo, mo_grpo, dvao, corr_grpo, dara):
        np.testing.assert_allclose(estimator(values, groups), 0, atol=1e-9)
        assert np.abs(estimator(values, groups, [2, 1])).max() > 0.1
    seldom = [[0.0, 1.0], [1.0, 0.0], [0.0, 0.5], [1.0, 0.5]]  # dara weighs what varies in fewer groups more
    assert np.abs(dara(seldom, [0, 0, 1, 1])[:2]).min() > 0.1
    np.testing.assert_allclose(gdpo(seldom, [0, 0, 1, 1])[:2], 0, atol=1e-9)


def test_a_group_of_rvpo_adds_up_to_more_than_zero_only_with_missing_scores() -> None:
    assert rvpo([[1.0, np.nan], [0.0, 1.0], [0.0, 0.0]], [0, 0, 0]).sum() > 0.1
    assert rvpo([[1.0, 0.5], [0.0, 1.0], [0.0, 0.0]], [0, 0, 0]).sum() < 0


# ---------------------------------------------------------------------------------------------- what each one is for


@pytest.mark.parametrize(
    "method", ["gdpo", "mo_grpo", "rvpo", "rvpo, k = 50", "gd2po", "gd2po, soft", "saw", "dara", "dara, positive only"]
)
@some_examples
@given(seed=st.integers(0, 2**32 - 1), factor=st.sampled_from([0.01, 0.5, 7.0, 300.0]))
def test_the_scale_of_a_component_does_not_matter(method: str, seed: int, factor: float) -> None:
    estimator = functools.partial(saw if method == "saw" else ALL[method], eps=TINY)
    values = np.random.default_rng(seed).random((24, 3))
    scaled = values * [1, factor, 1]
    groups = np.repeat(np.arange(4), 6)
    np.testing.assert_allclose(estimator(scaled, groups), estimator(values, groups), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["grpo", "dvao"])
@some_examples
@given(seed=st.integers(0, 2**32 - 1), factor=st.sampled_from([0.01, 0.5, 7.0, 300.0]))
def test_the_scale_of_all_does_not_matter(method: str, seed: int, factor: float) -> None:
    values, groups = np.random.default_rng(seed).random((24, 3)), np.repeat(np.arange(4), 6)
    both = [ALL[method](each, groups, eps=TINY) for each in (values, values * factor)]
    np.testing.assert_allclose(*both, rtol=1e-9, atol=1e-9)


@every_estimator
@some_examples
@given(batch=batches())
def test_a_component_without_any_score_is_as_if_not_there(estimator: Any, batch: Batch) -> None:
    nothing = np.full((len(batch.values), 1), NAN)
    more = estimator(np.hstack([nothing, batch.values]), batch.groups, [2.0, *batch.weights])
    np.testing.assert_array_equal(more, batch.run(estimator))


@pytest.mark.parametrize("method", sorted(OVER_THE_BATCH))
def test_these_do_see_the_other_groups(method: str) -> None:
    values, groups = np.random.default_rng(3).random((24, 2)), np.repeat(np.arange(3), 8)
    other = values.copy()
    other[16:] = values[16:] ** 3
    other[16:, 0] = 0.5
    assert (ALL[method](other, groups)[:16] != ALL[method](values, groups)[:16]).any()


def test_what_a_constant_component_does_in_rvpo() -> None:
    """z = 0 is one of two: A = -ln((exp(-z) + 1) / 2), not -ln(exp(-z)) = z, as where the component is missing."""
    alone, groups = np.array([[0.0], [1.0]]), [0, 0]
    z = np.array([-1, 1]) / R2
    np.testing.assert_allclose(rvpo(alone, groups, eps=TINY), z, rtol=1e-12)
    constant = rvpo(np.hstack([alone, [[0.3], [0.3]]]), groups, eps=TINY)
    np.testing.assert_allclose(constant, -np.log((np.exp(-z) + 1) / 2), rtol=1e-12)
    assert constant.sum() < -0.1
    for second in ([[NAN], [NAN]], [[0.3], [NAN]]):  # nothing, or nothing to compare with
        np.testing.assert_allclose(rvpo(np.hstack([alone, second]), groups, eps=TINY), z, rtol=1e-12)


@given(batch=batches(), k=st.sampled_from([0.01, 1.0, 30.0, 1e6]))
def test_rvpo_lies_between_the_smallest_z_and_their_mean(batch: Batch, k: float) -> None:
    batch = Batch(batch.values, batch.groups, [1.0] * batch.values.shape[1])
    plain = Plain(batch, 1e-4)
    for i, value in enumerate(batch.run(functools.partial(rvpo, k=k))):
        zs = [
            plain.z(i, j)
            for j in plain.ks
            if batch.values[i, j] == batch.values[i, j] and len(plain.scores(plain.group(i), j)) > 1
        ]
        low, mean = (min(zs), statistics.mean(zs)) if zs else (0.0, 0.0)
        assert low - 1e-9 <= value <= mean + 1e-9
        if k == 1e6:
            assert value == pytest.approx(low, abs=1e-5)
        if k == 0.01:
            assert value == pytest.approx(mean, abs=0.1)


def test_a_failed_judge_costs_a_good_rollout_nothing_in_rvpo() -> None:
    values = np.array([[0.9, 0.9], [0.5, 0.5], [0.1, 0.1]])
    values[0, 1] = NAN
    assert rvpo(values, [0, 0, 0], k=1e3)[0] == pytest.approx(1.0, abs=1e-3)  # its z in the first, not min(z, 0)


def test_gd2po_by_hand() -> None:
    # Group a: z = (-1, -1), (0, 0), (1, 1). Group b: (-1, 0), (0, -1), (1, 1). Group c: (-1, 1), (0, -1), (1, 0):
    # its first rollout is dropped, and its share is 2 / 3. A z of 0 disagrees with nothing.
    a, b, c = [[0, 0], [1, 1], [2, 2]], [[0, 1], [1, 0], [2, 2]], [[0, 2], [1, 0], [2, 1]]
    s = np.array([-2, 0, 2, -1, -1, 2, 0, -2 / 3, 2 / 3])
    kept = np.array([True] * 6 + [False, True, True])
    expected = np.where(kept, s - s[kept].mean(), 0) / s[kept].std(ddof=1)
    np.testing.assert_allclose(gd2po([*a, *b, *c], list("aaabbbccc"), eps=TINY), expected, rtol=1e-12, atol=1e-12)
    # Soft: |sum| / sum of sizes is 0 < 0.2 for the dropped one; with weight 2 on its first it is 1 / 3, so it is kept.
    soft = functools.partial(gd2po, soft=True, eps=TINY)
    np.testing.assert_allclose(soft([*a, *b, *c], list("aaabbbccc")), expected, rtol=1e-12, atol=1e-12)
    assert soft(c, [0] * 3, [2, 1])[0] < 0
    assert not soft(c, [0] * 3, [2, 1], tau=0.34)[0]


def test_gd2po_without_conflict_and_dara_without_sparse_components_are_gdpo() -> None:
    rng = np.random.default_rng(0)
    first, groups = rng.random(24), np.repeat(np.arange(4), 6)
    together = np.column_stack([first, first * 0.3 + 0.1])
    np.testing.assert_allclose(gd2po(together, groups), gdpo(together, groups), rtol=1e-9)
    values = rng.random((24, 2))
    for estimator in (dara, dara_positive, functools.partial(sa_mrpo, gamma=0)):
        np.testing.assert_allclose(estimator(values, groups), gdpo(values, groups), rtol=1e-9, atol=1e-12)


def test_gd2po_with_all_dropped_is_all_zero() -> None:
    first = np.random.default_rng(0).random(16)
    assert not gd2po(np.column_stack([first, 1 - first]), [0] * 8 + [1] * 8).any()


def test_saw_leaves_a_component_that_is_always_zero_at_zero() -> None:
    values = [[0.0, 0.1], [0.0, 0.9], [0.0, 0.4], [0.0, 0.8]]
    np.testing.assert_allclose(saw(values, [0, 0, 1, 1]), gdpo(values, [0, 0, 1, 1]), rtol=1e-12)


def test_corr_grpo_by_hand() -> None:
    # Centred (-1, 0, 1) and (2, -1, -1): rho = -3 / (sqrt(2) sqrt(6)) = -sqrt(3) / 2 off the diagonal.
    divisor = math.sqrt(2 - R3)
    np.testing.assert_allclose(corr_grpo([[0, 4], [1, 1], [2, 1]], [0] * 3, eps=TINY), np.array([1, -1, 0]) / divisor)
    # A negative weight turns the sign of rho.
    turned = np.array([-3, 1, 2]) / math.sqrt(2 + R3)
    np.testing.assert_allclose(corr_grpo([[0, 4], [1, 1], [2, 1]], [0] * 3, [1, -1], eps=TINY), turned)
    # One component alone is not divided by its deviation; a missing score stands at the mean.
    np.testing.assert_allclose(corr_grpo([[0.0], [4.0], [NAN]], [0] * 3, eps=TINY), [-2, 2, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (functools.partial(rvpo, k=0), "k: got 0, expected a finite number > 0"),
        (functools.partial(rvpo, k=math.inf), "k: got inf, expected a finite number > 0"),
        (functools.partial(gd2po, tau=1.5), r"tau: got 1.5, expected a number in \[0, 1\]"),
        (functools.partial(gd2po, tau=NAN), "tau: got nan"),
        (functools.partial(sa_mrpo, gamma=-1), "gamma: got -1, expected a finite number >= 0"),
        (functools.partial(sa_mrpo, bounds=(1, 1)), r"bounds: got \(1, 1\), expected \(low, high\) with low < high"),
        (
            functools.partial(sa_mrpo, bounds=(0.0, 0.5)),
            r"values\[1, 0\]: got 1.0, expected a score within the bounds 0.0 to 0.5",
        ),
        (functools.partial(dara, w_max=0), "w_max: got 0, expected a finite number > 0"),
        (functools.partial(dara, pi_ref=0), "pi_ref: got 0, expected a number > 0 and <= 1, or None"),
        (functools.partial(dara, pi_ref=1.5), "pi_ref: got 1.5"),
    ],
)
def test_refused_options(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call([[0.0], [1.0]], [0, 0])


def test_saw_refuses_scores_below_zero() -> None:
    with pytest.raises(ValueError, match=r"values\[1, 0\]: got -0.25, expected a score >= 0: SAW divides by the mean"):
        saw([[0.5], [-0.25]], [0, 0])


def test_the_examples_in_the_docstrings() -> None:
    done = doctest.testmod(advantage)
    assert (done.failed, done.attempted >= 2 * len(ESTIMATORS)) == (0, True)


# ---------------------------------------------------------------------------------------------- numpy and torch


@every_estimator
@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.int64, torch.float32),
    ],
)
def test_torch_in_torch_out(estimator: Any, given: torch.dtype, returned: torch.dtype) -> None:
    values = torch.tensor([[0, 3], [1, 1], [2, 2], [4, 0], [1, 5], [0, 1]]).to(given)
    groups = torch.tensor([5, 9, 5, 9, 5, 9])
    weights = torch.tensor([0.5, 2.0])
    result = estimator(values, groups, weights)
    assert isinstance(result, torch.Tensor)
    assert result.dtype == returned
    assert result.device == values.device
    in_numpy = estimator(values.double().numpy(), groups.numpy(), weights.numpy())
    assert in_numpy.any() if estimator in DROPPING else in_numpy.all()
    np.testing.assert_array_equal(result.numpy(), torch.from_numpy(in_numpy).to(returned).numpy())


def test_what_an_array_masks_is_missing() -> None:
    masked = np.ma.masked_invalid([[0.5, NAN], [NAN, NAN], [1.0, 0.5], [0.0, 0.25]])
    np.testing.assert_array_equal(gdpo(masked, [0] * 4), gdpo(masked.filled(NAN), [0] * 4))


def test_torch_with_gradients_missing_scores_and_no_rows() -> None:
    values = torch.tensor([[0.5, NAN], [NAN, NAN], [1.0, 0.5], [0.0, 0.25]], requires_grad=True)
    result = gdpo(values, ["a"] * 4)
    assert not result.requires_grad
    assert result[1] == 0
    assert result.isfinite().all()
    assert gdpo(torch.zeros(0, 2), []).shape == (0,)
    assert gdpo(torch.full((7, 4), 0.1), [0] * 7).eq(0).all()


@every_estimator
def test_lists_arrays_and_kinds_of_ids_give_the_same(estimator: Any) -> None:
    expected = estimator(np.array(BY_HAND, float), np.array(GROUPS), np.array(WEIGHTS))
    assert expected.dtype == np.float64
    for groups in (GROUPS, np.array(GROUPS, object), [0, -3, -3, 0, -3], np.array([4, 2, 2, 4, 2], np.uint8)):
        np.testing.assert_array_equal(estimator(BY_HAND, groups, WEIGHTS), expected)
    np.testing.assert_array_equal(estimator([[1.0, None], [2, 0.5]], [0, 0]), estimator([[1, NAN], [2, 0.5]], [0, 0]))


@every_estimator
def test_the_given_arrays_stay_as_they_are(estimator: Any) -> None:
    values, groups, weights = np.array(BY_HAND, float), np.array(GROUPS), np.array(WEIGHTS, float)
    values[0, 0] = NAN
    copies = values.copy(), groups.copy(), weights.copy()
    result = estimator(values, groups, weights)
    result += 1  # nor is the result a view of them
    for array, copy in zip((values, groups, weights), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_neither_import_nor_numpy_input_loads_torch() -> None:
    script = (
        "import sys, capreward.advantage as a; a.gdpo([[1], [2]], [0, 0]);"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


# ---------------------------------------------------------------------------------------------- refusals


@every_estimator
@pytest.mark.parametrize(
    ("values", "groups", "weights", "message"),
    [
        ([1.0, 2.0], [0, 0], None, r"values: got shape \(2,\), expected \[B, K\]"),
        (np.zeros((2, 2, 1)), [0, 0], None, r"values: got shape \(2, 2, 1\)"),
        ([[1.0], [2.0]], [0], None, r"groups: got shape \(1,\), expected \(2,\)"),
        ([[1.0], [2.0]], [[0], [0]], None, r"groups: got shape \(2, 1\), expected \(2,\)"),
        ([[1.0], [2.0]], [0.0, NAN], None, "groups: got ids of type float64, expected integers or strings"),
        ([[1.0, 2.0], [0.0, math.inf]], [0, 0], None, r"values\[1, 1\]: got inf"),
        ([[1.0, 2.0], [-math.inf, 0.0]], [0, 0], None, r"values\[1, 0\]: got -inf"),
        ([[1.0], [2.0]], [0, 0], [1, 1], r"weights: got shape \(2,\), expected \(1,\)"),
        ([[1.0], [2.0]], [0, 0], 1.0, r"weights: got shape \(\), expected \(1,\)"),
        ([[1.0, 1.0], [2.0, 1.0]], [0, 0], [1, NAN], "weights: got .*nan.*, expected finite"),
        ([[1.0, 1.0], [2.0, 1.0]], [0, 0], [math.inf, 1], "weights: got .*inf.*, expected finite"),
        ([[1.0, 1.0], [2.0, 1.0]], [0, 0], [0, 0], "weights: all are zero"),
    ],
)
def test_refused(estimator: Any, values: Any, groups: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator(values, groups, weights)


@pytest.mark.parametrize("eps", [0.0, -1e-9, NAN, math.inf])
@pytest.mark.parametrize("estimator", [estimator for name, estimator in ALL.items() if name != "dr_grpo"])
def test_refused_eps(estimator: Any, eps: float) -> None:
    with pytest.raises(ValueError, match=r"eps: got .*, expected a finite number > 0"):
        estimator([[1.0], [2.0]], [0, 0], eps=eps)


@every_estimator
def test_nothing_in_nothing_out(estimator: Any) -> None:
    empty = estimator(np.zeros((0, 3)), [])
    assert empty.shape == (0,)
    assert empty.dtype == np.float64
    assert estimator(np.zeros((0, 3)), np.zeros(0, "U4"), [1, 2, 3]).shape == (0,)
    assert estimator(np.zeros((2, 0)), [0, 0]).tolist() == [0, 0]


# ---------------------------------------------------------------------------------------------- varies


def test_varies_by_hand() -> None:
    values = [[0.1, 1.0], [0.5, NAN], [0.1, 2.0], [0.1, NAN], [0.5, 3.0]]
    groups = ["z", "a", "z", "z", "a"]
    # z: (0.1, 0.1, 0.1) and (1, 2, -); a: (0.5, 0.5) and (-, 3). z comes first since it appears first.
    assert varies(values, groups).tolist() == [[False, True], [False, False]]
    assert varies(np.zeros((0, 2)), []).shape == (0, 2)
    assert varies(np.zeros((3, 0)), [1, 1, 2]).shape == (2, 0)


@given(batch=batches())
def test_varies_counts_the_different_scores(batch: Batch) -> None:
    expected = [
        [
            len({x for x in batch.values[rows, k].tolist() if not math.isnan(x)}) > 1
            for k in range(batch.values.shape[1])
        ]
        for rows in batch.members()
    ]
    result = varies(batch.values, batch.groups)
    assert result.dtype == bool
    assert result.tolist() == expected


@given(batch=batches())
def test_a_group_in_which_nothing_varies_has_no_advantage(batch: Batch) -> None:
    moved = varies(batch.values, batch.groups).any(axis=1)
    for estimator in ALL.values():
        result = batch.run(estimator)
        for rows, group_moved in zip(batch.members(), moved, strict=True):
            assert group_moved or not result[rows].any()


# ---------------------------------------------------------------------------------------------- spread and follows


def test_spread_by_hand() -> None:
    # variances in a and b: 2 and 1; 0 and 3
    assert spread(BY_HAND, GROUPS).tolist() == pytest.approx([math.sqrt(1.5), math.sqrt(1.5)], rel=1e-15)
    # (1, 3, -), (0, -, -): a group with fewer than two scores does not count, one that does not vary does
    values = [[1, NAN, 5, NAN], [3, NAN, NAN, 5], [NAN, NAN, 5, 5], [0, 1, 5, 5], [NAN, NAN, 5, 5], [NAN, NAN, 7, 5]]
    found = spread(values, [0, 0, 0, 1, 1, 1])
    assert found.tolist() == pytest.approx([R2, NAN, math.sqrt(4 / 3 / 2), 0], nan_ok=True)
    assert np.isnan(spread(BY_HAND, list("abcde"))).all()


def test_follows_by_hand() -> None:
    # The advantages (-2, 2) and (-3, -1, 4), against (-1, 1) and (-1, 0, 1), and (0, 0) and (-1, -1, 2).
    a = dr_grpo(BY_HAND, GROUPS, WEIGHTS)
    expected = [11 / math.sqrt(34 * 4), 12 / math.sqrt(34 * 6)]
    assert follows(a, BY_HAND, GROUPS).tolist() == pytest.approx(expected, rel=1e-14)
    assert follows(-3 * a, BY_HAND, GROUPS).tolist() == pytest.approx([-x for x in expected], rel=1e-14)
    assert follows(a + np.where(np.array(GROUPS) == "a", 2, 7), BY_HAND, GROUPS).tolist() == pytest.approx(expected)


def test_follows_over_the_rollouts_that_have_the_score() -> None:
    # The advantage less its mean over the first three: (-1, 0, 1), against (0, -1, 1).
    values, a = [[1, NAN], [0, NAN], [2, NAN], [NAN, 3], [5, 4]], [1, 2, 3, 90, 80]
    found = follows(a, values, [0, 0, 0, 0, 1])
    assert found.tolist() == pytest.approx([0.5, NAN], nan_ok=True)


@pytest.mark.parametrize(
    ("advantages", "column"),
    [
        ([1, 2, 3, 4], [0.1] * 4),  # the component varies in no group
        ([1, 2, 3, 4], [0.1, 0.1, 0.7, 0.7]),
        ([1, 2, 3, 4], [0.1, NAN, NAN, 0.7]),
        ([1, 2, 3, 4], [NAN] * 4),
        ([0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]),  # the advantage does in none
        ([7, 7, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]),
        ([1e-12, -1e-12, 0, 0], [0.1, 0.2, 0.3, 0.4]),
        ([3, 3, 1, 2], [0.1, 0.2, NAN, 0.4]),  # not over the rollouts that have the score
    ],
)
def test_follows_nothing(advantages: list[float], column: list[float]) -> None:
    values = np.column_stack([column, [0.0, 1.0, 2.0, 4.0]])
    first, second = follows(advantages, values, [0, 0, 1, 1])
    assert math.isnan(first)
    assert math.isnan(second) == (np.ptp(advantages[:2]) < 1e-9 and np.ptp(advantages[2:]) < 1e-9)


def test_follows_is_zero_and_not_nan_where_each_varies_in_groups_of_its_own() -> None:
    assert follows([1, 2, 0, 0], [[0.5], [0.5], [0.1], [0.9]], [0, 0, 1, 1]).tolist() == [0]


def test_advantages_that_cancel_follow_nothing() -> None:
    first = np.random.default_rng(0).random(16)
    values, groups = np.column_stack([first, 1 - first]), np.repeat([0, 1], 8)
    for estimator in (grpo, dr_grpo, gdpo):
        assert np.isnan(follows(estimator(values, groups), values, groups)).all()


@st.composite
def batches_with_advantages(draw: st.DrawFn) -> tuple[Batch, np.ndarray]:
    """To six digits, so that no difference is rounding noise."""
    batch = draw(batches())
    a = draw(arrays(np.float64, len(batch.groups), elements=st.sampled_from([0.0, 1.0]) | st.floats(-3, 3)))
    return Batch(np.round(batch.values, 6), batch.groups, batch.weights), np.round(a, 6)


def exactly_centred(numbers: Sequence[float]) -> list[Fraction]:
    fractions = [Fraction(x) for x in numbers]
    return [x - sum(fractions) / len(fractions) for x in fractions]


@given(drawn=batches_with_advantages())
def test_spread_and_follows_equal_fractions(drawn: tuple[Batch, np.ndarray]) -> None:
    batch, a = drawn
    spreads, correlations = spread(batch.values, batch.groups), follows(a, batch.values, batch.groups)
    assert spreads.dtype == correlations.dtype == np.float64
    for k, column in enumerate(batch.values.T.tolist()):
        variances, xs, ys = [], [], []
        for rows in batch.members():
            there = [i for i in rows if not math.isnan(column[i])]
            x = exactly_centred([column[i] for i in there])
            variances += [sum(c * c for c in x) / (len(x) - 1)] if len(x) > 1 else []
            xs += x
            ys += exactly_centred([a[i] for i in there])
        expected = math.sqrt(sum(variances) / len(variances)) if variances else NAN
        assert spreads[k] == pytest.approx(expected, rel=1e-9, nan_ok=True)
        squares = float(sum(x * x for x in xs) * sum(y * y for y in ys))
        expected = float(sum(x * y for x, y in zip(xs, ys, strict=True))) / math.sqrt(squares) if squares else NAN
        assert correlations[k] == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert not abs(correlations[k]) > 1


@pytest.mark.parametrize("estimator", [grpo, gdpo, rvpo, gd2po])
def test_follows_is_pearsons_correlation_of_what_is_centred(estimator: Any) -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.random((60, 3)), rng.integers(0, 9, 60)
    values[rng.random(values.shape) < 0.2] = NAN
    a = estimator(values, groups)
    for k, found in enumerate(follows(a, values, groups)):
        frame = pd.DataFrame({"a": a, "r": values[:, k], "group": groups}).dropna()
        centred = frame[["a", "r"]] - frame.groupby("group")[["a", "r"]].transform("mean")
        assert found == pytest.approx(scipy.stats.pearsonr(centred["a"], centred["r"]).statistic, rel=1e-12)


@given(drawn=batches_with_advantages(), data=st.data())
def test_spread_and_follows_are_blind_to_the_order_of_groups(
    drawn: tuple[Batch, np.ndarray], data: st.DataObject
) -> None:
    batch, a = drawn
    groups = data.draw(st.permutations(batch.groups))
    next_row = {group: iter(rows) for group, rows in zip(dict.fromkeys(batch.groups), batch.members(), strict=True)}
    order = [next(next_row[group]) for group in groups]
    values = batch.values[order]
    np.testing.assert_array_equal(spread(values, groups), spread(batch.values, batch.groups))
    np.testing.assert_array_equal(follows(a[order], values, groups), follows(a, batch.values, batch.groups))


@some_examples
@given(seed=st.integers(0, 2**32 - 1), column=st.integers(0, 2))
def test_grpo_follows_the_scale_of_a_component_and_gdpo_does_not(seed: int, column: int) -> None:
    rng = np.random.default_rng(seed)
    values, groups = rng.standard_normal((64, 3)), np.repeat(np.arange(8), 8)
    scaled = values.copy()
    scaled[:, column] *= 5
    grpos, gdpos = (
        [follows(estimator(each, groups), each, groups) for each in (values, scaled)] for estimator in (grpo, gdpo)
    )
    np.testing.assert_allclose(gdpos[1], gdpos[0], atol=1e-3)
    assert grpos[1][column] > max(0.85, grpos[0][column])
    np.testing.assert_allclose(spread(scaled, groups)[column], 5 * spread(values, groups)[column])


def test_tiny_and_huge_numbers_follow_too() -> None:
    values = np.array([[1e-200, 1e200], [0.0, 0.0], [0.0, 0.0], [1e-200, 1e200]])
    assert follows([1e190, 0, 0, 1e190], values, [0, 0, 1, 1]).tolist() == [1, 1]


def test_spread_and_follows_of_tensors_lists_and_nothing() -> None:
    a = torch.tensor([0.5, -1.0, 0.25, 2.0, 0.0], requires_grad=True)
    values = torch.tensor(BY_HAND, dtype=torch.float32)
    assert follows(a, values, GROUPS).tolist() == follows(a.tolist(), BY_HAND, GROUPS).tolist()
    assert spread(values, GROUPS).tolist() == spread(BY_HAND, GROUPS).tolist()
    for rows, k in ((0, 2), (2, 0)):
        empty = np.zeros((rows, k)), [0] * rows
        assert spread(*empty).shape == follows([0] * rows, *empty).shape == (k,)


@pytest.mark.parametrize(
    ("advantages", "message"),
    [
        ([1.0], r"advantages: got shape \(1,\), expected \(2,\): one for each rollout"),
        ([[1.0], [2.0]], r"advantages: got shape \(2, 1\)"),
        ([1.0, NAN], r"advantages\[1\]: got nan, expected a finite number"),
        ([-math.inf, 1.0], r"advantages\[0\]: got -inf"),
    ],
)
def test_follows_refuses(advantages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        follows(advantages, [[0.0], [1.0]], [0, 0])


@pytest.mark.parametrize("measure", [spread, functools.partial(follows, [1.0, 2.0])])
def test_spread_and_follows_refuse_what_estimators_do(measure: Any) -> None:
    with pytest.raises(ValueError, match=r"values\[0, 1\]: got inf"):
        measure([[0.0, math.inf], [0.0, 0.0]], [0, 0])
    with pytest.raises(ValueError, match=r"groups: got shape"):
        measure([[0.0], [0.0]], [0])
