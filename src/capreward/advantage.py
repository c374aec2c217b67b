"""Advantages from group-relative rewards: pure functions on float64 numpy that import nothing of ours but `groups`.

Every estimator has the signature ``(values[B, K], groups[B], weights[K]=None, *, eps, ...) -> advantages[B]`` for B
rollouts and K components. They share four rules:

- A missing score is NaN. It leaves its group's mean and deviation and adds 0; it is never read as a reward of 0.
  A rollout with no score at all gets exactly 0.
- A component that does not vary in a group adds exactly 0 there, with no rounding noise: scores are first measured from
  the group's largest score, so equal scores become exact zeros before any mean is taken. A group in which none varies
  gets exactly 0. (`rvpo` takes a mean over components, in which that 0 counts.)
- Groups are whatever shares an id: they may differ in size and be interleaved. A group of one gets exactly 0.
- The same bits come out however groups are ordered or interleaved, as long as the order inside each group is kept.

Numpy in, numpy out (float64). A torch tensor in, a torch tensor out on its device and in its floating dtype (at least
float32); the arithmetic runs in float64 on the host all the same.

Below, ``z_k = (r_k - mean_group(r_k)) / (std_group(r_k) + eps)``, ddof 1, as in `gdpo`. "Second hand" marks a formula
that was taken from descriptions of a paper; what they leave open, and what was chosen here, stands in the docstring.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from capreward.groups import Batch, Float, to_numpy

SIGN = 1e-8
"""From this size on a weighted z has a sign for `gd2po`: less is the rounding noise of a score at its group's mean."""
NOISE = 1e-9
"""Up to this far from their group's mean, advantages are at it for `follows`: what is left of sums that cancel."""


class Estimator(Protocol):
    """``(values[B, K], groups[B], weights[K]) -> advantages[B]``."""

    def __call__(self, values: Any, groups: Any, weights: Any = None) -> Any: ...


def grpo(values: Any, groups: Any, weights: ArrayLike | None = None, *, eps: float = 1e-4) -> Any:
    """GRPO: sum the weighted scores, then normalise the sum within its group.

    ``A = (s - mean_group(s)) / (std_group(s) + eps)`` with ``s = sum_k w_k r_k`` and ddof 1
    (DeepSeekMath, arXiv 2402.03300).

    Where scores are missing, each component is centred on the scores that its group does have, so a missing score
    stands at its group's mean; with nothing missing this is the textbook formula.

    Args:
        values: scores, shape [B, K]; NaN means missing. Infinite scores are refused.
        groups: group id of each rollout, shape [B]: integers or strings.
        weights: one finite weight a component, shape [K]; 1 each when left out. Not all may be zero.
        eps: added to the deviation, in units of the weighted score.

    Returns:
        Advantages, shape [B]; exactly 0 for a group of one and for a rollout with no score.

    Raises:
        ValueError: shapes that do not match, infinite scores, unusable weights or eps.

    In group a the sums are 0.5 and 1.5, so 0.5 from their mean, and their deviation is 1 / sqrt(2); in b they are 0.2, 1.8:

    >>> scores, groups = [[0.0, 0.5], [1.0, 0.5], [0.2, 0.0], [0.8, 1.0]], ["a", "a", "b", "b"]
    >>> grpo(scores, groups).round(3).tolist()
    [-0.707, 0.707, -0.707, 0.707]
    """
    batch = Batch(values, groups, weights, eps)
    s = batch.weighted_sum(centred for centred, _ in batch.centred())
    return batch.give_back(batch.over(s, batch.std(s, batch.scored)))


def dr_grpo(values: Any, groups: Any, weights: ArrayLike | None = None) -> Any:
    """Dr.GRPO: ``A = s - mean_group(s)``, not divided by the deviation (arXiv 2503.20783).

    Arguments, missing scores, return value and errors as in `grpo`, without `eps`.

    >>> scores, groups = [[0.0, 0.5], [1.0, 0.5], [0.2, 0.0], [0.8, 1.0]], ["a", "a", "b", "b"]
    >>> dr_grpo(scores, groups).round(3).tolist()
    [-0.5, 0.5, -0.8, 0.8]
    """
    batch = Batch(values, groups, weights)
    return batch.give_back(batch.weighted_sum(centred for centred, _ in batch.centred()))


