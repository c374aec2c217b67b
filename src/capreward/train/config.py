"""What a training run does, as one record that a YAML file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from capreward.errors import InputError, missing_extra

Positive = Annotated[int, Field(gt=0)]


class TrainConfig(BaseModel):
    """Settings of a run. Only `model`, `data` and `out` have to be given."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    """Name or folder of a vision-language model of transformers."""
    data: str
    """.jsonl or .parquet file of items, or ``hf:NAME`` or ``hf:NAME:SPLIT``, a Hugging Face dataset with `Item`'s fields."""
    out: Path
    """Folder for metrics, samples, checkpoints and the trained model."""
    prompt: str = "Describe this image in detail."
    held_out: Annotated[int, Field(ge=0)] = 0
    """Items at the end of `data` that are never trained on: captioned and scored before and after."""

    suite: Literal["balcaprl", "caprl", "rubicap", "everything"] = "balcaprl"
    judge: dict[str, Any] = {"name": "lite"}
    """`name` as in `capreward score --judge`, and `judges.named.make_judge`'s base_url, images, concurrency, prices, cache."""
    weights: dict[str, float] = {}
    """Of the suite's components; 1 where not named."""
    estimator: Literal[
        "gdpo", "grpo", "dr_grpo", "mo_grpo", "dvao", "rvpo", "gd2po", "saw", "sa_mrpo", "corr_grpo", "dara"
    ] = "gdpo"
    """One of `capreward.advantage.ESTIMATORS`, with its default options."""
    max_missing: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Largest share of a component's scores that may be missing in a batch before the run stops."""

    steps: Positive = 500
    groups: Positive = 8
    """Items in a batch, over all processes."""
    group_size: Annotated[int, Field(gt=1)] = 8
    """Rollouts of each item."""
    max_tokens: Positive = 512
    """Longest caption."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    warmup: Annotated[int, Field(ge=0)] = 0
    """Updates over which the learning rate rises to its full height, where it stays."""
    updates: Positive = 1
    """Optimiser steps on each batch of rollouts; clipping acts from the second on."""
    loss: Literal["grpo", "dapo", "dr_grpo"] = "dapo"
    clip: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0)]] = (0.2, 0.28)
    """How far a token's ratio may fall below and rise above 1. The default is DAPO's."""
    kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the model that the run started from; above 0 a reference is kept."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Of adapters on every linear layer of the language model; 0 trains the whole model."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, slower."""

    save_every: Positive = 50
    """Steps from one checkpoint to the next; the last two are kept, and one is written at the end."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InputError("; ".join(map(_explained, error.errors()))) from None

    @field_validator("judge")
    @classmethod
    def _judge_is_named(cls, judge: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(judge.get("name"), str):
            raise ValueError("expected a name, such as {name: lite}")
        return judge

    @classmethod
    def from_yaml(cls, path: str | Path, **changes: Any) -> TrainConfig:
        """The settings of a YAML file, with `changes` in place of what it says.

        Raises:
            InputError: no such file, not YAML, an unknown setting or a value out of range; names the file and the setting.
        """
        try:
            settings = _parsed(Path(path).read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8: {error}") from None
        if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
            raise InputError(f"{path}: got {settings!r}, expected settings by name, such as 'steps: 500'")
        try:
            return cls(**{**settings, **changes})
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """NAME and value of ``NAME=VALUE``, the value read as YAML.

    Raises:
        InputError: another form.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"got setting {text!r}, expected NAME=VALUE, such as steps=100")
    return name, _parsed(value, name)


def _parsed(text: str, place: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("Reading settings", "train", error) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{place}: not YAML: {error}") from None


def _explained(fault: Any) -> str:
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"{name}: has to be given"
    wanted = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        wanted = f"there is no such setting; expected one of {', '.join(TrainConfig.model_fields)}"
    return f"{name}: got {fault['input']!r}; {wanted}"
