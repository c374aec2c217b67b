"""Captioners beside one another: every metric of every caption, and means with intervals over items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capreward import intervals
from capreward.components import Coverage, Fluency, Precision
from capreward.coroutines import run, side_by_side
from capreward.errors import InputError
from capreward.evaluate import arena, bcapscore, dcscore, qa, statistics
from capreward.groups import Float
from capreward.judges.base import Judge, Usage
from capreward.missing import Missing
from capreward.progress import progress_bar
from capreward.records import Item, Rollout
from capreward.scoring import Component, Score, ScoreTable
from capreward.suite import CHUNK, RewardSuite

METRICS = ("bcapscore", "qa", "captionqa", "dcscore", "statistics", "arena")
"""What can be asked for; `statistics` needs no judge."""
STATISTICS: Mapping[str, Callable[[str], float]] = {
    "words": statistics.length,
    "repetition": statistics.repetition,
    "meta_commentary": statistics.has_meta_commentary,
}
DISTINCT = "distinct_2"
"""Of a captioner's captions together. It has no interval: a caption that is drawn twice would count as repetition."""
OF_MEANS = "b_capscore_of_means"
"""b-CapScore as the harmonic mean of a captioner's three means."""


@dataclass(frozen=True)
class Arena:
    """What came of the battles."""

    battles: tuple[arena.Battle, ...]
    scores: Mapping[str, Mapping[str, float]]
    """CapArena-Auto's, see `arena.auto_scores`."""
    plain: arena.Strengths | None
    """None if no battle has an outcome."""
    length_controlled: arena.Strengths | None


@dataclass(frozen=True)
class Evaluation:
    """B captions of some captioners on M metrics."""

    captioners: tuple[str, ...]
    rollouts: tuple[Rollout, ...]
    """[B]"""
    author: NDArray[np.str_]
    """Captioner of each, [B]."""
    columns: Mapping[str, Float]
    """Metric -> its values, [B]; NaN = missing."""
    scores: Mapping[str, Sequence[Score | Missing]]
    """Metric -> what stands behind its values, [B], where a judge was asked."""
    estimates: Mapping[str, Mapping[str, intervals.Estimate]]
    """Captioner -> metric -> mean and interval."""
    budgets: tuple[int, ...]
    arena: Arena | None
    judge: tuple[str, Usage] | None
    """Its name and what it did; None if none was needed."""
    settings: Mapping[str, Any]

    @property
    def metrics(self) -> list[str]:
        """The rows of the table."""
        return list(self.estimates[self.captioners[0]])

    def missing(self, captioner: str, metric: str) -> dict[str, int]:
        """How often the metric is missing, by reason."""
        counts: dict[str, int] = {}
        for row in np.flatnonzero(self.author == captioner).tolist():
            score = self.scores[metric][row] if metric in self.scores else None
            if isinstance(score, Missing):
                counts[score.reason] = counts.get(score.reason, 0) + 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """Everything that the tables and figures show, as JSON-ready data; None = no number."""
        captioners = {
            name: {
                metric: {**asdict(estimate), "reasons": self.missing(name, metric)}
                for metric, estimate in self.estimates[name].items()
            }
            for name in self.captioners
        }
        judge = {"name": self.judge[0], "usage": asdict(self.judge[1])} if self.judge else None
        result: dict[str, Any] = {"settings": dict(self.settings), "judge": judge, "captioners": captioners}
        if self.arena:
            strengths = {"plain": self.arena.plain, "length_controlled": self.arena.length_controlled}
            result["arena"] = {
                "scores": {name: dict(scores) for name, scores in self.arena.scores.items()},
                **{name: asdict(each) if each else None for name, each in strengths.items()},
            }
        return dict(_without_nan(result))

    def to_rows(self) -> Iterator[dict[str, Any]]:
        """One row a caption, as JSON-ready data."""
        for row, rollout in enumerate(self.rollouts):
            scores = {metric: column[row] for metric, column in self.scores.items()}
            yield dict(
                _without_nan(
                    {
                        "id": rollout.id,
                        "captioner": str(self.author[row]),
                        "item": rollout.item.id,
                        "caption": rollout.caption,
                        "metrics": {metric: float(column[row]) for metric, column in self.columns.items()},
                        "why": {name: score.why for name, score in scores.items() if isinstance(score, Score)},
                        "missing": {
                            name: f"{score.reason}: {score.detail}"
                            for name, score in scores.items()
                            if isinstance(score, Missing)
                        },
                    }
                )
            )


