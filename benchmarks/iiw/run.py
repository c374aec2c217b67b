"""How far Coverage and Fluency on the lite judge agree with human side-by-side labels (ImageInWords), beside length alone.

    python benchmarks/iiw/run.py [--quick]

For each of 100 images two captions were compared by human raters on five axes, from -2 to 2. Here each caption is scored, and
the difference of the two scores is held against the label by Kendall's tau-b, with a 95 % bootstrap interval over images.
One side wins most pairs, so accuracy would say nothing; tau-b of the difference in length is the number to beat.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import finish

from capreward import Coverage, Fluency, LiteJudge, RewardSuite
from capreward.records import count_words
from capreward.samples import iiw

RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 images, printed as one JSON line")
    quick = parser.parse_args().quick
    rollouts = iiw()[: 80 if quick else None]
    judge = LiteJudge()
    table = RewardSuite({"coverage": Coverage(judge), "fluency": Fluency(judge)}).score(rollouts, progress=not quick)

    human, machine = slice(0, None, 2), slice(1, None, 2)
    lengths = np.array([count_words(rollout.caption) for rollout in rollouts], np.float64)
    differences = {name: table.values[human, k] - table.values[machine, k] for k, name in enumerate(table.names)}
    differences["length"] = lengths[human] - lengths[machine]
    axes = list(rollouts[0].item.metadata["labels"])
    labels = {axis: np.array([r.item.metadata["labels"][axis] for r in rollouts[human]]) for axis in axes}

    rows = []
    for axis in axes:
        for name, difference in differences.items():
            tau, low, high = tau_b(difference, labels[axis])
            rows.append({"axis": axis, "score": name, "tau_b": tau, "low": low, "high": high})
    for row in rows if not quick else ():
        print(f"{row['axis']:28s} {row['score']:10s} {row['tau_b']:+.2f}  [{row['low']:+.2f}, {row['high']:+.2f}]")
    headline = [
        {"name": f"tau_b {row['score']} / {row['axis']}", "value": round(row["tau_b"], 3), "unit": "tau-b"}
        for row in rows
    ]
    finish(Path(__file__).parent, headline, {"images": len(rollouts) // 2, "resamples": RESAMPLES, "rows": rows}, quick)


def tau_b(difference: NDArray[np.float64], label: NDArray[np.int64]) -> tuple[float, float, float]:
    """Kendall's tau-b, and the 2.5 % and 97.5 % quantiles of its bootstrap over images."""
    draws = np.random.default_rng(0).integers(len(label), size=(RESAMPLES, len(label)))
    resampled = [kendalltau(difference[draw], label[draw], variant="b").statistic for draw in draws]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return float(kendalltau(difference, label, variant="b").statistic), float(low), float(high)


if __name__ == "__main__":
    main()
