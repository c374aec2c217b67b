"""The papers' suites in one call, with any judge. Each docstring says what is the paper's and what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from capreward.components import Coverage, Fluency, LengthMask, Precision, QAUtility, RubricJudge
from capreward.judges.base import Judge
from capreward.scoring import Component
from capreward.suite import RewardSuite


def balcaprl(judge: Judge, **options: Any) -> RewardSuite:
    """BalCapRL (arXiv 2605.07394): precision, coverage and fluency, equally weighted; fluency masked outside [0.5, 2].

    With a judge that sees images precision is the paper's. With another it is held against the item's labelled facts, and
    its name says so.
    `options` go to `RewardSuite`.
    """
    return _suite(Precision(judge), Coverage(judge), Fluency(judge), **{"gates": [LengthMask("fluency")], **options})


def caprl(judge: Judge, **options: Any) -> RewardSuite:
    """CapRL (arXiv 2509.22647): the share of an image's questions that can be answered from the caption alone.

    All questions are asked, where the paper draws N of them. `options` go to `RewardSuite`.
    """
    return _suite(QAUtility(judge), **options)


def rubicap(judge: Judge, **options: Any) -> RewardSuite:
    """RubiCap (arXiv 2603.09160): weight of the item's criteria met over the weight of all. `options` go to `RewardSuite`."""
    return _suite(RubricJudge(judge), **options)


def everything(judge: Judge, **options: Any) -> RewardSuite:
    """Every judged component at once, fluency masked by length: for looking at captions, not from a paper."""
    return _suite(
        QAUtility(judge),
        Precision(judge),
        Coverage(judge),
        RubricJudge(judge),
        Fluency(judge),
        **{"gates": [LengthMask("fluency")], **options},
    )


PRESETS: dict[str, Callable[..., RewardSuite]] = {
    "balcaprl": balcaprl,
    "caprl": caprl,
    "rubicap": rubicap,
    "everything": everything,
}
"""The suites by the name that the command line takes."""


def _suite(*components: Component, **options: Any) -> RewardSuite:
    return RewardSuite({component.name: component for component in components}, **options)
