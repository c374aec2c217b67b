"""ms-swift's own scoring and advantages, with a suite registered as its plugins; it shares verl's environment."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from swift.rewards import orms
from swift.rl_core.advantage import compute_advantages
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import compute_rewards_per_func

from capreward import Missing, Reason, RewardSuite, Rollout, Score, gdpo
from capreward.adapters.swift import register
from capreward.errors import InputError

G = 4
CAPTIONS = ["white", "white cup", "a white cup stands there", "asleep", "", "cup", "one two three", "a asleep b white"]


class Words:
    """Fewer words are better; keeps what it was asked."""

    name = "words"

    def __init__(self) -> None:
        self.batches: list[list[Rollout]] = []

    async def score(self, rollouts: list[Rollout]) -> list[Score]:
        self.batches.append(rollouts)
        return [Score(1 / len(rollout.caption.split())) for rollout in rollouts]


class White:
    name = "white"

    async def score(self, rollouts: list[Rollout]) -> list[Score | Missing]:
        return [
            Missing(Reason.TIMEOUT) if "asleep" in rollout.caption else Score(float("white" in rollout.caption))
            for rollout in rollouts
        ]


@pytest.fixture
def words() -> Iterator[Words]:
    before = dict(orms)
    component = Words()
    register(RewardSuite({"words": component, "white": White()}, weights={"white": 0.5}))
    yield component
    orms.clear()
    orms.update(before)


def samples() -> list[Any]:
    """As a dataloader's rows after sampling: two prompts, G times each."""
    rows = []
    for n, caption in enumerate(CAPTIONS):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), ["red", "blue"][n // G]).save(buffer, "PNG")
        rows.append(
            GRPOSample.from_row(
                {
                    "messages": [
                        {"role": "user", "content": "<image>Describe."},
                        {"role": "assistant", "content": caption},
                    ],
                    "images": [{"bytes": buffer.getvalue(), "path": None}],
                    "references": [f"Reference {n // G}."],
                }
            )
        )
    return rows


def rewards() -> torch.Tensor:
    functions = [orms[name](args=None) for name in ("words", "white")]
    assert [type(function).__name__ for function in functions] == ["words", "white"]  # as which ms-swift logs them
    return compute_rewards_per_func(samples(), functions, [None, None], torch.device("cpu"))


def test_swift_is_given_our_scores(words: Words) -> None:
    expected = [[1, 1], [0.5, 1], [0.2, 1], [1, None], [0, 0], [1, 0], [1 / 3, 0], [0.25, None]]
    np.testing.assert_allclose(rewards().numpy(), np.array(expected, float), rtol=1e-6)
    (asked,) = words.batches  # once, for both functions
    assert len({rollout.group for rollout in asked}) == len({rollout.item.id for rollout in asked}) == 2
    assert asked[0].item.references == ("Reference 0.",)
    with Image.open(io.BytesIO(asked[0].item.image)) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.usefixtures("words")
def test_its_advantages_are_ours() -> None:
    given = rewards()
    theirs, _ = compute_advantages(given, torch.tensor([1.0, 0.5]), G, scale_rewards="gdpo")
    ours = gdpo(given.double().numpy(), np.repeat([0, 1], G), [1.0, 0.5], eps=1e-8)
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-5)


def test_a_name_that_is_taken() -> None:
    with pytest.raises(InputError, match=r"register: got component 'format', expected none of ms-swift's \["):
        register(RewardSuite({"format": White()}))
