"""`capreward curate` and `capreward annotate`, end to end against a scripted server."""

from __future__ import annotations

import json
import pickle
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judges.chat_server import Body, ChatServer, completion, serving
from PIL import Image

from capreward import Item, Reply, Task, read_items
from capreward.cli import main
from capreward.curate import command, pipeline
from capreward.curate.command import GivenCaption, GivenCaptions, Role, Servers, make_judges
from capreward.curate.folder import First, open_any
from capreward.curate.sources import Listed
from capreward.errors import InputError, missing_extra
from capreward.judges.fake import FunctionJudge
from capreward.judges.openai import OpenAIJudge

ASKS = {
    "What colour is the ball?": ["red", "blue", "green", "white"],
    "Where does the ball lie?": ["on the grass", "in a tree", "on a roof", "in a box"],
}
"""Questions that the server writes, the right option first. It knows the second answer without the image."""


def kind(body: Body) -> str:
    """What a call asks for."""
    if "response_format" in body:
        return str(body["response_format"]["json_schema"]["name"])
    sees = not isinstance(body["messages"][-1]["content"], str)
    return ("look" if sees else "choose") if body["max_tokens"] == 4 else "describe"


def answer(body: Body) -> Any:
    """A good server: a function of the prompt alone."""
    content = body["messages"][-1]["content"]
    prompt = content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")
    match kind(body):
        case "describe":
            said = f"A red ball on the grass, says {body['model']}: {zlib.crc32(json.dumps(content).encode())}."
        case "extract":
            said = json.dumps({"statements": ["The ball is red.", "The ball lies on the grass."]})
        case "inquire":
            asks = [{"kind": "object", "question": q, "options": o, "answer": o[0]} for q, o in ASKS.items()]
            said = json.dumps({"questions": asks})
        case "criticise":
            criterion = {"criterion": "Says that the ball is red.", "severity": "critical", "teachers": [1, 2]}
            said = json.dumps({"criteria": [criterion]})
        case "verify":
            verdicts = [{"number": n, "why": "w", "true": n == 1, "pointable": True} for n in (1, 2)]
            said = json.dumps({"verdicts": verdicts})
        case "support":
            said = json.dumps({"verdicts": [{"number": 1, "why": "w", "holds": "student" not in prompt}]})
        case asked:
            options = dict(re.findall(r"^([A-D])\. (.+)$", prompt, re.MULTILINE))
            knows = asked == "look" or "Where" in prompt
            right = {texts[0] for texts in ASKS.values()}
            said = next(letter for letter, text in options.items() if text in right) if knows else "A"
    return completion(said)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(answer) as server:
        yield server


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(5):
        Image.new("RGB", (8, 8), (40 * n, 0, 0)).save(folder / f"{n}.png")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def questions(*arguments: object) -> int:
    return run("curate", "questions", *arguments, "--alike", "none")


def asked(server: ChatServer) -> Counter[str]:
    return Counter(kind(body) for body in server.asked)