def gdpo(values: Any, groups: Any, weights: ArrayLike | None = None, *, eps: float = 1e-4, whiten: bool = True) -> Any:
    """GDPO: normalise each component within its group, add them up, then scale over the batch.

    ``z_k = (r_k - mean_group(r_k)) / (std_group(r_k) + eps)``, ``S = sum_k w_k z_k``,
    ``A = (S - mean_batch(S)) / (std_batch(S) + eps)``, ddof 1 (arXiv 2601.05242).

    The batch mean of S is zero by construction: every z_k adds up to zero over the scores present in its group. It is
    therefore neither computed nor subtracted, which keeps exact zeros exact. std_batch is over the rollouts that
    have at least one score.

    Args:
        values, groups, weights: as in `grpo`.
        eps: added to both deviations: to std_group in units of a score, to std_batch in units of S.
        whiten: take the batch step. Without it the result is S.

    Returns, Raises: as in `grpo`.

    A pair has z = -0.707 and 0.707. In a only the first component varies, in b both do; std_batch(S) is sqrt(5 / 3):

    >>> scores, groups = [[0.0, 0.5], [1.0, 0.5], [0.2, 0.0], [0.8, 1.0]], ["a", "a", "b", "b"]
    >>> gdpo(scores, groups, whiten=False).round(2).tolist()
    [-0.71, 0.71, -1.41, 1.41]
    >>> gdpo(scores, groups).round(2).tolist()
    [-0.55, 0.55, -1.1, 1.1]
    """
    batch = Batch(values, groups, weights, eps)
    return batch.give_back(_gdpo(batch, batch.weights, whiten))


def mo_grpo(values: Any, groups: Any, weights: ArrayLike | None = None, *, eps: float = 1e-4) -> Any:
    """MO-GRPO: ``A = sum_k w_k z_k``: GDPO without the batch step (arXiv 2509.22047; second hand).

    Open in the source, chosen here: weights (the paper adds the components up, which is the default), ddof and eps,
    which are GDPO's.

    Arguments, missing scores, return value and errors as in `gdpo`.

    >>> scores, groups = [[0.0, 0.5], [1.0, 0.5], [0.2, 0.0], [0.8, 1.0]], ["a", "a", "b", "b"]
    >>> mo_grpo(scores, groups).round(2).tolist()
    [-0.71, 0.71, -1.41, 1.41]
    """
    return gdpo(values, groups, weights, eps=eps, whiten=False)


def dvao(values: Any, groups: Any, weights: ArrayLike | None = None, *, eps: float = 1e-4) -> Any:
    """DVAO: weigh each z_k by its share of the group's deviations, so that what hardly varies hardly counts.

    ``A = sum_k w'_k z_k`` with ``w'_k = w_k std_k / sum_l w_l std_l``, per group (arXiv 2605.25604; second hand). As
    std_k cancels, this is ``(s - mean_group(s)) / (sum_l |w_l| std_l + eps)``: GRPO, divided not by the deviation of the
    sum but by the sum of the deviations, which is never smaller.

    Open in the source, chosen here: eps stands once, in the common denominator; ddof is 1; a negative weight
    counts by its size in the denominator, which could vanish otherwise; no batch step. A component with fewer than two
    scores in a group has deviation 0 there.

    Arguments, missing scores, return value and errors as in `grpo`; eps in units of the weighted score.

    In b the components disagree: the sums are 0.2 from their mean, the deviations 0.6 / sqrt(2) and 1 / sqrt(2):

    >>> scores, groups = [[0.0, 0.5], [1.0, 0.5], [0.2, 1.0], [0.8, 0.0]], ["a", "a", "b", "b"]
    >>> dvao(scores, groups).round(3).tolist()
    [-0.707, 0.707, 0.177, -0.177]
    """
    batch = Batch(values, groups, weights, eps)
    s = np.zeros(len(batch.values))
    deviations = np.zeros(len(batch.groups.sizes))
    for weight, (centred, present) in zip(batch.weights, batch.centred(), strict=True):
        s += weight * centred
        deviations += abs(weight) * batch.std(centred, present)
    return batch.give_back(batch.over(s, deviations))


