"""A request as chat messages: for every backend that talks to a language model in words."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from capreward import prompts
from capreward.judges.base import CHOICES, Request, Task

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Chat:
    """What is sent to a language model."""

    system: str
    user: str
    schema: dict[str, Any] | None
    """JSON schema of the reply; None where the reply is a letter or plain text."""


def render(request: Request) -> Chat:
    """The request's prompt, filled in, with the text that is judged between two marks that it cannot foresee."""
    prompt = prompts.load(request.task)
    fields = {
        "mark": mark(request),
        "context": request.context,
        "question": request.question,
        "options": "\n".join(labelled(request)),
    }
    match request.task:
        case Task.LIKERT:
            fields["question"] = request.question and f"Reference caption of the image:\n{request.question}\n"
        case Task.LOOK | Task.CHOOSE:
            fields["question"] = one_line(request.question)  # or it could hold options of its own
        case Task.INQUIRE:
            fields["context"] = _reference(request)
            fields["options"] = ", ".join(request.options)
    # one pass: a "$question" in the caption is text like any other
    return Chat(prompt.system, Template(prompt.user).substitute(fields), _schema(request))


def messages(chat: Chat, images: Sequence[Path | bytes] = ()) -> list[dict[str, Any]]:
    """The messages as OpenAI's API spells them, with the images as data URLs.

    Raises:
        OSError: an image cannot be read.
    """
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    content.append({"type": "text", "text": chat.user})
    return [
        {"role": "system", "content": chat.system},
        {"role": "user", "content": content if images else chat.user},
    ]


def mark(request: Request) -> str:
    """Name of the fence: a hash of what it encloses, which a text cannot contain without changing it."""
    enclosed = (request.question if request.task is Task.LOOK else request.context, request.options)
    return "text-" + hashlib.sha256(repr(enclosed).encode()).hexdigest()[:12]


def lacks_image(request: Request) -> bool:
    """Whether it is about an image alone and holds none: a model would answer, but of an image that it makes up.

    VERIFY is left to who asks.
    """
    blind = request.task in (Task.LOOK, Task.DESCRIBE) or (request.task is Task.INQUIRE and not request.context.strip())
    return blind and not request.images


def _reference(request: Request) -> str:
    """What questions are asked about, where it is not the image alone."""
    if not request.context:
        return ""
    where = "Reference caption of the image" if request.images else "The image is not shown. Its reference caption"
    fence = mark(request)
    return f"{where}:\n<{fence}>\n{request.context}\n</{fence}>\n"


def labelled(request: Request) -> list[str]:
    """The options, a line each, after their letters or numbers: one that a policy wrote cannot pass for two."""
    labels = LETTERS if request.task in CHOICES else range(1, len(request.options) + 1)
    return [f"{label}. {one_line(option)}" for label, option in zip(labels, request.options, strict=False)]


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def _schema(request: Request) -> dict[str, Any] | None:
    match request.task:
        case Task.CHOOSE | Task.LOOK | Task.DESCRIBE:
            return None
        case Task.EXTRACT:
            return _object(statements={"type": "array", "items": {"type": "string"}})
        case Task.SUPPORT:
            return _object(verdicts=_each(request, holds={"type": "boolean"}))
        case Task.VERIFY:
            return _object(verdicts=_each(request, true={"type": "boolean"}, pointable={"type": "boolean"}))
        case Task.RATE | Task.LIKERT:
            return _object(ratings=_each(request, rating={"type": "integer", "enum": [1, 2, 3, 4, 5]}))
        case Task.INQUIRE:
            return _object(questions=_questions(request))
        case Task.CRITICISE:
            numbers = list(range(1, len(request.options) + 1))
            severities = ["critical", "important", "minor"]
            return _object(
                criteria=_list(
                    criterion={"type": "string"},
                    severity={"type": "string", "enum": severities},
                    teachers={"type": "array", "items": {"type": "integer", **_enum(numbers)}},
                )
            )


def _each(request: Request, **fields: dict[str, Any]) -> dict[str, Any]:
    """One object an option."""
    count = len(request.options)
    entry = _object(number={"type": "integer"}, why={"type": "string"}, **fields)
    return {"type": "array", "items": entry, "minItems": count, "maxItems": count}


def _questions(request: Request) -> dict[str, Any]:
    text = {"type": "string"}
    entries = _list(
        kind={**text, **_enum(list(dict.fromkeys(request.options)))},
        question=text,
        options={"type": "array", "items": text, "minItems": 4, "maxItems": 4},
        answer=text,
    )
    # no lower limit: an image may hold less to ask about
    return {**entries, **({"maxItems": int(request.question)} if re.fullmatch("[0-9]{1,4}", request.question) else {})}


def _list(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": _object(**fields)}


def _enum(values: list[Any]) -> dict[str, Any]:
    """Limits a value to these; no limit without any, since no value would be in it."""
    return {"enum": values} if values else {}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _data_url(image: Path | bytes) -> str:
    data = image.read_bytes() if isinstance(image, Path) else image
    kinds = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
    kind = next((name for start, name in kinds if data.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
