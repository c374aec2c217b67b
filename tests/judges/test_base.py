from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import FakeJudge
from hypothesis import given, strategies as st

from capreward import LiteJudge, Missing, Reason, prompts
from capreward.errors import ComponentError, InputError
from capreward.judges import Judge, Reply, Request, Sampling, Task, Usage
from capreward.judges.base import CHOICES, SEEING, WRITING, ask_each, complete_reply, require

DOWN = Missing(Reason.SERVER, "server is down")


def request(name: str, *options: str) -> Request:
    return Request(Task.SUPPORT, name, options)


class TestRequire:
    JUDGE = FakeJudge(tasks=[Task.RATE, Task.CHOOSE])

    @pytest.mark.parametrize("tasks", [(), (Task.RATE,), (Task.CHOOSE, Task.RATE)])
    def test_returns_a_judge_that_can(self, tasks: tuple[Task, ...]) -> None:
        assert require(self.JUDGE, "Mine", *tasks) is self.JUDGE

    def test_names_what_it_cannot_and_what_it_can(self) -> None:
        with pytest.raises(InputError) as error:
            require(self.JUDGE, "Mine", Task.RATE, Task.SUPPORT, Task.EXTRACT)
        assert str(error.value) == (
            "Mine: judge 'fake' cannot support, extract, only choose, rate; give it a judge that can"
        )

    @pytest.mark.parametrize("judge", [None, FakeJudge, "gpt"])
    def test_refuses_what_is_no_judge(self, judge: object) -> None:
        with pytest.raises(InputError, match=r"Mine: got judge .*, expected a judge"):
            require(judge, "Mine", Task.RATE)  # type: ignore[arg-type]


class TestRequestKey:
    BASE = Request(Task.CHOOSE, "A cup.", ("a", "b"), "Which?")

    @pytest.mark.parametrize(
        "other",
        [
            Request(Task.SUPPORT, "A cup.", ("a", "b"), "Which?"),
            Request(Task.CHOOSE, "A dog.", ("a", "b"), "Which?"),
            Request(Task.CHOOSE, "A cup.", ("b", "a"), "Which?"),
            Request(Task.CHOOSE, "A cup.", ("a", "b"), "What?"),
            Request(Task.CHOOSE, "A cup.", ("a", "b"), "Which?", images=(b"image",)),
            Request(Task.CHOOSE, "A cup.", ("a", "b"), "Which?", sampling=Sampling(temperature=0.6)),
            Request(Task.CHOOSE, "A cup.", ("a", "b"), "Which?", sampling=Sampling(seed=1)),
        ],
    )
    def test_every_field_counts(self, other: Request) -> None:
        assert other.key("judge") != self.BASE.key("judge")

    def test_the_judge_and_the_prompt_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = self.BASE.key("judge")
        assert before == Request(Task.CHOOSE, "A cup.", ("a", "b"), "Which?").key("judge")
        assert before != self.BASE.key("another")
        changed = dataclasses.replace(prompts.load("choose"), hash="changed")
        monkeypatch.setattr(prompts, "load", lambda _: changed)
        assert before != self.BASE.key("judge")

    @pytest.mark.parametrize("task", Task)
    def test_the_prompt_counts_of_every_task(self, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
        request_ = Request(task, "A cup.", ("a", "b"), "Which?")
        before = request_.key("judge")
        load = prompts.load
        monkeypatch.setattr(prompts, "load", lambda name: dataclasses.replace(load(name), hash="changed"))
        assert request_.key("judge") != before

    def test_an_image_counts_by_its_content(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"image")
        by_path = Request(Task.VERIFY, "", ("a",), images=(tmp_path / "a.png",))
        assert by_path.key("judge") == Request(Task.VERIFY, "", ("a",), images=(b"image",)).key("judge")

    def test_an_image_is_read_once_until_it_changes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        image = tmp_path / "a.png"
        read: list[Path] = []
        read_bytes = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or read_bytes(path))  # type: ignore[func-returns-value]
        monkeypatch.chdir(tmp_path)

        def keys() -> set[str]:
            paths = (image, image, Path("a.png"))
            return {Request(Task.VERIFY, "", ("a",), images=(path,)).key("judge") for path in paths}

        image.write_bytes(b"one")
        first = keys()
        image.write_bytes(b"three")  # another size
        second = keys()
        image.write_bytes(b"seven")
        os.utime(image, ns=(0, 0))  # another time
        third = keys()
        assert [len(first), len(second), len(third)] == [1, 1, 1]
        assert len(first | second | third) == 3
        assert read == [image] * 3
        image.unlink()
        with pytest.raises(FileNotFoundError):
            keys()


