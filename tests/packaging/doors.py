"""What needs an extra, tried in whatever environment runs this: prints a JSON object, NAME -> [extra, what came of it].

What came of it: "open", or the text of the `MissingExtraError`. Every other exception but those expected of a door that opens
ends the script.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capreward import (
    Item,
    Lexical,
    LiteJudge,
    LocalJudge,
    Missing,
    OpenAIJudge,
    RewardSuite,
    Rollout,
    Score,
    VLLMJudge,
    read_items,
    recipe,
    report,
    shapes,
)
from capreward.ablation import Ablation
from capreward.adapters import server, swift, trl
from capreward.adapters.client import Client
from capreward.cli import make_parser
from capreward.curate.captions import CheckpointDescriber
from capreward.curate.ray import run_on_ray
from capreward.curate.sources import Listed, Parquet
from capreward.errors import InputError, MissingExtraError
from capreward.evaluate.agreement import Axis, agreement
from capreward.evaluate.arena import Battle, Outcome, bradley_terry
from capreward.ledger import Ledger, LedgerWriter
from capreward.train.config import TrainConfig


class Half:
    name = "half"

    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        return [Score(0.5 + 0.1 * n) for n, _ in enumerate(rollouts)]


ROLLOUTS = [Rollout(item=Item(id="cup"), caption=caption) for caption in ("A cup.", "A white cup.")]
SUITE = RewardSuite({"half": Half()}, ledger=LedgerWriter("ledger"))
TABLE = SUITE.score(ROLLOUTS)
NOWHERE = "http://127.0.0.1:1"
SETTINGS: dict[str, Any] = {"model": "shapes", "data": "shapes", "out": "run", "judge": {"name": "shapes"}}
LABELS = Axis("axis", "rating", np.array([0, 1]), None, np.array([1.0, 2.0]))


def completion() -> None:
    arguments = make_parser().parse_args(["completion", "bash"])
    arguments.run(arguments)


Path("items.parquet").write_bytes(b"no parquet")
Path("checkpoint").mkdir()

DOORS: list[tuple[str, str, Callable[[], object]]] = [
    ("lite", "LiteJudge", LiteJudge),
    ("openai", "OpenAIJudge", lambda: OpenAIJudge("model", base_url=NOWHERE, api_key="none")),
    ("local", "LocalJudge", lambda: LocalJudge("nowhere")),
    ("local", "a drawn picture", lambda: shapes.draw(shapes.scene(0))),
    ("local", "the drawn world's captioner", shapes.captioner),
    ("vllm", "VLLMJudge", lambda: VLLMJudge("nowhere")),
    ("train", "a recipe", lambda: TrainConfig.from_yaml(recipe.find("shapes"))),
    ("train", "a trainer", lambda: recipe.make_trainer(TrainConfig(**{**SETTINGS, "data": "nowhere.jsonl"}))),
    ("train", "CheckpointDescriber", lambda: CheckpointDescriber("checkpoint")),
    ("trl", "one advantage for TRL", lambda: trl.reward_funcs(SUITE, exact=True)),
    ("swift", "ms-swift's plugin", lambda: swift.register(SUITE)),
    ("lexical", "Lexical", lambda: Lexical("nowhere", "rougeL")),
    ("data", "a parquet file of items", lambda: read_items("items.parquet")),
    ("data", "a parquet file as a source", lambda: Parquet("items.parquet")),
    ("data", "a dataset of the hub", lambda: recipe.make_items(TrainConfig(**{**SETTINGS, "data": "hf:no/where"}))),
    ("data", "a ledger's rows", lambda: Ledger("ledger").rows()),
    ("data", "a ledger as parquet", lambda: Ledger("ledger").to_parquet("ledger.parquet")),
    ("data", "an ablation", lambda: Ablation(Ledger("ledger"), resamples=1)),
    ("report", "a table as a frame", TABLE.to_pandas),
    ("report", "a printed table", report.make_console),
    ("report", "a figure", lambda: report.figure(TABLE)),
    ("report", "agreement", lambda: agreement(LABELS, np.array([0.1, 0.2]), np.ones(2), np.arange(2), resamples=1)),
    ("report", "the arena", lambda: bradley_terry([Battle("cup", "a", "b", Outcome.FIRST)], draws=0)),
    ("ray", "run_on_ray", lambda: run_on_ray(Half, Listed([]), "out", shard_size=0)),  # refused after the import
    ("server", "a server", lambda: server.make_app(SUITE)),
    ("server", "Client", lambda: Client(NOWHERE)),
    ("completion", "a shell's script", completion),
]


def tried(door: Callable[[], object]) -> str:
    try:
        door()
    except MissingExtraError as error:
        return str(error)
    except InputError:  # there is no such model, file or dataset: what was missing would have been missed before
        pass
    return "open"


if __name__ == "__main__":
    print(json.dumps({name: (extra, tried(door)) for extra, name, door in DOORS}))
