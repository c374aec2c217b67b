"""The conditions that are trained, each as one suite, one estimator and one start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import faults
import numpy as np

from capreward import LengthMask, QAUtility, RewardSuite, advantage, presets
from capreward.advantage import Estimator
from capreward.components import LikertJudge, LinearLengthPenalty
from capreward.records import Item
from capreward.shapes import ShapesJudge

STARTS = {"start": "ordinary", "start, chatty": "chatty"}
"""What is measured without any training, and the kind of warm-up it had."""


@dataclass(frozen=True)
class Scaled:
    """An estimator that is handed fluency on another scale, such as 0 to 5 in place of 0 to 1."""

    estimator: Estimator
    factor: float
    column: int = 2
    """Of fluency in `presets.balcaprl`."""

    def __call__(self, values: Any, groups: Any, weights: Any = None) -> Any:
        values = np.array(values, dtype=np.float64)
        values[:, self.column] *= self.factor
        return self.estimator(values, groups, weights)


@dataclass(frozen=True)
class Condition:
    """One way to train."""

    name: str
    suite: Callable[[], RewardSuite] | None
    """None: supervised, on captions."""
    estimator: Estimator = advantage.gdpo
    start: str = "ordinary"
    """What share of the warm-up's captions hold commentary: "ordinary" one in twenty, "chatty" half."""
    items: Callable[[Item], Item] | None = None
    """Changes the items that are trained on, not those that are measured."""
    sampling: int = 0
    """Added to the seed of sampling and of the order of items."""
    captions: str = ""
    """Supervised: "references" or "warm-up"."""
    traced: bool = False
    """Keep the correlations of every estimator's advantages along the run."""


def balcaprl(
    judge: type[ShapesJudge] | partial[Any] = ShapesJudge, *, without: str = "", **options: Any
) -> RewardSuite:
    return presets.balcaprl(judge(), weights={without: 0.0} if without else {}, **options)


def qa(judge: type[ShapesJudge] = ShapesJudge, **options: Any) -> RewardSuite:
    return RewardSuite({"qa": QAUtility(judge(), **options)})


def likert(judge: type[ShapesJudge] = ShapesJudge, **options: Any) -> RewardSuite:
    return RewardSuite({"likert": LikertJudge(judge(), **options)})


def rubicap() -> RewardSuite:
    return presets.rubicap(ShapesJudge())


def _all() -> Sequence[Condition]:
    grpo, gdpo = advantage.grpo, advantage.gdpo
    noisy, again = partial(balcaprl, faults.Noisy), partial(balcaprl, faults.CountsAgain)
    unpointed = partial(balcaprl, faults.Unpointed)
    prose = partial(balcaprl, partial(faults.Unpointed, likes_prose=True))
    utility = partial(Condition, estimator=grpo)
    return (
        Condition("c-GDPO", balcaprl, traced=True),
        Condition("c-GDPO, sampled again", balcaprl, sampling=1000),
        Condition("GRPO", balcaprl, grpo, traced=True),
        Condition("c-GDPO, fluency x 0.2", balcaprl, Scaled(gdpo, 0.2)),
        Condition("GRPO, fluency x 0.2", balcaprl, Scaled(grpo, 0.2)),
        Condition("c-GDPO, fluency x 5", balcaprl, Scaled(gdpo, 5.0)),
        Condition("GRPO, fluency x 5", balcaprl, Scaled(grpo, 5.0)),
        Condition("c-GDPO, noisy judge", noisy),
        Condition("GRPO, noisy judge", noisy, grpo),
        Condition("without precision", partial(balcaprl, without="precision")),
        Condition("without recall", partial(balcaprl, without="coverage")),
        Condition("without linguistic", partial(balcaprl, without="fluency")),
        Condition("repeats count", again),
        Condition("repeats count, without linguistic", partial(again, without="fluency")),
        Condition("without pointability", unpointed),
        Condition("without pointability, prose liked", prose),
        Condition("chatty", balcaprl, start="chatty"),
        Condition("chatty, without pointability", unpointed, start="chatty"),
        Condition("chatty, without pointability, prose liked", prose, start="chatty"),
        Condition("without mask", partial(balcaprl, gates=[])),
        Condition("mask up to 4", partial(balcaprl, gates=[LengthMask("fluency", 0.5, 4.0)])),
        Condition("linear penalty", partial(balcaprl, gates=[LinearLengthPenalty("fluency")])),
        utility("QA", qa),
        utility("QA, N = 1", partial(qa, draws=1)),
        utility("QA, N = 2", partial(qa, draws=2)),
        utility("QA, N = 4", partial(qa, draws=4)),
        utility("QA, N = 8", partial(qa, draws=8)),
        utility("QA, one question an image", qa, items=faults.one_question),
        utility("QA, N = 4, leaking", partial(qa, faults.ReadsTheQuestion, draws=4), items=faults.leaking),
        utility("QA, biased answerer", partial(qa, faults.LikesTheFirst), items=faults.right_first(0.7)),
        utility(
            "QA, biased answerer, not shuffled",
            partial(qa, faults.LikesTheFirst, shuffle=False),
            items=faults.right_first(0.7),
        ),
        utility("rubric", rubicap),
        utility("Likert", likert),
        utility("Likert, wants completeness", partial(likert, faults.TakesItsWord)),
        utility("chatty, Likert, wants completeness", partial(likert, faults.TakesItsWord), start="chatty"),
        utility("Likert, with reference", partial(likert, faults.Unseeing, reference=True)),
        Condition("SFT on references", None, captions="references"),
        Condition("SFT on the warm-up's captions", None, captions="warm-up"),
    )


CONDITIONS = {condition.name: condition for condition in _all()}
