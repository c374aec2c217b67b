"""A judge whose replies are kept in a file, so that nothing is asked twice."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sqlite3
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from capreward.coroutines import side_by_side
from capreward.errors import InputError, require_positive
from capreward.judges.base import Judge, Reply, Request, ask_each, complete_reply
from capreward.judges.parse import parse
from capreward.judges.wrap import Wrapper, books
from capreward.missing import Missing, Reason

P = ParamSpec("P")
T = TypeVar("T")
Flight = Future[Reply | Missing | None]
"""A request that is being answered, for everyone in this process who asks it meanwhile. None: look again, nobody is at it."""

BUSY_SECONDS = 60.0
"""How long a process waits for another one's writing to the cache before it gives up."""
FIRST_POLL, LAST_POLL = 0.02, 0.5
"""Seconds between two looks for the reply to a question that another process is asking; growing from one to the other."""
KEYS = 500
"""Keys in one SELECT; SQLite takes 999 at least."""


class Cached(Wrapper):
    """Answers from a file what was ever asked of a judge of this name, and asks `judge` the rest, once.

    A reply is known by `request.key(judge.name)`: everything that could change it. Failures are not kept, nor are replies that do
    not answer every option: they are asked again next time. A reply is handed out only when it is written, so whatever
    became of the process, nothing that was handed out is asked again. What the judge said and could not be read is kept
    too: it is parsed again each time, and asked again only if today's parser cannot read it either.

    Identical requests are one request, in a batch, among all tasks, threads and event loops of this process (they share the
    reply, the failure or the exception) and among all processes that use the file. There, who asks leaves a claim
    on the question, and the others wait for the reply. The claim falls when its owner has answered, failed or died, and the next
    one that waits asks by itself. When a task is cancelled, what it had asked for others is asked anew by one of them.

    The file is an SQLite database, for any number of processes on one machine (network file systems do not serve).
    The new questions of a batch go to `judge` in parts, side by side, and each part is written when it is answered, so that an
    interrupted batch keeps the parts that it has paid for. What is asked about one text stays in one part.

    Args:
        judge: who is asked.
        path: the file; made if it does not exist, with its folder. Several judges may share one.
        claim_seconds: after so many seconds without a sign of life, a claim whose owner cannot be seen to be dead falls too.
            Its owner renews it while its event loop runs.
        chunk: questions in a part, at most. An engine in this process works on one part after another, so a part should
            keep it busy: some times what it takes at once.

    Raises:
        InputError: the file cannot be opened or is no SQLite database; `claim_seconds` or `chunk` is not above 0.
    """

    def __init__(self, judge: Judge, path: str | Path, claim_seconds: float = 600.0, chunk: int = 1024) -> None:
        super().__init__(judge)
        require_positive("Cached", claim_seconds=claim_seconds, chunk=chunk)
        self.path, self.claim_seconds, self.chunk = Path(path), claim_seconds, chunk
        self._start()
        self._store.run(lambda: None)  # a file that cannot be opened should show here
        _caches.add(self)

    def close(self) -> None:
        """Closes the file; the next `ask` opens it again."""
        with self._store.lock:
            self._store.close()

    def _start(self) -> None:
        """Makes everything that belongs to one process."""
        self._flights: dict[str, Flight] = {}
        self._store = _Store(self.path, self.claim_seconds)

    async def _ask(self, requests: list[Request]) -> list[Reply | Missing]:
        keys = await asyncio.to_thread(_keys, requests, self.name)
        wanted = {key: request for key, request in zip(keys, requests, strict=True) if isinstance(key, str)}
        self._count_hits(sum(isinstance(key, str) for key in keys) - len(wanted))
        answers: dict[str, Reply | Missing] = {}
        while open_ := {key: request for key, request in wanted.items() if key not in answers}:
            with books:
                led = {key: request for key, request in open_.items() if key not in self._flights}
                self._flights |= {key: _flight() for key in led}
                flights = {key: self._flights[key] for key in open_}
            # Led before joined, so that no two tasks ever wait for each other.
            if led:
                await self._lead(led, flights)
            for key, flight in flights.items():
                reply = flight.result() if flight.done() else await asyncio.wrap_future(flight)
                if reply is not None:
                    answers[key] = reply
                    self._count_hits(key not in led)
        return [key if isinstance(key, Missing) else answers[key] for key in keys]

    async def _lead(self, wanted: Mapping[str, Request], flights: Mapping[str, Flight]) -> None:
        """Settles the flights of `wanted`."""
        store, waiting, poll = self._store, dict(wanted), FIRST_POLL

        def settle(replies: Mapping[str, Reply | Missing]) -> None:
            for key, reply in replies.items():
                flights[key].set_result(reply)
                del waiting[key]

        async def ask(part: Mapping[str, Request]) -> None:
            settle(await self._ask_judge(part))

        try:
            while waiting:
                found, claimed = await asyncio.wrap_future(store.submit(store.look, waiting))
                settle(found)
                self._count_hits(len(found))
                if claimed:
                    parts = _parts({key: waiting[key] for key in claimed}, self.chunk)
                    await side_by_side(ask(part) for part in parts)
                elif waiting:
                    await asyncio.sleep(poll)
                    poll = min(LAST_POLL, 1.5 * poll)
        except Exception as error:
            for key in waiting:
                flights[key].set_exception(error)
            raise
        finally:
            if waiting:  # raised or cancelled; the store works in order, so whoever looks next finds no claim of ours
                store.submit(store.release, list(waiting))
            with books:
                for key in wanted:
                    del self._flights[key]
                    if not flights[key].done():
                        flights[key].set_result(None)

    def _count_hits(self, count: int) -> None:
        with books:
            self._hits += count

    async def _ask_judge(self, requests: Mapping[str, Request]) -> dict[str, Reply | Missing]:
        """Replies of the judge to requests that this process holds the claims on; written when it returns."""
        store = self._store
        renewing = asyncio.create_task(self._renew(list(requests)))
        try:
            [replies] = await ask_each(self.judge, [list(requests.values())])
        finally:
            renewing.cancel()
        answers = dict(zip(requests, replies, strict=True))
        # Shielded: what has been paid for is kept, whoever is cancelled.
        await asyncio.shield(asyncio.wrap_future(store.submit(store.keep, requests, answers, self.name)))
        return answers

    async def _renew(self, keys: list[str]) -> None:
        """Shows that the owner of these claims is alive, until cancelled."""
        while True:
            await asyncio.sleep(self.claim_seconds / 3)
            self._store.submit(self._store.renew, keys)


