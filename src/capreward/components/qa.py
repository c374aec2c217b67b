"""QA utility: what can a reader who has only the caption answer about the image?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from capreward.errors import InputError
from capreward.judges.base import Judge, Reply, Request, Task, ask_each, require
from capreward.missing import Missing, Reason
from capreward.records import Question, Rollout
from capreward.scoring import Score, scores_empty_as_zero


class QAUtility:
    """Share of the item's multiple-choice questions that the judge answers right from the caption alone.

    CapRL's reward, ``R = 1/N sum_k [judge(caption, q_k) = a_k]`` (arXiv 2509.22647), over all M questions of the item.

    Args:
        judge: answers by choosing among options; it should not see the image.
        score: ``"match"`` counts right answers, as the paper does; ``"probability"`` takes the probability that the judge gives
            the right option: the same expectation for a judge that samples, without the sampling noise.

    Missing: the item has no questions (`no_questions`), or the judge failed to answer one of them.
    With the lite judge, an answer is chosen by likeness of words: questions whose wrong options also occur in the caption
    are often answered wrong, and a caption may be credited for words that it uses of something else.
    """

    name = "qa"

    def __init__(self, judge: Judge, *, score: Literal["match", "probability"] = "match") -> None:
        if score not in ("match", "probability"):
            raise InputError(f"QAUtility: got score={score!r}, expected 'match' or 'probability'")
        self.judge = require(judge, "QAUtility", Task.CHOOSE)
        self.by_probability = score == "probability"

    @scores_empty_as_zero
    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        """Values in [0, 1]; evidence: the answer to each question, its probability and the right one's."""
        replies = await ask_each(
            self.judge,
            [[Request(Task.CHOOSE, r.caption, q.options, q.text) for q in r.item.questions] for r in rollouts],
        )
        return [self._score(r, answers) for r, answers in zip(rollouts, replies, strict=True)]

    def _score(self, rollout: Rollout, replies: Sequence[Reply | Missing]) -> Score | Missing:
        questions = rollout.item.questions
        if not questions:
            return Missing(Reason.NO_QUESTIONS, f"item {rollout.item.id!r} has no questions")
        if missing := [reply for reply in replies if isinstance(reply, Missing)]:
            return missing[0]  # rollouts of a group are compared on the same questions, or not at all
        answers = [_answer(q, reply) for q, reply in zip(questions, replies, strict=True) if isinstance(reply, Reply)]
        right = sum(answer["right"] for answer in answers)
        value = sum(answer["probability_of_right"] for answer in answers) if self.by_probability else right
        return Score(value / len(answers), f"{right} of {len(answers)} right", {"answers": answers})


def _answer(question: Question, reply: Reply) -> dict[str, Any]:
    best = max(reply.values)
    chosen = reply.values.index(best) if reply.values.count(best) == 1 else None  # a tie is no answer
    return {
        "question": question.text,
        "chosen": None if chosen is None else question.options[chosen],
        "right": chosen == question.answer,
        "probability_of_right": reply.values[question.answer],
    }
