"""QA utility: what can a reader who has only the caption answer about the image?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from capreward.errors import InputError
from capreward.judges.base import Judge, Reply, Request, Sampling, Task, ask_each, require
from capreward.missing import Missing, Reason
from capreward.records import Question, Rollout
from capreward.scoring import Score, scores_empty_as_zero

CANNOT = "cannot be answered from the description"
CANNOT_BONUS = 0.05
"""What admitting it earns beyond chance (CaptionQA, arXiv 2511.21025)."""


class QAUtility:
    """Share of the item's multiple-choice questions that the judge answers right from the caption alone.

    CapRL's reward, ``R = 1/N sum_k [judge(caption, shuffle(q_k)) = a_k]`` (arXiv 2509.22647). The options of a question are
    rotated so that right answers fall on every position equally often. Which questions are drawn, and how they are rotated,
    depends on the seed and the rollout's group alone, so rollouts of a group are compared on the same questions.

    Args:
        judge: answers by choosing among options; it should not see the image.
        score: ``"match"`` counts right answers, as the paper does; ``"probability"`` takes the probability that the judge gives
            the right option: the same expectation for a judge that samples, without the sampling noise.
        draws: N questions drawn from the item's M, each at most once more often than another; all M when left out.
        temperature: of the judge's reply; above 0, ``"match"`` scores a sampled answer, as the paper does (0.6).
        closed_book: also ask each question without a caption, and weigh it by 1 less what that answer earns: a question that
            can be guessed tells little of the caption.
        cannot_answer: offer "cannot be answered", worth 1/n + 0.05 for n options, unless they are yes and no
            (CaptionQA, arXiv 2511.21025).
        shuffle: rotate the options. False leaves them in the item's order, the baseline of CapRL's ablation: what a judge
            earns by a liking for a position is then not averaged out.
        seed: of draws, rotations and sampled replies.

    Missing: the item has no questions, or none that needs the caption (`no_questions`), or the judge failed at one of them.
    With the lite judge, an answer is chosen by likeness of words: questions whose wrong options also occur in the caption
    are often answered wrong, and a caption may be credited for words that it uses of something else.

    Raises:
        InputError: another `score`; fewer than one draw; a temperature below 0, or above it with ``"probability"``; a judge that
            lacks the task `choose`.
    """

    name = "qa"

    def __init__(
        self,
        judge: Judge,
        *,
        score: Literal["match", "probability"] = "match",
        draws: int | None = None,
        temperature: float = 0.0,
        closed_book: bool = False,
        cannot_answer: bool = False,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        if score not in ("match", "probability"):
            raise InputError(f"QAUtility: got score={score!r}, expected 'match' or 'probability'")
        if draws is not None and draws < 1:
            raise InputError(f"QAUtility: got draws={draws}, expected a number >= 1, or None for all questions")
        if temperature < 0 or (temperature and score == "probability"):
            raise InputError(
                f"QAUtility: got temperature={temperature} with score={score!r}, expected 0, or above 0 with 'match'"
            )
        self.judge = require(judge, "QAUtility", Task.CHOOSE)
        self.by_probability = score == "probability"
        self.draws, self.temperature, self.seed = draws, temperature, seed
        self.closed_book, self.cannot_answer, self.shuffle = closed_book, cannot_answer, shuffle
        self.recorded = {
            "score": score,
            "draws": draws,
            "temperature": temperature,
            "closed_book": closed_book,
            "cannot_answer": cannot_answer,
            "shuffle": shuffle,
            "seed": seed,
        }
        """What a ledger says of it (`ledger.describe`)."""

    @scores_empty_as_zero
    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        """Values in [0, 1]; evidence: the answer to each question, the probability of the right one, and what it earned."""
        asked = [self._draw(rollout) for rollout in rollouts]
        batches = [
            [ask.request(rollout.caption) for ask in asks] for rollout, asks in zip(rollouts, asked, strict=True)
        ]
        if self.closed_book:
            batches += [[ask.request("") for ask in asks] for asks in asked]
        replies = await ask_each(self.judge, batches)
        opened = replies[: len(rollouts)]
        closed = replies[len(rollouts) :] if self.closed_book else [[] for _ in rollouts]
        return [self._score(*row) for row in zip(rollouts, asked, opened, closed, strict=True)]

    def _draw(self, rollout: Rollout) -> list[_Ask]:
        questions = rollout.item.questions
        if not questions:
            return []
        chance = random.Random(f"{self.seed} {rollout.group}")
        count = len(questions) if self.draws is None else self.draws
        order: list[Question] = []
        while len(order) < count:
            order += chance.sample(questions, len(questions)) if self.draws is not None else questions
        start = chance.randrange(max(len(question.options) for question in questions))
        return [
            _Ask.of(
                question,
                start + number if self.shuffle else question.answer,
                self.cannot_answer,
                Sampling(self.temperature, self._seed(number)),
            )
            for number, question in enumerate(order[:count])
        ]

    def _seed(self, number: int) -> int | None:
        return self.seed + number if self.temperature else None

    def _score(
        self,
        rollout: Rollout,
        asks: Sequence[_Ask],
        opened: Sequence[Reply | Missing],
        closed: Sequence[Reply | Missing],
    ) -> Score | Missing:
        if not asks:
            return Missing(Reason.NO_QUESTIONS, f"item {rollout.item.id!r} has no questions")
        if missing := [reply for reply in (*opened, *closed) if isinstance(reply, Missing)]:
            return missing[0]  # rollouts of a group are compared on the same questions, or not at all
        answers = [
            self._answer(ask, reply) for ask, reply in zip(asks, opened, strict=True) if isinstance(reply, Reply)
        ]
        weights = [1.0] * len(asks)
        if closed:
            guessed = [
                self._answer(ask, reply) for ask, reply in zip(asks, closed, strict=True) if isinstance(reply, Reply)
            ]
            weights = [1.0 - guess["earned"] for guess in guessed]
            answers = [answer | {"weight": weight} for answer, weight in zip(answers, weights, strict=True)]
        if not sum(weights):
            return Missing(
                Reason.NO_QUESTIONS, f"item {rollout.item.id!r}: every question can be answered without a caption"
            )
        value = sum(w * answer["earned"] for w, answer in zip(weights, answers, strict=True)) / sum(weights)
        right = sum(answer["right"] for answer in answers)
        return Score(value, f"{right} of {len(answers)} right", {"answers": answers})

    def _answer(self, ask: _Ask, reply: Reply) -> dict[str, Any]:
        best = max(reply.values)
        chosen = reply.values.index(best) if reply.values.count(best) == 1 else None  # a tie is no answer
        picked = [float(i == chosen) for i in range(len(reply.values))]
        earned = sum(
            p * worth for p, worth in zip(reply.values if self.by_probability else picked, ask.worth, strict=True)
        )
        return {
            "question": ask.question.text,
            "chosen": None if chosen is None else ask.options[chosen],
            "right": chosen == ask.right,
            "probability_of_right": reply.values[ask.right],
            "earned": earned,
        }


@dataclass(frozen=True, slots=True)
class _Ask:
    """A question as it is put to the judge."""

    question: Question
    options: tuple[str, ...]
    right: int
    worth: tuple[float, ...]
    """What choosing each option earns."""
    sampling: Sampling

    @classmethod
    def of(cls, question: Question, place: int, cannot_answer: bool, sampling: Sampling) -> _Ask:
        """The question with its options rotated until the right one stands at `place` (mod their number)."""
        count = len(question.options)
        right = place % count
        options = tuple(question.options[(question.answer - right + i) % count] for i in range(count))
        worth = tuple(float(i == right) for i in range(count))
        if cannot_answer and {option.lower() for option in options} != {"yes", "no"}:
            options, worth = (*options, CANNOT), (*worth, 1 / count + CANNOT_BONUS)
        return cls(question, options, right, worth, sampling)

    def request(self, caption: str) -> Request:
        return Request(Task.CHOOSE, caption, self.options, self.question.text, sampling=self.sampling)
