"""One run: a condition and a seed, from the warm-up to what its captions are worth."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict as asdict, dataclass, replace as replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from conditions import CONDITIONS, STARTS, Condition, Scaled
from faults import is_commentary

from capreward import Item, Rollout, advantage, presets
from capreward.components.gates import length_ratio
from capreward.data import replacing
from capreward.evaluate import b_capscore
from capreward.ledger import Ledger
from capreward.records import count_words
from capreward.scoring import ScoreTable
from capreward.shapes import Scene, ShapesJudge, caption, imperfect, items, scene
from capreward.shapes.language import COMMENTARY, PRAISE, sentences

SCALES = (0.2, 1.0, 5.0)
"""Of fluency, for the correlations along a run."""
WINDOWS = 6
"""Parts of a run over which correlations are averaged."""
SAMPLES = 3
"""Held-out captions kept with each run, for whoever wants to read what was learned: docs/claims.md quotes them."""


@dataclass(frozen=True)
class Scale:
    """How large the world, the captioner and a run are."""

    name: str
    steps: int
    warm_up: int
    """Steps of supervised training on 32 captions each, before."""
    held_out: int = 192
    groups: int = 8
    group_size: int = 8
    max_tokens: int = 96
    learning_rate: float = 4e-4
    fewest: int = 2
    most: int = 4
    hidden: int = 96
    layers: int = 3

    @property
    def world(self) -> dict[str, int]:
        return {"fewest": self.fewest, "most": self.most}


SIZES = {
    "cpu": Scale("cpu", steps=50, warm_up=1000),
    "gpu": Scale(
        "gpu",
        steps=80,
        warm_up=1000,
        groups=16,
        max_tokens=192,
        learning_rate=2e-4,
        fewest=4,
        most=8,
        hidden=320,
        layers=6,
    ),
    "quick": Scale("quick", steps=3, warm_up=50, held_out=32, groups=4, max_tokens=48),
}


def start_folder(out: Path, kind: str, seed: int) -> Path:
    return out / "starts" / f"{kind}-{seed}"


def make_starts(out: Path, seed: int, scale: Scale) -> None:
    """Warm up the captioners that the runs of a seed start from, unless that was done."""
    from capreward.shapes import captioner

    seconds = out / "starts" / f"{seed}.seconds"
    if seconds.is_file():
        return
    begin = time.perf_counter()
    for kind in STARTS.values():
        shutil.rmtree(start_folder(out, kind, seed), ignore_errors=True)
    model, processor = captioner(seed, hidden=scale.hidden, layers=scale.layers, large=scale.most > 5)
    model.to(device())
    _teach(model, processor, commenting(0.05), seed, scale, steps=scale.warm_up)
    _save(model, processor, start_folder(out, "ordinary", seed))
    _teach(model, processor, commenting(0.5), seed + 1000, scale, steps=scale.warm_up // 5, seeing=0.0)
    _save(model, processor, start_folder(out, "chatty", seed))
    seconds.write_text(str(time.perf_counter() - begin), encoding="utf-8")


def commenting(share: float) -> Callable[[Scene, random.Random], str]:
    """Imperfect captions, this share of them with a sentence of commentary, whatever else they are like."""

    def tell(shown: Scene, chance: random.Random) -> str:
        text = imperfect(shown, chance, commentary=0.0)
        if chance.random() >= share:
            return text
        sentence = chance.choice(COMMENTARY)
        return f"{text} {sentence}" if text.endswith(".") and chance.random() < 0.5 else f"{sentence} {text}"

    return tell


def _teach(
    model: Any,
    processor: Any,
    captions: Callable[[Scene, random.Random], str],
    seed: int,
    scale: Scale,
    *,
    steps: int,
    **options: Any,
) -> None:
    from capreward.shapes import warm_up

    scenes = partial(scene, **scale.world)
    warm_up(model, processor, steps=steps, seed=seed, progress=False, captions=captions, scenes=scenes, **options)


def run(out: Path, name: str, seed: int, scale: Scale) -> dict[str, Any]:
    """Train and measure; what was done before is read. Returns the measures, and what `traced` asks for."""
    path = out / "runs" / f"{name}.{seed}.json"
    if path.is_file():
        return _kept(path)
    begin = time.perf_counter()
    path.parent.mkdir(exist_ok=True, parents=True)
    folder = out / "training" / f"{name}.{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    found = (_untrained if name in STARTS else _trained)(folder, out, name, seed, scale)
    shutil.rmtree(folder, ignore_errors=True)
    if name == "start":  # which others use too
        begin -= float((out / "starts" / f"{seed}.seconds").read_text(encoding="utf-8"))
    found |= {"condition": name, "seed": seed, "seconds": time.perf_counter() - begin}
    with replacing(path) as file:
        file.write_text(json.dumps(found), encoding="utf-8")
    return _kept(path)


def _kept(path: Path) -> dict[str, Any]:
    """A finished run, and when it ended: a report may be made long after."""
    ended = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return {**json.loads(path.read_text(encoding="utf-8")), "ended": ended}


def _untrained(folder: Path, out: Path, name: str, seed: int, scale: Scale) -> dict[str, Any]:
    trainer = _trainer(folder, CONDITIONS["c-GDPO"], start_folder(out, STARTS[name], seed), seed, scale)
    return {"measures": _measures(*trainer.evaluate(_held_out(seed, scale), _exact()))}


def _trained(folder: Path, out: Path, name: str, seed: int, scale: Scale) -> dict[str, Any]:
    condition, start = CONDITIONS[name], start_folder(out, CONDITIONS[name].start, seed)
    if condition.captions:
        start = _tuned(folder, condition, start, seed, scale)
    trainer = _trainer(folder, condition, start, seed, scale)
    found: dict[str, Any] = {}
    if not condition.captions:
        trainer.train()
        if condition.traced:
            found["follows"] = _follows(Ledger(trainer.config.out / "ledger"))
    table, rollouts = trainer.evaluate(_held_out(seed, scale), _exact())
    found["samples"] = [rollout.caption for rollout in rollouts[:SAMPLES]]
    return {"measures": _measures(table, rollouts), **found}


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _trainer(folder: Path, condition: Condition, start: Path, seed: int, scale: Scale) -> Any:
    from capreward.shapes import PROMPT
    from capreward.train import Policy, TrainConfig, Trainer

    config = TrainConfig(
        model=str(start),
        data="shapes",
        out=folder / "run",
        steps=scale.steps,
        groups=scale.groups,
        group_size=scale.group_size,
        max_tokens=scale.max_tokens,
        learning_rate=scale.learning_rate,
        save_every=scale.steps,
        seed=seed + condition.sampling,
    )
    suite = condition.suite() if condition.suite else presets.balcaprl(ShapesJudge())
    trained = _items(scale.steps * scale.groups, seed, scale)
    if condition.items:
        trained = [condition.items(item) for item in trained]
    return Trainer(
        config, Policy.load(start, instruction=PROMPT), suite, trained, estimator=condition.estimator, parts=1
    )


def _tuned(folder: Path, condition: Condition, start: Path, seed: int, scale: Scale) -> Path:
    """The folder of the captioner after supervised training on other captions of fresh scenes."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(start).to(device())
    processor = AutoProcessor.from_pretrained(start)
    captions = {"references": lambda shown, _: caption(shown), "warm-up": commenting(0.05)}[condition.captions]
    _teach(model, processor, captions, seed + 2000, scale, steps=scale.steps, seeing=0.0)
    _save(model, processor, folder / "tuned")
    return folder / "tuned"