def test_each_takes_up_what_the_one_before_has_made(
    server: ChatServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ("--base-url", server.url)
    assert run("annotate", photos, "--captioner", "openai:student", *url, "--out", "captions") == 0
    assert asked(server) == {"describe": 5}
    said = capsys.readouterr().out
    assert "made" in said
    assert "openai/student: 5 requests: 5 calls" in said
    assert f"wrote {Path('captions/items')}, " in said

    models = ("--describer", "openai:big", "--extractor", "openai:big", "--verifier", "openai:big")
    assert run("curate", "references", "captions", *models, *url, "--out", "references") == 0
    assert questions("references", "--writer", "openai:big", *url, "--draws", "4", "--out", "questions") == 0
    items = read_items(tmp_path / "questions" / "items")
    assert [item.id for item in items] == [f"{n}.png" for n in range(5)]
    assert items[0].image == tmp_path / "questions" / "items" / "../../photos/0.png"
    assert "says big: " in items[0].references[0]
    assert len({item.references for item in items}) == 5
    assert items[0].reference_units == ("The ball is red.",)
    assert "says student: " in items[0].metadata["caption"]
    assert [question.text for question in items[0].questions] == ["What colour is the ball?"]
    assert {"look": 40, "choose": 8}.items() <= asked(server).items()
    said = capsys.readouterr().out
    assert re.search(r"^ *first guessed +5 *$", said, re.MULTILINE)

    teachers = ("--teachers", "openai:one", "openai:two", "--student-captions", "captions")
    judges = ("--writer", "openai:big", "--judge", "openai:big")
    assert (
        run("curate", "rubrics", "questions", *teachers, *judges, *url, "--weights", "critical=5", "--out", "all") == 0
    )
    (first, *_) = read_items(tmp_path / "all" / "items")
    assert [(criterion.text, criterion.weight) for criterion in first.rubric] == [("Says that the ball is red.", 5.0)]
    assert first.questions == items[0].questions
    sheet = json.loads((tmp_path / "all" / "datasheet.json").read_text())
    assert sheet["settings"]["student"].startswith("given captions ")
    assert (sheet["finished"], sheet["items"]) == (True, 5)


def test_given_captions_of_teachers(server: ChatServer, photos: Path, tmp_path: Path) -> None:
    rows = [{"id": f"{n}.png", "captions": ["A red ball.", "Red."]} for n in range(5)]
    (tmp_path / "teachers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "student.jsonl").write_text('{"id": "0.png", "caption": "A student writes."}\n')
    given = ("--teacher-captions", "teachers.jsonl", "--student-captions", "student.jsonl")
    judges = ("--writer", "openai:m", "--judge", "openai:m", "--base-url", server.url)
    assert run("curate", "rubrics", photos, *given, *judges, "--out", "out") == 0
    assert len(read_items(tmp_path / "out" / "items")) == 1
    assert asked(server) == {"criticise": 1, "support": 3}
    sheet = json.loads((tmp_path / "out" / "datasheet.json").read_text())
    assert sheet["dead"] == {"no_reference": 4}


class TestRun:
    def options(self, server: ChatServer) -> tuple[str, ...]:
        models = ("--describer", "openai:m", "--extractor", "openai:m", "--prices", "1000", "10000")
        return (*models, "--base-url", server.url, "--out", "out")

    def test_nothing_is_asked_twice(self, server: ChatServer, photos: Path, tmp_path: Path) -> None:
        command = ("curate", "references", photos, *self.options(server), "--shard-size", "2")
        assert run(*command) == 0
        assert run(*command) == 0
        assert asked(server) == {"describe": 5, "extract": 5}
        shards = sorted((tmp_path / "out" / "items").iterdir())
        assert len(shards) == 3
        before = shards[1].read_text()
        shards[1].unlink()  # as if killed before this one was done
        assert run(*command) == 0
        assert shards[1].read_text() == before
        assert len(server.asked) == 10

    def test_limits_of_a_reply(self, server: ChatServer, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        limits = ("--max-tokens", "77", "--timeout", "9")
        made: list[OpenAIJudge] = []

        class Kept(OpenAIJudge):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                made.append(self)

        monkeypatch.setattr("capreward.judges.openai.OpenAIJudge", Kept)
        assert run("curate", "references", photos, *self.options(server), *limits) == 0
        assert {body["max_tokens"] for body in server.asked} == {77}
        assert {judge.timeout for judge in made} == {9}

    def test_a_dry_run_asks_for_the_sample_alone(
        self, server: ChatServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ("curate", "references", photos, *self.options(server))
        assert run(*command, "--dry-run", "--sample", "2") == 0
        assert asked(server) == {"describe": 2, "extract": 2}
        assert {path.name.partition(".")[0] for path in (tmp_path / "out").iterdir()} == {"replies"}
        said = capsys.readouterr().out
        assert "5 items, 2 tried" in said
        assert "known already" not in said
        assert re.search(r"^ *tokens in +1,000 +1,000 +1,000 *$", said, re.MULTILINE)
        assert re.search(r"^ *money +2\.00 +2\.00 +2\.00 *$", said, re.MULTILINE)
        assert run(*command, "--dry-run", "--sample", "2") == 0
        assert len(server.asked) == 4
        said = capsys.readouterr().out
        assert (
            "100% of what the sample asks was known already, from an earlier dry run or run: the bill is too low"
            in said
        )
        assert "expected to do as well" not in said
        assert run(*command) == 0
        assert asked(server) == {"describe": 5, "extract": 5}
        assert "10 requests: 6 calls, 4 cached; 600 tokens in, 60 out" in capsys.readouterr().out

    def test_without_prices_a_bill_says_so(
        self, server: ChatServer, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ("--captioner", "openai:m", "--base-url", server.url, "--out", "out")
        assert run("annotate", photos, *options, "--dry-run", "--limit", "1") == 0
        said = capsys.readouterr().out
        assert "1 item, 1 tried" in said
        assert "no money is counted: --prices says" in said

    def test_two_servers_with_prices_of_their_own(
        self, server: ChatServer, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with serving(answer) as other:
            models = ("--describer", f"openai:big@{other.url}", "--extractor", "openai:small")
            prices = ("--prices", "1", "1", "--price", "big=1e4,0")
            assert run("curate", "references", photos, *models, "--base-url", server.url, *prices, "--out", "out") == 0
            assert {body["model"] for body in other.asked} == {"big"}
        assert {body["model"] for body in server.asked} == {"small"}
        said = capsys.readouterr().out
        assert re.search(r"openai/big: .*; 5\.00 spent", said)
        assert re.search(r"openai/small: .*; less than 0\.01 spent", said)
        assert re.search(r"together: 10 requests: .*; 5\.00 spent", said)

    def test_a_server_that_is_down(
        self, server: ChatServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ("curate", "references", photos, *self.options(server))
        server.answer = lambda _: (400, "{}")
        assert run(*command, "--dry-run") == 2
        assert "none of the 5 items tried was made: 5 refused" in capsys.readouterr().err
        assert run(*command) == 2
        said = capsys.readouterr()
        assert "none of 5 items was made, such as " in said.err
        assert "0.png: refused: HTTP 400" in said.err
        assert said.err.count("\n") == 1
        assert (tmp_path / "out" / "datasheet.json").exists()

    def test_again(
        self,
        server: ChatServer,
        photos: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("capreward.curate.command.MAY_PASS", frozenset({"refused"}))
        monkeypatch.setattr("capreward.curate.pipeline.MAY_PASS", frozenset({"refused"}))
        command = ("annotate", photos, "--captioner", "openai:m", "--base-url", server.url, "--out", "out")
        server.answer = lambda body: (400, "{}") if len(server.asked) == 1 else answer(body)
        assert run(*command) == 0
        said = capsys.readouterr().out
        assert re.search(r"^ *dead: refused +1 *$", said, re.MULTILINE)
        assert "1 dead letters may pass another time: --again tries them" in said
        assert run(*command) == 0
        assert len(server.asked) == 5
        assert run(*command, "--again") == 0
        assert len(server.asked) == 6
        assert len(read_items(tmp_path / "out" / "items")) == 5

    def test_workers(
        self, server: ChatServer, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        got: dict[str, Any] = {}

        def run_on_ray(make_stage: Any, source: Any, out: Path, **options: Any) -> Any:
            make_stage = pickle.loads(pickle.dumps(make_stage))
            got.update(options)
            del options["workers"], options["num_gpus"]
            return pipeline.run(make_stage(), source, out, **options)

        monkeypatch.setattr("capreward.curate.ray.run_on_ray", run_on_ray)
        workers = ("--workers", "3", "--worker-gpus", "0.5", "--shard-size", "4")
        assert run("curate", "references", photos, *self.options(server), *workers) == 0
        assert got == {"shard_size": 4, "again": False, "workers": 3, "num_gpus": 0.5}

        class RayTaskError(InputError):
            cause = InputError("--describer: no")

        def fails(*_: Any, **__: Any) -> Any:
            raise RayTaskError("Traceback\nof a worker")

        monkeypatch.setattr("capreward.curate.ray.run_on_ray", fails)
        assert run("curate", "references", photos, *self.options(server), *workers) == 2
        assert capsys.readouterr().err == "capreward: error: --describer: no\n"

    @pytest.mark.parametrize("workers", [(), ("--workers", "2")])
    def test_workers_get_absolute_paths(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: tuple[str, ...]
    ) -> None:
        got: list[Path] = []

        def curate(make_stage: Any, sources: list[Path], *_: Any, **__: Any) -> None:
            got.extend(sources)
            got.extend(value for value in make_stage.keywords.values() if isinstance(value, Path))

        monkeypatch.setattr(command, "curate", curate)
        assert run("annotate", "photos", "--checkpoint", "trained", "--out", "out", *workers) == 0
        given = ("--teacher-captions", "t.jsonl", "--student-captions", "s.jsonl")
        judges = ("--writer", "openai:m", "--judge", "openai:m")
        assert run("curate", "rubrics", "photos", "more", *given, *judges, "--out", "out", *workers) == 0
        names = ["photos", "trained", "photos", "more", "t.jsonl", "s.jsonl"]
        assert got == [tmp_path / name if workers else Path(name) for name in names]

    def test_workers_without_ray(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.setitem(sys.modules, "ray.data", None)
        assert run("annotate", photos, "--captioner", "openai:m", "--workers", "2", "--out", "out") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "pip install 'capreward[ray]'" in said

    def test_a_checkpoint(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[Any] = []

        def describer(path: Path, *, max_tokens: int) -> FunctionJudge:
            made.append((path, max_tokens))
            return FunctionJudge(Reply(texts=("A ball.",)), tasks=[Task.DESCRIBE], images=True, name="c")

        monkeypatch.setattr(command, "CheckpointDescriber", describer)
        options = ("--checkpoint", "trained", "--max-tokens", "9", "--temperature", "1", "--seed", "3")
        assert run("annotate", photos, *options, "--instruction", "Say it.", "--out", "out") == 0
        assert made == [(Path("trained"), 9)]
        settings = json.loads((tmp_path / "out" / "settings.json").read_text())["settings"]
        assert settings["sampling"] == {"temperature": 1.0, "seed": 3}
        assert settings["instruction"] == "Say it."


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["none", "--captioner", "openai:m"], "none: no such file or folder"),
            (["empty", "--captioner", "openai:m"], "empty: holds no items"),
            (["photos", "--captioner", "gpt"], "--captioner: judge: got 'gpt', expected one of lite, openai:MODEL"),
            (["photos", "--captioner", "gpt", "--base-url", "http://h"], "--captioner: judge: got 'gpt'"),
            (["photos", "--captioner", "lite"], "cannot describe"),
            (["photos", "--captioner", "local:m@http://h"], "--captioner: judge 'local:m': got base_url"),
            (["photos", "--captioner", "lite", "--prices", "1", "2"], "--prices: got (1.0, 2.0), but no model is on a server"),
            (["photos", "--checkpoint", "c", "--base-url", "http://u:s3cret@h"], "--base-url: got a URL, but no model is on"),
            (["photos", "--captioner", "openai:m", "--timeout", "0"], "--captioner: judge 'openai:m': got timeout=0.0"),
            (["photos", "--captioner", "vllm:m", "--timeout", "9"], "--timeout: got 9.0, but no model is on a server"),
            (["photos", "--captioner", "openai:m", "--max-tokens", "0"], "got max_tokens=0, expected a number > 0"),
            (["photos", "--captioner", "openai:m", "--price", "m=1"], "--price: got 'm=1', expected MODEL=IN,OUT"),
            (["photos", "--captioner", "openai:m", "--price", "n=1,2"], "--price: got 'n', expected one of ['m']"),
            (["photos", "--captioner", "openai:m", "--limit", "0"], "--limit: got 0, expected a number >= 1"),
            (["photos", "--captioner", "openai:m", "--shard-size", "0"], "shard_size"),
            (["photos", "--captioner", "openai:m", "--temperature", "-1"], "--temperature: got -1.0, expected a number >= 0"),
            (["photos", "--captioner", "openai:m", "--sample", "-1", "--dry-run"], "sample=-1"),
            (["photos", "--captioner", "openai:m", "--out", "photos/0.png"], "--out: got 'photos/0.png', but "),
            (["photos", "--checkpoint", "none"], "CheckpointDescriber: none: no such folder"),
        ],
    )  # fmt: skip
    def test_of_annotate(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        (tmp_path / "empty").mkdir()
        out = [] if "--out" in arguments else ["--out", "out"]
        assert run("annotate", *arguments, *out) == 2
        message = capsys.readouterr().err
        assert said in message
        assert message.startswith("capreward: error: ")
        assert "s3cret" not in message
        assert message.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["questions", "--writer", "openai:m", "--blind", "gpt"], "--blind: judge: got 'gpt'"),
            (["questions", "--writer", "openai:m", "--alike", "much"], "--alike: got 'much', expected a cosine"),
            (["questions", "--writer", "openai:m", "--alike", "2"], "got alike=2.0, expected a cosine"),
            (["rubrics", "--teachers", "openai:a", "--student", "openai:s", "--writer", "openai:a", "--judge", "lite"],
             "got agree=2 with 1 teachers"),
            (["rubrics", "--teacher-captions", "t.jsonl", "--student", "openai:s", "--writer", "openai:a", "--judge", "lite"],
             "--teacher-captions: got 't.jsonl', expected a .jsonl file, or a folder of them"),
            (["rubrics", "--teachers", "openai:a", "openai:b", "--student", "openai:s", "--writer", "openai:a", "--judge", "lite",
              "--weights", "bad"], "--weights: got 'bad', expected NAME=NUMBER"),
            (["references", "--describer", "openai:m", "--extractor", "gpt"], "--extractor: judge: got 'gpt'"),
        ],
    )  # fmt: skip
    def test_of_curate(self, photos: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
        what, *rest = arguments
        assert run("curate", what, photos, *rest, "--out", "out") == 2
        message = capsys.readouterr().err
        assert said in message
        assert message.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["curate"], "the following arguments are required: WHAT"),
            (["curate", "questions", "photos", "--out", "o"], "the following arguments are required: --writer"),
            (["curate", "references", "photos", "--out", "o", "--describer", "openai:m"], "required: --extractor"),
            (["curate", "rubrics", "p", "--out", "o", "--writer", "m", "--judge", "m", "--student", "s"],
             "one of the arguments --teachers --teacher-captions is required"),
            (["annotate", "photos", "--out", "o"], "one of the arguments --captioner --checkpoint is required"),
            (["annotate", "photos", "--out", "o", "--captioner", "m", "--checkpoint", "c"], "not allowed with"),
        ],
    )  # fmt: skip
    def test_of_usage(self, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]

    def test_interrupted(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(command, "run", interrupt)
        assert run("annotate", photos, "--captioner", "openai:m", "--out", "out") == 130
        assert capsys.readouterr().err == "capreward: interrupted; the same command goes on where it ended\n"

    def test_another_limit_is_another_run(
        self, server: ChatServer, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ("annotate", photos, "--captioner", "openai:m", "--base-url", server.url, "--out", "out")
        assert run(*command, "--limit", "2") == 0
        assert run(*command) == 2
        assert "source.limit: was 2, is None" in capsys.readouterr().err


class TestJudges:
    def test_roles_of_one_model_share_a_judge(self) -> None:
        roles = [
            Role("--writer", "openai:m", True),
            Role("--sight", "openai:m", True),
            Role("--blind", "openai:m", None),
        ]
        writer, sight, blind = make_judges(roles, Servers())
        assert writer is sight is blind
        assert writer.images

    def test_one_that_must_not_see_is_another(self) -> None:
        roles = [
            Role("--teachers", "openai:m", True),
            Role("--writer", "openai:m", False),
            Role("--judge", "openai:m", None),
        ]
        teacher, writer, judge = make_judges(roles, Servers())
        assert (teacher.images, writer.images) == (True, False)
        assert judge is teacher

    def test_a_server_is_part_of_who_it_is(self) -> None:
        roles = [Role("--writer", "openai:m", True), Role("--sight", "openai:m@http://h:1/v1", True)]
        first, second = make_judges(roles, Servers(base_url="http://h:2/v1"))
        assert first is not second

    def test_a_model_may_have_an_at_in_its_name(self) -> None:
        (judge,) = make_judges([Role("--writer", "openai:m@2024", True)], Servers())
        assert judge.name == "openai/m@2024"

    @pytest.mark.parametrize("model", ["openai:a@b", "openai:m"])
    def test_a_url_begins_at_the_first_at_before_one(self, model: str) -> None:
        (judge,) = make_judges([Role("--writer", f"{model}@http://h:1/v1", True)], Servers())
        assert judge.name == model.replace(":", "/")

    @pytest.mark.parametrize(
        "url",
        ["http://u:s3cret@h/v1", "HTTPS://s3cret@h/v1", "http://u:s3/cret@http://h/v1", "http://h/v1?key=s3cret"],
    )
    @pytest.mark.parametrize("name", ["openai:m", "openai:a@b", "gpt", ""])
    def test_a_url_with_a_secret(self, name: str, url: str) -> None:
        with pytest.raises(InputError, match=r"^--blind: got a URL with a user or a query after ") as refusal:
            make_judges([Role("--writer", "openai:m", True), Role("--blind", f"{name}@{url}", None)], Servers())
        said = str(refusal.value)
        assert "s3" not in said
        assert "\n" not in said

    def test_from_references(self) -> None:
        stage = command.questions(Servers(), writer="openai:m", from_references=True, alike=None)
        assert not any(judge.images for judge in stage.judges)


class TestGivenCaptions:
    def test_rows_of_one_id_add_up(self, tmp_path: Path) -> None:
        (tmp_path / "records").mkdir()
        for n in range(2):
            row = {"id": "x", "item": "x", "caption": f"It is {n}."}
            (tmp_path / "records" / f"{n}.jsonl").write_text(json.dumps(row) + "\n\n")
        given = GivenCaptions("--teacher-captions", tmp_path)
        assert given(Item(id="x")) == ("It is 0.", "It is 1.")
        assert given(Item(id="y")) == ()
        with pytest.raises(InputError, match="got 2 captions of item 'x', expected one"):
            GivenCaption("--student-captions", tmp_path)

    @pytest.mark.parametrize(
        "row", ["[]", '{"id": "x"}', '{"caption": "A cup."}', '{"id": "x", "captions": "A cup."}', "{"]
    )
    def test_no_captions(self, tmp_path: Path, row: str) -> None:
        (tmp_path / "given.jsonl").write_text(row + "\n")
        with pytest.raises(InputError, match=r"--teacher-captions: .*given\.jsonl, line 1.*expected "):
            GivenCaptions("--teacher-captions", tmp_path / "given.jsonl")


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "rows"
        folder.mkdir()
        ids = [["a", "b", "c"], [], ["d", "a"], ["e"]]
        for n, part in enumerate(ids):
            (folder / f"{n}.jsonl").write_text("".join(json.dumps({"id": id}) + "\n\n" for id in part))
        (folder / "3.jsonl").open("a").write("{\n")
        return folder

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
    def test_files_are_one(self, folder: Path, size: int) -> None:
        source = open_any([folder])
        shards = list(source.shards(size))
        assert len(source) == 7
        assert max(shard.count for shard in shards) <= size
        sent = pickle.loads(pickle.dumps(source))
        entries = [entry for shard in shards for entry in sent.read(shard)]
        assert [entry.id for _, entry in entries] == ["a", "b", "c", "d", "a", "e", None]
        assert [place for place, entry in entries if not isinstance(entry, Item)] == [
            f"{folder / '2.jsonl'}, line 3",
            f"{folder / '3.jsonl'}, line 3",
        ]
        assert len({place for place, _ in entries}) == 7

    def test_its_digest_is_of_the_rows(self, folder: Path) -> None:
        before = open_any([folder]).describe()
        assert open_any([folder]).describe() == before
        (folder / "0.jsonl").write_text('{"id": "z"}\n')
        assert open_any([folder]).describe()["digest"] != before["digest"]

    def test_of_a_single_file(self, tmp_path: Path) -> None:
        (tmp_path / "only.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
        (tmp_path / ".hidden.jsonl").write_text('{"id": "c"}\n')
        source = open_any([tmp_path])
        assert [entry.id for shard in source.shards(8) for _, entry in source.read(shard)] == ["a", "b"]

    def test_a_run_that_has_not_ended(self, tmp_path: Path) -> None:
        (tmp_path / "items").mkdir()
        (tmp_path / "settings.json").write_text("{}")
        (tmp_path / "items" / "00000.jsonl").write_text('{"id": "a"}\n')
        with pytest.raises(InputError, match="holds a run that has not come to its end"):
            open_any([tmp_path])
        (tmp_path / "datasheet.json").write_text('{"finished": false}')
        with pytest.raises(InputError, match="holds a run that has not come to its end"):
            open_any([tmp_path])
        assert len(open_any([tmp_path / "items"])) == 1
        (tmp_path / "datasheet.json").write_text('{"finished": true}')
        assert len(open_any([tmp_path])) == 1

    @pytest.mark.parametrize("shards", [["a\n", "", "b\n"], ["", "a\n"], [""], []])
    def test_a_run_with_shards_that_gave_nothing(self, tmp_path: Path, shards: list[str]) -> None:
        (tmp_path / "items").mkdir()
        (tmp_path / "settings.json").write_text("{}")
        (tmp_path / "datasheet.json").write_text('{"finished": true}')
        for n, text in enumerate(shards):
            row = json.dumps({"id": text.strip()}) + "\n" if text else ""
            (tmp_path / "items" / f"{n:05d}.jsonl").write_text(row)
        source = open_any([tmp_path])
        made = [entry.id for shard in source.shards(8) for _, entry in source.read(shard)]
        assert made == [text.strip() for text in shards if text]
        assert len(source) == len(made)

    def test_images_with_a_table_beside_them_are_images(self, photos: Path) -> None:
        (photos / "metadata.jsonl").write_text("{}\n")
        assert len(open_any([photos])) == 5

    @pytest.mark.parametrize("limit", [1, 3, 4, 10, 11])
    def test_first(self, limit: int) -> None:
        source = First(Listed([Item(id=str(n)) for n in range(10)]), limit)
        shards = list(source.shards(3))
        assert sum(shard.count for shard in shards) == len(source) == min(limit, 10)
        entries = [entry for shard in shards for _, entry in source.read(shard)]
        assert [entry.id for entry in entries] == [str(n) for n in range(min(limit, 10))]


def test_a_missing_extra_is_said_in_a_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_rich() -> None:
        raise missing_extra("Printing tables", "report", ImportError("no", name="rich"))

    monkeypatch.setattr(command, "make_console", no_rich)
    assert run("annotate", photos, "--captioner", "openai:m", "--out", "out") == 2
    assert "capreward[report]" in capsys.readouterr().err
