"""What the server's tests cannot time: who comes and who goes in the same turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np

from capreward import gdpo
from capreward.adapters.groups import Groups, Place

KEY = ("group",)
ROWS = np.array([[0.1, 0.9], [0.4, 0.2], [0.5, 0.1]])


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 10))


def one(groups: Groups, row: int, size: int = 3) -> asyncio.Task[list[Place]]:
    return asyncio.create_task(groups.places([KEY], ROWS[row : row + 1], size))


def test_who_is_cancelled_does_not_count() -> None:
    async def work() -> None:
        groups = Groups(np.ones(2), timeout=60)
        first = one(groups, 0, 2)
        await asyncio.sleep(0)
        first.cancel()
        second = one(groups, 1, 2)
        await asyncio.sleep(0)
        assert groups.waiting == 1
        third = one(groups, 2, 2)
        places = [(await task)[0] for task in (second, third)]
        expected = gdpo(ROWS[1:], [0, 0], whiten=False)
        np.testing.assert_allclose([place.advantage for place in places], expected, rtol=1e-12)
        assert groups.waiting == 0

    run(work())


def test_who_is_cancelled_is_not_answered() -> None:
    async def work() -> None:
        groups = Groups(np.ones(2), timeout=60)
        first = one(groups, 0, 2)
        await asyncio.sleep(0)
        second, third = one(groups, 1, 2), one(groups, 2, 2)
        first.cancel()  # it has its turn to leave after the other two have joined
        places = [(await task)[0] for task in (second, third)]
        assert [place.compared for place in places] == [2, 2]
        assert groups.waiting == 0

    run(work())


def test_weights_and_missing_scores() -> None:
    async def work() -> None:
        values = np.array([[0.1, 0.9], [0.4, np.nan], [0.5, 0.1]])
        places = await Groups(np.array([1.0, 0.25]), timeout=60).places([KEY] * 3, values, 3)
        expected = gdpo(values, [0, 0, 0], [1.0, 0.25], whiten=False)
        np.testing.assert_allclose([place.advantage for place in places], expected, rtol=1e-12)

    run(work())


def test_an_old_group_s_time_does_not_end_the_next() -> None:
    async def work() -> None:
        groups = Groups(np.ones(2), timeout=0.3)
        first = one(groups, 0, 2)
        await asyncio.sleep(0)
        [group] = groups._groups.values()
        await asyncio.gather(first, one(groups, 1, 2))
        assert group.timer is not None
        assert group.timer.cancelled()
        assert await one(groups, 2, 2) == [Place(0.0, 1)]  # for its own time

    run(work())


def test_a_group_that_all_have_left_leaves_nothing_behind() -> None:
    async def work() -> None:
        groups = Groups(np.ones(2), timeout=60)
        tasks = [one(groups, 0), one(groups, 1)]
        await asyncio.sleep(0)
        assert groups.waiting == 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert groups.waiting == 0
        assert groups._groups == {}

    run(work())


def test_closed_when_all_have_just_left() -> None:
    async def work() -> None:
        groups = Groups(np.ones(2), timeout=60)
        task = one(groups, 0)
        await asyncio.sleep(0)
        task.cancel()  # it has its turn to leave after the closing
        groups.close()
        await asyncio.wait([task])
        assert task.cancelled()
        assert groups._groups == {}

    run(work())


def test_nobody_waits_once_it_is_closed() -> None:
    async def work() -> None:
        groups = Groups(np.ones(2), timeout=60)
        before = one(groups, 0)
        await asyncio.sleep(0)
        groups.close()
        assert await before == [Place(0.0, 1)]
        assert await one(groups, 1) == [Place(0.0, 1)]

    run(work())


def test_sizes_do_not_mix() -> None:
    async def work() -> None:
        groups = Groups(np.ones(2), timeout=60)
        pair, three = one(groups, 0, 2), one(groups, 1, 3)
        await asyncio.sleep(0)
        assert groups.waiting == 2
        await one(groups, 2, 2)
        assert (await pair)[0].compared == 2
        three.cancel()

    run(work())
