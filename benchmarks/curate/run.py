"""What do the curation stages keep, held against a known truth?

    python benchmarks/curate/run.py [--quick | --smollm2]

Drawn scenes; writers, eyes, guessers, teachers and students whose faults are known (`curate_world.py`). Questions: precision
and recall of the filter, by rule, number of draws, threshold and the sight's errors, and how well a QA reward tells good
captions from bad ones by the questions as written, filtered, and truly good. Rubrics: which of the student's planted mistakes
are found, what else is kept, and how well a rubric reward tells the student's caption from a repaired one.

`--smollm2` measures SmolLM2-135M on the photographs instead, in a file of its own (`small_model.py`); it wants the
environment that `make test-vllm` builds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
from common import finish
from curate_world import LEAKS, Blind, Critic, Flipping, Reader, Sight, Teacher, Writer, plant, seen, tell, write

from capreward import Item, Missing, QAUtility, Question, Rollout, RubricJudge
from capreward.curate.questions import FREE_RULES, RULES, Questions, minilm
from capreward.curate.rubrics import WEIGHTS, Rubrics
from capreward.curate.stage import Curated
from capreward.intervals import interval, means, resamples
from capreward.shapes import Kind, Scene, caption, claims, imperfect, items
from capreward.shapes.language import COMMENTARY, said, truths, units

FOLDER = Path(__file__).parent
Row = dict[str, Any]
Kept = Callable[[Mapping[str, Any]], bool]

ERRORS = (0.0, 0.05, 0.15)
DRAWS = (1, 2, 4, 8)
THRESHOLDS = ((1.0, 0.25), (0.75, 0.25), (1.0, 0.5), (0.75, 0.5))
"""`seen_at_least` and `guessed_at_most`; the stage's own first."""
RELAXED = (0.75, 0.5)
ERROR, DRAW = 0.05, 4
"""Where only one is shown."""
ALIKE = (None, 0.97, 0.95, 0.9, 0.85, 0.8)
AIMS = {
    "malformed": ("malformed",),
    "leaking": LEAKS,
    "duplicate": ("same words", "rephrased"),
    "unseen": ("wrong key", "misseen"),
    "guessed": ("implied", "prior", *LEAKS),
}
"""What each rule is to find."""
FAULTS = (*dict.fromkeys(fault for aims in AIMS.values() for fault in aims), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="30 scenes and few settings, printed as one JSON line")
    parser.add_argument("--smollm2", action="store_true", help="the small language model, in a file of its own")
    arguments = parser.parse_args()
    if arguments.smollm2:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
        from small_model import measure

        measure()
    else:
        with_drawn_scenes(arguments.quick)


def with_drawn_scenes(quick: bool) -> None:
    """Questions and rubrics against a known truth."""
    started = time.perf_counter()
    scenes = items(30 if quick else 300, fewest=3, most=5)
    filtered = filters(scenes, quick)
    note(started, "filter")
    reward, numbers = separation(scenes, filtered["records"], quick)
    note(started, "reward")
    rubrics = mistakes(scenes, quick)
    note(started, "rubrics")
    own, relaxed = (at(filtered["rows"], ERROR, DRAW, *each) for each in (THRESHOLDS[0], RELAXED))
    plain = next(row for row in rubrics if row["name"] == "teachers err 10 %, agree 2")
    headline = [
        *(entry(f"questions kept that are good, {name}", row["precision"], "") for name, row in named(own, relaxed)),
        *(entry(f"good questions that are kept, {name}", row["recall"], "") for name, row in named(own, relaxed)),
        entry("questions written that are good", own["good"] / own["written"], ""),
        *(
            entry(f"reward's correlation with F1, {row['name']}", row["correlation"], "")
            for row in reward
            if row["name"] in IN_HEADLINE
        ),
        *(entry(f"planted mistakes found, {name}", plain[name], "") for name in ("by what is lacking", "of all")),
        entry("criteria that name a planted mistake", plain["precision"], ""),
        entry("severities as planted", plain["severity"], ""),
    ]
    details = {
        "scenes": len(scenes),
        "filter": filtered["rows"],
        "rules": filtered["rules"],
        "fates": filtered["fates"],
        "variants": filtered["variants"],
        "alike": filtered["alike"],
        "reward": reward,
        "reward_by_number": numbers,
        "rubrics": rubrics,
    }
    finish(FOLDER, headline, details, quick)
    if not quick:
        write_tables(details)


