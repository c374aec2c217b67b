"""`capreward score` and `capreward demo`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capreward.cli.options import (
    Commands,
    Options,
    add_command,
    add_judge,
    add_out,
    add_suite,
    check_writable,
    judge_of,
    suite_of,
)
from capreward.errors import InputError

if TYPE_CHECKING:
    from capreward.judges.base import Judge
    from capreward.records import Rollout
    from capreward.scoring import ScoreTable

WRITTEN = "folder for scores.jsonl, scores.png and a ledger"


def add(commands: Commands) -> None:
    """Adds the commands to the command line."""
    demo = add_command(
        commands,
        "demo",
        _demo,
        help="score captions that come with the package",
        description="Scores six kinds of caption of nine photographs on every component. Needs no network and no GPU.",
        examples=["capreward demo", "capreward demo --suite caprl --out caprl/"],
    )
    demo.add_argument("--samples", choices=("photos", "iiw"), default="photos", help="which captions")
    add_suite(demo, "everything")
    _add_by(add_out(demo, WRITTEN, default=Path("capreward-demo")), default="kind")

    score = add_command(
        commands,
        "score",
        _score,
        help="score the captions of a file",
        description="Scores captions on the components of a suite and prints scores, advantages and what is missing.",
        examples=[
            "capreward score captions.jsonl --weight fluency=0.5 --out scores/",
            "capreward score captions.jsonl --suite rubicap --judge openai:qwen2.5-vl-7b \\\n"
            "--judge-sees --base-url http://127.0.0.1:8000/v1 --out scores/",
        ],
    )
    score.add_argument(
        "file", type=Path, metavar="FILE", help=".jsonl or .parquet of items with rollouts (docs/data.md)"
    )
    score.add_argument("--items", type=Path, metavar="FILE", help="the items that rollouts name by id")
    add_suite(score, "balcaprl")
    add_judge(score)
    _add_by(add_out(score, f"{WRITTEN} (default: nothing is written)"))


def _add_by(group: Options, default: str | None = None) -> None:
    group.add_argument("--by", metavar="KEY", default=default, help="print means by this key of the rollouts' metadata")


def _demo(arguments: argparse.Namespace) -> None:
    from capreward import samples
    from capreward.judges.named import make_judge

    rollouts = samples.photos() if arguments.samples == "photos" else samples.iiw()
    _score_rollouts(rollouts, arguments, lambda: make_judge("lite"))


def _score(arguments: argparse.Namespace) -> None:
    from capreward.data import read_items, read_rollouts

    rollouts = read_rollouts(arguments.file, items=read_items(arguments.items) if arguments.items else ())
    if not rollouts:
        raise InputError(f"{arguments.file}: holds no rollouts")
    _score_rollouts(rollouts, arguments, lambda: judge_of(arguments))


def _score_rollouts(rollouts: Sequence[Rollout], arguments: argparse.Namespace, judge: Callable[[], Judge]) -> None:
    from capreward import report
    from capreward.data import replacing, write_rows

    out = arguments.out
    options: dict[str, Any] = {}
    if out:
        check_writable(out)
        options["ledger"] = _NewLedger(out / "ledger")
    console = report.make_console()  # a missing extra should show before anything is scored
    table = suite_of(arguments, judge, **options).score(rollouts)
    if out:  # first of all: what has been paid for must not be lost to a failing table or figure
        out.mkdir(parents=True, exist_ok=True)
        write_rows(out / "scores.jsonl", table.to_rows(rollouts))
    report.print_scores(table, console)
    if arguments.by:
        report.print_means(table, rollouts, arguments.by, console)
    if out:
        with replacing(out / "scores.png") as path:
            report.figure(table).savefig(path, dpi=130, format="png")
        print(f"wrote {out / 'scores.jsonl'}, {out / 'scores.png'} and {out / 'ledger'}")


class _NewLedger:
    """A ledger in the place of an earlier one, which stays until there is something to write."""

    def __init__(self, folder: Path) -> None:
        from capreward.ledger import LedgerWriter

        LedgerWriter(folder)  # refuses a file
        if any(path.stat().st_size for path in folder.glob("rollouts-*.jsonl")):
            raise InputError(f"--out: {folder} is the ledger of a training run; expected another folder")
        self.folder = folder

    def write(self, suite: Any, table: ScoreTable, rollouts: Sequence[Rollout]) -> None:
        from capreward.ledger import LedgerWriter

        LedgerWriter(self.folder, positions={}).write(suite, table, rollouts)
