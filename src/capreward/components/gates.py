"""Gates: what becomes of a score when the caption's length, or another score, is out of bounds.

Lengths are counted in words unless told otherwise; the reference length is the mean over the item's references.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from capreward.errors import InputError
from capreward.groups import Float
from capreward.missing import Missing, Reason
from capreward.records import Rollout, count_words
from capreward.scoring import Score

Count = Callable[[str], int]


def tokens(tokenizer: Any) -> Count:
    """Counts in a Hugging Face tokenizer's tokens, without special tokens: `LengthMask("fluency", count=tokens(tokenizer))`."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def length_ratio(rollout: Rollout, count: Count) -> float | Missing:
    """Length of the caption over the mean length of the item's references; Missing without references."""
    lengths = [count(reference) for reference in rollout.item.references]
    if not sum(lengths):
        return Missing(Reason.NO_REFERENCE, f"item {rollout.item.id!r} has no reference to compare the length with")
    return count(rollout.caption) * len(lengths) / sum(lengths)  # one rounding, so that bounds are exact


class _LengthGate(ABC):
    """Base of the gates that look at nothing but a caption's length; they need no judge, so they run first."""

    reads: tuple[str, ...] = ()

    def __init__(self, target: str, count: Count) -> None:
        self.target, self.count = target, count

    @abstractmethod
    def of(self, ratios: Float) -> Float:
        """Factors of length ratios, [B]; NaN of NaN."""

    @abstractmethod
    def why(self, ratio: float) -> str:
        """The factor of a ratio, in a phrase."""

    def factors(self, rollouts: Sequence[Rollout], values: Mapping[str, Float]) -> list[Score | Missing]:
        """A factor in [0, 1] for each; Missing without a reference."""
        ratios = [length_ratio(rollout, self.count) for rollout in rollouts]
        numbers = self.of(np.array([math.nan if isinstance(ratio, Missing) else ratio for ratio in ratios]))
        return [
            ratio if isinstance(ratio, Missing) else Score(number, self.why(ratio))
            for ratio, number in zip(ratios, numbers.tolist(), strict=True)
        ]


class LengthMask(_LengthGate):
    """Sets the target's score to 0 where the length ratio lies outside [low, high].

    BalCapRL's length-conditional reward masking with its bounds [0.5, 2] (arXiv 2605.07394): `target` is the linguistic
    reward there. It needs no judge, so it runs first, and the judge is not asked about what it sets to 0.
    With no reference the target's score is Missing.

    Args:
        target: name of the component whose scores it gates.
        low, high: allowed ratio of the caption's length to the mean reference length, bounds included.
        count: length of a text; words by default, `tokens(tokenizer)` for the policy's tokens.

    Raises:
        InputError: bounds that are no interval; `high` may be infinite.
    """

    def __init__(self, target: str, low: float = 0.5, high: float = 2.0, *, count: Count = count_words) -> None:
        if not (math.isfinite(low) and 0 <= low < high):
            raise InputError(f"LengthMask({target!r}): got low={low}, high={high}, expected 0 <= low < high")
        super().__init__(target, count)
        self.low, self.high = low, high

    def of(self, ratios: Float) -> Float:
        """1 inside the bounds, 0 outside, NaN of NaN, [B]."""
        return np.where(np.isnan(ratios), np.nan, (self.low <= ratios) & (ratios <= self.high))

    def why(self, ratio: float) -> str:
        """The factor of a ratio, in a phrase."""
        return f"length {ratio:.2f} x reference, allowed {self.low:g} to {self.high:g}"


class LinearLengthPenalty(_LengthGate):
    """Lowers the target's score for overlength: untouched up to `start`, 0 from `end` on, falling linearly between.

    A baseline for BalCapRL's mask, in a form of our own. It needs no judge; with no reference the target's score is Missing.

    Args:
        target: name of the component whose scores it gates.
        start, end: ratios of the caption's length to the mean reference length, 0 <= start < end.
        count: as in `LengthMask`.

    Raises:
        InputError: ratios out of order, or an infinite `end`.
    """

    def __init__(self, target: str, start: float = 1.0, end: float = 2.0, *, count: Count = count_words) -> None:
        if not (math.isfinite(end) and 0 <= start < end):
            raise InputError(
                f"LinearLengthPenalty({target!r}): got start={start}, end={end}, expected 0 <= start < end"
            )
        super().__init__(target, count)
        self.start, self.end = start, end

    def of(self, ratios: Float) -> Float:
        """1 up to `start`, 0 from `end` on, NaN of NaN, [B]."""
        return np.clip((self.end - ratios) / (self.end - self.start), 0.0, 1.0)

    def why(self, ratio: float) -> str:
        """The factor of a ratio, in a phrase."""
        return f"length {ratio:.2f} x reference, full up to {self.start:g}, none from {self.end:g}"


class Condition:
    """The target's score counts only where another component's score is high enough, else it is 0.

    GDPO's conditioned reward, ``r_k if r_l >= t else 0`` (arXiv 2601.05242, Eq. 8). Where the other score is Missing, so
    is the target's. It reads the other score as gated so far: by the gates that read no component,
    and by those listed before it.

    Args:
        target: name of the component whose scores it gates.
        on: name of the component that it reads.
        at_least: threshold t, in (0, 1].

    Raises:
        InputError: a threshold outside (0, 1], or one component for both.
    """

    def __init__(self, target: str, on: str, at_least: float) -> None:
        if target == on:
            raise InputError(f"Condition: target and on are both {target!r}; expected two different components")
        if not 0 < at_least <= 1:
            raise InputError(f"Condition({target!r}, on={on!r}): got at_least={at_least}, expected a number in (0, 1]")
        self.target, self.on, self.at_least = target, on, at_least
        self.reads: tuple[str, ...] = (on,)

    def of(self, values: Float) -> Float:
        """1 where the other component's score is at least `at_least`, else 0, NaN of NaN, [B]."""
        return np.where(np.isnan(values), np.nan, values >= self.at_least)

    def factors(self, rollouts: Sequence[Rollout], values: Mapping[str, Float]) -> list[Score | Missing]:
        """A factor of 1 or 0 for each; Missing where the other score is."""
        read = values[self.on]
        return [
            Missing(Reason.DEPENDS, f"needs {self.on!r}, which is missing")
            if math.isnan(factor)
            else Score(factor, f"{self.on} is {value:.2f}, needs {self.at_least:g}")
            for value, factor in zip(read.tolist(), self.of(read).tolist(), strict=True)
        ]
