"""What-ifs on 1,000,000 recorded rollouts x 5 components: seconds, memory, and how often anything was scored again.

    .venv/bin/python benchmarks/replay/run.py            # about 2 minutes, 1 GB of disk, under 1.5 GB; writes results/cpu.json
    .venv/bin/python benchmarks/replay/run.py --quick    # 100,000 rollouts, under 50 s; prints one line

The ledger is made up: five scores that share a caption's quality, two that pull at its length, one that is sometimes missing.
Its first step is scored by a real suite into one ledger and written as JSON lines by this script into another; the two have to
be the same bytes. Each time is one call, on files in the system's cache: seconds of the processor, so that what else runs on the
machine counts little; those of the clock are in the results file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from common import finish

from capreward import Item, LengthMask, Missing, Reason, RewardSuite, Rollout, Score
from capreward.ablation import Ablation, Variant, default_variants
from capreward.ablation_report import make_report
from capreward.data import digest
from capreward.ledger import Ledger, LedgerWriter, describe

NAMES = ("precision", "coverage", "rubric", "qa", "fluency")
GROUPS, SIZE, ITEMS = 64, 8, 5000
"""Groups of a step, rollouts of a group, items in all."""
REFERENCE = "word " * 59 + "word"
WHY = "as drawn"
DOWN = Missing(Reason.SERVER, "down")


def drawn(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths [B] and scores [B, K] of a step; NaN = missing."""
    chance = np.random.default_rng(step)
    quality, length = chance.random(GROUPS * SIZE), chance.integers(15, 140, GROUPS * SIZE)
    noise = chance.normal(0, 0.15, (GROUPS * SIZE, len(NAMES)))
    means = (1 - length / 160, length / 160 + 0.1, quality, quality, 0.5 + 0.3 * quality)
    scores = np.round(np.clip(np.stack(means, axis=1) + noise, 0, 1), 2)
    scores[:, 3] = np.round(scores[:, 3] * 5) / 5
    scores[chance.random(len(scores)) < 0.02, 2] = np.nan
    return length, scores


def items_of(step: int) -> list[str]:
    return [f"item {(step * GROUPS + group) % ITEMS}" for group in range(GROUPS)]


class Drawn:
    """A component that looks its scores up and counts what it was asked."""

    def __init__(self, name: str, scores: dict[str, float]) -> None:
        self.name, self.scores, self.asked = name, scores, 0

    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        self.asked += len(rollouts)
        found = [self.scores[str(rollout.id)] for rollout in rollouts]
        return [DOWN if np.isnan(score) else Score(score, WHY) for score in found]


