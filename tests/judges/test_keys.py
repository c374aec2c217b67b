"""A key in the environment or given as an argument reaches the server, and no log, error, cache or result file."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judges.chat_server import DROP, Body, ChatServer, completion, serving
from judges.test_storm import right

from capreward import Cached, Limited, Missing, OpenAIJudge, Reason, Retried, RewardSuite, Rollout, cli
from capreward.components import Fluency
from capreward.errors import CaprewardError, InputError
from capreward.judges import Request, Task

KEYS = {"environment": "canary-env-7f3a9c21d0", "argument": "canary/arg+5b8e==xyz"}
"""Not of the form that OpenAI's have, which would be recognised by its looks."""
SUPPORT = Request(Task.SUPPORT, "A cup.", ("There is a cup.", "There is a dog."))


def failures(key: str) -> list[Callable[[Body], Any]]:
    """Servers that quote the key wherever a server can."""
    said = f"Incorrect API key provided: {key}. Authorization: Bearer {key}"

    def quoted(body: Body) -> Any:
        """A complete answer that quotes the key in its reasons."""
        text = right(body)["choices"][0]["message"]["content"]
        return completion(text.replace('"w"', json.dumps(said)).replace("A cup.", f"A cup. {said}"))

    return [
        lambda _: (401, {"error": {"message": said, "code": key}}),
        lambda _: (400, said),
        lambda _: (403, {"detail": [said]}),
        lambda _: (429, {"error": said}),
        lambda _: (500, f"<html>{said}</html>"),
        lambda _: said,
        lambda _: {"error": said},
        lambda _: {"choices": said},
        lambda _: completion(said),
        lambda _: completion(said, finish="length"),
        lambda _: completion(None, refusal=said),
        lambda _: completion("A", top={key: -0.1, "A": -3.0}),
        lambda _: DROP,
        quoted,
        quoted,
        right,
    ]


