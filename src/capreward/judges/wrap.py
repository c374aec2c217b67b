"""Judges around a judge: how many ask it at once is limited, what failed is asked again; `cache.py` keeps what it said.

The order to stack them in, for a judge on a server:

    Cached(Retried(Limited(OpenAIJudge(...), 64)), path)

Limited touches the server, so that every attempt is counted; Retried lies over it, so that a request that waits for
its next attempt holds no place; Cached lies outermost, so that what is known passes neither. An engine in this process that
batches by itself stands without Limited, which would take its batches apart: `Cached(VLLMJudge(...), path)`.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeVar

from capreward.coroutines import side_by_side
from capreward.errors import InputError, require_positive
from capreward.judges.base import Judge, Reply, Request, Usage, ask_each
from capreward.missing import Missing, Reason

T = TypeVar("T")

RETRIED = (Reason.TIMEOUT, Reason.SERVER, Reason.UNPARSEABLE, Reason.TRUNCATED)
"""Failures that may not happen again. A refusal would."""

books = threading.Lock()
"""Guards the counters and flights of all wrappers, which several event loops may share; held for moments only."""


class Wrapper:
    """A judge around a judge: passes on what that can do, and counts."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.name, self.tasks, self.images = judge.name, judge.tasks, judge.images
        self._requests = self._hits = self._failures = 0

    @property
    def usage(self) -> Usage:
        """As of now: requests and failures as this wrapper sees them, hits of both, and the rest from the judge inside.

        Failures count when their `ask` ends, all else at once.
        """
        inner = self.judge.usage
        with books:
            return replace(inner, requests=self._requests, hits=self._hits + inner.hits, failures=self._failures)

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        """One reply a request, in the same order.

        Raises:
            ComponentError: the judge inside answered with the wrong number of replies.
            Exception: whatever the judge inside raises; that is no failed request but a broken judge or setting.
        """
        with books:
            self._requests += len(requests)
        replies = await self._ask(list(requests))
        with books:
            self._failures += sum(isinstance(reply, Missing) for reply in replies)
        return replies

    async def _ask(self, requests: list[Request]) -> list[Reply | Missing]:
        raise NotImplementedError


class Limited(Wrapper):
    """Asks `judge` one request at a time, at most so many at once and so many a second.

    For judges on a server: put it directly around them. Not for engines in this process that batch by themselves.

    Args:
        judge: who is asked.
        concurrency: requests that are with the judge at once, at most; of each event loop, should there be several.
        per_second: requests started in a second, at most and evenly spaced; no limit when left out.
        timeout: seconds for one request, from when it is put to the judge: waiting for its turn does not count. After that it
            is Missing(timeout).

    Raises:
        InputError: a limit that is not above 0.
    """

    def __init__(
        self, judge: Judge, concurrency: int = 64, per_second: float | None = None, timeout: float | None = None
    ) -> None:
        super().__init__(judge)
        if concurrency < 1:
            raise InputError(f"Limited: got concurrency={concurrency}, expected a number >= 1")
        require_positive("Limited", per_second=per_second, timeout=timeout)
        self.concurrency, self.per_second, self.timeout = concurrency, per_second, timeout
        # A semaphore belongs to the event loop in which it was first waited for.
        self._semaphores: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )
        self._next_start = 0.0

    async def _ask(self, requests: list[Request]) -> list[Reply | Missing]:
        with books:
            semaphore = self._semaphores.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.concurrency))

        late: list[list[Reply | Missing]] = [
            [Missing(Reason.TIMEOUT, f"{self.name}: no reply within {self.timeout} s")]
        ]

        async def one(request: Request) -> Reply | Missing:
            async with semaphore:
                await self._turn()
                [[reply]] = await _by(asyncio.timeout(self.timeout), ask_each(self.judge, [[request]]), late)
            return reply

        return await side_by_side(one(request) for request in requests)

    async def _turn(self) -> None:
        """Waits until the next request may start."""
        if self.per_second is None:
            return
        with books:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 1 / self.per_second
        await asyncio.sleep(start - time.monotonic())


