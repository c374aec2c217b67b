"""What the papers claim, which of our conditions tests it, and what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["shown", "not shown", "opposite"]
Measures = Mapping[tuple[str, int], Mapping[str, float]]
"""(condition, seed) -> measures."""

MARGIN = 0.05
"""Differences within this much of 0 are none, for a claim that there is none."""


@dataclass(frozen=True)
class Claim:
    """A claim as a difference between two conditions in one measure, fixed before anything was run."""

    source: str
    says: str
    figure: str
    """The paper's, where our sources have one."""
    condition: str
    baseline: str
    measure: str
    sign: int
    """1: the condition has more than the baseline; -1: less; 0: as much."""


@dataclass(frozen=True)
class Finding:
    """A paired difference: mean over seeds and its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float
    seeds: int

    def verdict(self, sign: int) -> Verdict:
        """What it says of a claim with this sign."""
        if not sign:
            if self.low > -MARGIN and self.high < MARGIN:
                return "shown"
            return "opposite" if self.low > MARGIN or self.high < -MARGIN else "not shown"
        if not self.apart:
            return "not shown"
        return "shown" if self.mean * sign > 0 else "opposite"

    @property
    def apart(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def mean_with_interval(values: Sequence[float], level: float = 0.95) -> Finding:
    """Of numbers that are independent and near enough to normal; bounds are NaN for fewer than two."""
    from scipy import stats

    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Finding(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Finding(mean, mean - half, mean + half, n)


def difference(measures: Measures, condition: str, baseline: str, measure: str) -> Finding | None:
    """Condition less baseline, paired by seed; None where no seed has both."""
    seeds = [seed for name, seed in measures if name == condition and (baseline, seed) in measures]
    values = [measures[condition, seed][measure] - measures[baseline, seed][measure] for seed in seeds]
    return mean_with_interval(values) if values else None


BALCAPRL, CAPRL, RUBICAP, GDPO = "BalCapRL", "CapRL", "RubiCap", "GDPO"
NO_FIGURE = "-"
OUTCOME = "DCScore 50.8 against 38.0, CaptionQA 75.0 against 67.0, CapArena -3.8 against -71.8"
PROSE = "DCScore 50.8 to 39.2, CaptionQA 75.0 to 63.5, meta commentary appears"
LONGER = "DCScore and CaptionQA up, CapArena -12 to -51, 375 words against 175"
CLAIMS: tuple[Claim, ...] = (
    Claim(BALCAPRL, "c-GDPO beats GRPO, rewards on one scale", OUTCOME, "c-GDPO", "GRPO", "b_capscore", 1),
    Claim(BALCAPRL, "... in recall", OUTCOME, "c-GDPO", "GRPO", "coverage", 1),
    Claim(BALCAPRL, "... in QA", OUTCOME, "c-GDPO", "GRPO", "qa", 1),
    Claim(
        GDPO,
        "fluency on 0 to 5: GDPO keeps recall",
        NO_FIGURE,
        "c-GDPO, fluency x 5",
        "GRPO, fluency x 5",
        "coverage",
        1,
    ),
    Claim(GDPO, "... and QA", NO_FIGURE, "c-GDPO, fluency x 5", "GRPO, fluency x 5", "qa", 1),
    Claim(
        GDPO,
        "fluency on 0 to 0.2: GDPO keeps fluency",
        NO_FIGURE,
        "c-GDPO, fluency x 0.2",
        "GRPO, fluency x 0.2",
        "fluency",
        1,
    ),
    Claim(
        GDPO, "... and writes no longer", NO_FIGURE, "c-GDPO, fluency x 0.2", "GRPO, fluency x 0.2", "length_ratio", -1
    ),
    Claim(GDPO, "GDPO does not see the scale (x 5)", NO_FIGURE, "c-GDPO, fluency x 5", "c-GDPO", "b_capscore", 0),
    Claim(GDPO, "GDPO does not see the scale (x 0.2)", NO_FIGURE, "c-GDPO, fluency x 0.2", "c-GDPO", "b_capscore", 0),
    Claim(GDPO, "GRPO follows the scale (x 5)", NO_FIGURE, "GRPO, fluency x 5", "GRPO", "coverage", -1),
    Claim(GDPO, "GRPO follows the scale (x 0.2)", NO_FIGURE, "GRPO, fluency x 0.2", "GRPO", "fluency", -1),
    Claim(
        BALCAPRL,
        "c-GDPO beats GRPO, noisy judge",
        NO_FIGURE,
        "c-GDPO, noisy judge",
        "GRPO, noisy judge",
        "b_capscore",
        1,
    ),
    Claim(BALCAPRL, "a noisy judge costs quality", NO_FIGURE, "c-GDPO, noisy judge", "c-GDPO", "b_capscore", -1),
    Claim(BALCAPRL, "without precision: less precise", NO_FIGURE, "without precision", "c-GDPO", "precision", -1),
    Claim(BALCAPRL, "without recall: covers less", NO_FIGURE, "without recall", "c-GDPO", "coverage", -1),
    Claim(BALCAPRL, "without linguistic: worse language", LONGER, "without linguistic", "c-GDPO", "fluency", -1),
    Claim(BALCAPRL, "... longer", LONGER, "without linguistic", "c-GDPO", "words", 1),
    Claim(BALCAPRL, "... more QA", LONGER, "without linguistic", "c-GDPO", "qa", 1),
    Claim(
        BALCAPRL,
        "the same where a repeated claim counts again: worse language",
        LONGER,
        "repeats count, without linguistic",
        "repeats count",
        "fluency",
        -1,
    ),
    Claim(BALCAPRL, "... longer", LONGER, "repeats count, without linguistic", "repeats count", "words", 1),
    Claim(
        BALCAPRL, "... repeats itself", NO_FIGURE, "repeats count, without linguistic", "repeats count", "repeated", 1
    ),
    Claim(BALCAPRL, "without pointability: commentary", PROSE, "without pointability", "c-GDPO", "commentary", 1),
    Claim(
        BALCAPRL, "... prose liked: commentary", PROSE, "without pointability, prose liked", "c-GDPO", "commentary", 1
    ),
    Claim(BALCAPRL, "... and less recall", PROSE, "without pointability, prose liked", "c-GDPO", "coverage", -1),
    Claim(
        BALCAPRL,
        "half of the start's captions comment: commentary stays",
        PROSE,
        "chatty, without pointability",
        "chatty",
        "commentary",
        1,
    ),
    Claim(
        BALCAPRL,
        "... prose liked: commentary stays",
        PROSE,
        "chatty, without pointability, prose liked",
        "chatty",
        "commentary",
        1,
    ),
    Claim(
        BALCAPRL,
        "... prose liked: there is more of it than at the start",
        PROSE,
        "chatty, without pointability, prose liked",
        "start, chatty",
        "commentary",
        1,
    ),
    Claim(
        BALCAPRL, "... and less recall", PROSE, "chatty, without pointability, prose liked", "chatty", "coverage", -1
    ),
    Claim(BALCAPRL, "without the length mask: longer", NO_FIGURE, "without mask", "c-GDPO", "words", 1),
    Claim(BALCAPRL, "without the length mask: worse", NO_FIGURE, "without mask", "c-GDPO", "b_capscore", -1),
    Claim(
        BALCAPRL, "a wider mask: more QA", "CaptionQA and DCScore up, CapArena down", "mask up to 4", "c-GDPO", "qa", 1
    ),
    Claim(BALCAPRL, "a linear penalty is worse than the mask", NO_FIGURE, "linear penalty", "c-GDPO", "b_capscore", -1),
    Claim(CAPRL, "the utility reward teaches QA", NO_FIGURE, "QA", "start", "qa", 1),
    Claim(BALCAPRL, "utility only: more QA than BalCapRL", "CaptionQA 82.6 against 75.0", "QA", "c-GDPO", "qa", 1),
    Claim(BALCAPRL, "utility only: longer", "403 words against 175", "QA", "c-GDPO", "words", 1),
    Claim(BALCAPRL, "utility only: worse language", "CapArena -50.6 against -3.8", "QA", "c-GDPO", "fluency", -1),
    Claim(CAPRL, "four draws beat one", "48.4 against 47.3", "QA, N = 4", "QA, N = 1", "qa", 1),
    Claim(CAPRL, "two draws beat one", NO_FIGURE, "QA, N = 2", "QA, N = 1", "qa", 1),
    Claim(CAPRL, "eight draws are no better than four", NO_FIGURE, "QA, N = 8", "QA, N = 4", "qa", 0),
    Claim(CAPRL, "many questions an image beat one", NO_FIGURE, "QA", "QA, one question an image", "qa", 1),
    Claim(
        CAPRL, "filtered questions beat leaking ones", "48.5 against 47.4", "QA, N = 4", "QA, N = 4, leaking", "qa", 1
    ),
    Claim(
        CAPRL,
        "shuffling answers a biased answerer: QA",
        NO_FIGURE,
        "QA, biased answerer",
        "QA, biased answerer, not shuffled",
        "qa",
        1,
    ),
    Claim(
        CAPRL, "shuffling is enough: as good as an unbiased answerer", NO_FIGURE, "QA, biased answerer", "QA", "qa", 0
    ),
    Claim(RUBICAP, "the rubric reward meets more criteria", NO_FIGURE, "rubric", "start", "rubric", 1),
    Claim(
        RUBICAP,
        "the rubric beats SFT on the start's captions",
        NO_FIGURE,
        "rubric",
        "SFT on the warm-up's captions",
        "rubric",
        1,
    ),
    Claim(RUBICAP, "the rubric beats SFT on the references", NO_FIGURE, "rubric", "SFT on references", "rubric", 1),
    Claim(RUBICAP, "the rubric beats a Likert judge", NO_FIGURE, "rubric", "Likert", "rubric", 1),
    Claim(RUBICAP, "... one with a reference", NO_FIGURE, "rubric", "Likert, with reference", "rubric", 1),
    Claim(RUBICAP, "a Likert judge is flattered: self-praise", "appears", "Likert", "start", "praise", 1),
    Claim(RUBICAP, "... one with a reference", "appears", "Likert, with reference", "start", "praise", 1),
    Claim(
        RUBICAP,
        "... one that wants completeness and believes its word",
        "appears",
        "Likert, wants completeness",
        "start",
        "praise",
        1,
    ),
    Claim(
        RUBICAP,
        "... from a start in which one caption in seven praises itself",
        "appears",
        "chatty, Likert, wants completeness",
        "start, chatty",
        "praise",
        1,
    ),
    Claim(RUBICAP, "the rubric beats that judge too", NO_FIGURE, "rubric", "Likert, wants completeness", "rubric", 1),
    Claim("control", "the same condition sampled again", "", "c-GDPO, sampled again", "c-GDPO", "b_capscore", 0),
    Claim("control", "... in QA", "", "c-GDPO, sampled again", "c-GDPO", "qa", 0),
)
