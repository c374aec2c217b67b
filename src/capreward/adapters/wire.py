"""What travels between `capreward serve` and its clients, as pydantic records: the server's OpenAPI page is made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from capreward.advantage import ESTIMATORS
from capreward.errors import InputError
from capreward.missing import Reason
from capreward.records import Caption, Id, Image, Item

DATA_URL = r"^data:[^,]*;base64,"
LONGEST_ID = 1000
"""Characters: numpy keeps all group ids of a batch as wide as the longest of them."""


def _short(id: str) -> str:
    if len(id) > LONGEST_ID:
        raise ValueError(f"expected an id of at most {LONGEST_ID} characters")
    return id


SentId = Annotated[Id, AfterValidator(_short)]


def usable_token(token: str | None) -> str | None:
    """The token without the space around it; None without any.

    Raises:
        InputError: one that no header can hold. HTTP clients would quote it in their complaint.
    """
    if token is None:
        return None
    token = token.strip()
    if not (token and token.isascii() and token.isprintable()):
        raise InputError("token: got an empty one or one with special characters, expected printable ASCII, or None")
    return token


def _no_path(value: object) -> object:
    if isinstance(value, str) and not value.startswith("data:"):
        raise ValueError(
            "expected the image itself as a data URL (data:image/png;base64,...): the server opens no file that a client names"
        )
    return value


def _known_estimator(name: str) -> str:
    if name not in ESTIMATORS:
        raise ValueError(f"expected one of {sorted(ESTIMATORS)}")
    return name


def _from_json(label: object) -> object:
    """OpenRLHF's labels are texts: an item's fields as JSON, or else an id."""
    if not (isinstance(label, str) and label.lstrip().startswith("{")):
        return label
    try:
        return json.loads(label)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"starts as JSON does, but is none: {error}") from None


class SentItem(Item):
    """An item in a request: its image comes as bytes."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: SentId
    image: Annotated[
        Image,
        BeforeValidator(_no_path),
        WithJsonSchema({"anyOf": [{"type": "string", "pattern": DATA_URL}, {"type": "null"}]}),
    ] = None
    """The encoded image (PNG, JPEG, ...) as a data URL."""


ItemOrId = Annotated[
    Annotated[SentItem, Tag("fields")] | Annotated[SentId, Tag("id")],
    Discriminator(lambda value: "fields" if isinstance(value, dict | Item) else "id"),
]
"""An item's fields, or the id of one that the server or the request holds."""


class Sent(BaseModel):
    """Base of what a client sends: refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Answer(BaseModel):
    """Base of what the server answers."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class SentRollout(Sent):
    """One caption to score."""

    item: ItemOrId
    """The fields of an item, or the id of one in the request's `items` or among those that the server was started with."""
    caption: Caption
    """As the policy wrote it."""
    id: SentId | None = None
    """Unique in a request where given."""
    group: SentId | None = None
    """Rollouts with the same group are compared with one another; the item's id unless given."""
    metadata: dict[str, Any] = {}
    """Anything; for components that read it."""


class ScoreRequest(Sent):
    """Captions to score together."""

    rollouts: list[SentRollout] = Field(min_length=1)
    items: list[SentItem] = []
    """Items that rollouts name by id, so that an image travels once."""
    estimator: Annotated[
        str, AfterValidator(_known_estimator), WithJsonSchema({"type": "string", "enum": sorted(ESTIMATORS)})
    ] = "gdpo"
    """Of the advantages. With `group_size` it has to be gdpo."""
    group_size: int | None = Field(default=None, ge=1)
    """Wait until so many rollouts of each group have been scored, in whichever requests they come."""


class Cell(Answer):
    """What one component says of one rollout."""

    raw: float | None
    """Its score in [0, 1]; null where there is none."""
    value: float | None
    """The score after the gates; null where missing."""
    why: str
    """Why `value` is what it is."""
    missing: Reason | None
    """Why `value` is null."""
    unread: str
    """What the judge said, where that could not be read."""
    gated: bool
    """Whether a gate changed the score."""
    evidence: dict[str, Any]
    """What the score rests on."""


class ScoredRollout(Answer):
    """The answer to one rollout."""

    id: str
    """As sent; GROUP#N where none was."""
    group: str
    item: str
    scores: dict[str, Cell]
    """By component."""
    total: float | None
    """Weighted mean of the values present, in [0, 1]; null where there is none. For reading, not for training."""
    advantage: float
    """Over the rollouts of this request; with `group_size`, the decoupled scalar, over its group's rollouts in all requests."""
    compared: int
    """How many rollouts its group had: fewer than `group_size` where the wait ended first."""


class ScoreAnswer(Answer):
    """The answer to a `ScoreRequest`; rollouts in its order."""

    components: list[str]
    rollouts: list[ScoredRollout]
    missing: dict[str, dict[Reason, int]]
    """How often each component's value is missing, by reason."""


class RewardRequest(Sent):
    """OpenRLHF's call of a remote reward model; three lists of the same length."""

    query: list[Caption] = Field(min_length=1)
    """Prompt and response as one text, with the special tokens."""
    prompts: list[Caption]
    """The prompts alone, as they were before images were put in."""
    labels: list[Annotated[ItemOrId, BeforeValidator(_from_json)]]
    """An item's fields as JSON text, or the id of an item that the server was started with."""


class RewardAnswer(Answer):
    """The answer to a `RewardRequest`; every list is in its order."""

    rewards: list[float]
    """The weighted mean of the values present, in [0, 1]; from a server with a group size, the decoupled scalar."""
    scores: list[float]
    """The same."""
    extra_logs: dict[str, list[float]]
    """Of each component NAME and of the total: `NAME.scored`, 1 or 0 where missing, and `NAME.points`, the value, 0 where
    missing; mean points / mean scored is the mean score. OpenRLHF needs the same numbers of every rollout."""


class Health(Answer):
    """The server answers."""

    status: Literal["ok"] = "ok"


class Problem(Answer):
    """Why a request was not answered."""

    detail: str


class Fault(Answer):
    """One thing wrong with a request."""

    loc: list[str | int]
    """Where: the field."""
    msg: str
    type: str


class Faults(Answer):
    """What is wrong with a request."""

    detail: list[Fault]


def clean(value: Any) -> Any:
    """JSON-ready data as JSON can hold it: None for what is no finite number, no halves of surrogate pairs."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean(inner) for inner in value]
    return value if value is None or isinstance(value, int) else clean(str(value))
