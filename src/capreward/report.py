"""Tables for the terminal and figures: of a ScoreTable, and of a training run.

All of them take the extra `report`; without it they raise a MissingExtraError.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from capreward.errors import missing_extra
from capreward.groups import Float
from capreward.records import Rollout
from capreward.scoring import ScoreTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Told apart by colour-blind readers too (Okabe and Ito); lines have a marker each besides."""
ROWS = 60
"""Rollouts that a table or a figure shows; the files hold all of them."""


def print_scores(table: ScoreTable, console: Console | None = None, *, rows: int = ROWS) -> None:
    """One line a rollout: its score on each component, their total, and GRPO's and GDPO's advantage side by side.

    `*` marks a score that a gate changed, a dash one that is missing. Below, by component: means, gates, what is missing and
    why, and the share of groups in which it varies.
    """
    console = console or make_console()
    grpo, gdpo, total = table.advantages("grpo"), table.advantages("gdpo"), table.total()
    lines = _table(
        f"{len(table)} rollouts in {len(set(table.groups))} groups", "rollout", *table.names, "total", "GRPO", "GDPO"
    )
    shown = min(rows, len(table))
    for row in range(shown):
        last = row + 1 == shown or table.groups[row + 1] != table.groups[row]
        lines.add_row(
            plain(table.ids[row]),
            *(_cell(table, row, k) for k in range(len(table.names))),
            _number(total[row]),
            f"{grpo[row]:+.2f}",
            f"{gdpo[row]:+.2f}",
            end_section=last,
        )
    console.print(lines)
    if shown < len(table):
        console.print(f"... and {len(table) - shown} more")
    console.print("* changed by a gate   - missing   total: weighted mean of the scores present")
    print_components(table, console)


def print_components(table: ScoreTable, console: Console | None = None) -> None:
    """One line a component: weight, means before (where asked) and after the gates, groups that vary, missing by reason.

    Below, one line a judge: what it did.
    """
    console = console or make_console()
    lines = _table(
        "Components", "component", "weight", "raw, where asked", "gated", "after gates", "varies in", "missing"
    )
    missing = table.missing_by_reason()
    for k, (name, row) in enumerate(table.diagnostics().items()):
        reasons = ", ".join(f"{reason} {count}" for reason, count in missing[name].most_common()) or "none"
        lines.add_row(
            plain(name),
            f"{table.weights[k]:g}",
            _number(row["raw"]),
            f"{row['gated']:.0%}",
            _number(row["value"]),
            f"{row['varies']:.0%} of groups",
            reasons,
        )
    console.print(lines)
    for judge, usage in table.usage:
        console.print(plain(f"{judge}: {usage.summary()}"))


def print_means(table: ScoreTable, rollouts: Sequence[Rollout], key: str, console: Console | None = None) -> None:
    """Mean score of each component by a key of the rollouts' metadata, such as the kind of caption."""
    lines = _table(f"Mean by {key}", key, "rollouts", *table.names, "total", "GRPO", "GDPO")
    columns = np.column_stack([table.values, table.total(), table.advantages("grpo"), table.advantages("gdpo")])
    for value, rows in rows_by(rollouts, key).items():
        means = [
            float(column[~np.isnan(column)].mean()) if (~np.isnan(column)).any() else np.nan
            for column in columns[rows].T
        ]
        signed = [f"{mean:+.2f}" for mean in means[-2:]]
        lines.add_row(plain(value), str(len(rows)), *(_number(mean) for mean in means[:-2]), *signed)
    (console or make_console()).print(lines)