def rvpo(values: Any, groups: Any, weights: ArrayLike | None = None, *, eps: float = 1e-4, k: float = 1.0) -> Any:
    """RVPO: the soft minimum of a rollout's z, so that a strong component cannot pay for a weak one.

    ``A = -(1 / k) ln(mean_j exp(-k z_j))`` (arXiv 2605.05750; second hand): near their mean for a small k, near the
    smallest for a large one, and never above the mean.

    Open in the source, chosen here:

    - Weights: the mean is weighted by ``|w_j|``; a negative weight turns its z round, and 0 takes the component out.
    - A missing score is left out of the mean. A z of 0 would speak for it: with a large k the minimum of a good rollout
      would fall to 0 because a judge failed. A group's only score of a component has nothing to be compared with and
      counts as missing too.
    - A component that does not vary in a group is not missing: all rollouts were measured and found alike, so its z of
      exactly 0 stays in the mean, as in the formula. It adds nothing of its own and still draws the mean towards 0.
    - eps and ddof are GDPO's; k is 1, for want of the paper's value; no batch step.

    The values of a group need not add up to 0: the soft minimum lies below the mean, so with nothing missing their sum is at
    most 0, and rollouts whose components disagree are pushed down without others being pushed up. Subtracting a batch mean would
    give dead groups, which get exactly 0, an advantage.

    Args:
        values, groups, weights, eps: as in `grpo`; eps in units of a score.
        k: how near to the minimum, a finite number > 0.

    Returns, Raises: as in `grpo`; ValueError for another k too.

    In a the second component does not vary: z = (-0.71, 0) and (0.71, 0). In b both rollouts have z = -0.71 and 0.71:

    >>> scores, groups = [[0.0, 0.5], [1.0, 0.5], [0.2, 1.0], [0.8, 0.0]], ["a", "a", "b", "b"]
    >>> rvpo(scores, groups).round(2).tolist()
    [-0.41, 0.29, -0.23, -0.23]
    >>> rvpo(scores, groups, k=1000).round(2).tolist()
    [-0.71, 0.0, -0.71, -0.71]
    """
    batch = Batch(values, groups, weights, eps)
    _positive("k", k)
    zs: list[Float] = []
    shares: list[Float] = []
    for weight, (centred, present) in zip(batch.weights, batch.centred(), strict=True):
        z = batch.over(centred, batch.std(centred, present))
        compared = present & batch.groups.spread(batch.groups.sum(present) > 1)
        zs.append(np.sign(weight) * z)
        shares.append(np.where(compared, abs(weight), 0.0))
    total, lowest = np.zeros(len(batch.values)), np.full(len(batch.values), np.inf)
    for z, share in zip(zs, shares, strict=True):
        total += share
        lowest = np.where(share > 0, np.minimum(lowest, z), lowest)
    lowest = np.where(total > 0, lowest, 0.0)
    # Measured from the smallest z, nothing overflows; where all z are 0, `left` adds up to the very bits of `total`.
    left = np.zeros(len(batch.values))
    for z, share in zip(zs, shares, strict=True):
        left += share * np.exp(-k * np.maximum(z - lowest, 0.0))
    some = total > 0
    return batch.give_back(lowest - (np.log(np.where(some, left, 1.0)) - np.log(np.where(some, total, 1.0))) / k)


