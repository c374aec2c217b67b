from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import schemathesis
from adapters.served import Told, gated, serving, told
from hypothesis import HealthCheck, settings

from capreward import Item, RewardSuite, Rollout, dr_grpo, gdpo
from capreward.adapters import server
from capreward.adapters.openrlhf import response_of
from capreward.adapters.server import check_address, make_app, serve
from capreward.adapters.wire import clean
from capreward.cli import main
from capreward.errors import InputError, MissingExtraError
from capreward.ledger import Ledger, LedgerWriter

Json = dict[str, Any]
TOKEN = "open sesame"
PROMPT = "<|im_start|>user\nDescribe it.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(max_rollouts=50, max_body=100_000) as url:
        yield url


def post(url: str, path: str, body: Json, **options: Any) -> httpx2.Response:
    return httpx2.post(url + path, json=body, timeout=20, **options)


def sent(*captions: str, item: Any = "cup", **fields: Any) -> Json:
    return {"rollouts": [{"item": item, "caption": caption, **fields} for caption in captions]}


def rewarded(*captions: str, label: str = "cup", prompt: str = PROMPT) -> Json:
    n = len(captions)
    return {
        "query": [prompt + caption + "<|im_end|>" for caption in captions],
        "prompts": [prompt] * n,
        "labels": [label] * n,
    }


def together(url: str, *calls: tuple[str, Json], after: float = 0.0, **options: Any) -> list[httpx2.Response]:
    """The answers to calls that run at once, each from a client of its own, started `after` seconds one after the other."""

    async def one(place: int, path: str, body: Json) -> httpx2.Response:
        await asyncio.sleep(after * place)
        async with httpx2.AsyncClient(timeout=20) as http:
            return await http.post(url + path, json=body, **options)

    async def all_of_them() -> list[httpx2.Response]:
        return await asyncio.gather(*(one(place, *call) for place, call in enumerate(calls)))

    return asyncio.run(all_of_them())


def metric(url: str, name: str, **options: Any) -> float:
    text = httpx2.get(f"{url}/metrics", **options).text
    [value] = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(value)


# ---------------------------------------------------------------------------------------------------------------- /score


@pytest.mark.parametrize("estimator", ["gdpo", "grpo", "dr_grpo"])
def test_answers_what_the_suite_says_bit_for_bit(estimator: str) -> None:
    captions = ["0.1 0.9", "0.7 m", "0.30000000000000004 0.2", "", "m m", "1 1"]
    items = [Item(id="cup", references=("two words",)), Item(id="dog", references=("a dog in a park",))]
    rollouts = [
        Rollout(item=items[n % 2], caption=caption, id=f"r{n}", group=f"g{n % 3 == 0}")
        for n, caption in enumerate(captions)
    ]
    with serving(gated()) as url:
        body = {
            "items": [item.model_dump(mode="json") for item in items],
            "rollouts": [{"item": r.item.id, "caption": r.caption, "id": r.id, "group": r.group} for r in rollouts],
            "estimator": estimator,
        }
        answer = post(url, "/score", body).json()
    table = gated().score(rollouts)
    assert answer["components"] == ["first", "second"]
    assert [one["advantage"] for one in answer["rollouts"]] == table.advantages(estimator).tolist()
    for one, row in zip(answer["rollouts"], table.to_rows(rollouts), strict=True):
        row = clean(row)
        assert {name: one[name] for name in ("id", "group", "item", "scores", "total")} == {
            name: row[name] for name in ("id", "group", "item", "scores", "total")
        }
    assert answer["rollouts"][0]["scores"]["first"]["evidence"] == {"word": "0.1", "odd": None}
    assert answer["rollouts"][4]["scores"]["second"]["missing"] == "server"
    assert answer["missing"]["first"] == {"server": 1}


def test_items_come_with_a_rollout_with_the_request_or_with_the_server(url: str) -> None:
    body = sent("0.5 0.5") | {"items": [{"id": "request"}]}
    body["rollouts"] += [{"item": "request", "caption": "1 1"}, {"item": {"id": 7}, "caption": "0 0"}]
    answer = post(url, "/score", body)
    assert [one["item"] for one in answer.json()["rollouts"]] == ["cup", "request", "7"]
    assert [one["id"] for one in answer.json()["rollouts"]] == ["cup#0", "request#0", "7#0"]