@dataclass
class Everything:
    """All that a run leaves behind, as text and bytes."""

    texts: dict[str, str] = field(default_factory=dict)
    folder: Path = Path()

    def holding(self, key: str) -> list[str]:
        """The places that hold the key, also as JSON or Python would spell it."""
        spellings = {key, json.dumps(key)[1:-1], repr(key)[1:-1], key.replace("/", "\\/"), key.replace("/", "%2F")}
        files = {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        every = {**{name: text.encode() for name, text in self.texts.items()}, **files}
        return [name for name, data in every.items() if any(spelling.encode() in data for spelling in spellings)]


def spelled(record: logging.LogRecord) -> str:
    """A log record with all that a formatter could print of it."""
    return f"{record.getMessage()} {vars(record)!r} {record.exc_info and traceback.format_exception(*record.exc_info)}"


def pickled(thing: Any) -> str:
    try:
        return pickle.dumps(thing, protocol=0).decode("latin-1")
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        return f"cannot be pickled: {error}"


@pytest.mark.parametrize("source", KEYS)
def test_a_key_is_nowhere(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capfd: Any, photos: list[Rollout]
) -> None:
    key = KEYS[source]
    monkeypatch.setenv("OPENAI_API_KEY", KEYS["environment"])
    given = {"api_key": key} if source == "argument" else {}
    caplog.set_level(1)
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "asyncio", "capreward"):
            caplog.set_level(1, logger=name)
    rollouts = [rollout for rollout in photos if rollout.metadata["kind"] in ("dense", "short")][:4]
    rows = [
        {"item": r.item.model_dump(mode="json", exclude={"image"}), "caption": r.caption, "id": r.id} for r in rollouts
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    turn, kinds = count(), failures(key)
    with (
        serving(lambda body: kinds[next(turn) % len(kinds)](body)) as server,
        warnings.catch_warnings(record=True) as w,
    ):
        warnings.simplefilter("always")
        backend = OpenAIJudge("m", base_url=server.url, **given)
        judges = [backend, limited := Limited(backend, 8), retried := Retried(limited, attempts=2, base=0.01)]
        judges.append(judge := Cached(retried, tmp_path / "cache.sqlite"))

        # The command line, with this judge: its own would wait longer between attempts.
        monkeypatch.setattr("capreward.judges.named.make_judge", lambda *_, **__: judge)
        status = cli.main(
            [
                "score",
                str(tmp_path / "in.jsonl"),
                "--suite",
                "everything",
                "--judge",
                "openai:m",
                "--out",
                str(tmp_path / "out"),
            ]
        )

        # Every failure by itself, and a run that stops because too much is missing.
        alone: list[Any] = []
        for kind in kinds:
            server.answer = kind
            alone += asyncio.run(backend.ask([SUPPORT, Request(Task.CHOOSE, "A cup.", ("a", "b"), "Which?")]))
        alone += asyncio.run(judge.ask([Request(Task.EXTRACT, "A cup."), Request(Task.RATE, "A cup.", ("clarity",))]))
        server.answer = kinds[0]
        suite = RewardSuite({"fluency": Fluency(Cached(retried, tmp_path / "other.sqlite"))}, max_missing=0.0)
        with pytest.raises(CaprewardError) as stopped:
            suite.score(rollouts)
        table = RewardSuite({"fluency": Fluency(judge)}).score(rollouts)
        with pytest.raises(InputError) as wrong:
            RewardSuite({"x": Fluency(judge)}, weights={"y": 1.0})
        monkeypatch.setenv("OPENAI_API_KEY", f"{key}\u2019")
        with pytest.raises(InputError) as unusable:
            OpenAIJudge("m")

        out, err = capfd.readouterr()
        left = Everything(
            {
                "stdout": out,
                "stderr": err,
                "logs": "\n".join(map(spelled, caplog.records)) + caplog.text,
                "warnings": " ".join(str(vars(one)) for one in w),
                "replies": " ".join(f"{reply!r} {getattr(reply, 'raw', '')}" for reply in alone),
                "table": f"{table!r} {table.missing!r} {table.to_pandas()!r}",
                "reprs": " ".join(f"{one!r} {one!s} {one.name} {one.usage!r}" for one in judges) + repr(suite),
                "cache key": SUPPORT.key(judge.name),
                **{
                    f"error {n}": "".join(traceback.format_exception(error.value)) + repr(vars(error.value))
                    for n, error in enumerate((stopped, wrong, unusable))
                },
                **{f"pickle of {type(one).__name__}": pickled(one) for one in (*judges, suite, table, alone)},
            },
            tmp_path,
        )
        # while the cache is open, so that its write-ahead log is among the files
        assert left.holding(key) == []
        assert left.holding(KEYS["environment"]) == []

    # The search would have found it: it was sent and quoted, and what quoted it was kept.
    assert status == 0
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {key}"}
    assert "HTTP Request" in left.texts["logs"]
    assert "receive_response_headers" in left.texts["logs"]
    assert "Incorrect API key provided: [key]" in left.texts["replies"]
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("cache.sqlite*"))
    assert b"Incorrect API key provided: [key]" in stored
    assert "[key]" in (tmp_path / "out" / "scores.jsonl").read_text(encoding="utf-8")
    assert np.isnan(table.values).any()
    left.texts["planted"] = f"Bearer {key}"
    assert left.holding(key) == ["planted"]


def test_a_key_is_stripped_and_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file it often comes with the end of the line, which no header can hold."""
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEYS['environment']}\n")
    server, reply = ask(lambda _: (401, {"error": {"message": f"wrong: {KEYS['environment']}"}}))
    assert server.headers[0]["authorization"] == f"Bearer {KEYS['environment']}"
    assert reply.reason is Reason.REFUSED
    assert "[key]" in reply.detail


def test_a_part_of_a_key_that_is_known_by_its_looks_is_not_quoted() -> None:
    _, reply = ask(
        lambda _: (401, {"error": {"message": "Incorrect API key provided: sk-pro*****7f3a. Find yours at"}})
    )
    assert "Incorrect API key provided: [key] Find" in reply.detail


def test_an_impossible_key_is_refused_unquoted() -> None:
    for key in ("secret\nkey", "secret\x7fkey", "secret\u2019key"):
        with pytest.raises(InputError, match="the API key holds characters that no HTTP header can") as error:
            OpenAIJudge("m", api_key=key)
        assert "secret" not in str(error.value)


def test_a_word_that_stands_for_no_key_stays_in_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    _, reply = ask(lambda _: completion("The EMPTY glass"))
    assert "The EMPTY glass" in reply.raw


def ask(answer: Callable[[Body], Any]) -> tuple[ChatServer, Missing]:
    with serving(answer) as server:
        (reply,) = asyncio.run(OpenAIJudge("m", base_url=server.url).ask([SUPPORT]))
        assert isinstance(reply, Missing)
        return server, reply
