"""What is scored: frozen records of an image's item and of the captions that a policy wrote for it."""

from __future__ import annotations

import base64
import re
import unicodedata
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from capreward.errors import InputError

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+|(?<=\d)[.,]\d+)*")
_LONGEST_WORD = 30
"""Letters and digits that count as one word, at most."""
_HIDDEN = "\u2060"
"""Stands for every format character, which nobody sees, while words are counted."""
_BROKEN = re.compile(rf"[^\W_]+(?:{_HIDDEN}+[^\W_]+)+")


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits of any script, with the apostrophes and decimal points inside them.

    Hyphens, dots and underscores separate words, and a run of over 30 letters counts as several, at the invisible characters
    inside it if there are any; those inside a shorter run separate nothing. So a policy can neither make a long caption
    count as a short one, nor, with what nobody sees, a short one as long. Languages written without spaces come out
    as one word a phrase; count tokens there (`components.tokens`).
    """
    if not text.isascii():  # accents and vowel signs of their own belong to the letter before them
        kinds = ((c, unicodedata.category(c)) for c in text if c not in "\u200c\u200d")
        text = "".join(_HIDDEN if kind == "Cf" else c for c, kind in kinds if kind not in ("Mn", "Mc", "Me"))
        text = _BROKEN.sub(_mended, text)
    return [
        word[start : start + _LONGEST_WORD]
        for word in _WORD.findall(text)
        for start in range(0, len(word), _LONGEST_WORD)
    ]


def _mended(run: re.Match[str]) -> str:
    """A run of letters without what is hidden in it, unless it is too long for a word."""
    whole = run[0].replace(_HIDDEN, "")
    return whole if len(whole) <= _LONGEST_WORD else run[0]


def count_words(text: str) -> int:
    """Number of `words`."""
    return len(words(text))


class Record(BaseModel):
    """Base of the records: frozen, and refuses unknown fields.

    Raises:
        InputError: a field that is unknown, missing or of the wrong kind; one line names the record and the field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InputError(_explain(type(self), data, error)) from None


# numpy's strings drop trailing NULs, so two groups could become one
Id = Annotated[
    str,
    StringConstraints(min_length=1, pattern=r"^[^\x00]*$"),
    BeforeValidator(lambda value: str(value) if isinstance(value, Integral) else value),
]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Image = Annotated[Path | bytes | None, BeforeValidator(lambda value: _path_or_bytes(value))]
Caption = Annotated[str, BeforeValidator(lambda value: _encodable(value))]


class Question(Record):
    """A multiple-choice question about an image."""

    text: Text
    options: tuple[Text, ...] = Field(min_length=2)
    """At least two, all different."""
    answer: int
    """Index of the right option."""
    kind: str | None = None
    """For grouping in reports: object, attribute, count, position, relation, text, ..."""
    hard: bool = False
    """Its wrong options also occur in good captions of the image."""

    @field_validator("options")
    @classmethod
    def _distinct(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(options)) < len(options):
            raise ValueError("expected options that all differ")
        return options

    @model_validator(mode="after")
    def _answer_in_range(self) -> Question:
        if not 0 <= self.answer < len(self.options):
            raise ValueError(f"answer: got {self.answer}, expected an index from 0 to {len(self.options) - 1}")
        return self


class Criterion(Record):
    """A binary criterion of a rubric (RubiCap, arXiv 2603.09160): critical 3.0, important 2.0, minor 1.0."""

    text: Text
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Fact(Record):
    """One atomic statement about an image, labelled by whoever saw it."""

    text: Text
    true: bool = True
    """Whether the image shows it."""
    pointable: bool = True
    """Whether it refers to something that can be located in the image (BalCapRL, arXiv 2605.07394)."""


class Item(Record):
    """An image and what is known about it. Everything but the id is optional; a component says what it needs."""

    id: Id
    image: Image = None
    """Path, encoded bytes (PNG, JPEG, ...) or a data URL. A path is checked when it is read from a file or opened."""
    references: tuple[Text, ...] = ()
    """Reference captions."""
    reference_units: tuple[Text, ...] = ()
    """Atomic statements that a complete caption makes, extracted from the references once."""
    facts: tuple[Fact, ...] = ()
    questions: tuple[Question, ...] = ()
    rubric: tuple[Criterion, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict)

    def same_as(self, other: Item) -> bool:
        """Whether both say the same of the image; metadata, which may hold anything, is not compared."""
        fields = (name for name in Item.model_fields if name != "metadata")
        return self is other or all(getattr(self, name) == getattr(other, name) for name in fields)

    @field_serializer("image", when_used="json")
    def _image_as_text(self, image: Path | bytes | None) -> str | None:
        if isinstance(image, bytes):
            return _DATA_URL + base64.b64encode(image).decode()
        return None if image is None else str(image)


class Rollout(Record):
    """One caption that the policy wrote for an item."""

    item: Item
    caption: Caption
    """As the policy wrote it: empty, endless or hostile text is scored, never refused."""
    id: Id | None = None
    """Unique in a batch where given."""
    group: Id = Field(default_factory=lambda known: known["item"].id)
    """Rollouts with the same group are compared with one another; the item's id unless given."""
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True when the caption holds no letter and no digit of any script: nothing to score."""
        return not any(character.isalnum() for character in self.caption)


_DATA_URL = "data:application/octet-stream;base64,"


def _path_or_bytes(value: object) -> object:
    if isinstance(value, str) and value.startswith("data:"):
        head, _, payload = value.partition(",")
        if not head.endswith(";base64"):
            raise ValueError("expected a base64 data URL (data:...;base64,...)")
        return base64.b64decode(payload, validate=True)
    if isinstance(value, str) and value:
        return Path(value)
    if value is None or isinstance(value, Path | bytes):
        return value
    raise ValueError("expected a path, encoded bytes or a data URL")


def _encodable(value: object) -> object:
    # A policy's broken byte sequences can decode to lone surrogates, which no file or server takes.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _explain(kind: type[Record], data: dict[str, Any], error: ValidationError) -> str:
    """One line: which record, which field, what came, what is allowed."""
    name = data.get("id")
    item = data.get("item")
    if name is None and isinstance(item, Item | dict):
        name = item.id if isinstance(item, Item) else item.get("id")
    faults = []
    for fault in error.errors():
        if fault["type"] == "default_factory_not_called":
            continue
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        cause = fault.get("ctx", {}).get("error")
        if isinstance(cause, InputError):  # a nested record that has already explained itself
            faults.append(f"{place}: {cause}")
        elif fault["type"] == "extra_forbidden":
            faults.append(f"{place}: unknown field; expected one of {', '.join(kind.model_fields)}")
        elif fault["type"] == "missing":
            faults.append(f"{place}: required, but not given")
        elif fault["type"] == "value_error" and not place:
            faults.append(str(cause))
        else:
            wanted = str(cause) if cause is not None else fault["msg"][:1].lower() + fault["msg"][1:]
            faults.append(f"{place}: got {_short(fault['input'])}; {wanted}")
    return f"{kind.__name__}{'' if name is None else f' {name!r}'}: {'; '.join(faults)}"


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
