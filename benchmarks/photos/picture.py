"""The README's figure: one photograph, six captions of it, their scores and advantages."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from capreward import Rollout, ScoreTable
from capreward.processing import open_image

GRPO, GDPO = "#0072B2", "#E69F00"  # told apart by colour-blind readers too


def draw(table: ScoreTable, rollouts: Sequence[Rollout], path: Path) -> None:
    """Writes the group of the first rollout."""
    rows = [row for row, group in enumerate(table.groups) if group == table.groups[0]]
    picture = Figure(figsize=(13, 5.2), layout="constrained", facecolor="white")
    photograph, words, heat, bars = picture.subplots(1, 4, width_ratios=[2.6, 3.7, 3.4, 2.2])
    image = rollouts[0].item.image
    assert image is not None
    photograph.imshow(open_image(image))
    photograph.axis("off")
    for row in rows:
        caption = textwrap.fill(textwrap.shorten(rollouts[row].caption, 180, placeholder=" ..."), 66)
        words.text(0, row, rollouts[row].metadata["kind"], va="bottom", fontsize=9, fontweight="bold")
        words.text(0, row + 0.03, caption, va="top", fontsize=8)
    words.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1))
    words.axis("off")
    heat.imshow(table.values[rows], aspect="auto", cmap="viridis", vmin=0, vmax=1)
    for row in rows:
        for column in range(len(table.names)):
            value, gated = table.values[row, column], (row, column) in table.gated
            text = "0, by length" if gated else f"{value:.2f}"
            heat.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=7 if gated else 9,
                color="black" if value > 0.5 else "white",
            )
    heat.set_xticks(range(len(table.names)), [name.replace("_", "\n", 1) for name in table.names], fontsize=8)
    heat.xaxis.tick_top()
    heat.set_yticks([])
    heat.spines[:].set_visible(False)
    for number, (name, colour) in enumerate({"grpo": GRPO, "gdpo": GDPO}.items()):
        bars.barh(
            np.array(rows) + 0.38 * number - 0.19,
            table.advantages(name)[rows],
            height=0.36,
            color=colour,
            label=name.upper(),
        )
    bars.axvline(0, color="black", linewidth=0.8)
    bars.set(ylim=(len(rows) - 0.5, -0.5), yticks=[], xlabel="advantage")
    bars.spines[["left", "right", "top"]].set_visible(False)
    bars.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, frameon=False)
    picture.savefig(path, dpi=120)
