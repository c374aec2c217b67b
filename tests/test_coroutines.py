from __future__ import annotations

import asyncio
import threading

import pytest

from capreward.coroutines import run, side_by_side, start
from capreward.errors import InputError


async def double(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


class TestRun:
    def test_from_synchronous_code(self) -> None:
        assert run(double(2)) == 4

    def test_inside_a_running_event_loop(self) -> None:
        async def notebook() -> int:
            return run(double(2))

        assert asyncio.run(notebook()) == 4

    def test_raises_what_the_coroutine_raises(self) -> None:
        async def work() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            run(work())


class TestStart:
    def test_goes_on_meanwhile(self) -> None:
        begun, may_end = threading.Event(), threading.Event()

        async def work() -> str:
            begun.set()
            while not may_end.is_set():
                await asyncio.sleep(0.001)
            return "done"

        future = start(work())
        assert begun.wait(10)
        assert not future.done()
        may_end.set()
        assert future.result(10) == "done"

    def test_several_side_by_side(self) -> None:
        meeting: list[int] = []

        async def work(n: int) -> int:
            meeting.append(n)
            while len(meeting) < 3:
                await asyncio.sleep(0.001)
            return n

        assert [future.result(10) for future in [start(work(n)) for n in range(3)]] == [0, 1, 2]

    def test_what_it_raises_comes_with_the_result(self) -> None:
        async def work() -> None:
            raise ValueError("no")

        future = start(work())
        with pytest.raises(ValueError, match="no"):
            future.result(10)

    def test_inside_a_component_is_refused(self) -> None:
        async def inner() -> None: ...

        async def work() -> None:
            start(inner())

        with pytest.raises(InputError, match="blocking call such as score"):
            start(work()).result(10)


class TestSideBySide:
    def test_in_order_whichever_ends_first(self) -> None:
        second_ended = asyncio.Event()

        async def first() -> int:
            await asyncio.wait_for(second_ended.wait(), 10)  # would not come if they ran one after the other
            return 1

        async def second() -> int:
            second_ended.set()
            return 2

        assert asyncio.run(side_by_side([first(), second()])) == [1, 2]

    def test_none(self) -> None:
        assert asyncio.run(side_by_side([])) == []

    @pytest.mark.parametrize("cancelled", [False, True])
    def test_all_stop_when_one_raises_or_the_caller_is_cancelled(self, cancelled: bool) -> None:
        ended: list[str] = []

        async def waits(name: str) -> None:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                ended.append(name)
                raise

        async def main() -> None:
            async def fails() -> None:
                await asyncio.sleep(0)
                if not cancelled:
                    raise ValueError("no")
                caller.cancel()

            caller = asyncio.ensure_future(side_by_side([waits("one"), fails(), waits("two")]))
            with pytest.raises(asyncio.CancelledError if cancelled else ValueError):
                await caller
            assert ended == ["one", "two"]

        asyncio.run(main())
