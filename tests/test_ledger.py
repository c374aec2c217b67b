from __future__ import annotations

import errno
import functools
import json
import logging
import multiprocessing
import random
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import FakeComponent

from capreward import Condition, Item, LengthMask, Missing, QAUtility, Reason, RewardSuite, Rollout, Score, ScoreTable
from capreward.errors import InputError
from capreward.judges.fake import FunctionJudge
from capreward.ledger import BLOCK, Ledger, LedgerWriter, describe

DOWN = Missing(Reason.UNPARSEABLE, "no JSON", raw="I would rather not")
CAPTIONS = ("A cup.", "A white cup on a table.", "", "Ein Löffel liegt neben der Tasse \ud800.", "cup " * 40)


def scored(rollout: Rollout) -> Any:
    if "Löffel" in rollout.caption:
        return DOWN
    return Score(1 / 3 if "white" in rollout.caption else 0.1, "counted", {"claims": ["a", "b"], "ok": True})


def make_suite(folder: Path | None, **options: Any) -> RewardSuite:
    settings: dict[str, Any] = {
        "weights": {"b": 0.5},
        "gates": [LengthMask("b", low=0.5, high=2.0), Condition("a", on="b", at_least=0.05)],
        "spare": False,
    }
    return RewardSuite(
        {"a": FakeComponent(scored), "b": FakeComponent(lambda rollout: len(rollout.caption) % 10 / 10)},
        ledger=LedgerWriter(folder) if folder else None,
        **{**settings, **options},
    )


def make_rollouts(items: int = 3, **metadata: Any) -> list[Rollout]:
    return [
        Rollout(
            item=Item(id=f"item {n}", references=("A white cup stands on a table.",), image=b"\x89PNG" + bytes([n])),
            caption=caption,
            metadata=metadata,
        )
        for n in range(items)
        for caption in CAPTIONS
    ]


def write(folder: Path, *batches: list[Rollout], **options: Any) -> list[ScoreTable]:
    suite = make_suite(folder, **options)
    return [suite.score(rollouts) for rollouts in batches]


