"""What training does to a captioner of the drawn world: held-out scores before and after, with three seeds.

    python benchmarks/shapes/run.py [--quick]

Runs `recipes/shapes.yaml`, warm-up included, once for each seed; draws the curves of all of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ROOT, finish

from capreward import recipe
from capreward.report import Run
from capreward.train.config import TrainConfig

HERE = Path(__file__).parent
SHOWN = ("precision", "coverage", "fluency", "qa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="one seed, a fraction of the steps, printed as one JSON line"
    )
    quick = parser.parse_args().quick
    runs = [train(seed, quick) for seed in ((0,) if quick else (0, 1, 2))]
    headline = []
    for name in SHOWN:
        for place, when in enumerate(("before", "after")):
            mean = float(np.mean([run["means"][name][place] for run in runs]))
            headline.append({"name": f"{name} {when}", "value": mean, "unit": "mean over seeds, in [0, 1]"})
    headline.append({"name": "a run", "value": max(run["seconds"] for run in runs) / 60, "unit": "min, the longest"})
    if not quick:
        (HERE / "results").mkdir(exist_ok=True)
        draw([run["metrics"] for run in runs]).savefig(HERE / "results" / "curves.png", dpi=110)
    details = {"runs": [{key: value for key, value in run.items() if key != "metrics"} for run in runs]}
    finish(HERE, headline, details, quick, packages=("capreward", "numpy", "torch", "transformers"))


def train(seed: int, quick: bool) -> dict[str, Any]:
    """One run: held-out means before and after by component, minutes, metrics."""
    begin = time.perf_counter()
    small = {"steps": 5, "groups": 4, "held_out": 16} if quick else {}
    if quick:
        recipe.WARM_UP, recipe.SCENES = 80, 60
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig.from_yaml(ROOT / "recipes" / "shapes.yaml", seed=seed, out=Path(folder) / "run", **small)
        recipe.make_trainer(config).train()
        run = Run.read(config.out, {})
    means = {name: run.means(name) for name in run.names}
    words = [float(np.mean([len(row["caption"].split()) for row in rows])) for rows in (run.before, run.after)]
    seconds = time.perf_counter() - begin
    return {"seed": seed, "means": means, "words": words, "seconds": seconds, "metrics": run.metrics}


def draw(runs: list[list[dict[str, Any]]]) -> Figure:
    """Each component over the steps, a line a seed."""
    picture = Figure(figsize=(10, 2.8), layout="constrained")
    for axis, name in zip(picture.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
        for metrics in runs:
            values = np.array([row[f"{name}/value"] for row in metrics], np.float64)
            axis.plot([row["step"] for row in metrics], values, linewidth=1)
        axis.set_title(name, fontsize=10)
        axis.set(xlabel="step", ylim=(0, 1.02))
        axis.grid(linewidth=0.4)
    return picture


if __name__ == "__main__":
    main()