def note(started: float, what: str) -> None:
    print(f"{time.perf_counter() - started:6.0f} s  {what}", file=sys.stderr, flush=True)


def entry(name: str, value: float, unit: str) -> Row:
    return {"name": name, "value": value, "unit": unit}


def named(own: Row, relaxed: Row) -> list[tuple[str, Row]]:
    return [("as it comes", own), ("seen 0.75, guessed 0.5", relaxed)]


# ---- questions


vectors: dict[str, Any] = {}


def remembered(texts: Sequence[str]) -> Any:
    """The lite judge's embeddings, each text embedded once for all settings."""
    new = [text for text in dict.fromkeys(texts) if text not in vectors]
    if new:
        vectors.update(zip(new, minilm(new), strict=True))
    return np.stack([vectors[text] for text in texts])


def curated(stage: Any, scenes: Sequence[Item]) -> list[Curated]:
    outcomes = asyncio.run(stage.curate(scenes))
    assert not any(isinstance(outcome, Missing) for outcome in outcomes)
    return outcomes


def labelled(
    scenes: Sequence[Item],
    *,
    error: float = ERROR,
    draws: int = DRAW,
    who: str = "model",
    blind: Mapping[str, Any] | None = None,
    **more: Any,
) -> list[list[Row]]:
    """Every candidate of every scene, as the stage recorded it, with its true `fault`."""
    settings = {"embed": remembered, "temperature": 1.0, **more}
    stage = Questions(Writer(), Sight(error, who=who), Blind(**blind or {}), draws=draws, **settings)
    out = []
    for item, outcome in zip(scenes, curated(stage, scenes), strict=True):
        faults = [each.fault for each in write(seen(item.image))]
        candidates = [dict(candidate) for candidate in outcome.record["candidates"]]
        out.append([row | {"fault": fault} for row, fault in zip(candidates, faults, strict=True)])
    return out


def keeps(seen_at_least: float, guessed_at_most: float, rules: Sequence[str] = RULES) -> Kept:
    """Whether a candidate would be kept at these thresholds, and by these rules alone."""

    def kept(candidate: Mapping[str, Any]) -> bool:
        found = candidate["rules"]
        if any(found[rule]["rejected"] for rule in FREE_RULES if rule in rules or rule == "malformed"):
            return False
        if found["unseen"]["rejected"] is None:  # spared the judges by a rule that does not count here
            return not {"unseen", "guessed"} & set(rules)
        sees, guesses = (found[rule]["right"] / found[rule]["draws"] for rule in ("unseen", "guessed"))
        return ("unseen" not in rules or sees >= seen_at_least) and (
            "guessed" not in rules or guesses <= guessed_at_most
        )

    return kept


def shares(records: Sequence[Sequence[Row]], kept: Kept) -> Row:
    """Precision and recall, with intervals over scenes."""
    table = [(place, kept(row), row["fault"] == "") for place, candidates in enumerate(records) for row in candidates]
    precise, found = (
        [(place, right) for place, is_kept, good in table for right in pick(is_kept, good)] for pick in PICKS
    )
    out: Row = {"written": len(table), "good": len(found), "kept": len(precise)}
    for name, pairs in (("precision", precise), ("recall", found)):
        places, values = zip(*pairs, strict=True) if pairs else ((0,), (float("nan"),))
        (estimate,) = means(np.array(values, float)[:, None], places)
        out |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    out["scenes_left_empty"] = sum(not any(map(kept, candidates)) for candidates in records)
    return out


PICKS: tuple[Callable[[bool, bool], list[bool]], ...] = (
    lambda kept, good: [good] if kept else [],
    lambda kept, good: [kept] if good else [],
)


