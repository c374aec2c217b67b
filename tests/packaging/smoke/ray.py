"""Captions are made for 30 items by two workers of a local Ray; loopback only, and no progress bars to lean on."""

import json
import os
from pathlib import Path

os.environ |= {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes 127.0.0.1 for the machine's own address
    "RAY_USAGE_STATS_ENABLED": "0",
}
import ray

from capreward.curate.captions import Captions
from capreward.curate.ray import run_on_ray
from capreward.curate.sources import open_source
from capreward.judges import Reply
from capreward.judges.fake import FunctionJudge
from capreward.samples import PHOTOS


def stage():
    return Captions(FunctionJudge(lambda _: Reply(texts=("A picture of something.",)), images=True))


rows = [{"id": f"item-{n}", "image": str(PHOTOS.parent / "photos/coffee.jpg")} for n in range(30)]
Path("items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
ray.init(
    num_cpus=3,
    include_dashboard=False,
    _node_ip_address="127.0.0.1",
    log_to_driver=False,
    object_store_memory=80_000_000,
)
summary = run_on_ray(stage, open_source("items.jsonl"), "out", shard_size=10)
assert (summary.items, summary.finished) == (30, True), summary
assert sum(len(path.read_text().splitlines()) for path in Path("out/items").iterdir()) == 30
ray.shutdown()
