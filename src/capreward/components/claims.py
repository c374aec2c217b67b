"""Claims: is what the caption says true (Precision), and does it say what there is to say (Coverage)?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from capreward.errors import InputError
from capreward.judges.base import Judge, Reply, Request, Task, ask_each, require
from capreward.missing import Missing, Reason
from capreward.records import Item, Rollout
from capreward.scoring import Score, scores_empty_as_zero

Against = Literal["image", "facts", "references"]


class Coverage:
    """Share of the item's reference units that the caption covers (BalCapRL's recall, arXiv 2605.07394).

    The units are the item's `reference_units`; else its true and pointable facts; else the statements that the judge
    extracts from its references, once for each set of references.
    A unit counts by the judge's probability that the caption says it (0 or 1 from a judge that only says yes or no).

    Missing: the item has none of the three (`no_reference`), or the judge failed.
    With the lite judge, a unit counts as covered when a sentence of the caption resembles it: it finds absent facts (AUC
    0.97) better than contradicted ones (AUC 0.80), since it is nearly blind to a flipped attribute.

    Raises:
        InputError: a judge that lacks the task `support` or `extract`.
    """

    name = "coverage"

    def __init__(self, judge: Judge) -> None:
        self.judge = require(judge, "Coverage", Task.SUPPORT, Task.EXTRACT)
        self._extracted: dict[tuple[str, ...], tuple[str, ...]] = {}

    @scores_empty_as_zero
    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        """Values in [0, 1]; evidence: each unit's probability of being covered."""
        units = await self._units([rollout.item for rollout in rollouts])
        replies = await ask_each(
            self.judge,
            [
                [] if isinstance(wanted, Missing) else [Request(Task.SUPPORT, rollout.caption, wanted)]
                for rollout, wanted in zip(rollouts, units, strict=True)
            ],
        )
        return [
            wanted if isinstance(wanted, Missing) else _share(wanted, answers[0], "units", "covered")
            for wanted, answers in zip(units, replies, strict=True)
        ]

    async def _units(self, items: Sequence[Item]) -> list[tuple[str, ...] | Missing]:
        new = {item.references for item in items if not _given_units(item)} - self._extracted.keys() - {()}
        failed: dict[tuple[str, ...], Missing] = {}
        wanted = sorted(new)
        replies = await ask_each(self.judge, [[Request(Task.EXTRACT, text) for text in texts] for texts in wanted])
        for references, answers in zip(wanted, replies, strict=True):
            if missing := [answer for answer in answers if isinstance(answer, Missing)]:
                failed[references] = missing[0]
            else:
                texts = [text for answer in answers if isinstance(answer, Reply) for text in answer.texts]
                self._extracted[references] = tuple(dict.fromkeys(texts))
        result: list[tuple[str, ...] | Missing] = []
        for item in items:
            found = _given_units(item) or failed.get(item.references) or self._extracted.get(item.references)
            why = "references without a statement in them" if item.references else "no references, units or facts"
            result.append(found or Missing(Reason.NO_REFERENCE, f"item {item.id!r} has {why}"))
        return result