def filters(scenes: Sequence[Item], quick: bool) -> Row:
    rows, main_records = [], None
    for error in ERRORS:
        for draws in (DRAW,) if quick else DRAWS:
            if quick and error != ERROR:
                continue
            records = labelled(scenes, error=error, draws=draws)
            if (error, draws) == (ERROR, DRAW):
                main_records = records
            for seen_at_least, guessed_at_most in THRESHOLDS:
                setting = {"error": error, "draws": draws, "seen": seen_at_least, "guessed": guessed_at_most}
                rows.append(setting | shares(records, keeps(seen_at_least, guessed_at_most)))
    assert main_records is not None
    for candidates in main_records:
        for row in candidates:
            assert keeps(*THRESHOLDS[0])(row) == (row["verdict"] == "kept"), "the thresholds are not the stage's"
    return {
        "rows": rows,
        "records": main_records,
        "rules": rules(main_records),
        "fates": fates(main_records),
        "variants": [] if quick else variants(scenes),
        "alike": [] if quick else alikes(scenes),
    }


def at(rows: Sequence[Row], error: float, draws: int, seen_at_least: float, guessed_at_most: float) -> Row:
    wanted = (error, draws, seen_at_least, guessed_at_most)
    return next(row for row in rows if (row["error"], row["draws"], row["seen"], row["guessed"]) == wanted)


def rules(records: Sequence[Sequence[Row]]) -> list[Row]:
    """Of each rule: what it rejected of those it was tried on, and how much of that it was meant to find."""
    candidates = [row for each in records for row in each]
    out = []
    for rule, aims in AIMS.items():
        tried = [row for row in candidates if row["rules"][rule]["rejected"] is not None]
        fell = [row for row in tried if row["rules"][rule]["rejected"]]
        meant = [row for row in tried if row["fault"] in aims]
        out.append(
            {
                "rule": rule,
                "tried": len(tried),
                "rejected": len(fell),
                "of_its_aims": sum(row["fault"] in aims for row in fell) / max(1, len(fell)),
                "bad": sum(row["fault"] != "" for row in fell) / max(1, len(fell)),
                "recall": sum(bool(row["rules"][rule]["rejected"]) for row in meant) / max(1, len(meant)),
                "good_lost": sum(row["fault"] == "" for row in fell) / max(1, sum(row["fault"] == "" for row in tried)),
            }
        )
    return out


def fates(records: Sequence[Sequence[Row]]) -> list[Row]:
    """Of each fault: how many there were, by which rule they fell first, and what was kept, as it comes and relaxed."""
    out = []
    for fault in FAULTS:
        theirs = [row for each in records for row in each if row["fault"] == fault]
        first = Counter(row["first"] for row in theirs if row["first"])
        own, relaxed = (sum(map(keeps(*each), theirs)) for each in (THRESHOLDS[0], RELAXED))
        out.append({"fault": fault or "none: good", "written": len(theirs), **first, "kept": own, "relaxed": relaxed})
    return out


def variants(scenes: Sequence[Item]) -> list[Row]:
    """Other judges, and draws without temperature."""
    settings: dict[str, Row] = {
        "as above": {},
        "another model looks": {"who": "another"},
        "8 draws, temperature 0": {"draws": 8, "temperature": 0.0},
        "8 draws, temperature 1": {"draws": 8},
        "guesser sticks to an option": {"blind": {"sticks": True}},
        "guesser sticks to an option, relaxed": {"blind": {"sticks": True}},
        "guesser takes the first in half": {"blind": {"first": 0.5}},
        "guesser always takes the first": {"blind": {"first": 1.0}},
        "guesser always takes the first, 2 draws": {"blind": {"first": 1.0}, "draws": 2},
        "another model looks, relaxed": {"who": "another"},
    }
    out = []
    for name, setting in settings.items():
        records = labelled(scenes, **setting)
        bounds = RELAXED if "relaxed" in name else THRESHOLDS[0]
        kept = keeps(*bounds)
        of = Counter(row["fault"] for each in records for row in each if kept(row))
        lost = {
            f"lost_{rule}": sum(
                row["fault"] == "" and row["rules"][rule]["rejected"] is not None and not kept_by(row)
                for each in records
                for row in each
            )
            for rule, kept_by in ((rule, keeps(*bounds, (rule,))) for rule in ("unseen", "guessed"))
        }
        faults = {fault: of[fault] for fault in ("wrong key", "misseen", "implied", "prior")}
        out.append({"name": name, **shares(records, kept), **faults, **lost})
    return out


