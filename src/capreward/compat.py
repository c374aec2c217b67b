"""The advantages that other trainers compute, their faults included: for comparing and for moving over, not for training.

One function for each peer, of the version named, in its float32 and with its treatment of missing scores (NaN), of groups of
one and of groups in which nothing varies. Each is an estimator for `ScoreTable.advantages`:

>>> from capreward.compat import trl
>>> table.advantages(trl), table.advantages(trl, method="grpo")     # doctest: +SKIP

``tests/parity`` holds `trl`, `verl` and `ms_swift` against the installed packages: equal within float32's rounding. Bits are
not promised, since torch adds in another order than numpy; so where a peer makes advantages out of rounding noise, these are
as large as the peer's, and others. `nemo_rl` was written from its source and never run against it.

All take ``values[B, K]``, ``groups[B]`` and ``weights[K]`` as `capreward.grpo` does, refuse what it refuses, and return
float32, [B]. ``method`` is "gdpo", or "grpo" on the weighted sum of the scores; another is a ValueError.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from capreward.groups import Batch

F32 = NDArray[np.float32]
Method = Literal["gdpo", "grpo"]


def trl(values: Any, groups: Any, weights: ArrayLike | None = None, *, method: Method = "gdpo") -> Any:
    """TRL 1.16.0's GRPOTrainer: ``multi_objective_aggregation="normalize_then_sum"``, or "sum_then_normalize" for GRPO.

    eps is 1e-4, in the group and in the batch. GDPO: a missing score has z = 0, and so has a component of which the group
    has one score. GRPO: a missing score is a reward of 0. A rollout without any gets 0. Rounding noise of groups in which nothing
    varies is divided by its own deviation: such batches get full-sized advantages.

    Raises:
        ValueError: as `capreward.grpo`; groups of different sizes, which TRL cannot have.
    """
    batch, r, w, size = _of_one_size(values, groups, weights, "TRL")
    grouped = r.reshape(-1, size, r.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        if _gdpo(method):
            std = _nanstd(grouped, 1) if size > 1 else np.zeros_like(grouped[:, :1])
            z = (grouped - _nanmean(grouped, 1)) / (std + np.float32(1e-4))
            s = _without_scores(np.nansum(z.reshape(r.shape) * w, axis=1, dtype=np.float32), r)
            deviation = _nanstd(s, 0) if len(s) > 1 else np.zeros(1, np.float32)
            a = (s - _nanmean(s, 0)) / (deviation + np.float32(1e-4))
        else:
            s = _without_scores(np.nansum(r * w, axis=1, dtype=np.float32), r).reshape(-1, size)
            deviation = _nanstd(s, 1) if size > 1 else np.zeros_like(s)
            a = ((s - _nanmean(s, 1)) / (deviation + np.float32(1e-4))).reshape(-1)
    return batch.give_back(np.nan_to_num(a, nan=0.0))


def verl(
    values: Any,
    groups: Any,
    weights: ArrayLike | None = None,
    *,
    method: Method = "gdpo",
    lengths: ArrayLike | None = None,
) -> Any:
    """verl 0.9.1's ``adv_estimator=gdpo`` or grpo; what stands on each of a rollout's tokens.

    eps is 1e-6 in the group, and 1e-8 beside the variance in the batch. One missing score makes every GDPO advantage NaN,
    and its whole group NaN in GRPO. A group of one keeps its raw score as if that were normalised. GDPO's last step is over
    tokens: a long caption counts more in mean and deviation, so that the mean advantage of a rollout may be far from 0.

    Args:
        lengths: tokens in each response, [B], at least 1; 1 each when left out. GRPO does not read them.

    Raises:
        ValueError: as `capreward.grpo`; unusable lengths; GDPO over a single token.
    """
    batch = Batch(values, groups, weights)
    r, w = _float32(batch)
    tokens = np.ones(len(r)) if lengths is None else np.asarray(lengths)
    if tokens.shape != (len(r),) or (tokens < 1).any():
        raise ValueError(f"lengths: got {lengths!r}, expected ({len(r)},): tokens of each rollout, at least 1")
    if not _gdpo(method):
        return batch.give_back(_verl_normalised(batch, (r * w).sum(axis=1, dtype=np.float32)))
    s = np.zeros(len(r), np.float32)
    for weight, column in zip(w, r.T, strict=True):
        s += weight * _verl_normalised(batch, column)
    t = batch.groups.gather(tokens).astype(np.float32)
    count = t.sum(dtype=np.float32)
    if len(r) and count == 1:
        raise ValueError("lengths: got a single token in all, expected more: verl cannot whiten one")
    if not len(r):
        return batch.give_back(s)
    mean = (s * t).sum(dtype=np.float32) / count
    variance = ((s - mean) ** 2 * t).sum(dtype=np.float32) / count * (count / (count - 1))
    return batch.give_back((s - mean) / np.sqrt(variance + np.float32(1e-8)))


def ms_swift(values: Any, groups: Any, weights: ArrayLike | None = None, *, method: Method = "gdpo") -> Any:
    """ms-swift 4.6.0's GRPO: ``scale_rewards="gdpo"``, or "group" for GRPO.

    GDPO: eps is 1e-8, in the group and in the batch; a missing score has z = 0, and a rollout without any stays in the
    batch's mean and deviation. GRPO: eps is 1e-4, and a missing score is a reward of 0. Groups in which nothing varies train
    on rounding noise, though not at every group size: sums of 8 equal numbers are exact, those of 7 are not.

    Raises:
        ValueError: as `capreward.grpo`; groups of different sizes, which this part of ms-swift cannot have.
    """
    batch, r, w, size = _of_one_size(values, groups, weights, "ms-swift")
    with np.errstate(invalid="ignore", divide="ignore"):
        if _gdpo(method):
            a = np.zeros(len(r), np.float32)
            for weight, column in zip(w, r.T, strict=True):
                grouped = np.ascontiguousarray(column).reshape(-1, size)
                z = (grouped - _nanmean(grouped, 1)) / (_nanstd(grouped, 1) + np.float32(1e-8))
                a += weight * np.nan_to_num(z, nan=0.0).reshape(-1)
            a = (a - _nanmean(a, 0)) / (_nanstd(a, 0) + np.float32(1e-8))
        else:
            s = np.nansum(r * w, axis=1, dtype=np.float32).reshape(-1, size)
            deviation = _nanstd(s, 1) if size > 1 else np.zeros_like(s)
            a = ((s - _nanmean(s, 1)) / (deviation + np.float32(1e-4))).reshape(-1)
    return batch.give_back(a)


def nemo_rl(
    values: Any,
    groups: Any,
    weights: ArrayLike | None = None,
    *,
    method: Method = "gdpo",
    leave_one_out: bool = True,
) -> Any:
    """NeMo-RL's ``adv_estimator: gdpo`` or grpo of August 2026, with ``normalize_rewards``; never run against the package.

    Each score is measured from the mean of its group's other scores (or of all, without `leave_one_out`) and divided by the
    deviation of the same scores + 1e-6, where that is above 0. The deviation is the root of the mean square less the squared
    mean, a difference in which float32 leaves noise. GDPO's batch step divides by the deviation without eps, where above 0.
    Missing scores are not handled: one makes every GDPO advantage NaN. A group of one has z = 0.

    Args:
        leave_one_out: NeMo-RL's ``use_leave_one_out_baseline``.

    Raises:
        ValueError: as `capreward.grpo`.
    """
    batch = Batch(values, groups, weights)
    r, w = _float32(batch)
    if not _gdpo(method):
        s = (r * w).sum(axis=1, dtype=np.float32)
        return batch.give_back(_nemo_normalised(batch, s, leave_one_out))
    s = np.zeros(len(r), np.float32)
    for weight, column in zip(w, r.T, strict=True):
        s += weight * _nemo_normalised(batch, column, leave_one_out)
    if not len(s):
        return batch.give_back(s)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = _nanstd(s, 0) if not np.isnan(s).any() else np.full(1, np.nan, np.float32)
        centred = s - s.mean(dtype=np.float32)
        return batch.give_back(centred / deviation if deviation > 0 else centred)


def _gdpo(method: str) -> bool:
    if method not in ("gdpo", "grpo"):
        raise ValueError(f"method: got {method!r}, expected 'gdpo' or 'grpo'")
    return method == "gdpo"


def _float32(batch: Batch) -> tuple[F32, F32]:
    """Scores, groups in runs, and weights, as the peers hold them."""
    return batch.groups.gather(batch.values).astype(np.float32), batch.weights.astype(np.float32)


def _of_one_size(values: Any, groups: Any, weights: ArrayLike | None, peer: str) -> tuple[Batch, F32, F32, int]:
    batch = Batch(values, groups, weights)
    sizes = sorted(set(batch.groups.sizes.tolist()))
    if len(sizes) > 1:
        raise ValueError(f"groups: got sizes {sizes}, expected one size: {peer} cannot have others")
    return batch, *_float32(batch), sizes[0] if sizes else 1


def _nanmean(x: F32, axis: int) -> F32:
    """Mean of what is not NaN, keeping the axis; NaN of nothing."""
    there = ~np.isnan(x)
    total = np.where(there, x, np.float32(0)).sum(axis=axis, keepdims=True, dtype=np.float32)
    return np.asarray(total / there.sum(axis=axis, keepdims=True).astype(np.float32))


def _nanstd(x: F32, axis: int) -> F32:
    """Deviation (ddof 1) of what is not NaN, keeping the axis; NaN of fewer than two."""
    count = (~np.isnan(x)).sum(axis=axis, keepdims=True).astype(np.float32)
    correction = np.where(count > 1, count / (count - 1), np.float32(np.nan))
    return np.asarray(np.sqrt(_nanmean((x - _nanmean(x, axis)) ** 2, axis) * correction))


def _without_scores(s: F32, r: F32) -> F32:
    """NaN for the rollouts of which every score is missing."""
    return np.where(np.isnan(r).all(axis=1), np.float32(np.nan), s)


def _verl_normalised(batch: Batch, column: F32) -> F32:
    """(r - mean) / (std + 1e-6) by group, rows in runs; the mean as added up one by one, where equal scores leave noise."""
    result = np.empty_like(column)
    for start, size in zip(batch.groups.starts, batch.groups.sizes, strict=True):
        rows = column[start : start + size]
        mean, std = np.float32(0), np.float32(1)
        if size > 1:
            mean = np.add.accumulate(rows)[-1] / np.float32(size)
            std = np.float32(np.std(rows.astype(np.float64), ddof=1))
        result[start : start + size] = (rows - mean) / (std + np.float32(1e-6))
    return result


def _nemo_normalised(batch: Batch, column: F32, leave_one_out: bool) -> F32:
    """(r - baseline) / (std + 1e-6) by group, rows in runs, only centred where std is 0."""
    result = np.zeros_like(column)
    for start, size in zip(batch.groups.starts, batch.groups.sizes, strict=True):
        rows = column[start : start + size]
        if size == 1:
            result[start] = rows[0] - rows[0]  # NaN stays NaN
            continue
        others = np.ones((size, size), np.float32) - (np.eye(size, dtype=np.float32) if leave_one_out else 0)
        count = np.float32(size - leave_one_out)
        mean, square = others @ rows / count, others @ rows**2 / count
        with np.errstate(invalid="ignore", divide="ignore"):
            std = np.nan_to_num(np.sqrt((square - mean**2) * (count / (count - 1))), nan=0.0)
        result[start : start + size] = np.where(
            std > 0, (rows - mean) / np.where(std > 0, std + np.float32(1e-6), 1), rows - mean
        )
    return result