def gd2po(
    values: Any,
    groups: Any,
    weights: ArrayLike | None = None,
    *,
    eps: float = 1e-4,
    soft: bool = False,
    tau: float = 0.2,
) -> Any:
    """GD2PO: drop the rollouts whose components disagree, shrink groups that lost many, and whiten what is kept.

    A rollout is dropped, and gets 0, if some of its ``w_k z_k`` are positive and some negative; with `soft`, only if besides
    ``|sum_k w_k z_k| < tau * sum_k |w_k z_k|``. For the others ``S = share * sum_k w_k z_k``, with the share of its
    group's rollouts that was kept, and ``A = (S - mean(S)) / (std(S) + eps)`` over the kept (arXiv 2606.16771 and its code).

    As in that code: less than 1e-8 has no sign, so a score at its group's mean, a missing one and a component that does not
    vary agree with everything. Not in it, chosen here: weights; a rollout without a score belongs neither to the kept nor
    to the group that their share is of; a group in which nothing varies gets 0 and is left out of mean and deviation
    (there, it would get ``-mean / std``: the kept of a group need not add up to 0); mean and deviation are over
    rollouts, not tokens, ddof 1, eps as in `gdpo`. A group of which all are dropped gets 0.

    Args:
        values, groups, weights, eps: as in `gdpo`.
        soft: drop only where the signs cancel most of the sum.
        tau: share of the sum that has to remain to be kept, in [0, 1]; read with `soft` only.

    Returns, Raises: as in `grpo`; ValueError for another tau too.

    In a both rollouts agree, S = -1.41 and 1.41; in b the components disagree, and all are dropped:

    >>> scores, groups = [[0.0, 0.5], [1.0, 0.9], [0.2, 1.0], [0.8, 0.0]], ["a", "a", "b", "b"]
    >>> gd2po(scores, groups).round(2).tolist()
    [-0.71, 0.71, 0.0, 0.0]
    """
    batch = Batch(values, groups, weights, eps)
    if not 0 <= tau <= 1:
        raise ValueError(f"tau: got {tau}, expected a number in [0, 1]")
    s, size = np.zeros(len(batch.values)), np.zeros(len(batch.values))
    up, down = np.zeros(len(s), bool), np.zeros(len(s), bool)
    for weight, z in zip(batch.weights, batch.z(), strict=True):
        part = weight * z
        s += part
        size += np.abs(part)
        up |= part > SIGN
        down |= part < -SIGN
    dropped = up & down & (np.abs(s) < tau * size) if soft else up & down
    kept = batch.scored & ~dropped
    share = batch.groups.sum(kept) / np.maximum(batch.groups.sum(batch.scored), 1)
    return batch.give_back(_whitened(batch, batch.groups.spread(share) * s, kept & batch.alive()))


def saw(values: Any, groups: Any, weights: ArrayLike | None = None, *, eps: float = 1e-4) -> Any:
    """SAW: GDPO with each component weighted by how much it still varies over the batch, relative to its mean.

    ``w'_k = w_k K cv_k / sum_l cv_l`` with ``cv_k = std_batch(r_k) / mean_batch(r_k)``; then `gdpo` with w' (arXiv
    2606.07705 and its code, there ``gdpo-h``). A component that is nearly always right loses its weight to the others.

    A mean near 0 is no danger, since scores must not be negative: of n scores that are not all 0, cv is at most sqrt(n),
    where one is positive; of scores that are all 0 it is 0 here. (The code moves scores that can be negative up first.)

    Chosen here: w_k (the code has none); K and the sum are over the components with a weight that vary within some group,
    since the others add nothing and would only change a common factor; a missing score leaves the batch mean and
    deviation; ddof 1, and the last step over rollouts, where the code has tokens.

    Arguments, return value and errors as in `gdpo`; ValueError for a negative score too.

    The second component is rarely met, so it counts more: cv = 0.82 and 2, and weights 0.58 and 1.42:

    >>> scores, groups = [[0.0, 0.0], [1.0, 0.0], [0.5, 0.0], [0.5, 1.0]], ["a", "a", "b", "b"]
    >>> (saw(scores, groups) / gdpo(scores, groups)).round(2).tolist()
    [0.53, 0.53, 1.31, 1.31]
    """
    batch = Batch(values, groups, weights, eps)
    batch.refuse(batch.values < 0, "a score >= 0: SAW divides by the mean of a component's scores")
    mean, std = batch.moments()
    counted = batch.varying().any(axis=0) & (batch.weights != 0)
    cv = np.divide(std, mean, out=np.zeros(len(mean)), where=counted & (mean > 0))
    total = math.fsum(cv)
    return batch.give_back(_gdpo(batch, batch.weights * np.count_nonzero(counted) * cv / (total or 1.0)))