def alikes(scenes: Sequence[Item]) -> list[Row]:
    """What the duplicates' threshold takes from good questions and from questions that were asked before."""
    out = []
    for alike in ALIKE:
        candidates = [row for each in labelled(scenes, draws=1, alike=alike) for row in each]
        tried = [row for row in candidates if row["rules"]["duplicate"]["rejected"] is not None]
        row: Row = {"alike": alike}
        for fault in ("same words", "rephrased", ""):
            fell = [each["rules"]["duplicate"]["rejected"] for each in tried if each["fault"] == fault]
            row[fault or "good"] = sum(fell) / max(1, len(fell))
        out.append(row)
    return out


# ---- reward

IN_HEADLINE = ("as written", "as written, as many as filtered", "filtered", "filtered, relaxed", "truly good")
MOST = 4
SHOWN = ("truly good", "filtered", "filtered, relaxed", "as written")
BASES = {"ahead": "as written", "ahead_of_as_many": "as written, as many as filtered"}
GOOD, FAULTY = 2, 4
"""Captions of each scene that are complete, and that `imperfect` writes; one of another scene, and empty talk, come last."""


def captions(scenes: Sequence[Item]) -> list[list[str]]:
    pictures = [seen(item.image) for item in scenes]
    out = []
    for number, (item, scene) in enumerate(zip(scenes, pictures, strict=True)):
        chance = random.Random(f"captions {item.id}")
        faulty: list[str] = []
        while len(faulty) < FAULTY:
            text = imperfect(scene, chance)
            if not said(text).issuperset(units(scene)):
                faulty.append(text)
        other = caption(pictures[(number + 1) % len(pictures)])
        out.append([caption(scene), caption(scene, there=True), *faulty, other, " ".join(COMMENTARY)])
    return out


def quality(text: str, scene: Scene) -> float:
    """F1 of what the caption says: of the share of its claims that are true, and of a complete one's units that it says."""
    made, wanted, says = claims(text), units(scene), said(text)
    right = sum(claim in truths(scene) for claim in made) / len(made)
    complete = sum(claim in says for claim in wanted) / len(wanted)
    return 2 * right * complete / (right + complete) if right + complete else 0.0


def separation(scenes: Sequence[Item], records: Sequence[Sequence[Row]], quick: bool) -> tuple[list[Row], list[Row]]:
    """How well a QA reward tells captions apart by each choice of questions."""
    own, relaxed = keeps(*THRESHOLDS[0]), keeps(*RELAXED)
    readable: Kept = lambda row: not row["rules"]["malformed"]["rejected"]  # noqa: E731
    chosen: dict[str, Kept] = {
        "as written": readable,
        "rules without a judge": keeps(*THRESHOLDS[0], FREE_RULES),
        "these, and seen": keeps(*THRESHOLDS[0], (*FREE_RULES, "unseen")),
        "these, and not guessed": keeps(*THRESHOLDS[0], (*FREE_RULES, "guessed")),
        "filtered": own,
        "filtered, relaxed": relaxed,
        "truly good": lambda row: row["fault"] == "",
        "rejected": lambda row: readable(row) and not own(row),
        "guessable or leaking alone": lambda row: row["fault"] in AIMS["guessed"],
    }
    by_name = {name: [list(filter(kept, each)) for each in records] for name, kept in chosen.items()}
    few = [len(each) for each in by_name["filtered"]]
    for name in ("as written", "filtered, relaxed", "truly good"):
        by_name[f"{name}, as many as filtered"] = [
            random.Random(f"few {item.id}").sample(each, min(number, len(each)))
            for item, each, number in zip(scenes, by_name[name], few, strict=True)
        ]
    usable = [all(each[place] for each in by_name.values()) for place in range(len(scenes))]
    texts = captions(scenes)
    qualities = np.array(
        [[quality(text, seen(item.image)) for text in row] for item, row in zip(scenes, texts, strict=True)]
    )[usable]
    settings = [(name, {}) for name in by_name] + [("as written, closed book", {"closed_book": True})]
    values = {}
    for name, more in settings:
        asked = by_name[name.removesuffix(", closed book")]
        values[name] = scored(scenes, asked, texts, usable, **more)
    drawn = {name: separated(table, qualities) for name, table in values.items()}
    out = []
    for name, table in values.items():
        row: Row = {
            "name": name,
            "scenes": sum(usable),
            "questions": float(np.mean([len(each) for each in by_name[name.removesuffix(", closed book")]])),
            "good_captions": float(table[:, :GOOD].mean()),
            "imperfect": float(table[:, GOOD : GOOD + FAULTY].mean()),
            "other_scene": float(table[:, -2].mean()),
            "empty_talk": float(table[:, -1].mean()),
        }
        for measure, (value, resampled) in drawn[name].items():
            row |= {measure: value, f"{measure}_interval": interval(resampled)}
            for ahead, base in BASES.items():
                row |= {f"{measure}_{ahead}": value - drawn[base][measure][0]}
                row |= {f"{measure}_{ahead}_interval": interval(resampled - drawn[base][measure][1])}
        out.append(row)
    return out, [] if quick else by_number(scenes, by_name, texts)


