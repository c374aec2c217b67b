"""What `capreward serve` costs: 32 clients at once, beside the same suite called in process, in the same run.

    .venv/bin/python benchmarks/serve/run.py            # about 45 seconds; writes results/cpu.json
    .venv/bin/python benchmarks/serve/run.py --quick    # a tenth of the rollouts; prints one line

The suite is BalCapRL's, with a judge that waits 5 ms a call and answers by a hash of the question, so that every score is known.
The server is a process of its own. Clients send one rollout a request: half of the rollouts are answered as they are scored,
half wait for the other seven of their group. Then the first half once more, a group a request. In process, 32 tasks at once
score the first half, one rollout and one group a call.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import finish

from capreward import Item, Reply, RewardSuite, Rollout, Task, gdpo
from capreward.adapters.client import Client
from capreward.adapters.server import make_app, serve
from capreward.adapters.wire import ScoredRollout
from capreward.judges.base import Request
from capreward.judges.fake import Answer, FunctionJudge
from capreward.presets import balcaprl

Batch = Sequence[Rollout]

CLIENTS = 32
GROUP = 8
JUDGE_SECONDS = 0.005
WORDS = "a white cup stands on the old brown table next to one small silver spoon and two green apples".split()


class WaitingJudge(FunctionJudge):
    """Answers after a while, as a server does."""

    async def ask(self, requests: Sequence[Request]) -> Any:
        await asyncio.sleep(JUDGE_SECONDS)
        return await super().ask(requests)


def hashed(request: Request) -> Answer:
    if request.task is Task.EXTRACT:
        return Reply(texts=tuple(filter(None, request.context.split(". "))))
    return tuple(
        hashlib.sha256(f"{request.task} {request.context} {option}".encode()).digest()[0] / 255
        for option in request.options
    )


def make_suite() -> RewardSuite:
    return balcaprl(WaitingJudge(hashed))


def make_rollouts(groups: int) -> list[Rollout]:
    """Group by group, each in random order."""
    rng = random.Random(0)
    rollouts = []
    for g in range(groups):
        reference = " ".join(rng.choices(WORDS, k=20))
        facts = [{"text": " ".join(rng.choices(WORDS, k=5))} for _ in range(4)]
        item = Item(id=f"item {g}", references=(reference,), facts=facts)
        captions = [
            ". ".join(" ".join(rng.choices(WORDS, k=8)) for _ in range(rng.randint(1, 6))) for _ in range(GROUP)
        ]
        rollouts += [Rollout(item=item, caption=text, id=f"{g}/{n}", group=str(g)) for n, text in enumerate(captions)]
    return rollouts


async def each(requests: Sequence[Batch], score: Callable[[Batch], Awaitable[Any]]) -> tuple[list[Any], list[float]]:
    """What `score` says of each request, asked by 32 tasks at once, and how long each took."""
    waiting = iter(enumerate(requests))
    answers: list[Any] = [None] * len(requests)
    seconds = [0.0] * len(requests)

    async def client() -> None:
        for place, rollouts in waiting:
            start = time.perf_counter()
            answers[place] = await score(rollouts)
            seconds[place] = time.perf_counter() - start

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return answers, seconds


def timed(requests: Sequence[Batch], score: Callable[[Batch], Awaitable[Any]]) -> tuple[list[Any], list[float], float]:
    """Answers, seconds of each, and rollouts a second."""
    start = time.perf_counter()
    answers, seconds = asyncio.run(each(requests, score))
    return answers, seconds, sum(map(len, requests)) / (time.perf_counter() - start)


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    points = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: float(np.quantile(seconds, point)) * 1000 for name, point in points.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 rollouts; write nothing")
    parser.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.server:
        import logging

        logging.basicConfig(level=logging.INFO)
        serve(make_app(make_suite()), port=0)
    else:
        measure(arguments.quick)


def measure(quick: bool) -> None:
    rollouts = make_rollouts(125 if quick else 1250)
    half = len(rollouts) // 2 // GROUP * GROUP
    one_by_one = [[rollout] for rollout in rollouts[:half]]
    in_groups = [rollouts[start : start + GROUP] for start in range(0, half, GROUP)]
    to_wait = [[rollout] for rollout in rollouts[half:]]

    server = subprocess.Popen([sys.executable, __file__, "--server"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        line = next(line for line in server.stderr if " serves " in line)
        client = Client(
            line.rpartition(" docs at ")[2].removesuffix("/docs\n"), attempts=1
        )  # nothing may need a second

        async def over_http(batch: Batch) -> list[ScoredRollout]:
            return (await client.ascore(batch)).rollouts

        async def waiting(batch: Batch) -> list[ScoredRollout]:
            return (await client.ascore(batch, group_size=GROUP)).rollouts

        timed(one_by_one[: 2 * CLIENTS], over_http)  # imports, first connections
        at_once, at_once_seconds, at_once_rate = timed(one_by_one, over_http)
        waited, waited_seconds, waited_rate = timed(to_wait, waiting)
        _, _, groups_rate = timed(in_groups, over_http)
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(20)

    suite = make_suite()
    _, _, process_rate = timed(one_by_one, suite.ascore)
    _, _, process_groups_rate = timed(in_groups, suite.ascore)
    table = make_suite().score(rollouts, progress=False)

    answers = [one for request in (*at_once, *waited) for one in request]
    counts = Counter(one.id for one in answers)
    values = np.array([[one.scores[name].value for name in table.names] for one in answers], float)
    expected = gdpo(table.values, table.groups, table.weights, whiten=False)[half:]
    got = np.array([one.advantage for one in answers[half:]])
    headline = [
        {"name": "rollouts", "value": len(rollouts), "unit": ""},
        {"name": "not answered exactly once", "value": sum(counts[id] != 1 for id in table.ids), "unit": ""},
        {
            "name": "scores that differ from the suite's in process",
            "value": int((values != table.values).sum()),
            "unit": "",
        },
        {
            "name": "largest difference of a group's scalar from gdpo's",
            "value": float(np.abs(got - expected).max()),
            "unit": "",
        },
        {"name": "groups of fewer than 8", "value": sum(one.compared != GROUP for one in answers[half:]), "unit": ""},
        {"name": "served, answered at once", "value": at_once_rate, "unit": "rollouts/s"},
        {"name": "served, waiting for the group", "value": waited_rate, "unit": "rollouts/s"},
        {"name": "in process", "value": process_rate, "unit": "rollouts/s"},
        {"name": "served / in process", "value": at_once_rate / process_rate, "unit": "x"},
        {"name": "served, a group of 8 a request", "value": groups_rate, "unit": "rollouts/s"},
        {"name": "in process, a group of 8 a call", "value": process_groups_rate, "unit": "rollouts/s"},
        {"name": "served / in process, by groups", "value": groups_rate / process_groups_rate, "unit": "x"},
        *(
            {"name": f"latency {kind}, {name}", "value": value, "unit": "ms"}
            for kind, seconds in (("at once", at_once_seconds), ("with the group", waited_seconds))
            for name, value in quantiles(seconds).items()
        ),
        {"name": "exit status after SIGTERM", "value": status, "unit": ""},
    ]
    details = {
        "clients": CLIENTS,
        "group_size": GROUP,
        "judge_ms_a_call": JUDGE_SECONDS * 1000,
        "rollouts_a_request": 1,
    }
    finish(
        Path(__file__).parent,
        headline,
        details,
        quick,
        packages=("capreward", "numpy", "fastapi", "uvicorn", "httpx2", "pydantic"),
    )


if __name__ == "__main__":
    main()
