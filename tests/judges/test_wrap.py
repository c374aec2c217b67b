from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Sequence
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
from capreward.errors import ComponentError, InputError
from capreward.judges import Judge, Reply, Request, Task
from capreward.judges.cache import Cached
from capreward.judges.wrap import Limited, Retried

SAID = Missing(Reason.UNPARSEABLE, "not JSON", "All is fine.")
SILENT = Missing(Reason.UNPARSEABLE, "the server answered without a message")
CUT = Missing(Reason.TRUNCATED, "no end", "All is")

WRAPPERS = [
    pytest.param(lambda judge, path: Cached(judge, path), id="Cached"),
    pytest.param(lambda judge, _path: Limited(judge, 3), id="Limited"),
    pytest.param(lambda judge, _path: Retried(judge), id="Retried"),
    pytest.param(lambda judge, _path: Retried(judge, batch_deadline=PATIENCE), id="Retried-deadline"),
    pytest.param(lambda judge, path: Cached(Retried(Limited(judge, 3)), path), id="all"),
]


@pytest.mark.parametrize("wrap_judge", WRAPPERS)
class TestAnyWrapper:
    def test_is_a_judge_that_can_do_what_the_inner_one_can(self, wrap_judge: Any, tmp_path: Path) -> None:
        inner = FakeJudge(echo, tasks=[Task.RATE, Task.SUPPORT])
        inner.images = True
        judge = wrap_judge(inner, tmp_path / "cache")
        assert isinstance(judge, Judge)
        assert (judge.name, judge.tasks, judge.images) == ("fake", {Task.RATE, Task.SUPPORT}, True)

    def test_keeps_the_order(self, wrap_judge: Any, tmp_path: Path) -> None:
        async def shuffled(request: Request) -> Reply:
            for _ in range(-int(request.context) % 7):
                await asyncio.sleep(0)
            return echo(request)

        judge = wrap_judge(AsyncJudge(shuffled), tmp_path / "cache")
        assert raws(ask(judge, *numbered(30))) == [str(n) for n in range(30)]

    def test_nothing_to_ask(self, wrap_judge: Any, tmp_path: Path) -> None:
        inner = AsyncJudge()
        assert ask(wrap_judge(inner, tmp_path / "cache")) == []
        assert inner.batches == []

    def test_passes_exceptions_on(self, wrap_judge: Any, tmp_path: Path) -> None:
        judge = wrap_judge(AsyncJudge(lambda _: InputError("no such model")), tmp_path / "cache")
        for _ in range(2):
            with pytest.raises(InputError, match="no such model"):
                ask(judge, *numbered(5))

    def test_wrong_number_of_replies(self, wrap_judge: Any, tmp_path: Path) -> None:
        class Short(FakeJudge):
            async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
                return []

        with pytest.raises(ComponentError, match="0 replies"):
            ask(wrap_judge(Short(), tmp_path / "cache"), support("a"))

    def test_one_failure_does_not_sink_the_batch(self, wrap_judge: Any, tmp_path: Path) -> None:
        judge = wrap_judge(
            AsyncJudge(lambda request: REFUSED if request.context == "1" else echo(request)), tmp_path / "cache"
        )
        assert raws(ask(judge, *numbered(3))) == ["0", "refused", "2"]

    def test_counts(self, wrap_judge: Any, tmp_path: Path) -> None:
        def answer(request: Request) -> Reply | Missing:
            inner.usage.input_tokens += 10
            inner.usage.output_tokens += 2
            inner.usage.seconds += 0.5
            inner.usage.money += 0.25
            return REFUSED if request.context == "3" else echo(request)

        inner = AsyncJudge(answer)
        judge = wrap_judge(inner, tmp_path / "cache")
        ask(judge, *numbered(4))
        usage = judge.usage
        assert (usage.requests, usage.calls, usage.hits, usage.failures) == (4, 4, 0, 1)
        assert (usage.input_tokens, usage.output_tokens, usage.seconds, usage.money) == (40, 8, 2.0, 1.0)

    def test_cancelling_stops_the_inner_judge(self, wrap_judge: Any, tmp_path: Path) -> None:
        async def never(request: Request) -> Reply:
            await asyncio.Event().wait()
            return echo(request)

        async def main() -> None:
            inner = AsyncJudge(never)
            task = asyncio.create_task(wrap_judge(inner, tmp_path / "cache").ask(numbered(3)))
            await until(lambda: inner.inside == 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert inner.inside == 0

        run(main())


class TestLimited:
    @pytest.mark.parametrize("limit", [1, 3, 100])
    def test_never_more_at_once(self, limit: int) -> None:
        async def slow(request: Request) -> Reply:
            for _ in range(5):
                await asyncio.sleep(0)
            return echo(request)

        inner = AsyncJudge(slow)
        judge = Limited(inner, limit)

        async def main() -> None:
            await asyncio.gather(judge.ask(numbered(20)), judge.ask(numbered(20)))

        run(main())
        assert inner.most == min(limit, 40)
        assert all(len(batch) == 1 for batch in inner.batches)

    def test_one_after_another_in_many_loops(self) -> None:
        judge = Limited(AsyncJudge(), 1)
        for _ in range(3):
            assert len(ask(judge, *numbered(5))) == 5  # more than the limit, so the semaphore is waited for
        gc.collect()
        assert len(judge._semaphores) == 0

    def test_many_loops_at_once(self) -> None:
        judge = Limited(AsyncJudge(lambda request: asyncio.sleep(0, echo(request))), 2)
        results: list[list[str]] = []
        threads = [threading.Thread(target=lambda: results.append(raws(ask(judge, *numbered(50))))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert results == [[str(n) for n in range(50)]] * 4
        assert judge.usage.requests == 200

    def test_a_failed_request_gives_its_place_back(self) -> None:
        inner = AsyncJudge(lambda request: ValueError("broken") if request.context == "0" else echo(request))
        judge = Limited(inner, 1)

        async def main() -> None:
            for _ in range(3):
                with pytest.raises(ValueError, match="broken"):
                    await judge.ask(numbered(4))
            assert raws(await judge.ask([support("1")])) == ["1"]

        run(main())

    def test_an_exception_stops_the_others(self) -> None:
        async def answer(request: Request) -> Reply:
            if request.context == "2":
                raise ValueError("broken")
            await asyncio.Event().wait()
            return echo(request)

        async def main() -> None:
            inner = AsyncJudge(answer)
            with pytest.raises(ValueError, match="broken"):
                await Limited(inner).ask(numbered(3))
            assert (inner.most, inner.inside) == (3, 0)

        run(main())

    def test_starts_evenly_spaced(self) -> None:
        starts: list[float] = []

        def answer(request: Request) -> Reply:
            starts.append(time.monotonic())
            return echo(request)

        ask(Limited(AsyncJudge(answer), per_second=200), *numbered(11))
        assert starts[-1] - starts[0] >= 9.5 / 200

    def test_the_clock_of_a_request_does_not_run_while_it_waits(self) -> None:
        async def answer(request: Request) -> Reply:
            if request.context in "01":
                await asyncio.Event().wait()
            return echo(request)

        inner = AsyncJudge(answer)
        replies = ask(Limited(inner, 1, timeout=0.1), *numbered(4))  # the last two wait for 0.2 s
        assert raws(replies) == ["timeout", "timeout", "2", "3"]
        assert replies[0] == Missing(Reason.TIMEOUT, "fake: no reply within 0.1 s")
        assert inner.inside == 0

    def test_a_timed_out_request_is_asked_again(self) -> None:
        async def answer(request: Request) -> Reply:
            if request.context == "1" and inner.batches.count(["1"]) < 3:
                await asyncio.Event().wait()
            return echo(request)

        inner = AsyncJudge(answer)
        assert raws(ask(Retried(Limited(inner, timeout=0.05), sleep=Naps()), *numbered(3))) == ["0", "1", "2"]
        assert sorted(inner.batches) == [["0"], ["1"], ["1"], ["1"], ["2"]]

    @pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"per_second": 0}, {"per_second": -1.0}, {"timeout": 0}])
    def test_wrong_limits(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(wrong))):
            Limited(FakeJudge(), **wrong)