def scored(
    scenes: Sequence[Item],
    asked: Sequence[Sequence[Row]],
    texts: Sequence[Sequence[str]],
    usable: Sequence[bool],
    **more: Any,
) -> Any:
    """The reward of each caption of the scenes that are usable; 0 for all of a scene's if it has none."""
    rollouts = [
        Rollout(item=item.model_copy(update={"questions": tuple(map(question, rows))}), caption=text, group=item.id)
        for item, rows, row, use in zip(scenes, asked, texts, usable, strict=True)
        if use
        for text in row
    ]
    scores = asyncio.run(QAUtility(Reader(), **more).score(rollouts))
    # Missing where every question was guessed without a caption: the group learns nothing
    return np.array([0.0 if isinstance(score, Missing) else score.value for score in scores]).reshape(sum(usable), -1)


def by_number(
    scenes: Sequence[Item], by_name: Mapping[str, Sequence[Sequence[Row]]], texts: Sequence[Sequence[str]]
) -> list[Row]:
    """The correlation with quality by the number of questions, on the scenes that have `MOST` of every choice."""
    usable = [all(len(by_name[name][place]) >= MOST for name in SHOWN) for place in range(len(scenes))]
    qualities = np.array(
        [
            [quality(text, seen(item.image)) for text in row]
            for item, row, use in zip(scenes, texts, usable, strict=True)
            if use
        ]
    )
    out = []
    for name in SHOWN:
        for number in range(1, MOST + 1):
            asked = [
                random.Random(f"number {number} {item.id}").sample(each, min(number, len(each)))
                for item, each in zip(scenes, by_name[name], strict=True)
            ]
            value, drawn = separated(scored(scenes, asked, texts, usable), qualities)["correlation"]
            found = {"correlation": value, "correlation_interval": interval(drawn)}
            out.append({"name": name, "questions": number, "scenes": sum(usable), **found})
    return out


def question(row: Mapping[str, Any]) -> Question:
    return Question(text=row["text"], options=row["options"], answer=row["answer"], kind=row["kind"])


def separated(values: Any, qualities: Any) -> dict[str, tuple[float, Any]]:
    """`gap`, in standard deviations within a scene; `auc` of good against bad; `correlation` with quality, within scenes.

    Each with what it is in resamples of the scenes, the same for each call.
    """
    good, bad = values[:, :GOOD], values[:, GOOD:]
    beats = (good[:, :, None] > bad[:, None]) + 0.5 * (good[:, :, None] == bad[:, None])
    centred, true = values - values.mean(1, keepdims=True), qualities - qualities.mean(1, keepdims=True)
    sums = np.stack(
        [
            good.mean(1) - bad.mean(1),
            (centred**2).mean(1),
            beats.mean((1, 2)),
            (centred * true).mean(1),
            (true**2).mean(1),
        ],
        axis=1,
    )

    def of(part: Any) -> Any:
        gap, spread, auc, both, wanted = part.T
        return np.stack([gap / np.sqrt(spread), auc, both / np.sqrt(spread * wanted)], axis=-1)

    whole = of(sums.mean(0)[None])[0]
    again = np.concatenate([of(weights @ sums / len(sums)) for weights in resamples(len(sums), 1000, 0)])
    return {name: (float(whole[column]), again[:, column]) for column, name in enumerate(("gap", "auc", "correlation"))}


# ---- rubrics


