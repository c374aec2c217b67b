"""Advantages from group-relative rewards: pure functions on float64 numpy that import nothing of ours.

Every estimator has the signature ``(values[B, K], groups[B], weights[K]=None, *, eps, ...) -> advantages[B]`` for B
rollouts and K components. They share four rules:

- A missing score is NaN. It leaves its group's mean and deviation and adds 0; it is never read as a reward of 0.
  A rollout with no score at all gets exactly 0.
- A component that does not vary in a group adds exactly 0 there, with no rounding noise: scores are first measured from
  the group's largest score, so equal scores become exact zeros before any mean is taken.
- Groups are whatever shares an id: they may differ in size and be interleaved. A group of one gets exactly 0.
- The same bits come out however groups are ordered or interleaved, as long as the order inside each group is kept.

Numpy in, numpy out (float64). A torch tensor in, a torch tensor out on its device and in its floating dtype (at least
float32); the arithmetic runs in float64 on the host all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]


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
    """
    batch = _Batch(values, groups, weights, eps)
    s = batch.weighted_sum(centred for centred, _ in batch.centred())
    return batch.give_back(_over(s, batch.std(s, batch.scored), eps, batch.groups))


def dr_grpo(values: Any, groups: Any, weights: ArrayLike | None = None) -> Any:
    """Dr.GRPO: ``A = s - mean_group(s)``, not divided by the deviation (arXiv 2503.20783).

    Arguments, missing scores, return value and errors as in `grpo`, without `eps`.
    """
    batch = _Batch(values, groups, weights)
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
    """
    batch = _Batch(values, groups, weights, eps)
    s = batch.weighted_sum(
        _over(centred, batch.std(centred, present), eps, batch.groups) for centred, present in batch.centred()
    )
    if whiten:
        s /= batch.std_over_batch(s) + eps
    return batch.give_back(s)


ESTIMATORS: dict[str, Estimator] = {"gdpo": gdpo, "grpo": grpo, "dr_grpo": dr_grpo}
"""The estimators by the name that `ScoreTable.advantages` takes."""


def varies(values: Any, groups: Any) -> NDArray[np.bool_]:
    """Whether each component takes more than one value within each group.

    Args:
        values, groups: as in `grpo`, shapes [B, K] and [B].

    Returns:
        Shape [N, K] for N groups, in order of their first appearance.
    """
    batch = _Batch(values, groups)
    moved = [batch.groups.max(np.abs(centred)) > 0 for centred, _ in batch.centred()]
    return np.stack(moved, axis=1) if moved else np.zeros((len(batch.groups.starts), 0), bool)


class _Batch:
    """One call's input, checked, rows sorted so that each group is one run (rows of a group keep their order)."""

    def __init__(self, values: Any, groups: Any, weights: ArrayLike | None = None, eps: float = 1e-4) -> None:
        self.given = values
        self.values: Float = _to_numpy(values)
        if self.values.ndim != 2:
            raise ValueError(f"values: got shape {self.values.shape}, expected [B, K]: rollouts x components")
        b, k = self.values.shape
        ids = _to_numpy(groups, floating=False)
        if ids.shape != (b,):
            raise ValueError(f"groups: got shape {ids.shape}, expected ({b},): one id for each rollout")
        if b and not np.issubdtype(ids.dtype, np.integer) and ids.dtype.kind not in "USO":
            raise ValueError(f"groups: got ids of type {ids.dtype}, expected integers or strings")
        if np.isinf(self.values).any():
            row, column = np.argwhere(np.isinf(self.values))[0]
            raise ValueError(
                f"values[{row}, {column}]: got {self.values[row, column]}, expected a finite score, or NaN where missing"
            )
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(
                f"eps: got {eps}, expected a finite number > 0: without it, rounding noise would be scaled up"
            )
        self.weights = check_weights(weights, k)
        self.groups = _Groups.of(ids)
        counted = self.values[:, self.weights != 0]  # a component of weight 0 is as if it were not there
        self.scored = self.groups.gather(np.asarray(~np.isnan(counted).all(axis=1)))
        """Rollouts with at least one score, [B]."""

    def centred(self) -> Iterator[tuple[Float, NDArray[np.bool_]]]:
        """Of each component: scores minus their group's mean over the scores present (0 where missing); what is present.

        Scores are first measured from the group's largest one: equal scores become exact zeros, and stay so.
        """
        for column in self.values.T:
            column = self.groups.gather(column)
            present = ~np.isnan(column)
            below = column - self.groups.spread(self.groups.max(column))
            below[~present] = 0.0
            mean = self.groups.sum(below) / np.maximum(self.groups.sum(present), 1)
            yield np.where(present, below - self.groups.spread(mean), 0.0), present

    def std(self, centred: Float, counted: NDArray[np.bool_]) -> Float:
        """Deviation (ddof 1) of each group over its counted rows, [N], given rows with mean 0 that are 0 elsewhere."""
        return np.asarray(np.sqrt(self.groups.sum(centred**2) / np.maximum(self.groups.sum(counted) - 1, 1)))

    def std_over_batch(self, s: Float) -> float:
        """Deviation (ddof 1) of s, which has mean 0, over all scored rollouts; fsum makes it blind to group order."""
        count = int(np.count_nonzero(self.scored))
        return math.sqrt(math.fsum(self.groups.sum(s**2)) / max(count - 1, 1))

    def weighted_sum(self, columns: Iterator[Float]) -> Float:
        """sum_k w_k column_k, [B]. A loop, since a matrix product may round a row by where it stands in the batch."""
        s = np.zeros(len(self.values))
        for weight, column in zip(self.weights, columns, strict=True):
            s += weight * column
        return s

    def give_back(self, rows: Float) -> Any:
        """Rows in the caller's order and kind of array."""
        result = self.groups.scatter(rows)
        if not _is_torch(self.given):
            return result
        single = self.given.new_empty(0).float()
        kind = self.given if self.given.is_floating_point() and self.given.element_size() >= 4 else single
        return kind.new_tensor(result)


