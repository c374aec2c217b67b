"""Tiny runs: a random captioner that learns to write letters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from fakes import FakeComponent
from PIL import Image

from capreward import Item, RewardSuite, Rollout
from capreward.advantage import Estimator
from capreward.train.config import TrainConfig
from capreward.train.loop import Trainer
from capreward.train.policy import Policy

INSTRUCTION = "Spell."


def picture(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    """A PNG of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def items(count: int = 6) -> list[Item]:
    """Pictures of different sizes."""
    return [Item(id=f"item {n}", image=picture(n, (16 + n, 20))) for n in range(count)]


def likes_letters(rollout: Rollout) -> float:
    """1 for a caption of nothing but letters a to z."""
    return sum("a" <= character <= "z" for character in rollout.caption) / max(len(rollout.caption), 1)


def is_long(rollout: Rollout) -> float:
    return min(len(rollout.caption) / 8, 1.0)


def suite(**changes: Any) -> RewardSuite:
    """Two components, or those given."""
    components = changes.pop("components", {"letters": FakeComponent(likes_letters), "long": FakeComponent(is_long)})
    return RewardSuite(components, **{"weights": {"long": 0.25}, **changes} if "long" in components else changes)


def config(out: Path, **changes: Any) -> TrainConfig:
    """Three steps of two groups of four captions of at most eight tokens."""
    settings = {
        "model": "tiny",
        "data": "drawn",
        "steps": 3,
        "groups": 2,
        "group_size": 4,
        "max_tokens": 8,
        "learning_rate": 1e-3,
        "save_every": 100,
    }
    return TrainConfig(**{**settings, "out": out, **changes})


def policy(config: TrainConfig) -> Policy:
    return Policy(*tiny.llava(), instruction=INSTRUCTION, lora_rank=config.lora_rank, reference=config.kl > 0)


def trainer(
    out: Path,
    *,
    reward: RewardSuite | None = None,
    on: Sequence[Item] | None = None,
    held_out: Sequence[Item] = (),
    kind: type[Trainer] = Trainer,
    by: Estimator | None = None,
    parts: int = 2,
    **changes: Any,
) -> Trainer:
    """A run of `config(out, **changes)`."""
    settings = config(out, **changes)
    on = items() if on is None else on
    return kind(settings, policy(settings), reward or suite(), on, held_out=held_out, estimator=by, parts=parts)


def rows(path: Path) -> list[dict[str, Any]]:
    """Of a .jsonl file."""
    return [json.loads(line, parse_constant=_refused) for line in path.read_text(encoding="utf-8").splitlines()]


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def untimed(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics without what differs from one computer to the next."""
    return [
        {name: value for name, value in row.items() if not name.startswith(("seconds/", "tokens_per_second"))}
        for row in rows(path)
    ]


def weights(trained: Trainer) -> dict[str, Any]:
    """Copies of all parameters of the policy, trained or not."""
    return {name: value.detach().clone() for name, value in trained.policy.named_parameters()}
