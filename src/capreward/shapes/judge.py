"""A judge that knows the drawn world: exact, instant, and without a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from capreward.errors import InputError
from capreward.judges.base import Reply, Request, Task, Usage
from capreward.missing import Missing, Reason
from capreward.shapes.language import (
    COLOUR_AT,
    HOW_MANY,
    PLACE_OF,
    PRAISE,
    SHAPE_AT,
    SIZE_OF,
    Claim,
    Kind,
    claims,
    rivals,
    said,
    sentences,
    truths,
)
from capreward.shapes.world import scene_of

ASPECTS = ("clarity", "fluency", "coherence")


class ShapesJudge:
    """Answers every task about pictures of `shapes.draw` and texts of `shapes.language`, by rules.

    - EXTRACT: the atomic claims of a text, each once. Commentary and clauses that it cannot read are claims too.
    - VERIFY: 1 if a statement is true of the scene that the picture carries; commentary and unreadable statements get 0.
    - SUPPORT: 1 if the text says the statement or plainly implies it and does not contradict it (`language.said`). A
      statement outside the world's language is said only by a text that holds it word for word.
    - CHOOSE: 1 on the option that the text claims; split evenly among those that a contradictory text claims; among all if
      it claims none of them, or all on "cannot be answered" where that is offered.
    - RATE: of the text's sentences, the share that
      clarity: makes a statement about the picture that was not made before (so repetition and filler lower it);
      fluency: is a whole, grammatical sentence of the language;
      coherence: is finished, readable and about the picture, and contradicts no earlier one.
      A text without a sentence gets 0.
    - LIKERT: naive on purpose. The mean of how well the text is written (fluency) and of how right it seems: the share of its
      claims that are true of the picture (or said by the reference, or merely readable, where it is shown neither),
      or the share of its sentences that praise it, times three, if that is more. So it can be flattered.

    Missing: no picture (`no_image`), a picture that is not of this world (`no_facts`), a question or an aspect that it
    does not know (`unparseable`). Nothing that a caption says makes a reply missing.
    """

    name = "shapes-1"
    tasks = frozenset({Task.EXTRACT, Task.VERIFY, Task.SUPPORT, Task.CHOOSE, Task.RATE, Task.LIKERT})
    images = True

    def __init__(self) -> None:
        self.usage = Usage()

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        """One reply a request."""
        replies = [_ANSWER[request.task](request) for request in requests]
        self.usage.requests += len(requests)
        self.usage.calls += len(requests)
        self.usage.failures += sum(isinstance(reply, Missing) for reply in replies)
        return replies


def _extract(request: Request) -> Reply:
    return Reply(texts=tuple(claim.text for claim in claims(request.context)))


def _verify(request: Request) -> Reply | Missing:
    if not request.images:
        return Missing(Reason.NO_IMAGE, "verify: got no picture")
    true = _truths(request)
    if isinstance(true, Missing):
        return true
    verdicts = [_verdict(option, true) for option in request.options]
    return Reply(tuple(float(why == "true") for why in verdicts), why=tuple(verdicts))


def _truths(request: Request) -> frozenset[Claim] | Missing:
    try:
        return truths(scene_of(request.images[0]))
    except InputError as error:
        return Missing(Reason.NO_FACTS, str(error))
    except OSError as error:
        return Missing(Reason.NO_IMAGE, f"{request.images[0]!r} cannot be read: {error}")


def _verdict(statement: str, true: frozenset[Claim]) -> str:
    made = claims(statement)
    if not all(claim.pointable for claim in made) or not made:
        return "cannot be pointed at"
    return "true" if true.issuperset(made) else "false"


def _support(request: Request) -> Reply:
    says = said(request.context)
    return Reply(tuple(float(bool(made := claims(option)) and says.issuperset(made)) for option in request.options))


def _pattern(question: str) -> re.Pattern[str]:
    return re.compile(re.escape(question).replace(r"\{\}", "(.+)"), re.IGNORECASE)


_QUESTIONS: tuple[tuple[re.Pattern[str], Callable[[list[Claim], str], set[str]]], ...] = (
    (_pattern(COLOUR_AT), lambda made, cell: {name.split()[0] for name in _names_at(made, cell)}),
    (_pattern(SHAPE_AT), lambda made, cell: {name.split()[1] for name in _names_at(made, cell)}),
    (_pattern(SIZE_OF), lambda made, name: {c.value for c in made if (c.kind, c.subject) == (Kind.SIZE, name)}),
    (
        _pattern(PLACE_OF),
        lambda made, name: {f"at the {c.value}" for c in made if (c.kind, c.subject) == (Kind.PLACE, name)},
    ),
    (_pattern(HOW_MANY), lambda made, _: {c.value for c in made if c.kind is Kind.COUNT}),
)
"""How each question is worded, and what a text's claims answer to it."""


