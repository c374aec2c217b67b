"""An ablation's frames as figures, and as one HTML page that holds everything it shows.

Colours are told apart by the colour-blind and are never alone: markers, signs and labels say the same. On the page the figures
take the colours of the reader's light or dark scheme, and the table below each has its numbers.
"""

from __future__ import annotations

import html
import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from capreward.ablation import RECORDED, SUMS, Ablation, Variant
from capreward.errors import missing_extra
from capreward.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LIGHT = {"paper": "#ffffff", "ink": "#1b1b1f", "line": "#6b6b70", "first": "#0067a8", "second": "#b34700"}
DARK = {"paper": "#15171a", "ink": "#e8e8ea", "line": "#94949c", "first": "#63b8f0", "second": "#f2a14a"}
"""Colours by what they are for; figures are drawn in the light ones."""
WIDTH = 4.6
"""Of a figure in inches: as wide as a telephone shows without making the letters too small."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
MEASURES = {
    "rank_correlation": "rank correlation within groups",
    "sign_flips": "share of advantages of opposite sign",
    "mean_change": "mean absolute change of the advantage",
}
SPARE = "a ledger to ablate gates on is written with RewardSuite(..., spare=False)"


def compare_figure(frame: pd.DataFrame, measure: str) -> Figure:
    """One of `Ablation.compare`'s measures, a line a variant."""
    return _dots({"": frame[frame["measure"] == measure]}, "variant", MEASURES[measure])


