from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeJudge
from judges.doubles import (
    DOWN,
    PATIENCE,
    REFUSED,
    AsyncJudge,
    Failing,
    Naps,
    ask,
    echo,
    numbered,
    raws,
    run,
    support,
    until,
)

from capreward import Missing, Reason
from capreward.errors import InputError
from capreward.judges import Reply, Request, Sampling, Task, cache, parse
from capreward.judges.cache import Cached
from capreward.judges.wrap import Limited, Retried

TESTS = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite"


def rows(path: Path, query: str) -> list[Any]:
    db = sqlite3.connect(path)
    try:
        found = db.execute(query).fetchall()
        db.commit()
        return found
    finally:
        db.close()


class TestCached:
    def test_a_second_run_asks_nothing(self, path: Path) -> None:
        first = ask(Cached(AsyncJudge(), path), *numbered(700))
        inner = AsyncJudge()
        second = Cached(inner, path)
        assert ask(second, *numbered(700)) == first
        assert inner.batches == []
        assert (second.usage.requests, second.usage.hits, second.usage.calls) == (700, 700, 0)

    def test_misses_go_in_one_batch(self, path: Path) -> None:
        inner = AsyncJudge()
        judge = Cached(inner, path)
        ask(judge, support("1"), support("3"))
        ask(judge, *numbered(5))
        assert inner.batches == [["1", "3"], ["0", "2", "4"]]
        assert (judge.usage.requests, judge.usage.hits, judge.usage.calls) == (7, 2, 5)

    def test_duplicates_in_a_batch_are_asked_once(self, path: Path) -> None:
        inner = AsyncJudge()
        judge = Cached(inner, path)
        assert raws(ask(judge, support("a"), support("b"), support("a"), support("a"))) == ["a", "b", "a", "a"]
        assert inner.batches == [["a", "b"]]
        assert judge.usage.hits == 2

    def test_the_whole_reply_is_kept(self, path: Path) -> None:
        reply = Reply((0.1 + 0.2,), ("überall 🐈", "lone \ud800 surrogate"), ("why\n\x00",), "raw " * 300_000)
        assert ask(Cached(FakeJudge(reply), path), support("a")) == [reply]
        assert ask(Cached(FakeJudge(), path), support("a")) == [reply]

    @pytest.mark.parametrize(
        ("request_", "texts"),
        [
            (Request(Task.DESCRIBE, "", (), "Describe it.", (b"x",)), ("Eine Tür.",)),
            (Request(Task.INQUIRE, "A cup.", ("object", "count"), "2"), ('{"kind": "object"}', '{"kind": "Tür"}')),
            (Request(Task.INQUIRE, "A dog.", ("object",), "2"), ()),
            (Request(Task.CRITICISE, "A cup.", ("A mug.", "A jug.")), ('{"severity": "minor"}',)),
        ],
    )
    def test_what_was_written_is_kept(self, path: Path, request_: Request, texts: tuple[str, ...]) -> None:
        reply = Reply(texts=texts, raw="said")
        inner = Failing(Missing(Reason.UNPARSEABLE, "not JSON", "Fine."), reply)
        assert ask(Cached(Retried(Limited(inner, 2), sleep=Naps()), path), request_) == [reply]
        assert len(inner.asked) == 2
        later = Cached(FakeJudge(), path)
        assert ask(later, request_) == [reply]
        assert later.judge.asked == []  # type: ignore[attr-defined]

    def test_what_a_row_holds(self, path: Path) -> None:
        before = time.time()
        ask(Cached(FakeJudge(echo), path), support("a"))
        [(key, judge, task, created, reply)] = rows(path, "SELECT * FROM replies")
        assert (key, judge, task) == (support("a").key("fake"), "fake", "support")
        assert before <= created <= time.time()
        assert json.loads(reply) == {"values": [0.5], "texts": [], "why": [], "raw": "a"}
        assert rows(path, "SELECT * FROM claims") == []

    def test_failures_are_asked_again(self, path: Path) -> None:
        inner = Failing(DOWN, echo(support("a")))
        judge = Cached(inner, path)
        assert ask(judge, support("a"), support("a")) == [DOWN, DOWN]
        assert rows(path, "SELECT * FROM replies UNION SELECT * FROM claims") == []
        assert raws(ask(judge, support("a"))) == ["a"]
        assert (judge.usage.requests, judge.usage.calls, judge.usage.hits, judge.usage.failures) == (3, 2, 1, 2)

    def test_incomplete_replies_are_not_kept(self, path: Path) -> None:
        inner = Failing(Reply((0.1, 0.2)), Reply((0.3,)))
        judge = Cached(inner, path)
        assert raws(ask(judge, support("a"))) == ["unparseable"]
        assert ask(judge, support("a")) == [Reply((0.3,))]

    def test_everything_that_matters_tells_requests_apart(self, path: Path, tmp_path: Path) -> None:
        image = tmp_path / "image"
        image.write_bytes(b"one")
        different = [
            support("a"),
            support("b"),
            support("a", question="q"),
            support("a", images=(b"one",)),
            support("a", images=(b"two",)),
            support("a", sampling=Sampling(seed=1)),
            support("a", sampling=Sampling(seed=2)),
            support("a", sampling=Sampling(temperature=1.0)),
            Request(Task.SUPPORT, "a", ("a dog",)),
            Request(Task.VERIFY, "a", ("a cup",)),
        ]
        inner = AsyncJudge()
        judge = Cached(inner, path)
        ask(judge, *different, support("a", images=(image,)))  # the same as b"one"
        assert len(inner.asked) == len(different)
        image.write_bytes(b"three")
        ask(judge, support("a", images=(image,)))
        assert len(inner.asked) == len(different) + 1

    def test_judges_of_different_names_share_a_file(self, path: Path) -> None:
        inner = [AsyncJudge(), AsyncJudge()]
        inner[1].name = "other"
        for judge in inner * 2:
            ask(Cached(judge, path), support("a"))
        assert [judge.batches for judge in inner] == [[["a"]], [["a"]]]

    def test_an_unreadable_image_is_missing_and_not_asked(self, path: Path) -> None:
        inner = AsyncJudge()
        judge = Cached(inner, path)
        replies = ask(judge, support("a", images=(Path("nowhere.jpg"),)), support("b"))
        assert raws(replies) == ["no_image", "b"]
        assert "nowhere.jpg" in str(replies[0])
        assert inner.batches == [["b"]]
        assert (judge.usage.requests, judge.usage.hits, judge.usage.failures) == (2, 0, 1)

    @pytest.mark.parametrize(
        "damage",
        [
            "'{\"values\": [0.5'",
            "'null'",
            "'[1]'",
            "''",
            "'{\"values\": [0.5]}'",
            '\'{"values": ["x"], "texts": [], "why": [], "raw": ""}\'',
            '\'{"values": [NaN], "texts": [], "why": [], "raw": ""}\'',
            "x'ff00'",
            "CAST(x'22ff22' AS TEXT)",
        ],
    )
    def test_a_damaged_row_counts_as_not_there(self, path: Path, damage: str) -> None:
        inner = AsyncJudge()
        judge = Cached(inner, path)
        ask(judge, *numbered(3))
        rows(path, f"UPDATE replies SET reply = {damage} WHERE key = '{support('1').key('fake')}'")
        for _ in range(2):
            assert raws(ask(judge, *numbered(3))) == ["0", "1", "2"]
        assert inner.batches == [["0", "1", "2"], ["1"]]

    def test_not_a_database(self, path: Path) -> None:
        path.write_text("a text that is longer than the header of a database, " * 9)
        with pytest.raises(InputError, match=r"cache\.sqlite.*not a database"):
            Cached(FakeJudge(), path)

    def test_not_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="unable to open"):
            Cached(FakeJudge(), tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="file"):
            Cached(FakeJudge(), tmp_path / "file" / "cache")

    def test_makes_its_folder(self, tmp_path: Path) -> None:
        ask(Cached(FakeJudge(echo), str(tmp_path / "a" / "b" / "cache")), support("a"))
        assert (tmp_path / "a" / "b" / "cache").exists()

    @pytest.mark.parametrize("wrong", ["claim_seconds", "chunk"])
    def test_wrong_numbers(self, path: Path, wrong: str) -> None:
        with pytest.raises(InputError, match=f"Cached: got {wrong}=0"):
            Cached(FakeJudge(), path, **{wrong: 0})

    def test_close_leaves_one_file_and_ask_opens_it_again(self, path: Path) -> None:
        judge = Cached(FakeJudge(echo), path)
        ask(judge, support("a"))
        judge.close()
        judge.close()
        assert list(path.parent.iterdir()) == [path]
        assert raws(ask(judge, support("a"), support("b"))) == ["a", "b"]

    def test_a_key_of_the_judge_is_not_in_the_file(self, path: Path) -> None:
        inner = FakeJudge(echo)
        inner.api_key = "sk-secret"  # type: ignore[attr-defined]
        judge = Cached(inner, path)
        ask(judge, support("a"))
        judge.close()
        assert b"sk-secret" not in path.read_bytes()


