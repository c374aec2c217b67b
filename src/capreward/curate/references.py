"""References: written anew by a strong model, with the statements that they make.

Old references hurt more than no recall reward at all (BalCapRL, arXiv 2605.07394, which had them rewritten).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from capreward.curate.stage import Curated, Outcome
from capreward.curate.writing import INSTRUCTION, clean, described, distinct, instructs, prompt_hashes, sees
from capreward.judges.base import Judge, Reply, Request, Task, ask_each, require
from capreward.missing import Missing, Reason
from capreward.records import Item


class References:
    """Describes each item's image with a strong model, and splits the description into the units that `Coverage` looks for.

    Args:
        describer: writes the reference.
        extractor: splits it into atomic statements.
        verifier: if given, holds each statement against the image; those that it does not show, or that cannot be pointed at
            there, are no units (p < 0.5). The reference itself stays as it was written.
        instruction: to the describer.
        keep_old: the item's references stay, after the new one. The units are the new one's alone.

    Missing: the item has no image (`no_image`), a judge failed, or no statement is left (`no_reference`).
    """

    name = "references"

    def __init__(
        self,
        describer: Judge,
        extractor: Judge,
        *,
        verifier: Judge | None = None,
        instruction: str = INSTRUCTION,
        keep_old: bool = False,
    ) -> None:
        self.describer = sees(describer, "References", Task.DESCRIBE)
        self.extractor = require(extractor, "References", Task.EXTRACT)
        self.verifier = None if verifier is None else sees(verifier, "References", Task.VERIFY)
        self.instruction, self.keep_old = instructs(instruction, "References"), keep_old

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Describer, extractor, and the verifier if there is one."""
        return distinct(judge for judge in (self.describer, self.extractor, self.verifier) if judge is not None)

    def describe(self) -> dict[str, Any]:
        """Settings, judges and prompts."""
        verifying = [] if self.verifier is None else [Task.VERIFY]
        return {
            "describer": self.describer.name,
            "extractor": self.extractor.name,
            "verifier": None if self.verifier is None else self.verifier.name,
            "instruction": self.instruction,
            "keep_old": self.keep_old,
            "prompts": prompt_hashes(Task.DESCRIBE, Task.EXTRACT, *verifying),
        }

    async def curate(self, items: Sequence[Item]) -> list[Outcome]:
        """Items with `references` and `reference_units`; records: the old references, the new one, every statement."""
        captions = await described(self.describer, items, self.instruction)
        extracted = await ask_each(
            self.extractor,
            [[] if isinstance(text, Missing) else [Request(Task.EXTRACT, text)] for text in captions],
        )
        statements = [_statements(item, *row) for item, row in zip(items, extracted, strict=True)]
        verdicts: Sequence[Sequence[Reply | Missing]] = [()] * len(items)
        if self.verifier is not None:
            verdicts = await ask_each(self.verifier, [_verify(*row) for row in zip(items, statements, strict=True)])
        return [self._outcome(*row) for row in zip(items, captions, statements, verdicts, strict=True)]

    def count(self, record: Mapping[str, Any]) -> dict[str, int]:
        """`written`: statements that the reference makes; `kept` as units, or `dropped` as not shown in the image."""
        kept = sum(statement["kept"] for statement in record["statements"])
        return {"written": len(record["statements"]), "kept": kept, "dropped": len(record["statements"]) - kept}

    def _outcome(
        self,
        item: Item,
        caption: str | Missing,
        statements: tuple[str, ...] | Missing,
        verdicts: Sequence[Reply | Missing],
    ) -> Outcome:
        if isinstance(caption, Missing):
            return caption
        if isinstance(statements, Missing):
            return statements
        if verdicts and isinstance(verdicts[0], Missing):
            return verdicts[0]
        shown = [reply.values for reply in verdicts if isinstance(reply, Reply)]
        listed: list[dict[str, Any]] = [{"text": text, "kept": True} for text in statements]
        for statement, p in zip(listed, *shown, strict=True) if shown else ():
            statement |= {"kept": p >= 0.5, "probability": p}
        units = tuple(statement["text"] for statement in listed if statement["kept"])
        if not units:
            return Missing(
                Reason.NO_REFERENCE, f"item {item.id!r}: the image bears out no statement of the description"
            )
        references = (caption, *(item.references if self.keep_old else ()))
        record = {"reference": caption, "old_references": list(item.references), "statements": listed}
        return Curated(item.model_copy(update={"references": references, "reference_units": units}), record)


def _statements(item: Item, reply: Reply | Missing | None = None) -> tuple[str, ...] | Missing:
    """What the description says, each once; Missing if it could not be split, or there is nothing to split (None)."""
    if reply is None or isinstance(reply, Missing):
        return reply or ()
    texts = tuple(dict.fromkeys(filter(None, map(clean, reply.texts))))
    return texts or Missing(Reason.NO_REFERENCE, f"item {item.id!r}: a description without a statement in it")


def _verify(item: Item, statements: tuple[str, ...] | Missing) -> list[Request]:
    if isinstance(statements, Missing) or not statements or item.image is None:
        return []
    return [Request(Task.VERIFY, "", statements, images=(item.image,))]
