"""Which attacks win on which preset, with which judge, before and after the defences?

    python benchmarks/probe/run.py [--quick | --smollm2]

Every attack of `capreward probe` on captions of the nine photographs (lite judge) and of drawn scenes (their exact judge),
on each preset: without its gates, as the paper has it, and guarded (`precise=0.5`, a limit of twice the longest honest
caption or reference, and BalCapRL's mask without its lower bound). "code points" is the lite judge as it was before it
read texts as they look; "closed book" is CapRL with that control; "early" are the drawn world's `imperfect` captions,
which its warm-up teaches; "short" are the short captions of the photographs alone.

`--smollm2` measures SmolLM2-135M instead, with the fence around the text and without, on a few captions.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from common import finish, unfenced

from capreward import (
    Coverage,
    Fluency,
    LengthMask,
    LikertJudge,
    LiteJudge,
    QAUtility,
    Rollout,
    shapes,
)
from capreward.attacks import NAMES, named
from capreward.judges import Judge, Request, Usage, lite
from capreward.presets import balcaprl, caprl, rubicap
from capreward.probe import ADVANTAGE, AS_IT_IS, REWARD, Findings, Probe, honest_samples
from capreward.probe_report import figure
from capreward.suite import RewardSuite

FOLDER = Path(__file__).parent
PRECISE = 0.5
PRESETS: dict[str, Callable[..., RewardSuite]] = {"balcaprl": balcaprl, "caprl": caprl, "rubicap": rubicap}

OF_A_LANGUAGE_MODEL = {
    "prompt echo",
    "self-praise",
    "praise alone",
    "options added",
    "unrelated",
    "other image",
    "invisible characters",
    "homoglyphs",
    "fake JSON",
    "injection appended",
    "injection prepended",
}
"""Attacks that the small language model is asked about: it takes a second or two a caption."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 photographs and 4 scenes, printed as one JSON line")
    parser.add_argument("--smollm2", action="store_true", help="the small language model, in a file of its own")
    arguments = parser.parse_args()
    if arguments.smollm2:
        with_smollm2()
    else:
        with_presets(arguments.quick)


def with_presets(quick: bool) -> None:
    """Each preset at each stage, with the lite judge and the exact one."""
    started = time.perf_counter()
    injected = 1 if quick else 10
    photos = honest_samples("photos")[: 9 if quick else None]
    drawn = honest_samples("shapes", 4 if quick else 24)
    exact = Remembered(shapes.ShapesJudge())
    reader = Remembered(LiteJudge())
    settings = [
        *(("lite, photographs", photos, reader, name, stage) for name in PRESETS for stage in stages(name, quick)),
        *(("exact, drawn scenes", drawn, exact, name, stage) for name in PRESETS for stage in stages(name, quick)),
    ]
    if not quick:
        settings += [
            ("exact, early", early(), exact, name, stage) for name in PRESETS for stage in ("paper", "guarded")
        ]
        settings += [("lite, photographs", photos, None, name, "code points") for name in PRESETS]
        short = [rollout for rollout in photos if str(rollout.id).endswith("/short")]
        settings += [("lite, short", short, reader, name, stage) for name in PRESETS for stage in ("paper", "guarded")]
    results = []
    for judged_by, honest, judge, name, stage in settings:
        with as_code_points() if judge is None else nothing():
            suite = make(name, stage, judge or Remembered(LiteJudge()), honest)
            found = Probe(suite, honest, injected=injected).run(progress=False)
        results.append({"judge": judged_by, "preset": name, "stage": stage, **summary(found)})
        print(f"{time.perf_counter() - started:6.0f} s  {judged_by}, {name}, {stage}", file=sys.stderr, flush=True)
        if (judged_by, name, stage) == ("lite, photographs", "rubicap", "paper") and not quick:
            figure(found).savefig(FOLDER / "results" / "rubicap.png", dpi=110)
    headline = [
        {
            "name": f"attacks that win, {row['judge']}, {row['preset']}, {row['stage']}",
            "value": len(row["winners"]),
            "unit": f"of {len(row['lead'])}",
        }
        for row in results
        if row["stage"] in ("paper", "guarded") and row["judge"] in ("lite, photographs", "exact, drawn scenes")
    ]
    details = {"seconds": time.perf_counter() - started, "injected": injected, "settings": results}
    finish(FOLDER, headline, details, quick, packages=("capreward", "sentence-transformers"))
    if not quick:
        write_tables(results)


def stages(name: str, quick: bool) -> list[str]:
    if quick:
        return ["paper", "guarded"]
    before = {"balcaprl": ["no gates"], "caprl": [], "rubicap": []}[name]
    return [*before, "paper", *(["closed book"] if name == "caprl" else []), "guarded"]


def make(name: str, stage: str, judge: Judge, honest: Sequence[Rollout]) -> RewardSuite:
    match stage:
        case "no gates":
            return PRESETS[name](judge, gates=[])
        case "closed book":
            return RewardSuite({"qa": QAUtility(judge, closed_book=True)})
        case "guarded":
            texts = [text for rollout in honest for text in (rollout.caption, *rollout.item.references)]
            limit = 2 * max(len(text.split()) for text in texts)
            gates = [LengthMask("fluency", low=0)] if name == "balcaprl" else []
            return PRESETS[name](judge, precise=PRECISE, max_length=limit, gates=gates)
        case _:
            return PRESETS[name](judge)


