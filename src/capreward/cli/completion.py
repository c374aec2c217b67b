"""`capreward completion`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capreward.cli.options import Commands, Parser, add_command
from capreward.errors import missing_extra


def add(commands: Commands, parser: Parser) -> None:
    """Adds the command to the command line, whose whole parser is `parser`."""
    command = add_command(
        commands,
        "completion",
        lambda arguments: _completion(parser, arguments.shell),
        help="print what completes commands in a shell",
        description="Prints a script by which a shell completes commands, options, choices and paths of capreward "
        "(docs/command-line.md says where it is kept). Needs the extra completion.",
        examples=["source <(capreward completion bash)", "capreward completion zsh > _capreward"],
    )
    command.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")


def _completion(parser: Parser, shell: str) -> None:
    try:
        import shtab
    except ImportError as error:
        raise missing_extra("Completion", "completion", error) from error
    for action in _actions(parser):
        metavar = str(action.metavar)
        if metavar in ("FOLDER", "OUT"):
            action.complete = shtab.DIRECTORY
        elif action.type is Path or metavar.startswith("FILE"):
            action.complete = shtab.FILE
    _shorten(parser)
    print(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Arguments and options, of all commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def _shorten(parser: argparse.ArgumentParser) -> None:
    """Shells show a command's description beside it, where its one phrase of help will do."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for named in action._choices_actions:
                command = action.choices[named.dest]
                command.description = named.help
                _shorten(command)