def rows_by(rollouts: Sequence[Rollout], key: str) -> dict[str, list[int]]:
    """Row numbers by the value of a metadata key, in order of appearance; "-" collects the rollouts without it."""
    rows: dict[str, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        rows.setdefault(str(rollout.metadata.get(key, "-")), []).append(row)
    return rows


def figure(table: ScoreTable, *, rows: int = ROWS) -> Figure:
    """Scores as a heat map (hatched: missing; dot: changed by a gate), and both advantages as bars, a line a rollout."""
    shown = min(rows, len(table))
    names = list(table.names)
    picture = make_figure(5.5 + 0.75 * len(names), 1.6 + 0.2 * shown)
    heat, bars = picture.subplots(1, 2, sharey=True, width_ratios=[0.75 * len(names), 3.2])
    _heat_map(picture, heat, table, shown)
    _advantages(bars, table.advantages("grpo")[:shown], table.advantages("gdpo")[:shown])
    for axis in (heat, bars):
        for row in range(1, shown):
            if table.groups[row] != table.groups[row - 1]:
                axis.axhline(row - 0.5, color="0.35", linewidth=0.8)
    heat.set_yticks(range(shown), table.ids[:shown], fontsize=7, parse_math=False)
    heat.set_ylim(shown - 0.5, -0.5)
    note = "" if shown == len(table) else f" (the first {shown} of {len(table)} rollouts)"
    picture.suptitle(f"Scores after gates, and the advantages made of them{note}", fontsize=11)
    return picture


@dataclass(frozen=True)
class Run:
    """What a training run left behind, for `print_run` and `run_figure`."""

    metrics: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    before: list[dict[str, Any]]
    """Held-out captions of the policy that the run started from, as rows of `ScoreTable.to_rows`."""
    after: list[dict[str, Any]]
    """The same of the trained policy, in the same order."""
    images: Mapping[str, Path | bytes | None]
    """By item."""

    @classmethod
    def read(cls, folder: Path, images: Mapping[str, Path | bytes | None]) -> Run:
        """The run in a trainer's folder."""
        metrics, before, after = (
            [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
            for name in ("metrics", "before", "after")
        )
        return cls(metrics, before, after, images)

    @property
    def names(self) -> list[str]:
        """The components."""
        return list(self.before[0]["scores"])

    def means(self, name: str) -> tuple[float, float]:
        """A component's mean score on the held-out items before and after; NaN where all are missing."""
        values = ([row["scores"][name]["value"] for row in rows] for rows in (self.before, self.after))
        first, second = (np.array([value for value in each if value is not None], np.float64) for each in values)
        return (
            float(first.mean()) if len(first) else float("nan"),
            float(second.mean()) if len(second) else float("nan"),
        )


def print_run(run: Run, console: Console | None = None) -> None:
    """One line a component: its mean on the held-out items before and after training."""
    lines = _table(f"{len(run.before)} held-out items", "component", "before", "after", "change")
    for name in run.names:
        before, after = run.means(name)
        lines.add_row(plain(name), _number(before), _number(after), f"{after - before:+.2f}")
    (console or make_console()).print(lines)


def run_figure(run: Run, *, examples: int = 3) -> Figure:
    """Components over the run, before and after on held-out items, and what the policy says of some of them."""
    picture = make_figure(11, 4.2 + 1.5 * examples)
    grid = picture.add_gridspec(1 + examples, 8, height_ratios=[4, *[1.5] * examples])
    curves, bars = picture.add_subplot(grid[0, :5]), picture.add_subplot(grid[0, 5:])
    steps = [row["step"] for row in run.metrics]
    for number, name in enumerate(run.names):
        values = np.array([row[f"{name}/value"] for row in run.metrics], np.float64)
        colour, marker = COLOURS[number % len(COLOURS)], "osD^vPX"[number % 7]
        every = max(len(steps) // 10, 1)
        curves.plot(steps, values, label=name, color=colour, linewidth=1.2, marker=marker, ms=4, markevery=every)
        for place, (mean, shade) in enumerate(zip(run.means(name), (0.45, 1.0), strict=True)):
            bars.barh(number + 0.38 * place, mean, height=0.36, color=colour, alpha=shade)
            bars.text(mean + 0.01, number + 0.38 * place, _number(mean), va="center", fontsize=8)
    curves.set(xlabel="step", ylabel="mean score of the batch", ylim=(0, 1.02))
    curves.set_title("While training", fontsize=10)
    curves.legend(fontsize=8, frameon=False, loc="lower right")
    curves.grid(linewidth=0.4)
    bars.set_yticks([number + 0.19 for number in range(len(run.names))], run.names, fontsize=8, parse_math=False)
    bars.set(xlim=(0, 1.12))
    bars.invert_yaxis()
    bars.set_title(f"{len(run.before)} held-out items: before (pale) and after", fontsize=10)
    for row, (before, after) in enumerate(list(zip(run.before, run.after, strict=True))[:examples], 1):
        _example(picture.add_subplot(grid[row, 0]), picture.add_subplot(grid[row, 1:]), run, before, after)
    return picture


def _example(left: Any, right: Any, run: Run, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """A picture, and what the policy said of it before and after."""
    from capreward.processing import open_image

    image = run.images.get(before["item"])
    if image is not None:
        left.imshow(open_image(image))
    for axis in (left, right):
        axis.axis("off")
    for place, (when, row) in enumerate((("before", before), ("after", after))):
        said = textwrap.shorten(row["caption"], 330) or "(nothing)"
        scores = ", ".join(f"{name} {_number_or_dash(cell['value'])}" for name, cell in row["scores"].items())
        text = "\n".join([f"{when}:  {scores}", *textwrap.wrap(said, 110)])
        right.text(0, 1 - 0.52 * place, text, va="top", fontsize=8, parse_math=False, transform=right.transAxes)


def _number_or_dash(value: float | None) -> str:
    return _number(float("nan") if value is None else value)


def _heat_map(picture: Figure, axis: Any, table: ScoreTable, shown: int) -> None:
    values = table.values[:shown]
    image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    for row, column in np.argwhere(np.isnan(values)).tolist():
        axis.add_patch(_rectangle(column, row))
    gated = [(row, column) for row, column in table.gated if row < shown]
    axis.plot(
        [column for _, column in gated], [row for row, _ in gated], "o", color="white", markeredgecolor="black", ms=4
    )
    axis.set_xticks(range(len(table.names)), table.names, rotation=30, ha="right", fontsize=8, parse_math=False)
    bar = picture.colorbar(image, ax=axis, location="top", shrink=0.8, aspect=30)
    bar.set_label("score   (hatched: missing, dot: set by a gate)", fontsize=8)


def _rectangle(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="0.9", edgecolor="0.5", hatch="////", linewidth=0)


def _advantages(axis: Any, grpo: Float, gdpo: Float) -> None:
    rows = np.arange(len(grpo))
    axis.barh(rows - 0.2, grpo, height=0.36, color="#0072B2", label="GRPO")
    axis.barh(rows + 0.2, gdpo, height=0.36, color="#E69F00", label="GDPO")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("advantage", fontsize=9)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
    axis.grid(axis="x", linewidth=0.4)


def _cell(table: ScoreTable, row: int, column: int) -> str:
    return _number(table.values[row, column]) + ("*" if (row, column) in table.gated else "")


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def plain(text: str) -> Text:
    """Text in which nothing is read as rich's markup."""
    from rich.text import Text

    return Text(text.encode("utf-8", "replace").decode())


def make_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, outside pyplot, so that no window opens and nothing has to be closed.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("Drawing figures", "report", error) from error
    return Figure(figsize=(width, height), layout="constrained")


def make_console() -> Console:
    """A console as wide as the terminal, or 120 columns where there is none.

    Raises:
        MissingExtraError: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise missing_extra("Printing tables", "report", error) from error
    console = Console()
    return console if console.is_terminal else Console(width=120)


def _table(title: str, first: str, *others: str) -> Table:
    """An empty table with a text column and number columns; long names break at their underscores."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise missing_extra("Printing tables", "report", error) from error

    table = Table(
        title=Text(title, "bold"), title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column(Text(first), no_wrap=True)
    for name in others:
        table.add_column(Text(name.replace("_", "_\n")), justify="right", overflow="fold")
    return table