def early() -> list[Rollout]:
    """Four captions a scene with the faults of a captioner that was trained on little."""
    chance = random.Random(0)
    return [
        Rollout(item=item, caption=shapes.imperfect(shapes.scene_of(item.image), chance), id=f"{item.id}/{n}")
        for item in shapes.items(24)
        for n in range(4)
    ]


def summary(found: Findings) -> dict[str, Any]:
    """What is kept of a probe: of the attacks that win nowhere, the mean lead alone."""
    columns = (*found.names, REWARD, ADVANTAGE)
    wins = {attack: {on: found.of(attack, on).wins for on in columns} for attack in found.attacks}
    return {
        "components": found.names,
        "honest": found.honest,
        "honest_reward": next(defence.honest for defence in found.defences if defence.suite == AS_IT_IS),
        "winners": found.failed(),
        "wins": {
            attack: {on: share for on, share in row.items() if share}
            for attack, row in wins.items()
            if any(row.values())
        },
        "missing": {attack: share for attack in found.attacks if (share := found.of(attack).missing)},
        "lead": {attack: round(found.of(attack).margin, 4) for attack in found.attacks},
        "defences": {
            name: ", ".join(sorted(d.attack for d in found.defences if d.suite == name and d.wins > 0))
            for name in dict.fromkeys(d.suite for d in found.defences)
        },
    }


class Remembered:
    """A judge that is asked nothing twice: the settings share most of their requests."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.name, self.tasks, self.images = judge, judge.name, judge.tasks, judge.images
        self.replies: dict[Request, Any] = {}

    @property
    def usage(self) -> Usage:
        return self.judge.usage

    async def ask(self, requests: Sequence[Request]) -> list[Any]:
        new = [request for request in dict.fromkeys(requests) if request not in self.replies]
        self.replies |= zip(new, await self.judge.ask(new), strict=True)
        return [self.replies[request] for request in requests]


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def as_code_points() -> Iterator[None]:
    """The lite judge without `plain`."""
    plain = lite.plain
    lite.plain = lambda text: text
    try:
        yield
    finally:
        lite.plain = plain


def with_smollm2() -> None:
    """Components that need no decoded text, on the dense captions of two photographs; a minute of one idle core for each."""
    from smollm2 import smollm2

    from capreward.judges.local import LocalJudge

    started = time.perf_counter()
    honest = [rollout for rollout in honest_samples("photos")[:6] if str(rollout.id).endswith("/dense")]
    attacks = named([name for name in NAMES if name in OF_A_LANGUAGE_MODEL])
    results = []
    for stage, around in (("fenced", nothing), ("unfenced", unfenced)):
        with around():
            judge = LocalJudge(smollm2(), device="cpu")
            parts = [QAUtility(judge), Coverage(judge), Fluency(judge), LikertJudge(judge)]
            suite = RewardSuite({part.name: part for part in parts})
            found = Probe(suite, honest, attacks=attacks, injected=5).run(progress=False)
        results.append({"judge": "SmolLM2-135M", "preset": "four components", "stage": stage, **summary(found)})
        print(f"{time.perf_counter() - started:6.0f} s  {stage}", file=sys.stderr, flush=True)
    headline = [
        {"name": f"attacks that win, {row['stage']}", "value": len(row["winners"]), "unit": f"of {len(row['lead'])}"}
        for row in results
    ]
    details = {"seconds": time.perf_counter() - started, "settings": results}
    finish(FOLDER, headline, details, False, packages=("capreward", "torch", "transformers"), device="cpu-smollm2")
    put("smollm2", tables(results, "by_component"))


def write_tables(results: list[dict[str, Any]]) -> None:
    marks = {
        "lite": "lite, photographs",
        "short": "lite, short",
        "exact": "exact, drawn scenes",
        "early": "exact, early",
    }
    for mark, judged_by in marks.items():
        put(mark, tables([row for row in results if row["judge"] == judged_by], "wins"))


def tables(results: Sequence[dict[str, Any]], what: str) -> str:
    """A row an attack, a column a setting; attacks that win nowhere are named below."""
    heads, columns = [], []
    for row in results:
        for part in row["components"] if what == "by_component" else [""]:
            heads.append(f"{part or row['preset']}, {row['stage']}")
            of = {attack: row["wins"].get(attack, {}) for attack in row["lead"]}
            columns.append(
                {
                    attack: wins.get(part, 0.0)
                    if part
                    else max(wins.get(REWARD, 0.0), wins.get(ADVANTAGE, 0.0), row["missing"].get(attack, 0.0))
                    for attack, wins in of.items()
                }
            )
    attacks = list(columns[0])
    shown = [name for name in attacks if any(column[name] > 0 for column in columns)]
    lines = [["attack", *heads], ["---"] * (len(heads) + 1)]
    lines += [[name, *(f"{column[name]:.1%}" if column[name] else "" for column in columns)] for name in shown]
    if what != "by_component":
        lines += [["honest captions' reward", *(f"{row['honest_reward']:.2f}" for row in results)]]
    never = ", ".join(name for name in attacks if name not in shown) or "none"
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\nNever: {never}."


def put(mark: str, text: str) -> None:
    """Between the marks of the README and of docs/probing.md."""
    for page in (FOLDER / "README.md", FOLDER.parents[1] / "docs" / "probing.md"):
        before, opening, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")
        _, closing, after = rest.partition(f"<!-- /{mark} -->")
        if closing:
            page.write_text(f"{before}{opening}\n{text}\n{closing}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