class TestParts:
    """A batch is asked and written in parts, so that what is finished is kept."""

    def test_what_is_asked_about_one_text_stays_together(self, path: Path) -> None:
        inner = AsyncJudge()
        texts = [*"abcabcabdde", *"ffffff"]
        requests = [support(text, question=str(n)) for n, text in enumerate(texts)]
        assert raws(ask(Cached(inner, path, chunk=5), *requests)) == texts
        assert ["".join(batch) for batch in inner.batches] == ["aaa", "bbbcc", "dde", "fffff", "f"]

    def test_a_straggler_holds_no_other_part_up(self, path: Path) -> None:
        async def answer(request: Request) -> Reply:
            if request.context == "0":
                await until(lambda: len(rows(path, "SELECT * FROM replies")) == 8)  # all but its own part
            return echo(request)

        assert raws(ask(Cached(Limited(AsyncJudge(answer), 2), path, chunk=2), *numbered(10))) == [*"0123456789"]

    def test_usage_is_live(self, path: Path) -> None:
        async def main() -> None:
            gate = Gate()
            inner = AsyncJudge(lambda request: gate(request) if request.context == "3" else echo(request))
            judge = Cached(Retried(Limited(inner)), path, chunk=1)
            await judge.ask(numbered(2))
            task = asyncio.create_task(judge.ask([*numbered(4), support("2")]))
            await until(lambda: judge.usage.calls == 4)
            assert (judge.usage.requests, judge.usage.hits) == (7, 3)  # two known, one twice in the batch
            gate.opened.set()
            await task
            assert (judge.usage.requests, judge.usage.hits, judge.usage.calls) == (7, 3, 4)

        run(main())

    def test_finished_parts_outlive_a_cancelled_batch(self, path: Path) -> None:
        async def main() -> None:
            gate = Gate()
            inner = AsyncJudge(lambda request: gate(request) if request.context in "57" else echo(request))
            judge = Cached(inner, path, chunk=3)
            task = asyncio.create_task(judge.ask(numbered(10)))
            await until(lambda: len(rows(path, "SELECT * FROM replies")) == 4)
            assert raws(await judge.ask(numbered(3))) == ["0", "1", "2"]  # handed out already
            task.cancel()
            await asyncio.wait([task])
            gate.opened.set()
            assert raws(await judge.ask(numbered(10))) == [*"0123456789"]
            assert inner.batches == [[*"012"], [*"345"], [*"678"], [*"9"], [*"345"], [*"678"]]
            assert judge._flights == {}

        run(main())
        assert rows(path, "SELECT * FROM claims") == []

    def test_finished_parts_outlive_a_broken_judge(self, path: Path) -> None:
        async def broken() -> Reply:
            await until(lambda: len(rows(path, "SELECT * FROM replies")) == 2)
            raise ValueError("broken")

        judge = Cached(AsyncJudge(lambda request: broken() if request.context == "3" else echo(request)), path, chunk=2)
        with pytest.raises(ValueError, match="broken"):
            ask(judge, *numbered(4))
        inner = AsyncJudge()
        assert raws(ask(Cached(inner, path), *numbered(4))) == [*"0123"]
        assert inner.batches == [["2", "3"]]

    def test_finished_parts_outlive_a_killed_process(self, path: Path) -> None:
        script = """
class Stuck(FunctionJudge):
    async def ask(self, requests):
        if any(int(request.context) >= 6 for request in requests):
            await asyncio.Event().wait()
        return await super().ask(requests)
judge = Stuck(lambda request: Reply((0.5,), raw=request.context), name="fake")
asyncio.run(Cached(judge, sys.argv[1], chunk=3).ask([support(str(n)) for n in range(10)]))
"""
        Cached(FakeJudge(), path).close()  # makes the file
        process = start(script, path)
        try:
            run(until(lambda: len(rows(path, "SELECT * FROM replies")) == 6))
        finally:
            process.kill()
            process.communicate()
        inner = AsyncJudge()
        assert raws(ask(Cached(inner, path), *numbered(10))) == [*"0123456789"]
        assert inner.batches == [[*"6789"]]


