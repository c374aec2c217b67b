"""`capreward curate questions|rubrics|references` and `capreward annotate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from capreward.cli.options import Commands, Options, Parser, add_command, add_out, check_writable, weight
from capreward.errors import InputError

KIND = "openai:MODEL[@URL] or vllm:MODEL"
"""Who writes. `local:MODEL` only answers."""
GIVEN = ".jsonl file of id and captions, or OUT of annotate"


def add(commands: Commands) -> None:
    """Adds the commands to the command line."""
    curate = commands.add_parser(
        "curate",
        help="make questions, rubrics or references",
        description="Makes what rewards need from images, and checks it before it is kept (docs/curation.md).",
        examples=[
            "capreward curate questions photos/ --writer openai:qwen2.5-vl-72b \\\n"
            "--base-url http://127.0.0.1:8000/v1 --out questions/ --dry-run"
        ],
    )
    stages = curate.add_subparsers(title="what to make", required=True, metavar="WHAT")
    _add_questions(stages)
    _add_rubrics(stages)
    _add_references(stages)
    _add_annotate(commands)


def _add_questions(commands: Commands) -> None:
    command = _command(
        commands,
        "questions",
        _questions,
        "questions that only sight answers",
        "Writes multiple-choice questions about each image, and keeps those that are answered with the image and not without.",
        "capreward curate questions photos/ --writer openai:qwen2.5-vl-72b \\\n"
        "--base-url http://127.0.0.1:8000/v1 \\\n"
        "--blind openai:qwen2.5-7b@http://127.0.0.1:8001/v1 --out questions/",
    )
    roles = command.add_argument_group("models")
    roles.add_argument("--writer", required=True, metavar="NAME", help=f"writes: {KIND}")
    roles.add_argument("--sight", metavar="NAME", help="answers with the image (default: the writer)")
    roles.add_argument(
        "--blind", metavar="NAME", help="answers without it; local:MODEL too (default: the writer, shown nothing)"
    )
    roles.add_argument(
        "--from-references", action="store_true", help="writer and sight go by references, not by images"
    )
    kept = command.add_argument_group("what is kept")
    kept.add_argument("--count", type=int, default=10, metavar="N", help="questions asked for")
    kept.add_argument("--kinds", metavar="KIND,...", help="asked for (default: object, attribute, count, ...)")
    kept.add_argument("--draws", type=int, default=4, metavar="N", help="times that each is answered")
    kept.add_argument("--seen-at-least", type=float, default=1.0, metavar="SHARE", help="right with the image")
    kept.add_argument("--guessed-at-most", type=float, default=0.25, metavar="SHARE", help="right without it")
    kept.add_argument("--alike", default="0.9", metavar="COSINE", help="from which two are one; none: by their words")
    kept.add_argument("--temperature", type=float, default=0.0, metavar="T", help="of the answers")
    kept.add_argument("--keep-existing", action="store_true", help="the items' own questions are candidates too")
    kept.add_argument("--seed", type=int, default=0, help="of the order of options and of draws")
    _add_run(command)


def _add_rubrics(commands: Commands) -> None:
    command = _command(
        commands,
        "rubrics",
        _rubrics,
        "criteria that teachers agree on and a student fails",
        "Writes criteria that the student's caption fails, and keeps those that the captions of enough teachers meet.",
        "capreward curate rubrics photos/ --student-captions captions/ \\\n"
        "--teachers openai:qwen2.5-vl-72b \\\n"
        "openai:internvl3@http://127.0.0.1:8001/v1 \\\n"
        "--writer openai:qwen2.5-vl-72b --judge openai:qwen2.5-vl-72b \\\n"
        "--base-url http://127.0.0.1:8000/v1 --out rubrics/",
    )
    roles = command.add_argument_group("models")
    teachers = roles.add_mutually_exclusive_group(required=True)
    teachers.add_argument("--teachers", nargs="+", default=[], metavar="NAME", help=f"caption: {KIND}")
    teachers.add_argument("--teacher-captions", type=Path, metavar="FILE", help=f"their captions: {GIVEN}")
    student = roles.add_mutually_exclusive_group(required=True)
    student.add_argument("--student", metavar="NAME", help="captions, as the policy would")
    student.add_argument("--student-captions", type=Path, metavar="FILE", help="its captions, one of each item")
    roles.add_argument("--writer", required=True, metavar="NAME", help="says what the student's caption lacks")
    roles.add_argument(
        "--judge",
        required=True,
        metavar="NAME",
        help="says whether a caption meets a criterion; local:MODEL and lite too",
    )
    roles.add_argument("--from-captions", action="store_true", help="the writer goes by captions alone, not by images")
    kept = command.add_argument_group("what is kept")
    kept.add_argument("--agree", type=int, default=2, metavar="N", help="teachers that meet a criterion")
    kept.add_argument("--weights", metavar="NAME=W,...", help="of severities (default: critical=3,important=2,minor=1)")
    _add_instruction(kept)
    _add_run(command)


def _add_references(commands: Commands) -> None:
    command = _command(
        commands,
        "references",
        _references,
        "references and their statements",
        "Describes each image anew, and splits the description into the statements that Coverage looks for.",
        "capreward curate references photos/ --describer openai:qwen2.5-vl-72b \\\n"
        "--extractor lite --base-url http://127.0.0.1:8000/v1 --out references/",
    )
    roles = command.add_argument_group("models")
    roles.add_argument("--describer", required=True, metavar="NAME", help=f"describes: {KIND}")
    roles.add_argument(
        "--extractor", required=True, metavar="NAME", help="splits the description; local:MODEL and lite too"
    )
    roles.add_argument(
        "--verifier",
        metavar="NAME",
        help="holds each statement against the image; local:MODEL too (default: none does)",
    )
    kept = command.add_argument_group("what is kept")
    kept.add_argument("--keep-old", action="store_true", help="the items' references stay, after the new one")
    _add_instruction(kept)
    _add_run(command)


def _add_annotate(commands: Commands) -> None:
    command = _command(
        commands,
        "annotate",
        _annotate,
        "caption images",
        "Writes a caption of every image, with a model or with a checkpoint that was trained here (docs/annotation.md).",
        "capreward annotate photos/ --captioner openai:qwen2.5-vl-3b \\\n"
        "--base-url http://127.0.0.1:8000/v1 --out captions/",
        "capreward annotate photos/ --checkpoint run/final \\\n--workers 8 --worker-gpus 1 --out captions/",
    )
    roles = command.add_argument_group("models")
    who = roles.add_mutually_exclusive_group(required=True)
    who.add_argument("--captioner", metavar="NAME", help=f"captions: {KIND}")
    who.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="with a vision-language model and its processor")
    how = command.add_argument_group("how it writes")
    _add_instruction(how)
    how.add_argument("--temperature", type=float, default=0.0, metavar="T", help="of draws")
    how.add_argument("--seed", type=int, help="of draws; captions of another seed are other draws")
    _add_run(command)


def _command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], None],
    help: str,
    description: str,
    *examples: str,
) -> Parser:
    command = add_command(
        commands,
        name,
        run,
        help=help,
        description=f"{description} Items with what was made, dead letters and a datasheet lie in OUT; a call that was "
        "killed goes on where it ended.",
        examples=examples,
        interrupted="the same command goes on where it ended",
    )
    command.add_argument(
        "source",
        type=Path,
        nargs="+",
        metavar="SOURCE",
        help="OUT of another call; a folder of images; .jsonl or .parquet (docs/data.md); .tar files",
    )
    return command


def _add_instruction(group: Options) -> None:
    group.add_argument(
        "--instruction", metavar="TEXT", help='who describes is told (default: "Describe this image in detail.")'
    )


def _add_run(command: Parser) -> None:
    servers = command.add_argument_group("servers, for openai:MODEL")
    servers.add_argument("--base-url", metavar="URL", help="of models without @URL, such as http://127.0.0.1:8000/v1")
    servers.add_argument("--concurrency", type=int, metavar="N", help="requests at once, of each model (default: 64)")
    servers.add_argument("--prices", type=float, nargs=2, metavar=("IN", "OUT"), help="of a million tokens in and out")
    servers.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="MODEL=IN,OUT",
        help="of one model, in place of --prices; repeatable",
    )
    servers.add_argument("--timeout", type=float, metavar="SECONDS", help="for one reply (default: 60)")
    run = command.add_argument_group("run")
    run.add_argument(
        "--dry-run", action="store_true", help="print what it would cost; nothing is written but the cache of replies"
    )
    run.add_argument("--sample", type=int, default=16, metavar="N", help="items that a dry run tries")
    run.add_argument("--limit", type=int, metavar="N", help="only the first N items")
    run.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help="keeps every reply, so that nothing is asked twice (default: OUT/replies.sqlite)",
    )
    run.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="of a reply of any model; a longer one has failed (default: 2048; of a checkpoint 512, of local:MODEL 1024)",
    )
    run.add_argument("--shard-size", type=int, default=256, metavar="N", help="items written together")
    run.add_argument("--again", action="store_true", help="try again what failed and may pass another time")
    run.add_argument("--workers", type=int, metavar="N", help="processes of a Ray cluster (default: this one alone)")
    run.add_argument("--worker-gpus", type=float, default=0.0, metavar="N", help="GPUs of each worker")
    add_out(command, "folder to write to", required=True)


def _questions(arguments: argparse.Namespace) -> None:
    """`capreward curate questions`."""
    names = (
        "writer sight blind from_references count draws seen_at_least guessed_at_most temperature keep_existing seed"
    )
    options = _options(arguments, names)
    if arguments.kinds:
        options["kinds"] = tuple(kind.strip() for kind in arguments.kinds.split(","))
    try:
        options["alike"] = None if arguments.alike == "none" else float(arguments.alike)
    except ValueError:
        raise InputError(f"--alike: got {arguments.alike!r}, expected a cosine, such as 0.9, or none") from None
    _run("questions", options, arguments)


def _rubrics(arguments: argparse.Namespace) -> None:
    """`capreward curate rubrics`."""
    names = "teachers teacher_captions student student_captions writer judge from_captions agree instruction"
    options = _options(arguments, names)
    if arguments.weights:
        options["weights"] = dict(weight(text, "--weights") for text in arguments.weights.split(","))
    _run("rubrics", options, arguments)


def _references(arguments: argparse.Namespace) -> None:
    """`capreward curate references`."""
    _run("references", _options(arguments, "describer extractor verifier keep_old instruction"), arguments)


def _annotate(arguments: argparse.Namespace) -> None:
    """`capreward annotate`."""
    names = "captioner checkpoint temperature seed instruction"
    _run("captions", _options(arguments, names), arguments)


def _options(arguments: argparse.Namespace, names: str) -> dict[str, Any]:
    return {name: value for name in names.split() if (value := getattr(arguments, name)) is not None}


def _run(stage: str, options: dict[str, Any], arguments: argparse.Namespace) -> None:
    from capreward.curate import command

    check_writable(arguments.out)
    sources = arguments.source
    if arguments.workers is not None:  # which may run in other folders
        sources = [path.absolute() for path in sources]
        options = {name: value.absolute() if isinstance(value, Path) else value for name, value in options.items()}
    servers = command.Servers(
        base_url=arguments.base_url,
        concurrency=arguments.concurrency,
        prices=arguments.prices and tuple(arguments.prices),
        own_prices=dict(_price(text) for text in arguments.price),
        timeout=arguments.timeout,
        max_tokens=arguments.max_tokens,
        cache=(arguments.cache or arguments.out / "replies.sqlite").absolute(),
    )
    make_stage = partial(getattr(command, stage), servers, **options)
    if arguments.dry_run:
        command.price(make_stage, sources, limit=arguments.limit, sample=arguments.sample)
        return
    command.curate(
        make_stage,
        sources,
        arguments.out,
        limit=arguments.limit,
        shard_size=arguments.shard_size,
        again=arguments.again,
        workers=arguments.workers,
        worker_gpus=arguments.worker_gpus,
    )


def _price(text: str) -> tuple[str, tuple[float, float]]:
    model, _, numbers = text.rpartition("=")
    try:
        read, written = map(float, numbers.split(","))
    except ValueError:
        raise InputError(f"--price: got {text!r}, expected MODEL=IN,OUT, such as qwen2.5-vl-72b=0.7,0.9") from None
    return model, (read, written)