def evaluate_captions(
    captions: Mapping[str, Sequence[Rollout]],
    judge: Judge | None = None,
    *,
    metrics: Sequence[str] = ("statistics",),
    budgets: Sequence[int] = (),
    baselines: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Every metric of every caption, and what that says of their captioners.

    Captions of an item are asked the same questions, in the same order of options, whatever group their rollouts are in.

    Args:
        captions: by captioner. Two captioners are best compared on the same items.
        judge: for all metrics but `statistics`; wrap it in `Cached` to go on where a killed run ended.
        metrics: from `METRICS`.
        budgets: words; `qa` and `captionqa` are asked under each of them too.
        baselines: captioners; with them, arena battles are only fought against these.
        draws: resamples for the intervals.
        seed: of the order of options and of the resampling.
        progress: show a bar for what takes longer than two seconds.

    Raises:
        InputError: no captions, an unknown metric or baseline, no judge where one is needed, an arena with one captioner,
            budgets without `qa` or `captionqa`, baselines without an arena, two items under one id.
    """
    _check(captions, judge, metrics, budgets, baselines, draws)
    budgets = sorted(set(budgets))
    given = [rollout for rollouts in captions.values() for rollout in rollouts]
    rollouts = [rollout.model_copy(update={"id": None, "group": rollout.item.id}) for rollout in given]
    author = np.array([name for name, of_one in captions.items() for _ in of_one])
    items = np.array([rollout.item.id for rollout in rollouts])
    before = judge.usage.snapshot() if judge else Usage()
    columns: dict[str, Float] = {}
    scores: dict[str, list[Score | Missing]] = {}
    components = _components(judge, metrics, budgets, seed) if judge else {}
    if components:
        table = RewardSuite(components).score(rollouts, progress=progress)
        columns, scores = _columns(table, rollouts, metrics)
    if "statistics" in metrics:
        for name, statistic in STATISTICS.items():
            columns[name] = np.array([statistic(rollout.caption) for rollout in rollouts], np.float64)
    fought = None
    if judge and "arena" in metrics:
        mine = {name: [rollouts[row] for row in np.flatnonzero(author == name).tolist()] for name in captions}
        fought = _fight(mine, judge, baselines, draws, seed, progress)
    estimates = {}
    for name in captions:
        rows = np.flatnonzero(author == name)
        said = [rollouts[row].caption for row in rows.tolist()]
        estimates[name] = _estimates({key: column[rows] for key, column in columns.items()}, items[rows], draws, seed)
        if "statistics" in metrics:
            estimates[name][DISTINCT] = intervals.Estimate(
                statistics.distinct(said), float("nan"), float("nan"), len(said), 0
            )
    return Evaluation(
        captioners=tuple(captions),
        rollouts=tuple(given),
        author=author,
        columns=columns,
        scores=scores,
        estimates=estimates,
        budgets=tuple(budgets),
        arena=fought,
        judge=(judge.name, judge.usage.since(before)) if judge else None,
        settings={
            "metrics": list(metrics),
            "budgets": list(budgets),
            "baselines": list(baselines),
            "draws": draws,
            "seed": seed,
        },
    )


def needs_judge(metrics: Sequence[str]) -> bool:
    """Whether any of the metrics is judged."""
    return any(metric != "statistics" for metric in metrics)


def _check(
    captions: Mapping[str, Sequence[Rollout]],
    judge: Judge | None,
    metrics: Sequence[str],
    budgets: Sequence[int],
    baselines: Sequence[str],
    draws: int,
) -> None:
    if not captions or not all(captions.values()):
        empty = [name for name, rollouts in captions.items() if not rollouts]
        raise InputError(
            f"captions: got none{f' of {empty[0]!r}' if empty else ''}, expected at least one of each captioner"
        )
    if not metrics:
        raise InputError(f"metrics: got none, expected some of {', '.join(METRICS)}")
    for metric in metrics:
        if metric not in METRICS:
            raise InputError(f"metrics: got {metric!r}, expected some of {', '.join(METRICS)}")
    if judge is None and needs_judge(metrics):
        raise InputError(f"judge: got none, but all metrics except statistics need one: {', '.join(metrics)}")
    if budgets and not {"qa", "captionqa"} & set(metrics):
        raise InputError(
            f"budgets: got {list(budgets)} with metrics {', '.join(metrics)}; expected qa or captionqa among them"
        )
    if draws < 1:
        raise InputError(f"draws: got {draws}, expected a number >= 1")
    if "arena" in metrics and len(captions) < 2:
        raise InputError(
            f"metrics: got arena with one captioner, {next(iter(captions))!r}; expected two at least, named by a key of the "
            "captions' metadata or in files of their own"
        )
    if baselines and "arena" not in metrics:
        raise InputError(
            f"baselines: got {list(baselines)} with metrics {', '.join(metrics)}; expected arena among them"
        )
    if unknown := [name for name in baselines if name not in captions]:
        raise InputError(f"baselines: got {unknown[0]!r}, expected one of {list(captions)}")
    items: dict[str, Item] = {}
    for rollouts in captions.values():
        for rollout in rollouts:
            if not rollout.item.same_as(items.setdefault(rollout.item.id, rollout.item)):
                raise InputError(
                    f"captions: two different items have the id {rollout.item.id!r}; expected ids of their own"
                )


def _components(judge: Judge, metrics: Sequence[str], budgets: Sequence[int], seed: int) -> dict[str, Component]:
    """All that is judged caption by caption, for one pass over the captions."""
    components: dict[str, Component] = {}
    if "bcapscore" in metrics:
        precision = Precision(judge)
        components |= {precision.name: precision, "coverage": Coverage(judge), "fluency": Fluency(judge)}
    if "dcscore" in metrics:
        components |= {"precision_vs_facts": Precision(judge, against="facts"), "coverage": Coverage(judge)}
    for metric, name, make in (("qa", "prism", qa.prism), ("captionqa", "captionqa", qa.caption_qa)):
        if metric in metrics:
            asked = make(judge, seed=seed)
            components[name] = asked
            components |= {f"{name}@{budget}": qa.WithinBudget(asked, budget) for budget in budgets}
    return components


def _columns(
    table: ScoreTable, rollouts: Sequence[Rollout], metrics: Sequence[str]
) -> tuple[dict[str, Float], dict[str, list[Score | Missing]]]:
    columns = {name: table.values[:, k] for k, name in enumerate(table.names)}
    scores = {name: list(table.scores[k]) for k, name in enumerate(table.names)}
    if "bcapscore" in metrics:
        precision = next(name for name in table.names if name.startswith("precision"))
        parts = (precision, "coverage", "fluency")
        columns["b_capscore"] = bcapscore.b_capscore(*(columns[name] for name in parts))
        scores["b_capscore"] = [
            next((score for score in row if isinstance(score, Missing)), Score(value, "harmonic mean"))
            for row, value in zip(
                zip(*(scores[name] for name in parts), strict=True), columns["b_capscore"].tolist(), strict=True
            )
        ]
    if "dcscore" in metrics:
        counted = [
            dcscore.counts_of(rollout.item, precise, covered)
            for rollout, precise, covered in zip(
                rollouts, scores["precision_vs_facts"], scores["coverage"], strict=True
            )
        ]
        columns["dcscore"] = np.array(
            [np.nan if isinstance(counts, Missing) else dcscore.dc_score(*counts) for counts in counted]
        )
        scores["dcscore"] = [
            counts
            if isinstance(counts, Missing)
            else Score(value, f"all {asdict(counts[0])}, relevant {asdict(counts[1])}")
            for counts, value in zip(counted, columns["dcscore"].tolist(), strict=True)
        ]
    return columns, scores


def _estimates(
    columns: Mapping[str, Float], items: NDArray[np.str_], draws: int, seed: int
) -> dict[str, intervals.Estimate]:
    """Of one captioner."""
    if not columns:
        return {}
    values = np.column_stack(list(columns.values()))
    result = dict(zip(columns, intervals.means(values, items, draws=draws, seed=seed), strict=True))
    if "b_capscore" in columns:
        precision = next(name for name in columns if name.startswith("precision"))
        parts = np.column_stack([columns[name] for name in (precision, "coverage", "fluency")])
        parts[np.isnan(parts).any(axis=1)] = np.nan
        drawn = intervals.resampled_means(parts, items, draws=draws, seed=seed)
        low, high = intervals.interval(bcapscore.harmonic(drawn.T)) if intervals.several(items) else (np.nan, np.nan)
        mean = bcapscore.b_capscore_of_set(*parts.T, over="means")
        place = list(result).index("b_capscore") + 1
        ordered = list(result.items())
        ordered.insert(place, (OF_MEANS, replace(result["b_capscore"], mean=mean, low=low, high=high)))
        result = dict(ordered)
    return result


def _fight(
    captions: Mapping[str, Sequence[Rollout]],
    judge: Judge,
    baselines: Sequence[str],
    draws: int,
    seed: int,
    progress: bool,
) -> Arena:
    pairs = arena.pair_up(captions, baselines)
    outcomes = run(_outcomes(judge, [(one, other) for (_, one), (_, other) in pairs], progress))
    battles = tuple(
        arena.Battle(
            one.item.id, first, second, outcome, (statistics.length(one.caption), statistics.length(other.caption))
        )
        for ((first, one), (second, other)), outcome in zip(pairs, outcomes, strict=True)
    )
    if all(isinstance(battle.outcome, Missing) for battle in battles):
        return Arena(battles, {}, None, None)
    plain, controlled = (
        arena.bradley_terry(battles, control_length=control, draws=draws, seed=seed) for control in (False, True)
    )
    met = [name for name in baselines if any(name in (battle.first, battle.second) for battle in battles)]
    return Arena(battles, arena.auto_scores(battles, met), plain, controlled)


async def _outcomes(
    judge: Judge, pairs: Sequence[tuple[Rollout, Rollout]], progress: bool
) -> list[arena.Outcome | Missing]:
    with progress_bar(len(pairs), "arena", "battle", shown=progress) as advance:

        async def part(start: int) -> list[arena.Outcome | Missing]:
            outcomes = await arena.fight(judge, pairs[start : start + CHUNK])
            if advance:
                advance(len(outcomes))
            return outcomes

        parts = await side_by_side(part(start) for start in range(0, len(pairs), CHUNK))
    return [outcome for each in parts for outcome in each]


def _without_nan(value: Any) -> Any:
    """JSON has no NaN, and numpy's arrays are none of its lists."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and isnan(value) else value