IMAGE = base64.b64encode(b"no picture").decode()


@pytest.mark.parametrize(
    ("body", "place", "message"),
    [
        ({}, "rollouts", "Field required"),
        ({"rollouts": []}, "rollouts", "at least 1"),
        (sent("0.5", item="nobody"), "", "item: got id 'nobody'"),
        (sent("0.5", group=1.5), "rollouts.0.group", "valid string"),
        (sent("0.5", group="g" * 1001), "rollouts.0.group", "at most 1000 characters"),
        (sent("0.5", item={"id": "x" * 1001}), "rollouts.0.item.fields", "at most 1000 characters"),
        (sent("0.5", colour="red"), "rollouts.0.colour", "not permitted"),
        (sent("0.5") | {"estimator": "ppo"}, "estimator", "expected one of ["),
        (sent("0.5") | {"group_size": 0}, "group_size", "greater than or equal to 1"),
        (sent("0.5") | {"group_size": 2, "estimator": "grpo"}, "", "estimator: got 'grpo', expected 'gdpo'"),
        (sent("0.5", item={"id": "x", "references": [""]}), "rollouts.0.item.fields", "references[0]: got ''"),
        (sent("0.5", item={"id": "x", "image": __file__}), "rollouts.0.item.fields", "image: got "),
        (sent("0.5", item={"id": "x", "image": "data:image/png,abc"}), "rollouts.0.item.fields", "base64 data URL"),
        (sent("0.5") | {"items": [{"id": "x", "image": __file__}]}, "items.0", "opens no file"),
        (sent("0.5") | {"items": [{"id": "x"}, {"id": "x", "references": ["y"]}]}, "", "two different items"),
        (sent("0.5", "0.6", id="same"), "", "rollouts[1]: id 'same' is taken by rollouts[0]"),
        (sent(*["0.5"] * 51), "", "rollouts: got 51, expected at most 50"),
    ],
)  # fmt: skip
def test_bad_input_names_the_field(url: str, body: Json, place: str, message: str) -> None:
    answer = post(url, "/score", body)
    assert answer.status_code == 422
    [fault] = answer.json()["detail"]
    assert ".".join(str(part) for part in fault["loc"]) == ".".join(filter(None, ["body", place]))
    assert message in fault["msg"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"9" * 5000, b'{"rollouts": "\xff"}', b"null", b'{"rollouts": NaN}']
)
def test_what_is_no_json_is_bad_input_too(url: str, content: bytes) -> None:
    content = content[:90_000]
    answer = httpx2.post(f"{url}/score", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422


def test_two_items_with_one_id_within_rollouts(url: str) -> None:
    body = sent("0.5", item={"id": "x"})
    body["rollouts"] += sent("0.5", item={"id": "x", "references": ["y"]})["rollouts"]
    assert "two different items have the id 'x'" in post(url, "/score", body).text


def test_an_image_comes_as_bytes() -> None:
    class Sees(Told):
        async def score(self, rollouts: Any) -> Any:
            self.images = [rollout.item.image for rollout in rollouts]
            return await super().score(rollouts)

    component = Sees("sees", 0)
    with serving(RewardSuite({"sees": component})) as url:
        item = {"id": "x", "image": f"data:image/png;base64,{IMAGE}"}
        assert post(url, "/score", sent("0.5", item=item)).status_code == 200
    assert component.images == [b"no picture"]


def test_hostile_text_is_scored(url: str) -> None:
    """Half a surrogate pair, which no JSON can hold; an endless word; nothing."""
    body = json.dumps(sent("0.5 \ud800", "x" * 10_000, "\x00")).encode()
    answer = httpx2.post(f"{url}/score", content=body, headers={"content-type": "application/json"})
    assert [one["scores"]["first"]["value"] for one in answer.json()["rollouts"]] == [0.5, None, 0.0]


# ------------------------------------------------------------------------------------------------- token, limits, failures


def test_token() -> None:
    with serving(token=f"{TOKEN}\n") as url:
        good = {"Authorization": f"Bearer {TOKEN}"}
        basic = {"Authorization": "Basic " + base64.b64encode(f"anybody:{TOKEN}".encode()).decode()}
        bad = [
            {}, {"Authorization": "Bearer open"}, {"Authorization": f"bearer {TOKEN}x"}, {"Authorization": TOKEN},
            {"Authorization": "Basic ???"}, {"Authorization": "Basic " + base64.b64encode(TOKEN.encode()).decode()},
        ]  # fmt: skip
        for headers in bad:
            for path in ("/metrics", "/docs", "/openapi.json", "/score", "/nowhere"):
                assert httpx2.get(url + path, headers=headers).status_code == 401
            refused = post(url, "/score", sent("0.5"), headers=headers)
            assert refused.status_code == 401
            assert TOKEN not in refused.text
        assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
        for headers in (good, basic):
            assert post(url, "/score", sent("0.5"), headers=headers).status_code == 200
            for path in ("/metrics", "/docs", "/openapi.json"):
                assert httpx2.get(url + path, headers=headers).status_code == 200
        schema = httpx2.get(f"{url}/openapi.json", headers=good).json()
        assert schema["paths"]["/score"]["post"]["security"]
        assert "security" not in schema["paths"]["/health"]["get"]


@pytest.mark.parametrize("token", ["", " ", "sésame", "open\nsesame"])
def test_a_token_that_no_header_can_hold(token: str) -> None:
    with pytest.raises(InputError, match="expected printable ASCII, or None"):
        make_app(told(), token=token)


def test_too_large_by_its_header_is_not_even_read(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100001\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_too_large_in_pieces_is_counted(url: str) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 5000

    answer = httpx2.post(f"{url}/score", content=pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "100000 bytes" in answer.json()["detail"]


def test_an_upload_that_stalls_is_given_up() -> None:
    with serving(timeout=0.3) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert metric(url, 'capreward_requests_total{path="/score",status="408"}') == 1


def test_a_component_that_breaks_is_the_servers_fault(url: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = post(url, "/score", sent("b"))
    assert answer.status_code == 503
    assert answer.json()["detail"] == "component 'first': ValueError: the model is out of memory"
    assert "status=503 error=\"component 'first': ValueError: the model is out of memory\"" in caplog.text


def test_what_nobody_foresaw_is_counted_as_the_servers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> Any:
        raise RuntimeError("a bug")

    with serving() as url:
        monkeypatch.setattr("capreward.scoring.ScoreTable.advantages", breaks)
        assert post(url, "/score", sent("0.5 0.5")).status_code == 500
        assert metric(url, 'capreward_requests_total{path="/score",status="500"}') == 1


def test_an_upload_that_breaks_off_is_no_fault() -> None:
    with serving() as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            head = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            connection.sendall(head.encode())
            until(lambda: metric(url, "capreward_requests_in_flight") == 2)  # with this one
        until(lambda: metric(url, 'capreward_requests_total{path="/score",status="499"}') == 1)


def test_too_many_missing() -> None:
    with serving(told(max_missing=0.5)) as url:
        assert post(url, "/score", sent("0.5 0.5", "0.5 m")).status_code == 200
        answer = post(url, "/score", sent("0.5 0.5", "0.5 m", "0.5 m"))
    assert answer.status_code == 503
    assert "'second': missing for 2 of 3 rollouts (server: 2), more than max_missing=0.5" in answer.json()["detail"]


def test_what_takes_too_long_is_cancelled() -> None:
    suite = told()
    first: Any = suite.components["first"]
    with serving(suite, timeout=0.5) as url:
        slow = post(url, "/score", sent("z"))
        assert slow.status_code == 504
        assert slow.json()["detail"].startswith("not scored within 0.5 s")
        until(lambda: first.cancelled == 1)


def test_a_judge_that_computes_does_not_stop_the_server() -> None:
    computes, answered = threading.Event(), threading.Event()

    class Computes(Told):
        async def score(self, rollouts: Any) -> Any:
            computes.set()
            assert answered.wait(10)  # in vain, if nothing else is answered while this holds its thread
            return await super().score(rollouts)

    with serving(RewardSuite({"computes": Computes("computes", 0)})) as url:

        async def both() -> httpx2.Response:
            async with httpx2.AsyncClient(timeout=20) as http:
                scoring = asyncio.create_task(http.post(f"{url}/score", json=sent("0.5")))
                assert await asyncio.to_thread(computes.wait, 60)
                assert (await http.get(f"{url}/health")).status_code == 200
                answered.set()
                return await scoring

        assert asyncio.run(both()).status_code == 200


def test_a_client_that_leaves_stops_the_work() -> None:
    suite = told()
    first: Any = suite.components["first"]
    with serving(suite) as url:
        leave(url, "/score", sent("z"), once=lambda: first.begun == 1)
        until(lambda: first.cancelled == 1)
        until(lambda: metric(url, 'capreward_requests_total{path="/score",status="499"}') == 1)


def leave(url: str, path: str, body: Json, once: Callable[[], bool]) -> None:
    """Calls, and hangs up once something holds."""

    async def call() -> None:
        async with httpx2.AsyncClient(timeout=60) as http:
            calling = asyncio.create_task(http.post(url + path, json=body))
            await asyncio.to_thread(until, once)
            calling.cancel()
            await asyncio.wait([calling])
            assert calling.cancelled()

    asyncio.run(call())


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if true():
                return
        except ValueError:  # a metric that is not there yet
            pass
        assert time.monotonic() < end
        time.sleep(0.02)


# ----------------------------------------------------------------------------------------------------- waiting for a group


def scalars(captions: list[str]) -> list[float]:
    values = np.array([[float(word) if word != "m" else np.nan for word in caption.split()] for caption in captions])
    return gdpo(values, [0] * len(captions), whiten=False).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_a_group_over_four_requests(url: str, order: list[int]) -> None:
    captions = ["0.1 0.9", "0.4 m", "0.4 0.3", "m m"]
    calls = [("/score", sent(captions[n], group=f"four {order}") | {"group_size": 4}) for n in order]
    answers = [answer.json()["rollouts"][0] for answer in together(url, *calls, after=0.03)]
    got = {n: answer["advantage"] for n, answer in zip(order, answers, strict=True)}
    np.testing.assert_allclose([got[n] for n in range(4)], scalars(captions), rtol=1e-12, atol=1e-15)
    assert got[3] == 0.0
    scalar = np.array([[answer["advantage"]] for answer in answers])  # as a trainer's one reward, less the group's mean
    np.testing.assert_allclose(dr_grpo(scalar, [0] * 4), scalar[:, 0], atol=1e-15)
    assert {answer["compared"] for answer in answers} == {4}


def test_nobodys_number_depends_on_the_order_of_arrival(url: str) -> None:
    captions = ["0.1 0.7", "0.2 0.9", "0.3 0.1", "0.7 0.2", "0.9 0.3"]
    seen = []
    for shift in range(5):
        shifted = captions[shift:] + captions[:shift]
        answer = post(url, "/score", sent(*shifted, group="turned") | {"group_size": 5}).json()["rollouts"]
        seen.append({caption: one["advantage"] for caption, one in zip(shifted, answer, strict=True)})
    assert all(one == seen[0] for one in seen)


def test_a_group_whose_scores_do_not_vary_gets_exact_zeros(url: str) -> None:
    answers = together(url, *[("/score", sent("0.1 0.7", group="equal") | {"group_size": 3})] * 3)
    assert [answer.json()["rollouts"][0]["advantage"] for answer in answers] == [0.0, 0.0, 0.0]


def test_more_than_a_group_start_the_next(url: str) -> None:
    captions = ["0.1 0.9", "0.9 0.4", "0.2 0.3", "0.3 0.1"]
    answer = post(url, "/score", sent(*captions, group="next") | {"group_size": 2}).json()["rollouts"]
    expected = scalars(captions[:2]) + scalars(captions[2:])
    np.testing.assert_allclose([one["advantage"] for one in answer], expected, rtol=1e-12)


def test_a_group_that_is_late_is_what_has_come() -> None:
    with serving(group_timeout=2.0) as url:
        calls = [("/score", sent(caption, group="late") | {"group_size": 9}) for caption in ("0.1 0.9", "0.4 0.2")]
        calls.append(("/score", sent("0.5 0.5", group="alone") | {"group_size": 9}))
        answers = [answer.json()["rollouts"][0] for answer in together(url, *calls)]
        assert metric(url, "capreward_rollouts_waiting") == 0
    np.testing.assert_allclose([one["advantage"] for one in answers[:2]], scalars(["0.1 0.9", "0.4 0.2"]), rtol=1e-12)
    assert [one["compared"] for one in answers] == [2, 2, 1]
    assert answers[2]["advantage"] == 0.0


def test_who_leaves_makes_room_for_another(url: str) -> None:
    def body(caption: str) -> Json:
        return sent(caption, group="left") | {"group_size": 2}

    leave(url, "/score", body("0.9 0.9"), once=lambda: metric(url, "capreward_rollouts_waiting") == 1)
    until(lambda: metric(url, "capreward_rollouts_waiting") == 0)
    answers = together(url, ("/score", body("0.1 0.2")), ("/score", body("0.3 0.1")))
    got = [answer.json()["rollouts"][0]["advantage"] for answer in answers]
    np.testing.assert_allclose(got, scalars(["0.1 0.2", "0.3 0.1"]), rtol=1e-12)


# ------------------------------------------------------------------------------------------------------------- /get_reward


def test_get_reward_is_the_weighted_mean(url: str) -> None:
    answer = post(url, "/get_reward", rewarded("0.2 0.6", "0.5 m", "")).json()
    assert answer == {
        "rewards": [0.4, 0.5, 0.0],
        "scores": [0.4, 0.5, 0.0],
        "extra_logs": {
            "first.points": [0.2, 0.5, 0.0],
            "first.scored": [1.0, 1.0, 1.0],
            "second.points": [0.6, 0.0, 0.0],
            "second.scored": [1.0, 0.0, 1.0],
            "total.points": [0.4, 0.5, 0.0],
            "total.scored": [1.0, 1.0, 1.0],
        },
    }


def test_get_reward_without_any_score_is_to_be_asked_again(url: str) -> None:
    answer = post(url, "/get_reward", rewarded("0.2 0.6", "m m"))
    assert answer.status_code == 503
    assert answer.json()["detail"] == (
        "query[1] has no score at all: first: missing (server): the judge is down; second: missing (server): the judge is down"
    )


def test_get_reward_waits_for_the_group_of_its_item_and_prompt() -> None:
    captions = ["0.1 0.9", "0.4 m", "m m"]
    other = PROMPT.replace("Describe", "Paint")
    with serving(group_size=4, group_timeout=2.0) as url:  # one more than come: another group's rollout would fit in
        calls = [("/get_reward", rewarded(caption)) for caption in captions]
        calls += [("/get_reward", rewarded("0.7 0.7", label="dog")), ("/get_reward", rewarded("0.7 0.7", prompt=other))]
        answers = [answer.json() for answer in together(url, *calls)]
    got = [answer["rewards"][0] for answer in answers]
    np.testing.assert_allclose(got, [*scalars(captions), 0.0, 0.0], rtol=1e-12)
    assert got[2:] == [0.0, 0.0, 0.0]
    assert answers[2]["extra_logs"]["total.scored"] == [0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["nobody"]}, "item: got id 'nobody'"),
        ({"labels": ["{"]}, "starts as JSON does, but is none"),
        ({"labels": ['{"id": "x", "image": "/etc/passwd"}']}, "opens no file"),
        ({"labels": [None]}, "valid string"),
        ({"labels": []}, "query, prompts, labels: got 1 1 0, expected as many of each"),
        ({"query": ["something else"]}, "query: got 'something else', expected a text that goes on from"),
    ],
)
def test_get_reward_refuses(url: str, change: Json, message: str) -> None:
    answer = post(url, "/get_reward", rewarded("0.5") | change)
    assert answer.status_code == 422
    assert message in answer.json()["detail"][0]["msg"]


def test_a_label_holds_an_item(url: str) -> None:
    label = json.dumps({"id": "x", "references": ["y"], "image": f"data:image/png;base64,{IMAGE}"})
    assert post(url, "/get_reward", rewarded("0.5 0.5", label=label)).json()["rewards"] == [0.5]


SEEN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe it.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("query", "prompt", "response"),
    [
        (PROMPT + "A cup.<|im_end|>\n<|endoftext|>", PROMPT, "A cup."),
        (PROMPT + "A cup. ", PROMPT, "A cup. "),
        (PROMPT + "A cup.</s></s>", PROMPT, "A cup."),
        (PROMPT, PROMPT, ""),
        ("<s>" + PROMPT + "A cup.", PROMPT, "A cup."),
        (SEEN.replace("<|image_pad|>", "<|image_pad|>" * 9) + "A cup.", SEEN, "A cup."),
        (PROMPT + PROMPT + "A cup.", PROMPT, PROMPT + "A cup."),  # the policy repeats the prompt
        (PROMPT.replace("t\n", "t\nX") + PROMPT + "A.", PROMPT.replace("t\n", "t\nX") + PROMPT, "A."),
        ("it.<|im_end|>\n<|im_start|>assistant\nA cup.", PROMPT, "A cup."),  # a prompt cut from the left
        ("USER: <i><i>\nWhat? ASSISTANT: A cup.</s>", "USER: <i>\nWhat? ASSISTANT:", " A cup."),
        ("<i><i>Describe: A cup.", "Describe:\n<i>\nDescribe:", " A cup."),  # fewer of its last lines than it has
    ],
)
def test_the_response_in_a_query(query: str, prompt: str, response: str) -> None:
    assert response_of(query, prompt) == response


