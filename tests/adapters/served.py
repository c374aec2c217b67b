"""A suite whose scores stand in the captions, and servers of it on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from capreward import Item, LengthMask, Missing, Reason, RewardSuite, Rollout, Score
from capreward.adapters.server import make_app, serve


class Told:
    """Scores what word number `place` of the caption says: a number, m (missing), b (breaks) or z (takes a minute)."""

    def __init__(self, name: str, place: int) -> None:
        self.name, self.place = name, place
        self.begun = self.cancelled = 0

    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        return [await self._one(rollout.caption.split()) for rollout in rollouts]

    async def _one(self, words: list[str]) -> Score | Missing:
        word = words[self.place] if self.place < len(words) else "m"
        if word == "b":
            raise ValueError("the model is out of memory")
        if word == "z":
            self.begun += 1
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        try:
            value = min(abs(float(word)), 1.0)
        except ValueError:
            return Missing(Reason.SERVER, "the judge is down")
        await asyncio.sleep(0.002)
        return Score(value, f"told {word}", {"word": word, "odd": float("nan")})


def told(**options: Any) -> RewardSuite:
    return RewardSuite({"first": Told("first", 0), "second": Told("second", 1)}, **options)


ITEMS = [Item(id="cup"), Item(id="dog")]


def gated() -> RewardSuite:
    return told(weights={"second": 0.5}, gates=[LengthMask("second", low=0.5, high=2.0)])


@contextmanager
def serving(suite: RewardSuite | None = None, **options: Any) -> Iterator[str]:
    """The URL of a server in a thread of this process."""
    app = make_app(suite or told(), items=ITEMS, **options)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        app.state.groups.close()
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":  # a process that can be sent signals
    import logging

    logging.basicConfig(level=logging.INFO)
    serve(make_app(told(), items=ITEMS, group_size=3), port=0)
