"""Against a scripted engine, for what a real one does not do on demand; a real vLLM has its own tests."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from capreward import Missing, Reason
from capreward.errors import InputError, MissingExtraError
from capreward.hub import Model
from capreward.judges import Judge, Reply, Request, Task
from capreward.judges.base import SEEING, Sampling
from capreward.judges.vllm import VLLMJudge

CHOICE = Request(Task.CHOOSE, "A cup.", ("white", "blue"), "Which colour?")
RATE = Request(Task.RATE, "A bad request.", ("clarity",))
RATED = '{"ratings": [{"number": 1, "why": "w", "rating": 5}]}'
IMAGE = Request(Task.VERIFY, "", ("There is a cup.",), images=(b"x",))


class Bytes:
    """A tokenizer with a token a character."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(character) for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


class Engine:
    """Stands for `vllm.LLM`; `turns_down` is raised at a bad request, `fails` by the engine itself."""

    def __init__(
        self,
        model: str = "org/model",
        *,
        revision: str | None = None,
        commit: str | None = None,
        turns_down: Exception | None = None,
        fails: Exception | None = None,
        finish: str = "stop",
    ) -> None:
        self.model_config = SimpleNamespace(
            model=model, revision=revision, hf_config=SimpleNamespace(_commit_hash=commit)
        )
        self.llm_engine = SimpleNamespace(abort_request=self.abort_request, engine_core=SimpleNamespace())
        self.turns_down, self.fails, self.finish = turns_down, fails, finish
        self.queue: list[Any] = []
        self.aborted: list[str] = []
        self.asked: list[Any] = []

    def get_tokenizer(self) -> Any:
        return Bytes()

    def enqueue_chat(self, messages: Any, sampling: Any, **options: Any) -> list[str]:
        self.asked.append((messages, sampling, options))
        if self.turns_down and "bad" in messages[1]["content"]:
            raise self.turns_down
        self.queue.append(sampling)
        return [f"{len(self.asked)}-internal"]

    def wait_for_completion(self, *, use_tqdm: bool) -> list[Any]:
        time.sleep(0.01)
        if self.fails:
            raise self.fails
        queue, self.queue = self.queue, []
        return [self.output(sampling) for sampling in queue]

    def output(self, sampling: Any) -> Any:
        first = {ord("A"): SimpleNamespace(logprob=math.log(0.6)), ord("B"): SimpleNamespace(logprob=math.log(0.2))}
        letter = hasattr(sampling, "logprob_token_ids")
        completion = SimpleNamespace(
            text="A" if letter else RATED,
            token_ids=[1] if letter else [1] * 9,
            finish_reason=self.finish,
            logprobs=[first] if letter else None,
        )
        return SimpleNamespace(outputs=[completion], prompt_token_ids=[1] * 50)

    def abort_request(self, ids: list[str], *, internal: bool) -> None:
        assert internal
        self.aborted += ids


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = Engine, SimpleNamespace
    module.sampling_params = ModuleType("vllm.sampling_params")
    module.sampling_params.StructuredOutputsParams = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("capreward.judges.vllm.find_model", lambda _, name, **__: Model(name, False))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", module.sampling_params)


def ask(engine: Any, *requests: Request, **options: Any) -> tuple[VLLMJudge, list[Reply | Missing]]:
    judge = VLLMJudge(engine, **options)
    return judge, asyncio.run(judge.ask(requests))


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"VLLMJudge needs vllm.*capreward\[vllm\]"):
        VLLMJudge("org/model")


def test_engine_options_beside_a_ready_engine() -> None:
    with pytest.raises(InputError, match=r"ready engine and options of one \(max_model_len\)"):
        VLLMJudge(Engine(), max_model_len=100)


def test_what_is_no_engine() -> None:
    with pytest.raises(InputError, match=r"expected a name, a folder or the LLM of vLLM 0\.23 or later"):
        VLLMJudge(object())


