"""What a language model said -> a reply. A reply that is not complete is Missing, never a guess."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from capreward.judges.base import CHOICES, Reply, Request, Task
from capreward.judges.chat import LETTERS
from capreward.missing import Missing, Reason

_LETTER = re.compile(r"\(?([A-Z])\)?(?:[.):,\n].*)?", re.DOTALL)
"""Not before a space: "A" may be an article, and "I" a pronoun."""
_LISTS = {Task.INQUIRE: "questions", Task.CRITICISE: "criteria"}
"""Where the objects stand that are handed on as texts."""
_FENCED = re.compile(r"\s*```(?:json)?\s*(.*?)```\s*", re.DOTALL)


def parse(request: Request, text: str) -> Reply | Missing:
    """The reply that `text` holds.

    Every option has to be answered exactly once and in its range; else Missing(unparseable), which keeps the text. Questions and
    criteria have to be objects; what these hold is handed on as it is, as JSON with sorted names.
    """
    try:
        if request.task in CHOICES:
            return _choice(request, text)
        return _description(text) if request.task is Task.DESCRIBE else _structured(request, text)
    except _Unusable as error:
        return Missing(Reason.UNPARSEABLE, f"{request.task}: {error}; the judge said {text[:200]!r}", text)


def from_letters(request: Request, probabilities: Mapping[str, float], text: str) -> Reply | Missing:
    """The reply to a choice from the probabilities of the first token: those of the options' letters, renormalised.

    Args:
        probabilities: by token as the server spells it; a letter may come with spaces around it.
        text: the whole reply, which is parsed when no letter is among the tokens.
    """
    letters = LETTERS[: len(request.options)]
    mass = [sum(p for token, p in probabilities.items() if token.strip() == letter) for letter in letters]
    if not sum(mass):
        return parse(request, text)
    return Reply(tuple(p / sum(mass) for p in mass), raw=text)


class _Unusable(Exception):
    """What is wrong with a judge's reply."""


def _choice(request: Request, text: str) -> Reply:
    letters = LETTERS[: len(request.options)]
    found = _LETTER.fullmatch(text.strip())
    if found is None or found[1] not in letters:
        raise _Unusable(f"expected one of the letters {', '.join(letters)}")
    return Reply(tuple(float(letter == found[1]) for letter in letters), raw=text)


def _description(text: str) -> Reply:
    if not text.strip():
        raise _Unusable("expected a description")
    return Reply(texts=(_writable(text.strip()),), raw=text)


def _structured(request: Request, text: str) -> Reply:
    fenced = _FENCED.fullmatch(text)
    try:
        data = json.loads(fenced[1] if fenced else text, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"not JSON ({error})") from None
    if request.task is Task.EXTRACT:
        statements = _list(data, "statements")
        if not all(isinstance(statement, str) for statement in statements):
            raise _Unusable("expected statements that are texts")
        return Reply(texts=tuple(dict.fromkeys(s.strip() for s in statements if s.strip())), raw=text)
    if request.task in _LISTS:
        return Reply(texts=tuple(_as_text(entry) for entry in _list(data, _LISTS[request.task])), raw=text)
    key = "ratings" if request.task in (Task.RATE, Task.LIKERT) else "verdicts"
    entries = _numbered(_list(data, key), len(request.options))
    values = tuple(_value(request.task, entry) for entry in entries)
    return Reply(values, why=tuple(str(entry.get("why", "")) for entry in entries), raw=text)


def _as_text(entry: Any) -> str:
    """An object as JSON again, the same for the same object however it was spelled."""
    if not isinstance(entry, dict):
        raise _Unusable("expected a list of objects")
    try:
        return _writable(json.dumps(entry, ensure_ascii=False, sort_keys=True, allow_nan=False))
    except (ValueError, RecursionError) as error:  # Python reads NaN, which is no JSON
        raise _Unusable(f"got an object that cannot be written as JSON ({error})") from None


def _writable(text: str) -> str:
    """The text, if a file can hold it: JSON can spell half a character, and what judges write is kept."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Unusable(f"got a text that is no Unicode ({error.reason})") from None
    return text


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no name comes twice: a text copied into `why` with its quotes could answer beside the judge."""
    if len(dict(pairs)) < len(pairs):
        raise _Unusable(f"got names {[name for name, _ in pairs]}, expected each once")
    return dict(pairs)


def _list(data: Any, key: str) -> list[Any]:
    if not isinstance(data, dict) or not isinstance(data.get(key), list) or len(data) > 1:
        raise _Unusable(f"expected an object with a list {key!r} alone")
    return list(data[key])


def _numbered(entries: Sequence[Any], count: int) -> list[dict[str, Any]]:
    """The entries in the order of the options: each number from 1 to count exactly once."""
    if not all(isinstance(entry, dict) for entry in entries):
        raise _Unusable("expected a list of objects")
    numbers = [entry.get("number") for entry in entries]
    if sorted(map(str, numbers)) != sorted(map(str, range(1, count + 1))):
        raise _Unusable(f"got numbers {numbers}, expected each from 1 to {count} once")
    return sorted(entries, key=lambda entry: int(entry["number"]))


def _value(task: Task, entry: Mapping[str, Any]) -> float:
    match task:
        case Task.SUPPORT:
            return float(_boolean(entry, "holds"))
        case Task.VERIFY:
            return float(_boolean(entry, "true") and _boolean(entry, "pointable"))
    rating = entry.get("rating")
    if isinstance(rating, bool) or rating not in (1, 2, 3, 4, 5):
        raise _Unusable(f"got rating {rating!r}, expected 1, 2, 3, 4 or 5")
    return (int(rating) - 1) / 4


def _boolean(entry: Mapping[str, Any], key: str) -> bool:
    if not isinstance(entry.get(key), bool):
        raise _Unusable(f"got {key} {entry.get(key)!r}, expected true or false")
    return bool(entry[key])