def mistakes(scenes: Sequence[Item], quick: bool) -> list[Row]:
    settings: dict[str, Row] = {
        f"teachers err {error:.0%}, agree {agree}".replace("%", " %"): {"error": error, "agree": agree}
        for error in ((0.1,) if quick else (0.0, 0.1, 0.25))
        for agree in ((2,) if quick else (1, 2, 3))
    }
    if not quick:
        settings |= {
            "two teachers err alike": {"alike": True},
            "judge errs 5 %": {"flips": 0.05},
            "judge errs 10 %": {"flips": 0.1},
            "judge errs 5 %, agree 1": {"flips": 0.05, "agree": 1},
            "judge errs 5 %, agree 3": {"flips": 0.05, "agree": 3},
            "writer misweighs 30 %": {"misweighs": 0.3},
        }
    return [{"name": name, **rubrics_of(scenes, **setting)} for name, setting in settings.items()]


def rubrics_of(
    scenes: Sequence[Item],
    *,
    error: float = 0.1,
    agree: int = 2,
    flips: float = 0.0,
    alike: bool = False,
    misweighs: float = 0.1,
) -> Row:
    pictures = {item.id: seen(item.image) for item in scenes}
    planted = {name: plant(scene) for name, scene in pictures.items()}
    teachers = [Teacher(f"teacher {n}", error, eyes="teacher 1" if alike and n < 3 else None) for n in (1, 2, 3)]
    judge = Flipping(flips)
    stage = Rubrics(
        teachers,
        Critic(misweighs=misweighs),
        judge,
        student=lambda item: tell(pictures[item.id], planted[item.id]),
        agree=agree,
    )
    outcomes = curated(stage, scenes)
    found: list[tuple[str, str, float]] = []  # scene, fault, found
    severe: list[float] = []
    kept: Counter[str] = Counter()
    precise: list[tuple[str, float]] = []
    for item, outcome in zip(scenes, outcomes, strict=True):
        theirs, true = planted[item.id], truths(pictures[item.id])
        weights = {claims(criterion.text)[0]: criterion.weight for criterion in outcome.item.rubric}
        lacking = {each.claim for each in theirs}
        follows = {claim for each in theirs for claim in each.follow}
        for claim in weights:
            what = (
                "mistake"
                if claim in lacking
                else "of it"
                if claim in follows
                else "true, said"
                if claim in true
                else "false"
            )
            kept[what] += 1
            precise.append((item.id, float(what in ("mistake", "of it"))))
        for each in theirs:
            found.append((item.id, each.fault, float(each.claim in weights)))
            if each.claim in weights:
                severe.append(float(weights[each.claim] == WEIGHTS[each.severity]))
    lacking_alone = [row for row in found if row[1] != "added"]
    out: Row = {
        "planted": len(found),
        "kept": sum(kept.values()),
        "a_mistake": len([1 for item in scenes if planted[item.id]]),
        "kept_as": dict(kept),
        "kept_where_no_mistake": sum(len(o.item.rubric) for o in outcomes if not planted[o.item.id]),
        "severity": float(np.mean(severe)),
    }
    for name, rows in (
        ("by what is lacking", lacking_alone),
        ("of all", found),
        *((fault, [row for row in found if row[1] == fault]) for fault in dict.fromkeys(row[1] for row in found)),
        ("precision", [(id_, "", value) for id_, value in precise]),
    ):
        (estimate,) = means(np.array([[row[2]] for row in rows]), [row[0] for row in rows])
        out |= {name: estimate.mean, f"{name}_interval": [estimate.low, estimate.high]}
    return out | rewarded(outcomes, pictures, planted, judge)


