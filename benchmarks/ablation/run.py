"""The papers' claims in a world with exact ground truth: every condition is trained with several seeds and measured exactly.

    python benchmarks/ablation/run.py [--seeds 5] [--out FOLDER] [--jobs N] [--only NAME ...] [--scale gpu] [--quick]

A second call goes on where the first one ended: what is finished lies in FOLDER and is not done again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import page
import training
from claims import CLAIMS, Measures, difference
from common import finish
from conditions import CONDITIONS, STARTS
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
QUICK = ("start", "c-GDPO", "c-GDPO, sampled again", "GRPO", "c-GDPO, fluency x 5", "GRPO, fluency x 5")
"""Conditions that the headline is made of."""
GPU = (*QUICK, "without linguistic", "QA", "rubric", "Likert")
HEADLINE = (
    ("c-GDPO less GRPO, one scale", "c-GDPO", "GRPO", "b_capscore"),
    ("c-GDPO less GRPO, fluency x 5", "c-GDPO, fluency x 5", "GRPO, fluency x 5", "b_capscore"),
    ("c-GDPO, fluency x 5 less x 1", "c-GDPO, fluency x 5", "c-GDPO", "b_capscore"),
    ("GRPO, fluency x 5 less x 1", "GRPO, fluency x 5", "GRPO", "b_capscore"),
    ("control: the same, sampled again", "c-GDPO, sampled again", "c-GDPO", "b_capscore"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="six conditions, two seeds, a few steps: one JSON line")
    parser.add_argument(
        "--scale", choices=("cpu", "gpu"), default="cpu", help="gpu: ten times the parameters, longer captions"
    )
    parser.add_argument("--seeds", type=int, help="how many, from 0 on; 5, or 3 with --scale gpu")
    parser.add_argument(
        "--only", nargs="+", choices=[*STARTS, *CONDITIONS], help="conditions; all, or a few with --scale gpu"
    )
    parser.add_argument("--out", type=Path, help="folder to resume from; capreward-ablation-SCALE when left out")
    parser.add_argument("--jobs", type=int, help="processes at once; one a core, or 6 on a GPU")
    parser.add_argument("--steps", type=int, help="of a run, in place of the scale's")
    given = parser.parse_args()
    scale = training.SIZES["quick" if given.quick else given.scale]
    if given.steps:
        scale = training.replace(scale, steps=given.steps)
    names = given.only or (QUICK if given.quick else GPU if given.scale == "gpu" else (*STARTS, *CONDITIONS))
    seeds = range(given.seeds or (2 if given.quick else 3 if given.scale == "gpu" else 5))
    jobs = given.jobs or (6 if given.scale == "gpu" else len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if given.quick else given.out or Path(f"capreward-ablation-{scale.name}")
        found = train(out, names, seeds, scale, jobs)
    report(found, scale, jobs, seeds, quick=given.quick)


def train(
    out: Path, names: Sequence[str], seeds: Sequence[int], scale: training.Scale, jobs: int
) -> list[dict[str, Any]]:
    """Every run of the conditions and seeds, from its file where it was done before; fails at the end if one did."""
    out.mkdir(parents=True, exist_ok=True)
    settings, wanted_settings = out / "scale.json", json.dumps(training.asdict(scale))
    if settings.is_file() and settings.read_text(encoding="utf-8") != wanted_settings:
        raise SystemExit(f"{out} holds runs of another scale ({settings}); give another --out")
    settings.write_text(wanted_settings, encoding="utf-8")
    runs = len(seeds) * len(names)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # of the processes
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    found: list[dict[str, Any]] = []
    failed: list[str] = []
    with ProcessPoolExecutor(jobs, context, _quiet) as pool, tqdm(total=runs, unit="run", smoothing=0) as bar:
        warming = {pool.submit(training.make_starts, out, seed, scale): seed for seed in seeds}
        running: dict[Future[dict[str, Any]], str] = {}
        while warming or running:
            done, _ = wait([*warming, *running], return_when="FIRST_COMPLETED")
            for future in done:
                seed = warming.pop(future, None)
                name = running.pop(future, "warm-up")
                if error := future.exception():
                    failed.append(f"{name}: {type(error).__name__}: {error}")
                    tqdm.write(failed[-1], file=sys.stderr)
                elif seed is not None:
                    running |= {
                        pool.submit(training.run, out, name, seed, scale): f"{name}, seed {seed}" for name in names
                    }
                else:
                    found.append(future.result())
                    bar.set_postfix_str(name)
                    bar.update()
    if failed:
        raise SystemExit(f"{len(failed)} failed; the same command tries these again and keeps the others")
    return sorted(found, key=lambda run: (names.index(run["condition"]), run["seed"]))


def _quiet() -> None:
    """Of a process that trains: one thread, no bars, and no life after the process that started it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch
    import transformers

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # every trainer draws a bar there; errors come back with the run
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def report(found: list[dict[str, Any]], scale: training.Scale, jobs: int, seeds: Sequence[int], *, quick: bool) -> None:
    """Write the results file, the figures and the tables; of a quick run print the headline."""
    measures: Measures = {(run["condition"], run["seed"]): run["measures"] for run in found}
    headline = []
    for name, condition, baseline, measure in HEADLINE:
        finding = difference(measures, condition, baseline, measure)
        if finding:
            headline.append(
                {"name": name, "value": finding.mean, "unit": f"{measure}, mean over {finding.seeds} seeds"}
            )
    minutes = sum(run["seconds"] for run in found) / 60 / jobs
    headline.append({"name": "time", "value": minutes, "unit": f"min, {len(found)} runs, {jobs} at once"})
    rows = page.claim_rows(measures, CLAIMS)
    details = {
        "seeds": list(seeds),
        "scale": training.asdict(scale),
        "claims": rows,
        "follows": page.follows_rows(found),
        "runs": [{key: run[key] for key in ("condition", "seed", "seconds", "ended", "measures")} for run in found],
    }
    device = scale.name if scale.name != "gpu" else _accelerator()
    packages = ("capreward", "numpy", "torch", "transformers")
    finish(HERE, headline, details, quick, packages=packages, device=device)
    if not quick and scale.name != "gpu":  # a lent machine may not be able to draw
        page.draw(HERE, device)


def _accelerator() -> str:
    import torch

    if not torch.cuda.is_available():
        return "gpu-scale-on-cpu"
    return torch.cuda.get_device_name().lower().replace(" ", "-")


if __name__ == "__main__":
    main()
