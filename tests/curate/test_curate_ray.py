"""In a process of its own, since Ray leaves threads and processes behind; loopback only."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

SCRIPT = """
import functools, json, sys
from pathlib import Path
import ray
from capreward.curate.pipeline import run
from capreward.curate.ray import run_on_ray
from capreward.curate.sources import Lines
from scripted import Mortal

out, grave = Path(sys.argv[2]), Path(sys.argv[3])
ray.init(num_cpus=3, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, object_store_memory=80_000_000)
go = functools.partial(run_on_ray, functools.partial(Mortal, grave), Lines(sys.argv[1]), out, shard_size=10, progress=False)
first = go(workers=2)
second = go(workers=2)  # nothing is left to do, here or on one machine
third = run(Mortal(grave), Lines(sys.argv[1]), out, shard_size=10, progress=False)
assert first.counts == second.counts == third.counts and first.usage == second.usage, (first, second, third)
Path(sys.argv[4]).write_text(json.dumps([first.items, first.dead, first.finished]))
ray.shutdown()
"""


def test_a_worker_that_dies_costs_no_item_and_makes_none_twice(tmp_path: Path) -> None:
    source, out, grave = tmp_path / "items.jsonl", tmp_path / "out", tmp_path / "grave"
    source.write_text("".join(json.dumps({"id": f"item-{n}"}) + "\n" for n in range(300)))
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent))),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes 127.0.0.1 for the machine's own address
        "HOME": str(tmp_path),  # where Ray keeps a token
    }
    command = [sys.executable, "-c", SCRIPT, str(source), str(out), str(grave), str(tmp_path / "summary.json")]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert grave.exists(), "no worker died"
    items, dead, finished = json.loads((tmp_path / "summary.json").read_text())
    assert (items, dead, finished) == (257, {"refused": 43}, True)
    ids = Counter(
        json.loads(line)["id"] for kind in ("items", "dead") for path in (out / kind).iterdir() for line in path.open()
    )
    assert ids == Counter(f"item-{n}" for n in range(300))
    sheet = json.loads((out / "datasheet.json").read_text())
    assert sheet["usage"]["fake"]["calls"] >= 280  # the one that died had not written down its last five seconds
    assert sheet["runs"] >= 3
