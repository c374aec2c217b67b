"""The papers' suites in one call, with any judge. Each docstring says what is the paper's and what is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from capreward.components import Condition, Coverage, Fluency, LengthMask, Precision, QAUtility, RubricJudge
from capreward.errors import InputError
from capreward.judges.base import Judge
from capreward.scoring import Component
from capreward.suite import RewardSuite


def balcaprl(judge: Judge, **options: Any) -> RewardSuite:
    """BalCapRL (arXiv 2605.07394): precision, coverage and fluency, equally weighted; fluency masked outside [0.5, 2].

    With a judge that sees images precision is the paper's. With another it is held against the item's labelled facts, and
    its name says so.
    `options` go to `RewardSuite`, and `precise` is a guard of ours, as in all presets: see `guarded`.
    """
    return _suite(
        judge, Precision(judge), Coverage(judge), Fluency(judge), **{"gates": [LengthMask("fluency")], **options}
    )


def caprl(judge: Judge, **options: Any) -> RewardSuite:
    """CapRL (arXiv 2509.22647): the share of an image's questions that can be answered from the caption alone.

    All questions are asked, where the paper draws N of them. `options` as in `balcaprl`.
    """
    return _suite(judge, QAUtility(judge), **options)


def rubicap(judge: Judge, **options: Any) -> RewardSuite:
    """RubiCap (arXiv 2603.09160): weight of the item's criteria met over the weight of all. `options` as in `balcaprl`."""
    return _suite(judge, RubricJudge(judge), **options)


def everything(judge: Judge, **options: Any) -> RewardSuite:
    """Every judged component at once, fluency masked by length: for looking at captions, not from a paper."""
    return _suite(
        judge,
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


def guarded(components: Sequence[Component], judge: Judge, precise: float, **options: Any) -> RewardSuite:
    """A suite in which all else counts only where precision is at least `precise` (GDPO's conditioned reward).

    Not from these papers: most attacks of `capreward probe` that win elsewhere say little that is true of the image. Where
    `components` hold no precision it is added with the weight 0, so that it gates and is not rewarded. It costs the judge's
    calls for precision, and where that is missing the others are too.

    Args:
        components: of the suite.
        judge: for the precision that is added.
        precise: least precision in (0, 1]; below what most honest captions of the policy reach, or little is left to learn from.
        options: to `RewardSuite`; the conditions come after its `gates`.

    Raises:
        InputError: `precise` outside (0, 1], and as `RewardSuite`.
    """
    if not 0 < precise <= 1:
        raise InputError(f"precise: got {precise}, expected a number in (0, 1]")
    found = [component for component in components if isinstance(component, Precision)]
    precision = found[0] if found else Precision(judge)
    others = [component.name for component in components if component is not precision]
    options["gates"] = [
        *options.get("gates", ()),
        *(Condition(name, on=precision.name, at_least=precise) for name in others),
    ]
    if not found:
        options["weights"] = {precision.name: 0.0, **(options.get("weights") or {})}
    return RewardSuite({component.name: component for component in (*components, precision)}, **options)


def _suite(judge: Judge, *components: Component, precise: float | None = None, **options: Any) -> RewardSuite:
    if precise is not None:
        return guarded(components, judge, precise, **options)
    return RewardSuite({component.name: component for component in components}, **options)
