"""A judge that is a function: for tests, and for rules that need no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from capreward.judges.base import Reply, Request, Task, Usage
from capreward.missing import Missing

Answer = Reply | Missing | tuple[float, ...] | tuple[str | Mapping[str, Any], ...]


class FunctionJudge:
    """Answers each request with `answer(request)`, or all of them with one constant, and records what it was asked.

    A tuple of numbers stands for a reply of these values, one of texts for a reply of these texts. A mapping among the texts is
    written as JSON, as `parse` writes questions and criteria.
    """

    def __init__(
        self,
        answer: Callable[[Request], Answer] | Answer = (),
        *,
        tasks: Iterable[Task] = Task,
        images: bool = False,
        name: str = "function",
    ) -> None:
        self.answer, self.tasks, self.images, self.name = answer, frozenset(tasks), images, name
        self.usage = Usage()
        self.asked: list[Request] = []

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        """One reply a request."""
        self.asked += requests
        self.usage.requests += len(requests)
        self.usage.calls += len(requests)
        answers = [self.answer(request) if callable(self.answer) else self.answer for request in requests]
        return [_reply(answer) if isinstance(answer, tuple) else answer for answer in answers]


def _reply(answer: tuple[Any, ...]) -> Reply:
    if not any(isinstance(each, str | Mapping) for each in answer):
        return Reply(answer)
    return Reply(texts=tuple(each if isinstance(each, str) else _json(each) for each in answer))


def _json(mapping: Mapping[str, Any]) -> str:
    return json.dumps(mapping, ensure_ascii=False, sort_keys=True)
