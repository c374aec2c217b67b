"""Shared by all tests: no network but loopback, one thread, one lite judge."""

from __future__ import annotations

import os
import socket
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

from capreward import Item, LiteJudge, Rollout, samples

settings.register_profile("capreward", deadline=None, derandomize=True)
settings.load_profile("capreward")

_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> Any:
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise RuntimeError(f"a test tried to reach {address}; tests stay on loopback")
    return _connect(self, address)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _loopback_only)


@pytest.fixture(scope="session")
def lite() -> LiteJudge:
    return LiteJudge()


@pytest.fixture(scope="session")
def photos() -> list[Rollout]:
    return samples.photos()


@pytest.fixture
def cup() -> Item:
    """A small item that has everything."""
    return Item(
        id="cup",
        references=("A white cup stands on a brown table next to a silver spoon.",),
        facts=(
            {"text": "The cup is white.", "true": True},
            {"text": "A spoon lies next to the cup.", "true": True},
            {"text": "A dog sleeps under the table.", "true": False},
            {"text": "The scene feels peaceful.", "pointable": False},
        ),
        questions=({"text": "What colour is the cup?", "options": ("blue", "white"), "answer": 1},),
        rubric=({"text": "Mentions a spoon", "weight": 2.0}, {"text": "Mentions a dog", "weight": 1.0}),
    )