class Precision:
    """Share of the caption's statements that are both true of the image and pointable (BalCapRL, arXiv 2605.07394).

    Args:
        judge: extracts the statements and holds them against the evidence.
        against: the evidence, and the component's name; ``"image"`` for a judge that sees images, else ``"facts"`` by default.
            ``"image"`` (name `precision`): the item's image, as in the paper.
            ``"facts"`` (name `precision_vs_facts`): the item's labelled facts. A statement counts when the fact that it most
            plausibly makes is true and pointable; what is in no fact counts as unsupported, so the facts should be
            close to exhaustive.
            ``"references"`` (name `precision_vs_references`): the reference captions. A true detail that no reference mentions
            counts as unsupported: this punishes captions that say more than their references. Whether a statement is
            pointable is not asked, and it counts by the judge's probability that the references say it.

    Missing: the item has no image (`no_image`), facts (`no_facts`) or references (`no_reference`), or the judge failed.
    A caption in which the judge finds no statement scores 0.
    With the lite judge, a statement is a sentence, so one wrong word among many right ones may pass.

    Raises:
        InputError: another `against`; a judge that lacks the task `extract`, or `verify` (against the image) or `support`
            (against the others); one that sees no image, against the image.
    """

    def __init__(self, judge: Judge, *, against: Against | None = None) -> None:
        if against not in (None, "image", "facts", "references"):
            raise InputError(f"Precision: got against={against!r}, expected 'image', 'facts' or 'references'")
        self.against = against or ("image" if getattr(judge, "images", False) else "facts")
        self.judge = require(judge, "Precision", Task.EXTRACT, Task.VERIFY if self.against == "image" else Task.SUPPORT)
        if self.against == "image" and not judge.images:
            raise InputError(
                f"Precision: judge {judge.name!r} sees no image; use against='facts' or against='references'"
            )
        self.name = "precision" if self.against == "image" else f"precision_vs_{self.against}"

    @scores_empty_as_zero
    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        """Values in [0, 1]; evidence: each statement's verdict."""
        lacking = [self._lacks(rollout.item) for rollout in rollouts]
        extracted = await ask_each(
            self.judge,
            [
                [Request(Task.EXTRACT, rollout.caption)] * (lack is None)
                for rollout, lack in zip(rollouts, lacking, strict=True)
            ],
        )
        claims = [answers[0] if lack is None else lack for answers, lack in zip(extracted, lacking, strict=True)]
        replies = await ask_each(
            self.judge,
            [
                self._requests(rollout.item, reply.texts) if isinstance(reply, Reply) else []
                for rollout, reply in zip(rollouts, claims, strict=True)
            ],
        )
        return [self._score(*row) for row in zip(rollouts, claims, replies, strict=True)]

    def _lacks(self, item: Item) -> Missing | None:
        """What the item has to have, and has not; then nothing is asked about its captions."""
        if self.against == "image" and item.image is None:
            return Missing(Reason.NO_IMAGE, f"item {item.id!r} has no image")
        if self.against == "facts" and not item.facts:
            return Missing(Reason.NO_FACTS, f"item {item.id!r} has no facts")
        if self.against == "references" and not item.references:
            return Missing(Reason.NO_REFERENCE, f"item {item.id!r} has no references")
        return None

    def _requests(self, item: Item, claims: tuple[str, ...]) -> list[Request]:
        if not claims:
            return []
        if self.against == "image":
            assert item.image is not None, "else no statement was extracted"
            return [Request(Task.VERIFY, "", claims, images=(item.image,))]
        if self.against == "references":
            return [Request(Task.SUPPORT, "\n".join(item.references), claims)]
        facts = tuple(fact.text for fact in item.facts)
        return [Request(Task.SUPPORT, claim, facts) for claim in claims]

    def _score(self, rollout: Rollout, claims: Reply | Missing, replies: Sequence[Reply | Missing]) -> Score | Missing:
        item = rollout.item
        if isinstance(claims, Missing):
            return claims
        if not claims.texts:
            return Score(0.0, "no statement in the caption")
        if missing := [reply for reply in replies if isinstance(reply, Missing)]:
            return missing[0]
        answered = [reply for reply in replies if isinstance(reply, Reply)]
        if self.against != "facts":
            done = "supported" if self.against == "references" else "true and pointable"
            return _share(claims.texts, answered[0], "statements", done)
        verdicts = [_verdict(claim, item, reply) for claim, reply in zip(claims.texts, answered, strict=True)]
        good = sum(verdict["supported"] for verdict in verdicts)
        why = f"{good} of {len(verdicts)} statements true and pointable"
        return Score(good / len(verdicts), why, {"statements": verdicts})


def _given_units(item: Item) -> tuple[str, ...]:
    return item.reference_units or tuple(fact.text for fact in item.facts if fact.true and fact.pointable)


def _share(texts: Sequence[str], reply: Reply | Missing, what: str, done: str) -> Score | Missing:
    if isinstance(reply, Missing):
        return reply
    value = sum(reply.values) / len(texts)
    why = f"{round(sum(reply.values), 1):g} of {len(texts)} {what} {done}"
    reasons = reply.why or ("",) * len(texts)
    verdicts = [
        {"text": text, "probability": p, **({"why": reason} if reason else {})}
        for text, p, reason in zip(texts, reply.values, reasons, strict=True)
    ]
    return Score(value, why, {what: verdicts})


def _verdict(claim: str, item: Item, reply: Reply) -> dict[str, Any]:
    # of facts that are equally likely meant, the one that speaks against the caption: their order must not matter
    best = max(
        range(len(item.facts)), key=lambda i: (reply.values[i], not (item.facts[i].true and item.facts[i].pointable))
    )
    fact = item.facts[best]
    stated = reply.values[best] >= 0.5
    if not stated:
        why = "in no fact"
    elif not fact.pointable:
        why = "not pointable"
    else:
        why = "true" if fact.true else "false"
    return {"text": claim, "fact": fact.text if stated else None, "verdict": why, "supported": why == "true"}
