"""Tables and figures of the results, put where readers look for them.

python benchmarks/ablation/page.py      # from results/*.json, for those of a machine that cannot draw
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from claims import Claim, Finding, Measures, difference, mean_with_interval
from common import ROOT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("precision", "coverage", "fluency", "b_capscore", "qa", "rubric", "words", "commentary", "praise", "repeated")
"""Measures of the table of conditions."""
LOOKS = {"shown": ("o", "#0072B2"), "not shown": ("s", "#777777"), "opposite": ("X", "#D55E00")}
"""Marker and colour of each verdict: told apart without colour too."""


def claim_rows(measures: Measures, claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Each claim whose conditions were run, with what was found."""
    rows = []
    for claim in claims:
        finding = difference(measures, claim.condition, claim.baseline, claim.measure)
        if finding:
            told = {name: getattr(claim, name) for name in claim.__dataclass_fields__}
            numbers = {"value": finding.mean, "low": finding.low, "high": finding.high, "seeds": finding.seeds}
            rows.append({**told, **numbers, "verdict": finding.verdict(claim.sign)})
    return rows


def follows_rows(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Correlations of advantages with components, mean over seeds with its interval."""
    values: dict[tuple[Any, ...], list[float]] = {}
    for run in found:
        for row in run.get("follows", ()):
            key = (run["condition"], row["window"], row["scale"], row["estimator"], row["component"])
            values.setdefault(key, []).append(row["value"])
    names = ("trained with", "window", "scale", "estimator", "component")
    rows = []
    for key, numbers in values.items():
        finding = mean_with_interval(numbers)
        rows.append(
            {**dict(zip(names, key, strict=True)), "value": finding.mean, "low": finding.low, "high": finding.high}
        )
    return rows


def draw(folder: Path, device: str) -> None:
    """From a results file: figures into `results`, tables between the marks of the README and of the docs' page."""
    results = json.loads((folder / "results" / f"{device}.json").read_text(encoding="utf-8"))
    measures = {(run["condition"], run["seed"]): run["measures"] for run in results["runs"]}
    docs = ROOT / "docs" / "claims.md"
    for name, picture in (
        ("claims", claims_figure(results["claims"])),
        ("scale", scale_figure(measures)),
        ("follows", follows_figure(results["follows"])),
    ):
        picture.savefig(folder / "results" / f"{name}-{device}.png", dpi=110)
    _fill(folder / "README.md", f"conditions {device}", conditions_table(measures))
    _fill(docs, f"claims {device}", claims_table(results["claims"]))
    _fill(docs, f"follows {device}", follows_table(results["follows"]))


def claims_table(rows: list[dict[str, Any]]) -> str:
    """A line a claim, by paper."""
    lines = ["| paper | claim | the paper's figure | ours | verdict |", "| --- | --- | --- | --- | --- |"]
    above = ""
    for row in rows:
        figure = "" if row["figure"] == above else row["figure"]
        above = row["figure"]
        verdict = row["verdict"]
        if row["source"] == "control":
            verdict = "0 inside" if row["low"] <= 0 <= row["high"] else "0 outside"
        lines.append(
            f"| {row['source']} | {row['says']} | {figure} | {row['measure']} {_signed(row)} | **{verdict}** |"
        )
    return "\n".join(lines)


def conditions_table(measures: Measures) -> str:
    """A line a condition: means over seeds, with half the width of their intervals."""
    lines = [f"| condition | seeds | {' | '.join(SHOWN)} |", f"| --- | --- |{' --- |' * len(SHOWN)}"]
    for name in dict.fromkeys(name for name, _ in measures):
        runs = [values for (condition, _), values in measures.items() if condition == name]
        cells = [_with_width(mean_with_interval([run[measure] for run in runs]), measure) for measure in SHOWN]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def follows_table(rows: list[dict[str, Any]]) -> str:
    """Every estimator at the start of training with c-GDPO, and at its end."""
    last = max(row["window"] for row in rows)
    cells = {
        (row["estimator"], row["scale"], row["window"], row["component"]): row["value"]
        for row in rows
        if row["trained with"] == "c-GDPO"
    }
    components = list(dict.fromkeys(row["component"] for row in rows))
    heads = [f"{component}, {when}" for when in ("start", "end") for component in components]
    lines = [f"| estimator | fluency x | {' | '.join(heads)} |", f"| --- | --- |{' --- |' * len(heads)}"]
    for estimator, scale in dict.fromkeys((estimator, scale) for estimator, scale, _, _ in cells):
        values = [cells[estimator, scale, window, name] for window in (0, last) for name in components]
        lines.append(f"| {estimator} | {scale:g} | {' | '.join(f'{value:.2f}' for value in values)} |")
    return "\n".join(lines)


def claims_figure(rows: list[dict[str, Any]]) -> Figure:
    """Every claim's difference with its interval, turned so that right is where the claim points."""
    picture = _figure(figsize=(9, 1.2 + 0.24 * len(rows)))
    axis = picture.subplots()
    for place, row in enumerate(rows):
        turn = (row["sign"] or 1) / (100 if row["measure"] == "words" else 1)
        value, low, high = row["value"] * turn, *sorted((row["low"] * turn, row["high"] * turn))
        marker, colour = LOOKS[row["verdict"]]
        axis.errorbar(value, place, xerr=[[value - low], [high - value]], fmt=marker, color=colour, markersize=5)
    axis.axvline(0, color="0.4", linewidth=0.8)
    labels = [f"{row['source']}: {row['says']} ({row['measure']})" for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=7)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("difference in the claim's direction, 95 % interval (words: hundreds)", fontsize=8)
    axis.grid(axis="x", linewidth=0.4)
    for verdict, (marker, colour) in LOOKS.items():
        axis.plot([], [], marker, color=colour, label=verdict, markersize=5)
    picture.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return picture


def scale_figure(measures: Measures) -> Figure:
    """What becomes of each measure when fluency is put on another scale, under both estimators."""
    names = ("precision", "coverage", "fluency", "qa", "words")
    picture = _figure(figsize=(12, 3))
    for axis, measure in zip(picture.subplots(1, len(names)), names, strict=True):
        for estimator, marker, colour in (("c-GDPO", "o", "#0072B2"), ("GRPO", "s", "#D55E00")):
            for place, suffix in enumerate((", fluency x 0.2", "", ", fluency x 5")):
                values = [run[measure] for (name, _), run in measures.items() if name == f"{estimator}{suffix}"]
                if values:
                    finding = mean_with_interval(values)
                    shift = 0.08 if estimator == "GRPO" else -0.08
                    error = [[finding.mean - finding.low], [finding.high - finding.mean]]
                    label = estimator if suffix == "" else None
                    axis.errorbar(place + shift, finding.mean, yerr=error, fmt=marker, color=colour, label=label)
        axis.set_title(measure, fontsize=10)
        axis.set_xticks(range(3), ["x 0.2", "x 1", "x 5"], fontsize=8)
        axis.tick_params(axis="y", labelsize=8)
        axis.grid(axis="y", linewidth=0.4)
    picture.legend(
        *picture.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8, frameon=False
    )
    picture.suptitle(
        "Held-out means after training with fluency on three scales, 95 % intervals over seeds", fontsize=10
    )
    return picture


def follows_figure(rows: list[dict[str, Any]]) -> Figure:
    """Along training with c-GDPO: how closely the advantages of GDPO and GRPO follow each component."""
    scales = list(dict.fromkeys(row["scale"] for row in rows))
    components = list(dict.fromkeys(row["component"] for row in rows))
    picture = _figure(figsize=(10, 3))
    looks = dict(zip(components, (("o", "#0072B2"), ("s", "#D55E00"), ("^", "#009E73")), strict=True))
    for axis, scale in zip(picture.subplots(1, len(scales), sharey=True), scales, strict=True):
        for component in components:
            for estimator, line in (("gdpo", "-"), ("grpo", ":")):
                values = [
                    row["value"]
                    for row in rows
                    if (row["trained with"], row["scale"], row["estimator"], row["component"])
                    == ("c-GDPO", scale, estimator, component)
                ]
                marker, colour = looks[component]
                axis.plot(
                    range(1, len(values) + 1),
                    values,
                    line,
                    marker=marker,
                    color=colour,
                    markersize=4,
                    label=f"{component}, {estimator}",
                )
        axis.set_title(f"fluency x {scale:g}", fontsize=10)
        axis.set_xlabel("sixth of the run", fontsize=8)
        axis.grid(linewidth=0.4)
    picture.axes[0].set_ylabel("correlation with the advantage", fontsize=8)
    picture.legend(*picture.axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8, frameon=False)
    return picture


def _figure(figsize: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=figsize, layout="constrained")


def _signed(row: dict[str, Any]) -> str:
    digits = 1 if row["measure"] == "words" else 3
    return f"{row['value']:+.{digits}f} [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"


def _with_width(finding: Finding, measure: str) -> str:
    digits = 1 if measure == "words" else 2
    return f"{finding.mean:.{digits}f} ± {finding.high - finding.mean:.{digits}f}"


def _fill(path: Path, mark: str, text: str) -> None:
    """Put a table between two marks, where the file has them."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if begin in old and end in old:
        new = f"{begin}\n{text}\n{end}"
        path.write_text(re.sub(f"{begin}.*{end}", lambda _: new, old, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    for file in here.glob("results/*.json"):
        draw(here, file.stem)
