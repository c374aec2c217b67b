"""How far scores agree with what people said of the same captions, beside how far the captions' length does.

Pure functions of arrays. Correlations come from scipy; what it lacks is here: their bootstrap over images, the partial
correlation, and pairwise accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from capreward import intervals
from capreward.errors import InputError, missing_extra
from capreward.groups import Float

Int = NDArray[np.intp]
Kind = Literal["side by side", "choice", "rating"]

STATISTICS = ("tau_b", "tau_c", "spearman", "accuracy", "accuracy_with_ties")
CHUNK = 2**22
"""Numbers held at once while pairs or resamples are gone through."""


@dataclass(frozen=True)
class Axis:
    """N labels of one kind: what people said on one axis, such as Specificity."""

    name: str
    kind: Kind
    """"side by side" (how much better the first caption is than the second, such as -2 to 2), "choice" (1, -1, or 0 for
    a tie), or "rating" (one caption by itself)."""
    first: Int
    """Row of the caption, [N]; of two, the one that a positive label prefers."""
    second: Int | None
    """Row of the other caption, [N]; None for ratings."""
    label: Float
    """[N]."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with its 95 % bootstrap interval; NaN where it is not defined, as for scores that are all equal."""

    value: float
    low: float
    """NaN for fewer than two images too, which cannot be resampled."""
    high: float


@dataclass(frozen=True)
class Agreement:
    """How one component's scores agree with the labels of an axis."""

    labels: int
    """Labels compared."""
    images: int
    """Images that these are about; what the bootstrap draws."""
    missing: int
    """Labels left out, as a caption's score is missing."""
    score: Mapping[str, Estimate]
    """`STATISTICS` of the scores."""
    length: Mapping[str, Estimate]
    """The same of the captions' lengths, on the same labels."""
    margin: Mapping[str, Estimate]
    """`score` less `length`, with the interval of the difference."""
    partial: Estimate
    """Kendall's partial tau-b of score and label, length held fixed."""
    one_answer: float
    """Accuracy of always preferring the same side; 0.5 for ratings, whose pairs have no sides."""