def sa_mrpo(
    values: Any,
    groups: Any,
    weights: ArrayLike | None = None,
    *,
    eps: float = 1e-4,
    gamma: float = 0.5,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Any:
    """SA-MRPO: GDPO with each component weighted by how far its batch mean still is from the best possible score.

    ``w'_k = w_k (1 - s_k) ** gamma`` with ``s_k = (mean_batch(r_k) - low) / (high - low)``; then `gdpo` with w'
    (arXiv 2608.16072; second hand).

    Open in the source, chosen here: a missing score leaves the batch mean; one pair of bounds for all components; eps and
    ddof are GDPO's.

    Args:
        values, groups, weights, eps: as in `gdpo`.
        gamma: how strongly, a finite number >= 0; 0 is GDPO.
        bounds: the lowest and the highest possible score.

    Returns, Raises: as in `gdpo`; ValueError for bounds that are no interval, scores outside, another gamma too.

    The first component's mean is 0.96, so its weight is sqrt(0.04) = 0.2; the second's is 0.36, its weight 0.8:

    >>> scores, groups = [[0.92, 0.36], [1.0, 0.36], [0.96, 0.0], [0.96, 0.72]], ["a", "a", "b", "b"]
    >>> sa_mrpo(scores, groups).round(2).tolist()  # S = 0.14 and 0.57, std_batch(S) = 0.48
    [-0.3, 0.3, -1.19, 1.19]
    """
    batch = Batch(values, groups, weights, eps)
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"bounds: got {bounds}, expected (low, high) with low < high, both finite")
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma: got {gamma}, expected a finite number >= 0")
    batch.refuse((batch.values < low) | (batch.values > high), f"a score within the bounds {low} to {high}")
    mean, _ = batch.moments()
    left = np.clip((high - mean) / (high - low), 0.0, 1.0)
    return batch.give_back(_gdpo(batch, batch.weights * left**gamma))


def corr_grpo(values: Any, groups: Any, weights: ArrayLike | None = None, *, eps: float = 1e-6) -> Any:
    """CorrGRPO: GRPO, divided not by the deviation of the sum but by what correlations alone would make of it.

    ``A = (s - mean_group(s)) / sqrt(sum_lm rho_lm + eps)`` with the correlations rho of the weighted components in the
    group, those that do not vary having a row and column of 0 (arXiv 2609.36820 and its code, which has eps 1e-6).

    The scale of the scores stays in: a single component gives ``s - mean`` (its rho is 1), not GRPO. Components that
    cancel in correlation and not in size leave ``sqrt(eps)`` as the divisor: a factor of 1,000.

    Open in the source, chosen here: a missing score counts as its component's group mean, 0 once centred, in rho as in s.
    Then rho_lm is the product of two unit vectors, and their sum is a squared length, never negative; correlations over
    the rows that two components share (pairwise) could add up to less than 0, and over the rows that all share (listwise)
    could use none of the scores that s uses. No batch step.

    Arguments, return value and errors as in `grpo`; eps stands under the root, without a unit.

    In a one component varies, so the divisor is 1; in b two that go together: rho adds up to 4, the divisor is 2:

    >>> scores, groups = [[0.0, 0.5], [1.0, 0.5], [0.2, 0.0], [0.8, 1.0]], ["a", "a", "b", "b"]
    >>> corr_grpo(scores, groups).round(3).tolist()
    [-0.5, 0.5, -0.4, 0.4]
    """
    batch = Batch(values, groups, weights, eps)
    s, directions = np.zeros(len(batch.values)), np.zeros(len(batch.values))
    for weight, (centred, _) in zip(batch.weights, batch.centred(), strict=True):
        s += weight * centred
        largest = batch.groups.max(np.abs(centred))
        unit = centred / batch.groups.spread(np.where(largest > 0, largest, 1.0))  # so that no square underflows
        length = np.sqrt(batch.groups.sum(unit**2))
        directions += np.sign(weight) * unit / batch.groups.spread(np.where(length > 0, length, 1.0))
    divisor = np.sqrt(batch.groups.sum(directions**2) + eps)
    return batch.give_back(s / batch.groups.spread(divisor))


