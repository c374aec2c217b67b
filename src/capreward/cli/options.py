"""What several commands share: how help reads, options of suites and judges, and how they are read."""

from __future__ import annotations

import argparse
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from capreward.errors import InputError

if TYPE_CHECKING:
    from capreward.judges.base import Judge
    from capreward.suite import RewardSuite

SUITES = ("balcaprl", "caprl", "rubicap", "everything")
WIDTH = 100
"""Columns of help, at most."""

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What `Parser.add_subparsers` returns, to which a command is added."""
Options: TypeAlias = "argparse._ArgumentGroup"


class _Help(argparse.HelpFormatter):
    """Wraps text, but for lines that begin with a space, such as examples; says what is required, and each default."""

    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size().columns, WIDTH)
        super().__init__(prog, max_help_position=26, width=columns - 2)

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        if prefix is not None:  # of a command, for those under it
            super().add_usage(usage, actions, groups, prefix)
            return
        needed = [action for group in groups if group.required for action in group._group_actions]
        shown = [action for action in actions if action.required or not action.option_strings or action in needed]
        line = argparse.HelpFormatter(self._prog, width=10_000)
        line.add_usage(None, shown, groups, "")
        text = line.format_help().strip().replace(self._prog, f"usage: {self._prog} [options]", 1)
        self._add_item(lambda: textwrap.fill(text, self._width, subsequent_indent=" " * 7) + "\n\n", [])

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(line if line.startswith(" ") else fill(line, width, indent) for line in text.splitlines())

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.help or ""
        states = action.option_strings and action.nargs != 0 and action.default not in (None, [], argparse.SUPPRESS)
        return f"{said} (default: %(default)s)" if states and "default:" not in said else said


class Parser(argparse.ArgumentParser):
    """Of a command: help in one form, and errors on one line."""

    def __init__(self, *, examples: Sequence[str] = (), epilog: str = "", **options: Any) -> None:
        """
        Args:
            examples: commands; lines after the first one are indented further.
        """
        shown = ["  " + example.replace("\n", "\n      ") for example in examples]
        parts = ["examples:", *shown, *(["", epilog] if epilog else [])]
        super().__init__(formatter_class=_Help, epilog="\n".join(parts), **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    help: str,
    description: str,
    examples: Sequence[str],
    epilog: str = "",
    interrupted: str = "",
) -> Parser:
    """Adds a command.

    Args:
        interrupted: what can be done when it was.
    """
    command = commands.add_parser(name, help=help, description=description, examples=examples, epilog=epilog)
    command.set_defaults(run=run, interrupted=interrupted)
    return command


def add_out(command: Parser, help: str, **options: Any) -> Options:
    """The group of options of what is written, with --out in it."""
    group = command.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="OUT", help=help, **options)
    return group


def add_suite(command: Parser, default: str) -> None:
    """Options of a suite."""
    group = command.add_argument_group("rewards")
    group.add_argument("--suite", choices=SUITES, default=default, help="which components")
    group.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=W",
        help="weight of a component (default: 1); repeatable",
    )
    group.add_argument(
        "--max-length", type=int, metavar="WORDS", help="captions longer than this score 0 (default: no limit)"
    )
    group.add_argument(
        "--precise",
        type=float,
        metavar="SHARE",
        help="all else counts only where precision reaches this (default: always)",
    )
    group.add_argument(
        "--max-missing",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="stop (serve: answer 503) if more of a component is missing",
    )


def add_judge(command: Parser, cached: str = "OUT/replies.sqlite, but none for lite") -> None:
    """Options of a judge; `cached`: where replies are kept unless --cache is given."""
    group = command.add_argument_group("judge")
    group.add_argument(
        "--judge",
        metavar="KIND:MODEL",
        help="lite (no language model), openai:MODEL (any OpenAI-compatible server; the key is read from OPENAI_API_KEY), "
        "local:MODEL (transformers), vllm:MODEL (in this process); MODEL is a name or a folder (default: lite)",
    )
    group.add_argument("--base-url", metavar="URL", help="of the server, for openai, such as http://127.0.0.1:8000/v1")
    group.add_argument("--judge-sees", action="store_true", help="the model sees images, for openai and vllm")
    group.add_argument("--concurrency", type=int, metavar="N", help="requests at once, for openai (default: 64)")
    group.add_argument(
        "--prices", type=float, nargs=2, metavar=("IN", "OUT"), help="of a million tokens in and out, for openai"
    )
    group.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help=f"keeps every reply, so that nothing is asked twice (default: {cached})",
    )


def judge_of(arguments: argparse.Namespace) -> Judge:
    """The judge that the options name."""
    from capreward.judges.named import make_judge

    name, cache = arguments.judge or "lite", arguments.cache
    if cache is None and arguments.out and name != "lite":
        cache = arguments.out / "replies.sqlite"
    with status(f"loading the judge {name}"):
        return make_judge(
            name,
            base_url=arguments.base_url,
            images=arguments.judge_sees,
            concurrency=arguments.concurrency,
            prices=arguments.prices and tuple(arguments.prices),
            cache=cache,
        )


def suite_of(arguments: argparse.Namespace, judge: Callable[[], Judge], **options: Any) -> RewardSuite:
    """The suite that the options name; the judge is made when they have been read."""
    from capreward.presets import PRESETS

    weights = dict(weight(text) for text in arguments.weight)
    return PRESETS[arguments.suite](
        judge(),
        weights=weights,
        max_length=arguments.max_length,
        max_missing=arguments.max_missing,
        precise=arguments.precise,
        **options,
    )


def check_writable(out: Path) -> None:
    """Refuses a folder that could not be written to, before anything is paid for."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"--out: got {str(out)!r}, but {existing} is a file; expected a folder")
    if not os.access(existing, os.W_OK):
        raise InputError(f"--out: got {str(out)!r}, but {existing} cannot be written to")


def weight(text: str, option: str = "--weight") -> tuple[str, float]:
    """NAME=NUMBER."""
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise InputError(f"{option}: got {text!r}, expected NAME=NUMBER, such as fluency=0.5") from None


@contextmanager
def status(what: str) -> Iterator[None]:
    """Says on a terminal what is going on."""
    try:
        from rich.console import Console
    except ImportError:  # the report will say which extra to install
        yield
        return
    with Console(stderr=True).status(what):
        yield