def rewarded(outcomes: Sequence[Curated], pictures: Mapping[str, Scene], planted: Mapping[str, Any], judge: Any) -> Row:
    """The rubric reward of the student's caption, of one with half of the mistakes repaired, and of one without any.

    And of that one with the false criteria met too: where it earns more, the reward pays for saying what is not so.
    """
    mine = [o.item for o in outcomes if o.item.rubric and len(planted[o.item.id]) > 1]
    rollouts = []
    for item in mine:
        theirs = planted[item.id]
        half = random.Random(f"half {item.id}").sample(theirs, len(theirs) // 2)
        texts = [tell(pictures[item.id], left) for left in (theirs, half, [])]
        texts.append(misled(pictures[item.id], [criterion.text for criterion in item.rubric]))
        rollouts += [Rollout(item=item, caption=text, group=item.id) for text in texts]
    scores = asyncio.run(RubricJudge(judge).score(rollouts))
    table = np.array([score.value for score in scores if not isinstance(score, Missing)]).reshape(len(mine), 4)
    steps = np.array([[(b > a) + 0.5 * (a == b) for a, b in pairwise(row[:3])] for row in table])
    steps = np.column_stack([steps, table[:, 3] > table[:, 2]])
    columns = np.column_stack([table, steps])
    names = ("student", "half", "repaired", "misled", "half beats student", "repaired beats half", "falsehood pays")
    out: Row = {"rewarded": len(mine)}
    for name, estimate in zip(names, means(columns, list(range(len(mine)))), strict=True):
        out |= {name: estimate.mean, f"{name}_interval": [estimate.low, estimate.high]}
    return out


def misled(scene: Scene, criteria: Sequence[str]) -> str:
    """A complete caption, but that it says what the false ones of the criteria want, where it can."""
    things, count, more = {thing.name: thing for thing in scene.things}, None, []
    for claim in (claims(text)[0] for text in criteria):
        if claim in truths(scene):
            continue
        cells = {thing.cell for thing in things.values()}
        if claim.kind is Kind.COUNT:
            count = claim.value
        elif claim.kind is Kind.THING:
            more.append(f"There is a {claim.subject}.")
        elif claim.subject in things and (claim.kind is Kind.SIZE or claim.value not in cells):
            field = "size" if claim.kind is Kind.SIZE else "cell"
            things[claim.subject] = things[claim.subject].model_copy(update={field: claim.value})
    text = caption(Scene(things=tuple(things.values())))
    return " ".join([text if count is None else f"There are {count} things.{text.partition('.')[2]}", *more])


# ---- tables


def write_tables(found: Row) -> None:
    put("thresholds", thresholds(found["filter"]))
    put("errors", errors(found["filter"]))
    put("fates", fate_table(found["fates"]))
    put("rules", rule_table(found["rules"]))
    put("variants", variant_table(found["variants"]))
    put("alike", alike_table(found["alike"]))
    put("reward", reward_table(found["reward"]))
    figure(found["reward_by_number"]).savefig(FOLDER / "results" / "reward.png", dpi=110)
    put("rubrics", rubric_table(found["rubrics"]))
    put("mistakes", mistake_table(found["rubrics"]))


def figure(rows: Sequence[Row]) -> Any:
    """The correlation with quality by the number of questions."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = picture.subplots()
    for place, name in enumerate(SHOWN):
        mine = [row for row in rows if row["name"] == name]
        values, (low, high) = (
            np.array([row["correlation"] for row in mine]),
            np.array([row["correlation_interval"] for row in mine]).T,
        )
        numbers = np.array([row["questions"] for row in mine]) + 0.04 * (place - 1.5)
        axes.errorbar(
            numbers, values, yerr=(values - low, high - values), label=name, marker="o", markersize=4, capsize=2
        )
    axes.set(xlabel="questions for each scene", ylabel="reward's correlation with F1", xticks=range(1, MOST + 1))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return picture


def both(row: Row) -> str:
    return f"{row['precision']:.3f} / {row['recall']:.2f}"


def thresholds(rows: Sequence[Row]) -> str:
    lines = [["seen at least", "guessed at most", *(f"{draws} {'draw' if draws == 1 else 'draws'}" for draws in DRAWS)]]
    lines += [
        [f"{seen_}", f"{guessed_}", *(both(at(rows, ERROR, draws, seen_, guessed_)) for draws in DRAWS)]
        for seen_, guessed_ in THRESHOLDS
    ]
    return table(lines)


def errors(rows: Sequence[Row]) -> str:
    lines = [["sight errs", "thresholds", *(f"{draws} {'draw' if draws == 1 else 'draws'}" for draws in DRAWS)]]
    lines += [
        [f"{error:.0%}", f"{each[0]}, {each[1]}", *(both(at(rows, error, draws, *each)) for draws in DRAWS)]
        for error in ERRORS
        for each in (THRESHOLDS[0], RELAXED)
    ]
    return table(lines)


def fate_table(rows: Sequence[Row]) -> str:
    lines = [["fault", "written", *RULES, "kept", "kept, relaxed"]]
    lines += [
        [row["fault"], row["written"], *(row.get(rule, "") for rule in RULES), row["kept"] or "", row["relaxed"] or ""]
        for row in rows
    ]
    return table(lines)


def rule_table(rows: Sequence[Row]) -> str:
    lines = [["rule", "tried on", "rejected", "what it is for, of these", "bad, of these", "recall", "good ones lost"]]
    lines += [
        [
            row["rule"],
            row["tried"],
            row["rejected"],
            *(f"{row[name]:.0%}" for name in ("of_its_aims", "bad", "recall", "good_lost")),
        ]
        for row in rows
    ]
    return table(lines)


def variant_table(rows: Sequence[Row]) -> str:
    faults = ("wrong key", "misseen", "implied", "prior")
    lines = [
        ["", "precision / recall", "good ones unseen", "good ones guessed", *(f"kept: {fault}" for fault in faults)]
    ]
    lines += [
        [row["name"], both(row), row["lost_unseen"], row["lost_guessed"], *(row[fault] for fault in faults)]
        for row in rows
    ]
    return table(lines)


def alike_table(rows: Sequence[Row]) -> str:
    lines = [["`alike`", "same words", "rephrased", "good ones lost"]]
    lines += [[row["alike"], *(f"{row[name]:.0%}" for name in ("same words", "rephrased", "good"))] for row in rows]
    return table(lines)


def reward_table(rows: Sequence[Row]) -> str:
    means_ = ("good_captions", "imperfect", "other_scene", "empty_talk")
    lines = [
        [
            "questions",
            "each scene",
            *(name.replace("_", " ") for name in means_),
            "gap in SD",
            "AUC",
            "correlation with F1",
            "ahead of as written",
            "ahead of as many as written",
        ]
    ]
    for row in rows:
        lines.append(
            [
                row["name"],
                f"{row['questions']:.1f}",
                *(f"{row[name]:.2f}" for name in means_),
                spread(row, "gap", 2),
                spread(row, "auc", 3),
                spread(row, "correlation", 3),
                *(
                    "" if row["name"] == base else spread(row, f"correlation_{ahead}", 3, "+")
                    for ahead, base in BASES.items()
                ),
            ]
        )
    return table(lines)


def rubric_table(rows: Sequence[Row]) -> str:
    lines = [
        [
            "",
            "found, by what is lacking",
            "of all",
            "kept",
            "precision",
            "false",
            "severity",
            "student",
            "half",
            "repaired",
            "half beats student",
            "repaired beats half",
            "falsehood pays",
        ]
    ]
    for row in rows:
        lines.append(
            [
                row["name"],
                spread(row, "by what is lacking", 2),
                f"{row['of all']:.2f}",
                row["kept"],
                spread(row, "precision", 3),
                row["kept_as"].get("false", 0),
                f"{row['severity']:.2f}",
                *(f"{row[name]:.2f}" for name in ("student", "half", "repaired")),
                *(f"{row[name]:.3f}" for name in ("half beats student", "repaired beats half")),
                f"{row['falsehood pays']:.0%}",
            ]
        )
    return table(lines)


def mistake_table(rows: Sequence[Row]) -> str:
    faults = ("dropped", "colour", "place", "count", "size", "added")
    lines: list[list[Any]] = [["", *faults]]
    shown = ("teachers err 0 %, agree 2", "teachers err 10 %, agree 2", "teachers err 25 %, agree 2")
    lines += [[row["name"], *(f"{row[fault]:.2f}" for fault in faults)] for row in rows if row["name"] in shown]
    return table(lines)


def spread(row: Row, name: str, digits: int, sign: str = "") -> str:
    low, high = row[f"{name}_interval"]
    return f"{row[name]:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def table(lines: Sequence[Sequence[Any]]) -> str:
    head, *rest = [[str(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rest))


def put(mark: str, text: str) -> None:
    """Between the marks of the README."""
    page = FOLDER / "README.md"
    before, opening, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")
    _, closing, after = rest.partition(f"<!-- /{mark} -->")
    if closing:
        page.write_text(f"{before}{opening}\n{text}\n{closing}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
