"""Runs on as many processes as the launcher starts: `python ranks.py FOLDER SETTINGS`.

SETTINGS is JSON: those of each run, with `out`, its folder in FOLDER, `resume`, and `sharded`, for FSDP: from the first that
has it on. Each process writes the advantages that it computes, as exact text, to advantages.RANK.jsonl in there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import accelerate
import runs
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from capreward.scoring import ScoreTable


class Sharding(accelerate.Accelerator):
    """FSDP 2, which accelerate itself sets up on GPUs alone: on CPUs it would quietly take DDP."""

    def __init__(self, **options: Any) -> None:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
            cpu_ram_efficient_loading=False,
            reshard_after_forward=True,
        )
        super().__init__(fsdp_plugin=plugin, **options)
        self.state.distributed_type, self.state.fsdp_plugin = DistributedType.FSDP, plugin
        accelerate.PartialState().distributed_type = DistributedType.FSDP  # as accelerate does


def main(folder: Path, runs_: list[dict[str, Any]]) -> None:
    for settings in runs_:
        out = folder / settings.pop("out")
        out.mkdir(exist_ok=True)
        resume = settings.pop("resume", False)
        if settings.pop("sharded", False):
            accelerate.Accelerator = Sharding
        trainer = runs.trainer(out, held_out=runs.items(3), **settings)
        # so many that captions end early, and those of one process before those of the other
        trainer.policy.model.generation_config.eos_token_id = [260, *range(150)]
        with (out / f"advantages.{trainer.accelerator.process_index}.jsonl").open("a") as file:

            def told(self: ScoreTable, estimator: str, file: Any = file) -> Any:
                made = advantages(self, estimator)
                by_id = {id: float(a).hex() for id, a in zip(self.ids, made, strict=True)}
                file.write(json.dumps({"estimator": estimator, "advantages": by_id}) + "\n")
                return made

            ScoreTable.advantages = told  # type: ignore[method-assign]
            trainer.train(resume=resume)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    advantages = ScoreTable.advantages
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
