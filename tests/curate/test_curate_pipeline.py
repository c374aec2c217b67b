from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeJudge
from PIL import Image
from scripted import Endless, Scripted, every_seventh_fails, failing, judge, passed

from capreward import Item, Missing, Reason, Reply, read_items
from capreward.curate.pipeline import estimate, locked, opened, run
from capreward.curate.sources import Lines, Listed, Source, Webdataset, open_source
from capreward.curate.stage import Curated
from capreward.errors import ComponentError, InputError

HERE = Path(__file__).parent
TESTS = {"PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent)))}


def items(count: int) -> list[Item]:
    return [Item(id=f"item-{n}") for n in range(count)]


def rows(out: Path, kind: str) -> list[dict[str, Any]]:
    """Of all shards."""
    return [json.loads(line) for path in sorted((out / kind).glob("*.jsonl")) for line in path.open()]


def sheet(out: Path) -> Any:
    return json.loads((out / "datasheet.json").read_text())


def go(stage: Any, source: Source, out: Path, **options: Any) -> Any:
    return run(stage, source, out, **{"shard_size": 4, "progress": False, **options})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


class TestRun:
    def test_every_item_ends_in_one_place(self, out: Path) -> None:
        summary = go(Scripted(failing("item-2", "item-7")), Listed([*items(10), Item(id="item-1")]), out)
        assert [path.name for path in sorted((out / "items").iterdir())] == [
            "00000.jsonl",
            "00001.jsonl",
            "00002.jsonl",
        ]
        expected = [Item(id=f"item-{n}", references=(f"It is item-{n}.",)) for n in range(10) if n not in (2, 7)]
        assert [item for item in read_items(out / "items") if item.same_as(item)] == expected
        assert rows(out, "records") == [{"id": item.id, "made": item.id} for item in expected]
        assert rows(out, "dead") == [
            {"id": "item-2", "n": 2, "place": "item 2", "reason": "server", "detail": "out of order"},
            {"id": "item-7", "n": 3, "place": "item 7", "reason": "server", "detail": "out of order"},
            {
                "id": "item-1",
                "n": 2,
                "place": "item 10",
                "reason": "duplicate id",
                "detail": "an earlier row has this id",
            },
        ]
        assert (summary.items, summary.dead, summary.finished) == (8, {"server": 2, "duplicate id": 1}, True)
        assert summary.counts == {"made": 8, "letters": 48}
        assert summary.text().splitlines() == [
            "8 items; 3 dead letters (1 duplicate id, 2 server)",
            "8 made, 48 letters",
        ]

    def test_again_asks_nothing(self, out: Path) -> None:
        first = go(Scripted(failing("item-2")), Listed(items(10)), out)
        stage = Scripted()
        assert go(stage, Listed(items(10)), out).dead == first.dead
        assert stage.batches == []

    def test_an_empty_source(self, out: Path) -> None:
        summary = go(Scripted(), Listed([]), out)
        assert (summary.items, summary.dead, summary.finished) == (0, {}, True)
        assert sheet(out)["entries_per_process_second"] in (None, 0)

    def test_ids_of_any_script(self, out: Path) -> None:
        ids = ["猫", "ü/\u2028x", "𝄞", 'a"b\\', "../etc", "line\nbreak", "\u202eabc"]
        go(Scripted(failing("𝄞")), Listed([Item(id=id) for id in ids]), out)
        assert [item.id for item in read_items(out / "items")] == [id for id in ids if id != "𝄞"]
        assert [row["id"] for row in rows(out, "dead")] == ["𝄞"]

    def test_shards_overlap(self, out: Path) -> None:
        waiting = []

        class Together(Scripted):
            async def curate(self, items: Any) -> Any:
                import asyncio

                waiting.append(None)
                while len(waiting) < 3:
                    await asyncio.sleep(0.001)
                return await super().curate(items)

        go(Together(), Listed(items(12)), out, at_once=3)
        assert len(rows(out, "items")) == 12

    def test_memory_does_not_grow(self, out: Path) -> None:
        go(Scripted(), Endless(600), out / "small", shard_size=50)
        stage = Scripted()
        tracemalloc.start()
        go(stage, Endless(20_000), out / "large", shard_size=50)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(stage.asked) == 20_000  # of which the stage itself keeps the ids: 2 MB
        assert peak < 6e6


class TestImages:
    def test_paths_are_found_from_the_shards(self, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "in" / "deep").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "in" / "deep" / "a.png")
        monkeypatch.chdir(tmp_path)
        go(Scripted(), open_source("in"), Path("out"))
        assert rows(out, "items")[0]["image"] == "../../in/deep/a.png"
        (tmp_path / "moved").mkdir()
        for name in ("in", "out"):
            (tmp_path / name).rename(tmp_path / "moved" / name)
        monkeypatch.chdir("/")
        [item] = read_items(tmp_path / "moved" / "out" / "items")
        assert Image.open(item.image).size == (2, 2)  # type: ignore[arg-type]

    def test_a_link_to_the_folder_changes_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / "in" / "a.png")
        (tmp_path / "far" / "away").mkdir(parents=True)
        (tmp_path / "out").symlink_to(tmp_path / "far" / "away")
        go(Scripted(), open_source(tmp_path / "in"), tmp_path / "out")
        assert len(read_items(tmp_path / "out" / "items")) == len(read_items(tmp_path / "far/away/items")) == 1

    def test_those_of_a_tar_are_embedded(self, tmp_path: Path, out: Path) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (2, 2)).save(buffer, "PNG")
        with tarfile.open(tmp_path / "0.tar", "w") as archive:
            for name, content in {"a.png": buffer.getvalue(), "b.png": b"", "c.png": buffer.getvalue()}.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        torn = (tmp_path / "0.tar").read_bytes()[: 512 + 512 + 512 + 512 + 20]
        (tmp_path / "0.tar").write_bytes(torn)
        go(Scripted(), Webdataset([tmp_path / "0.tar"]), out)
        [item] = read_items(out / "items")
        assert item.image == buffer.getvalue()
        assert [(row["id"], row["reason"]) for row in rows(out, "dead")] == [("b", "unusable"), (None, "unusable")]


