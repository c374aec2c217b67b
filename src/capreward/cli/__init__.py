"""The command line; `capreward --help` lists what it can do. Heavy imports wait until they are needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from capreward import __version__
from capreward.cli import ablate, curate, evaluate, score, serve, train
from capreward.cli.options import SUITES
from capreward.errors import CaprewardError

__all__ = ["SUITES", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    0; 1 when a probe found an attack that wins or buys a missing score; 2 when what came in cannot be used; 130 when interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        status: int | None = arguments.run(arguments)
    except CaprewardError as error:
        print(f"capreward: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = {train.run_train: "`capreward train --resume` goes on from the last checkpoint"}
        again |= dict.fromkeys(
            (train.run_sweep, evaluate.run_evaluate), "the same command goes on from the last checkpoint"
        )
        makers = (curate.run_questions, curate.run_rubrics, curate.run_references, curate.run_annotate)
        again |= dict.fromkeys(makers, "the same command goes on where it ended")
        print("; ".join(filter(None, ("capreward: interrupted", again.get(arguments.run)))), file=sys.stderr)
        return 130
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="capreward", description="Multi-objective rewards for image captioners.")
    parser.add_argument("--version", action="version", version=f"capreward {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for family in (score, train, serve, ablate, evaluate, curate):
        family.add(commands)
    return parser
