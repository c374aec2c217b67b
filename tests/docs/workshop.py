"""The folder that a page's blocks run in, the names that they find, and what is replaced in their text."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import random
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import tiny
import uvicorn
import yaml
from datasets import Dataset
from docs.commands import checked
from docs.pages import ROOT, blocks
from PIL import Image

import capreward.adapters.server as server_module
import capreward.curate.ray as ray_module
from capreward import Item, LiteJudge, RewardSuite, Rollout, ScoreTable, presets, shapes
from capreward.curate.pipeline import run
from capreward.ledger import LedgerWriter

REPLACED: list[tuple[str, str, str, str]] = [
    ("*", r"http://127\.0\.0\.1:800[0-9]/v1", "http://CHAT/v1", "the model server is a scripted one, on a free port"),
    ("*", r"http://127\.0\.0\.1:8900", "http://SERVED", "the reward server is on a free port"),
    ("*", r"port=8900", "port=SERVED_PORT", "the reward server is on a free port"),
    ("*", r" \.\.\.$", "", "three dots at the end of a command are for more of the user's own"),
    (
        "docs/training.md",
        r"kl=0\.01\)",
        "kl=0.01, steps=1, groups=1, group_size=2, max_tokens=8)",
        "500 steps of 512 tokens",
    ),
    ("docs/training.md", r"\.visual\.", ".vision_tower.", "the random model is a LLaVA (see MODELS)"),
    (
        "docs/training.md",
        r'^    "shapes", weights',
        '    "recipes/shapes.yaml", weights',
        "the tiny recipe of the folder",
    ),
    (
        "docs/training.md",
        r'weights=\[\{\}, \{"fluency": 2\}\], estimators=\["gdpo", "grpo"\], seeds=range\(3\), out="short", steps=40',
        'weights=[{}], estimators=["gdpo"], seeds=[0], out="short", steps=1',
        "12 runs",
    ),
    ("docs/annotation.md", "/shared/captions", "shared/captions", "no shared file system"),
]
"""Page or all of them, regular expression, what takes its place, why. A replacement that matches nothing fails a test. CHAT
stands for the address of the scripted model server, SERVED for that of the reward server."""

TINY: dict[str, Any] = {
    "steps": 1,
    "groups": 1,
    "group_size": 2,
    "max_tokens": 8,
    "held_out": 1,
    "warmup": 0,
    "gradient_checkpointing": False,
}
"""Settings that take the place of those of the recipes in the folder; the models that these name are tiny too."""

MODELS = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "run/final")
"""Folders with a random LLaVA: under names of the hub, where a relative path is found first. Qwen's own processor wants
torchvision, which the tests' environment lacks."""

CAPTIONERS = ("ours", "gpt", "human")


def replaced(page: str, text: str, addresses: Mapping[str, str], used: set[int]) -> str:
    """The text of a block as it is executed; numbers of the replacements that were made are added to `used`."""
    for number, (where, old, new, _) in enumerate(REPLACED):
        if where not in ("*", page):
            continue
        for name, address in addresses.items():
            new = re.sub(rf"\b{name}\b", address, new)
        text, count = re.subn(old, new, text, flags=re.MULTILINE)
        if count:
            used.add(number)
    return text


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@cache
def items() -> tuple[Item, ...]:
    """Three drawn scenes: image, references, units, facts, questions, rubric."""
    return tuple(shapes.items(3))


@cache
def rollouts() -> tuple[Rollout, ...]:
    """A caption of each item by each of CAPTIONERS."""
    chance = random.Random(0)
    return tuple(
        Rollout(
            item=item,
            caption=shapes.imperfect(shapes.scene_of(item.image), chance),
            id=f"{item.id}/{captioner}",
            metadata={"model": captioner, "captioner": captioner},
        )
        for item in items()
        for captioner in CAPTIONERS
    )


@cache
def _lite() -> LiteJudge:
    return LiteJudge()


@cache
def _table() -> ScoreTable:
    return _suite().score(rollouts())


def _suite(**options: Any) -> RewardSuite:
    return presets.everything(_lite(), **options)


def names() -> dict[str, Any]:
    """What every page but the README may use without saying where it comes from."""
    suite = _suite()
    return {
        "suite": suite,
        "components": dict(suite.components),
        "rollouts": list(rollouts()),
        "items": list(items()),
        "judge": _lite(),
        "table": _table(),
    }


