"""What every request to the server passes: token, size of its body, counting, and whether its client still waits. Plain ASGI."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, MutableMapping
from typing import Any, TypeVar

import numpy as np

from capreward.errors import missing_extra
from capreward.judges.base import Judge
from capreward.scoring import ScoreTable

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = "/health"
GONE = 499
"""The status that a request is counted under whose client went away before it was answered."""


class Door:
    """Lets a request through to `app` if it has the token and is not too large.

    Args:
        app: what lies behind.
        token: needed for everything but /health, as `Authorization: Bearer TOKEN` or as the password of Basic; None: no token.
        max_body: bytes.
        timeout: seconds for the whole body to come.
        metrics: counts every request.
        paths: those that are counted by name; all else is "other".
    """

    def __init__(
        self,
        app: App,
        *,
        token: str | None,
        max_body: int,
        timeout: float,
        metrics: Metrics,
        paths: Collection[str],
    ) -> None:
        self.app, self.max_body, self.timeout, self.metrics, self.paths = app, max_body, timeout, metrics, paths
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, start, status = scope["path"], time.perf_counter(), GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self._pass(scope, receive, noted)
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.in_flight.dec()
            seconds = time.perf_counter() - start
            self.metrics.request(path if path in self.paths else "other", status, seconds)
        return None

    async def _pass(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if scope["path"] != OPEN and not self._known(headers.get(b"authorization", b"")):
            challenge = [
                (b"www-authenticate", b'Bearer realm="capreward"'),
                (b"www-authenticate", b'Basic realm="capreward"'),
            ]
            return await _refuse(send, 401, "wrong or no token; send it as 'Authorization: Bearer TOKEN'", challenge)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.max_body:
            return await self._too_large(send)
        parts: list[bytes] = []
        size, more = 0, True
        end = asyncio.get_running_loop().time() + self.timeout
        while more:
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                return await _refuse(send, 408, f"body: not all of it came within {self.timeout:g} s")
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.max_body:
                return await self._too_large(send)
        whole: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]
        parts.clear()

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return await self.app(scope, again, send)

    async def _too_large(self, send: Send) -> None:
        await _refuse(send, 413, f"body: larger than the limit of {self.max_body} bytes; send fewer rollouts a request")

    def _known(self, authorization: bytes) -> bool:
        """Whether the token came along; takes the same time for every wrong one."""
        if self._token is None:
            return True
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(given.strip(), self._token)


async def _refuse(send: Send, status: int, detail: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    kind = (b"content-type", b"application/json")
    # The rest of the body stays unread, so the connection cannot be used again.
    headers = [kind, (b"connection", b"close"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": detail}).encode()})


class GoneError(Exception):
    """The client went away."""


async def while_connected(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled when the client goes away, which raises GoneError."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


class Metrics:
    """What Prometheus reads, in a registry of its own.

    Args:
        judges: whose usage is told.
        waiting: how many rollouts wait for their group.

    Raises:
        MissingExtraError: without prometheus-client.
    """

    def __init__(self, judges: Collection[Judge], waiting: Callable[[], int]) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise missing_extra("The server", "server", error) from error
        self.registry = registry = prometheus.CollectorRegistry()
        self._text = prometheus.generate_latest
        self._requests = prometheus.Counter("capreward_requests", "Requests", ["path", "status"], registry=registry)
        self._seconds = prometheus.Histogram(
            "capreward_request_seconds",
            "Time from a request to its answer",
            ["path"],
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
        )
        self.in_flight = prometheus.Gauge(
            "capreward_requests_in_flight", "Requests not yet answered", registry=registry
        )
        prometheus.Gauge(
            "capreward_rollouts_waiting", "Scored rollouts that wait for their group", registry=registry
        ).set_function(waiting)
        self._rollouts = prometheus.Counter("capreward_rollouts", "Rollouts scored", registry=registry)
        self._scores = prometheus.Histogram(
            "capreward_score",
            "Scores after the gates",
            ["component"],
            registry=registry,
            buckets=[tenth / 10 for tenth in range(11)],
        )
        self._missing = prometheus.Counter(
            "capreward_missing", "Scores that are missing", ["component", "reason"], registry=registry
        )
        registry.register(_JudgeUsage(judges))

    def request(self, path: str, status: int, seconds: float) -> None:
        """One answered request."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def scored(self, table: ScoreTable) -> None:
        """What one call of the suite gave."""
        self._rollouts.inc(len(table))
        for name, column in zip(table.names, table.values.T, strict=True):
            for value in column[~np.isnan(column)].tolist():
                self._scores.labels(name).observe(value)
        for name, counts in table.missing_by_reason().items():
            for reason, count in counts.items():
                self._missing.labels(name, reason).inc(count)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return self._text(self.registry)


class _JudgeUsage:
    """Reads the judges' own books whenever Prometheus asks."""

    COUNTS = ("requests", "calls", "hits", "failures", "input_tokens", "output_tokens", "seconds", "money")

    def __init__(self, judges: Collection[Judge]) -> None:
        self.judges = judges

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        for count in self.COUNTS:
            family = CounterMetricFamily(f"capreward_judge_{count}", f"{count} of the judges", labels=["judge"])
            totals: Counter[str] = Counter()  # two judges may go by one name
            for judge in self.judges:
                totals[judge.name] += getattr(judge.usage, count)
            for name, total in totals.items():
                family.add_metric([name], total)
            yield family
