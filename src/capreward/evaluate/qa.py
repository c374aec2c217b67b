"""What a reader who has only the caption can answer: Prism's accuracy, CaptionQA's score, both within a budget of words.

Asking is `components.QAUtility`'s: these functions only set it as the benchmarks do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from capreward.components import QAUtility
from capreward.errors import InputError
from capreward.judges.base import Judge
from capreward.missing import Missing
from capreward.records import Rollout, count_words
from capreward.scoring import Component, Score


def prism(judge: Judge, *, seed: int = 0) -> QAUtility:
    """Prism's score: share of an image's questions that a judge answers right from the caption alone, in [0, 1].

    As CapRL (arXiv 2509.22647) reports it. All questions are asked, once each, at temperature 0; right options
    are spread evenly over the positions, the same way for every captioner. Missing: see `QAUtility`.
    """
    return QAUtility(judge, seed=seed)


def caption_qa(judge: Judge, *, seed: int = 0) -> QAUtility:
    """CaptionQA's score (arXiv 2511.21025), in [0, 1]: right 1, wrong 0, "cannot be answered" 1/n + 0.05 for n options.

    That answer is not offered beside yes and no. Otherwise as `prism`.
    """
    return QAUtility(judge, cannot_answer=True, seed=seed)


class WithinBudget:
    """A component's score of captions that are cut after so many words: how much a caption says early and briefly.

    RubiCap (arXiv 2603.09160) shows CaptionQA under budgets of 100 to 600 words. A caption that keeps within the
    budget scores what it scores without one.

    Args:
        component: scores what is left.
        budget: words, >= 1.
    """

    def __init__(self, component: Component, budget: int) -> None:
        if budget < 1:
            raise InputError(f"WithinBudget: got budget={budget}, expected a number of words >= 1")
        self.component, self.budget = component, budget
        self.name = f"{component.name}@{budget}"

    async def score(self, rollouts: Sequence[Rollout]) -> Sequence[Score | Missing]:
        """The component's scores, in the same order."""
        shortened = [rollout.model_copy(update={"caption": cut(rollout.caption, self.budget)}) for rollout in rollouts]
        return await self.component.score(shortened)


def cut(caption: str, budget: int) -> str:
    """The caption up to the last white space before it exceeds `budget` words (counted as `records.count_words` does).

    A first run without white space that is longer than the budget is cut away whole: for languages written without spaces a
    budget of words means little.
    """
    end = left = 0
    for run in re.finditer(r"\S+", caption):
        left += count_words(run[0])
        if left > budget:
            return caption[:end]
        end = run.end()
    return caption