CHOICE = Request(Task.CHOOSE, "A cup.", ("white", "blue"), "Which colour?")
VERDICTS = '{"verdicts": [{"number": 1, "why": "w", "holds": true}]}'


class Talking(AsyncJudge):
    """A language model that says one thing, whatever it is asked."""

    def __init__(self, text: str) -> None:
        super().__init__(lambda request: parse.parse(request, text))


class TestWhatCouldNotBeRead:
    def test_a_better_parser_needs_no_new_spending(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        inner = Talking("Answer: \ud800 B")
        judge = Cached(Retried(inner, attempts=2, sleep=Naps()), path)
        assert ask(judge, CHOICE) == [inner.respond(CHOICE)]
        assert raws(ask(Cached(Talking("A"), path), support("else"))) == ["unparseable"]
        assert len(inner.batches) == 2

        monkeypatch.setattr(parse, "_LETTER", re.compile("Answer: \ud800 ([A-Z])"))
        later = Cached(FakeJudge(), path)
        for _ in range(2):
            assert ask(later, CHOICE) == [Reply((0.0, 1.0), raw="Answer: \ud800 B")]
        assert later.judge.asked == []  # type: ignore[attr-defined]
        assert (later.usage.hits, later.usage.failures) == (2, 0)

    def test_what_cannot_be_read_yet_is_asked_again(self, path: Path) -> None:
        inner = Talking("Fine.")
        judge = Cached(inner, path)
        for _ in range(2):
            assert raws(ask(judge, support("a"))) == ["unparseable"]
        assert len(inner.batches) == 2
        assert ask(Cached(Talking(VERDICTS), path), support("a")) == [Reply((1.0,), why=("w",), raw=VERDICTS)]
        assert raws(ask(judge, support("a"))) == [VERDICTS]
        assert len(inner.batches) == 2

    def test_what_was_cut_is_kept_but_never_used(self, path: Path) -> None:
        cut = Missing(Reason.TRUNCATED, "no end within 5 tokens", VERDICTS)
        inner = FakeJudge(cut)
        judge = Cached(inner, path)
        for _ in range(2):
            assert ask(judge, support("a")) == [cut]
        assert len(inner.asked) == 2
        assert json.loads(rows(path, "SELECT missing FROM unread")[0][0])["raw"] == VERDICTS

    @pytest.mark.parametrize("damage", ["'{'", "'null'", "'{}'", "x'ff00'", '\'{"reason": "tired", "raw": "A"}\''])
    def test_a_damaged_row_counts_as_not_there(self, path: Path, damage: str) -> None:
        ask(Cached(Talking("Fine."), path), CHOICE)
        rows(path, f"UPDATE unread SET missing = {damage}")
        assert raws(ask(Cached(Talking("A"), path), CHOICE)) == ["A"]

    def test_a_file_from_before_it_was_kept(self, path: Path) -> None:
        ask(Cached(AsyncJudge(), path), support("a"))
        rows(path, "DROP TABLE unread")
        for _ in range(2):
            assert raws(ask(Cached(Talking("Fine."), path), support("a"), support("b"))) == ["a", "unparseable"]


class Gate:
    """An answer that waits until it is opened; then `outcome`, or the echo of the request."""

    def __init__(self, outcome: Any = None) -> None:
        self.opened, self.outcome = threading.Event(), outcome

    async def __call__(self, request: Request) -> Any:
        await until(self.opened.is_set)
        return self.outcome or echo(request)


class TestSingleFlightInAProcess:
    def test_concurrent_tasks(self, path: Path) -> None:
        async def main() -> None:
            gate = Gate()
            inner = AsyncJudge(gate)
            judge = Cached(inner, path)
            first = asyncio.create_task(judge.ask([support("a"), support("b")]))
            await until(lambda: inner.inside == 2)
            others = [asyncio.create_task(judge.ask([support("b"), support("a")])) for _ in range(20)]
            other = asyncio.create_task(judge.ask([support("a"), support("c")]))
            await until(lambda: ["c"] in inner.batches)  # what is new in a batch does not wait for what is joined
            gate.opened.set()
            assert raws(await first) == ["a", "b"]
            assert [raws(replies) for replies in await asyncio.gather(*others)] == [["b", "a"]] * 20
            assert raws(await other) == ["a", "c"]
            assert inner.batches == [["a", "b"], ["c"]]
            assert (judge.usage.requests, judge.usage.hits, judge.usage.calls) == (44, 41, 3)
            assert judge._flights == {}

        run(main())

    def test_crossed_batches_do_not_deadlock(self, path: Path) -> None:
        async def main() -> None:
            inner = AsyncJudge(lambda request: asyncio.sleep(0.01, echo(request)))
            judge = Cached(inner, path)
            orders = [random.Random(seed).sample(numbered(20), 10) for seed in range(30)]
            for order, replies in zip(
                orders, await asyncio.gather(*(judge.ask(order) for order in orders)), strict=True
            ):
                assert raws(replies) == [request.context for request in order]
            assert sorted(request.context for request in inner.asked) == sorted(str(n) for n in range(20))

        run(main())

    def test_a_waiting_task_that_is_cancelled_disturbs_no_one(self, path: Path) -> None:
        async def main() -> None:
            gate = Gate()
            inner = AsyncJudge(gate)
            judge = Cached(inner, path)
            first, second, third = (asyncio.create_task(judge.ask([support("a")])) for _ in range(3))
            await until(lambda: inner.inside == 1)
            await asyncio.sleep(0.01)
            second.cancel()
            gate.opened.set()
            assert [raws(await first), raws(await third)] == [["a"], ["a"]]
            assert second.cancelled()
            assert inner.batches == [["a"]]

        run(main())

    def test_when_the_asking_task_is_cancelled_another_asks(self, path: Path) -> None:
        async def main() -> None:
            gate = Gate()
            inner = AsyncJudge(gate)
            judge = Cached(inner, path)
            first = asyncio.create_task(judge.ask([support("a")]))
            await until(lambda: inner.inside == 1)
            others = [asyncio.create_task(judge.ask([support("a")])) for _ in range(5)]
            await asyncio.sleep(0.01)
            first.cancel()
            await until(lambda: len(inner.batches) == 2)
            gate.opened.set()
            assert [raws(replies) for replies in await asyncio.gather(*others)] == [["a"]] * 5
            assert first.cancelled()
            assert len(inner.batches) == 2
            assert rows(path, "SELECT * FROM claims") == []

        run(main())

    @pytest.mark.parametrize("step", range(1, 30))
    def test_cancelled_at_any_moment(self, path: Path, step: int) -> None:
        async def main() -> None:
            inner = AsyncJudge()
            judge = Cached(inner, path)
            first = asyncio.create_task(judge.ask(numbered(3)))
            second = asyncio.create_task(judge.ask(numbered(3)))
            for _ in range(step):
                await asyncio.sleep(0.0002)
            first.cancel()
            await asyncio.wait([first])
            assert raws(await second) == ["0", "1", "2"]
            assert raws(await judge.ask(numbered(3))) == ["0", "1", "2"]
            assert len(inner.batches) <= 2
            assert judge._flights == {}

        run(main())
        assert rows(path, "SELECT * FROM claims") == []

    def test_what_has_been_paid_for_is_kept_when_the_task_is_cancelled(self, path: Path) -> None:
        async def main() -> None:
            busy = threading.Event()

            def answer(request: Request) -> Reply:
                judge._store.submit(busy.wait)  # so that the writing has to queue
                return echo(request)

            inner = AsyncJudge(answer)
            judge = Cached(inner, path)
            task = asyncio.create_task(judge.ask([support("a")]))
            await until(lambda: inner.batches == [["a"]])
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            busy.set()
            assert raws(await judge.ask([support("a")])) == ["a"]
            assert inner.batches == [["a"]]

        run(main())

    def test_all_get_the_exception_and_the_claim_falls(self, path: Path) -> None:
        async def main() -> None:
            gate = Gate(ValueError("broken"))
            inner = AsyncJudge(gate)
            judge = Cached(inner, path)
            first = asyncio.create_task(judge.ask([support("a")]))
            await until(lambda: inner.inside == 1)
            others = [asyncio.create_task(judge.ask([support("a")])) for _ in range(3)]
            [flight] = judge._flights.values()
            await until(lambda: len(flight._done_callbacks) == 3)  # all wait for it
            gate.opened.set()
            results = await asyncio.gather(first, *others, return_exceptions=True)
            assert [str(result) for result in results] == ["broken"] * 4
            assert len(inner.batches) == 1
            # Another cache, as in another process: it does not wait for a claim.
            assert raws(await Cached(AsyncJudge(), path).ask([support("a")])) == ["a"]
            assert judge._flights == {}

        run(main())

    def test_what_cannot_be_written_is_written_the_next_time(self, path: Path) -> None:
        judge = Cached(AsyncJudge(), path)
        ask(judge, support("a"))
        full = "CREATE TRIGGER full BEFORE INSERT ON replies BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        rows(path, full)
        with pytest.raises(sqlite3.Error, match="the disk is full"):
            ask(judge, support("a"), support("b"))
        assert rows(path, "SELECT * FROM claims") == []
        rows(path, "DROP TRIGGER full")
        assert raws(ask(judge, support("a"), support("b"))) == ["a", "b"]

    def test_two_event_loops(self, path: Path) -> None:
        gate = Gate()
        inner = AsyncJudge(gate)
        judge = Cached(inner, path)
        results: list[list[str]] = []
        threads = [threading.Thread(target=lambda: results.append(raws(ask(judge, *numbered(40))))) for _ in range(4)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE
        while inner.inside < 40 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        gate.opened.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert results == [[str(n) for n in range(40)]] * 4
        assert len(inner.batches) == 1
        assert (judge.usage.requests, judge.usage.calls, judge.usage.hits) == (160, 40, 120)

    def test_the_loop_stays_free_while_the_file_is_slow(self, path: Path) -> None:
        async def main() -> None:
            judge = Cached(AsyncJudge(), path)
            with judge._store.lock:
                task = asyncio.create_task(judge.ask([support("a")]))
                ticks = 0
                while ticks < 50:
                    await asyncio.sleep(0.001)
                    ticks += 1
                assert not task.done()
            assert raws(await task) == ["a"]

        run(main())


def claim(
    path: Path, request: Request, *, pid: int, owner: str = "another", host: str | None = None, seconds: float = 600.0
) -> None:
    values = (request.key("fake"), owner, host or cache.platform.node(), pid, time.time() + seconds)
    db = sqlite3.connect(path)
    with db:
        db.execute("INSERT INTO claims VALUES (?, ?, ?, ?, ?)", values)
    db.close()


class TestClaims:
    """Of other processes: rows written by hand, with the pid of the parent where the owner has to live."""

    def test_of_a_dead_owner_are_taken_over(self, path: Path) -> None:
        inner = AsyncJudge()
        judge = Cached(inner, path)
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        claim(path, support("a"), pid=dead.pid)
        assert raws(ask(judge, support("a"))) == ["a"]
        assert rows(path, "SELECT * FROM claims") == []

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
    def test_of_a_killed_owner_that_its_parent_has_not_waited_for(self, path: Path) -> None:
        judge = Cached(AsyncJudge(), path)
        zombie = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            claim(path, support("a"), pid=zombie.pid)
            zombie.kill()
            assert raws(ask(judge, support("a"))) == ["a"]
        finally:
            zombie.communicate()

    def test_that_have_run_out_are_taken_over(self, path: Path) -> None:
        judge = Cached(AsyncJudge(), path)
        claim(path, support("a"), pid=os.getppid(), seconds=0.1)
        assert raws(ask(judge, support("a"))) == ["a"]

    def test_of_its_own_that_were_left_behind_do_not_count(self, path: Path) -> None:
        judge = Cached(AsyncJudge(), path)
        claim(path, support("a"), pid=os.getpid(), owner=judge._store._owner)
        assert raws(ask(judge, support("a"))) == ["a"]

    def test_an_owner_of_another_user_lives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def not_ours(*_: int) -> None:
            raise PermissionError

        monkeypatch.setattr("os.kill", not_ours)
        assert cache._lives(os.getpid())

    @pytest.mark.parametrize("host", [None, "another-machine"])
    def test_of_a_living_owner_are_waited_for(self, path: Path, host: str | None) -> None:
        async def main() -> None:
            inner = AsyncJudge()
            judge = Cached(inner, path)
            claim(path, support("a"), pid=os.getppid() if host is None else 2**22 + 1, host=host)
            task = asyncio.create_task(judge.ask([support("a"), support("b")]))
            await until(lambda: bool(rows(path, "SELECT * FROM replies")))
            await asyncio.sleep(0.05)
            assert not task.done()
            answer = '{"values": [0.25], "texts": [], "why": [], "raw": "theirs"}'
            rows(path, f"INSERT INTO replies VALUES ('{support('a').key('fake')}', 'fake', 'support', 0, '{answer}')")
            assert raws(await task) == ["theirs", "b"]
            assert inner.batches == [["b"]]
            assert (judge.usage.hits, judge.usage.calls) == (1, 1)

        run(main())

    def test_after_a_failure_elsewhere_who_waited_asks(self, path: Path) -> None:
        async def main() -> None:
            inner, other = AsyncJudge(), AsyncJudge(gate := Gate(DOWN))
            failing = asyncio.create_task(Cached(other, path).ask([support("a")]))
            await until(lambda: other.inside == 1)
            waiting = asyncio.create_task(
                Cached(inner, path).ask([support("a")])
            )  # a cache of its own, as in a process
            await asyncio.sleep(0.05)
            assert inner.batches == []
            gate.opened.set()
            assert raws(await failing) == ["server"]
            assert raws(await waiting) == ["a"]

        run(main())

    def test_are_renewed_while_the_judge_works(self, path: Path) -> None:
        async def main() -> None:
            inner = AsyncJudge(gate := Gate())
            asking = asyncio.create_task(Cached(inner, path, claim_seconds=0.6).ask([support("a")]))
            await until(lambda: inner.inside == 1)
            [claimed] = rows(path, "SELECT owner, until FROM claims")
            await until(lambda: rows(path, "SELECT owner, until FROM claims") != [claimed])
            [(owner, end)] = rows(path, "SELECT owner, until FROM claims")
            assert owner == claimed[0]
            assert claimed[1] < end <= time.time() + 0.6
            gate.opened.set()
            assert raws(await asking) == ["a"]

        run(main())


PRELUDE = f"""
import asyncio, os, sys
sys.path.insert(0, {str(TESTS)!r})
from capreward.judges import Reply, Request, Task
from capreward.judges.fake import FunctionJudge
from capreward.judges.cache import Cached

def support(text):
    return Request(Task.SUPPORT, text, ("a cup",))

class Slow(FunctionJudge):
    async def ask(self, requests):
        await asyncio.sleep(0.2)
        return await super().ask(requests)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class TestManyProcesses:
    def test_eight_processes_ask_each_question_once(self, path: Path) -> None:
        script = """
judge = Slow(lambda request: Reply((0.5,), raw=request.context + " by " + sys.argv[2]))
requests = [support(str(n)) for n in range(40)]
print("ready", flush=True)
sys.stdin.readline()  # so that all begin together, with making the file
shift = 5 * int(sys.argv[2])  # each begins elsewhere
for batch in (requests[shift:shift + 20] + requests[:5], requests):
    replies = asyncio.run(Cached(judge, sys.argv[1]).ask(batch))
    assert [reply.raw.split()[0] for reply in replies] == [request.context for request in batch]
print("asked", *(request.context for request in judge.asked))
print(*(reply.raw for reply in replies), sep=";")
"""
        processes = [start(script, path, n) for n in range(8)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=PATIENCE)[0].splitlines() for process in processes]
        assert [process.returncode for process in processes] == [0] * 8
        asked = [text for first, _ in outputs for text in first.split()[1:]]
        assert sorted(asked, key=int) == [str(n) for n in range(40)]
        assert len({second for _, second in outputs}) == 1  # all have the same replies
        assert rows(path, "SELECT * FROM claims") == []

    def test_a_killed_process_loses_nothing_that_it_handed_out(self, path: Path) -> None:
        script = """
judge = Cached(FunctionJudge(lambda request: Reply((0.5,), raw=request.context * 20_000)), sys.argv[1])
for n in range(0, 10**9, 4):
    batch = [support(str(n + m)) for m in range(4)]
    asyncio.run(judge.ask(batch))
    print(*(request.key("function") for request in batch), flush=True)
"""
        acknowledged: list[str] = []
        for lines in (3, 10, 40):  # the second and third begin on what a killed one left, the first lines of it known
            process = start(script, path)
            assert process.stdout is not None
            for _ in range(lines):
                acknowledged += process.stdout.readline().split()
            process.send_signal(signal.SIGKILL)
            acknowledged += [
                key for line in process.stdout.read().splitlines(True) if line[-1] == "\n" for key in line.split()
            ]
            process.wait(PATIENCE)
            process.communicate()
        assert len(set(acknowledged)) >= 4 * 40
        kept = {key for (key,) in rows(path, "SELECT key FROM replies")}
        assert set(acknowledged) <= kept
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]

    def test_who_waits_for_a_killed_process_asks_itself(self, path: Path) -> None:
        script = """
class Stuck(FunctionJudge):
    async def ask(self, requests):
        print("asking", flush=True)
        await asyncio.Event().wait()
asyncio.run(Cached(Stuck(name="fake"), sys.argv[1]).ask([support("a")]))
"""
        process = start(script, path)
        assert process.stdout is not None
        assert process.stdout.readline() == "asking\n"

        async def main() -> None:
            inner = AsyncJudge()
            task = asyncio.create_task(Cached(inner, path).ask([support("a")]))
            await asyncio.sleep(0.1)
            assert inner.batches == []
            process.kill()
            assert raws(await task) == ["a"]

        try:
            run(main())
        finally:
            process.kill()
            process.communicate()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_fork(self, path: Path) -> None:
        script = """
import threading
judge = Cached(Slow(lambda request: Reply((0.5,), raw=request.context)), sys.argv[1])
asyncio.run(judge.ask([support("before")]))
asking = threading.Thread(target=lambda: asyncio.run(judge.ask([support("during")])))
asking.start()
while not judge._flights:
    pass
children = []
for n in range(4):
    child = os.fork()
    if child == 0:
        replies = asyncio.run(judge.ask([support("before"), support("during"), support("after"), support(str(n))]))
        assert [reply.raw for reply in replies] == ["before", "during", "after", str(n)], replies
        os.write(1, ("asked " + " ".join(r.context for r in judge.judge.asked) + "\\n").encode())
        os._exit(0)
    children.append(child)
asking.join()
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
assert asyncio.run(judge.ask([support("after")]))[0].raw == "after"
print("asked", *(request.context for request in judge.judge.asked))
"""
        process = start(script, path)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        # Each child's list begins with "before", which its parent had asked.
        asked = [text for line in output.splitlines() for text in line.split()[1:] if text != "before"]
        assert sorted(asked) == ["0", "1", "2", "3", "after", "during"]
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]

    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
    def test_a_forked_child_inherits_no_open_file(self, path: Path) -> None:
        script = """
judge = Cached(FunctionJudge(lambda request: Reply((0.5,))), sys.argv[1])
asyncio.run(judge.ask([support("a")]))

def opened():
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(sys.argv[1]) for link in links if os.path.lexists(link))

before = opened()
child = os.fork()
if child == 0:
    os._exit(opened())
print(before > 0, os.waitpid(child, 0)[1])
"""
        assert start(script, path).communicate(timeout=PATIENCE)[0] == "True 0\n"


class TestTogether:
    def test_the_documented_stack(self, path: Path) -> None:
        def answer(request: Request) -> Reply | Missing:
            if request.context == "refused":
                return REFUSED
            times = sum(batch == [request.context] for batch in inner.batches)
            return DOWN if request.context == "flaky" and times < 3 else echo(request)

        inner = AsyncJudge(answer)
        judge = Cached(Retried(Limited(inner, 2), sleep=Naps()), path)
        requests = [support("a"), support("flaky"), support("refused"), support("a")]
        assert raws(ask(judge, *requests)) == ["a", "flaky", "refused", "a"]
        first = judge.usage
        assert (first.requests, first.calls, first.hits, first.failures) == (4, 5, 1, 1)
        assert raws(ask(judge, *requests)) == ["a", "flaky", "refused", "a"]
        more = judge.usage.since(first)
        assert (more.requests, more.calls, more.hits, more.failures) == (4, 1, 3, 1)

    def test_a_cache_inside_a_cache_adds_its_hits(self, path: Path, tmp_path: Path) -> None:
        inside = Cached(AsyncJudge(), tmp_path / "inside")
        ask(inside, support("a"))
        judge = Cached(inside, path)
        for _ in range(2):
            ask(judge, support("a"))
        assert (judge.usage.requests, judge.usage.calls, judge.usage.hits) == (2, 1, 2)
