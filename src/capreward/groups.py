"""What every estimator of `capreward.advantage` stands on: one call's scores, checked, with each group as one run of rows.

Imports nothing of ours. The sums are made so that no result depends on the order of the groups in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


class Batch:
    """One call's input, checked, rows sorted so that each group is one run (rows of a group keep their order).

    Args:
        values: scores, [B, K]; NaN = missing. Kept in the caller's order; all that the methods make is in runs.
        groups: ids, [B].
        weights: [K]; see `check_weights`.
        eps: what `over` adds.

    Raises:
        ValueError: shapes that do not match, ids that are neither integers nor strings, infinite scores, unusable weights
            or eps.
    """

    def __init__(self, values: Any, groups: Any, weights: ArrayLike | None = None, eps: float = 1e-4) -> None:
        self.given = values
        self.values: Float = to_numpy(values)
        if self.values.ndim != 2:
            raise ValueError(f"values: got shape {self.values.shape}, expected [B, K]: rollouts x components")
        b, k = self.values.shape
        ids = to_numpy(groups, floating=False)
        if ids.shape != (b,):
            raise ValueError(f"groups: got shape {ids.shape}, expected ({b},): one id for each rollout")
        if b and not np.issubdtype(ids.dtype, np.integer) and ids.dtype.kind not in "USO":
            raise ValueError(f"groups: got ids of type {ids.dtype}, expected integers or strings")
        self.refuse(np.isinf(self.values), "a finite score, or NaN where missing")
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(
                f"eps: got {eps}, expected a finite number > 0: without it, rounding noise would be scaled up"
            )
        self.eps = eps
        self.weights = check_weights(weights, k)
        self.groups = Groups.of(ids)
        counted = self.values[:, self.weights != 0]  # a component of weight 0 is as if it were not there
        self.scored: Bool = self.groups.gather(np.asarray(~np.isnan(counted).all(axis=1)))
        """Rollouts with at least one score, [B]."""

    def refuse(self, wrong: Bool, expected: str) -> None:
        """ValueError that names the first score that is `wrong`, [B, K], if there is one."""
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(f"values[{row}, {column}]: got {self.values[row, column]}, expected {expected}")

    def centred(self) -> Iterator[tuple[Float, Bool]]:
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

    def z(self) -> Iterator[Float]:
        """Of each component: ``centred / (std_group + eps)``, [B]; 0 where missing or where nothing varies."""
        for centred, present in self.centred():
            yield self.over(centred, self.std(centred, present))

    def over(self, rows: Float, per_group: Float) -> Float:
        """Rows divided by their group's number + eps."""
        return np.asarray(rows / self.groups.spread(per_group + self.eps))

    def std(self, centred: Float, counted: Bool) -> Float:
        """Deviation (ddof 1) of each group over its counted rows, [N], given rows with mean 0 that are 0 elsewhere."""
        return np.asarray(np.sqrt(self.groups.sum(centred**2) / np.maximum(self.groups.sum(counted) - 1, 1)))

    def std_over_batch(self, s: Float, counted: Bool | None = None) -> float:
        """Deviation (ddof 1) of s over the counted rollouts (all that are scored when left out).

        s has mean 0 and is 0 elsewhere; fsum makes the result blind to the order of groups.
        """
        count = int(np.count_nonzero(self.scored if counted is None else counted))
        return math.sqrt(math.fsum(self.groups.sum(s**2)) / max(count - 1, 1))

    def minus_batch_mean(self, rows: Float, counted: Bool) -> tuple[Float, float]:
        """Rows less their mean over the counted rows of the batch, 0 elsewhere; the mean (0 of none)."""
        total = math.fsum(self.groups.sum(np.where(counted, rows, 0.0)))
        mean = total / max(int(np.count_nonzero(counted)), 1)
        return np.where(counted, rows - mean, 0.0), mean

    def moments(self) -> tuple[Float, Float]:
        """Mean and deviation (ddof 1) of each component over all its scores in the batch, [K] each; 0 without any."""
        means, stds = [], []
        for column in self.values.T:
            column = self.groups.gather(column)
            present = ~np.isnan(column)
            centred, mean = self.minus_batch_mean(column, present)
            means.append(mean)
            stds.append(self.std_over_batch(centred, present))
        return np.array(means), np.array(stds)

    def varying(self) -> Bool:
        """Whether each component takes more than one value within each group, [N, K]."""
        moved = [self.groups.max(np.abs(centred)) > 0 for centred, _ in self.centred()]
        return np.stack(moved, axis=1) if moved else np.zeros((len(self.groups.starts), 0), bool)

    def alive(self) -> Bool:
        """Rollouts with a score, of groups in which a component with a weight varies, [B]."""
        moved = self.varying()[:, self.weights != 0].any(axis=1)
        return np.asarray(self.groups.spread(np.asarray(moved)) & self.scored)

    def weighted_sum(self, columns: Iterable[Float], weights: Float | None = None) -> Float:
        """sum_k w_k column_k, [B]. A loop, since a matrix product may round a row by where it stands in the batch."""
        s = np.zeros(len(self.values))
        for weight, column in zip(self.weights if weights is None else weights, columns, strict=True):
            s += weight * column
        return s

    def give_back(self, rows: NDArray[Any]) -> Any:
        """Rows in the caller's order and kind of array."""
        result = self.groups.scatter(rows)
        if not is_torch(self.given):
            return result
        single = self.given.new_empty(0).float()
        kind = self.given if self.given.is_floating_point() and self.given.element_size() >= 4 else single
        return kind.new_tensor(result)


