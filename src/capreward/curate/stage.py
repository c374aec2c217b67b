"""What makes something for items: the interface between what is made and the runs that make it at scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from capreward.judges.base import Judge
from capreward.missing import Missing
from capreward.records import Item


@dataclass(frozen=True, slots=True)
class Curated:
    """An item with what was made for it."""

    item: Item
    """What goes on to training."""
    record: Mapping[str, Any]
    """All that was made, kept and rejected, with the verdicts; JSON-ready."""


Outcome = Curated | Missing
"""A `Missing` sends the item to the dead letters, with its reason."""


class Stage(Protocol):
    """Makes one kind of thing for items. Failures are outcomes; an exception is a bug and ends the run."""

    name: str
    """`questions`, `rubrics`, `references`, `captions`."""

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Whom it asks: for the bill and the datasheet."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """JSON-ready settings for the datasheet: thresholds, names of judges, hashes of prompts."""
        ...

    async def curate(self, items: Sequence[Item]) -> Sequence[Outcome]:
        """One outcome for each item, in order."""
        ...

    def count(self, record: Mapping[str, Any]) -> Mapping[str, int]:
        """What to add up over items, such as ``{"written": 12, "kept": 5, "guessed": 4}``."""
        ...