def dara(
    values: Any,
    groups: Any,
    weights: ArrayLike | None = None,
    *,
    eps: float = 1e-4,
    w_max: float = 5.0,
    pi_ref: float | None = None,
    positive_only: bool = False,
) -> Any:
    """DARA: GDPO with a larger weight for components that vary in few groups and so have few chances to teach.

    ``w'_k = w_k min(w_max, sqrt(pi_ref / pi_k))``, pi_k the share of the groups in which component k varies; then `gdpo`
    with w' (arXiv 2610.00574; second hand; w_max, pi_ref and `positive_only` as in the code published with it).

    Open in the source, chosen here: w_k; "varies" is exact (more than one value); groups without any score are not
    counted; with `positive_only` the parts of a group no longer add up to 0, so the batch mean is subtracted, and groups
    in which nothing varies get 0 and are left out of mean and deviation.

    Args:
        values, groups, weights, eps: as in `gdpo`.
        w_max: the largest factor, a finite number > 0.
        pi_ref: the share at which the factor is 1, in (0, 1]; when left out, the largest pi_k of the batch.
        positive_only: the factor acts on the ``w_k z_k`` above 0 alone, the code's default ("asymmetric").

    Returns, Raises: as in `gdpo`; ValueError for another w_max or pi_ref too.

    The first component varies in both groups, the second in b alone: its factor is sqrt(2), and S = 0.71 and 1.71:

    >>> scores, groups = [[0.0, 0.5], [1.0, 0.5], [0.2, 0.0], [0.8, 1.0]], ["a", "a", "b", "b"]
    >>> dara(scores, groups).round(2).tolist()
    [-0.47, 0.47, -1.13, 1.13]
    """
    batch = Batch(values, groups, weights, eps)
    _positive("w_max", w_max)
    if pi_ref is not None and not 0 < pi_ref <= 1:
        raise ValueError(f"pi_ref: got {pi_ref}, expected a number > 0 and <= 1, or None for the largest share")
    varying = batch.varying() & (batch.weights != 0)
    share = varying.sum(axis=0) / max(np.count_nonzero(batch.groups.sum(batch.scored)), 1)
    reference = pi_ref or share.max(initial=0.0)
    factor = np.minimum(w_max, np.sqrt(reference / np.where(share > 0, share, 1.0)))
    if not positive_only:
        return batch.give_back(_gdpo(batch, batch.weights * factor))
    s = np.zeros(len(batch.values))
    for weight, more, z in zip(batch.weights, factor, batch.z(), strict=True):
        part = weight * z
        s += np.where(part > 0, more * part, part)
    return batch.give_back(_whitened(batch, s, batch.alive()))


ESTIMATORS: dict[str, Estimator] = {
    "gdpo": gdpo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "mo_grpo": mo_grpo,
    "dvao": dvao,
    "rvpo": rvpo,
    "gd2po": gd2po,
    "saw": saw,
    "sa_mrpo": sa_mrpo,
    "corr_grpo": corr_grpo,
    "dara": dara,
}
"""The estimators by the name that `ScoreTable.advantages` takes."""


def varies(values: Any, groups: Any) -> NDArray[np.bool_]:
    """Whether each component takes more than one value within each group.

    Args:
        values, groups: as in `grpo`, shapes [B, K] and [B].

    Returns:
        Shape [N, K] for N groups, in order of their first appearance.
    """
    return Batch(values, groups).varying()