def test_a_tokenizer_without_letters() -> None:
    class Numbers(Bytes):
        def decode(self, tokens: list[int]) -> str:
            return str(tokens)

    engine = Engine()
    engine.get_tokenizer = Numbers  # type: ignore[method-assign]
    with pytest.raises(InputError, match="no token for the letter A"):
        VLLMJudge(engine)


def test_name_says_model_and_revision(tmp_path: Path) -> None:
    assert VLLMJudge("org/model").name == "vllm/org/model"
    assert VLLMJudge("org/model", revision="v2").name == "vllm/org/model@v2"
    assert VLLMJudge(Engine(commit="abc"), revision="main").name == "vllm/org/model@abc"
    assert VLLMJudge(tmp_path, revision="v2").name == f"vllm/{tmp_path.name}@v2"


def test_tasks() -> None:
    assert isinstance(VLLMJudge("m"), Judge)
    assert VLLMJudge("m").tasks == set(Task) - SEEING
    assert VLLMJudge("m", images=True).tasks == set(Task)


def test_how_it_asks_tasks_that_look_and_write() -> None:
    engine = Engine()
    sampled = Sampling(temperature=0.6, seed=3)
    look = Request(Task.LOOK, "", ("white", "blue"), "Which colour?", (b"x",))
    drawn = Request(Task.LOOK, "", ("white", "blue"), "Which colour?", (b"x",), sampled)
    describe = Request(Task.DESCRIBE, "", (), "Describe it.", (b"x",), sampled)
    inquire = Request(Task.INQUIRE, "A cup.", ("object",), "2")
    blind = Request(Task.LOOK, "", ("white", "blue"), "Which colour?")
    _, replies = ask(engine, look, drawn, describe, inquire, blind, images=True, max_tokens=77)
    assert replies[0] == Reply((pytest.approx(0.75), pytest.approx(0.25)), raw="A")
    assert replies[2] == Reply(texts=(RATED,), raw=RATED)
    assert [reply.reason for reply in replies[3:]] == [Reason.UNPARSEABLE, Reason.NO_IMAGE]
    first, second, third, fourth = (sampling for _, sampling, _ in engine.asked)
    assert first == SimpleNamespace(temperature=0, max_tokens=1, logprob_token_ids=[ord("A"), ord("B")])
    assert (second.temperature, second.seed, second.structured_outputs.choice) == (0.6, 3, ["A", "B"])
    assert third == SimpleNamespace(temperature=0.6, seed=3, max_tokens=77, structured_outputs=None)
    assert (fourth.max_tokens, fourth.structured_outputs.json["required"]) == (77, ["questions"])


def test_how_it_asks_and_what_it_counts() -> None:
    engine = Engine()
    judge, replies = ask(engine, CHOICE, RATE, max_tokens=77)
    assert replies[0] == Reply((pytest.approx(0.75), pytest.approx(0.25)), raw="A")
    assert replies[1] == Reply((1.0,), why=("w",), raw=RATED)
    (_, choice, options), (messages, rate, _) = engine.asked
    assert choice == SimpleNamespace(temperature=0, max_tokens=1, logprob_token_ids=[ord("A"), ord("B")])
    assert options == {"use_tqdm": False, "chat_template_kwargs": {"enable_thinking": False}}
    assert (rate.max_tokens, rate.structured_outputs.json["required"]) == (77, ["ratings"])
    assert [message["role"] for message in messages] == ["system", "user"]
    usage = judge.usage
    assert (usage.requests, usage.calls, usage.failures) == (2, 2, 0)
    assert (usage.input_tokens, usage.output_tokens) == (100, 10)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("The decoder prompt (length 9) is longer than the maximum model length of 5."), Reason.TRUNCATED),
        (type("VLLMValidationError", (type("VLLMClientError", (Exception,), {}),), {})("no"), Reason.REFUSED),
        (ValueError("Failed to load image"), Reason.REFUSED),
        (RuntimeError("no memory"), Reason.SERVER),
        (type("EngineDeadError", (Exception,), {})("dead"), Reason.SERVER),
    ],
)
def test_every_failure_has_its_reason_and_sinks_no_other_request(error: Exception, reason: Reason) -> None:
    judge, (failed, fine) = ask(Engine(turns_down=error), RATE, CHOICE)
    assert isinstance(failed, Missing)
    assert failed.reason is reason
    assert str(error) in failed.detail
    assert isinstance(fine, Reply)
    assert (judge.usage.calls, judge.usage.failures) == (1, 1)


