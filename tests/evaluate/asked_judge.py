"""Evaluates captions with a judge that writes down what it is asked, in a process of its own that kills itself if told to.

    python asked_judge.py CAPTIONS OUT LOG [AFTER]

LOG gets a line a request, before it is answered; with AFTER, the process dies of SIGKILL at that call of the judge.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from capreward.evaluate.command import evaluate
from capreward.judges import Reply, Request, Task
from capreward.judges.cache import Cached
from capreward.judges.fake import FunctionJudge
from capreward.missing import Missing


def answer(request: Request) -> Reply:
    """Of the words that texts have in common."""
    if request.task is Task.EXTRACT:
        return Reply(texts=tuple(part.strip() for part in request.context.split(".") if part.strip()))
    if request.task is Task.RATE:
        return Reply((0.5,) * len(request.options))
    shared = [len(set(option.split()) & set(request.context.split())) for option in request.options]
    if request.task is Task.CHOOSE:
        return Reply(tuple((1 + n) / (len(shared) + sum(shared)) for n in shared))
    return Reply(tuple(n / max(len(option.split()), 1) for n, option in zip(shared, request.options, strict=True)))


class WritingJudge(FunctionJudge):
    def __init__(self, log: Path, after: int | None) -> None:
        super().__init__(answer, name="writing")
        self.log, self.after, self.called = log, after, 0
        self.at_work = asyncio.Lock()  # one part after another, as an engine in this process does

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        async with self.at_work:
            self.called += 1
            if self.called == self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            with self.log.open("a") as lines:
                lines.writelines(request.key(self.name) + "\n" for request in requests)
            await asyncio.sleep(0.01)
            return await super().ask(requests)


if __name__ == "__main__":
    captions, out, log = map(Path, sys.argv[1:4])
    judge = WritingJudge(log, int(sys.argv[4]) if sys.argv[4:] else None)
    evaluate([captions], lambda: Cached(judge, out / "replies.sqlite", chunk=8), out, by="model", budgets="2", draws=20)
