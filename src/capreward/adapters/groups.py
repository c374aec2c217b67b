"""Rollouts of one group that come in different requests wait for one another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from capreward.advantage import gdpo
from capreward.groups import Float

Key = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """A rollout's outcome within its group."""

    advantage: float
    """The weighted sum of its normalised scores. A trainer that subtracts the group's mean and does not divide by the
    deviation leaves it as it is."""
    compared: int
    """How many rollouts the group had."""


@dataclass
class _Group:
    members: dict[asyncio.Future[Place], Float] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Members without those who are cancelled, but have not had their turn to leave."""
        return sum(not future.done() for future in self.members)


class Groups:
    """Collects scored rollouts by group, and answers each when its group is full or has waited long enough.

    For one event loop. Who stops waiting leaves the group, which then waits for another in its place.

    Args:
        weights: of the components, [K].
        timeout: seconds that a group waits after its first rollout has been scored.
    """

    def __init__(self, weights: Float, timeout: float) -> None:
        self.weights, self.timeout = weights, timeout
        self._groups: dict[tuple[Key, int], _Group] = {}
        self._closed = False

    @property
    def waiting(self) -> int:
        """Rollouts that wait now."""
        return sum(group.waiting for group in self._groups.values())

    def close(self) -> None:
        """Answers all who wait with what has come; from now on nobody waits."""
        self._closed = True
        for key in list(self._groups):
            self._answer(key)

    async def places(self, keys: Sequence[Key], values: Float, size: int) -> list[Place]:
        """The outcome of each rollout, once all their groups are full, late or closed.

        Args:
            keys: group of each rollout, [B].
            values: their scores, [B, K]; NaN = missing.
            size: rollouts to a group.
        """
        joined = [(key, self._join((key, size), row)) for key, row in zip(keys, values, strict=True)]
        if self._closed:
            self.close()
        try:
            return await asyncio.gather(*(future for _, future in joined))
        finally:
            for key, future in joined:
                self._leave((key, size), future)

    def _join(self, key: tuple[Key, int], row: Float) -> asyncio.Future[Place]:
        loop = asyncio.get_running_loop()
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(timer=loop.call_later(self.timeout, self._answer, key))
        future: asyncio.Future[Place] = loop.create_future()
        group.members[future] = row
        if group.waiting == key[1]:
            self._answer(key)
        return future

    def _leave(self, key: tuple[Key, int], future: asyncio.Future[Place]) -> None:
        group = self._groups.get(key)
        if group is None or group.members.pop(future, None) is None:
            return
        if not group.members:
            self._forget(key)

    def _forget(self, key: tuple[Key, int]) -> _Group:
        group = self._groups.pop(key)
        if group.timer is not None:
            group.timer.cancel()
        return group

    def _answer(self, key: tuple[Key, int]) -> None:
        members = [(future, row) for future, row in self._forget(key).members.items() if not future.done()]
        if not members:
            return
        values = np.stack([row for _, row in members])
        order = np.lexsort(values.T)  # sums round by their order; sorted, nobody's number depends on who came first
        advantages = gdpo(values[order], np.zeros(len(members), np.int64), self.weights, whiten=False)
        for place, advantage in zip(order.tolist(), advantages.tolist(), strict=True):
            members[place][0].set_result(Place(advantage, len(members)))
