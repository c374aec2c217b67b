"""`capreward train` and `capreward sweep`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capreward.cli.options import Commands, Parser, add_command, add_out, check_writable, weight
from capreward.errors import CaprewardError, InputError


def add(commands: Commands) -> None:
    """Adds the commands to the command line."""
    train = add_command(
        commands,
        "train",
        _train,
        help="train a captioner",
        description="Trains a captioner with a recipe's rewards, and shows what that did to captions of held-out images "
        "(docs/training.md).",
        examples=[
            "capreward train recipes/shapes.yaml",
            "capreward train recipes/balcaprl-qwen2.5-vl-3b.yaml \\\n--set data=captions.jsonl --set groups=32",
            "accelerate launch --num_processes 8 -m capreward.cli train \\\n"
            "recipes/balcaprl-qwen2.5-vl-7b.yaml --set data=captions.jsonl",
        ],
        epilog="The first one needs no GPU, no network and five minutes.",
        interrupted="`capreward train --resume` goes on from the last checkpoint",
    )
    _add_recipe(train)
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run")
    add_out(train, "folder of the run (default: the recipe's)")

    sweep = add_command(
        commands,
        "sweep",
        _sweep,
        help="train under several settings and seeds",
        description="Trains the product of weights, estimators, other settings and seeds, each run in a process of its own, and "
        "compares the conditions by the scores of held-out images. A second call goes on where the first one ended.",
        examples=[
            "capreward sweep recipes/shapes.yaml --weights recipe \\\n--weights fluency=2,coverage=1 --out sweep/",
            "capreward sweep recipes/shapes.yaml --estimators gdpo,grpo --seeds 0,1,2,3 \\\n"
            "--set-grid learning_rate=1.0e-4,3.0e-4 --jobs 4 --out sweep/",
        ],
        interrupted="the same command goes on from the last checkpoint",
    )
    _add_recipe(sweep)
    conditions = sweep.add_argument_group("conditions")
    conditions.add_argument(
        "--weights",
        action="append",
        metavar="NAME=W,...",
        help="in place of the recipe's; `recipe` for these alone; repeatable (default: recipe)",
    )
    conditions.add_argument("--estimators", metavar="NAME,...", help="each of these (default: the recipe's)")
    conditions.add_argument(
        "--set-grid",
        action="append",
        default=[],
        metavar="NAME=V,...",
        help="each of these values of another setting; repeatable",
    )
    conditions.add_argument("--seeds", default="0,1,2", metavar="N,...", help="what is averaged over")
    add_out(sweep, "folder of the sweep", required=True)
    sweep.add_argument(
        "--jobs", type=int, metavar="N", help="runs at once (default: one a GPU, or without any one a core)"
    )


def _add_recipe(command: Parser) -> None:
    command.add_argument(
        "recipe",
        type=Path,
        metavar="RECIPE",
        help="YAML file of settings, or the name of one that comes with the package",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting in place of the recipe's; repeatable",
    )


def _train(arguments: argparse.Namespace) -> None:
    from capreward import recipe, report
    from capreward.data import replacing
    from capreward.train.config import TrainConfig, parse_setting

    changes = dict(parse_setting(text) for text in arguments.set)
    if arguments.out:
        changes["out"] = arguments.out
    config = TrainConfig.from_yaml(recipe.find(arguments.recipe), **changes)
    check_writable(config.out)
    console = report.make_console()
    from capreward.train import checkpoint  # from here on with torch

    checkpoint.to_resume(config.out, arguments.resume)  # not only after the model has been loaded
    trainer = recipe.make_trainer(config)
    trained = trainer.train(resume=arguments.resume)
    if not trainer.accelerator.is_main_process:
        return
    if config.held_out:
        run = report.Run.read(config.out, {item.id: item.image for item in trainer.held_out})
        report.print_run(run, console)
        with replacing(config.out / "before_after.png") as path:
            report.run_figure(run).savefig(path, dpi=130, format="png")
        print(f"wrote {config.out / 'before_after.png'}")
    print(f"wrote {trained}")


def _sweep(arguments: argparse.Namespace) -> None:
    from capreward import report, sweep
    from capreward.data import replacing
    from capreward.train.config import parse_setting

    runs = sweep.plan(
        arguments.recipe,
        arguments.out,
        [_weights(text) for text in arguments.weights or ["recipe"]],
        arguments.estimators and arguments.estimators.split(","),
        [_seed(text) for text in arguments.seeds.split(",")],
        _grid(arguments.set_grid),
        dict(parse_setting(text) for text in arguments.set),
    )
    check_writable(arguments.out)
    console = report.make_console()
    frame = sweep.train(runs, arguments.out, arguments.jobs)
    sweep.print_sweep(frame, console)
    with replacing(arguments.out / "results.png") as path:
        sweep.figure(frame).savefig(path, dpi=130, format="png")
    print(f"wrote {', '.join(str(arguments.out / name) for name in ('runs.jsonl', 'results.csv', 'results.png'))}")
    if unfinished := sum(not run.is_finished() for run in runs):
        raise CaprewardError(f"{unfinished} of {len(runs)} runs failed; the same command tries them again")


def _weights(text: str) -> dict[str, float]:
    """Of a condition of a sweep."""
    if text == "recipe":
        return {}
    try:
        return dict(weight(part) for part in text.split(","))
    except InputError:
        expected = "NAME=NUMBER,..., such as fluency=2,coverage=1, or recipe"
        raise InputError(f"--weights: got {text!r}, expected {expected}") from None


def _grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    from capreward.train.config import parse_setting

    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or name in grid:
            expected = "NAME=VALUE,..., each name once, such as learning_rate=1.0e-4,3.0e-4"
            raise InputError(f"--set-grid: got {text!r}, expected {expected}")
        _, grid[name] = parse_setting(f"{name}=[{values}]")
    return grid


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--seeds: got {text!r}, expected whole numbers, such as 0,1,2") from None