class TestUsage:
    def test_since_a_snapshot(self) -> None:
        usage = Usage(requests=3, calls=2, seconds=0.5, money=1.0)
        before = usage.snapshot()
        usage.requests += 4
        usage.money += 0.25
        assert before == Usage(requests=3, calls=2, seconds=0.5, money=1.0)
        assert usage.since(before) == Usage(requests=4, money=0.25)

    @pytest.mark.parametrize(
        ("usage", "line"),
        [
            (
                Usage(1024, 512, 500, 12, 1_234_567, 30_000, 84.3, 1.234),
                "1,024 requests: 512 calls, 500 cached, 12 failed; 1.23 M tokens in, 30 k out; 84 s waited; 1.23 spent",
            ),
            (Usage(), "0 requests"),
            (Usage(requests=1, calls=1), "1 request: 1 call"),
            (Usage(requests=2, hits=2), "2 requests: 2 cached"),
            (Usage(requests=2, failures=2, seconds=9.96), "2 requests: 2 failed; 10 s waited"),
            (Usage(requests=1, input_tokens=1, output_tokens=1), "1 request: 1 token in, 1 out"),
            (Usage(requests=1, output_tokens=1, seconds=0.04), "1 request: 1 token out"),
            (Usage(requests=1, output_tokens=999, seconds=1.26), "1 request: 999 tokens out; 1.3 s waited"),
            (Usage(requests=1, input_tokens=999_499, money=0.004), "1 request: 999 k tokens in; less than 0.01 spent"),
            (Usage(requests=1, input_tokens=999_500, money=0.005), "1 request: 1 M tokens in; 0.01 spent"),
            (
                Usage(requests=1, input_tokens=12_340_000_000, money=1234.5),
                "1 request: 12.3 G tokens in; 1,234.50 spent",
            ),
        ],
    )
    def test_summary(self, usage: Usage, line: str) -> None:
        assert usage.summary() == line


class TestAskEach:
    def test_asks_equal_requests_once(self) -> None:
        judge = FakeJudge(lambda request: Reply(raw=request.context))
        replies = asyncio.run(ask_each(judge, [[request("a"), request("b")], [request("a")]]))
        assert [r.context for r in judge.asked] == ["a", "b"]
        assert replies == [[Reply(raw="a"), Reply(raw="b")], [Reply(raw="a")]]

    @given(st.lists(st.integers(0, 3)))
    def test_hands_replies_back_in_the_same_nesting(self, sizes: list[int]) -> None:
        judge = FakeJudge(lambda request: Reply(raw=request.context))
        batches = [[request(f"{n}.{m}") for m in range(size)] for n, size in enumerate(sizes)]
        replies = asyncio.run(ask_each(judge, batches))
        assert [[reply.raw for reply in batch] for batch in replies] == [
            [asked.context for asked in batch] for batch in batches
        ]

    def test_asks_once_and_only_if_there_is_something_to_ask(self) -> None:
        calls: list[int] = []

        class Counts(FakeJudge):
            async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
                calls.append(len(requests))
                return await super().ask(requests)

        judge = Counts(Reply())
        assert asyncio.run(ask_each(judge, [])) == []
        assert asyncio.run(ask_each(judge, [[], []])) == [[], []]
        assert calls == []
        asyncio.run(ask_each(judge, [[request("a")], [], [request("b"), request("c")]]))
        assert calls == [3]

    @pytest.mark.parametrize("values", [(0.0, 1.0), (0.5, 0.5), (1.0, 1.0)])
    def test_complete_replies_pass(self, values: tuple[float, ...]) -> None:
        judge = FakeJudge(values)
        assert asyncio.run(ask_each(judge, [[request("a", "x", "y")]])) == [[Reply(values)]]

    @pytest.mark.parametrize(
        ("values", "detail"),
        [
            ((), "support: 0 answers to 2 options; the judge said 'I think so'"),
            ((1.0,), "support: 1 answers to 2 options"),
            ((1.0, 0.0, 1.0), "support: 3 answers to 2 options"),
            ((1.0, 1.5), "support: answers outside [0, 1]: (1.0, 1.5)"),
            ((-0.5, 1.0), "support: answers outside [0, 1]: (-0.5, 1.0)"),
            ((float("nan"), 1.0), "support: answers outside [0, 1]: (nan, 1.0)"),
        ],
    )
    def test_incomplete_replies_are_unparseable(self, values: tuple[float, ...], detail: str) -> None:
        judge = FakeJudge(Reply(values, raw="I think so"))
        ((reply,),) = asyncio.run(ask_each(judge, [[request("a", "x", "y")]]))
        assert isinstance(reply, Missing)
        assert reply.reason is Reason.UNPARSEABLE
        assert reply.detail.startswith(detail)

    def test_words_of_an_incomplete_reply_are_not_for_the_parser(self) -> None:
        judge = FakeJudge(Reply((), raw="A cup, I think."))  # "A", to a parser that looks for letters
        ((reply,),) = asyncio.run(ask_each(judge, [[request("a", "x", "y")]]))
        assert (reply.raw, reply.unread) == ("", False)

    def test_what_the_judge_said_is_cut_short(self) -> None:
        judge = FakeJudge(Reply((), raw="no " * 1000))
        ((reply,),) = asyncio.run(ask_each(judge, [[request("a", "x")]]))
        assert len(reply.detail) < 300

    def test_one_failed_request_does_not_sink_the_others(self) -> None:
        judge = FakeJudge(lambda request: DOWN if request.context == "b" else (0.5,))
        replies = asyncio.run(ask_each(judge, [[request("a", "x"), request("b", "x")], [request("c", "x")]]))
        assert replies == [[Reply((0.5,)), DOWN], [Reply((0.5,))]]

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_wrong_number_of_replies(self, count: int) -> None:
        class Miscounts(FakeJudge):
            async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
                return [Reply()] * count

        with pytest.raises(ComponentError, match=f"judge 'fake': got {count} replies to 2 requests"):
            asyncio.run(ask_each(Miscounts(()), [[request("a")], [request("b")]]))


