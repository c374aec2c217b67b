"""The help of every command: it fits a terminal, and each of its examples is run for real in a folder that has what they name."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judges.chat_server import Body, ChatServer, completion, serving
from PIL import Image
from server_process import serve_and_interrupt

from capreward import LiteJudge, recipe, shapes
from capreward.cli import main, make_parser
from capreward.cli.options import Parser

ROOT = Path(__file__).parents[2]
BRIEF = "--set steps=1 --set groups=2 --set group_size=2 --set max_tokens=8 --set held_out=3"
ONE_RUN = f"--set model=captioner {BRIEF} --seeds 0"
REPLACED = {
    "capreward train recipes/shapes.yaml": f"capreward train recipes/shapes.yaml {BRIEF}",
    "capreward train recipes/balcaprl-qwen2.5-vl-3b.yaml --set data=captions.jsonl --set groups=32": (
        "capreward train recipes/balcaprl-qwen2.5-vl-3b.yaml --set data=captions.jsonl --set groups=32 "
        f"--set model=captioner --set 'judge={{name: openai:m, base_url: \"http://127.0.0.1:8000/v1\", images: true}}' {BRIEF}"
    ),
    "accelerate launch --num_processes 8 -m capreward.cli train recipes/balcaprl-qwen2.5-vl-7b.yaml --set data=captions.jsonl": (
        "accelerate launch --cpu --num_processes 1 -m capreward.cli train recipes/shapes.yaml "
        f"--set model=captioner {BRIEF}"
    ),
    "capreward sweep recipes/shapes.yaml --weights recipe --weights fluency=2,coverage=1 --out sweep/": (
        f"capreward sweep recipes/shapes.yaml --weights recipe --weights fluency=2,coverage=1 --out sweep/ {ONE_RUN}"
    ),
    "capreward sweep recipes/shapes.yaml --estimators gdpo,grpo --seeds 0,1,2,3 "
    "--set-grid learning_rate=1.0e-4,3.0e-4 --jobs 4 --out sweep/": (
        "capreward sweep recipes/shapes.yaml --estimators gdpo --set-grid learning_rate=1.0e-4 "
        f"--jobs 4 --out sweep/ {ONE_RUN}"
    ),
    "capreward annotate photos/ --checkpoint run/final --workers 8 --worker-gpus 1 --out captions/": (
        "capreward annotate photos/ --checkpoint run/final --out captions/"  # tests/curate/test_curate_ray.py has the workers
    ),
    "capreward agree iiw --out agreement/": "capreward agree iiw --out agreement/ --limit 4 --resamples 20",
    "capreward probe --samples photos --suite rubicap --out probe/": (
        "capreward probe --samples photos --suite rubicap --out probe/ --attacks empty,self-praise"
    ),
    'mapfile -t settings < <(capreward verl-overrides caption_reward.py)\npython -m verl.trainer.main_ppo "${settings[@]}" '
    "data.train_files=captions.parquet": (
        "mapfile -t settings < <(capreward verl-overrides caption_reward.py)\n"
        'test "${#settings[@]}" -gt 3'  # tests/in_verl hands them to verl's own parser
    ),
}
"""What cannot run whole in a test, and what runs in its place: training for minutes or on GPUs, Ray, many resamples, verl."""
LOSES = "capreward probe"
"""May end with exit status 1: an attack wins, which is for the user to know."""
MODEL_SERVERS = re.compile(r"http://127\.0\.0\.1:800\d/v1")


def parsers(parser: argparse.ArgumentParser) -> Iterator[Parser]:
    """A command and those under it."""
    assert isinstance(parser, Parser)
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def examples(parser: Parser) -> list[str]:
    """As they stand in the help, continued lines joined."""
    _, _, text = parser.format_help().partition("\nexamples:\n")
    shown = re.match(r"(?:  .*\n?)*", text)
    assert shown is not None
    joined = re.sub(r" \\\n +", " ", shown[0])
    commands: list[str] = []
    for line in joined.splitlines():
        if line.startswith("      "):
            commands[-1] += "\n" + line.strip()
        else:
            commands.append(line.strip())
    return commands


COMMANDS = {parser.prog: parser for parser in parsers(make_parser())}
EXAMPLES = list(dict.fromkeys(example for parser in COMMANDS.values() for example in examples(parser)))


@pytest.mark.parametrize("prog", COMMANDS)
def test_help_reads_well(prog: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = COMMANDS[prog].format_help()
    assert examples(COMMANDS[prog]), f"{prog} --help has no example"
    assert [line for line in text.splitlines() if len(line) > 80] == []
    for action in COMMANDS[prog]._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), f"{prog}: {action.dest} has no help"
    assert not re.search(r"\(default: [^()]*\).*\(default: ", " ".join(text.split("\n  -")[-1:]))


def test_what_is_replaced_is_an_example() -> None:
    assert set(REPLACED) <= set(EXAMPLES)


RIGHT = "red"
ASKED = {"What colour is the ball?": [RIGHT, "blue", "green", "white"]}


def answer(body: Body) -> Any:
    """A model that sees: a function of the prompt alone."""
    content = body["messages"][-1]["content"]
    prompt = content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")
    schema = body.get("response_format", {}).get("json_schema", {})
    match schema.get("name", "choose" if body["max_tokens"] == 4 else "describe"):
        case "describe":
            said: Any = f"A {RIGHT} ball, says {body['model']}: {zlib.crc32(json.dumps(content).encode())}."
        case "choose":
            options = {text: letter for letter, text in re.findall(r"^([A-Z])\. (.+)$", prompt, re.MULTILINE)}
            said = "A" if isinstance(content, str) else options.get(RIGHT, "A")
        case "inquire":
            said = {
                "questions": [{"kind": "object", "question": q, "options": o, "answer": o[0]} for q, o in ASKED.items()]
            }
        case "criticise":
            said = {"criteria": [{"criterion": "Says red.", "severity": "critical", "teachers": [1, 2]}]}
        case "support":
            said = instance(schema["schema"], holds="openai/qwen" not in prompt and "student" not in prompt)
        case _:
            said = instance(schema["schema"])
    return completion(said if isinstance(said, str) else json.dumps(said))


def instance(schema: Any, number: int = 1, **fields: Any) -> Any:
    """What fits a schema; of a list as few as may be, numbered."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            inner = schema["properties"].items()
            return {
                name: fields.get(name, number if name == "number" else instance(of, **fields)) for name, of in inner
            }
        case "array":
            return [instance(schema["items"], n + 1, **fields) for n in range(schema.get("minItems") or 1)]
        case "boolean":
            return True
        case "integer" | "number":
            return random.Random(str(schema)).randint(schema.get("minimum", 1), schema.get("maximum", 5))
        case _:
            return f"A {RIGHT} ball."


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with serving(answer) as server:
        yield server


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the drawn world, trained for as long as it takes to end a caption."""
    from capreward.shapes.model import captioner, warm_up

    folder = tmp_path_factory.mktemp("captioner")
    model, processor = captioner(seed=0)
    warm_up(model, processor, steps=40, seed=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    captioner: Path,
    lite: LiteJudge,
) -> Path:
    """What the examples name."""
    monkeypatch.setattr("capreward.judges.lite.LiteJudge", lambda: lite)
    monkeypatch.setattr(recipe, "WARM_UP", 1)
    monkeypatch.setattr(recipe, "SCENES", 12)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CAPREWARD_TOKEN", raising=False)
    (tmp_path / "photos").mkdir()
    for n, scene in enumerate(shapes.items(3)):
        assert isinstance(scene.image, bytes)
        (tmp_path / "photos" / f"{n}.png").write_bytes(scene.image)
        with Image.open(tmp_path / "photos" / f"{n}.png") as picture:
            assert picture.format == "PNG"
    items = [
        {
            "id": f"{n}.png",
            "image": f"photos/{n}.png",
            "references": [f"A red ball {n} lies on the green grass."],
            "facts": [{"text": "The ball is red."}, {"text": "A dog runs.", "true": False}],
            "questions": [{"text": q, "options": o, "answer": 0} for q, o in ASKED.items()],
            "rubric": [{"text": "Mentions a red ball.", "weight": 3}, {"text": "Mentions grass.", "weight": 1}],
        }
        for n in range(3)
    ] + [{"id": f"{n}.png", "image": "photos/0.png", "references": ["A ball."]} for n in range(3, 8)]
    said = ("A red ball lies on the grass, says one.", "There is a ball.")
    rollouts = [{"caption": text, "metadata": {"model": f"m{n}"}} for n, text in enumerate(said)]
    write(tmp_path / "items.jsonl", *items)
    write(tmp_path / "captions.jsonl", *({**item, "rollouts": rollouts} for item in items))
    write(tmp_path / "ours.jsonl", *({"item": item["id"], "caption": said[0]} for item in items[:3]))
    write(tmp_path / "theirs.jsonl", *({"item": item["id"], "caption": said[1]} for item in items[:3]))
    write(
        tmp_path / "labels.jsonl",
        *(
            {"item": item, "first": said[0], "second": said[1], "labels": {"detail": 1 - n}}
            for n, item in enumerate(items[:3])
        ),
    )
    write(
        tmp_path / "captions" / "records" / "0.jsonl", *({"item": i["id"], "captions": ["A ball."]} for i in items[:3])
    )
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name in ("captioner", "run/final"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(captioner)
    (tmp_path / "caption_reward.py").write_text(
        "from capreward import LiteJudge\nfrom capreward.adapters.verl import score_function\n"
        "from capreward.presets import balcaprl\n\ncompute_score = score_function(lambda: balcaprl(LiteJudge()))\n"
    )
    return tmp_path


def write(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.partition("\n")[0][:70])
@pytest.mark.usefixtures("folder")
def test_example(example: str, server: ChatServer, capfd: pytest.CaptureFixture[str]) -> None:
    command = MODEL_SERVERS.sub(server.url, REPLACED.get(example, example))
    if command.startswith("capreward ablate"):
        assert main(shlex.split("score captions.jsonl --out run")) == 0
    if command.startswith("capreward serve"):
        serve_and_interrupt(shlex.split(command))
    elif re.match(r"capreward [^<>|\n]*$", command):
        status = main(shlex.split(command)[1:])
        assert status == 0 or (status == 1 and command.startswith(LOSES)), capfd.readouterr().err
    else:
        done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