def spread(values: Any, groups: Any) -> Float:
    """How far each component varies within groups: the root mean square of its deviations (ddof 1), in units of a score.

    Times its weight, this is what it counts by in GRPO; in GDPO, it counts by its weight alone.

    Args:
        values, groups: as in `grpo`, shapes [B, K] and [B].

    Returns:
        Shape [K]: over the groups in which at least two rollouts have a score; NaN without any.

    >>> spread([[0.0, 0.5], [1.0, 0.5], [0.2, 0.0], [0.8, 1.0]], ["a", "a", "b", "b"]).round(2).tolist()
    [0.58, 0.5]
    """
    batch = Batch(values, groups)
    result = []
    for centred, present in batch.centred():
        deviations = batch.std(centred, present)[batch.groups.sum(present) > 1]
        result.append(math.sqrt(math.fsum(deviations**2) / len(deviations)) if len(deviations) else math.nan)
    return np.array(result, np.float64)


def follows(advantages: Any, values: Any, groups: Any) -> Float:
    """How closely advantages follow each component: their correlation within groups.

    ``sum a r_k / sqrt(sum a^2 sum r_k^2)`` over the rollouts of the batch that have the component's score, a and r_k less
    their group's mean over these (which is 0 already for a sum over components with nothing missing). So what others teach
    where the component does not vary counts against it.

    Args:
        advantages: of any estimator, finite, shape [B].
        values, groups: as in `grpo`, shapes [B, K] and [B].

    Returns:
        Shape [K], in [-1, 1]; NaN where the component varies in no group, or the advantages do in none (by more than 1e-9)
        over the rollouts that have its score.

    Raises:
        ValueError: shapes that do not match, infinite scores, advantages that are not finite.

    The second component varies in b alone, and there by more than the first:

    >>> scores, groups = [[0.0, 0.5], [1.0, 0.5], [0.2, 0.0], [0.8, 1.0]], ["a", "a", "b", "b"]
    >>> follows(dr_grpo(scores, groups), scores, groups).round(2).tolist()
    [0.89, 0.85]
    """
    scores = Batch(values, groups).values
    a = to_numpy(advantages)
    if a.shape != (len(scores),):
        raise ValueError(f"advantages: got shape {a.shape}, expected ({len(scores)},): one for each rollout")
    if not np.isfinite(a).all():
        row = int(np.argmin(np.isfinite(a)))
        raise ValueError(f"advantages[{row}]: got {a[row]}, expected a finite number")
    both = Batch(np.hstack([scores, np.where(np.isnan(scores), np.nan, a[:, None])]), groups)
    columns = [centred for centred, _ in both.centred()]
    k = scores.shape[1]
    result = []
    for of_score, of_advantage in zip(columns[:k], columns[k:], strict=True):
        x, y = _to_one(of_score), _to_one(np.where(np.abs(of_advantage) > NOISE, of_advantage, 0.0))
        xy, xx, yy = (math.fsum(both.groups.sum(product)) for product in (x * y, x * x, y * y))
        result.append(min(max(xy / math.sqrt(xx * yy), -1.0), 1.0) if xx and yy else math.nan)
    return np.array(result, np.float64)


def _gdpo(batch: Batch, weights: Float, whiten: bool = True) -> Float:
    """GDPO's sum and batch step with these weights, [B]."""
    s = batch.weighted_sum(batch.z(), weights)
    if whiten:
        s /= batch.std_over_batch(s) + batch.eps
    return s


def _whitened(batch: Batch, s: Float, counted: NDArray[np.bool_]) -> Float:
    """GDPO's batch step for sums whose mean is not 0: over the counted rollouts, 0 for the others, [B]."""
    centred, _ = batch.minus_batch_mean(s, counted)
    return np.asarray(centred / (batch.std_over_batch(centred, counted) + batch.eps))


def _to_one(column: Float) -> Float:
    """Divided by its largest size, so that no square underflows; zeros stay zeros."""
    return np.asarray(column / (np.abs(column).max(initial=0.0) or 1.0))


def _positive(name: str, number: float) -> None:
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: got {number}, expected a finite number > 0")
