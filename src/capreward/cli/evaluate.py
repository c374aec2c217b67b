"""`capreward evaluate`, `capreward agree` and `capreward probe`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from capreward.cli.options import (
    SUITES,
    Commands,
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


def add(commands: Commands) -> None:
    """Adds the commands to the command line."""
    _add_evaluate(commands)
    _add_agree(commands)
    _add_probe(commands)


def _add_evaluate(commands: Commands) -> None:
    command = add_command(
        commands,
        "evaluate",
        _evaluate,
        help="compare captioners by their captions",
        description="Scores any captions on the metrics that captioners are compared by (docs/evaluation.md), with intervals "
        "over items. A call that was killed goes on where it ended.",
        examples=[
            "capreward evaluate captions.jsonl --by model \\\n--metrics bcapscore,statistics --out evaluation/",
            "capreward evaluate ours.jsonl theirs.jsonl --items items.jsonl \\\n"
            "--budget 100,200,400 --judge openai:qwen2.5-vl-7b --judge-sees \\\n"
            "--base-url http://127.0.0.1:8000/v1 --out evaluation/",
        ],
        interrupted="the same command goes on where it ended",
    )
    command.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help=".jsonl or .parquet of captions (docs/data.md)"
    )
    command.add_argument("--items", type=Path, metavar="FILE", help="the items that captions name by id")
    command.add_argument("--by", metavar="KEY", help="metadata key of the captioner's name (default: the file's name)")
    metrics = command.add_argument_group("metrics")
    metrics.add_argument(
        "--metrics",
        metavar="NAME,...",
        help="bcapscore, qa, captionqa, dcscore, statistics, arena (default: all but dcscore; no arena with one captioner)",
    )
    metrics.add_argument(
        "--budget", metavar="WORDS,...", help="qa and captionqa of captions cut at so many words too (default: uncut)"
    )
    metrics.add_argument("--baselines", metavar="NAME,...", help="whom the others fight (default: all fight all)")
    metrics.add_argument("--draws", type=int, default=1000, metavar="N", help="resamples for intervals")
    metrics.add_argument("--seed", type=int, default=0, help="of the order of options and the resamples")
    add_judge(command, cached="OUT/replies.sqlite")
    add_out(command, "folder for tables, figures and replies", required=True)


def _add_agree(commands: Commands) -> None:
    command = add_command(
        commands,
        "agree",
        _agree,
        help="compare rewards with human labels",
        description="Scores captions that people have labelled, and says how far the components agree with the people "
        "(docs/agreement.md).",
        examples=[
            "capreward agree iiw --out agreement/",
            "capreward agree labels.jsonl --suite balcaprl --judge openai:qwen2.5-vl-7b \\\n"
            "--judge-sees --base-url http://127.0.0.1:8000/v1 --out agreement/",
        ],
    )
    command.add_argument(
        "labels",
        type=Path,
        metavar="LABELS",
        help="file or folder with the labels, or iiw: ImageInWords, from the package",
    )
    command.add_argument("--layout", help="of LABELS (default: told by its content)")
    command.add_argument("--images", type=Path, metavar="FOLDER", help="the images, for components that need them")
    command.add_argument("--items", type=Path, metavar="FILE", help="what else is known of the images (docs/data.md)")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    group = command.add_argument_group("rewards")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--suite", choices=SUITES, help="components after their gates, and their mean")
    what.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="NAME",
        help="a component, ungated; repeatable (default: all that the judge can do)",
    )
    group.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the intervals")
    group.add_argument("--seed", type=int, default=0, help="of the intervals")
    add_judge(command)
    add_out(command, "folder for scores.jsonl, agreement.json and agreement.png", required=True)


def _add_probe(commands: Commands) -> None:
    command = add_command(
        commands,
        "probe",
        _probe,
        help="attack a reward",
        description="Makes captions out of honest ones that a reward should not pay for, and says how often it does "
        "(docs/probing.md).",
        examples=[
            "capreward probe --samples photos --suite rubicap --out probe/",
            "capreward probe captions.jsonl --judge openai:qwen2.5-vl-7b --judge-sees \\\n"
            "--base-url http://127.0.0.1:8000/v1 --threshold 0.05 --out probe/",
        ],
        epilog="exit status: 1 if an attack wins, or buys a missing score, more often than the threshold; 2 for bad input",
    )
    command.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="items with honest rollouts, such as a policy's own captions"
    )
    command.add_argument("--items", type=Path, metavar="FILE", help="the items that rollouts name by id")
    command.add_argument(
        "--samples",
        choices=("photos", "shapes"),
        help="honest captions that come with the package, not a file's; shapes come with an exact judge",
    )
    attacks = command.add_argument_group("attacks")
    attacks.add_argument("--attacks", metavar="NAME,...", help="only these (default: all)")
    attacks.add_argument(
        "--threshold", type=float, default=0.0, metavar="SHARE", help="of an attack's captions that may win"
    )
    attacks.add_argument(
        "--injected", type=int, default=5, metavar="N", help="texts that talk to the judge, per caption"
    )
    attacks.add_argument("--prompt", default="Describe the image in detail.", help="what the policy is asked")
    attacks.add_argument("--seed", type=int, default=0, help="of all that is random")
    add_suite(command, "balcaprl")
    add_judge(command)
    add_out(command, "folder for probe.json and probe.png", required=True)


def _agree(arguments: argparse.Namespace) -> None:
    from capreward import samples
    from capreward.data import read_items
    from capreward.evaluate import agreement_report
    from capreward.evaluate.labels import read_labels
    from capreward.presets import PRESETS
    from capreward.report import make_console

    for option, number in (("--resamples", arguments.resamples), ("--limit", arguments.limit)):
        if number is not None and number < 1:
            raise InputError(f"{option}: got {number}, expected a number >= 1")
    check_writable(arguments.out)
    labels = read_labels(
        samples.IIW if arguments.labels == Path("iiw") else arguments.labels,
        layout=arguments.layout,
        images=arguments.images,
        items=read_items(arguments.items) if arguments.items else (),
    )
    if arguments.limit:
        labels = labels.first(arguments.limit)
    console = make_console()
    judge = judge_of(arguments)
    whole = bool(arguments.suite)
    suite = PRESETS[arguments.suite](judge) if whole else agreement_report.components(judge, arguments.component)
    table = suite.score(labels.rollouts)
    result = agreement_report.measure(
        table, labels, total=whole, resamples=arguments.resamples, seed=arguments.seed, progress=True
    )
    paths = agreement_report.write(result, table, labels, arguments.out)
    agreement_report.print_agreement(result, console)
    print(f"wrote {', '.join(map(str, paths))}")


def _probe(arguments: argparse.Namespace) -> int:
    from capreward import attacks, report
    from capreward.data import read_items, read_rollouts
    from capreward.probe import Probe, honest_samples
    from capreward.probe_report import print_findings, write

    if (arguments.file is None) is (arguments.samples is None):
        raise InputError(f"probe: got file {arguments.file} and --samples {arguments.samples}, expected one of them")
    if not 0 <= arguments.threshold <= 1:
        raise InputError(f"--threshold: got {arguments.threshold}, expected a share in [0, 1]")
    check_writable(arguments.out)
    console = report.make_console()
    if arguments.samples:
        rollouts = honest_samples(arguments.samples)
    else:
        rollouts = read_rollouts(arguments.file, items=read_items(arguments.items) if arguments.items else ())
    chosen = (
        attacks.named([name.strip() for name in arguments.attacks.split(",")]) if arguments.attacks else attacks.ATTACKS
    )
    suite = suite_of(arguments, lambda: _judge_of_probe(arguments))
    findings = Probe(
        suite, rollouts, attacks=chosen, injected=arguments.injected, prompt=arguments.prompt, seed=arguments.seed
    ).run()
    print(f"wrote {' and '.join(str(path) for path in write(findings, arguments.out, arguments.threshold))}")
    print_findings(findings, arguments.threshold, console)
    return int(bool(findings.failed(arguments.threshold)))


def _judge_of_probe(arguments: argparse.Namespace) -> Judge:
    if arguments.samples == "shapes" and arguments.judge is None:
        from capreward.shapes import ShapesJudge

        return ShapesJudge()
    return judge_of(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
    from capreward.evaluate.command import evaluate

    check_writable(arguments.out)
    arguments.cache = arguments.cache or arguments.out / "replies.sqlite"
    written = evaluate(
        arguments.files,
        lambda: judge_of(arguments),
        arguments.out,
        items=arguments.items,
        by=arguments.by,
        metrics=arguments.metrics,
        budgets=arguments.budget,
        baselines=arguments.baselines,
        draws=arguments.draws,
        seed=arguments.seed,
    )
    print(f"wrote {', '.join(map(str, written))}")
