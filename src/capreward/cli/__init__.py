"""The command line; `capreward --help` lists what it can do. Heavy imports wait until they are needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from capreward import __version__
from capreward.cli import ablate, completion, curate, evaluate, score, serve, train
from capreward.cli.options import SUITES, Parser
from capreward.errors import CaprewardError

__all__ = ["SUITES", "main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    0; 1 when a probe found an attack that wins or buys a missing score; 2 when what came in cannot be used; 130 when interrupted.
    """
    arguments = make_parser().parse_args(argv)
    try:
        status: int | None = arguments.run(arguments)
    except CaprewardError as error:
        print(f"capreward: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("; ".join(filter(None, ("capreward: interrupted", arguments.interrupted))), file=sys.stderr)
        return 130
    return status or 0


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="capreward",
        description="Multi-objective rewards for image captioners.",
        examples=["capreward demo", "capreward score captions.jsonl --suite balcaprl --out scores/"],
        epilog="`capreward COMMAND --help` says what a command takes; docs/command-line.md has all of them on a page.",
    )
    parser.add_argument("--version", action="version", version=f"capreward {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for family in (score, curate, train, serve, ablate, evaluate):
        family.add(commands)
    completion.add(commands, parser)
    return parser
