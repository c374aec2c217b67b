"""`capreward curate` with a real vLLM that serves SmolLM2: what has to hold whatever so small a model writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from engines.vllm_server import Server, started

from capreward import Reason, Reply, Task, prompts, read_items, samples
from capreward.cli import main
from capreward.curate.captions import CheckpointDescriber
from capreward.curate.folder import First
from capreward.curate.pipeline import run
from capreward.curate.questions import RULES
from capreward.curate.references import References
from capreward.curate.sources import open_source
from capreward.judges import Judge, Request
from capreward.judges.cache import Cached
from capreward.judges.fake import FunctionJudge
from capreward.judges.openai import OpenAIJudge

pytestmark = pytest.mark.vllm

PHOTOS = 3
"""Of the nine; in two shards."""
MODEL = "openai/smollm2"
OF_ITS_WRITING = {"truncated", "unparseable", "no_reference"}
"""What may become of a photograph where the model writes badly; all else would be ours, or the server's."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """No reply is longer than these tokens: the model seldom comes to an end, and the command asks it four times."""
    yield from started("--max-model-len", "4096", "--override-generation-config", '{"max_new_tokens": 128}')


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn world's captioner. It has seen drawn scenes alone, and tells photographs as such."""
    from capreward.shapes.model import captioner, warm_up

    folder = tmp_path_factory.mktemp("models") / "captioner"
    model, processor = captioner(seed=0)
    warm_up(model, processor, steps=60, seed=0, progress=False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_questions(server: Server, tmp_path: Path) -> None:
    def curate() -> int:
        return command(server, tmp_path / "out", "questions", "--from-references", "--count", "1", "--draws", "2")

    sheet, records = once(server, tmp_path / "out", curate)
    has_prompts(sheet, Task.INQUIRE, Task.CHOOSE)
    roles = ("writer", "sight", "blind", "written_from", "seen_in")
    settings = sheet["settings"]
    assert [settings[role] for role in roles] == [MODEL, MODEL, MODEL, "references", "references"]

    candidates = [candidate for record in records.values() for candidate in record["candidates"]]
    counts = sheet["counts"]
    if records:
        assert counts["existing"] == 0
        assert counts["written"] == len(candidates) == counts["kept"] + counts["rejected"] + counts["missing"]
        assert counts["rejected"] == sum(counts[f"first_{rule}"] for rule in RULES)
    for item in read_items(tmp_path / "out" / "items"):
        kept = [each for each in records[item.id]["candidates"] if each["verdict"] == "kept"]
        assert [question.text for question in item.questions] == [each["text"] for each in kept]
        for question, each in zip(item.questions, kept, strict=True):
            assert question.options[question.answer] == each["options"][each["answer"]]
            unseen, guessed = each["rules"]["unseen"], each["rules"]["guessed"]
            assert (unseen["right"], unseen["draws"], guessed["right"], guessed["draws"]) == (2, 2, 0, 2)


def test_rubrics(server: Server, tmp_path: Path) -> None:
    captions: dict[tuple[str, str], str] = {(r.item.id, r.metadata["kind"]): r.caption for r in samples.photos()}
    for name, kinds in (("teachers", ("dense", "telegraphic")), ("student", ("false",))):
        rows = [{"id": id, "caption": text} for (id, kind), text in captions.items() if kind in kinds]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ("--teacher-captions", tmp_path / "teachers.jsonl", "--student-captions", tmp_path / "student.jsonl")

    def curate() -> int:
        judged = ("--judge", "openai:smollm2")
        return command(server, tmp_path / "out", "rubrics", *given, *judged, "--from-captions")

    sheet, records = once(server, tmp_path / "out", curate)
    has_prompts(sheet, Task.CRITICISE, Task.SUPPORT)
    settings = sheet["settings"]
    assert (settings["writer"], settings["judge"], settings["writer_sees"]) == (MODEL, MODEL, "captions")

    counts = sheet["counts"]
    if records:
        assert counts["written"] == sum(len(record["criteria"]) for record in records.values())
        assert counts["written"] == counts["kept"] + counts["merged"] + counts["rejected"]
        assert counts["teachers_failed"] == 0
    for item in read_items(tmp_path / "out" / "items"):
        record = records[item.id]
        assert [told["caption"] for told in record["teachers"]] == [
            captions[item.id, "dense"],
            captions[item.id, "telegraphic"],
        ]
        assert record["student"] == captions[item.id, "false"]
        kept = [each for each in record["criteria"] if each["verdict"] == "kept"]
        assert [criterion.text for criterion in item.rubric] == [each["criterion"] for each in kept]
        for each in kept:
            assert sum(p >= 0.5 for p in each["teachers"]) == 2
            assert each["student"] < 0.5


def test_references_of_given_texts(server: Server, tmp_path: Path) -> None:
    texts = {item.id: item.references[0] for item in read_items(samples.PHOTOS)}

    def answer(request: Request) -> Reply:
        (image,) = request.images
        assert isinstance(image, Path)
        return Reply(texts=(texts[image.stem],))

    describer = FunctionJudge(answer, tasks=[Task.DESCRIBE], images=True, name="given")
    records = references(server, tmp_path / "out", describer)
    for record in records.values():
        assert record["reference"] in record["old_references"]


def test_references_by_a_checkpoint(server: Server, tmp_path: Path, checkpoint: Path) -> None:
    describer = CheckpointDescriber(checkpoint, max_tokens=60)
    records = references(server, tmp_path / "out", describer)
    for record in records.values():
        assert record["reference"] not in record["old_references"]


def references(server: Server, out: Path, describer: Judge) -> Mapping[str, Any]:
    """The records of what `capreward curate references` would make, with a describer that no option names. Nothing is retried."""

    def curate() -> int:
        extractor = Cached(OpenAIJudge("smollm2", base_url=server.url), out.parent / "replies.sqlite")
        source = First(open_source(samples.PHOTOS), PHOTOS)
        summary = run(References(describer, extractor), source, out, shard_size=2, progress=False)
        return 0 if summary.items else 2

    sheet, records = once(server, out, curate, describer.name)
    has_prompts(sheet, Task.DESCRIBE, Task.EXTRACT)
    assert (sheet["settings"]["describer"], sheet["settings"]["extractor"]) == (describer.name, MODEL)
    for item in read_items(out / "items"):
        record = records[item.id]
        assert item.references == (record["reference"],)
        assert list(item.reference_units) == [statement["text"] for statement in record["statements"]]
    if records:
        written = sum(len(record["statements"]) for record in records.values())
        assert sheet["counts"] == {"written": written, "kept": written, "dropped": 0}
    return records


def command(server: Server, out: Path, what: str, *options: object) -> int:
    """Exit status of `capreward curate WHAT`."""
    source = (samples.PHOTOS, "--limit", PHOTOS, "--shard-size", 2, "--out", out)
    writer = ("--writer", "openai:smollm2", "--base-url", server.url)
    return main([str(each) for each in ("curate", what, *source, *writer, *options)])


def once(
    server: Server, out: Path, curate: Callable[[], int], *others: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Curates twice, and says what lies in `out`: the datasheet, and the records by id.

    Every photograph is there once, made or dead, with its reason; what is counted adds up; the second time asks nothing.

    Args:
        others: names of judges beside the server's.
    """
    ids = [item.id for item in read_items(samples.PHOTOS)][:PHOTOS]
    before = server.answered()
    status = curate()
    asked = server.answered() - before
    sheet = json.loads((out / "datasheet.json").read_bytes())
    items, records, dead = (rows(out, kind) for kind in ("items", "records", "dead"))

    assert sorted([*items, *dead]) == sorted(ids)
    assert list(records) == list(items)
    assert status == (0 if items else 2)
    # it may also tie between the letters, to the bit, whenever it is asked blindly
    ties = [row for row in dead.values() if row["reason"] == "refused" and "tied in all" in row["detail"]]
    assert {row["reason"] for row in dead.values() if row not in ties} <= OF_ITS_WRITING
    assert all(row["detail"] for row in dead.values())
    for item in read_items(out / "items") if items else ():
        assert isinstance(item.image, Path)
        assert item.image.samefile(samples.PHOTOS.parent / "photos" / f"{item.id}.jpg")

    assert sheet["finished"] is True
    assert (sheet["entries"], sheet["items"]) == (PHOTOS, len(items))
    assert sheet["dead"] == Counter(row["reason"] for row in dead.values())
    assert {Reason(reason) for reason in sheet["dead"]}.isdisjoint({Reason.SERVER, Reason.TIMEOUT})
    assert sheet["judges"] == sorted(sheet["usage"]) == sorted([MODEL, *others])
    usage = sheet["usage"][MODEL]
    assert usage["calls"] == asked > 0
    assert usage["requests"] <= usage["calls"] + usage["hits"]  # more where it was asked again
    assert usage["input_tokens"] > 0 < usage["output_tokens"]

    assert curate() == status
    again = json.loads((out / "datasheet.json").read_bytes())
    assert server.answered() - before == asked
    assert again["usage"] == sheet["usage"]
    assert again["runs"] == 2
    assert [rows(out, kind) for kind in ("items", "records", "dead")] == [items, records, dead]
    return sheet, records


def rows(out: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Of all shards, by id."""
    read = [json.loads(line) for path in sorted((out / kind).glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    assert len({row["id"] for row in read}) == len(read)
    return {row["id"]: row for row in read}


def has_prompts(sheet: Mapping[str, Any], *tasks: Task) -> None:
    assert sheet["settings"]["prompts"] == {task.value: prompts.load(task).hash for task in tasks}
    assert "prompts" not in sheet
