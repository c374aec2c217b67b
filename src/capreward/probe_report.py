"""What a probe found, as a table for the terminal, a figure and files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from capreward.data import replacing
from capreward.errors import missing_extra
from capreward.probe import ADVANTAGE, AS_IT_IS, REWARD, Finding, Findings
from capreward.report import make_console

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console


def print_findings(findings: Findings, threshold: float = 0.0, console: Console | None = None) -> None:
    """One line an attack: how often it wins, by how much, what holds it; below, what to do about those that fail.

    Args:
        findings: of a probe.
        threshold: share of an attack's captions that may win, or buy a missing score.
        console: where to print.
    """
    console = console or make_console()  # says which extra rich comes with
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    failed = findings.failed(threshold)
    lines = Table(
        title=Text(f"{len(findings.attacks)} attacks on {findings.honest} honest captions in {findings.groups} groups"),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    lines.add_column("attack", no_wrap=True)
    for name in ("captions", REWARD, ADVANTAGE, *findings.names, "missing"):
        lines.add_column(Text(name.replace("_", "_\n")), justify="right", overflow="fold")
    lines.add_column("lead in the reward", justify="right", no_wrap=True)
    lines.add_column("loses most on")
    for attack in findings.attacks:
        total = findings.of(attack)
        shares = [findings.of(attack, on).wins for on in (REWARD, ADVANTAGE, *findings.names)]
        lines.add_row(
            Text(f"{attack} !" if attack in failed else attack, "bold" if attack in failed else ""),
            str(total.captions),
            *map(_share, shares),
            _share(total.missing),
            margin(total),
            Text(findings.stopped_by(attack) or "-"),
        )
    console.print(lines)
    console.print(
        "Shares of captions that win: above the honest caption they were made of and above their group's mean.\n"
        "missing: no score where the honest caption has one.   lead over the honest caption: mean and 95 % interval."
    )
    _print_defences(findings, threshold, console)
    for attack in failed:
        console.print(Text(f"! {attack}: {findings.what_to_do(attack, threshold)}"))
    verdict = (
        f"{len(failed)} of {len(findings.attacks)} attacks win, or buy a missing score, with more than {threshold:.0%}"
    )
    console.print(Text(f"{verdict} of their captions"))


def _print_defences(findings: Findings, threshold: float, console: Console) -> None:
    from rich.text import Text

    for name in dict.fromkeys(defence.suite for defence in findings.defences):
        under = [defence for defence in findings.defences if defence.suite == name]
        winners = [defence.attack for defence in under if defence.wins > threshold]
        listed = f": {', '.join(winners)}" if winners else ""
        console.print(
            Text(f"{name}: {len(winners)} attacks win, honest captions {_number(under[0].honest)}{listed}"),
            style="" if name == AS_IT_IS else "dim",
        )


def figure(findings: Findings) -> Figure:
    """Shares of wins as a heat map, a row an attack, and the margins of the reward with their intervals."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("Drawing figures", "report", error) from error
    attacks, columns = findings.attacks, (*findings.names, REWARD, ADVANTAGE)
    picture = Figure(figsize=(6.5 + 0.7 * len(columns), 1.8 + 0.26 * len(attacks)), layout="constrained")
    heat, margins = picture.subplots(1, 2, sharey=True, width_ratios=[0.7 * len(columns), 3.4])
    wins = np.array([[findings.of(attack, on).wins for on in columns] for attack in attacks])
    heat.imshow(wins, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for (row, column), share in np.ndenumerate(wins):
        heat.text(
            column, row, _share(share), ha="center", va="center", fontsize=7, color="white" if share > 0.5 else "black"
        )
    heat.axvline(len(findings.names) - 0.5, color="black", linewidth=1)
    heat.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8, parse_math=False)
    heat.set_yticks(range(len(attacks)), attacks, fontsize=8, parse_math=False)
    heat.set_title("captions that win", fontsize=10)
    _margins(margins, [findings.of(attack) for attack in attacks])
    picture.suptitle(f"{len(attacks)} attacks on {findings.honest} honest captions", fontsize=11)
    return picture


def _margins(axis: Any, totals: list[Finding]) -> None:
    for row, total in enumerate(totals):
        colour, marker = ("#D55E00", "D") if total.margin > 0 else ("#0072B2", "o")
        axis.plot([total.low, total.high], [row, row], color=colour, linewidth=1.5)
        axis.plot([total.margin], [row], marker, color=colour, markersize=4)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.grid(axis="x", linewidth=0.4)
    axis.set_title("lead in the reward over the honest caption", fontsize=10)
    axis.set_xlabel("mean and 95 % interval; diamonds: above 0", fontsize=8)


def write(findings: Findings, out: Path, threshold: float = 0.0) -> list[Path]:
    """probe.json and probe.png in a folder, which is made; what was there is replaced."""
    out.mkdir(parents=True, exist_ok=True)
    failed = {attack: findings.what_to_do(attack, threshold) for attack in findings.failed(threshold)}
    data = {"threshold": threshold, "failed": failed, **findings.to_json()}
    paths = [out / "probe.json", out / "probe.png"]
    with replacing(paths[0]) as path:
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(paths[1]) as path:
        figure(findings).savefig(path, dpi=130, format="png")
    return paths


def margin(finding: Finding) -> str:
    """The mean lead and its interval."""
    if math.isnan(finding.margin):
        return "-"
    interval = "" if math.isnan(finding.low) else f" [{finding.low:+.2f}, {finding.high:+.2f}]"
    return f"{finding.margin:+.2f}{interval}"


def _share(value: float) -> str:
    return "-" if value == 0 else f"{value:.0%}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