class TestWriting:
    def test_every_number_comes_back_to_the_bit(self, tmp_path: Path) -> None:
        tables = write(tmp_path, make_rollouts(3), make_rollouts(2))
        rows = Ledger(tmp_path).rows()
        assert rows.names == ("a", "b")
        np.testing.assert_array_equal(rows.raw, np.vstack([table.raw for table in tables]))
        np.testing.assert_array_equal(rows.values, np.vstack([table.values for table in tables]))
        assert rows.weights.tolist() == [1.0, 0.5]
        assert np.isnan(rows.values).any()
        assert (rows.raw != rows.values).any()

    def test_groups_lie_in_batches(self, tmp_path: Path) -> None:
        write(tmp_path, make_rollouts(2), make_rollouts(2))
        rows = Ledger(tmp_path).rows()
        assert rows.batch.tolist() == [0] * 10 + [1] * 10
        assert rows.group.tolist() == [*[0] * 5, *[1] * 5, *[2] * 5, *[3] * 5]
        assert rows.item.tolist() == [*[0] * 5, *[1] * 5] * 2

    def test_a_step_is_a_batch_however_many_calls_scored_it(self, tmp_path: Path) -> None:
        first, second = make_rollouts(2, step=3)[:5], make_rollouts(2, step=3)[5:]
        write(tmp_path, first, second, make_rollouts(1, step=4), make_rollouts(1, step="four"))
        ledger = Ledger(tmp_path)
        assert ledger.rows().batch.tolist() == [0] * 10 + [1] * 5 + [2] * 5
        assert [record["step"] for record in ledger.records()][::5] == [3, 3, 4, None]

    def test_a_batch_may_have_a_name(self, tmp_path: Path) -> None:
        write(tmp_path, *(make_rollouts(1, step=3, batch=name) for name in ("a", "b", "a")))
        assert Ledger(tmp_path).rows().batch.tolist() == [0] * 5 + [1] * 5 + [0] * 5

    def test_lengths(self, tmp_path: Path) -> None:
        write(tmp_path, [*make_rollouts(1), Rollout(item=Item(id="bare"), caption="A cup.")])
        rows = Ledger(tmp_path).rows()
        assert rows.length.tolist() == [2, 6, 0, 6, 40, 2]
        np.testing.assert_array_equal(rows.ratio, [2 / 7, 6 / 7, 0, 6 / 7, 40 / 7, np.nan])
        assert rows.decided.tolist() == [False, False, True, False, False, False]

    def test_a_record_says_why(self, tmp_path: Path) -> None:
        write(tmp_path, make_rollouts(1, kind="x", path=Path("y")))
        short, good, empty, missing, long = Ledger(tmp_path).records()
        assert good["caption"] == CAPTIONS[1]
        assert good["metadata"] == {"kind": "x", "path": "y"}
        assert good["evidence"]["a"] == {"claims": ["a", "b"], "ok": True}
        assert good["why"]["a"] == "counted"
        assert good["missing"] == {"a": None, "b": None}
        assert missing["missing"]["a"] == "unparseable"
        assert missing["unread"] == {"a": "I would rather not"}
        assert empty["why"]["a"] == "empty caption"
        assert short["gated"]["b"] == "length 0.29 x reference, allowed 0.5 to 2"
        assert (long["raw"]["b"], long["value"]["b"]) == (0.0, 0.0)

    def test_suites_and_items_are_written_once(self, tmp_path: Path) -> None:
        write(tmp_path, make_rollouts(2), make_rollouts(2))
        write(tmp_path, make_rollouts(3))
        write(tmp_path, make_rollouts(3), weights={"a": 2})
        assert len((tmp_path / "items.jsonl").read_text().splitlines()) == 3
        first, second = Ledger(tmp_path).suites
        assert first["weights"] == {"a": 1.0, "b": 0.5}
        assert second["weights"] == {"a": 2.0, "b": 1.0}
        assert first["components"]["a"] == {"kind": "FakeComponent", "name": "fake", "judge": None, "options": {}}
        assert first["gates"][0] == {
            "kind": "LengthMask",
            "target": "b",
            "count": "capreward.records.count_words",
            "low": 0.5,
            "high": 2.0,
        }
        assert len(first["prompts"]["support"]) == 12

    def test_items_come_back(self, tmp_path: Path) -> None:
        image = tmp_path / "cup.png"
        given = Item(
            id="x", references=("A cup.",), questions=({"text": "?", "options": ["a", "b"], "answer": 0},), image=image
        )
        write(tmp_path, [*make_rollouts(1), Rollout(item=given, caption="A cup.")])
        items = Ledger(tmp_path).items()
        assert items["x"] == given
        assert items["item 0"] == Item(id="item 0", references=("A white cup stands on a table.",))
        assert "image_hash" in (tmp_path / "items.jsonl").read_text()

    def test_components_of_different_suites(self, tmp_path: Path) -> None:
        write(tmp_path, make_rollouts(1))
        suite = RewardSuite({"b": FakeComponent(0.5), "c": FakeComponent(1.0)}, ledger=LedgerWriter(tmp_path))
        suite.score(make_rollouts(1))
        rows = Ledger(tmp_path).rows()
        assert rows.names == ("a", "b", "c")
        assert np.isnan(rows.values[5:, 0]).all()
        assert np.isnan(rows.values[:5, 2]).all()
        assert rows.weights.tolist() == [0.0, 1.0, 1.0]

    def test_writers_with_files_of_their_own(self, tmp_path: Path) -> None:
        for writer in ("0", "1"):
            make = make_suite(None)
            make.ledger = LedgerWriter(tmp_path, writer=writer)
            make.score(make_rollouts(1, step=1))
        ledger = Ledger(tmp_path)
        assert [path.name for path in ledger.files] == ["rollouts-0.jsonl", "rollouts-1.jsonl"]
        assert ledger.rows().batch.tolist() == [0] * 10

    def test_positions_cut_back(self, tmp_path: Path) -> None:
        suite = make_suite(tmp_path)
        suite.score(make_rollouts(1, step=1))
        positions = suite.ledger.positions()  # type: ignore[union-attr]
        before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
        suite.score(make_rollouts(3, step=2))
        LedgerWriter(tmp_path, positions=positions)
        LedgerWriter(tmp_path, positions={name: length + 9 for name, length in positions.items()})  # nothing to cut
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before
        again = RewardSuite(suite.components, ledger=LedgerWriter(tmp_path, positions={}))
        again.score(make_rollouts(1))
        assert len(list(Ledger(tmp_path).records())) == 5

    def test_a_line_that_is_too_long(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        endless = [
            Rollout(item=Item(id="x"), caption="A white cup. " * 200_000),
            Rollout(item=Item(id="x"), caption="A cup."),
        ]
        with caplog.at_level(logging.WARNING, "capreward"):
            write(tmp_path, endless, gates=())
        assert "x#0: " in caplog.text
        long, short = Ledger(tmp_path).records()
        assert long["caption"].startswith("A white cup.")
        assert (long["length"], long["raw"]["a"], long["evidence"]) == (600_000, 1 / 3, {})
        assert short["evidence"]["a"]["ok"]
        assert len(Ledger(tmp_path).rows()) == 2

    @pytest.mark.parametrize(
        "score",
        [
            Score(0.5, "why \ud800", {"claim": "\udc80"}),
            Missing(Reason.UNPARSEABLE, "\ud800", raw="a\0b\ud800"),
            Score(0.5, "\x01" * 3_000_000),
            Missing(Reason.UNPARSEABLE, "detail " * 500_000),
        ],
        ids=["surrogates", "surrogates in a reply", "an endless why", "an endless detail"],
    )
    def test_whatever_a_judge_says_can_be_read(self, score: Any, tmp_path: Path) -> None:
        suite = RewardSuite({"a": FakeComponent(lambda _: score)}, ledger=LedgerWriter(tmp_path))
        suite.score(make_rollouts(1))
        ledger = Ledger(tmp_path)
        assert len(ledger.rows()) == len(list(ledger.records())) == 5
        assert max(map(len, (tmp_path / "rollouts.jsonl").read_bytes().splitlines(keepends=True))) <= BLOCK

    def test_metadata_may_hold_anything(self, tmp_path: Path) -> None:
        odd = {"array": np.arange(2), "bytes": b"\xff", ("a", 1): {2: [{(3,): "x"}]}, "half": "\ud800"}
        item = Item.model_construct(id="x", references=("A cup." * 500_000,), metadata=odd)
        write(tmp_path, [Rollout.model_construct(item=item, caption="A cup.", id=None, group="x", metadata=odd)])
        ledger = Ledger(tmp_path)
        (record,) = ledger.records()
        assert (
            record["metadata"]
            == ledger.items()["x"].metadata
            == {
                "array": "[0 1]",
                "bytes": r"b'\xff'",
                "('a', 1)": {"2": [{"(3,)": "x"}]},
                "half": "?",
            }
        )
        assert ledger.items()["x"].references == item.references  # items are not cut

    @pytest.mark.parametrize(("given", "kept"), [(np.int64(3), 3), (True, None), (1 << 63, None), (1.5, None)])
    def test_a_step_that_is_none(self, given: object, kept: int | None, tmp_path: Path) -> None:
        write(tmp_path, make_rollouts(1, step=given))
        assert {row["step"] for row in Ledger(tmp_path).records()} == {kept}
        assert len(Ledger(tmp_path).to_pandas(["step"])) == 5

    def test_a_way_of_counting_without_a_name(self, tmp_path: Path) -> None:
        write(tmp_path, make_rollouts(1), gates=[LengthMask("b", count=functools.partial(len))])
        assert Ledger(tmp_path).suites[0]["count"] == "functools.partial"

    def test_a_disk_that_was_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        suite = make_suite(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr("capreward.ledger._end", full)
            with pytest.raises(OSError, match="No space left"):
                suite.score(make_rollouts(1))
        suite.score(make_rollouts(1))
        ledger = Ledger(tmp_path)
        assert (len(ledger.suites), len(ledger.items()), len(ledger.rows())) == (1, 1, 5)

    def test_a_folder_that_cannot_be_one(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"ledger: got .*, a file, expected a folder"):
            LedgerWriter(tmp_path / "file")
        with pytest.raises(InputError, match=r"no ledger; expected a folder with rollouts\.jsonl"):
            Ledger(tmp_path)


def write_many(folder: Path, who: int) -> None:
    for step in range(20):
        write(folder, make_rollouts(2, who=who, step=step))


def peak() -> int:
    """Memory that this process has held at most, in KiB; getrusage would begin with what its parent held."""
    [line] = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(line)


def measure(folder: Path, peaks: Any) -> None:
    before = peak()
    count = sum(len(batch) for batch in Ledger(folder).batches(["id", "why", "evidence"]))
    peaks.put((count, peak() - before))


class TestSharing:
    def test_processes_share_a_file(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=write_many, args=(tmp_path, who)) for who in range(3)]
        for worker in workers:
            worker.start()
        seen = 0
        while any(worker.is_alive() for worker in workers):  # and it can be read meanwhile
            if list(tmp_path.glob("rollouts*.jsonl")) and (tmp_path / "suites.jsonl").exists():
                count = sum(1 for _ in Ledger(tmp_path).records())
                assert count >= seen
                seen = count
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        ledger = Ledger(tmp_path)
        assert len(list(ledger.records())) == len(ledger.rows()) == 3 * 20 * 10
        assert not ledger.lost()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a ledger."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder, make_rollouts(3), make_rollouts(2))
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


class TestCut:
    """What a process leaves behind that dies, or a disk that is full."""

    def test_at_a_thousand_bytes(self, whole: dict[str, bytes], tmp_path: Path) -> None:
        chance = random.Random(0)
        content = whole["rollouts.jsonl"]
        for name, text in whole.items():
            (tmp_path / name).write_bytes(text)
        for cut in [0, 1, len(content) - 1, len(content), *(chance.randrange(len(content)) for _ in range(1000))]:
            (tmp_path / "rollouts.jsonl").write_bytes(content[:cut])
            *lines, rest = content[:cut].split(b"\n")
            records = [json.loads(line) for line in lines]
            if cut + 1 < len(content) and content[cut : cut + 1] == b"\n" and rest:
                records, rest = [*records, json.loads(rest)], b""  # whole, but for the end of its line
            elif cut == len(content) - 1:
                records, rest = [*records, json.loads(rest)], b""
            ledger = Ledger(tmp_path)
            assert [record["id"] for record in ledger.records()] == [record["id"] for record in records]
            assert ledger.lost() == ({"rollouts.jsonl": len(rest)} if rest else {})
            if records:
                assert len(ledger.rows()) == len(records)
            else:
                with pytest.raises(InputError, match="holds no rollouts"):
                    ledger.rows()

    @pytest.mark.parametrize("name", ["suites.jsonl", "items.jsonl", "rollouts.jsonl"])
    @pytest.mark.parametrize("left_out", [1, 2, 40])
    def test_goes_on_after_a_cut(
        self, name: str, left_out: int, whole: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for each, text in whole.items():
            (tmp_path / each).write_bytes(text[:-left_out] if each == name else text)
        with caplog.at_level(logging.WARNING, "capreward"):
            write(tmp_path, make_rollouts(3))
        ledger = Ledger(tmp_path)
        assert not ledger.lost()
        assert len(ledger.rows()) == 40 - (name == "rollouts.jsonl" and left_out > 1)
        assert len(ledger.items()) == 3
        assert ledger.suites[-1]["weights"] == {"a": 1.0, "b": 0.5}
        assert ("cut off a line without its end" in caplog.text) == (left_out > 1)

    def test_without_the_suites(
        self, whole: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name, text in whole.items():
            (tmp_path / name).write_bytes(text if name == "rollouts.jsonl" else text[:-40])
        with pytest.raises(InputError, match=r"suites\.jsonl: holds no suite"):
            Ledger(tmp_path).rows()
        write(tmp_path, make_rollouts(1), weights={"a": 2})
        with caplog.at_level(logging.WARNING, "capreward"):
            assert len(Ledger(tmp_path).rows()) == 30
        assert "25 rollouts are of a suite that suites.jsonl does not hold" in caplog.text

    def test_a_line_that_is_none(self, whole: dict[str, bytes], tmp_path: Path) -> None:
        for name, text in whole.items():
            (tmp_path / name).write_bytes(text)
        (tmp_path / "rollouts.jsonl").write_bytes(b"\0\0\0\n" + whole["rollouts.jsonl"])
        ledger = Ledger(tmp_path)
        with pytest.raises(InputError, match=r"rollouts\.jsonl: a line is no record of a ledger"):
            ledger.rows()
        with pytest.raises(InputError, match=r"rollouts\.jsonl, line 1: no record of a ledger"):
            list(ledger.records())
        (tmp_path / "suites.jsonl").write_bytes(whole["suites.jsonl"] + b"{}\n")
        with pytest.raises(InputError, match=r"suites\.jsonl, line \d+: no record of a ledger \(no components\)"):
            Ledger(tmp_path)


class TestReading:
    def test_pandas(self, tmp_path: Path) -> None:
        (table,) = write(tmp_path, make_rollouts(2))
        frame = Ledger(tmp_path).to_pandas()
        np.testing.assert_array_equal(frame["value.a"], table.values[:, 0])
        assert frame["missing.a"].tolist()[3] == "unparseable"
        assert frame["caption"].tolist()[1] == CAPTIONS[1]
        assert list(Ledger(tmp_path).to_pandas(["id", "raw"])) == ["id", "raw.a", "raw.b"]

    def test_parquet_and_dataset(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (table,) = write(tmp_path / "ledger", make_rollouts(2))
        dataset = Ledger(tmp_path / "ledger").to_dataset(tmp_path / "rollouts.parquet")
        assert pq.read_metadata(tmp_path / "rollouts.parquet").num_rows == len(dataset) == 10
        assert dataset[1]["value.a"] == table.values[1, 0]
        assert json.loads(dataset[1]["evidence"])["a"]["claims"] == ["a", "b"]

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        write(tmp_path, make_rollouts(3))
        line = (tmp_path / "rollouts.jsonl").read_bytes().splitlines()[1] + b"\n"
        (tmp_path / "rollouts.jsonl").write_bytes(line * 500_000)
        context = multiprocessing.get_context("spawn")  # what else a process holds would be counted where it is forked
        peaks = context.SimpleQueue()
        process = context.Process(target=measure, args=(tmp_path, peaks))
        process.start()
        process.join()
        assert process.exitcode == 0
        count, kib = peaks.get()
        assert count == 500_000
        assert kib < 0.6 * (tmp_path / "rollouts.jsonl").stat().st_size / 1024  # and as much for a file of any size


class TestDescribe:
    def test_tells_two_of_a_kind_apart(self) -> None:
        judge = FunctionJudge()
        ways: list[dict[str, Any]] = [{}, {"draws": 4}, {"shuffle": False}, {"score": "probability"}, {"seed": 1}]
        said = [json.dumps(describe(RewardSuite({"qa": QAUtility(judge, **options)}))) for options in ways]
        assert len(set(said)) == len(ways)

    def test_takes_of_a_component_what_it_names_alone(self) -> None:
        component = FakeComponent(scored)
        component.api_key = "secret"  # type: ignore[attr-defined]
        assert describe(RewardSuite({"a": component}))["components"]["a"]["options"] == {}
        component.recorded = {"depth": 3}  # type: ignore[attr-defined]
        described = describe(RewardSuite({"a": component}))
        assert described["components"]["a"]["options"] == {"depth": 3}
        assert "secret" not in json.dumps(described)
