from __future__ import annotations

import asyncio
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeJudge
from PIL import Image

from capreward import Item, Missing, Reason, Reply, Request, Task, prompts, read_items, read_rollouts
from capreward.curate.captions import Captions, CheckpointDescriber, as_references
from capreward.curate.pipeline import run
from capreward.curate.sources import Listed, open_source
from capreward.curate.stage import Curated
from capreward.errors import InputError
from capreward.judges.base import Judge, Sampling
from capreward.judges.fake import FunctionJudge


def describer(answer: Any = Reply(texts=("A red cup.",))) -> FunctionJudge:  # noqa: B008
    return FunctionJudge(answer, tasks=[Task.DESCRIBE], images=True, name="teacher")


def curated(stage: Captions, *items: Item) -> list[Any]:
    return list(asyncio.run(stage.curate(items)))


class TestCaptions:
    def test_stand_in_metadata_and_in_a_record(self) -> None:
        item = Item(id="cup", image=b"png", references=("Old.",), metadata={"from": "web"})
        judge = describer()
        [made] = curated(Captions(judge, instruction="Look!", sampling=Sampling(0.7, 3)), item)
        assert made.item == item.model_copy(update={"metadata": {"from": "web", "caption": "A red cup."}})
        assert made.record == {
            "item": "cup",
            "caption": "A red cup.",
            "metadata": {"describer": "teacher", "words": 3},
        }
        assert judge.asked == [
            Request(Task.DESCRIBE, "", question="Look!", images=(b"png",), sampling=Sampling(0.7, 3))
        ]

    def test_become_references(self) -> None:
        item = Item(
            id="cup", references=("Old.",), reference_units=("It is old.",), metadata={"caption": "New.", "n": 1}
        )
        plain = Item(id="dog", references=("A dog.",))
        first, second = as_references([item, plain])
        assert (first.references, first.reference_units, first.metadata) == (("New.",), (), {"n": 1})
        assert second is plain

    def test_settings_and_the_prompt_are_described(self) -> None:
        described = Captions(describer(), sampling=Sampling(0.7, 3)).describe()
        assert described == {
            "describer": "teacher",
            "instruction": "Describe this image in detail.",
            "sampling": {"temperature": 0.7, "seed": 3},
            "prompts": {"describe": prompts.load(Task.DESCRIBE).hash},
        }

    def test_failures_are_missing(self) -> None:
        answers = {b"a": Missing(Reason.TIMEOUT), b"b": Reply(texts=(" ... ",)), b"c": Reply()}
        stage = Captions(describer(lambda request: answers[request.images[0]]))
        made = curated(stage, *(Item(id=key.decode(), image=key) for key in answers), Item(id="bare"))
        assert [each.reason for each in made] == ["timeout", "unparseable", "unparseable", "no_image"]

    def test_images_that_are_alike_are_asked_once(self) -> None:
        judge = describer()
        made = curated(Captions(judge), Item(id="a", image=b"x"), Item(id="b", image=b"x"))
        assert [each.item.id for each in made] == ["a", "b"]
        assert len(judge.asked) == 1

    @pytest.mark.parametrize(
        ("judge", "message"),
        [
            (FakeJudge(tasks=[Task.RATE]), "cannot describe"),
            (FakeJudge(tasks=[Task.DESCRIBE]), "sees no image;"),
        ],
    )
    def test_need_a_judge_that_describes(self, judge: Judge, message: str) -> None:
        with pytest.raises(InputError, match=message):
            Captions(judge)
        with pytest.raises(InputError, match="empty instruction"):
            Captions(describer(), instruction=" ")

    def test_a_run_is_read_as_rollouts(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        summary = run(
            Captions(describer()), Listed([Item(id=f"{n}", image=b"%d" % n) for n in range(5)]), out, shard_size=2
        )
        assert summary.counts == {"captions": 5, "words": 15}
        items = read_items(out / "items")
        rollouts = read_rollouts(out / "records", items=items)
        assert [(r.item.id, r.caption) for r in rollouts] == [(f"{n}", "A red cup.") for n in range(5)]
        assert rollouts[0].item.image == b"0"
        assert as_references(items)[0].references == ("A red cup.",)

    def test_a_server_that_fails_for_a_while(self, tmp_path: Path) -> None:
        up = [False]

        def answer(request: Request) -> Any:
            healthy = up[0] or request.images[0] in (b"0", b"3")
            return Reply(texts=("A red cup.",)) if healthy else Missing(Reason.SERVER, "503")

        judge, items = describer(answer), [Item(id=f"{n}", image=b"%d" % n) for n in range(5)]
        first = run(Captions(judge), Listed(items), tmp_path, shard_size=2, progress=False)
        assert (first.items, first.dead) == (2, {"server": 3})
        up[0], judge.asked = True, []
        assert run(Captions(judge), Listed(items), tmp_path, shard_size=2, progress=False).dead == {"server": 3}
        second = run(Captions(judge), Listed(items), tmp_path, shard_size=2, progress=False, again=True)
        assert (second.items, second.dead) == (5, {})
        assert sorted(request.images for request in judge.asked) == [(b"1",), (b"2",), (b"4",)]  # shards in any order
        assert second.usage["teacher"].calls == 8
        assert [item.id for item in read_items(tmp_path / "items")] == ["0", "1", "2", "3", "4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn world's captioner, after too few steps to say what is true."""
    from capreward.shapes.model import captioner, warm_up

    folder = tmp_path_factory.mktemp("models") / "captioner"
    model, processor = captioner(seed=0)
    warm_up(model, processor, steps=40, seed=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for n, colour in enumerate(("red", "green", "blue", "white", "black")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{n}.png")
    return folder


class TestCheckpoint:
    def test_captions_depend_on_the_request_alone(self, checkpoint: Path, drawn: Path) -> None:
        together = CheckpointDescriber(checkpoint, max_tokens=64)
        apart = CheckpointDescriber(checkpoint, max_tokens=64, batch=2)
        stage = [Captions(judge, sampling=Sampling(0.5, 1)) for judge in (together, apart)]
        items = [made for _, made in open_source(drawn).read(next(open_source(drawn).shards(5)))]
        first, second = (curated(each, *items) for each in stage)
        assert first == second
        assert any(isinstance(each, Curated) for each in first)
        usage = together.usage
        assert (usage.requests, usage.calls) == (5, 5)
        assert usage.input_tokens > 5
        assert usage.failures == sum(isinstance(each, Missing) for each in first)
        assert curated(Captions(together, sampling=Sampling(0.5, 2)), *items) != first  # another draw

    def test_without_temperature_the_seed_decides_nothing(self, checkpoint: Path, drawn: Path) -> None:
        judge = CheckpointDescriber(checkpoint, max_tokens=32)
        image = (drawn / "0.png").read_bytes()
        requests = [
            Request(Task.DESCRIBE, "", question="Go.", images=(image,), sampling=Sampling(0.0, n)) for n in (1, 2)
        ]
        first, second = asyncio.run(judge.ask(requests))
        assert first == second

    def test_a_broken_image_and_one_without_end(self, checkpoint: Path, drawn: Path) -> None:
        judge = CheckpointDescriber(checkpoint, max_tokens=1)
        png = (drawn / "0.png").read_bytes()
        images = [b"no image", png[:60], png]
        replies = asyncio.run(judge.ask([Request(Task.DESCRIBE, "", question="Go.", images=(i,)) for i in images]))
        assert [reply.reason for reply in replies if isinstance(reply, Missing)] == [
            "no_image",
            "no_image",
            "truncated",
        ]
        assert judge.usage.failures == 3

    def test_an_image_of_too_many_pixels_is_one_dead_letter(
        self, checkpoint: Path, drawn: Path, tmp_path: Path
    ) -> None:
        header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        items = [Item(id="bomb", image=bomb), Item(id="red", image=(drawn / "0.png").read_bytes())]
        judge = CheckpointDescriber(checkpoint, max_tokens=1)
        summary = run(Captions(judge), Listed(items), tmp_path, progress=False)
        assert summary.dead == {"no_image": 1, "truncated": 1}

    def test_its_name_is_that_of_its_weights(self, checkpoint: Path, tmp_path: Path) -> None:
        judge = CheckpointDescriber(checkpoint)
        assert judge.name.startswith("checkpoint/captioner@")
        assert Captions(judge).describe()["prompts"] == {}  # it takes the instruction alone
        assert CheckpointDescriber(checkpoint).name == judge.name
        assert CheckpointDescriber(checkpoint, max_tokens=9).name != judge.name

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such folder"):
            CheckpointDescriber(tmp_path / "nowhere")
        with pytest.raises(InputError, match="cannot be loaded as a vision-language model"):
            CheckpointDescriber(tmp_path)
        with pytest.raises(InputError, match="batch=0"):
            CheckpointDescriber(tmp_path, batch=0)
