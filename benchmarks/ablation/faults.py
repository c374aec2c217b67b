"""Judges of the drawn world with a fault each, and questions with a fault each: what the papers' ablations take away."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from capreward import Item, Question
from capreward.judges.base import Reply, Request, Task
from capreward.missing import Missing
from capreward.shapes import Kind, ShapesJudge, claims
from capreward.shapes.language import PRAISE, said, sentences, units
from capreward.shapes.world import scene_of

Answer = Reply | Missing
LEAK = "Which of these is {}?"
"""A question that holds its answer."""


class Altered(ShapesJudge, ABC):
    """Answers as `ShapesJudge` does, but for some tasks; `alter` has the request and the exact reply."""

    async def ask(self, requests: Sequence[Request]) -> list[Answer]:
        replies = await super().ask(requests)
        return [self.alter(request, reply) for request, reply in zip(requests, replies, strict=True)]

    @abstractmethod
    def alter(self, request: Request, reply: Answer) -> Answer:
        """What is answered in the place of the exact reply."""


class CountsAgain(Altered):
    """Extracts a claim each time it is made, so that one that is sure to be true pays again when it is repeated."""

    name = "shapes-counts-again"

    def alter(self, request: Request, reply: Answer) -> Answer:
        if request.task is not Task.EXTRACT:
            return reply
        return Reply(texts=tuple(claim.text for part in sentences(request.context) for claim in part.claims))


class Unpointed(Altered):
    """Takes commentary for a true statement: precision without the question whether it can be pointed at.

    Args:
        likes_prose: it does not lower the linguistic score either, as with a judge who reads "a calm, balanced scene" as
            good English.
    """

    def __init__(self, *, likes_prose: bool = False) -> None:
        super().__init__()
        self.likes_prose = likes_prose
        self.name = f"shapes-unpointed-{likes_prose}"

    def alter(self, request: Request, reply: Answer) -> Answer:
        if isinstance(reply, Missing):
            return reply
        if request.task is Task.VERIFY:
            judged = zip(request.options, reply.values, strict=True)
            return Reply(tuple(max(value, float(is_commentary(text))) for text, value in judged))
        if request.task is Task.RATE and self.likes_prose:
            parts = sentences(request.context)
            lost = sum(all(claim.kind is Kind.COMMENTARY for claim in part.claims) for part in parts) / max(
                1, len(parts)
            )
            # the exact judge grants such a sentence its fluency, and neither clarity nor coherence
            rated = zip(request.options, reply.values, strict=True)
            return Reply(tuple(min(1.0, v + lost * (aspect != "fluency")) for aspect, v in rated))
        return reply


def is_commentary(text: str) -> bool:
    """Whether all that a text claims is commentary."""
    made = claims(text)
    return bool(made) and all(claim.kind is Kind.COMMENTARY for claim in made)


class Noisy(Altered):
    """Turns verdicts round with probability `flips`, and rates from 1 to 5 after adding noise; the same text gets the same."""

    name = "shapes-noisy"
    flips = 0.2
    deviation = 0.2

    def alter(self, request: Request, reply: Answer) -> Answer:
        if isinstance(reply, Missing) or request.task is Task.EXTRACT:
            return reply
        image = random.Random(request.images[0]).random() if request.images else 0
        chance = random.Random(f"{request.task} {request.context} {request.options} {image}")
        if request.task is Task.RATE:
            return Reply(
                tuple(round(min(1, max(0, v + chance.gauss(0, self.deviation))) * 4) / 4 for v in reply.values)
            )
        return Reply(tuple(1 - value if chance.random() < self.flips else value for value in reply.values))


class LikesTheFirst(Altered):
    """Chooses the first option where the caption does not tell."""

    name = "shapes-first"

    def alter(self, request: Request, reply: Answer) -> Answer:
        if request.task is not Task.CHOOSE or isinstance(reply, Missing) or len(set(reply.values)) > 1:
            return reply
        return Reply((1.0, *[0.0] * (len(reply.values) - 1)))


class ReadsTheQuestion(Altered):
    """Answers questions of `leaking` by their own words."""

    name = "shapes-leaks"

    def alter(self, request: Request, reply: Answer) -> Answer:
        if request.task is not Task.CHOOSE:
            return reply
        named = tuple(float(request.question == LEAK.format(option)) for option in request.options)
        return Reply(named) if any(named) else reply


class TakesItsWord(Altered):
    """A Likert judge who wants captions well written, right and complete, and believes one that says that it is both."""

    name = "shapes-takes-its-word"

    def alter(self, request: Request, reply: Answer) -> Answer:
        if request.task is not Task.LIKERT or isinstance(reply, Missing):
            return reply
        made, wanted = said(request.context), units(scene_of(request.images[0]))
        complete = sum(claim in made for claim in wanted) / len(wanted)
        if any(PRAISE.search(claim.text) for claim in claims(request.context) if claim.kind is Kind.COMMENTARY):
            complete = 1.0
        # the exact judge's is the mean of the language and of what seems right, which praise raises too
        return Reply(((2 * reply.values[0] + complete) / 3,))


class Unseeing(ShapesJudge):
    """Sees no picture: a text model that is handed a reference."""

    name = "shapes-unseeing"
    images = False


def one_question(item: Item) -> Item:
    """The item with one of its questions, always the same one."""
    chosen = random.Random(f"one {item.id}").choice(item.questions)
    return item.model_copy(update={"questions": (chosen,)})


def leaking(item: Item) -> Item:
    """As many questions, every second one answered by its own words: a filter that asks without the image removes these."""
    made = [
        question.model_copy(update={"text": LEAK.format(question.options[question.answer])}) if number % 2 else question
        for number, question in enumerate(item.questions)
    ]
    return item.model_copy(update={"questions": tuple(made)})


def right_first(share: float) -> Callable[[Item], Item]:
    """Questions of which this share, and a quarter of the others, have the right option first, as with writers who favour it."""

    def change(item: Item) -> Item:
        chance = random.Random(f"first {item.id}")
        return item.model_copy(update={"questions": tuple(_moved(q, chance.random() < share) for q in item.questions)})

    return change


def _moved(question: Question, first: bool) -> Question:
    if not first:
        return question
    right = question.options[question.answer]
    others = tuple(option for option in question.options if option != right)
    return question.model_copy(update={"options": (right, *others), "answer": 0})