@dataclass(frozen=True)
class Groups:
    """N groups as runs of rows."""

    order: Int | None
    """The caller's row for each of our rows, [B]; None: the caller's groups already are runs."""
    starts: Int
    """First row of each group, [N]."""
    sizes: Int
    """Rows of each group, [N]."""

    @classmethod
    def of(cls, ids: NDArray[Any]) -> Groups:
        """The groups of ids, [B], in order of their first appearance."""
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
        """The caller's rows -> in runs."""
        return np.ascontiguousarray(rows) if self.order is None else rows[self.order]

    def scatter(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows in runs -> in the caller's order."""
        if self.order is None:
            return rows
        result = np.empty_like(rows)
        result[self.order] = rows
        return result

    def sum(self, rows: NDArray[Any]) -> Float:
        """Sum of each group, [N]."""
        return np.add.reduceat(rows, self.starts, dtype=np.float64) if len(rows) else np.zeros(0)

    def max(self, rows: Float) -> Float:
        """Largest number of each group, [N]; NaN only where a group holds nothing else."""
        return np.fmax.reduceat(rows, self.starts) if len(rows) else np.zeros(0)

    def spread(self, per_group: NDArray[Any]) -> NDArray[Any]:
        """A number for each group, [N] -> the same for each of its rows, [B]."""
        return np.repeat(per_group, self.sizes)


def check_weights(weights: ArrayLike | None, k: int) -> Float:
    """Weights as float64 [K], 1 each when None; ValueError unless finite, one a component and not all zero."""
    w = np.ones(k) if weights is None else to_numpy(weights)
    if w.shape != (k,):
        raise ValueError(f"weights: got shape {w.shape}, expected ({k},): one for each component")
    if not np.isfinite(w).all():
        raise ValueError(f"weights: got {w.tolist()}, expected finite numbers")
    if k and not w.any():
        raise ValueError("weights: all are zero, so every advantage would be 0; give a component a weight")
    return w


def is_torch(x: Any) -> bool:
    """Whether it is a torch tensor; loads no torch to find out."""
    return type(x).__module__.partition(".")[0] == "torch"


def to_numpy(x: Any, *, floating: bool = True) -> NDArray[Any]:
    """As an array of float64, or of its own type; from any device, a masked entry as NaN."""
    if is_torch(x):
        x = x.detach().cpu()
        x = (x.double() if floating else x).numpy()
    if isinstance(x, np.ma.MaskedArray):
        x = np.where(np.ma.getmaskarray(x), np.nan, np.ma.getdata(x))
    return np.asarray(x, dtype=np.float64 if floating else None)