def scored(folder: Path) -> RewardSuite:
    """Step 0, scored by a suite that writes to the folder."""
    lengths, scores = drawn(0)
    ids = [f"0/{item}#{place}" for item in items_of(0) for place in range(SIZE)]
    components = {name: Drawn(name, dict(zip(ids, scores[:, k].tolist(), strict=True))) for k, name in enumerate(NAMES)}
    suite = RewardSuite(components, gates=[LengthMask("fluency")], spare=False, ledger=LedgerWriter(folder))
    suite.score(
        [
            Rollout(
                item=Item(id=items_of(0)[row // SIZE], references=(REFERENCE,)),
                caption=caption_of(int(length)),
                id=ids[row],
                metadata={"step": 0},
            )
            for row, length in enumerate(lengths)
        ],
        progress=False,
    )
    return suite


def caption_of(length: int) -> str:
    return ("word " * length)[:-1]


def lines(step: int, suite: str) -> Iterator[str]:
    """A step as `LedgerWriter` writes it."""
    lengths, scores = drawn(step)
    items, evidence = items_of(step), json.dumps({name: {} for name in NAMES})
    for row, (length, numbers) in enumerate(zip(lengths.tolist(), scores.tolist(), strict=True)):
        item = items[row // SIZE]
        ratio = length / 60
        raw = {name: None if np.isnan(score) else score for name, score in zip(NAMES, numbers, strict=True)}
        missing = {name: DOWN.reason if score is None else None for name, score in raw.items()}
        why = {name: f"missing ({DOWN.reason}): {DOWN.detail}" if reason else WHY for name, reason in missing.items()}
        gated = {}
        if not 0.5 <= ratio <= 2:
            gated["fluency"] = why["fluency"] = f"length {ratio:.2f} x reference, allowed 0.5 to 2"
        line = {
            "id": f"{step}/{item}#{row % SIZE}",
            "group": item,
            "batch": f"step {step}",
            "step": step,
            "item": item,
            "suite": suite,
            "caption": caption_of(length),
            "length": length,
            "ratio": ratio,
            "decided": False,
            "metadata": json.dumps({"step": step}),
            "raw": raw,
            "value": {**raw, "fluency": 0.0} if gated else raw,
            "missing": missing,
            "why": why,
            "gated": gated,
            "unread": {},
            "evidence": evidence,
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def write(folder: Path, steps: int) -> RewardSuite:
    """A ledger of that many steps; the suite that scored the first."""
    suite = scored(folder)
    name = digest(describe(suite))
    first = (folder / "rollouts.jsonl").read_bytes()
    if "".join(lines(0, name)).encode() != first:
        raise SystemExit("the lines of this script are not those of LedgerWriter")
    with (folder / "rollouts.jsonl").open("a", encoding="utf-8") as file:
        for step in range(1, steps):
            file.writelines(lines(step, name))
    return suite


def timed(seconds: dict[str, float], clock: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    start = time.process_time(), time.perf_counter()
    result = call()
    seconds[name], clock[name] = time.process_time() - start[0], time.perf_counter() - start[1]
    return result


MEASURES: dict[str, Callable[[Ledger], Any]] = {
    "nothing": lambda _: None,
    "blocks": lambda ledger: sum(
        len(batch) for batch in ledger.batches(["batch", "group", "item", "suite", "raw", "value"])
    ),
    "rows": lambda ledger: ledger.rows(),
    "everything": lambda ledger: make_report((ablation := Ablation(ledger)), default_variants(ablation)),
}
"""What a process of its own does, for its peak memory."""


def peak(what: str, folder: Path) -> float:
    """MiB."""
    command = [sys.executable, __file__, "--peak", what, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 rollouts, no files")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        MEASURES[arguments.peak[0]](Ledger(arguments.peak[1]))
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)  # getrusage would count the parent's peak too
        return
    steps = 196 if arguments.quick else 1954
    with tempfile.TemporaryDirectory() as name:
        folder, seconds, clock = Path(name), {}, {}
        time_call = partial(timed, seconds, clock)
        suite = time_call("making the ledger up", lambda: write(folder, steps))
        asked = sum(component.asked for component in suite.components.values())
        size = sum(path.stat().st_size for path in folder.glob("*.jsonl")) / 2**20
        ablation = time_call("reading", lambda: Ablation(Ledger(folder)))
        for estimator in ("gdpo", "grpo"):
            time_call(estimator, lambda e=estimator: ablation.advantages(Variant(estimator=e)))
        gates = Variant(gates=[LengthMask("fluency", low=0.8, high=1.5)])
        time_call("other gates, gdpo", lambda: ablation.advantages(gates))
        variants = {**default_variants(ablation), "narrow mask": gates}
        time_call("page", lambda: make_report(ablation, variants))
        fresh = time_call("reading again", lambda: Ablation(Ledger(folder)))
        for frame, call in {
            "compare": lambda: fresh.compare(variants),
            "contributions": fresh.contributions,
            "conflicts": fresh.conflicts,
            "variation": fresh.variation,
            "collapse": fresh.collapse,
            "best_of": fresh.best_of,
            "pareto": lambda: fresh.pareto(variants),
            "length_bias": fresh.length_bias,
        }.items():
            time_call(f"frame {frame}", call)
        frames = sum(second for what, second in seconds.items() if what.startswith("frame "))
        asked = sum(component.asked for component in suite.components.values()) - asked
        mib = {what: peak(what, folder) for what in MEASURES}
    headline = [
        {"name": "rollouts x components", "value": steps * GROUPS * SIZE, "unit": f"x {len(NAMES)}"},
        {"name": "size of the ledger", "value": size, "unit": "MiB"},
        {"name": "reading it, all numbers into memory", "value": seconds["reading"], "unit": "s"},
        {"name": "other advantages: GDPO, batch by batch", "value": seconds["gdpo"], "unit": "s"},
        {"name": "other advantages: GRPO", "value": seconds["grpo"], "unit": "s"},
        {"name": "other gates and GDPO", "value": seconds["other gates, gdpo"], "unit": "s"},
        {"name": "all frames, 12 variants, 1,000 resamples", "value": frames, "unit": "s"},
        {"name": "the page, from what was read", "value": seconds["page"], "unit": "s"},
        {"name": "peak memory of reading block by block", "value": mib["blocks"] - mib["nothing"], "unit": "MiB"},
        {"name": "peak memory of all numbers", "value": mib["rows"] - mib["nothing"], "unit": "MiB"},
        {"name": "peak memory of the page", "value": mib["everything"] - mib["nothing"], "unit": "MiB"},
        {"name": "scores asked of components meanwhile", "value": asked, "unit": ""},
    ]
    finish(
        Path(__file__).parent,
        headline,
        {
            "groups": steps * GROUPS,
            "items": ITEMS,
            "variants": list(variants),
            "processor_seconds": seconds,
            "clock_seconds": clock,
            "peak_mib": mib,
        },
        arguments.quick,
        packages=("capreward", "numpy", "pandas", "pyarrow", "matplotlib"),
    )


if __name__ == "__main__":
    main()