def prepare(folder: Path, addresses: Mapping[str, str]) -> None:
    """Puts the files there that pages name."""
    rows = [_row(item, folder / "photos") for item in items()]
    _write(folder / "items.jsonl", rows)
    captioned = [{**row, "rollouts": _captions(item)} for row, item in zip(rows, items(), strict=True)]
    for name in ("captions.jsonl", "sharegpt4v.jsonl"):
        _write(folder / name, captioned)
    for name in ("ours", "theirs"):
        _write(folder / f"{name}.jsonl", [{"item": r.item.id, "caption": r.caption} for r in rollouts()[::3]])
    (folder / "images").symlink_to("photos")
    (folder / "held_out").mkdir()
    for item in shapes.items(2, seed=1):
        (folder / "held_out" / f"{item.id}.png").write_bytes(item.image)
    _write_parquet(folder / "captions.parquet", captioned)
    _write(folder / "labels.jsonl", _labels(rows))
    _write_caparena(folder / "caparena_annots_eval.json")
    _write_flickr8k(folder / "flickr8k")
    model, processor = tiny.llava()
    # one token in five ends a caption: a random model hardly ever says that it has come to its end
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, *range(2, tiny.BYTE_VOCABULARY, 5)]
    for name in MODELS:
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    (folder / "recipes").mkdir()
    for path in (ROOT / "recipes").glob("*.yaml"):
        recipe = yaml.safe_load(replaced("recipes", path.read_text(), addresses, set()))
        small = {**recipe, **TINY, **({"model": MODELS[0]} if recipe["model"] == "shapes" else {})}
        (folder / "recipes" / path.name).write_text(yaml.safe_dump(small))
    suite_file = next(block for block in blocks("docs/verl.md") if block.language == "python")
    (folder / "caption_reward.py").write_text(replaced(suite_file.page, suite_file.text, addresses, set()))
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    _suite(ledger=LedgerWriter(folder / "run/ledger")).score(rollouts())


def _row(item: Item, photos: Path) -> dict[str, Any]:
    photos.mkdir(exist_ok=True)
    (photos / f"{item.id}.png").write_bytes(item.image)
    return {**json.loads(item.model_dump_json(exclude={"image", "metadata"})), "image": f"photos/{item.id}.png"}


def _captions(item: Item) -> list[dict[str, Any]]:
    return [{"id": r.id, "caption": r.caption, "metadata": r.metadata} for r in rollouts() if r.item is item]


def _labels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"item": row, "first": row["references"][0], "second": "A picture.", "labels": {"detail": n + 1}}
        for n, row in enumerate(rows)
    ]


def _write_caparena(path: Path) -> None:
    """In the layout of CapArena: battles of captions of the photographs."""
    battle = {"caption1": "A red circle.", "caption2": "A square.", "source1": "a", "source2": "b", "winner": "a"}
    path.write_text(json.dumps([{**battle, "img": f"{item.id}.png", "ref": item.references[0]} for item in items()]))


def _write_flickr8k(folder: Path) -> None:
    """In the layout of Flickr8k-Expert: five references of an image, and three ratings of another image's caption."""
    folder.mkdir()
    captions = [f"{item.id}.jpg#{n}\tA picture of {item.id}, take {n}.\n" for item in items() for n in range(5)]
    (folder / "Flickr8k.token.txt").write_text("".join(captions))
    ids = [f"{item.id}.jpg" for item in items()]
    rated = [f"{ids[n]}\t{ids[n - 1]}#0\t{n + 1}\t{n + 1}\t{n + 2}\n" for n in range(len(ids))]
    (folder / "ExpertAnnotations.txt").write_text("".join(rated))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([{"extra_info": json.dumps(row)} for row in rows]), path)


@contextmanager
def stand_ins(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the place of functions that a test cannot call as they are; until the block ends."""
    started: list[tuple[Any, uvicorn.Server, threading.Thread]] = []

    def serve(app: Any, **address: Any) -> None:
        checked("serve()", "does not return: serves in the background until the page ends")
        server = uvicorn.Server(uvicorn.Config(app, **address, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started.append((app, server, thread))
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the server ended at once"

    def run_on_ray(make_stage: Any, source: Any, out: Any, **options: Any) -> Any:
        checked("run_on_ray()", "wants GPUs and half a minute: the stage travels as to a worker, and runs here")
        inspect.signature(on_ray).bind(make_stage, source, out, **options)
        return run(pickle.loads(cloudpickle.dumps(make_stage))(), source, out)

    patch.setattr(server_module, "serve", serve)
    on_ray = ray_module.run_on_ray
    patch.setattr(ray_module, "run_on_ray", run_on_ray)
    try:
        yield
    finally:
        for app, server, thread in started:
            app.state.groups.close()
            server.should_exit = True
            thread.join(10)


def call(page: str, names: dict[str, Any]) -> None:
    """Calls what the blocks of a page define for the user to call."""
    if "GRPOConfig" in names:
        cpu = {"use_cpu": True, "bf16": False, "max_steps": 1, "max_completion_length": 8, "report_to": "none"}
        names["GRPOConfig"] = partial(names["GRPOConfig"], **cpu)
        item = items()[0]
        row = item.model_dump(exclude={"metadata"}) | {"image": Image.open(BytesIO(item.image))}
        dataset = Dataset.from_list([row | {"prompt": [{"role": "user", "content": "Describe this image."}]}])
        trained = ("run/final", names["suite"], dataset)
        names["train"](*(trained if page == "docs/adapters.md" else trained[::2]))
    if page == "docs/adapters.md":
        assert len(names["advantages"](names["suite"], names["rollouts"])) == len(names["rollouts"])


def environment(folder: Path) -> dict[str, str]:
    """Of the commands in bash blocks."""
    return {
        "PATH": os.pathsep.join((str(folder / ".venv/bin"), "/usr/bin", "/bin")),
        "HOME": str(folder),
        **{name: value for name, value in os.environ.items() if name in KEPT},
    }


KEPT = (
    "CHECKED",
    "SKIPPED",
    "OPENAI_API_KEY",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "CAPREWARD_PEERS",
    "LANG",
    "TMPDIR",
)
"""Variables that the commands see of the test's own environment."""
