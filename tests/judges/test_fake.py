from __future__ import annotations

import asyncio
from typing import Any

import pytest

from capreward import Missing, Reason
from capreward.judges import Judge, Reply, Request, Task
from capreward.judges.fake import FunctionJudge

DOWN = Missing(Reason.SERVER, "server is down")


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ((), Reply()),
        ((0.5, 1), Reply((0.5, 1))),
        (("A cup.",), Reply(texts=("A cup.",))),
        (({"b": "Tür", "a": [1]}, "not JSON"), Reply(texts=('{"a": [1], "b": "Tür"}', "not JSON"))),
        (Reply(raw="a"), Reply(raw="a")),
        (DOWN, DOWN),
    ],
)
def test_answers(answer: Any, reply: Reply | Missing) -> None:
    request = Request(Task.INQUIRE, "A cup.", ("object",), "2")
    for judge in (FunctionJudge(answer), FunctionJudge(lambda _: answer)):
        assert isinstance(judge, Judge)
        assert asyncio.run(judge.ask([request] * 2)) == [reply] * 2
        assert judge.asked == [request] * 2
        assert (judge.usage.requests, judge.usage.calls) == (2, 2)
