"""How far every component agrees with human side-by-side labels (ImageInWords), beside length alone, on two judges.

    python benchmarks/iiw/run.py [--judge lite|smollm2] [--cache FILE] [--quick]

For each of 100 images two captions were compared by human raters on five axes, from -2 to 2. Here each caption is scored, and
the difference of the two scores is held against the label (docs/agreement.md). One side wins most pairs, so accuracy would say
nothing; what length alone gives is the number to beat. Beside the components by themselves stand the balcaprl preset's fluency,
which the length mask gates, and its total (coverage and that fluency). QA, rubric and precision against facts or images are
not here: the data has no questions, criteria, facts or images. With the lite judge the arena of `capreward evaluate` is fought
over the same pairs.

SmolLM2-135M (tests/smollm2.py) cannot extract statements: all 10 replies of a trial were cut or broken. So the lite judge
splits references and captions into sentences for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import numpy as np
from common import ROOT, finish

from capreward import LiteJudge, Missing
from capreward.evaluate import Outcome, agreement_report, fight
from capreward.evaluate.labels import Labels, read_labels
from capreward.judges.base import Judge, Reply, Request, Task, Usage
from capreward.judges.cache import Cached
from capreward.presets import balcaprl
from capreward.samples import IIW

COMPONENTS = {
    "lite": ("coverage", "precision_vs_references", "fluency"),
    "smollm2": ("coverage", "precision_vs_references", "fluency", "likert", "likert_with_reference"),
}
RESAMPLES = 2000


class SentencesFrom:
    """A judge whose statements are another's."""

    images = False

    def __init__(self, judge: Judge, splitter: Judge) -> None:
        self.judge, self.splitter = judge, splitter
        self.name, self.tasks, self.usage = f"{judge.name}, sentences from {splitter.name}", judge.tasks, Usage()

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        replies: dict[Request, Reply | Missing] = {}
        for judge, extracts in ((self.splitter, True), (self.judge, False)):
            part = [request for request in requests if (request.task is Task.EXTRACT) is extracts]
            if part:
                replies |= zip(part, await judge.ask(part), strict=True)
        return [replies[request] for request in requests]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", choices=COMPONENTS, default="lite")
    parser.add_argument("--cache", type=Path, help="keeps SmolLM2's replies")
    parser.add_argument("--quick", action="store_true", help="40 images (SmolLM2: 8), printed as one JSON line")
    arguments = parser.parse_args()
    labels = read_labels(IIW)
    if arguments.quick:
        labels = labels.first(40 if arguments.judge == "lite" else 8)
    judge = judge_of(arguments)
    suite = agreement_report.components(judge, COMPONENTS[arguments.judge])
    result = agreement_report.measure(
        suite.score(labels.rollouts, progress=not arguments.quick), labels, resamples=RESAMPLES
    )
    of_preset = balcaprl(judge).score(labels.rollouts, progress=not arguments.quick)
    preset = agreement_report.measure(of_preset, labels, total=True, resamples=RESAMPLES)
    added = [(f"balcaprl's {name}", *row) for name, *row in preset.rows if name in ("fluency", "total")]
    order = [axis.name for axis in labels.axes]
    result = replace(result, rows=tuple(sorted([*result.rows, *added], key=lambda row: order.index(row[1].name))))
    if not arguments.quick:
        agreement_report.print_agreement(result)
    values: dict[str, float] = {}
    for name, axis, measured in result.rows:
        values[f"length / {axis.name}"] = measured.length["tau_b"].value
        values[f"{name} / {axis.name}"] = measured.score["tau_b"].value
    headline = [{"name": f"tau_b {name}", "value": round(value, 3), "unit": "tau-b"} for name, value in values.items()]
    details: dict[str, Any] = {"images": len(set(labels.images)), **result.to_json()}
    if arguments.judge == "lite":
        details["arena"] = arena(judge, labels)
        headline += [
            {"name": f"{whom}: human caption preferred", "value": counts["human"], "unit": f"of {sum(counts.values())}"}
            for whom, counts in details["arena"].items()
        ]
    finish(Path(__file__).parent, headline, details, arguments.quick, device=arguments.judge)
    if not arguments.quick:
        agreement_report.figure(result).savefig(Path(__file__).parent / "results" / f"{arguments.judge}.png", dpi=110)
        update_docs()


def arena(judge: Judge, labels: Labels) -> dict[str, dict[str, int]]:
    """Which caption of each pair the judge prefers in both orders, and which one people find more specific."""
    specific = next(axis for axis in labels.axes if axis.name == "Specificity")
    assert specific.second is not None
    pairs = [(labels.rollouts[i], labels.rollouts[j]) for i, j in zip(specific.first, specific.second, strict=True)]
    assert all(human.metadata["author"] == "IIW" for human, _ in pairs)
    outcomes = asyncio.run(fight(judge, pairs))
    signs = {1.0: Outcome.FIRST, -1.0: Outcome.SECOND, 0.0: Outcome.TIE}
    won = {Outcome.FIRST: "human", Outcome.SECOND: "PaLI-5B", Outcome.TIE: "neither"}
    return {
        "arena": Counter("missing" if isinstance(outcome, Missing) else won[outcome] for outcome in outcomes),
        "raters, specificity": Counter(won[signs[sign]] for sign in np.sign(specific.label).tolist()),
    }


def judge_of(arguments: argparse.Namespace) -> Judge:
    if arguments.judge == "lite":
        return LiteJudge()
    from smollm2 import smollm2

    from capreward.judges.local import LocalJudge

    judge: Judge = LocalJudge(smollm2())
    return SentencesFrom(Cached(judge, arguments.cache) if arguments.cache else judge, LiteJudge())


def update_docs() -> None:
    """Put tau-b and partial tau-b of all results files, with intervals, into docs/agreement.md."""
    tau: dict[str, dict[str, str]] = {}
    partial: dict[str, dict[str, str]] = {}
    for path in sorted(Path(__file__).parent.glob("results/*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            name = f"{row['component']}, {path.stem}"
            tau.setdefault("length alone", {})[row["axis"]] = shown(row["length"]["tau_b"])
            tau.setdefault(name, {})[row["axis"]] = shown(row["score"]["tau_b"])
            partial.setdefault(name, {})[row["axis"]] = shown(row["partial"])
    new = "<!-- iiw -->\n" + table("tau-b", tau) + "\n\n" + table("at equal length", partial) + "\n<!-- /iiw -->"
    path = ROOT / "docs" / "agreement.md"
    text = re.sub("<!-- iiw -->.*<!-- /iiw -->", lambda _: new, path.read_text(encoding="utf-8"), flags=re.DOTALL)
    path.write_text(text, encoding="utf-8")


def table(title: str, rows: dict[str, dict[str, str]]) -> str:
    axes = list(next(iter(rows.values())))
    lines = [[title, *axes], ["---"] * (len(axes) + 1), *([name, *cells.values()] for name, cells in rows.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(estimate: Sequence[float]) -> str:
    value, low, high = estimate
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
