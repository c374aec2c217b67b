"""b-CapScore (BalCapRL, arXiv 2605.07394): the harmonic mean of precision, recall and linguistic quality.

The paper's three numbers are the three rewards it trains on; here they are the components `Precision`, `Coverage` and
`Fluency`. We know the paper by way of a summary that does not say whether a model's score is the mean of its captions'
harmonic means or the harmonic mean of its three means, so `over` offers both.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from capreward.errors import InputError
from capreward.groups import Float

Over = Literal["captions", "means"]


def b_capscore(precision: ArrayLike, recall: ArrayLike, linguistic: ArrayLike) -> Float:
    """``3 / (1/precision + 1/recall + 1/linguistic)`` of each caption, [B], in [0, 1].

    0 where one of the three is 0, NaN where one of them is missing (NaN): with two of three there is no b-CapScore.

    Raises:
        InputError: numbers outside [0, 1], or lists of different lengths.
    """
    parts = _checked(precision, recall, linguistic)
    return harmonic(parts)


def b_capscore_of_set(
    precision: ArrayLike, recall: ArrayLike, linguistic: ArrayLike, *, over: Over = "captions"
) -> float:
    """b-CapScore of a captioner, in [0, 1]; over the captions that have all three scores, NaN without any.

    Args:
        precision, recall, linguistic: of B captions, [B]; NaN = missing.
        over: ``"captions"``: mean of the captions' harmonic means, so that one caption's precision does not
            make up for another's recall. ``"means"``: harmonic mean of the three means, never below the other.

    Raises:
        InputError: as `b_capscore`, or another `over`.
    """
    if over not in ("captions", "means"):
        raise InputError(f"over: got {over!r}, expected 'captions' or 'means'")
    parts = _checked(precision, recall, linguistic)
    complete = parts[:, ~np.isnan(parts).any(axis=0)]
    if not complete.shape[1]:
        return float("nan")
    return float(harmonic(complete).mean() if over == "captions" else harmonic(complete.mean(axis=1)))


def harmonic(parts: Float) -> Float:
    """Harmonic mean over the first axis; 0 where a part is 0, NaN where one is NaN."""
    with np.errstate(over="ignore"):  # the inverse of a number just above 0 is infinite too
        inverse = np.divide(1.0, parts, out=np.full(parts.shape, np.inf), where=parts != 0)
    return np.asarray(len(parts) / inverse.sum(axis=0))


def _checked(*lists: ArrayLike) -> Float:
    """[3, B]"""
    names = ("precision", "recall", "linguistic")
    arrays = [np.asarray(numbers, np.float64) for numbers in lists]
    for name, array in zip(names, arrays, strict=True):
        if array.ndim != 1 or len(array) != len(arrays[0]):
            raise InputError(
                f"{name}: got shape {array.shape}, expected one number a caption: {len(np.atleast_1d(arrays[0]))}"
            )
        wrong = array[(array < 0) | (array > 1)]
        if len(wrong):
            raise InputError(f"{name}: got {wrong[0]}, expected numbers in [0, 1], or NaN where missing")
    return np.stack(arrays)