def agreement(
    axis: Axis, score: Float, length: Float, image: NDArray[np.str_], *, resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Agreement of scores with the labels of an axis.

    Of two captions the difference first - second is compared with the label, of one its score. Statistics:

    - `tau_b`, `tau_c`: Kendall's, over all labels. tau-b leaves ties out of its scale; tau-c (Stuart's) is for labels of few
      levels, and the convention on Flickr8k-Expert.
    - `spearman`: rank correlation.
    - `accuracy`: share of the pairs that people decided in which score and label prefer the same caption; equal scores
      count half.
    - `accuracy_with_ties`: over all pairs, a tie being an answer of its own: acc-eq with tie calibration (Deutsch et al., "Ties
      Matter", arXiv 2305.14324). Scores tie when they differ by no more than epsilon, and epsilon is the best for these
      labels: optimistic, for scores and lengths alike. Each resample chooses its own.

    For ratings, the pairs of both accuracies are those of captions of one image, by their mean rating.

    `partial` is (t_xy - t_xz t_yz) / sqrt((1 - t_xz^2) (1 - t_yz^2)) with tau-b of score x, label y and length z (Kendall,
    "Partial rank correlation", Biometrika 1942). It need not be exactly 0 where score and label are independent given length.

    Intervals: 2.5 % and 97.5 % quantiles over resamples of the images, all labels of an image staying together. The levels
    that tau-c is scaled by are those of all labels.

    Args:
        axis: N labels.
        score: of each caption, [B]; NaN = missing: its labels are left out and counted.
        length: of each caption, [B].
        image: that each caption is of, [B].
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    if resamples < 1:
        raise InputError(f"resamples: got {resamples}, expected a number >= 1")
    x, z = _compared(axis, score), _compared(axis, length)
    kept = ~np.isnan(x)
    x, y, z = x[kept], axis.label[kept], z[kept]
    names, cluster = np.unique(image[axis.first[kept]], return_inverse=True)
    draws = _draws(len(names), resamples, seed)
    of_score, of_length = (
        _correlations(values, y, cluster, draws) | _accuracies(*_pairs(axis, kept, column, cluster), draws)
        for values, column in ((x, score), (z, length))
    )
    between = _correlations(x, z, cluster, draws)["tau_b"]
    partial = _partial(of_score["tau_b"], between, of_length["tau_b"])
    decided = np.sign(y[y != 0])
    sides = max(np.mean(decided > 0), np.mean(decided < 0)) if len(decided) else np.nan
    return Agreement(
        labels=len(x),
        images=len(names),
        missing=int((~kept).sum()),
        score={name: _estimate(of_score[name]) for name in STATISTICS},
        length={name: _estimate(of_length[name]) for name in STATISTICS},
        margin={name: _estimate(of_score[name] - of_length[name]) for name in STATISTICS},
        partial=_estimate(partial),
        one_answer=0.5 if axis.second is None else float(sides),
    )


# Below, a statistic is an array [1 + R]: of all labels, then of each of R resamples. A resample is a row of `draws`, [R, images]:
# how often each image was drawn. `cluster` says which image a label is about.


def _draws(images: int, resamples: int, seed: int) -> Int:
    if images < 2:  # drawing one image again and again says nothing: no draws, so no number and no interval
        return np.zeros((resamples, images), np.intp)
    return np.concatenate([*intervals.resamples(images, resamples, seed)]).astype(np.intp)


def _compared(axis: Axis, column: Float) -> Float:
    """What is held against each label, [N]."""
    return column[axis.first] if axis.second is None else column[axis.first] - column[axis.second]


def _correlations(x: Float, y: Float, cluster: Int, draws: Int) -> dict[str, Float]:
    """tau_b, tau_c and spearman of x and y, [N] each."""
    try:
        from scipy import stats
    except ImportError as error:
        raise missing_extra("Measuring agreement", "report", error) from error
    levels = min(len(np.unique(x)), len(np.unique(y)))
    if levels < 2:
        return {name: np.full(1 + len(draws), np.nan) for name in ("tau_b", "tau_c", "spearman")}
    points = {
        "tau_b": stats.kendalltau(x, y, variant="b").statistic,
        "tau_c": stats.kendalltau(x, y, variant="c").statistic,
        "spearman": stats.spearmanr(x, y).statistic,
    }
    agreeing, x_ordered, y_ordered = _signed_pairs(x, y, cluster, draws)
    n = draws @ np.bincount(cluster)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = {
            "tau_b": agreeing / np.sqrt(x_ordered * y_ordered),
            "tau_c": agreeing / (n**2 * (levels - 1) / levels),
            "spearman": np.concatenate([_spearman(x, y, part[:, cluster]) for part in _parts(draws, len(x))]),
        }
    return {name: np.concatenate([[point], drawn[name]]) for name, point in points.items()}


def _signed_pairs(x: Float, y: Float, cluster: Int, draws: Int) -> tuple[Float, Float, Float]:
    """Sums over all ordered pairs of labels in each resample: sign(x) sign(y) of their differences, and |sign| of each; [R].

    Pairs are summed by the images of both once; a resample then weighs images, so that n^2 pairs are never drawn again.
    """
    order = np.argsort(cluster, kind="stable")
    x, y, cluster = x[order], y[order], cluster[order]
    images = draws.shape[1]
    starts = np.searchsorted(cluster, np.arange(images))
    sums = np.zeros((3, images, images))
    step = max(1, CHUNK // len(x))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        present, begin = np.unique(cluster[rows], return_index=True)
        signs_x, signs_y = (np.sign(values[rows, None] - values) for values in (x, y))
        for total, signs in zip(sums, (signs_x * signs_y, np.abs(signs_x), np.abs(signs_y)), strict=True):
            total[present] += np.add.reduceat(np.add.reduceat(signs, starts, axis=1), begin, axis=0)
    agreeing, x_ordered, y_ordered = (((draws @ total) * draws).sum(axis=1) for total in sums)
    return agreeing, x_ordered, y_ordered


def _spearman(x: Float, y: Float, weights: Int) -> Float:
    """Spearman's correlation where each label counts as often as `weights`, [R, N], says; [R]."""
    n = weights.sum(axis=1, keepdims=True)
    ranks = [_middle_ranks(values, weights) - n / 2 for values in (x, y)]
    covariance, x_variance, y_variance = (
        (weights * ranks[i] * ranks[j]).sum(axis=1) for i, j in ((0, 1), (0, 0), (1, 1))
    )
    return np.asarray(covariance / np.sqrt(x_variance * y_variance))


def _middle_ranks(values: Float, weights: Int) -> Float:
    """Of each label among all of its resample, equal values sharing the middle of their ranks, from 0; [R, N]."""
    order = np.argsort(values, kind="stable")
    distinct, place = np.unique(values, return_inverse=True)
    of_value = np.add.reduceat(weights[:, order], np.searchsorted(values[order], distinct), axis=1)
    return np.asarray((of_value.cumsum(axis=1) - of_value / 2)[:, place])


def _partial(t_xy: Float, t_xz: Float, t_yz: Float) -> Float:
    free = (1 - t_xz**2) * (1 - t_yz**2)
    free = np.where(free > 1e-9, free, np.nan)  # else length alone gives the order, but for rounding
    return np.asarray((t_xy - t_xz * t_yz) / np.sqrt(free))


def _pairs(axis: Axis, kept: NDArray[np.bool_], column: Float, cluster: Int) -> tuple[Float, Float, Int]:
    """Pairs of captions of one image: difference of the column, difference that people see, image."""
    if axis.second is not None:
        return _compared(axis, column)[kept], axis.label[kept], cluster
    captions, place = np.unique(axis.first[kept], return_inverse=True)
    ratings = np.bincount(place, axis.label[kept]) / np.bincount(place)
    image = np.zeros(len(captions), np.intp)
    image[place] = cluster
    members = [np.flatnonzero(image == one) for one in range(image.max(initial=-1) + 1)]
    corners = [np.triu_indices(len(rows), 1) for rows in members]
    none = np.zeros(0, np.intp)
    first = np.concatenate([none, *(rows[i] for rows, (i, _) in zip(members, corners, strict=True))])
    second = np.concatenate([none, *(rows[j] for rows, (_, j) in zip(members, corners, strict=True))])
    values = column[captions]
    return values[first] - values[second], ratings[first] - ratings[second], image[first]


def _accuracies(x: Float, y: Float, image: Int, draws: Int) -> dict[str, Float]:
    """accuracy and accuracy_with_ties of pairs, [P] each."""
    order = np.argsort(np.abs(x), kind="stable")
    x, y, image = x[order], y[order], image[order]
    right, tied, decided = np.sign(x) == np.sign(y), y == 0, y != 0
    size = np.abs(x)
    # A tie may end behind the last of equal differences, and behind those of 0 at the earliest.
    ends = np.append(size[1:] > size[:-1], True) if len(x) else np.zeros(0, bool)
    all_labels = np.ones((1, draws.shape[1]), np.intp)
    accuracy, with_ties = [], []
    for part in _parts(np.concatenate([all_labels, draws]), len(x)):
        weights = part[:, image]
        half = np.where(x == 0, 0.5, right) * decided
        before = (weights * (right & (size > 0))).cumsum(axis=1)
        as_ties = (weights * tied).cumsum(axis=1) + before[:, -1:] - before
        none_tied = before[:, -1:] if len(x) and size[0] > 0 else before[:, :0]
        best = np.concatenate([none_tied, as_ties[:, ends]], axis=1).max(axis=1, initial=0)
        with np.errstate(invalid="ignore"):
            accuracy.append((weights * half).sum(axis=1) / (weights * decided).sum(axis=1))
            with_ties.append(best / weights.sum(axis=1))
    return {"accuracy": np.concatenate(accuracy), "accuracy_with_ties": np.concatenate(with_ties)}


def _parts(draws: Int, labels: int) -> Iterator[Int]:
    """Resamples, so many at once as fit into `CHUNK` numbers for these labels."""
    step = max(1, CHUNK // max(labels, 1))
    return (draws[start : start + step] for start in range(0, len(draws), step))


def _estimate(statistic: Float) -> Estimate:
    point = float(statistic[0])
    low, high = (np.nan, np.nan) if np.isnan(point) else intervals.interval(statistic[1:])
    return Estimate(point, low, high)
