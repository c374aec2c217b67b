"""A client of `capreward serve`; needs the core of the package and httpx2, and loads no judge."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from capreward.adapters.wire import ScoreAnswer, usable_token
from capreward.coroutines import run
from capreward.errors import InputError, ServerError, missing_extra, require_positive
from capreward.records import Item, Rollout

JSON: TypeAdapter[Any] = TypeAdapter(Any)
AGAIN = (502, 503, 504)
"""Answers that may be another a little later."""


class Client:
    """Has captions scored by a server.

    Every call opens a connection of its own, so that one client serves any number of threads, event loops and forked processes.

    Args:
        url: where `capreward serve` listens.
        token: read from the environment variable CAPREWARD_TOKEN when left out.
        timeout: seconds that an attempt waits for the server to say something; longer than the server's --timeout and
            --group-timeout together.
        attempts: how often to ask, at most, while the server cannot be reached or answers 502, 503 or 504.

    Raises:
        InputError: an address that is none, a token that no header can hold, a number that is not above 0.
        MissingExtraError: httpx2 is not installed.

    >>> client = Client("http://127.0.0.1:8900")                                           # doctest: +SKIP
    >>> answer = client.score(rollouts)                                                    # doctest: +SKIP
    >>> [rollout.advantage for rollout in answer.rollouts]                                 # doctest: +SKIP
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 180.0, attempts: int = 4) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise missing_extra("Client", "server", error) from error
        self._http = httpx2
        self._verify = ssl.create_default_context()  # takes longer to make than a call does
        require_positive("Client", timeout=timeout, attempts=attempts)
        self.url, self.timeout, self.attempts = _checked(url).rstrip("/"), timeout, attempts
        self._token = usable_token(token or os.environ.get("CAPREWARD_TOKEN") or None)

    def score(
        self, rollouts: Sequence[Rollout], *, estimator: str = "gdpo", group_size: int | None = None
    ) -> ScoreAnswer:
        """Scores, reasons and advantages; works in a script and inside a notebook's running loop.

        Args:
            rollouts: B rollouts; images are sent along, each item once.
            estimator: of the advantages over these rollouts.
            group_size: wait until so many rollouts of each group have been scored, whoever sends them; the advantage is
                then the decoupled scalar, for a trainer that takes one reward a rollout.

        Raises:
            InputError: what the server refuses: rollouts, a setting, the token. The message is the server's.
            ServerError: it cannot be reached, or could not answer in any of the attempts.
        """
        return run(self.ascore(rollouts, estimator=estimator, group_size=group_size))

    async def ascore(
        self, rollouts: Sequence[Rollout], *, estimator: str = "gdpo", group_size: int | None = None
    ) -> ScoreAnswer:
        """`score`, to be awaited."""
        body = {**_sent(rollouts), "estimator": estimator, "group_size": group_size}
        return ScoreAnswer.model_validate_json(await self._post("/score", body))

    async def _post(self, path: str, body: Mapping[str, Any]) -> bytes:
        try:
            content = JSON.dump_json(body, fallback=str)
        except ValueError as error:
            raise InputError(f"rollouts: got metadata that JSON cannot hold ({error})") from None
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        trouble = ""
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(random.uniform(0, 2.0**attempt))
            # Of its own: a client that is kept belongs to the event loop that first used it.
            async with self._http.AsyncClient(verify=self._verify, timeout=self.timeout) as http:
                try:
                    response = await http.post(self.url + path, content=content, headers=headers)
                except self._http.TransportError as error:
                    trouble = f"{type(error).__name__} {error}".strip()
                    continue
            if response.is_success:
                return response.content
            trouble = f"{response.status_code} {_detail(response)}"
            if response.status_code not in AGAIN:
                raise InputError(f"{self.url}{path}: {trouble}")
        raise ServerError(f"{self.url}{path}: no answer in {self.attempts} attempts; the last: {trouble}")


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        usable = False
    if not usable or parts.username or parts.password:  # not quoted: it may hold a token
        raise InputError(
            "url: expected an address such as http://127.0.0.1:8900, and the token as `token` or in CAPREWARD_TOKEN"
        )
    return url


def _sent(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """The rollouts as a request holds them, each item once."""
    items: dict[str, Item] = {}
    for rollout in rollouts:
        if not rollout.item.same_as(items.setdefault(rollout.item.id, rollout.item)):
            raise InputError(
                f"rollouts: two different items have the id {rollout.item.id!r}; item ids have to be unique"
            )
    return {
        "items": [_with_image(item) for item in items.values()],
        "rollouts": [{**dict(rollout), "item": rollout.item.id} for rollout in rollouts],
    }


def _with_image(item: Item) -> Item:
    """The item with the image itself where it has a path: the server opens no file."""
    if not isinstance(item.image, Path):
        return item
    try:
        return item.model_copy(update={"image": item.image.read_bytes()})
    except OSError as error:
        raise InputError(f"item {item.id!r}: image: got {str(item.image)!r}, which cannot be read ({error})") from None


def _detail(response: Any) -> str:
    try:
        detail = response.json()["detail"]
        faults = detail if isinstance(detail, str) else "; ".join(_place(fault) + fault["msg"] for fault in detail)
    except (ValueError, LookupError, TypeError):  # somebody else's answer
        return str(response.text[:200])
    return faults


def _place(fault: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"][1:])
    return f"{place}: " if place else ""