def _names_at(made: list[Claim], cell: str) -> set[str]:
    return {c.subject for c in made if c.kind is Kind.PLACE and c.value == cell}


def choose(request: Request) -> Reply | Missing:
    """What `ShapesJudge` answers to a CHOOSE request."""
    for pattern, answers in _QUESTIONS:
        if match := pattern.fullmatch(request.question.strip()):
            claimed = answers(claims(request.context), (match.groups() or ("",))[0].lower())
            break
    else:
        return Missing(Reason.UNPARSEABLE, f"choose: {request.question!r} is no question of the drawn world")
    options = [option.strip().lower() for option in request.options]
    open_ = [option in claimed for option in options]
    if not any(open_):
        open_ = [option.startswith("cannot be answered") for option in options]
    if not any(open_):
        open_ = [True] * len(options)
    return Reply(tuple(chosen / sum(open_) for chosen in open_))


def _rate(request: Request) -> Reply | Missing:
    ratings = _ratings(request.context)
    if unknown := [aspect for aspect in request.options if aspect not in ratings]:
        return Missing(Reason.UNPARSEABLE, f"rate: got aspect {unknown[0]!r}, expected one of {', '.join(ASPECTS)}")
    return Reply(tuple(ratings[aspect] for aspect in request.options))


def _ratings(text: str) -> dict[str, float]:
    parsed = sentences(text)
    known: set[Claim] = set()
    settled: dict[tuple[object, ...], Claim] = {}
    met = dict.fromkeys(ASPECTS, 0)
    for sentence in parsed:
        about = [claim for claim in sentence.claims if claim.pointable]
        consistent = all(settled.setdefault(what, claim) == claim for claim in about for what in rivals(claim))
        met["clarity"] += not known.issuperset(about)
        met["fluency"] += sentence.well_formed
        met["coherence"] += sentence.finished and consistent and len(about) == len(sentence.claims)
        known.update(about)
    return {aspect: count / max(1, len(parsed)) for aspect, count in met.items()}


def _likert(request: Request) -> Reply | Missing:
    made, parsed = claims(request.context), sentences(request.context)
    if not made:
        return Reply((0.0,))
    right = [claim.pointable for claim in made]
    if request.images:
        true = _truths(request)
        if isinstance(true, Missing):
            return true
        right = [claim in true for claim in made]
    elif request.question:
        reference = said(request.question)
        right = [claim in reference for claim in made]
    praises = sum(any(PRAISE.search(claim.text) for claim in sentence.claims) for sentence in parsed)
    seems = max(sum(right) / len(made), min(1.0, 3 * praises / len(parsed)))
    return Reply(((_ratings(request.context)["fluency"] + seems) / 2,))


_ANSWER: dict[Task, Callable[[Request], Any]] = {
    Task.EXTRACT: _extract,
    Task.VERIFY: _verify,
    Task.SUPPORT: _support,
    Task.CHOOSE: choose,
    Task.RATE: _rate,
    Task.LIKERT: _likert,
}
