"""Means with bootstrap intervals over items. A missing score leaves the mean and is counted; it is never a zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from capreward.errors import InputError
from capreward.groups import Float

AT_ONCE = 100
"""Resamples held in memory at once: 4 MB for 5,000 items."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over captions, and the interval that resampling the items gives it."""

    mean: float
    """NaN where every score is missing."""
    low: float
    """NaN for fewer than two items, which cannot be resampled."""
    high: float
    scored: int
    """Captions that the mean is over."""
    missing: int
    """Captions without a score."""


def resamples(count: int, draws: int, seed: int) -> Iterator[Float]:
    """How often each of `count` items is drawn in each of `draws` resamples of that size, in parts of [AT_ONCE, count].

    Raises:
        InputError: fewer than one draw.
    """
    if draws < 1:
        raise InputError(f"draws: got {draws}, expected a number >= 1")
    chance = np.random.default_rng(seed)
    for start in range(0, draws, AT_ONCE):
        size = min(AT_ONCE, draws - start)
        yield chance.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def resampled_means(values: Float, items: ArrayLike, *, draws: int = 1000, seed: int = 0) -> Float:
    """Means of the columns in resamples of the items, [draws, M]; NaN where a resample holds no score.

    Args:
        values: scores of B captions on M metrics, [B, M]; NaN = missing.
        items: item of each caption, [B]: captions of an item are drawn together.
        draws, seed: of the resampling. The same items are drawn for the same seed, whatever the values.

    Raises:
        InputError: no captions, or fewer than one draw.
    """
    if not len(values):
        raise InputError("values: got no captions, expected at least one")
    _, place = np.unique(np.asarray(items), return_inverse=True)
    present = ~np.isnan(values)
    sums, counts = np.zeros((2, place.max() + 1, values.shape[1]))
    np.add.at(sums, place, np.where(present, values, 0.0))
    np.add.at(counts, place, present)
    parts = []
    for drawn in resamples(len(sums), draws, seed):
        total = drawn @ counts
        parts.append(np.divide(drawn @ sums, total, out=np.full(total.shape, np.nan), where=total > 0))
    return np.concatenate(parts)


def means(values: Float, items: ArrayLike, *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> list[Estimate]:
    """Mean of each of the M columns over the captions that have a score, with a percentile interval.

    Args:
        values, items, draws, seed: as in `resampled_means`.
        level: of the interval, in (0, 1).

    Raises:
        InputError: no captions, fewer than one draw, or a level outside (0, 1).
    """
    drawn = resampled_means(values, items, draws=draws, seed=seed)
    result = []
    for column, means_drawn in zip(values.T, drawn.T, strict=True):
        present = column[~np.isnan(column)]
        low, high = interval(means_drawn, level) if several(items) else (np.nan, np.nan)
        mean = float(present.mean()) if len(present) else float("nan")
        result.append(Estimate(mean, low, high, len(present), len(column) - len(present)))
    return result


def interval(drawn: Float, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of resampled numbers; NaNs among them are left out.

    Raises:
        InputError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise InputError(f"level: got {level}, expected a number in (0, 1), such as 0.95")
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def several(items: ArrayLike) -> bool:
    """Whether there are two items at least, so that resampling them says something."""
    return len(np.unique(np.asarray(items))) > 1
