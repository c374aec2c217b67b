"""Which kind of caption loses on which component, on the nine photographs that come with the package (lite judge).

    python benchmarks/photos/run.py [--quick]

For each kind of rollout and component: the mean score, and on how many photographs it scores below the dense, right caption.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import finish
from picture import draw

from capreward import LiteJudge
from capreward.presets import everything
from capreward.samples import SHOULD_LOSE, photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three photographs, printed as one JSON line")
    quick = parser.parse_args().quick
    rollouts = photos()[: 18 if quick else None]
    # spare=False: the raw fluency of captions that the length mask sets to 0 is part of the question
    table = everything(LiteJudge(), spare=False).score(rollouts, progress=not quick)
    kinds = [rollout.metadata["kind"] for rollout in rollouts[:6]]
    raw = table.raw.reshape(-1, len(kinds), len(table.names))  # photograph, kind, component
    advantages = {name: table.advantages(name).reshape(-1, len(kinds)) for name in ("grpo", "gdpo")}

    rows = []
    for j, kind in enumerate(kinds):
        means = {name: float(np.mean(raw[:, j, k])) for k, name in enumerate(table.names)}
        loses = {name: int((raw[:, j, k] < raw[:, 0, k]).sum()) for k, name in enumerate(table.names)}
        mean_advantage = {name: float(column[:, j].mean()) for name, column in advantages.items()}
        rows.append({"kind": kind, "mean": means, "below_dense": loses, "advantage": mean_advantage})
        if not quick:
            cells = "  ".join(f"{name} {means[name]:.2f} ({loses[name]}/{len(raw)})" for name in table.names)
            print(f"{kind:12s} {cells}  GRPO {mean_advantage['grpo']:+.2f}  GDPO {mean_advantage['gdpo']:+.2f}")
    headline = [
        {
            "name": f"{kind} below dense on {name}",
            "value": rows[kinds.index(kind)]["below_dense"][name],
            "unit": f"of {len(raw)}",
        }
        for kind, name in SHOULD_LOSE
    ]
    if not quick:
        draw(table, rollouts, Path(__file__).parent / "results" / "coffee.png")
    finish(Path(__file__).parent, headline, {"photographs": len(raw), "rows": rows}, quick)


if __name__ == "__main__":
    main()
