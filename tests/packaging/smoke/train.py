"""`capreward train` and `capreward sweep` on the drawn world, which hardly warms up here; with adapters too."""

import json
from pathlib import Path

from capreward import recipe
from capreward.cli import main

recipe.WARM_UP, recipe.SCENES = 1, 12
QUICK = [
    argument
    for setting in ("steps=2", "groups=2", "group_size=2", "max_tokens=8", "held_out=3")
    for argument in ("--set", setting)
]

assert main(["train", "shapes", "--out", "run", *QUICK]) == 0
assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2
assert Path("run/before_after.png").read_bytes().startswith(b"\x89PNG")
assert Path("run/final/model.safetensors").is_file()
assert list(Path("run").rglob("events.out.tfevents*"))

assert main(["train", "shapes", "--out", "adapted", *QUICK, "--set", "lora_rank=2"]) == 0
assert [json.loads(line)["step"] for line in Path("adapted/metrics.jsonl").read_text().splitlines()] == [1, 2]
