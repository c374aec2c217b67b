"""TRL's trainers on the drawn world: `python trl_runs.py FOLDER KIND ...`, on as many processes as the launcher starts.

Each process writes, for each KIND of run, FOLDER/KIND.RANK.jsonl: a line a batch with what the suite said of its rollouts and
the advantages that TRL made of it, and a last line with TRL's log.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from capreward import Coverage, LengthMask, Missing, Precision, Reason, RewardSuite, Rollout, Score, ScoreTable, shapes
from capreward.adapters.trl import grpo_kwargs, reward_funcs, rloo_kwargs
from capreward.components.fluency import Fluency
from capreward.data import digest

STEPS = 10
G = 4
BATCH = 20
"""Rollouts a step: five groups of G, of which the middle one is shared by two processes."""
DOWN = Missing(Reason.SERVER, "server is down")


class Flaky:
    """A component whose judge is down for about every fourth caption; for all components at once for every sixteenth."""

    def __init__(self, component: Any) -> None:
        self.component, self.name, self.judge = component, component.name, component.judge

    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        scores = await self.component.score(rollouts)
        return [DOWN if self.is_down(rollout) else score for rollout, score in zip(rollouts, scores, strict=True)]

    def is_down(self, rollout: Rollout) -> bool:
        key = digest([rollout.caption, rollout.item.id])
        return key[0] == "0" or digest([key, self.name])[0] in "0123"


class Broken:
    """A component that raises in every third batch, from the second on."""

    name = "broken"
    batches = 0

    async def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        self.batches += 1
        if self.batches % 3 == 2:
            raise RuntimeError("a bug")
        return [Score(len(rollout.caption) % 7 / 7) for rollout in rollouts]


def make_suite(kind: str) -> RewardSuite:
    if kind == "broken":
        return RewardSuite({"broken": Broken()})
    judge = shapes.ShapesJudge()
    components = [Flaky(component) for component in (Precision(judge), Coverage(judge), Fluency(judge))]
    return RewardSuite(
        {component.name: component for component in components},
        weights={"fluency": 0.5},
        gates=[LengthMask("fluency", low=0.6, high=1.2)],
    )


def make_dataset() -> Dataset:
    """Images as TRL's processors want them, and as bytes with the scene, for the judge."""
    items = shapes.items(STEPS * BATCH // G)
    prompt = [{"role": "user", "content": shapes.PROMPT}]
    return Dataset.from_list(
        [
            {
                "prompt": prompt,
                "image": Image.open(io.BytesIO(item.image)),
                "scene": item.image,
                "captions": list(item.references),
                "units": list(item.reference_units),
                "name": item.id,
            }
            for item in items
        ]
    )


COLUMNS = {"id": "name", "image": "scene", "references": "captions", "reference_units": "units"}


def run(folder: Path, kind: str, model: Any, processor: Any) -> None:
    """KIND: grpo, exact, rloo, or broken."""
    suite = make_suite(kind)
    batches: list[dict[str, Any]] = []
    ascore = suite.ascore

    async def told(rollouts: Sequence[Rollout], **options: Any) -> ScoreTable:
        table = await ascore(rollouts, **options)
        batches.append({"groups": table.groups.tolist(), "values": table.values.tolist(), "metrics": table.metrics()})
        return table

    suite.ascore = told  # type: ignore[method-assign]
    trainer_class, config_class = (RLOOTrainer, RLOOConfig) if kind == "rloo" else (GRPOTrainer, GRPOConfig)
    exact = kind in ("exact", "rloo")
    options = rloo_kwargs() if kind == "rloo" else grpo_kwargs(suite, exact=exact)

    class Recorded(trainer_class):  # type: ignore[valid-type,misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            before = len(batches)
            output = super()._generate_and_score_completions(inputs)
            if len(batches) == before:
                batches.append({"groups": None})
            batches[-1]["advantages"] = output["advantages"].tolist()
            batches[-1]["table"] = {name: list(column)[-BATCH:] for name, column in self._logs["extra"].items()}
            return output

    processes = int(os.environ.get("WORLD_SIZE", 1))  # before the first trainer, torch has not been told
    trainer = Recorded(
        model,
        reward_funcs(
            suite,
            columns=None if kind == "broken" else COLUMNS,
            exact=exact,
            trainer="rloo" if kind == "rloo" else "grpo",
        ),
        config_class(
            str(folder / kind),
            max_steps=STEPS,
            per_device_train_batch_size=BATCH // processes,
            num_generations=G,
            max_completion_length=48,
            learning_rate=1e-4,
            beta=0.0,
            temperature=1.2,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **options,
        ),
        make_dataset(),
        processing_class=processor,
    )
    trainer.train()
    with (folder / f"{kind}.{trainer.accelerator.process_index}.jsonl").open("w") as file:
        for line in (*batches, {"log": trainer.state.log_history}):
            file.write(json.dumps(line) + "\n")


def main(folder: Path, kinds: Sequence[str]) -> None:
    logging.getLogger("trl").setLevel(logging.ERROR)  # it prints whole images
    torch.set_num_threads(1)
    model, processor = shapes.captioner(seed=0)
    shapes.warm_up(model, processor, steps=100, progress=False)
    for kind in kinds:
        run(folder, kind, copy.deepcopy(model), processor)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
