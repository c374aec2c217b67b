"""An evaluation as tables for the terminal and as figures. Colours are told apart by the colour-blind, and are never alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from capreward.errors import missing_extra
from capreward.evaluate.arena import Strengths
from capreward.evaluate.evaluation import OF_MEANS, Evaluation
from capreward.intervals import Estimate
from capreward.report import make_console, make_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
PANELS = 4
"""In a row of a figure."""


def print_evaluation(evaluation: Evaluation, console: Console | None = None) -> None:
    """A row a metric and a column a captioner, then the arena, what is missing and why, and what the judge did."""
    console = console or make_console()
    lines = _table("metric", *evaluation.captioners)
    apart = " " if len(evaluation.captioners) <= 4 else "\n"  # what a terminal has room for
    counts = [int((evaluation.author == name).sum()) for name in evaluation.captioners]
    lines.add_row("captions", *(f"{count:,}" for count in counts), end_section=True)
    for metric in evaluation.metrics:
        cells = (_cell(metric, evaluation.estimates[name][metric], apart) for name in evaluation.captioners)
        lines.add_row(metric, *map(plain, cells))
    console.print("Means, and 95% intervals from resampling the items", style="bold")
    console.print(lines)
    for text in _missing(evaluation):
        console.print(text, markup=False)
    if evaluation.arena:
        _print_arena(evaluation, console)
    if evaluation.judge:
        name, usage = evaluation.judge
        console.print(f"{name}: {usage.summary()}", markup=False)


def _print_arena(evaluation: Evaluation, console: Console) -> None:
    fought = evaluation.arena
    assert fought is not None
    missing = sum(not isinstance(battle.outcome, str) for battle in fought.battles)
    if fought.plain is None or fought.length_controlled is None:
        console.print(f"Arena: none of {len(fought.battles):,} battles has an outcome", style="bold")
        return
    lines = _table("captioner", "(wins - losses) / 2", "strength", "at equal length")
    order = np.argsort(-fought.plain.strength).tolist()
    for name in (fought.plain.names[row] for row in order):
        score = fought.scores.get(name, {}).get("mean")
        strengths = (_strength(each, name) for each in (fought.plain, fought.length_controlled))
        lines.add_row(plain(name), "-" if score is None else f"{score:+.1f}", *map(plain, strengths))
    console.print(f"Arena: {len(fought.battles):,} battles, {missing:,} missing", style="bold")
    console.print(lines)
    effect, bounds = fought.length_controlled.length_effect, fought.length_controlled.length_interval
    assert effect is not None
    assert bounds is not None
    console.print(f"A caption e times as long gains {_signed(effect, *bounds)} log odds.", markup=False)


def figure(evaluation: Evaluation) -> Figure:
    """A panel for each metric without a budget: means and intervals, a line a captioner."""
    metrics = [metric for metric in evaluation.metrics if "@" not in metric and metric != OF_MEANS]
    picture, panels = _panels(len(metrics), 0.9 + 0.32 * len(evaluation.captioners))
    for number, (panel, metric) in enumerate(zip(panels, metrics, strict=True)):
        estimates = [evaluation.estimates[name][metric] for name in evaluation.captioners]
        points = [(estimate.mean, estimate.low, estimate.high) for estimate in estimates]
        _dots(panel, evaluation.captioners, points, metric, named=number % PANELS == 0)
    return picture


def budget_figure(evaluation: Evaluation) -> Figure:
    """A panel for each metric that has budgets: its score by the budget in words."""
    metrics = [metric for metric in evaluation.metrics if f"{metric}@{evaluation.budgets[0]}" in evaluation.metrics]
    picture, panels = _panels(len(metrics), 3.2, columns=2, width=4.2)
    for panel, metric in zip(panels, metrics, strict=True):
        for number, name in enumerate(evaluation.captioners):
            estimates = [evaluation.estimates[name][f"{metric}@{budget}"] for budget in evaluation.budgets]
            means, low, high = np.array([(e.mean, e.low, e.high) for e in estimates]).T
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            panel.errorbar(
                evaluation.budgets, means, [means - low, high - means], label=name, capsize=2, lw=1.2, ms=5, **look
            )
        panel.set_title(f"{metric} within a budget", fontsize=10)
        panel.set_xlabel("words", fontsize=9)
        panel.set_xticks(evaluation.budgets)
        panel.grid(linewidth=0.4)
    handles, labels = panels[0].get_legend_handles_labels()
    legend = picture.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return picture


def arena_figure(evaluation: Evaluation) -> Figure:
    """Strengths with intervals, as fought and at equal length, the strongest first."""
    fought = evaluation.arena
    assert fought is not None
    assert fought.plain is not None
    assert fought.length_controlled is not None
    order = np.argsort(-fought.plain.strength).tolist()
    names = [fought.plain.names[row] for row in order]
    picture, panels = _panels(2, 1.1 + 0.32 * len(names), columns=2, width=4.2)
    places = {name: number for number, name in enumerate(evaluation.captioners)}
    for panel, title, each in zip(
        panels, ("as fought", "at equal length"), (fought.plain, fought.length_controlled), strict=True
    ):
        points = [
            (float(each.strength[k]), float(each.low[k]), float(each.high[k])) for k in map(each.names.index, names)
        ]
        _dots(panel, names, points, title, named=panel is panels[0], places=[places[name] for name in names])
        panel.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        panel.set_xlabel("strength (log odds)", fontsize=9)
    return picture


def _dots(
    panel: Any,
    names: Sequence[str],
    points: Sequence[tuple[float, float, float]],
    title: str,
    *,
    named: bool,
    places: Sequence[int] | None = None,
) -> None:
    for row, (mean, low, high) in enumerate(points):
        number = places[row] if places else row
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        if not isnan(low):
            panel.plot([low, high], [row, row], color=colour, linewidth=1.8)
        panel.plot([mean], [row], marker, color=colour, markeredgecolor="black", markeredgewidth=0.5, ms=6)
    panel.set_ylim(len(points) - 0.5, -0.5)
    panel.set_yticks(range(len(names)), names if named else [""] * len(names), fontsize=8, parse_math=False)
    panel.set_title(title, fontsize=9, parse_math=False)
    panel.tick_params(axis="x", labelsize=8)
    panel.grid(axis="x", linewidth=0.4)


def _panels(count: int, height: float, columns: int = PANELS, width: float = 2.6) -> tuple[Figure, list[Any]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    picture = make_figure(1.2 + width * columns, 0.3 + height * rows)
    panels = picture.subplots(rows, columns, squeeze=False).ravel().tolist()
    for empty in panels[count:]:
        empty.remove()
    return picture, panels[:count]


def _cell(metric: str, estimate: Estimate, apart: str) -> str:
    if isnan(estimate.mean):
        return "-"
    digits = 1 if metric in ("words", "dcscore") else 3
    bounds = "" if isnan(estimate.low) else f"{apart}[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return f"{estimate.mean:.{digits}f}{bounds}"


def _strength(strengths: Strengths, name: str) -> str:
    k = strengths.names.index(name)
    return _signed(strengths.strength[k], strengths.low[k], strengths.high[k])


def _signed(value: float, low: float, high: float) -> str:
    bounds = "" if isnan(low) else f" [{low:+.2f}, {high:+.2f}]"
    return f"{value:+.2f}{bounds}"


def _missing(evaluation: Evaluation) -> list[str]:
    """One line a metric and captioner of which captions have no score."""
    result = []
    for name in evaluation.captioners:
        for metric in evaluation.scores:
            if counts := evaluation.missing(name, metric):
                reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
                total = int((evaluation.author == name).sum())
                result.append(
                    f"missing: {metric} of {sum(counts.values()):,} of {total:,} captions of {name} ({reasons})"
                )
    return result


def _table(first: str, *others: str) -> Any:
    try:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
    except ImportError as error:
        raise missing_extra("Printing tables", "report", error) from error
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(plain(first), no_wrap=True)
    for name in others:
        table.add_column(plain(name), justify="right", overflow="fold")
    return table
