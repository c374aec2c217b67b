"""What several commands share: options of suites and judges, and how they are read."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from capreward.errors import InputError

if TYPE_CHECKING:
    from capreward.judges.base import Judge

SUITES = ("balcaprl", "caprl", "rubicap", "everything")

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `ArgumentParser.add_subparsers` returns, to which a command is added."""


def add_suite(command: argparse.ArgumentParser, default: str) -> None:
    """Options of a suite."""
    command.add_argument("--suite", choices=SUITES, default=default, help=f"which components (default: {default})")
    command.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=W",
        help="weight of a component (default: 1); repeatable",
    )
    command.add_argument("--max-length", type=int, metavar="WORDS", help="captions longer than this score 0")
    command.add_argument(
        "--precise",
        type=float,
        metavar="SHARE",
        help="all else counts only where precision reaches this (default: always)",
    )
    command.add_argument(
        "--max-missing",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="stop (serve: answer 503) if more of a component is missing (default: 1)",
    )


def add_judge(command: argparse.ArgumentParser, cached: str = "OUT/replies.sqlite, but none for lite") -> None:
    """Options of a judge; `cached`: where replies are kept unless --cache is given."""
    group = command.add_argument_group("judge")
    group.add_argument(
        "--judge",
        default="lite",
        metavar="KIND:MODEL",
        help="lite (no language model), openai:MODEL (any OpenAI-compatible server; the key is read from OPENAI_API_KEY), "
        "local:MODEL (transformers), vllm:MODEL (in this process) (default: lite)",
    )
    group.add_argument("--base-url", metavar="URL", help="of the server, for openai: http://127.0.0.1:8000/v1")
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

    cache = arguments.cache
    if cache is None and arguments.out and arguments.judge != "lite":
        cache = arguments.out / "replies.sqlite"
    with status(f"loading the judge {arguments.judge}"):
        return make_judge(
            arguments.judge,
            base_url=arguments.base_url,
            images=arguments.judge_sees,
            concurrency=arguments.concurrency,
            prices=arguments.prices and tuple(arguments.prices),
            cache=cache,
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
