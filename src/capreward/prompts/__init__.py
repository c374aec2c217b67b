"""The prompts: one text file each, versioned by the hash of its text.

A file holds a system part and a user part, separated by a line of three dashes. `$name` stands for what is filled in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as its file holds it."""

    system: str
    user: str
    hash: str
    """SHA-256 of the file's text, its first 12 hex digits: part of every cache key."""


@cache
def load(name: str) -> Prompt:
    """The prompt in NAME.txt."""
    text = (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8")
    system, _, user = text.partition("\n---\n")
    return Prompt(system.strip(), user.strip(), hashlib.sha256(text.encode()).hexdigest()[:12])


def hashes() -> dict[str, str]:
    """The hash of every prompt, by name."""
    return {path.stem: load(path.stem).hash for path in sorted(Path(__file__).parent.glob("*.txt"))}
