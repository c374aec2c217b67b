"""A whole suite against a server at its worst: every score is right or missing for a reason, and a second run asks nothing."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from judges.chat_server import DROP, Body, completion, serving

from capreward import (
    Cached,
    Coverage,
    Fluency,
    Limited,
    Missing,
    OpenAIJudge,
    QAUtility,
    Reason,
    Retried,
    RewardSuite,
    Rollout,
    RubricJudge,
    samples,
)


def right(body: Body) -> Body:
    """What a good server answers: a function of the prompt alone, and another one for every prompt."""
    prompt = body["messages"][1]["content"]
    chance = random.Random(prompt)
    if "response_format" not in body:
        letters = re.findall(r"^([A-Z])\. ", prompt, re.MULTILINE)
        return completion(chance.choice(letters))
    (key,) = body["response_format"]["json_schema"]["schema"]["properties"]
    if key == "statements":
        return completion(json.dumps({"statements": ["A cup.", "A spoon."]}))
    count = body["response_format"]["json_schema"]["schema"]["properties"][key]["minItems"]
    answer = {"verdicts": ("holds", lambda: chance.random() < 0.5), "ratings": ("rating", lambda: chance.randint(1, 5))}
    field, draw = answer[key]
    entries = [{"number": n, "why": "w", field: draw()} for n in range(1, count + 1)]
    return completion(json.dumps({key: entries}))


class Storm:
    """30 % slow; 10 % HTTP 429 or 500 or dropped; 10 % malformed or cut; 5 % short of a criterion; 5 % beside the choices."""

    def __init__(self) -> None:
        self.chance = random.Random(0)
        self.lock = threading.Lock()
        self.down_until = 0.0
        self.dealt: Counter[str] = Counter()

    def __call__(self, body: Body) -> Any:
        with self.lock:
            dice, other = self.chance.random(), self.chance.random()
            kind = next(k for k, share in KINDS if (dice := dice - share) < 0)
            down = time.monotonic() < self.down_until
            self.dealt["down" if down else kind] += 1
        if down:
            return DROP
        if kind == "slow":
            time.sleep(0.3 * other)
        if kind == "failed":
            return [(429, {"error": {"message": "slow down"}}), (500, "oops"), DROP][int(other * 3)]
        answer = right(body)
        text = answer["choices"][0]["message"]["content"]
        if kind == "malformed":
            return [completion(text[: len(text) // 2]), completion(text[:5], finish="length"), "<html>"][int(other * 3)]
        if kind == "incomplete" and text.startswith("{"):
            data = json.loads(text)
            (entries,) = data.values()
            entries.pop()
            return completion("{}" if "statements" in data else json.dumps(data))
        if kind == "beside":
            return completion("maybe")
        return answer


KINDS = [("slow", 0.3), ("failed", 0.1), ("malformed", 0.1), ("incomplete", 0.05), ("beside", 0.05), ("fine", 1.0)]


def suite_on(url: str, cache: Path, attempts: int = 8) -> tuple[RewardSuite, Cached]:
    backend = OpenAIJudge("m", base_url=url, timeout=2.0)
    judge = Cached(Retried(Limited(backend, 32), attempts=attempts, base=0.1, cap=1.0, batch_deadline=60.0), cache)
    components = {
        "qa": QAUtility(judge),
        "rubric": RubricJudge(judge),
        "coverage": Coverage(judge),
        "fluency": Fluency(judge),
    }
    return RewardSuite(components), judge


def score(rollouts: list[Rollout], answer: Any, cache: Path, attempts: int = 8) -> tuple[Any, Cached, int]:
    with serving(answer) as server:
        suite, judge = suite_on(server.url, cache, attempts)
        table = asyncio.run(suite.ascore(rollouts))
        return table, judge, len(server.asked)


def test_storm(tmp_path: Path) -> None:
    rollouts = samples.photos()[:24]
    clean, _, asked = score(rollouts, right, tmp_path / "clean.sqlite")
    assert not clean.missing
    assert asked > 200

    storm = Storm()
    storm.down_until = time.monotonic() + 3
    started = time.monotonic()
    stormy, judge, _ = score(rollouts, storm, tmp_path / "storm.sqlite")
    assert time.monotonic() - started < 65  # the deadline of a batch, and what it takes to end
    present = ~np.isnan(stormy.values)
    np.testing.assert_array_equal(stormy.values[present], clean.values[present])
    assert present.mean() > 0.9
    assert {cell.reason for cell in stormy.missing.values()} <= {
        Reason.SERVER, Reason.TIMEOUT, Reason.UNPARSEABLE, Reason.TRUNCATED,
    }  # fmt: skip
    assert all(storm.dealt[kind] for kind, _ in KINDS)
    assert storm.dealt["down"]

    again, judge, asked = score(rollouts, right, tmp_path / "storm.sqlite")
    assert not again.missing
    np.testing.assert_array_equal(again.values, clean.values)
    third, judge, asked = score(rollouts, DROP_ALL, tmp_path / "storm.sqlite")
    assert asked == 0
    assert judge.usage.hits == judge.usage.requests > 200
    np.testing.assert_array_equal(third.values, clean.values)


def test_without_retries_every_failure_is_missing_for_its_reason(tmp_path: Path) -> None:
    rollouts = samples.photos()[:12]
    clean, *_ = score(rollouts, right, tmp_path / "clean.sqlite")
    stormy, *_ = score(rollouts, Storm(), tmp_path / "storm.sqlite", attempts=1)
    present = ~np.isnan(stormy.values)
    np.testing.assert_array_equal(stormy.values[present], clean.values[present])
    assert 0 < present.sum() < present.size
    assert all(isinstance(cell, Missing) and cell.detail for cell in stormy.missing.values())


def DROP_ALL(_: Body) -> Any:
    return DROP
