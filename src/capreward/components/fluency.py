"""Fluency: how well the caption is written, whatever it says."""

from __future__ import annotations

from collections.abc import Sequence

from capreward.judges.base import Judge, Request, Task, ask_each, require
from capreward.missing import Missing
from capreward.records import Rollout
from capreward.scoring import Score, scores_empty_as_zero

ASPECTS = ("clarity", "fluency", "coherence")


class Fluency:
    """Mean of the judge's ratings of clarity, fluency and coherence (BalCapRL's linguistic reward, arXiv 2605.07394).

    Never Missing for want of data: it reads the caption alone. With the lite judge, clarity is the share of 4-grams that
    are not repeats, fluency the share of sentences without a grammatical error, and coherence the share of function words
    up to that of prose: it sees loops, broken grammar and keyword lists, and nothing else.

    Raises:
        InputError: a judge that lacks the task `rate`.
    """

    name = "fluency"

    def __init__(self, judge: Judge) -> None:
        self.judge = require(judge, "Fluency", Task.RATE)

    @scores_empty_as_zero
    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        """Values in [0, 1]; evidence: the rating of each aspect."""
        replies = await ask_each(self.judge, [[Request(Task.RATE, r.caption, ASPECTS)] for r in rollouts])
        scores: list[Score | Missing] = []
        for (reply,) in replies:
            if isinstance(reply, Missing):
                scores.append(reply)
                continue
            ratings = dict(zip(ASPECTS, reply.values, strict=True))
            why = ", ".join(f"{aspect} {rating:.2f}" for aspect, rating in ratings.items())
            scores.append(Score(sum(reply.values) / len(ASPECTS), why, ratings))
        return scores