def contributions_figure(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """`Ablation.contributions` of variants by name, a line a component."""
    return _dots(frames, "component", "share of the advantage's variance", zero=True)


def conflicts_figure(frame: pd.DataFrame) -> Figure:
    """`Ablation.conflicts` as a matrix: the more, the deeper; above 0 in one colour, below 0 in the other."""
    return _matrix(frame, "component", "other")


def variation_figure(frame: pd.DataFrame) -> Figure:
    """`Ablation.variation`, a line a component."""
    return _dots({"": frame}, "component", "share of groups in which it varies", share=True)


def collapse_figure(frame: pd.DataFrame) -> Figure:
    """`Ablation.collapse`, relative to the groups' sizes, a line an estimator."""
    relative = frame[frame["measure"] == "relative"]
    return _dots({"": relative}, "estimator", "distinct advantages per rollout of a group", share=True)


def best_of_figure(frame: pd.DataFrame) -> Figure:
    """The picks of `Ablation.best_of` beside the mean, a line a component."""
    series = {what: frame[frame["measure"] == what] for what in ("mean", "best")}
    return _dots(series, "component", "mean score", share=True)


def pareto_figure(frame: pd.DataFrame) -> Figure:
    """`Ablation.pareto` as a matrix, deeper from each component's worst to its best; dominated variants are named so."""
    marked = frame.assign(variant=_marked(frame))
    return _matrix(marked, "variant", "component", by_column=True)


def length_bias_figure(frame: pd.DataFrame) -> Figure:
    """`Ablation.length_bias`, a line a component and one of the advantage."""
    return _dots({"": frame}, "component", "correlation with length within groups", zero=True)


def in_short(
    compared: pd.DataFrame, contributions: pd.DataFrame, conflicts: pd.DataFrame, pareto: pd.DataFrame
) -> list[str]:
    """What stands out, in sentences."""
    lines = []
    ranked = compared[compared["measure"] == "rank_correlation"].dropna(subset="value")
    if len(ranked):
        far, near = ranked.loc[ranked["value"].idxmin()], ranked.loc[ranked["value"].idxmax()]
        lines.append(
            f"Furthest from the recorded advantages: {far['variant']}, rank correlation {_interval(far)}; nearest: "
            f"{near['variant']}, {_interval(near)}."
        )
    shares = contributions.dropna(subset="value")
    if len(shares):
        most, least = shares.loc[shares["value"].idxmax()], shares.loc[shares["value"].idxmin()]
        lines.append(
            f"Of the recorded advantage's variance {most['component']} makes the largest share, {_interval(most)}, and "
            f"{least['component']} the smallest, {_interval(least)}."
        )
    pairs = conflicts[conflicts["component"] < conflicts["other"]].dropna(subset="value")
    against = pairs[(pairs["high"] < 0) | (pairs["high"].isna() & (pairs["value"] < 0))]
    if len(against):
        worst = against.loc[against["value"].idxmin()]
        lines.append(
            f"Strongest conflict: {worst['component']} against {worst['other']}, correlation {_interval(worst)} within groups."
        )
    elif len(pairs) and pairs["high"].isna().all():
        lines.append("No two components are in conflict: no correlation lies below 0.")
    elif len(pairs):
        lines.append("No two components are in conflict: no interval of a correlation lies below 0.")
    dominated = pareto[pareto["dominated_by"] != ""].drop_duplicates("variant")
    said = [f"{row['variant']} (by {row['dominated_by']})" for _, row in dominated.iterrows()]
    lines.append(f"Dominated: {'; '.join(said)}." if said else "No variant is dominated.")
    return lines


@dataclass(frozen=True)
class Report:
    """What `make_report` made."""

    page: str
    """HTML."""
    in_short: list[str]
    warnings: list[str]
    """What was lost, missing or not asked."""


def make_report(
    ablation: Ablation,
    variants: Mapping[str, Variant],
    *,
    estimators: Sequence[str] = ("gdpo", "grpo"),
    progress: bool = False,
) -> Report:
    """All frames and figures of the variants beside the recorded one, as one page.

    Args:
        ablation: of the ledger.
        variants: at least one, by name.
        estimators: which to compare on the recorded scores and weights.
        progress: show a bar if it takes longer than two seconds.
    """
    everything = {"recorded": RECORDED, **variants}
    sums = [name for name in estimators if name in SUMS]
    with progress_bar(len(everything) + 8, "ablating", "step", shown=progress) as advance:

        def done(frame: Any) -> Any:
            if advance:
                advance(1)
            return frame

        for variant in everything.values():
            done(ablation.advantages(variant))
        compared = done(ablation.compare(variants))
        parts = {"recorded": ablation.contributions()}
        parts |= {name: ablation.contributions(replace(RECORDED, estimator=name)) for name in sums if name != "gdpo"}
        done(parts)
        conflicts, variation = done(ablation.conflicts()), done(ablation.variation())
        collapse, best = done(ablation.collapse(estimators)), done(ablation.best_of())
        pareto, length = done(ablation.pareto(everything)), done(ablation.length_bias())
    short = in_short(compared, parts["recorded"], conflicts, pareto)
    warnings = _warnings(ablation, compared)
    rows = "a row a variant"
    sections = [
        _section(
            "How far each variant is from what was recorded",
            "A rank correlation of 1: the same order in every group. Opposite signs are counted among the rollouts to which "
            "either gives an advantage other than 0.",
            {
                f"{MEASURES[name].capitalize()}, {rows}: {_range(compared[compared['measure'] == name], 'variant')}": (
                    compare_figure(compared, name)
                )
                for name in MEASURES
            },
            _table(
                compared, "variant", "measure", compared.drop_duplicates("variant").set_index("variant")[["not_asked"]]
            ),
        ),
        _section(
            "What each reward contributes",
            "Share of the advantage's variance, cov(part, A) / var(A). Shares add up to 1; a negative one works against the "
            "others. Weights say what was meant, this says what training feels.",
            {
                f"Share of the advantage's variance by component, recorded: {_range(parts['recorded'], 'component')}": (
                    contributions_figure(parts)
                )
            },
            _table(_together(parts, "variant"), "component", "variant"),
        ),
        _section(
            "Which rewards are in conflict",
            "Correlation within groups. Below 0, captions that one reward prefers are those that the other does not.",
            {
                f"Matrix of correlations between components within groups: {_range(_pairs(conflicts), 'pair')}": conflicts_figure(
                    conflicts
                )
            },
            _table(conflicts, "component", "other"),
        ),
        _section(
            "Where each reward varies",
            "Where all captions of a group score the same, a reward teaches nothing.",
            {
                f"Share of groups in which a component varies: {_range(variation, 'component')}": variation_figure(
                    variation
                )
            },
            _table(variation.assign(measure="share of groups"), "component", "measure"),
        ),
        _section(
            "How many advantages an estimator tells apart",
            "1 if every caption of a group has an advantage of its own. GRPO adds the rewards up first, so that different "
            "captions can end up equal.",
            {
                "Distinct advantages per rollout of a group, by estimator: "
                f"{_range(collapse[collapse['measure'] == 'relative'], 'estimator')}": collapse_figure(collapse)
            },
            _table(collapse, "estimator", "measure"),
        ),
        _section(
            "What best-of-group picks score",
            "In each group the caption of the largest recorded advantage, beside the mean of all.",
            {
                "Mean score of the picks beside that of all captions, by component; gain: "
                f"{_range(best[best['measure'] == 'gain'], 'component')}": best_of_figure(best)
            },
            _table(best, "component", "measure"),
        ),
        _section(
            "Which variants are dominated",
            "Recorded scores of each variant's picks. Dominated: another variant's picks score at least as well on every "
            "component and better on one; the share is that of the bootstrap's draws in which this holds.",
            {f"Matrix of the picks' mean scores, {rows}, a column a component; {short[-1]}": pareto_figure(pareto)},
            _table(
                pareto,
                "variant",
                "component",
                pareto.drop_duplicates("variant").set_index("variant")[["dominated_by", "dominated"]],
            ),
        ),
        _section(
            "Which rewards go with length",
            "Correlation with the caption's length within groups: above 0, longer captions are paid.",
            {f"Correlation with length within groups: {_range(length, 'component')}": length_bias_figure(length)},
            _table(length.assign(measure="correlation"), "component", "measure"),
        ),
    ]
    return Report(_page(ablation, short, warnings, sections), short, warnings)


def _warnings(ablation: Ablation, compared: pd.DataFrame) -> list[str]:
    """What was lost, missing or not asked."""
    lines = [
        f"{name}: {count} bytes at its end are no whole record and were not read."
        for name, count in ablation.ledger.lost().items()
    ]
    missing = {name: count for name, count in ablation.missing().items() if count}
    if missing:
        counts = ", ".join(f"{name} {count:,} ({count / len(ablation):.1%})" for name, count in missing.items())
        lines.append(f"Missing scores: {counts}. They add 0 to an advantage, and are left out of every mean.")
    lost = compared[compared["not_asked"] > 0].drop_duplicates("variant")
    if len(lost):
        counts = ", ".join(f"{row['variant']}: {row['not_asked']:,}" for _, row in lost.iterrows())
        lines.append(
            f"Scores that a variant's gates let through and that no judge was ever asked for: {counts}. They count as missing; "
            f"{SPARE}."
        )
    return lines


def _together(frames: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([frame.assign(**{name: key}) for key, frame in frames.items()])


def _pairs(conflicts: pd.DataFrame) -> pd.DataFrame:
    """Each pair once, under its name."""
    pairs = conflicts[conflicts["component"] < conflicts["other"]]
    return pairs.assign(pair=pairs["component"] + " with " + pairs["other"])


def _marked(frame: pd.DataFrame) -> pd.Series:
    return frame["variant"].where(frame["dominated_by"] == "", frame["variant"] + " (dominated)")


def _range(frame: pd.DataFrame, key: str) -> str:
    """The smallest and the largest number of a frame, in words."""
    present = frame.dropna(subset="value")
    if present.empty:
        return "no numbers"
    low, high = present.loc[present["value"].idxmin()], present.loc[present["value"].idxmax()]
    return f"from {_number(low['value'])} ({low[key]}) to {_number(high['value'])} ({high[key]})"


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}".replace("-", "−")


def _interval(row: Any) -> str:
    if np.isnan(row["low"]):
        return _number(row["value"])
    return f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"


@contextmanager
def _drawing() -> Iterator[type[Figure]]:
    """Matplotlib's Figure, in the colours that the page replaces."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("Drawing figures", "report", error) from error
    ink, line = LIGHT["ink"], LIGHT["line"]
    style: dict[Any, Any] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), ink),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), line),
        "figure.facecolor": "white",  # notebooks may be dark; the page has a ground of its own
        "axes.facecolor": "none",
        **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
        "font.size": 9,
        "grid.linewidth": 0.4,
        "svg.hashsalt": "capreward",
    }
    with matplotlib.rc_context(style):
        yield Figure


def _dots(
    series: Mapping[str, pd.DataFrame],
    key: str,
    label: str,
    *,
    zero: bool = False,
    share: bool = False,
) -> Figure:
    """Numbers with their intervals, a line a key, a marker a series."""
    names = list(next(iter(series.values()))[key])
    with _drawing() as figure:
        picture = figure(figsize=(WIDTH, 0.75 + 0.3 * len(names) * max(1, 0.6 * len(series))), layout="constrained")
        axis = picture.subplots()
        for number, (name, frame) in enumerate(series.items()):
            colour = LIGHT["first" if number % 2 == 0 else "second"]
            value, low, high = (frame[column].to_numpy() for column in ("value", "low", "high"))
            place = np.arange(len(names)) + 0.8 * ((number + 1) / (len(series) + 1) - 0.5)
            axis.hlines(place, low, high, color=colour, linewidth=2)
            face = colour if number == 0 else LIGHT["paper"]
            axis.plot(
                value, place, MARKERS[number % len(MARKERS)], color=colour, markerfacecolor=face, ms=6, label=name
            )
        if zero:
            axis.axvline(0, color=LIGHT["ink"], linewidth=0.9)
        if share:
            axis.set_xlim(-0.03, 1.03)
        axis.set_yticks(range(len(names)), [textwrap.fill(name, 24) for name in names], parse_math=False)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlabel(label)
        axis.grid(axis="x")
        axis.locator_params(axis="x", nbins=5)
        if len(series) > 1:
            axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(series), frameon=False)
    return picture


def _matrix(frame: pd.DataFrame, rows: str, columns: str, *, by_column: bool = False) -> Figure:
    """Numbers in cells: the further from 0 the deeper, up to 1; or from each column's least to its most."""
    table = frame.pivot(index=rows, columns=columns, values="value")
    table = table.loc[list(dict.fromkeys(frame[rows])), list(dict.fromkeys(frame[columns]))]
    numbers = table.to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        low = np.fmin.reduce(numbers) if by_column else 0.0
        depth = (numbers - low) / (np.fmax.reduce(numbers) - low if by_column else 1.0)
    with _drawing() as figure:
        from matplotlib.patches import Rectangle

        picture = figure(figsize=(WIDTH, 1.1 + 0.32 * len(table)), layout="constrained")
        axis = picture.subplots()
        for (row, column), number in np.ndenumerate(numbers):
            deep = 0.0 if np.isnan(depth[row, column]) else depth[row, column]
            colour = LIGHT["second" if deep < 0 else "first"]
            axis.add_patch(
                Rectangle(
                    (column - 0.48, row - 0.46), 0.96, 0.92, facecolor=colour, alpha=0.45 * abs(deep), linewidth=0
                )
            )
            said = "–" if np.isnan(number) else f"{number:.2f}".replace("-", "−")
            axis.text(column, row, said, ha="center", va="center", fontsize=8.5)
        names = [[textwrap.fill(name, 24) for name in each] for each in (table.index, table.columns)]
        axis.set_yticks(range(len(table)), names[0], parse_math=False)
        axis.set_xticks(
            range(len(table.columns)), names[1], rotation=35, ha="right", rotation_mode="anchor", parse_math=False
        )
        axis.set(xlim=(-0.5, len(table.columns) - 0.5), ylim=(len(table) - 0.5, -0.5))
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    return picture


def _svg(picture: Figure, name: str, alt: str) -> str:
    """A figure as an SVG element in the page's colours, its ids its own."""
    file = io.StringIO()
    with _drawing():
        picture.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#|url\(#', lambda found: f"{found.group()}{name}-", text)
    for what, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{what})")
    box = re.search(r'viewBox="[^"]*"', text)
    viewed = box.group() if box else ""
    opening = f'<svg {viewed} role="img" aria-label="{html.escape(alt)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)


