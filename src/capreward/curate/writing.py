"""What the stages share: reading what a model wrote, asking it to describe, and whom and what a datasheet names.

What a model wrote is read with nothing taken for granted: no text raises anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from capreward import prompts
from capreward.errors import InputError
from capreward.judges.base import Judge, Reply, Request, Task, ask_each, require
from capreward.missing import Missing, Reason
from capreward.records import Item

INSTRUCTION = "Describe this image in detail."
"""What a describing judge is told unless the caller says otherwise."""


def instructs(instruction: str, stage: str) -> str:
    """The instruction.

    Raises:
        InputError: it is empty.
    """
    if not instruction.strip():
        raise InputError(f"{stage}: got an empty instruction, expected what the describer is asked for")
    return instruction


def read(text: str, fields: Iterable[str]) -> dict[str, Any] | str:
    """The JSON object that `text` holds, if it has exactly these fields; else what is wrong with it."""
    try:
        entry = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return "not JSON"
    wanted = set(fields)
    if not isinstance(entry, dict) or entry.keys() != wanted:
        return f"expected an object with exactly the fields {', '.join(sorted(wanted))}"
    return entry


def clean(text: str) -> str:
    """The text as files and records take it: no lone surrogates, which JSON's escapes can spell, and no space around it."""
    return text.encode("utf-8", "replace").decode().strip()


def fold(text: str) -> str:
    """The text for telling whether two are the same: without case, runs of spaces and punctuation at its end."""
    folded = " ".join(text.casefold().split())
    return folded.rstrip(" .,;:!?") or folded


def sees(judge: Judge, stage: str, *tasks: Task) -> Judge:
    """The judge, if it can do `tasks` and sees images.

    Raises:
        InputError: it cannot, or does not.
    """
    if not require(judge, stage, *tasks).images:
        raise InputError(f"{stage}: judge {judge.name!r} sees no image; give it a judge that does")
    return judge


async def described(judge: Judge, items: Sequence[Item], instruction: str) -> list[str | Missing]:
    """The judge's caption of each item's image; Missing(no_image) where an item has none."""
    replies = await ask_each(
        judge,
        [[] if item.image is None else [Request(Task.DESCRIBE, "", (), instruction, (item.image,))] for item in items],
    )
    captions: list[str | Missing] = []
    for item, answers in zip(items, replies, strict=True):
        none = Missing(Reason.NO_IMAGE, f"item {item.id!r} has no image to describe")
        reply = answers[0] if answers else none
        captions.append(clean(reply.texts[0]) if isinstance(reply, Reply) else reply)
    return captions


def distinct(judges: Iterable[Judge]) -> tuple[Judge, ...]:
    """Each judge once: one that fills several roles has one bill."""
    return tuple({id(judge): judge for judge in judges}.values())


def prompt_hashes(*tasks: Task) -> dict[str, str]:
    """The hash of each task's prompt, for the datasheet."""
    return {task.value: prompts.load(task).hash for task in sorted(tasks)}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
