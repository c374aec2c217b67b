"""`capreward score` and `capreward demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capreward.cli.options import Commands, add_judge, add_suite, check_writable, judge_of, weight
from capreward.data import replacing
from capreward.errors import InputError

if TYPE_CHECKING:
    from capreward.records import Rollout
    from capreward.scoring import ScoreTable


def add(commands: Commands) -> None:
    """Adds the commands to the command line."""
    score = commands.add_parser(
        "score",
        help="score the captions of a file",
        description="Scores captions on the components of a suite and prints scores, advantages and what is missing.",
        epilog="examples:\n"
        "  capreward score captions.jsonl --suite balcaprl --weight fluency=0.5 --out scores/\n"
        "  capreward score captions.jsonl --judge openai:qwen2.5-vl-7b --judge-sees --base-url http://127.0.0.1:8000/v1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    score.add_argument("file", type=Path, help=".jsonl or .parquet file of items with rollouts (docs/data.md)")
    score.add_argument("--items", type=Path, help="file of the items that rollouts name by id")
    add_judge(score)
    score.set_defaults(run=_score, samples=None)

    demo = commands.add_parser(
        "demo",
        help="score captions that come with the package",
        description="Scores six kinds of caption of nine photographs on every component. Needs no network and no GPU.",
        epilog="example: capreward demo --out demo/",
    )
    demo.add_argument("--samples", choices=("photos", "iiw"), default="photos", help="which captions (default: photos)")
    demo.set_defaults(run=_score, file=None, judge="lite", base_url=None, judge_sees=False, concurrency=None)
    demo.set_defaults(prices=None, cache=None)

    for command, suite, out in ((score, "balcaprl", None), (demo, "everything", Path("capreward-demo"))):
        add_suite(command, suite)
        command.add_argument("--by", metavar="KEY", help="print means by this key of the rollouts' metadata")
        where = "nowhere" if out is None else f"{out}/"
        command.add_argument(
            "--out", type=Path, default=out, help=f"folder for scores.jsonl, scores.png and a ledger (default: {where})"
        )
    demo.set_defaults(by="kind")


def _score(arguments: argparse.Namespace) -> None:
    from capreward.data import read_items, read_rollouts, write_rows
    from capreward.presets import PRESETS

    weights = dict(weight(text) for text in arguments.weight)
    if arguments.out:
        check_writable(arguments.out)
    if arguments.samples:
        from capreward import samples

        rollouts = samples.photos() if arguments.samples == "photos" else samples.iiw()
    else:
        rollouts = read_rollouts(arguments.file, items=read_items(arguments.items) if arguments.items else ())
        if not rollouts:
            raise InputError(f"{arguments.file}: holds no rollouts")

    from capreward import report

    console = report.make_console()  # a missing extra should show before anything is scored
    options: dict[str, Any] = {"max_length": arguments.max_length, "max_missing": arguments.max_missing}
    options["precise"] = arguments.precise
    if arguments.out:
        options["ledger"] = _NewLedger(arguments.out / "ledger")
    suite = PRESETS[arguments.suite](judge_of(arguments), weights=weights, **options)
    table = suite.score(rollouts)
    if arguments.out:  # first of all: what has been paid for must not be lost to a failing table or figure
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_rows(arguments.out / "scores.jsonl", table.to_rows(rollouts))
    report.print_scores(table, console)
    if arguments.by:
        report.print_means(table, rollouts, arguments.by, console)
    if arguments.out:
        with replacing(arguments.out / "scores.png") as path:
            report.figure(table).savefig(path, dpi=130, format="png")
        print(f"wrote {arguments.out / 'scores.jsonl'}, {arguments.out / 'scores.png'} and {arguments.out / 'ledger'}")


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
