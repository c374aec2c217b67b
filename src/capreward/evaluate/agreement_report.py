"""`capreward agree`: how far the scores of components agree with people's labels, measured, printed, written and drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from capreward.components import Coverage, Fluency, LikertJudge, Precision, QAUtility, RubricJudge
from capreward.data import replacing, write_rows
from capreward.errors import InputError, missing_extra
from capreward.evaluate.agreement import Agreement, Axis, Estimate, agreement
from capreward.evaluate.labels import Labels
from capreward.judges.base import Judge
from capreward.progress import progress_bar
from capreward.records import count_words
from capreward.report import make_console
from capreward.scoring import Component, ScoreTable
from capreward.suite import RewardSuite

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

COMPONENTS: dict[str, Callable[[Judge], Component]] = {
    "qa": QAUtility,
    "precision": lambda judge: Precision(judge, against="image"),
    "precision_vs_facts": lambda judge: Precision(judge, against="facts"),
    "precision_vs_references": lambda judge: Precision(judge, against="references"),
    "coverage": Coverage,
    "rubric": RubricJudge,
    "fluency": Fluency,
    "likert": LikertJudge,
    "likert_with_reference": lambda judge: LikertJudge(judge, reference=True),
}
"""The judged components, by name."""
HEADLINE = {"side by side": "tau_b", "choice": "accuracy", "rating": "tau_c"}
"""The statistic that is printed and drawn, by the kind of label; all of them are written."""
SHOWN = {"tau_b": "tau-b", "tau_c": "tau-c", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Result:
    """How each component agrees with people on each axis."""

    layout: str
    left_out: Mapping[str, int]
    judges: tuple[str, ...]
    resamples: int
    missing: Mapping[str, Mapping[str, int]]
    """Component -> reason -> captions without a score."""
    rows: tuple[tuple[str, Axis, Agreement], ...]
    """(component, axis, agreement); axes outside, components inside."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; an estimate is [value, low, high], null where it is not defined."""
        rows = [
            {
                "component": name,
                "axis": axis.name,
                "kind": axis.kind,
                **{key: _plain(value) for key, value in asdict(measured).items()},
            }
            for name, axis, measured in self.rows
        ]
        return {
            "layout": self.layout,
            "left_out": dict(self.left_out),
            "judges": list(self.judges),
            "resamples": self.resamples,
            "missing": {name: dict(counts) for name, counts in self.missing.items()},
            "rows": rows,
        }


def components(judge: Judge, names: Iterable[str]) -> RewardSuite:
    """These components, or without names all that the judge can do, ungated.

    Raises:
        InputError: an unknown name, or one that the judge cannot do.
    """
    names = list(names)
    if unknown := [name for name in names if name not in COMPONENTS]:
        raise InputError(f"component: got {unknown[0]!r}, expected one of {', '.join(COMPONENTS)}")
    found = {}
    for name in names or COMPONENTS:
        try:
            found[name] = COMPONENTS[name](judge)
        except InputError:
            if names:
                raise
    return RewardSuite(found)


