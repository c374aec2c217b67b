"""Likert: one holistic score. The baseline that CapRL and RubiCap beat, and that learns to be flattered."""

from __future__ import annotations

from collections.abc import Sequence

from capreward.judges.base import Judge, Request, Task, ask_each, require
from capreward.missing import Missing, Reason
from capreward.records import Rollout
from capreward.scoring import Score, scores_empty_as_zero


class LikertJudge:
    """The judge's overall rating of the caption from 1 to 5, mapped to [0, 1].

    A baseline: a policy trained on it learns to praise itself (RubiCap, arXiv 2603.09160).

    Args:
        judge: rates; one that sees images is shown the item's, if there is one.
        reference: show it the item's first reference too.

    Missing: no reference where one is to be shown (`no_reference`), or the judge failed.

    Raises:
        InputError: a judge that lacks the task `likert`.
    """

    def __init__(self, judge: Judge, *, reference: bool = False) -> None:
        self.judge = require(judge, "LikertJudge", Task.LIKERT)
        self.reference = reference
        self.name = "likert_with_reference" if reference else "likert"

    @scores_empty_as_zero
    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        """Values in [0, 1]; evidence: the judge's reason."""
        replies = await ask_each(self.judge, [self._requests(rollout) for rollout in rollouts])
        scores: list[Score | Missing] = []
        for rollout, answers in zip(rollouts, replies, strict=True):
            if not answers:
                scores.append(Missing(Reason.NO_REFERENCE, f"item {rollout.item.id!r} has no references"))
            elif isinstance(reply := answers[0], Missing):
                scores.append(reply)
            else:
                scores.append(Score(reply.values[0], "; ".join(reply.why), {"why": list(reply.why)}))
        return scores

    def _requests(self, rollout: Rollout) -> list[Request]:
        if self.reference and not rollout.item.references:
            return []
        image = rollout.item.image
        images = (image,) if self.judge.images and image is not None else ()
        shown = rollout.item.references[0] if self.reference else ""
        return [Request(Task.LIKERT, rollout.caption, ("overall",), shown, images)]
