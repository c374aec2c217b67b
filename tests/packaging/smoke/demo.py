"""What the README says of it: its first block of Python, `capreward demo`, and a run of the drawn world that ends early."""

import re
import sys
from pathlib import Path

from capreward import recipe
from capreward.cli import main

readme = Path(sys.argv[1], "README.md").read_text()
exec(re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0], {})

assert main(["demo"]) == 0
assert {path.name for path in Path("capreward-demo").iterdir()} >= {"scores.jsonl", "scores.png", "ledger"}

recipe.WARM_UP, recipe.SCENES = 1, 12
changes = ("steps=1", "groups=2", "group_size=2", "max_tokens=8", "held_out=2")
assert main(["train", "shapes", *(word for change in changes for word in ("--set", change))]) == 0