class TestRetried:
    def test_asks_only_the_failed_ones_again(self) -> None:
        def answer(request: Request) -> Reply | Missing:
            first = len(inner.batches) == 1
            return DOWN if first and request.context in "13" else echo(request)

        inner = AsyncJudge(answer)
        judge = Retried(inner, sleep=Naps())
        assert raws(ask(judge, *numbered(5))) == ["0", "1", "2", "3", "4"]
        assert inner.batches == [["0", "1", "2", "3", "4"], ["1", "3"]]
        assert (judge.usage.requests, judge.usage.calls, judge.usage.failures) == (5, 7, 0)

    @pytest.mark.parametrize("reason", [Reason.TIMEOUT, Reason.SERVER, Reason.UNPARSEABLE, Reason.TRUNCATED])
    def test_reasons_that_may_pass(self, reason: Reason) -> None:
        inner = Failing(Missing(reason), echo(support("a")))
        assert raws(ask(Retried(inner, sleep=Naps()), support("a"))) == ["a"]
        assert len(inner.batches) == 2

    @pytest.mark.parametrize("reason", [Reason.REFUSED, Reason.NO_IMAGE])
    def test_reasons_that_stay(self, reason: Reason) -> None:
        inner, naps = Failing(Missing(reason)), Naps()
        assert ask(Retried(inner, sleep=naps), support("a")) == [Missing(reason)]
        assert (len(inner.batches), naps.seconds) == (1, [])

    def test_other_reasons_if_wanted(self) -> None:
        inner = Failing(REFUSED, DOWN)
        assert ask(Retried(inner, retry_on=[Reason.REFUSED], sleep=Naps()), support("a")) == [DOWN]
        assert len(inner.batches) == 2

    def test_an_incomplete_reply_is_unparseable(self) -> None:
        inner = Failing(Reply((), raw="hm"), Reply((2.0,)), Reply((1.0,)))
        assert ask(Retried(inner, sleep=Naps()), support("a")) == [Reply((1.0,))]
        assert len(inner.batches) == 3

    @pytest.mark.parametrize("options", [{}, {"batch_deadline": PATIENCE}])
    @pytest.mark.parametrize(
        ("outcomes", "standing"),
        [
            ([SAID, DOWN, CUT], SAID),
            ([CUT, SAID, DOWN], SAID),
            ([SAID, Missing(Reason.UNPARSEABLE, raw="again"), DOWN], Missing(Reason.UNPARSEABLE, raw="again")),
            ([CUT, SILENT, DOWN], DOWN),
            ([SAID, REFUSED], SAID),
        ],
    )
    def test_what_was_said_is_not_lost_to_a_later_failure(
        self, options: dict[str, Any], outcomes: list[Missing], standing: Missing
    ) -> None:
        inner = Failing(*outcomes)
        assert ask(Retried(inner, attempts=3, sleep=Naps(), **options), support("a")) == [standing]
        assert len(inner.batches) == len(outcomes)

    def test_what_was_said_is_not_lost_to_the_deadline(self) -> None:
        judge = Retried(Failing(SAID), base=1000.0, batch_deadline=0.1, rng=random.Random(0))
        assert ask(judge, support("a")) == [SAID]

    @pytest.mark.parametrize("attempts", [1, 2, 5])
    def test_gives_up_with_the_last_failure(self, attempts: int) -> None:
        inner, naps = Failing(*(Missing(Reason.SERVER, str(n)) for n in range(1, 9))), Naps()
        judge = Retried(inner, attempts, sleep=naps)
        assert ask(judge, support("a")) == [Missing(Reason.SERVER, str(attempts))]
        assert (len(inner.batches), len(naps.seconds)) == (attempts, attempts - 1)
        assert judge.usage.failures == 1

    def test_waits_grow_to_the_cap_with_full_jitter(self) -> None:
        naps = Naps()
        judge = Retried(Failing(DOWN), 7, base=0.5, cap=4.0, rng=random.Random(5), sleep=naps)
        ask(judge, support("a"))
        draws = random.Random(5)
        assert naps.seconds == [draws.uniform(0, longest) for longest in (0.5, 1.0, 2.0, 4.0, 4.0, 4.0)]

    def test_batch_deadline_keeps_what_is_answered(self) -> None:
        async def answer(request: Request) -> Reply | Missing:
            if request.context == "1":
                await asyncio.Event().wait()
            return DOWN if request.context == "2" else echo(request)

        inner = AsyncJudge(answer)
        judge = Retried(inner, attempts=1000, base=1000.0, cap=1000.0, batch_deadline=0.1, rng=random.Random(0))
        replies = ask(judge, *numbered(4))
        assert raws(replies) == ["0", "timeout", "timeout", "3"]
        assert replies[1] == Missing(Reason.TIMEOUT, "fake: batch not answered within 0.1 s")
        assert inner.inside == 0
        assert judge.usage.failures == 2

    def test_the_judges_own_timeout_error_is_not_swallowed(self) -> None:
        judge = Retried(Limited(AsyncJudge(lambda _: TimeoutError("mine")), timeout=PATIENCE), batch_deadline=PATIENCE)
        with pytest.raises(TimeoutError, match="mine"):
            ask(judge, support("a"))

    @pytest.mark.parametrize("wrong", ["attempts", "base", "cap", "batch_deadline"])
    def test_wrong_numbers(self, wrong: str) -> None:
        with pytest.raises(InputError, match=f"Retried: got {wrong}=0"):
            Retried(FakeJudge(), **{wrong: 0})
