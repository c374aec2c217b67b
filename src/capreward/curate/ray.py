"""Runs of a stage on a cluster: Ray Data hands the shards out, `pipeline` does and writes each as it does on one machine."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from capreward.coroutines import run as run_now
from capreward.curate.pipeline import Meter, Summary, Work, do_each, opened
from capreward.curate.sources import Shard, Source
from capreward.curate.stage import Stage
from capreward.errors import missing_extra, require_positive
from capreward.progress import progress_bar

TASKS = 16
"""For each worker, of shards that it does without a pause in between: few, but enough that no worker waits long for the last."""


def run_on_ray(
    stage_factory: Callable[[], Stage],
    source: Source,
    out: str | Path,
    *,
    shard_size: int = 256,
    workers: int = 2,
    at_once: int = 2,
    progress: bool = True,
    resume: bool = True,
    again: bool = False,
    **remote: Any,
) -> Summary:
    """`pipeline.run` with workers on a Ray cluster, all of which see `out` and the source under the same path.

    A worker that dies is replaced, and does its shards again; what it had finished stays. A worker that Ray has only lost sight
    of may come second to a shard, which it then leaves as it is. So every item still ends once in `items` or in `dead`.

    Ray is used as it was initialised, or starts by itself as it is configured (`RAY_ADDRESS`).

    Args:
        stage_factory: makes the stage, in each worker and once before, on the cluster as well, to describe it: engines and
            connections do not travel. Pickled.
        source: pickled without its index.
        workers: processes.
        at_once: shards that a worker has under way together.
        remote: for the workers, as in `Dataset.map_batches`: ``num_gpus=1`` for a stage that holds a model.
        shard_size, progress, resume, again: as in `pipeline.run`.

    Raises:
        InputError: as in `pipeline.run`.
        MissingExtraError: without the extra `ray`.
        ray.exceptions.RayTaskError: the stage raised an exception in a worker.
    """
    try:
        import ray.data
    except ImportError as error:
        raise missing_extra("run_on_ray", "ray", error) from error
    require_positive("run_on_ray", shard_size=shard_size, workers=workers, at_once=at_once)
    of_tasks = {name: remote[name] for name in ("num_cpus", "num_gpus", "resources", "memory") if name in remote}
    describing = ray.remote(max_calls=1, **of_tasks or {"num_cpus": 1})(_describe)  # its process ends with it
    name, described = ray.get(describing.remote(stage_factory))
    with opened(name, described, source, Path(out).absolute(), shard_size, resume=resume) as work:
        todo = work.todo(again=again)
        shards = [{"shard": pickle.dumps(shard)} for shard in todo.shards]
        if shards:
            at_a_time = max(at_once, len(shards) // (workers * TASKS))
            done = ray.data.from_items(shards, override_num_blocks=-(-len(shards) // at_a_time)).map_batches(
                _Worker,
                fn_constructor_args=(stage_factory, work, at_once, again),
                batch_size=None,  # all of a block
                concurrency=min(workers, len(shards)),
                **remote,
            )
            with progress_bar(todo.entries, name, "item", shown=progress) as advance:
                for row in done.iter_rows():
                    if advance is not None:
                        advance(row["entries"])
    return work.summary()


def _describe(stage_factory: Callable[[], Stage]) -> tuple[str, dict[str, Any]]:
    stage = stage_factory()
    return stage.name, dict(stage.describe())


class _Worker:
    """Lives in a process of the cluster."""

    def __init__(self, stage_factory: Callable[[], Stage], work: Work, at_once: int, again: bool) -> None:
        self.stage, self.work, self.at_once, self.again = stage_factory(), work, at_once, again
        self.meter = Meter(work.out, self.stage)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        return {"entries": run_now(self._do([pickle.loads(each) for each in batch["shard"]]))}

    async def _do(self, shards: list[Shard]) -> list[int]:
        entries: list[int] = []
        async with self.meter.beating():
            await do_each(self.work, self.stage, iter(shards), self.at_once, self.again, entries.append)
        return entries