def test_earlier_turns_end_as_the_last_does() -> None:
    turns = SEEN + "A cup.<|im_end|>\n<|im_start|>user\nMore.<|im_end|>\n<|im_start|>assistant\n"
    query = turns.replace("<|image_pad|>", "<|image_pad|>" * 9)
    assert response_of(query + "A blue cup.", turns) == "A blue cup."
    assert response_of(query.replace("More.", "") + "A blue cup.", turns) == "A blue cup."


@pytest.mark.parametrize("prompt", ["", "\n", "no\nsuch line"])
def test_a_prompt_that_is_not_in_the_query(prompt: str) -> None:
    with pytest.raises(InputError, match="goes on from the last line"):
        response_of("A cup.", prompt)


# --------------------------------------------------------------------------------------------------------- metrics, signals


def test_metrics() -> None:
    with serving() as url:
        post(url, "/score", sent("0.25 0.5", "0.75 m"))
        post(url, "/score", sent("b"))
        httpx2.get(f"{url}/somewhere/else")
        assert metric(url, 'capreward_requests_total{path="/score",status="200"}') == 1
        assert metric(url, 'capreward_requests_total{path="/score",status="503"}') == 1
        assert metric(url, 'capreward_requests_total{path="other",status="404"}') == 1
        assert metric(url, 'capreward_request_seconds_count{path="/score"}') == 2
        assert metric(url, "capreward_rollouts_total") == 2
        assert metric(url, 'capreward_score_sum{component="first"}') == 1.0
        assert metric(url, 'capreward_score_count{component="second"}') == 1
        assert metric(url, 'capreward_missing_total{component="second",reason="server"}') == 1
        assert metric(url, "capreward_requests_in_flight") == 1  # this one


