"""Judges that wait, fail and record, and what the tests of the wrappers share besides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fakes import FakeJudge

from capreward import Missing, Reason
from capreward.judges import Judge, Reply, Request, Task

DOWN = Missing(Reason.SERVER, "server is down")
REFUSED = Missing(Reason.REFUSED, "no")
PATIENCE = 60.0
"""Seconds after which a test that hangs is called failed."""


def support(text: str, **fields: Any) -> Request:
    return Request(Task.SUPPORT, text, ("a cup",), **fields)


def numbered(count: int) -> list[Request]:
    return [support(str(n)) for n in range(count)]


def echo(request: Request) -> Reply:
    return Reply((0.5,), raw=request.context)


def raws(replies: Sequence[Reply | Missing]) -> list[str]:
    return [reply.raw if isinstance(reply, Reply) else str(reply.reason) for reply in replies]


def run(work: Awaitable[Any]) -> Any:
    async def within() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await work

    return asyncio.run(within())


def ask(judge: Judge, *requests: Request) -> list[Reply | Missing]:
    return list(run(judge.ask(requests)))


async def until(condition: Callable[[], bool]) -> None:
    """Lets others run until the condition holds; the timeout of `run` ends it if it never does."""
    while not condition():
        await asyncio.sleep(0.001)


class AsyncJudge(FakeJudge):
    """Answers with `answer(request)`, an awaitable or not, and records each batch and how many requests it held at once."""

    def __init__(self, answer: Callable[[Request], Any] = echo) -> None:
        super().__init__()
        self.respond = answer
        self.batches: list[list[str]] = []
        self.inside = self.most = 0

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        self.batches.append([request.context for request in requests])
        self.asked += requests
        self.usage.calls += len(requests)
        self.usage.requests += len(requests)
        self.inside += len(requests)
        self.most = max(self.most, self.inside)
        try:
            return [await self._answer(request) for request in requests]
        finally:
            self.inside -= len(requests)

    async def _answer(self, request: Request) -> Reply | Missing:
        answer = self.respond(request)
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return answer


class Failing(AsyncJudge):
    """Answers each request with the outcomes in turn, the last one for ever."""

    def __init__(self, *outcomes: Any) -> None:
        super().__init__(self.next)
        self.outcomes = outcomes

    def next(self, request: Request) -> Any:
        times = sum(batch.count(request.context) for batch in self.batches)
        return self.outcomes[min(times, len(self.outcomes)) - 1]


class Naps:
    """A sleep that takes no time and remembers."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