def _table(frame: pd.DataFrame, rows: str, columns: str, more: pd.DataFrame | None = None) -> str:
    """Numbers with their intervals, and more columns by row, as an HTML table."""
    cells = {(row[rows], row[columns]): _breakable(_interval(row)) for _, row in frame.iterrows()}
    heads = list(dict.fromkeys(frame[columns]))
    others = list(more.columns) if more is not None else []
    head = "".join(f'<th scope="col">{_breakable(name)}</th>' for name in [rows, *heads, *others])
    body = []
    for key in dict.fromkeys(frame[rows]):
        row = [cells.get((key, name), "–") for name in heads]
        row += [] if more is None else [_breakable(_plain(more.loc[key, name])) for name in others]
        body.append(f'<tr><th scope="row">{_breakable(key)}</th><td>{"</td><td>".join(row)}</td></tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _breakable(text: str) -> str:
    """Text for a narrow cell: names may break at an underscore, an interval stays whole."""
    escaped = html.escape(text).replace("_", "_<wbr>")
    return re.sub(r"\[[^]]*\]", lambda found: f"<span>{found.group()}</span>", escaped)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value or "–"
    return f"{value:,}" if isinstance(value, int | np.integer) else _number(value)


def _section(title: str, said: str, figures: Mapping[str, Figure], table: str) -> Callable[[int], str]:
    """A section of the page, given its number."""

    def write(number: int) -> str:
        drawn = "".join(
            f"<figure>{_svg(picture, f'f{number}-{place}', alt)}</figure>"
            for place, (alt, picture) in enumerate(figures.items())
        )
        name = html.escape(title)
        return (
            f'<section><h2>{name}</h2><p>{html.escape(said)}</p><div class="figures">{drawn}</div>'
            f'<div class="table" tabindex="0" role="region" aria-label="Table: {name}">{table}</div></section>'
        )

    return write


def _page(ablation: Ablation, short: list[str], warnings: list[str], sections: list[Callable[[int], str]]) -> str:
    title = f"Ablation of {html.escape(str(ablation.ledger.folder))}"
    items = "".join(f"<li>{html.escape(line)}</li>" for line in short)
    noted = "".join(f"<li>{html.escape(line)}</li>" for line in warnings) or "<li>Nothing.</li>"
    intervals = (
        f"In brackets: {100 * ablation.level:g}% intervals, percentiles over {ablation.resamples:,} bootstrap draws of the "
        f"{ablation.items:,} items, seed {ablation.seed}."
        if ablation.resamples
        else "Without intervals."
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{len(ablation):,} rollouts in {ablation.groups:,} groups of {ablation.items:,} items; components:
{html.escape(", ".join(ablation.names))}. No judge was asked. The recorded variant is GDPO with the weights and gates of the
suites that scored. {intervals}</p>
<h2>In short</h2>
<ul>{items}</ul>
<h2>Lost, missing, not asked</h2>
<ul>{noted}</ul>
{"".join(section(number) for number, section in enumerate(sections))}
</main>
</body>
</html>
"""


STYLE = (
    ":root{" + "".join(f"--{name}:{colour};" for name, colour in LIGHT.items()) + "}"
    "@media (prefers-color-scheme:dark){:root{" + "".join(f"--{name}:{colour};" for name, colour in DARK.items()) + "}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:76rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.2rem 0 .3rem}
p,ul{max-width:46rem;margin:.4rem 0}
li,th,td{overflow-wrap:break-word}
.figures{display:flex;flex-wrap:wrap;gap:1rem 2rem;margin:.8rem 0}
figure{margin:0;flex:1 1 20rem;max-width:24rem}
svg{display:block;width:100%;height:auto}
.table{overflow-x:auto}
.table:focus-visible{outline:2px solid var(--first)}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .8rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
td span{white-space:nowrap}
th[scope=row]{font-weight:normal;position:sticky;left:0;background:var(--paper)}
"""
)