@contextmanager
def started(*command: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its URL."""
    process = subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if " serves " in line)
        found = re.search(r"serves .* on (http://\S+), .*docs at \1/docs", line)
        assert found, line
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_term_finishes_what_is_in_flight() -> None:
    async def calls() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(timeout=20) as http:
            waiting = [http.post(f"{url}/get_reward", json=rewarded(caption)) for caption in ("0.1 0.9", "0.4 0.2")]
            slow = http.post(f"{url}/score", json=sent(*["0.5 0.5"] * 150))
            answers = asyncio.gather(*waiting, slow)
            await asyncio.to_thread(until, lambda: metric(url, "capreward_rollouts_waiting") == 2)
            process.send_signal(signal.SIGTERM)
            return await answers

    with started("-m", "adapters.served") as (process, url):
        first, second, slow = asyncio.run(calls())
        assert process.wait(60) == 0
    got = [first.json()["rewards"][0], second.json()["rewards"][0]]
    np.testing.assert_allclose(got, scalars(["0.1 0.9", "0.4 0.2"]), rtol=1e-12)
    assert len(slow.json()["rollouts"]) == 150


def test_the_command() -> None:
    judge = ["--judge", "openai:some-model", "--base-url", "http://127.0.0.1:9/v1"]
    command = ["-m", "capreward.cli", "serve", "--port", "0", *judge]
    with started(*command, CAPREWARD_TOKEN=TOKEN, OPENAI_API_KEY="k") as (process, url):
        assert httpx2.get(f"{url}/health").status_code == 200
        assert post(url, "/score", sent("A cup.")).status_code == 401
        metrics = httpx2.get(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
        assert 'capreward_judge_money_total{judge="' in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert TOKEN not in process.stderr.read()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_no_address_that_others_reach_without_a_token(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CAPREWARD_TOKEN", raising=False)
    assert main(["serve", "--host", host]) == 2
    assert "without a token; expected a loopback address such as 127.0.0.1, or set" in capsys.readouterr().err
    with pytest.raises(InputError, match="without a token"):
        serve(make_app(told()), host=host)
    check_address(host, 0, TOKEN)


def test_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot listen on 127"):
        serve(make_app(told()), port=taken.getsockname()[1])


@pytest.mark.parametrize("host", ["no such host", "256.1.1.1", ""])
def test_an_address_that_is_none(host: str) -> None:
    with pytest.raises(InputError, match="expected an address of this machine"):
        check_address(host, 8900, None)


def test_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("uvicorn", "prometheus_client", "fastapi"):
        app = make_app(told())
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=r"The server needs .*; run: pip install 'capreward\[server\]'"):
            serve(app) if package == "uvicorn" else make_app(told())
        monkeypatch.undo()


def test_its_own_settings() -> None:
    with pytest.raises(InputError, match="max_rollouts=0, expected a number > 0"):
        make_app(told(), max_rollouts=0)
    with pytest.raises(InputError, match="expected finite numbers"):
        make_app(told(), timeout=float("inf"))
    with pytest.raises(InputError, match="two have the same id"):
        make_app(told(), items=[Item(id="x"), Item(id="x")])
    assert "docs/serving.md" in str(server.__doc__)


# ---------------------------------------------------------------------------------------------------------- any input at all


FAST = make_app(told(), items=[Item(id="cup")], max_body=100_000, timeout=2.0, group_timeout=0.02)
API = schemathesis.openapi.from_asgi("/openapi.json", FAST)
BEYOND_A_SCHEMA = [
    schemathesis.checks.CHECKS.get_one("negative_data_rejection"),  # the records also take 0 for false
    schemathesis.checks.CHECKS.get_one(
        "positive_data_acceptance"
    ),  # ids have to be unique and known, lists equally long
]


@API.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_whatever_comes_is_answered_as_documented(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=BEYOND_A_SCHEMA)


@pytest.mark.parametrize("path", ["/score", "/get_reward"])
def test_a_ledger_has_the_groups_that_came_in_pieces(path: str, tmp_path: Path) -> None:
    suite = told(ledger=LedgerWriter(tmp_path))
    with serving(suite, group_size=2) as url:
        for caption in ("0.1 0.9", "0.4 0.2", "0.3 0.3", "0.5 0.1"):
            if path == "/score":
                body = sent(caption, group="cup") | {"group_size": 2}
            else:
                body = {"query": [f"Describe.{caption}"], "prompts": ["Describe."], "labels": ["cup"]}
            together(url, (path, body), (path, body))
    rows = Ledger(tmp_path).rows()
    assert rows.group.tolist() == rows.batch.tolist() == [0] * 8