class TestKills:
    def test_whenever_it_is_killed(self, tmp_path: Path, out: Path) -> None:
        """Ten kills at random moments; then every id is there once, and what was made is what one run makes."""
        path = tmp_path / "items.jsonl"
        path.write_text("".join(json.dumps({"id": f"item-{n}"}) + "\n" for n in range(2000)))
        chance = random.Random(0)
        done = []
        for _ in range(10):
            child = subprocess.Popen(
                [sys.executable, str(HERE / "scripted.py"), str(path), str(out)],
                stdout=subprocess.PIPE,
                env={**os.environ, **TESTS},
            )
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.uniform(0.02, 0.15))
            child.kill()
            child.wait()
            child.stdout.close()
            done.append(len(list((out / "items").glob("*.jsonl"))) if out.exists() else 0)
            ended = [row["id"] for kind in ("items", "dead") for row in rows_of_done(out, kind)]
            assert max(Counter(ended).values(), default=1) == 1
        assert 0 < done[-1] < 400  # none of them came to the end
        assert len(set(done)) > 3
        stage = Scripted(every_seventh_fails, judges=(judge(),))
        summary = run(stage, Lines(path), out, shard_size=5, progress=False)
        assert summary.finished
        ended = Counter(row["id"] for kind in ("items", "dead") for row in rows(out, kind))
        assert ended == Counter(f"item-{n}" for n in range(2000))
        assert [row["id"] for row in rows(out, "records")] == [row["id"] for row in rows(out, "items")]
        assert summary.dead == {"refused": 286}
        assert summary.counts == {"made": 1714, "letters": sum(len(row["id"]) for row in rows(out, "items"))}
        assert len(stage.asked) == 2000 - 5 * done[-1]
        # calls are written down every five seconds and at a run's end, and these were killed before
        assert sheet(out)["usage"]["fake"]["calls"] >= len(stage.asked)
        assert sheet(out)["runs"] >= 2
        assert not list((out / "items").glob(".*"))

    def test_between_two_files_of_a_shard(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        replace, left = os.replace, [5]

        def dying(source: Any, target: Any) -> None:
            if left[0] == 0 and Path(target).parent.name in ("items", "records", "dead", "counts"):
                raise OSError("no room")
            left[0] -= Path(target).parent.name in ("items", "records", "dead", "counts")
            replace(source, target)

        for last in range(1, 14):
            left[0] = last
            folder = out / str(last)
            folder.mkdir(parents=True)
            go(Scripted(failing("item-1", "item-6")), Listed(items(8)), folder)
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", dying)
                try:
                    go(Scripted(), Listed(items(8)), folder, again=True, at_once=1)
                except OSError as error:
                    assert str(error) == "no room"  # noqa: PT017
            ended = [row["id"] for kind in ("items", "dead") for row in rows_of_done(folder, kind)]
            assert max(Counter(ended).values(), default=1) == 1
            assert go(Scripted(), Listed(items(8)), folder, again=True).dead == {}
            assert [item.id for item in read_items(folder / "items")] == [item.id for item in items(8)]


def rows_of_done(out: Path, kind: str) -> list[dict[str, Any]]:
    """Of the shards that are done."""
    names = sorted(path.name for path in (out / "items").glob("[0-9]*.jsonl"))
    return [json.loads(line) for name in names for line in (out / kind / name).open()]


class TestAgain:
    def test_what_may_pass_is_tried_again_and_nothing_else(self, out: Path) -> None:
        failures = {
            "item-1": Reason.SERVER,
            "item-5": Reason.REFUSED,
            "item-6": Reason.TIMEOUT,
            "item-9": Reason.REFUSED,
        }
        make = lambda item: Missing(failures[item.id]) if item.id in failures else passed(item)  # noqa: E731
        first = go(Scripted(make, judges=(judge(),)), Listed(items(12)), out)
        assert first.dead == {"server": 1, "refused": 2, "timeout": 1}
        assert first.usage["fake"].calls == 12
        stage = Scripted(failing("item-6"), judges=(judge(),))
        second = go(stage, Listed(items(12)), out, again=True)
        assert sorted(stage.batches) == [["item-1"], ["item-6"]]
        assert second.dead == {"refused": 2, "server": 1}
        assert (second.items, second.counts["made"], second.usage["fake"].calls) == (9, 9, 14)
        assert [row["id"] for row in rows(out, "items")] == [f"item-{n}" for n in range(12) if n not in (5, 6, 9)]
        assert [row["id"] for row in rows(out, "records")] == [row["id"] for row in rows(out, "items")]

    def test_an_image_that_came_late(self, tmp_path: Path, out: Path) -> None:
        (tmp_path / "items.jsonl").write_text('{"id": "a", "image": "a.png"}\n{"id": "b"}\n{"id": "b"}\n')
        assert go(Scripted(), Lines(tmp_path / "items.jsonl"), out).dead == {"unusable": 1, "duplicate id": 1}
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
        stage = Scripted()
        assert go(stage, Lines(tmp_path / "items.jsonl"), out, again=True).dead == {"duplicate id": 1}
        assert stage.asked == ["a"]

    def test_what_is_done_stays_though_its_image_goes(self, tmp_path: Path, out: Path) -> None:
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
        (tmp_path / "items.jsonl").write_text('{"id": "a", "image": "a.png"}\n{"id": "b"}\n')
        go(Scripted(failing("b")), Lines(tmp_path / "items.jsonl"), out)
        (tmp_path / "a.png").unlink()
        go(Scripted(), Lines(tmp_path / "items.jsonl"), out, again=True)
        assert [row["id"] for row in rows(out, "items")] == ["a", "b"]


class TestRefusals:
    def test_other_settings(self, out: Path) -> None:
        go(Scripted(threshold=0.5, prompts={"look": "a1", "inquire": "b2"}), Listed(items(3)), out)
        with pytest.raises(InputError) as error:
            go(Scripted(threshold=0.7, prompts={"look": "a1", "inquire": "c3"}), Listed(items(3)), out)
        assert str(error.value) == (
            f"{out}: was written with other settings (settings.threshold: was 0.5, is 0.7; "
            "settings.prompts.inquire: was 'b2', is 'c3'); name another folder"
        )

    def test_another_source_or_size(self, tmp_path: Path, out: Path) -> None:
        go(Scripted(), Listed(items(3)), out)
        with pytest.raises(InputError, match=r"source\.entries: was 3, is 4; source\.digest"):
            go(Scripted(), Listed(items(4)), out)
        with pytest.raises(InputError, match="shard_size: was 4, is 5"):
            go(Scripted(), Listed(items(3)), out, shard_size=5)

    def test_a_source_may_be_moved(self, tmp_path: Path, out: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n{"id": "a"}\n{"id": "c"}\n{"id": "d"}\n')
        go(Scripted(failing("b", "d")), Lines(tmp_path / "a.jsonl"), out)
        (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
        assert go(Scripted(), Lines(tmp_path / "b.jsonl"), out).items == 2
        stage = Scripted()
        assert go(stage, Lines(tmp_path / "b.jsonl"), out, again=True).dead == {"duplicate id": 1}
        assert sorted(stage.asked) == ["b", "d"]
        assert [row["id"] for row in rows(out, "items")] == ["a", "b", "c", "d"]

    def test_dead_letters_without_their_positions(self, out: Path) -> None:
        go(Scripted(failing("item-1")), Listed(items(3)), out)
        [row] = rows(out, "dead")
        del row["n"]
        (out / "dead" / "00000.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(InputError, match="of an earlier version; name another folder"):
            go(Scripted(), Listed(items(3)), out, again=True)

    def test_not_to_go_on(self, out: Path) -> None:
        go(Scripted(), Listed(items(3)), out)
        with pytest.raises(InputError, match="holds a run"):
            go(Scripted(), Listed(items(3)), out, resume=False)

    def test_two_runs_at_once(self, out: Path) -> None:
        out.mkdir()
        with locked(out / ".lock"), pytest.raises(InputError, match="another run is writing to it"):
            go(Scripted(), Listed(items(3)), out)
        assert list(out.iterdir()) == [out / ".lock"]
        assert go(Scripted(), Listed(items(3)), out).items == 3

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda _: "text", "got 'text', expected Curated or Missing"),
            (lambda _: Curated(Item(id="other"), {"made": ""}), "its id became 'other'"),
            (lambda item: Curated(item, {"made": "", "what": object()}), "a record that is not JSON-ready"),
        ],
    )
    def test_a_stage_that_breaks_its_contract(self, out: Path, make: Any, message: str) -> None:
        with pytest.raises(ComponentError, match=message):
            go(Scripted(make), Listed(items(3)), out)
        assert rows(out, "items") == rows(out, "dead") == []

    def test_a_bug_ends_the_run_and_what_was_done_stays(self, out: Path) -> None:
        broken = Scripted(lambda item: ZeroDivisionError("bug") if item.id == "item-6" else passed(item))
        with pytest.raises(ZeroDivisionError):
            go(broken, Listed(items(12)), out, at_once=1)
        assert [row["id"] for row in rows(out, "items")] == [f"item-{n}" for n in range(4)]
        assert sheet(out)["finished"] is False
        stage = Scripted()
        assert go(stage, Listed(items(12)), out).finished
        assert len(stage.asked) == 8

    def test_sizes(self, out: Path) -> None:
        with pytest.raises(InputError, match="shard_size=0"):
            go(Scripted(), Listed([]), out, shard_size=0)


class TestDatasheet:
    def test_says_who_made_what(self, out: Path) -> None:
        go(Scripted(failing("item-1"), judges=(judge(),), threshold=0.5), Listed(items(5)), out)
        found = sheet(out)
        assert {key: found[key] for key in ("stage", "settings", "judges", "items", "dead", "counts", "finished")} == {
            "stage": "scripted",
            "settings": {"threshold": 0.5},
            "judges": ["fake"],
            "items": 4,
            "dead": {"server": 1},
            "counts": {"made": 4, "letters": 24},
            "finished": True,
        }
        assert found["source"]["entries"] == 5
        assert found["usage"]["fake"]["calls"] == 5
        assert "prompts" not in found  # those that were used are among the stage's settings
        assert found["started"] <= found["ended"]

    def test_the_rate_is_of_all_processes_added_up(self, out: Path) -> None:
        go(Scripted(), Listed(items(6)), out)
        [one] = (out / "runs").iterdir()
        for name, seconds in ((one.name, 1.0), ("another.json", 3.0)):  # as of two workers side by side
            (out / "runs" / name).write_text(json.dumps({**json.loads(one.read_text()), "seconds": seconds}))
        with opened("scripted", Scripted().describe(), Listed(items(6)), out, 4) as work:
            assert work.summary().seconds == 4.0
        assert (sheet(out)["process_seconds"], sheet(out)["entries_per_process_second"]) == (4.0, 1.5)

    def test_a_judge_that_is_named_twice_costs_once(self, out: Path) -> None:
        one = judge()
        one.usage.calls = 100  # before the run
        summary = go(Scripted(judges=(one, one)), Listed(items(4)), out)
        assert summary.usage["fake"].calls == 8


class TestEstimate:
    @staticmethod
    def priced(cost: Any) -> FakeJudge:
        def answer(request: Any) -> Reply:
            priced.usage.money += cost(request.context)
            return Reply(texts=("yes",))

        priced = FakeJudge(answer)
        return priced

    def test_multiplies_a_sample(self, tmp_path: Path) -> None:
        stage = Scripted(failing("item-50"), judges=(self.priced(lambda _: 0.5),))
        bill = estimate(stage, Listed(items(100)), sample=10)
        assert [len(batch) for batch in stage.batches] == [1] * 10
        assert stage.asked == [f"item-{n}" for n in range(5, 100, 10)]
        assert (bill.entries, bill.sampled, bill.dead) == (100, 10, {})
        assert bill.total["calls"] == (100, 100, 100)
        assert bill.total["money"] == (50, 50, 50)
        assert "money: 50.00 (50.00 to 50.00)" in bill.text()

    def test_a_range(self) -> None:
        stage = Scripted(judges=(self.priced(lambda id: int(id.split("-")[1]) % 20 / 10),))
        low, expected, high = estimate(stage, Listed(items(1000)), sample=16).total["money"]
        assert 0 < low < expected < high
        assert low < 950 < high

    def test_of_all_it_is_certain(self) -> None:
        stage = Scripted(failing("item-0"), judges=(self.priced(lambda id: float(id[-1])),))
        bill = estimate(stage, Listed(items(3)), sample=16)
        assert bill.total["money"] == (3, 3, 3)
        assert bill.dead == {"server": 1}

    def test_of_one_nothing_is(self) -> None:
        stage = Scripted(judges=(judge(),))
        assert estimate(stage, Listed(items(3)), sample=1).total["calls"] == (1, 3, float("inf"))

    def test_that_asks_nobody(self) -> None:
        stage = Scripted(judges=(judge(),))
        assert estimate(stage, Listed(items(3)), sample=0).text() == "3 items, 0 of them tried"
        assert estimate(stage, Listed([]), sample=5).entries == 0
        assert stage.batches == []
        with pytest.raises(InputError, match="sample=-1"):
            estimate(stage, Listed([]), sample=-1)

    def test_faults_cost_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "items.jsonl").write_text('{"id": "a"}\n{\n')
        bill = estimate(Scripted(judges=(judge(),)), Lines(tmp_path / "items.jsonl"))
        assert (bill.total["calls"][1], bill.dead) == (1, {"unusable": 1})