def _over(rows: Float, std: Float, eps: float, groups: _Groups) -> Float:
    """rows / (their group's std + eps)."""
    return np.asarray(rows / groups.spread(std + eps))


@dataclass(frozen=True)
class _Groups:
    """N groups as runs of rows."""

    order: Int | None  # the caller's row for each of our rows; None: the caller's groups already are runs
    starts: Int  # first row of each group, [N]
    sizes: Int  # [N]

    @classmethod
    def of(cls, ids: NDArray[Any]) -> _Groups:
        if not len(ids):
            return cls(None, np.zeros(0, np.int64), np.zeros(0, np.int64))
        order = None
        starts = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
        _, first, run_group = np.unique(ids[starts], return_index=True, return_inverse=True)
        if len(first) < len(starts):  # interleaved: number the groups by first appearance, then sort rows by number
            number = np.argsort(np.argsort(first))
            row_group = np.repeat(number[run_group], np.diff(starts, append=len(ids)))
            order = np.argsort(row_group, kind="stable")
            starts = np.flatnonzero(np.diff(row_group[order], prepend=-1))
        return cls(order, starts, np.diff(starts, append=len(ids)))

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(rows) if self.order is None else rows[self.order]

    def scatter(self, rows: Float) -> Float:
        if self.order is None:
            return rows
        result = np.empty_like(rows)
        result[self.order] = rows
        return result

    def sum(self, rows: NDArray[Any]) -> Float:
        return np.add.reduceat(rows, self.starts, dtype=np.float64) if len(rows) else np.zeros(0)

    def max(self, rows: Float) -> Float:
        """Largest number of each group, NaN only where a group holds nothing else."""
        return np.fmax.reduceat(rows, self.starts) if len(rows) else np.zeros(0)

    def spread(self, per_group: Float) -> Float:
        """[N] -> [B]"""
        return np.repeat(per_group, self.sizes)


def check_weights(weights: ArrayLike | None, k: int) -> Float:
    """Weights as float64 [K], 1 each when None; ValueError unless finite, one a component and not all zero."""
    w = np.ones(k) if weights is None else _to_numpy(weights)
    if w.shape != (k,):
        raise ValueError(f"weights: got shape {w.shape}, expected ({k},): one for each component")
    if not np.isfinite(w).all():
        raise ValueError(f"weights: got {w.tolist()}, expected finite numbers")
    if k and not w.any():
        raise ValueError("weights: all are zero, so every advantage would be 0; give a component a weight")
    return w


def _is_torch(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "torch"


def _to_numpy(x: Any, *, floating: bool = True) -> NDArray[Any]:
    if _is_torch(x):
        x = x.detach().cpu()
        x = (x.double() if floating else x).numpy()
    if isinstance(x, np.ma.MaskedArray):
        x = np.where(np.ma.getmaskarray(x), np.nan, np.ma.getdata(x))
    return np.asarray(x, dtype=np.float64 if floating else None)
