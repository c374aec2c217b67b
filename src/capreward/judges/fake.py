"""A judge that is a function: for tests, and for rules that need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from capreward.judges.base import Reply, Request, Task, Usage
from capreward.missing import Missing

Answer = Reply | Missing | tuple[float, ...]


class FunctionJudge:
    """Answers each request with `answer(request)`, or all of them with one constant, and records what it was asked.

    A tuple of numbers stands for a reply of these values.
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
        return [Reply(answer) if isinstance(answer, tuple) else answer for answer in answers]
