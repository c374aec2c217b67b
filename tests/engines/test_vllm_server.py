"""OpenAIJudge against a real vLLM that serves SmolLM2 on loopback, from an environment of its own (`make test-vllm`)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from engines.vllm_server import Server, started

from capreward import Coverage, Missing, QAUtility, Reason, RewardSuite, Rollout
from capreward.judges import Reply, Request, Task
from capreward.judges.openai import OpenAIJudge

CHOICE = Request(
    Task.CHOOSE, "A white cup stands on a table.", ("a dog", "a cup", "a tree"), "What stands on the table?"
)

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from started()


def ask(judge: OpenAIJudge, *requests: Request) -> list[Reply | Missing]:
    return asyncio.run(judge.ask(requests))


def test_choices_have_probabilities(server: Server) -> None:
    judge = OpenAIJudge("smollm2", base_url=server.url, guided_choice=True)
    (reply,) = ask(judge, CHOICE)
    assert isinstance(reply, Reply)
    assert sum(reply.values) == pytest.approx(1)
    assert len(set(reply.values)) == 3  # a distribution, not a guess at one letter
    assert judge.usage.input_tokens > 100


def test_structured_replies_are_complete_or_missing(server: Server) -> None:
    judge = OpenAIJudge("smollm2", base_url=server.url, max_tokens=300)
    support = Request(Task.SUPPORT, "A white cup.", ("There is a cup.", "There is a dog."))
    for reply in ask(judge, support, Request(Task.RATE, "A white cup.", ("clarity", "fluency", "coherence"))):
        if isinstance(reply, Missing):
            assert reply.reason in (Reason.TRUNCATED, Reason.UNPARSEABLE)
        else:
            assert all(0 <= value <= 1 for value in reply.values)
            assert reply.raw.startswith("{")


def test_components_end_to_end(server: Server, photos: list[Rollout]) -> None:
    judge = OpenAIJudge("smollm2", base_url=server.url, guided_choice=True, max_tokens=600)
    table = RewardSuite({"qa": QAUtility(judge, score="probability"), "coverage": Coverage(judge)}).score(photos[:3])
    assert ((table.values[:, 0] > 0) & (table.values[:, 0] < 1)).all()
    assert not any(cell.reason in (Reason.SERVER, Reason.TIMEOUT) for cell in table.missing.values())


def test_an_image_is_refused_clearly(server: Server) -> None:
    blind = OpenAIJudge("smollm2", base_url=server.url)
    told_it_sees = OpenAIJudge("smollm2", base_url=server.url, images=True)
    request = Request(Task.VERIFY, "", ("There is a cup.",), images=(b"\x89PNG\r\n\x1a\n",))
    for judge in (blind, told_it_sees):
        (reply,) = ask(judge, request)
        assert isinstance(reply, Missing)
        assert reply.reason is Reason.REFUSED
        assert reply.detail


def test_killed_in_the_middle_and_started_again(server: Server) -> None:
    judge = OpenAIJudge("smollm2", base_url=server.url, guided_choice=True)
    requests = [Request(Task.CHOOSE, f"Cup number {n}.", ("a dog", "a cup"), "What is it?") for n in range(64)]

    async def kill_meanwhile() -> list[Reply | Missing]:
        asking = asyncio.create_task(judge.ask(requests))
        while judge.usage.input_tokens == 0:
            await asyncio.sleep(0.05)
        server.kill()
        return await asking

    replies = asyncio.run(kill_meanwhile())
    failed = [reply for reply in replies if isinstance(reply, Missing)]
    assert 0 < len(failed) < len(replies)
    assert {reply.reason for reply in failed} == {Reason.SERVER}
    server.start()
    assert not any(isinstance(reply, Missing) for reply in ask(judge, *requests))
