"""How fast advantages are computed: ours beside verl's and TRL's own code, on the same rewards, on one thread.

    .venv/bin/python benchmarks/advantage/run.py            # about 4 minutes, under 3 GB; writes results/cpu.json
    .venv/bin/python benchmarks/advantage/run.py --quick    # under 50 s; prints one line

verl runs in .venv-verl (`make test` sets it up). Each time is the fastest of several calls with everything in memory:
it holds one call of the estimator, from arrays to array, and no import.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "parity"))

from common import finish
from trl_formula import AGGREGATIONS, trl_advantages
from verl_formula import verl_gdpo

from capreward import gdpo, grpo

COMPONENTS = 8
ROLLOUTS = 1_000_000
VERL_EPS = 1e-6


def interleaved(rollouts: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores [B, K] and group ids [B]: groups of 2 to 16 rollouts, in random order."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(rollouts), rng.integers(2, 17, rollouts))[:rollouts]
    if ids[-1] != ids[-2]:
        ids[-1] = ids[-2]  # verl does something else with a group of one
    return scores(rng, rollouts), rng.permutation(ids)


def scores(rng: np.random.Generator, rollouts: int) -> np.ndarray:
    """Numbers that float32 holds, so that all start from the same ones."""
    return rng.random((rollouts, COMPONENTS), dtype=np.float32).astype(np.float64)


def fastest(calls: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each call's fastest run, and its result. In turns, so that a slow spell of the machine hits them all."""
    seconds = dict.fromkeys(calls, float("inf"))
    results = {}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            results[name] = call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds, results


def growth(repeats: int) -> list[dict[str, Any]]:
    """Ours alone, at three sizes; and with string ids, which take longer to sort."""
    rows = []
    for rollouts in (ROLLOUTS // 100, ROLLOUTS // 10, ROLLOUTS):
        values, groups = interleaved(rollouts)
        calls = {"integer": lambda v=values, g=groups: gdpo(v, g)}
        if rollouts == ROLLOUTS:
            strings = np.char.mod("%032x", groups)
            calls["32-letter string"] = lambda v=values, g=strings: gdpo(v, g)
        seconds, _ = fastest(calls, repeats)
        rows += [
            {"rollouts": rollouts, "ids": ids, "seconds": s, "nanoseconds_per_rollout": s / rollouts * 1e9}
            for ids, s in seconds.items()
        ]
    return rows


def beside_verl(sizes: dict[int, int], ours_repeats: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """GDPO over unequal, interleaved groups; `sizes` maps a number of rollouts to how often verl's loop runs."""
    batches = {rollouts: interleaved(rollouts) for rollouts in sizes}
    cases = {
        str(rollouts): {"rewards": values, "groups": groups, "repeats": np.array(sizes[rollouts])}
        for rollouts, (values, groups) in batches.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        verl = verl_gdpo(cases, Path(folder), timeout=3600)
    rows = []
    for rollouts, (values, groups) in batches.items():
        seconds, ours = fastest({"ours": lambda v=values, g=groups: gdpo(v, g, eps=VERL_EPS)}, ours_repeats)
        theirs = verl.seconds[str(rollouts)]
        rows.append(
            {
                "rollouts": rollouts,
                "ours_seconds": seconds["ours"],
                "verl_seconds": theirs,
                "verl_calls": sizes[rollouts],
                "verl_over_ours": theirs / seconds["ours"],
                "verl_microseconds_per_rollout": theirs / rollouts * 1e6,
                "largest_difference": float(np.abs(verl.advantages[str(rollouts)][:, 0] - ours["ours"]).max()),
            }
        )
    return rows, verl.versions


def beside_trl(repeats: int) -> list[dict[str, Any]]:
    """Equal groups of 8 in a row, the only ones TRL has; it gets float32, as in its trainer."""
    rng = np.random.default_rng(0)
    values, groups = scores(rng, ROLLOUTS), np.repeat(np.arange(ROLLOUTS // 8), 8)
    tensor = torch.from_numpy(values).float()
    rows = []
    for estimator, aggregation in zip((grpo, gdpo), AGGREGATIONS, strict=True):
        calls = {
            "ours": lambda e=estimator: e(values, groups),
            "trl": lambda a=aggregation: trl_advantages(tensor, None, 8, a),
        }
        seconds, results = fastest(calls, repeats)
        rows.append(
            {
                "estimator": estimator.__name__,
                "rollouts": ROLLOUTS,
                "ours_seconds": seconds["ours"],
                "trl_seconds": seconds["trl"],
                "trl_over_ours": seconds["trl"] / seconds["ours"],
                "largest_difference": float(np.abs(results["trl"].numpy() - results["ours"]).max()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="verl at few rollouts, fewer repeats, no files")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)

    repeats = 3 if quick else 9
    alone = growth(repeats)
    verl, verl_versions = beside_verl({5_000: 2, 10_000: 2} if quick else {20_000: 5, 40_000: 5, ROLLOUTS: 1}, repeats)
    trl = beside_trl(repeats)

    largest = next(row for row in alone if row["rollouts"] == ROLLOUTS)
    of_trl = {row["estimator"]: row for row in trl}
    headline = [
        {"name": "ours, GDPO, unequal interleaved groups, 1,000,000 x 8", "value": largest["seconds"], "unit": "s"},
        {
            "name": "ours per rollout, 1,000,000 over 100,000 rollouts",
            "value": largest["nanoseconds_per_rollout"] / alone[1]["nanoseconds_per_rollout"],
            "unit": "x",
        },
        {"name": "verl's time over ours, GDPO, same batch", "value": verl[-1]["verl_over_ours"], "unit": "x"},
        {
            "name": "verl's time per rollout, twice the rollouts over once",
            "value": verl[1]["verl_microseconds_per_rollout"] / verl[0]["verl_microseconds_per_rollout"],
            "unit": "x",
        },
        {
            "name": "TRL's time over ours, GDPO, equal groups of 8, 1,000,000 x 8",
            "value": of_trl["gdpo"]["trl_over_ours"],
            "unit": "x",
        },
        {"name": "TRL's time over ours, GRPO, the same", "value": of_trl["grpo"]["trl_over_ours"], "unit": "x"},
        {"name": "verl's largest difference from ours", "value": verl[-1]["largest_difference"], "unit": ""},
        {"name": "TRL's largest difference from ours, GDPO", "value": of_trl["gdpo"]["largest_difference"], "unit": ""},
    ]
    finish(
        Path(__file__).parent,
        headline,
        {"components": COMPONENTS, "ours": alone, "beside_verl": verl, "beside_trl": trl},
        quick,
        packages=("capreward", "numpy", "torch", "trl"),
        versions={"verl": verl_versions["verl"], "torch, verl's": verl_versions["torch"]},
    )


if __name__ == "__main__":
    main()