def measure(
    table: ScoreTable,
    labels: Labels,
    *,
    total: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Agreement of each component's scores, after its gates, with each axis of the labels.

    Args:
        table: scores of `labels.rollouts`.
        labels: what people said.
        total: the weighted mean of all components too, as "total".
        resamples, seed: of the bootstrap.
        progress: show a bar.
    """
    columns = dict(zip(table.names, table.values.T, strict=True))
    if total:
        columns["total"] = table.total()
    lengths = np.array([count_words(rollout.caption) for rollout in labels.rollouts], np.float64)
    rows = []
    with progress_bar(len(labels.axes) * len(columns), "comparing", "column", shown=progress) as advance:
        for axis in labels.axes:
            for name, column in columns.items():
                measured = agreement(axis, column, lengths, labels.images, resamples=resamples, seed=seed)
                rows.append((name, axis, measured))
                if advance:
                    advance(1)
    reasons = {
        name: {str(reason): count for reason, count in counts.most_common()}
        for name, counts in table.missing_by_reason().items()
    }
    judges = tuple(name for name, _ in table.usage)
    return Result(labels.layout, labels.left_out, judges, resamples, reasons, tuple(rows))


def write(result: Result, table: ScoreTable, labels: Labels, out: Path) -> list[Path]:
    """Scores, agreement and figure into a folder; the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("scores.jsonl", "agreement.json", "agreement.png")]
    write_rows(paths[0], table.to_rows(labels.rollouts))
    with replacing(paths[1]) as path:
        path.write_text(json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(paths[2]) as path:
        figure(result).savefig(path, dpi=130, format="png")
    return paths


def print_agreement(result: Result, console: Console | None = None) -> None:
    """A table for each axis, one line a component, beside what the captions' length alone gives."""
    console = console or make_console()
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for axis, rows in _by_axis(result):
        headline = HEADLINE[axis.kind]
        of_what = f"{axis.name}: {axis.kind}, {len(axis.label)} labels"
        table = Table(
            title=Text(of_what, "bold"), title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.add_column("component", no_wrap=True)
        for column in ("labels", SHOWN[headline], "of length alone", "less length's", "partial tau-b"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, measured in rows:
            if measured.labels:
                table.add_row(
                    Text(name),
                    str(measured.labels),
                    _interval(measured.score[headline], signed=headline != "accuracy"),
                    _interval(measured.length[headline], signed=headline != "accuracy"),
                    _interval(measured.margin[headline]),
                    _interval(measured.partial),
                )
        console.print(table)
        if headline == "accuracy":
            shares = {f"{measured.one_answer:.2f}" for _, measured in rows if measured.labels}
            console.print(Text(f"always preferring the same side: {', '.join(sorted(shares))}"))
    for name, reasons in result.missing.items():
        if reasons:
            said = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
            console.print(Text(f"{name}: captions without a score: {said}"))
    for why, count in result.left_out.items():
        console.print(Text(f"left out: {count} {why}"))
    console.print("95 % intervals over images. partial: of score and label, length held fixed.")


def figure(result: Result) -> Figure:
    """A panel for each axis: each component's headline statistic with its interval, and that of length on the same labels."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("Drawing figures", "report", error) from error
    panels = _by_axis(result)
    names = [name for name, measured in panels[0][1] if measured.labels] or [name for name, _ in panels[0][1]]
    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    picture = Figure(figsize=(1.6 + 3.2 * columns, lines * (1.3 + 0.42 * len(names)) + 0.7), layout="constrained")
    drawn = list(picture.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for panel, (axis, rows) in zip(drawn, panels, strict=False):
        headline = HEADLINE[axis.kind]
        found = dict(rows)
        kinds = (("score", -0.12, "#0072B2", "o"), ("length", 0.12, "#E69F00", "s"))
        for what, shift, colour, marker in kinds:
            estimates = [getattr(found[name], what)[headline] for name in names]
            values = np.array([estimate.value for estimate in estimates])
            ends = np.array([[estimate.low, estimate.high] for estimate in estimates]).T
            panel.errorbar(
                values,
                np.arange(len(names)) + shift,
                xerr=np.abs(ends - values),
                fmt=marker,
                color=colour,
                markersize=5,
                capsize=2,
                linewidth=1.2,
                label="length alone" if what == "length" else "component",
            )
        panel.axvline(0.5 if headline == "accuracy" else 0, color="black", linewidth=0.8)
        panel.set_title(axis.name, fontsize=9, parse_math=False)
        panel.set_xlabel(SHOWN[headline], fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", linewidth=0.4)
        panel.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
        panel.set_ylim(len(names) - 0.5, -0.5)
    used = drawn[: len(panels)]
    if len({HEADLINE[axis.kind] for axis, _ in panels}) == 1:
        bounds = [bound for panel in used for bound in panel.get_xlim()]
        for panel in used:
            panel.set_xlim(min(bounds), max(bounds))
    for empty in drawn[len(panels) :]:
        empty.set_visible(False)
    handles, texts = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, texts, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    picture.suptitle("Agreement with people, 95 % intervals over images", fontsize=10, x=0.01, ha="left")
    return picture


def _by_axis(result: Result) -> list[tuple[Axis, list[tuple[str, Agreement]]]]:
    axes: dict[str, tuple[Axis, list[tuple[str, Agreement]]]] = {}
    for name, axis, measured in result.rows:
        axes.setdefault(axis.name, (axis, []))[1].append((name, measured))
    return list(axes.values())


def _plain(value: Any) -> Any:
    """JSON of a field of `Agreement` as `asdict` leaves it."""
    if isinstance(value, dict) and value.keys() == {"value", "low", "high"}:
        return [_plain(number) for number in value.values()]
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


def _interval(estimate: Estimate, signed: bool = True) -> str:
    if math.isnan(estimate.value):
        return "-"
    value, low, high = (
        f"{number:+.2f}" if signed else f"{number:.2f}" for number in (estimate.value, estimate.low, estimate.high)
    )
    return value if math.isnan(estimate.low) else f"{value} [{low} {high}]"
