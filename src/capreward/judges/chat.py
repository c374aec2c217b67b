"""A request as chat messages: for every backend that talks to a language model in words."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from capreward import prompts
from capreward.judges.base import Request, Task

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Chat:
    """What is sent to a language model."""

    system: str
    user: str
    schema: dict[str, Any] | None
    """JSON schema of the reply; None where the reply is a letter."""


def render(request: Request) -> Chat:
    """The request's prompt, filled in, with the text that is judged between two marks that it cannot foresee."""
    prompt = prompts.load(request.task)
    reference = "Reference caption of the image:\n" + request.question + "\n"
    fields = {
        "mark": mark(request),
        "context": request.context,
        "question": reference * bool(request.question) if request.task is Task.LIKERT else request.question,
        "options": "\n".join(_labelled(request)),
    }
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
    return "text-" + hashlib.sha256(repr((request.context, request.options)).encode()).hexdigest()[:12]


def _labelled(request: Request) -> list[str]:
    """The options, a line each: one that a policy wrote cannot pass for two."""
    labels = LETTERS if request.task is Task.CHOOSE else range(1, len(request.options) + 1)
    return [f"{label}. {' '.join(option.split())}" for label, option in zip(labels, request.options, strict=False)]


def _schema(request: Request) -> dict[str, Any] | None:
    match request.task:
        case Task.CHOOSE:
            return None
        case Task.EXTRACT:
            return _object(statements={"type": "array", "items": {"type": "string"}})
        case Task.SUPPORT:
            return _object(verdicts=_each(request, holds={"type": "boolean"}))
        case Task.VERIFY:
            return _object(verdicts=_each(request, true={"type": "boolean"}, pointable={"type": "boolean"}))
        case Task.RATE | Task.LIKERT:
            return _object(ratings=_each(request, rating={"type": "integer", "enum": [1, 2, 3, 4, 5]}))


def _each(request: Request, **fields: dict[str, Any]) -> dict[str, Any]:
    """One object an option."""
    count = len(request.options)
    entry = _object(number={"type": "integer"}, why={"type": "string"}, **fields)
    return {"type": "array", "items": entry, "minItems": count, "maxItems": count}


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
