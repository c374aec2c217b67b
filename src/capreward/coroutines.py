"""Runs coroutines: from synchronous code, in a script or a notebook, and several side by side."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from capreward.errors import InputError

T = TypeVar("T")


class _Loop:
    """One event loop in a thread of its own, for synchronous calls.

    It outlives the calls, so that a judge's connections do too, and it is not the caller's, so that a notebook's
    running loop is no obstacle.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="capreward", daemon=True)
        self.thread.start()


_loop: _Loop | None = None
_loop_lock = threading.Lock()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end from synchronous code, whether or not an event loop is running around it.

    Raises: as `start`, and whatever the coroutine raises.
    """
    future = start(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def start(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Starts a coroutine from synchronous code, which goes on meanwhile and asks for the result later.

    Raises:
        InputError: called from a coroutine that was itself started so, which would wait for itself for ever.
    """
    global _loop
    with _loop_lock:
        if _loop is None or _loop.pid != os.getpid():  # threads do not survive a fork
            _loop = _Loop()
    if threading.current_thread() is _loop.thread:
        work.close()
        raise InputError(
            "a blocking call such as score() was made inside a component, a judge or a stage, and would wait for itself; "
            "await a coroutine there, such as ascore()"
        )
    return asyncio.run_coroutine_threadsafe(work, _loop.loop)


async def side_by_side(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of coroutines that run at the same time, in order.

    If one raises or the caller is cancelled, all stop: the judges that they ask would go on spending.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