def _save(model: Any, processor: Any, folder: Path) -> None:
    partial_ = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial_.mkdir(parents=True)
    model.save_pretrained(partial_)
    processor.save_pretrained(partial_)
    partial_.rename(folder)


def _held_out(seed: int, scale: Scale) -> list[Item]:
    """Scenes drawn apart from those of training; small ones may come again by chance."""
    return _items(scale.held_out, seed + 500_000, scale)


@lru_cache(maxsize=8)
def _items(count: int, seed: int, scale: Scale) -> list[Item]:
    return items(count, seed=seed, **scale.world)


def _exact() -> Any:
    """What captions are worth, whatever they were trained on: no gates, and claims count once."""
    return presets.everything(ShapesJudge(), gates=[])


def _measures(table: ScoreTable, rollouts: Sequence[Rollout]) -> dict[str, float]:
    columns = dict(zip(table.names, table.values.T, strict=True))
    found = {name: float(column.mean()) for name, column in columns.items()}
    found["b_capscore"] = float(b_capscore(columns["precision"], columns["coverage"], columns["fluency"]).mean())
    found |= {name: float(np.mean(values)) for name, values in _texts(rollouts).items()}
    return found


def _texts(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """What can be told of captions without a judge, a number each."""
    found: dict[str, list[float]] = {name: [] for name in ("words", "length_ratio", "commentary", "praise", "repeated")}
    for rollout in rollouts:
        parts = sentences(rollout.caption)
        made = [claim for part in parts for claim in part.claims]
        ratio = length_ratio(rollout, count_words)
        assert isinstance(ratio, float)
        found["words"].append(count_words(rollout.caption))
        found["length_ratio"].append(ratio)
        found["commentary"].append(float(any(is_commentary(claim.text) for claim in made)))
        found["praise"].append(float(any(is_commentary(c.text) and PRAISE.search(c.text) for c in made)))
        found["repeated"].append(1 - len(set(made)) / max(1, len(made)))
    return found


def _follows(ledger: Ledger) -> list[dict[str, Any]]:
    """Correlations of every estimator's advantages with the components along a run, fluency on three scales.

    The batches of a step are computed each by itself; correlations are over the rollouts of a window of steps.
    """
    rows = ledger.rows()
    steps = np.unique(rows.batch)
    windows = np.array_split(steps, min(WINDOWS, len(steps)))
    column = rows.names.index("fluency")
    found = []
    for window, batches in enumerate(windows):
        for factor in SCALES:
            for name, estimator in advantage.ESTIMATORS.items():
                if name == "sa_mrpo" and factor != 1:
                    continue  # it knows one pair of bounds for all components
                scaled = Scaled(estimator, factor, column)
                chosen = [rows.batch == batch for batch in batches]
                made = [scaled(rows.values[mask], rows.group[mask], rows.weights) for mask in chosen]
                within = np.concatenate([np.flatnonzero(mask) for mask in chosen])
                values = advantage.follows(np.concatenate(made), rows.values[within], rows.group[within])
                found += [
                    {"window": window, "scale": factor, "estimator": name, "component": component, "value": value}
                    for component, value in zip(rows.names, values.tolist(), strict=True)
                ]
    return found
