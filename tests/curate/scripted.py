"""Stages that do what a test says; run as a script, a run that is to be killed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fakes import FakeJudge

from capreward import Item, Missing, Reason
from capreward.curate.pipeline import run
from capreward.curate.sources import Lines, Shard
from capreward.curate.stage import Curated, Outcome
from capreward.judges import Judge, Reply, Request, Task


class Scripted:
    """Makes `make(item)` of each item, an `Outcome` or an exception; by itself, everything passes."""

    name = "scripted"

    def __init__(
        self, make: Callable[[Item], Any] | None = None, *, judges: tuple[Judge, ...] = (), **settings: Any
    ) -> None:
        self.make, self.judges, self.settings = make or passed, judges, settings
        self.batches: list[list[str]] = []

    @property
    def asked(self) -> list[str]:
        return [id for batch in self.batches for id in batch]

    def describe(self) -> Mapping[str, Any]:
        return self.settings

    async def curate(self, items: Sequence[Item]) -> list[Outcome]:
        self.batches.append([item.id for item in items])
        for judge in self.judges:
            await judge.ask([Request(Task.EXTRACT, item.id) for item in items])
        await asyncio.sleep(0)
        made = [self.make(item) for item in items]
        for outcome in made:
            if isinstance(outcome, Exception):
                raise outcome
        return made

    def count(self, record: Mapping[str, Any]) -> Mapping[str, int]:
        return {"made": 1, "letters": len(record["made"])}


def passed(item: Item) -> Curated:
    return Curated(item.model_copy(update={"references": (f"It is {item.id}.",)}), {"made": item.id})


def failing(*ids: str, reason: Reason = Reason.SERVER) -> Callable[[Item], Outcome]:
    """Everything passes but these."""
    return lambda item: Missing(reason, "out of order") if item.id in ids else passed(item)


def every_seventh_fails(item: Item) -> Outcome:
    return Missing(Reason.REFUSED, "a seventh") if int(item.id.split("-")[1]) % 7 == 0 else passed(item)


def judge() -> FakeJudge:
    return FakeJudge(Reply(texts=("It is so.",)))


class Endless:
    """Tiny items that are made as they are read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "endless"}

    def shards(self, size: int) -> Iterator[Shard]:
        for number, start in enumerate(range(0, self.count, size)):
            yield Shard(number, min(size, self.count - start), start)

    def read(self, shard: Shard) -> Iterator[tuple[str, Item]]:
        for n in range(shard.where, shard.where + shard.count):
            yield f"number {n}", Item(id=f"item-{n}")


class Slow(Scripted):
    """Takes 10 ms a shard, so that a kill meets it anywhere."""

    def __init__(self) -> None:
        super().__init__(every_seventh_fails, judges=(judge(),))

    async def curate(self, items: Sequence[Item]) -> list[Outcome]:
        await asyncio.sleep(0.01)
        return await super().curate(items)


class Mortal(Slow):
    """The first one that comes to it kills its process, in the middle of a run."""

    def __init__(self, grave: Path) -> None:
        super().__init__()
        self.grave = grave

    async def curate(self, items: Sequence[Item]) -> list[Outcome]:
        if items[0].id == "item-120":
            try:
                self.grave.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), 9)
        return await super().curate(items)


if __name__ == "__main__":
    print("ready", flush=True)
    run(Slow(), Lines(sys.argv[1]), sys.argv[2], shard_size=5, progress=False)
