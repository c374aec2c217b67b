"""OpenAIJudge against a real vLLM that serves SmolLM2 on loopback, from an environment of its own (`make test-vllm`)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from smollm2 import smollm2

from capreward import Coverage, Missing, QAUtility, Reason, RewardSuite, Rollout
from capreward.judges import Reply, Request, Task
from capreward.judges.openai import OpenAIJudge

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm/bin/python"
CHOICE = Request(
    Task.CHOOSE, "A white cup stands on a table.", ("a dog", "a cup", "a tree"), "What stands on the table?"
)

pytestmark = pytest.mark.vllm


class Server:
    """vLLM as a process that can be killed and started again on the same port."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model = model
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(self.port)]
        # only whole blocks are cached, so small ones share more of a prompt
        command += ["--max-model-len", "2048", "--enforce-eager", "--block-size", "32"]
        own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **own},
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(300):
            if self.process.poll() is not None:
                raise RuntimeError(f"vLLM ended with status {self.process.returncode} while starting")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1)
                return
            except OSError:
                time.sleep(1)
        raise RuntimeError("vLLM did not come up within 5 minutes")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not PYTHON.exists():
        pytest.skip("no vLLM here; run `make test-vllm`")
    server = Server(smollm2())
    yield server
    server.kill()


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
