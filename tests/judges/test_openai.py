"""Against a scripted server on loopback; a real vLLM has its own tests."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judges.chat_server import DROP, Body, completion, serving

from capreward import Missing, QAUtility, Reason, RewardSuite, samples
from capreward.judges import Reply, Request, Sampling, Task
from capreward.judges.openai import OpenAIJudge

CHOICE = Request(Task.CHOOSE, "A cup.", ("white", "blue"), "Which colour?")
SUPPORT = Request(Task.SUPPORT, "A cup.", ("There is a cup.", "There is a dog."))
VERDICTS = json.dumps({"verdicts": [{"number": n, "why": "w", "holds": n == 1} for n in (1, 2)]})
KEY = "sk-very-secret-key"


def ask(answer: Any, *requests: Request, **options: Any) -> tuple[OpenAIJudge, list[Reply | Missing], list[Body]]:
    with serving(answer if callable(answer) else lambda _: answer) as server:
        judge = OpenAIJudge("m", base_url=server.url, api_key=KEY, **options)
        return judge, asyncio.run(judge.ask(requests)), server.asked


def test_choice_from_probabilities() -> None:
    top = {"A": math.log(0.6), "B": math.log(0.2), "<pad>": -9999.0}
    judge, replies, (body,) = ask(completion("A", top=top), CHOICE, prices=(1.0, 2.0))
    assert replies[0].values == pytest.approx((0.75, 0.25))
    assert (body["logprobs"], body["top_logprobs"], body["temperature"]) == (True, 20, 0.0)
    assert "structured_outputs" not in body
    usage = judge.usage
    assert (usage.requests, usage.calls, usage.failures) == (1, 1, 0)
    assert (usage.input_tokens, usage.output_tokens) == (100, 10)
    assert usage.money == pytest.approx(120e-6)


def test_choice_from_the_letter_where_there_are_no_probabilities() -> None:
    assert ask(completion("B"), CHOICE)[1] == [Reply((0.0, 1.0), raw="B")]


def test_a_sampled_draw_is_the_letter_that_was_drawn() -> None:
    request = Request(Task.CHOOSE, "A cup.", ("white", "blue"), "Which?", sampling=Sampling(temperature=0.6, seed=3))
    _, replies, (body,) = ask(completion("B", top={"A": -0.1, "B": -3.0}), request)
    assert replies == [Reply((0.0, 1.0), raw="B")]
    assert (body["temperature"], body["seed"]) == (0.6, 3)


def test_guided_choice() -> None:
    body = ask(completion("A"), CHOICE, guided_choice=True, extra_body={"x": 1})[2][0]
    assert body["structured_outputs"] == {"choice": ["A", "B"]}
    assert body["x"] == 1


def test_structured_output() -> None:
    _, replies, (body,) = ask(completion(VERDICTS), SUPPORT)
    assert replies == [Reply((1.0, 0.0), why=("w", "w"), raw=VERDICTS)]
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["messages"][0]["role"] == "system"


LOOK = Request(Task.LOOK, "", ("white", "blue"), "Which colour?", (b"x",))
DESCRIBE = Request(Task.DESCRIBE, "", (), "In one sentence.", (b"x",))
INQUIRE = Request(Task.INQUIRE, "A white cup.", ("object", "attribute"), "2")
CRITICISE = Request(Task.CRITICISE, "A cup.", ("A white cup.", "A white mug."))


def test_looking_is_choosing_with_an_image() -> None:
    top = {"A": math.log(0.6), "B": math.log(0.2)}
    _, replies, (body,) = ask(completion("A", top=top), LOOK, images=True, guided_choice=True)
    assert replies[0].values == pytest.approx((0.75, 0.25))
    assert (body["max_tokens"], body["structured_outputs"]) == (4, {"choice": ["A", "B"]})
    assert [part["type"] for part in body["messages"][1]["content"]] == ["image_url", "text"]
    drawn = replace(LOOK, sampling=Sampling(temperature=0.6, seed=3))
    assert ask(completion("B", top=top), drawn, images=True)[1] == [Reply((0.0, 1.0), raw="B")]


def test_a_description_is_plain_text() -> None:
    drawn = replace(DESCRIBE, sampling=Sampling(temperature=0.6, seed=3))
    _, replies, (body,) = ask(completion(" A white cup.\n"), drawn, images=True, max_tokens=77)
    assert replies == [Reply(texts=("A white cup.",), raw=" A white cup.\n")]
    assert not {"response_format", "logprobs", "top_logprobs"} & set(body)
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (77, 0.6, 3)


@pytest.mark.parametrize(("request_", "key"), [(INQUIRE, "questions"), (CRITICISE, "criteria")])
def test_objects_come_back_as_texts(request_: Request, key: str) -> None:
    said = json.dumps({key: [{"b": "Tür", "a": [1]}]})
    _, replies, (body,) = ask(completion(said), request_)
    assert replies == [Reply(texts=('{"a": [1], "b": "Tür"}',), raw=said)]
    schema = body["response_format"]["json_schema"]
    assert (schema["name"], schema["schema"]["required"]) == (request_.task.value, [key])


@pytest.mark.parametrize("request_", [DESCRIBE, INQUIRE, CRITICISE])
@pytest.mark.parametrize(
    ("answer", "reason", "raw"),
    [
        (completion("A white", finish="length"), Reason.TRUNCATED, "A white"),
        (completion(" "), Reason.UNPARSEABLE, " "),
        (completion(None), Reason.UNPARSEABLE, ""),
        (completion(None, refusal="I cannot."), Reason.REFUSED, ""),
    ],
)
def test_what_is_not_written_is_missing(request_: Request, answer: Body, reason: Reason, raw: str) -> None:
    (reply,) = ask(answer, request_, images=True)[1]
    assert isinstance(reply, Missing)
    assert (reply.reason, reply.raw) == (reason, raw)


@pytest.mark.parametrize("request_", [LOOK, DESCRIBE, replace(INQUIRE, context="")])
def test_without_an_image_nothing_is_made_up(request_: Request) -> None:
    judge, (reply,), asked = ask(completion("A"), replace(request_, images=()), images=True)
    assert reply == Missing(Reason.NO_IMAGE, f"{request_.task}: got no image")
    assert not asked
    assert (judge.usage.calls, judge.usage.failures) == (0, 1)


def test_tasks() -> None:
    assert OpenAIJudge("m").tasks == set(Task) - {Task.VERIFY, Task.LOOK, Task.DESCRIBE}
    assert OpenAIJudge("m", images=True).tasks == set(Task)


def test_images_travel_as_data_urls(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG...")
    request = Request(Task.VERIFY, "", ("A cup.",), images=(tmp_path / "a.png", b"\xff\xd8..."))
    _, _, (body,) = ask(completion("{}"), request, images=True)
    urls = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
    assert [url.partition(";")[0] for url in urls] == ["data:image/png", "data:image/jpeg"]


def test_images_are_refused_clearly_by_a_judge_without_eyes() -> None:
    judge, replies, asked = ask(completion("{}"), Request(Task.SUPPORT, "", ("a",), images=(b"x",)))
    assert Task.VERIFY not in judge.tasks
    assert replies[0].reason is Reason.REFUSED
    assert "images=False" in replies[0].detail
    assert not asked


def test_an_image_that_is_gone() -> None:
    request = Request(Task.VERIFY, "", ("a",), images=(Path("no/such.png"),))
    assert ask(completion("{}"), request, images=True)[1][0].reason is Reason.NO_IMAGE


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((429, {"error": {"message": "slow down"}}), Reason.SERVER),
        ((500, "oops"), Reason.SERVER),
        ((503, ""), Reason.SERVER),
        ((400, {"error": {"message": "bad"}}), Reason.REFUSED),
        ((401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), Reason.REFUSED),
        (DROP, Reason.SERVER),
        ("not json at all", Reason.UNPARSEABLE),
        ({"choices": []}, Reason.UNPARSEABLE),
        ({"choices": {"0": "A"}}, Reason.UNPARSEABLE),
        ({"choices": [{}]}, Reason.UNPARSEABLE),
        (completion([{"type": "text", "text": VERDICTS}]), Reason.UNPARSEABLE),
        (completion(VERDICTS[:20], finish="length"), Reason.TRUNCATED),
        (completion(VERDICTS[:20]), Reason.UNPARSEABLE),
        (completion(None), Reason.UNPARSEABLE),
        (completion(None, refusal="I cannot."), Reason.REFUSED),
        (completion("", finish="content_filter"), Reason.REFUSED),
    ],
)
def test_every_failure_has_its_reason_and_sinks_no_other_request(answer: Any, reason: Reason) -> None:
    def mostly(body: Body) -> Any:
        return answer if "There is a dog." in body["messages"][1]["content"] else completion("A")

    judge, (failed, fine), _ = ask(mostly, SUPPORT, CHOICE)
    assert isinstance(failed, Missing)
    assert failed.reason is reason
    assert failed.detail
    assert KEY not in failed.detail
    assert fine == Reply((1.0, 0.0), raw="A")
    assert judge.usage.failures == 1


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 5}, {"prompt_tokens": 5, "completion_tokens": None}])
def test_a_server_that_does_not_count_tokens_is_read_all_the_same(usage: Body | None) -> None:
    judge, replies, _ = ask({**completion("A"), "usage": usage}, CHOICE, prices=(1.0, 2.0))
    assert replies == [Reply((1.0, 0.0), raw="A")]
    read = 5 if usage else 0
    assert (judge.usage.input_tokens, judge.usage.output_tokens) == (read, 0)
    assert judge.usage.money == pytest.approx(read * 1e-6)


def test_probabilities_without_alternatives_leave_the_letter() -> None:
    answer = completion("B", top={"B": -0.1})
    answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = None
    assert ask(answer, CHOICE)[1] == [Reply((0.0, 1.0), raw="B")]


@pytest.mark.parametrize(
    ("answer", "raw", "unread"),
    [
        (completion("All is fine."), "All is fine.", True),
        (completion(VERDICTS, finish="length"), VERDICTS, False),  # cut, though it happens to parse
        (completion(""), "", False),
        ({"choices": []}, "", False),
    ],
)
def test_what_was_said_is_kept_where_it_cannot_be_used(answer: Any, raw: str, unread: bool) -> None:
    (reply,) = ask(answer, SUPPORT)[1]
    assert isinstance(reply, Missing)
    assert (reply.raw, reply.unread) == (raw, unread)


def test_timeout() -> None:
    def slow(_: Body) -> Body:
        time.sleep(1)
        return completion("A")

    assert ask(slow, CHOICE, timeout=0.1)[1][0].reason is Reason.TIMEOUT


def test_server_down() -> None:
    judge = OpenAIJudge("m", base_url="http://127.0.0.1:9/v1")
    (reply,) = asyncio.run(judge.ask([CHOICE]))
    assert reply.reason is Reason.SERVER


def test_works_from_several_event_loops_at_once() -> None:
    with serving(lambda _: completion("A")) as server:
        judge = OpenAIJudge("m", base_url=server.url)
        done: list[Any] = []
        threads = [threading.Thread(target=lambda: done.extend(asyncio.run(judge.ask([CHOICE] * 4)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [reply.values for reply in done] == [(1.0, 0.0)] * 12


def test_qa_utility_end_to_end() -> None:
    rollouts = samples.photos()[:6]
    with serving(lambda _: completion("A", top={"A": 0.0})) as server:
        table = RewardSuite({"qa": QAUtility(OpenAIJudge("m", base_url=server.url))}).score(rollouts)
    share_of_a = sum(q.answer == 0 for q in rollouts[0].item.questions) / len(rollouts[0].item.questions)
    assert table.values[:, 0].tolist() == [pytest.approx(share_of_a)] * 6