class _Store:
    """The file of a cache as one process uses it: one connection, one thread that works through what is submitted in order."""

    def __init__(self, path: Path, claim_seconds: float) -> None:
        self.path, self.claim_seconds = path, claim_seconds
        self.lock = threading.Lock()
        """Held while the connection is used: by the thread, and by who forks."""
        self._owner, self._host, self._pid = uuid.uuid4().hex, platform.node(), os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="capreward-cache")

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs one of the methods below in the thread."""
        return self._thread.submit(lambda: self.run(work, *args, **kwargs))

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs one of the methods below here and now."""
        with self.lock:
            if self._connection is None:
                self._connection = _connect(self.path)
            return work(*args, **kwargs)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def look(self, wanted: Mapping[str, Request]) -> tuple[dict[str, Reply], list[str]]:
        """The replies known, and the keys that this process now holds the claims on; others hold those on the rest."""
        found, free = self._state(wanted)
        if free:
            with self._writing() as db:
                more, free = self._state({key: wanted[key] for key in free})
                until = time.time() + self.claim_seconds
                claims = [(key, self._owner, self._host, self._pid, until) for key in free]
                db.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)", claims)
            found |= more
        return found, free

    def keep(self, requests: Mapping[str, Request], answers: Mapping[str, Reply | Missing], judge: str) -> None:
        """Writes the replies among the answers, and what was said elsewhere; gives up the claims on all."""
        now = time.time()
        replies, unread = [], []
        for key, answer in answers.items():
            row = (key, judge, requests[key].task, now, json.dumps(asdict(answer), default=float))
            if isinstance(answer, Reply):
                replies.append(row)
            elif answer.raw:
                unread.append(row)
        with self._writing() as db:
            db.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)", replies)
            db.executemany("INSERT OR REPLACE INTO unread VALUES (?, ?, ?, ?, ?)", unread)
            self._delete_claims(answers)

    def release(self, keys: Iterable[str]) -> None:
        """Gives up the claims that this process holds on these keys."""
        with self._writing():
            self._delete_claims(keys)

    def renew(self, keys: Iterable[str]) -> None:
        """Puts off the end of the claims that this process holds on these keys."""
        until = time.time() + self.claim_seconds
        with self._writing() as db:
            rows = [(until, key, self._owner) for key in keys]
            db.executemany("UPDATE claims SET until = ? WHERE key = ? AND owner = ?", rows)

    def _state(self, wanted: Mapping[str, Request]) -> tuple[dict[str, Reply], list[str]]:
        """The replies known, and the keys that have neither a reply nor the claim of another."""
        found: dict[str, Reply] = {}
        # As bytes, because one text that SQLite itself cannot decode would sink the whole SELECT.
        for key, text in self._select("key, CAST(reply AS BLOB) FROM replies", wanted):
            reply = _decode(text)
            if reply is not None and isinstance(complete_reply(wanted[key], reply), Reply):
                found[key] = reply
        rest = [key for key in wanted if key not in found]
        for key, text in self._select("key, CAST(missing AS BLOB) FROM unread", rest):
            reply = _parse_again(wanted[key], text)
            if reply is not None:
                found[key] = reply
        rest = [key for key in wanted if key not in found]
        claims = [
            (key, host, pid)
            for key, owner, host, pid, until in self._select("key, owner, host, pid, until FROM claims", rest)
            if owner != self._owner and until > time.time()
        ]
        owners = {(host, pid) for _, host, pid in claims}
        dead = {(host, pid) for host, pid in owners if host == self._host and not _lives(pid)}
        held = {key for key, host, pid in claims if (host, pid) not in dead}
        return found, [key for key in rest if key not in held]

    def _select(self, columns: str, keys: Iterable[str]) -> Iterator[tuple[Any, ...]]:
        """The rows of these keys, for `columns` as "a, b FROM table"."""
        keys = list(keys)
        for start in range(0, len(keys), KEYS):
            chunk = keys[start : start + KEYS]
            yield from self._db.execute(f"SELECT {columns} WHERE key IN ({', '.join('?' * len(chunk))})", chunk)

    def _delete_claims(self, keys: Iterable[str]) -> None:
        self._db.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", [(key, self._owner) for key in keys])

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is the only writer from its start, so that what it reads stays true until it commits."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # some errors, a full disk among them, have already rolled it back
                db.execute("ROLLBACK")
            raise

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._connection is not None, "only inside run()"
        return self._connection