def test_an_engine_that_fails_forgets_what_it_was_asked() -> None:
    engine = Engine(fails=RuntimeError("no memory"))
    judge, replies = ask(engine, CHOICE, RATE)
    assert replies == [Missing(Reason.SERVER, "RuntimeError: no memory")] * 2
    assert engine.aborted == ["1-internal", "2-internal"]
    assert judge.usage.failures == 2


@pytest.mark.parametrize(
    ("finish", "reason", "raw"), [("length", Reason.TRUNCATED, RATED), ("abort", Reason.SERVER, "")]
)
def test_a_reply_without_an_end(finish: str, reason: Reason, raw: str) -> None:
    _, (reply,) = ask(Engine(finish=finish), RATE)
    assert isinstance(reply, Missing)
    assert (reply.reason, reply.raw) == (reason, raw)


def test_what_others_left_in_the_queue_is_not_taken_for_an_answer() -> None:
    engine = Engine()
    engine.queue = [SimpleNamespace()]
    assert ask(engine, CHOICE)[1][0].raw == "A"


def test_too_few_outputs() -> None:
    engine = Engine()
    engine.wait_for_completion = lambda **_: []  # type: ignore[method-assign]
    _, (reply,) = ask(engine, CHOICE)
    assert reply == Missing(Reason.SERVER, "RuntimeError: 0 outputs of 1 requests")


def test_images_are_refused_clearly_by_a_judge_without_eyes() -> None:
    engine = Engine(fails=AssertionError("nothing to wait for"))
    _, (reply,) = ask(engine, IMAGE)
    assert reply.reason is Reason.REFUSED
    assert "images=False" in reply.detail
    assert not engine.asked


def test_images_travel_as_data_urls_unless_they_are_gone() -> None:
    engine = Engine()
    gone = Request(Task.VERIFY, "", ("a",), images=(Path("no/such.png"),))
    _, (_, missing) = ask(engine, IMAGE, gone, images=True)
    assert missing.reason is Reason.NO_IMAGE
    ((messages, _, _),) = engine.asked
    assert messages[1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_judges_of_one_engine_take_turns() -> None:
    engine = Engine()

    async def both() -> list[Any]:
        judges = VLLMJudge(engine), VLLMJudge(engine)
        return await asyncio.gather(*(judge.ask([request] * 5) for judge in judges for request in (CHOICE, RATE)))

    for replies, raw in zip(asyncio.run(both()), ("A", RATED) * 2, strict=True):
        assert [reply.raw for reply in replies] == [raw] * 5


class TestEngineApart:
    """An engine in a process of its own."""

    def engine(self, *, dies: bool) -> Any:
        engine = Engine()
        resources = SimpleNamespace(engine_dead=False)
        engine.llm_engine.engine_core.resources = resources
        wait = engine.wait_for_completion

        def slow(*, use_tqdm: bool) -> list[Any]:
            time.sleep(0.1)
            resources.engine_dead = dies
            if dies:
                threading.Event().wait()  # vLLM waits for ever
            return wait(use_tqdm=use_tqdm)

        engine.wait_for_completion = slow  # type: ignore[method-assign]
        return engine

    def test_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("capreward.judges.vllm.LIVENESS_SECONDS", 0.02)
        (reply,) = asyncio.run(VLLMJudge(self.engine(dies=False)).ask([CHOICE]))
        assert isinstance(reply, Reply)

    def test_that_dies_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("capreward.judges.vllm.LIVENESS_SECONDS", 0.02)
        (reply,) = asyncio.run(VLLMJudge(self.engine(dies=True)).ask([CHOICE]))
        assert isinstance(reply, Missing)
        assert reply.reason is Reason.SERVER
        assert "died" in reply.detail
