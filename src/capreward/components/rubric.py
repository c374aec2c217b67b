"""Rubric: which of the item's criteria does the caption meet?"""

from __future__ import annotations

from collections.abc import Sequence

from capreward.judges.base import Judge, Request, Task, ask_each, require
from capreward.missing import Missing, Reason
from capreward.records import Rollout
from capreward.scoring import Score, scores_empty_as_zero


class RubricJudge:
    """Weight of the criteria met over the weight of all (RubiCap, arXiv 2603.09160).

    A criterion is met when the judge holds it for more likely than not. The reply has to cover every criterion, else the
    score is Missing. With the lite judge a criterion counts as met when a sentence of the caption resembles it: sound
    for "mentions the spoon", blind to "says that the cup is NOT white".

    Missing: the item has no rubric (`no_rubric`), or the judge failed.

    Raises:
        InputError: a judge that lacks the task `support`.
    """

    name = "rubric"

    def __init__(self, judge: Judge) -> None:
        self.judge = require(judge, "RubricJudge", Task.SUPPORT)

    @scores_empty_as_zero
    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        """Values in [0, 1]; evidence: met or not, and the weight, by criterion."""
        replies = await ask_each(
            self.judge,
            [
                [Request(Task.SUPPORT, r.caption, tuple(c.text for c in r.item.rubric))] * bool(r.item.rubric)
                for r in rollouts
            ],
        )
        scores: list[Score | Missing] = []
        for rollout, answers in zip(rollouts, replies, strict=True):
            if not answers:
                scores.append(Missing(Reason.NO_RUBRIC, f"item {rollout.item.id!r} has no rubric"))
                continue
            (reply,) = answers
            if isinstance(reply, Missing):
                scores.append(reply)
                continue
            reasons = reply.why or ("",) * len(reply.values)
            verdicts = [
                {
                    "criterion": criterion.text,
                    "weight": criterion.weight,
                    "met": p >= 0.5,
                    **({"why": why} if why else {}),
                }
                for criterion, p, why in zip(rollout.item.rubric, reply.values, reasons, strict=True)
            ]
            weight = sum(c.weight for c in rollout.item.rubric)
            met = sum(c.weight for c, p in zip(rollout.item.rubric, reply.values, strict=True) if p >= 0.5)
            scores.append(Score(met / weight, f"met {met:g} of {weight:g}", {"criteria": verdicts}))
        return scores