SCHEMA = """
CREATE TABLE IF NOT EXISTS replies
    (key TEXT PRIMARY KEY, judge TEXT NOT NULL, task TEXT NOT NULL, created REAL NOT NULL, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS unread
    (key TEXT PRIMARY KEY, judge TEXT NOT NULL, task TEXT NOT NULL, created REAL NOT NULL, missing TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claims
    (key TEXT PRIMARY KEY, owner TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, until REAL NOT NULL);
"""
"""`created` and `until` are seconds since 1970; `reply` is a Reply as JSON, `missing` a Missing that holds what was said."""


def _connect(path: Path) -> sqlite3.Connection:
    """A connection to the database at `path`, made and set up if need be."""
    last = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Used by one thread at a time, though not always the same: _Store.lock sees to that.
            db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                # NORMAL writes every commit out to the system before it returns, so a killed process loses none. FULL would
                # also wait for the disk, for every claim too; without it, a power cut can cost the last seconds'
                # replies, which are asked again, but never the file.
                db.execute("PRAGMA synchronous = NORMAL")
                db.executescript(SCHEMA)
            except BaseException:
                db.close()
                raise
            return db
        except (sqlite3.Error, OSError) as error:
            # SQLite does not wait by itself while several processes switch a new file to WAL.
            if "locked" not in str(error) or time.monotonic() > last:
                raise InputError(
                    f"Cached: cannot use {str(path)!r}: {error}; expected a path to a file of its own, in a folder to write to"
                ) from error
            time.sleep(0.01)


def _decode(text: bytes) -> Reply | None:
    """The reply of a row; None if the row is damaged."""
    try:
        fields = json.loads(text)
        values, texts, why, raw = (fields[name] for name in ("values", "texts", "why", "raw"))
        return Reply(tuple(map(float, values)), tuple(map(str, texts)), tuple(map(str, why)), str(raw))
    except (ValueError, TypeError, KeyError):
        return None


def _parse_again(request: Request, text: bytes) -> Reply | None:
    """What today's parser reads in the words that a row of `unread` holds; None if nothing, or if the row is damaged."""
    try:
        fields = json.loads(text)
        missing = Missing(Reason(fields["reason"]), raw=str(fields["raw"]))
    except (ValueError, TypeError, KeyError):
        return None
    reply = parse(request, missing.raw) if missing.unread else None
    return reply if isinstance(reply, Reply) else None


def _lives(pid: int) -> bool:
    """Whether the process runs, on this machine; True where that cannot be told."""
    if os.name != "posix":
        return True  # there, os.kill would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # killed, but not yet waited for by its parent: in containers, often for ever
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def _keys(requests: Iterable[Request], judge: str) -> list[str | Missing]:
    """The key of each request; Missing where an image cannot be read."""

    def key(request: Request) -> str | Missing:
        try:
            return request.key(judge)
        except OSError as error:
            return Missing(Reason.NO_IMAGE, str(error))

    return [key(request) for request in requests]


def _parts(requests: Mapping[str, Request], most: int) -> list[dict[str, Request]]:
    """Parts of at most so many requests. Those that share a context stay together, unless they alone are more."""
    contexts: dict[str, list[tuple[str, Request]]] = {}
    for key, request in requests.items():
        contexts.setdefault(request.context, []).append((key, request))
    parts: list[dict[str, Request]] = [{}]
    for group in contexts.values():
        for start in range(0, len(group), most):
            piece = group[start : start + most]
            if len(parts[-1]) + len(piece) > most:
                parts.append({})
            parts[-1].update(piece)
    return parts


def _flight() -> Flight:
    flight: Flight = Future()
    flight.set_running_or_notify_cancel()  # from now on, a waiting task that is cancelled cannot cancel it
    return flight


# A process that forks while it has an SQLite file open breaks the locks of both halves, even if the child never touches
# the old connection. So every cache closes its file before a fork, and both halves open it again when they need it.

_caches: weakref.WeakSet[Cached] = weakref.WeakSet()
_forking: list[Cached] = []


def _before_fork() -> None:
    books.acquire()
    _forking.extend(_caches)
    for cache in _forking:
        cache._store.lock.acquire()
        cache._store.close()


def _after_fork_in_parent() -> None:
    for cache in _forking:
        cache._store.lock.release()
    _forking.clear()
    books.release()


def _after_fork_in_child() -> None:
    for cache in _forking:
        cache._start()
    _forking.clear()
    books.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
