"""`capreward evaluate`: captions of files in, tables, figures and one JSON out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from capreward.data import read_items, read_rollouts, replacing, write_rows
from capreward.errors import InputError
from capreward.evaluate import report
from capreward.evaluate.evaluation import METRICS, Evaluation, evaluate_captions, needs_judge
from capreward.judges.base import Judge
from capreward.missing import Missing
from capreward.records import Item, Rollout
from capreward.report import make_console


def evaluate(
    files: Sequence[Path],
    judge: Callable[[], Judge],
    out: Path,
    *,
    items: Path | None = None,
    by: str | None = None,
    metrics: str | None = None,
    budgets: str | None = None,
    baselines: str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[Path]:
    """Evaluates the captions of the files, prints tables, and returns what it has written.

    Args:
        judge: makes the judge, if one is needed; around a cache in `out`, the same call goes on where a killed one ended.
        metrics: names with commas; all but dcscore when left out, the arena with several captioners alone.
        budgets, baselines: numbers and names with commas.

    Raises:
        InputError: what `read_captioners` or `evaluate_captions` refuse.
    """
    captions = read_captioners(files, items=items, by=by)
    if metrics is None:
        asked = [name for name in METRICS if name != "dcscore" and (name != "arena" or len(captions) > 1)]
    else:
        asked = [name.strip() for name in metrics.split(",")]
    words = [_number(text) for text in budgets.split(",")] if budgets else []
    console = make_console()  # a missing extra should show before anything is judged
    evaluation = evaluate_captions(
        captions,
        judge() if needs_judge(asked) else None,
        metrics=asked,
        budgets=words,
        baselines=[name.strip() for name in baselines.split(",")] if baselines else (),
        draws=draws,
        seed=seed,
        progress=True,
    )
    written = write(evaluation, out)
    report.print_evaluation(evaluation, console)
    return written


def read_captioners(
    files: Sequence[Path], *, items: Path | None = None, by: str | None = None
) -> dict[str, list[Rollout]]:
    """The captions of files, by captioner.

    Args:
        files: .jsonl or .parquet (docs/data.md). Items that several of them hold have to be the same.
        items: file of the items that rollouts name by id.
        by: key of the captions' metadata that names the captioner; the file's name without its ending when left out.

    Raises:
        InputError: a file that cannot be read or holds no captions, two of the same name, a caption without the key.
    """
    known: Sequence[Item] = read_items(items) if items else ()
    names = [file.stem for file in files]
    if by is None and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice}: two files of this name; rename one, or name the captioners with --by")
    captions: dict[str, list[Rollout]] = {}
    for file in files:
        rollouts = read_rollouts(file, items=known)
        if not rollouts:
            raise InputError(f"{file}: holds no captions")
        for rollout in rollouts:
            if by is not None and by not in rollout.metadata:
                raise InputError(
                    f"{file}: a caption of item {rollout.item.id!r} has no metadata {by!r}, only {sorted(rollout.metadata)}"
                )
            name = file.stem if by is None else str(rollout.metadata[by])
            captions.setdefault(name, []).append(rollout)
    return captions


def write(evaluation: Evaluation, out: Path) -> list[Path]:
    """evaluation.json, captions.jsonl, battles.jsonl and the figures; each is there as a whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "evaluation.json", out / "captions.jsonl"]
    with replacing(paths[0]) as path:
        path.write_text(json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_rows(paths[1], evaluation.to_rows())
    figures = {"metrics.png": report.figure} if evaluation.metrics else {}
    if evaluation.budgets:
        figures["budgets.png"] = report.budget_figure
    if evaluation.arena:
        paths.append(out / "battles.jsonl")
        write_rows(
            paths[-1],
            (
                {
                    "item": battle.item,
                    "first": battle.first,
                    "second": battle.second,
                    "outcome": None if isinstance(battle.outcome, Missing) else battle.outcome,
                    "missing": f"{battle.outcome.reason}: {battle.outcome.detail}"
                    if isinstance(battle.outcome, Missing)
                    else None,
                    "words": list(battle.words),
                }
                for battle in evaluation.arena.battles
            ),
        )
        if evaluation.arena.plain:
            figures["arena.png"] = report.arena_figure
    for name, draw in figures.items():
        with replacing(out / name) as path:
            draw(evaluation).savefig(path, dpi=130, format="png")
        paths.append(out / name)
    return paths


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--budget: got {text!r}, expected numbers of words, such as 100,200") from None