class TestCompleteReply:
    LOOK = Request(Task.LOOK, "", ("a", "b"), "Which?", (b"x",))
    DESCRIBE = Request(Task.DESCRIBE, "", (), "In one sentence.", (b"x",))
    INQUIRE = Request(Task.INQUIRE, "A cup.", ("object", "count"), "2")
    CRITICISE = Request(Task.CRITICISE, "A cup.", ("A mug.", "A white mug."))
    EXTRACT = Request(Task.EXTRACT, "A cup.")

    @pytest.mark.parametrize(
        ("asked", "reply"),
        [
            (LOOK, Reply((0.25, 0.75))),
            (DESCRIBE, Reply(texts=("A cup.",))),
            (INQUIRE, Reply(texts=("{}", "{}", "{}"))),
            (CRITICISE, Reply(texts=("{}",))),
            (INQUIRE, Reply()),
            (CRITICISE, Reply()),
            (EXTRACT, Reply()),
            (EXTRACT, Reply(texts=("A cup.",))),
        ],
    )
    def test_complete(self, asked: Request, reply: Reply) -> None:
        assert complete_reply(asked, reply) is reply

    @pytest.mark.parametrize(
        ("asked", "reply", "detail"),
        [
            (LOOK, Reply((0.5, 0.6)), "look: probabilities that do not add up to 1"),
            (LOOK, Reply(texts=("a",)), "look: 0 answers to 2 options"),
            (DESCRIBE, Reply(), "describe: got texts (), expected one that is not blank"),
            (DESCRIBE, Reply(texts=(" ",)), "describe: got texts (' ',), expected one that is not blank"),
            (DESCRIBE, Reply(texts=("a", "b")), "describe: got texts ('a', 'b'), expected one"),
            (INQUIRE, Reply((0.5, 0.5)), "inquire: 2 answers to 0 options"),
            (CRITICISE, Reply((1.0, 1.0), texts=("{}",)), "criticise: 2 answers to 0 options"),
            (EXTRACT, Reply((1.0,)), "extract: 1 answers to 0 options"),
        ],
    )
    def test_incomplete(self, asked: Request, reply: Reply, detail: str) -> None:
        missing = complete_reply(asked, reply)
        assert isinstance(missing, Missing)
        assert missing.reason is Reason.UNPARSEABLE
        assert missing.detail.startswith(detail)


def test_kinds_of_task() -> None:
    assert not CHOICES & WRITING
    assert {task for task in Task if task not in WRITING | SEEING} == {
        Task.CHOOSE,
        Task.SUPPORT,
        Task.RATE,
        Task.LIKERT,
    }


def test_protocol(lite: LiteJudge) -> None:
    assert isinstance(lite, Judge)
    assert isinstance(FakeJudge(), Judge)
    assert not isinstance(object(), Judge)