class Retried(Wrapper):
    """Asks `judge` again for what came back as Missing for a reason that may pass.

    Between two attempts it waits a random time between 0 and min(cap, base * 2 ** (attempts so far - 1)) seconds, so that
    clients that failed together do not come back together.

    Without a deadline a batch is asked in one `ask`, and what failed of it in one again, so that an engine that
    batches keeps its batches. With one every request is asked by itself, side by side, so that what is answered
    in time is kept.

    Args:
        judge: who is asked.
        attempts: times that a request is asked, at most, the first one included.
        base: longest wait before the second attempt, in seconds.
        cap: longest wait before any, in seconds.
        batch_deadline: seconds for a whole `ask`; what is unanswered then is Missing(timeout). For one attempt of one request
            see `Limited`.
        retry_on: reasons to ask again for.
        rng: draws the waits; for tests.
        sleep: waits; for tests.

    Raises:
        InputError: fewer than one attempt, or a number of seconds that is not above 0.
    """

    def __init__(
        self,
        judge: Judge,
        attempts: int = 4,
        base: float = 0.5,
        cap: float = 30.0,
        batch_deadline: float | None = None,
        retry_on: Collection[Reason] = RETRIED,
        *,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        super().__init__(judge)
        if attempts < 1:
            raise InputError(f"Retried: got attempts={attempts}, expected a number >= 1")
        require_positive("Retried", base=base, cap=cap, batch_deadline=batch_deadline)
        self.attempts, self.base, self.cap = attempts, base, cap
        self.batch_deadline, self.retry_on = batch_deadline, frozenset(retry_on)
        # The random module seeds itself anew in a forked process; a generator of our own would draw the same waits in all.
        self._uniform = random.uniform if rng is None else rng.uniform
        self._sleep = sleep

    async def _ask(self, requests: list[Request]) -> list[Reply | Missing]:
        seconds = self.batch_deadline
        late = Missing(Reason.TIMEOUT, f"{self.name}: batch not answered within {seconds} s")
        if seconds is None:
            return await self._attempts(requests, [late] * len(requests))
        end = asyncio.get_running_loop().time() + seconds

        async def alone(request: Request) -> Reply | Missing:
            last: list[Reply | Missing] = [late]
            in_time = await _by(asyncio.timeout_at(end), self._attempts([request], last), None)
            return in_time[0] if in_time else _standing(last[0], late)

        return await side_by_side(alone(request) for request in requests)

    async def _attempts(self, requests: list[Request], replies: list[Reply | Missing]) -> list[Reply | Missing]:
        """Asks each request until it is answered, fails for good, or has used up its attempts; fills `replies` meanwhile."""
        failed = list(range(len(requests)))
        for attempt in range(self.attempts):
            if attempt:
                await self._sleep(self._uniform(0.0, min(self.cap, self.base * 2.0 ** (attempt - 1))))
            [outcomes] = await ask_each(self.judge, [[requests[n] for n in failed]])
            for n, reply in zip(failed, outcomes, strict=True):
                replies[n] = _standing(replies[n], reply)
            failed = [n for n, reply in zip(failed, outcomes, strict=True) if _reason(reply) in self.retry_on]
            if not failed:
                break
        return replies


def _standing(before: Reply | Missing, after: Reply | Missing) -> Reply | Missing:
    """What holds after another attempt: its outcome, but what a better parser may read yields to no other kind of failure."""
    if isinstance(before, Missing) and before.unread and isinstance(after, Missing) and not after.unread:
        return before
    return after


def _reason(reply: Reply | Missing) -> Reason | None:
    return reply.reason if isinstance(reply, Missing) else None


async def _by(limit: asyncio.Timeout, work: Awaitable[T], late: T) -> T:
    """What `work` returns, or `late` once the limit is reached."""
    try:
        async with limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise  # the judge's own
        return late
