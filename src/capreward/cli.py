"""The command line; `capreward --help` lists what it can do. Heavy imports wait until they are needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capreward import __version__
from capreward.data import replacing
from capreward.errors import CaprewardError, InputError

if TYPE_CHECKING:
    from capreward.ablation import Variant
    from capreward.judges.base import Judge
    from capreward.records import Rollout
    from capreward.scoring import ScoreTable

SUITES = ("balcaprl", "caprl", "rubicap", "everything")


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
        again = {_train: "`capreward train --resume` goes on from the last checkpoint"}
        again |= dict.fromkeys((_sweep, _evaluate), "the same command goes on from the last checkpoint")
        print("; ".join(filter(None, ("capreward: interrupted", again.get(arguments.run)))), file=sys.stderr)
        return 130
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="capreward", description="Multi-objective rewards for image captioners.")
    parser.add_argument("--version", action="version", version=f"capreward {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

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
    _add_judge(score)
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

    train = commands.add_parser(
        "train",
        help="train a captioner",
        description="Trains a captioner with a recipe's rewards, and shows what that did to captions of held-out images.",
        epilog="examples:\n"
        "  capreward train recipes/shapes.yaml                          a drawn world: no GPU, no network, five minutes\n"
        "  capreward train recipes/balcaprl-qwen2.5-vl-3b.yaml --set data=captions.jsonl --set groups=32\n"
        "  accelerate launch --num_processes 8 -m capreward.cli train recipes/balcaprl-qwen2.5-vl-7b.yaml --resume",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument(
        "recipe", type=Path, help="YAML file with the settings, or the name of one that comes with the package"
    )
    train.add_argument("--out", type=Path, help="folder of the run, in place of the recipe's")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting in place of the recipe's; repeatable",
    )
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run")
    train.set_defaults(run=_train)

    sweep = commands.add_parser(
        "sweep",
        help="train under several settings and seeds",
        description="Trains the product of weights, estimators, other settings and seeds, each run in a process of its own, and "
        "compares the conditions by the scores of held-out images. A second call goes on where the first one ended.",
        epilog="examples:\n"
        "  capreward sweep recipes/shapes.yaml --weights recipe --weights fluency=2,coverage=1 --out sweep/\n"
        "  capreward sweep recipes/shapes.yaml --estimators gdpo,grpo --seeds 0,1,2,3 --set steps=40 --out sweep/\n"
        "  capreward sweep recipes/shapes.yaml --set-grid learning_rate=1.0e-4,3.0e-4 --jobs 4 --out sweep/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep.add_argument(
        "recipe", type=Path, help="YAML file with the settings, or the name of one that comes with the package"
    )
    sweep.add_argument(
        "--weights",
        action="append",
        metavar="NAME=W,...",
        help="weights of a condition, in place of the recipe's; `recipe` for these alone; repeatable",
    )
    sweep.add_argument("--estimators", metavar="NAME,...", help="each of these (default: the recipe's)")
    sweep.add_argument("--seeds", default="0,1,2", metavar="N,...", help="what is averaged over (default: 0,1,2)")
    sweep.add_argument(
        "--set-grid",
        action="append",
        default=[],
        metavar="NAME=V,...",
        help="each of these values of another setting; repeatable",
    )
    sweep.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting in place of the recipe's, for all runs; repeatable",
    )
    sweep.add_argument("--out", type=Path, required=True, help="folder of the sweep")
    sweep.add_argument(
        "--jobs", type=int, metavar="N", help="runs at once (default: one a GPU, or without any one a core)"
    )
    sweep.set_defaults(run=_sweep)

    serve = commands.add_parser(
        "serve",
        help="score over HTTP",
        description="Serves a suite over HTTP, for trainers that ask a remote reward model (docs/serving.md). Clients need the "
        "token in the environment variable CAPREWARD_TOKEN, if it is set; no other address than loopback is served without.",
        epilog="example: capreward serve --judge openai:qwen2.5-vl-7b --base-url http://127.0.0.1:8000/v1 --cache replies.sqlite",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_suite(serve, "balcaprl")
    _add_serving(serve)
    _add_judge(serve, cached="nowhere")
    serve.set_defaults(run=_serve, out=None)

    ablate = commands.add_parser(
        "ablate",
        help="ask of recorded rollouts: what if?",
        description="Computes other weights, gates and estimators on the rollouts of a ledger, beside what was recorded, and "
        "writes one HTML page. No judge is asked (docs/ablation.md). Where no weights, component or mask are named: each weight "
        "doubled, each component dropped.",
        epilog="examples:\n"
        "  capreward ablate run/ledger --out report.html\n"
        "  capreward ablate run/ledger --weights fluency=2,qa=0.5 --drop rubric --length-mask fluency=0.5:1.5 --out report.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ablate.add_argument("ledger", type=Path, help="folder that LedgerWriter wrote")
    ablate.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=W,NAME=W",
        help="a variant with these weights; the others stay as recorded; repeatable",
    )
    ablate.add_argument(
        "--drop", action="append", default=[], metavar="NAME", help="a variant without this component; repeatable"
    )
    ablate.add_argument(
        "--length-mask",
        action="append",
        default=[],
        metavar="TARGET=LOW:HIGH",
        help="a variant with this mask in the place of the recorded gates; repeatable",
    )
    ablate.add_argument(
        "--estimators",
        default="gdpo,grpo",
        metavar="NAME,NAME",
        help="to compare; each but gdpo is a variant (default: gdpo,grpo)",
    )
    ablate.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page, such as report.html")
    ablate.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals (default: 0)")
    ablate.set_defaults(run=_ablate)

    evaluate = commands.add_parser(
        "evaluate",
        help="compare captioners by their captions",
        description="Scores any captions on the metrics that captioners are compared by (docs/evaluation.md), with intervals "
        "over items. A call that was killed goes on where it ended.",
        epilog="examples:\n"
        "  capreward evaluate captions.jsonl --by model --metrics bcapscore,statistics --out evaluation/\n"
        "  capreward evaluate ours.jsonl theirs.jsonl --items items.jsonl --budget 100,200,400 --judge openai:qwen2.5-vl-7b "
        "--judge-sees --base-url http://127.0.0.1:8000/v1 --out evaluation/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_evaluation(evaluate)

    verl = commands.add_parser(
        "verl-overrides",
        help="print verl's settings for a suite",
        description="Prints the settings of verl's command line that train with the score function in a file, one a line.",
        epilog="example (docs/verl.md):\n"
        "  mapfile -t settings < <(capreward verl-overrides caption_reward.py)\n"
        '  python -m verl.trainer.main_ppo "${settings[@]}" data.train_files=captions.parquet ...',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verl.add_argument(
        "file", metavar="FILE[:NAME]", help="Python file, and what its score function is called (compute_score)"
    )
    verl.add_argument("--mode", default="sync", help="of verl's trainer: sync, colocate_async or separate_async (sync)")
    verl.add_argument("--legacy", action="store_true", help="for the trainer before v1 (trainer.use_v1=false)")
    verl.set_defaults(run=_verl_overrides)

    _add_agree(
        commands.add_parser(
            "agree", help="compare with human labels", formatter_class=argparse.RawDescriptionHelpFormatter
        )
    )

    _add_probe(
        commands.add_parser("probe", help="attack a reward", formatter_class=argparse.RawDescriptionHelpFormatter)
    )

    for command, suite, out in ((score, "balcaprl", None), (demo, "everything", Path("capreward-demo"))):
        _add_suite(command, suite)
        command.add_argument("--by", metavar="KEY", help="print means by this key of the rollouts' metadata")
        where = "nowhere" if out is None else f"{out}/"
        command.add_argument(
            "--out", type=Path, default=out, help=f"folder for scores.jsonl, scores.png and a ledger (default: {where})"
        )
    demo.set_defaults(by="kind")
    return parser


def _add_agree(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Scores captions that people have labelled, and says how far the components agree with the people."
    )
    command.epilog = (
        "examples:\n"
        "  capreward agree iiw --out agreement/\n"
        "  capreward agree labels.jsonl --suite balcaprl --judge openai:qwen2.5-vl-7b --judge-sees --out agreement/"
    )
    command.add_argument(
        "labels", metavar="LABELS", help="file or folder with the labels, or iiw: ImageInWords, from the package"
    )
    command.add_argument("--layout", help="of LABELS (default: told by its content)")
    command.add_argument("--images", type=Path, metavar="DIR", help="the images, for components that need them")
    command.add_argument("--items", type=Path, metavar="FILE", help="what else is known of the images (docs/data.md)")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--suite", choices=SUITES, help="components after their gates, and their mean")
    what.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="NAME",
        help="a component, ungated; repeatable (default: all that the judge can do)",
    )
    command.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the intervals (default: 1000)")
    command.add_argument("--seed", type=int, default=0, help="of the intervals (default: 0)")
    command.add_argument(
        "--out", type=Path, required=True, help="folder for scores.jsonl, agreement.json and agreement.png"
    )
    _add_judge(command)
    command.set_defaults(run=_agree)


def _add_probe(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Makes captions out of honest ones that a reward should not pay for, and says how often it does."
    )
    command.epilog = (
        "exit status: 1 if an attack wins, or buys a missing score, more often than the threshold, 2 for bad input, else 0\n"
        "examples (docs/probing.md):\n"
        "  capreward probe --samples photos --suite rubicap --out probe/\n"
        "  capreward probe captions.jsonl --judge openai:qwen2.5-vl-7b --judge-sees --threshold 0.05 --out probe/"
    )
    command.add_argument(
        "file", type=Path, nargs="?", help="items with honest rollouts, such as a policy's own captions"
    )
    command.add_argument("--items", type=Path, help="file of the items that rollouts name by id")
    command.add_argument(
        "--samples",
        choices=("photos", "shapes"),
        help="honest captions that come with the package, not a file's; shapes come with an exact judge",
    )
    command.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of an attack's captions that may win (default: 0)",
    )
    command.add_argument("--attacks", metavar="NAME,...", help="only these (default: all)")
    command.add_argument(
        "--injected", type=int, default=5, metavar="N", help="texts that talk to the judge, per caption (default: 5)"
    )
    command.add_argument("--prompt", default="Describe the image in detail.", help="what the policy is asked")
    command.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    command.add_argument("--out", type=Path, required=True, help="folder for probe.json and probe.png")
    _add_suite(command, "balcaprl")
    _add_judge(command)
    command.set_defaults(run=_probe, judge=None)


def _add_evaluation(command: argparse.ArgumentParser) -> None:
    command.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".jsonl or .parquet (docs/data.md)")
    command.add_argument("--items", type=Path, help="file of the items that captions name by id")
    command.add_argument("--by", metavar="KEY", help="metadata key of the captioner's name (default: the file's name)")
    command.add_argument(
        "--metrics",
        metavar="NAME,...",
        help="bcapscore, qa, captionqa, dcscore, statistics, arena (default: all but dcscore; no arena with one captioner)",
    )
    command.add_argument("--budget", metavar="WORDS,...", help="qa and captionqa of captions cut at so many words too")
    command.add_argument("--baselines", metavar="NAME,...", help="whom the others fight (default: all fight all)")
    command.add_argument("--draws", type=int, default=1000, metavar="N", help="resamples for intervals (default: 1000)")
    command.add_argument("--seed", type=int, default=0, help="of the order of options and the resamples (default: 0)")
    command.add_argument("--out", type=Path, required=True, help="folder for tables, figures and replies")
    _add_judge(command, cached="OUT/replies.sqlite")
    command.set_defaults(run=_evaluate)


def _add_suite(command: argparse.ArgumentParser, default: str) -> None:
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


def _add_serving(command: argparse.ArgumentParser) -> None:
    command.add_argument("--items", type=Path, metavar="FILE", help="items that requests may name by id (docs/data.md)")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    command.add_argument("--port", type=int, default=8900, help="0 takes a free one (default: 8900)")
    command.add_argument("--max-body", type=int, default=32, metavar="MB", help="size of a request (default: 32)")
    command.add_argument("--max-rollouts", type=int, default=1024, metavar="N", help="of a request (default: 1024)")
    command.add_argument("--timeout", type=float, default=100, metavar="S", help="for scoring a request (default: 100)")
    command.add_argument(
        "--group-size",
        type=int,
        metavar="G",
        help="rollouts of a prompt that /get_reward waits for (default: it does not wait)",
    )
    command.add_argument(
        "--group-timeout",
        type=float,
        default=60,
        metavar="S",
        help="that a group waits for its last rollout (default: 60)",
    )


def _add_judge(command: argparse.ArgumentParser, cached: str = "OUT/replies.sqlite, but none for lite") -> None:
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


def _judge(arguments: argparse.Namespace) -> Judge:
    """The judge that the options name."""
    from capreward.judges.named import make_judge

    cache = arguments.cache
    if cache is None and arguments.out and arguments.judge != "lite":
        cache = arguments.out / "replies.sqlite"
    with _status(f"loading the judge {arguments.judge}"):
        return make_judge(
            arguments.judge,
            base_url=arguments.base_url,
            images=arguments.judge_sees,
            concurrency=arguments.concurrency,
            prices=arguments.prices and tuple(arguments.prices),
            cache=cache,
        )


def _score(arguments: argparse.Namespace) -> None:
    from capreward.data import read_items, read_rollouts, write_rows
    from capreward.presets import PRESETS

    weights = dict(_weight(text) for text in arguments.weight)
    if arguments.out:
        _check_writable(arguments.out)
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
    suite = PRESETS[arguments.suite](_judge(arguments), weights=weights, **options)
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


def _train(arguments: argparse.Namespace) -> None:
    from capreward import recipe, report
    from capreward.train.config import TrainConfig, parse_setting

    changes = dict(parse_setting(text) for text in arguments.set)
    if arguments.out:
        changes["out"] = arguments.out
    config = TrainConfig.from_yaml(recipe.find(arguments.recipe), **changes)
    _check_writable(config.out)
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
    _check_writable(arguments.out)
    console = report.make_console()
    frame = sweep.train(runs, arguments.out, arguments.jobs)
    sweep.print_sweep(frame, console)
    with replacing(arguments.out / "results.png") as path:
        sweep.figure(frame).savefig(path, dpi=130, format="png")
    print(f"wrote {', '.join(str(arguments.out / name) for name in ('runs.jsonl', 'results.csv', 'results.png'))}")
    if unfinished := sum(not run.is_finished() for run in runs):
        raise CaprewardError(f"{unfinished} of {len(runs)} runs failed; the same command tries them again")


def _serve(arguments: argparse.Namespace) -> None:
    import logging

    from capreward.adapters import server
    from capreward.data import read_items
    from capreward.presets import PRESETS

    logging.basicConfig(format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s")
    logging.getLogger("capreward.server").setLevel(logging.INFO)
    token = os.environ.get("CAPREWARD_TOKEN") or None
    server.check_address(arguments.host, arguments.port, token)  # not only after the judge has been loaded
    items = read_items(arguments.items) if arguments.items else ()
    suite = PRESETS[arguments.suite](
        _judge(arguments),
        weights=dict(_weight(text) for text in arguments.weight),
        max_length=arguments.max_length,
        max_missing=arguments.max_missing,
        precise=arguments.precise,
    )
    app = server.make_app(
        suite,
        items=items,
        token=token,
        max_body=arguments.max_body * 10**6,
        max_rollouts=arguments.max_rollouts,
        timeout=arguments.timeout,
        group_size=arguments.group_size,
        group_timeout=arguments.group_timeout,
    )
    server.serve(app, host=arguments.host, port=arguments.port)


def _ablate(arguments: argparse.Namespace) -> None:
    from capreward.ablation import Ablation, Variant, default_variants
    from capreward.ablation_report import make_report
    from capreward.ledger import Ledger

    asked = _variants(arguments)
    estimators = arguments.estimators.split(",")
    if arguments.out.is_dir():
        raise InputError(f"--out: got {str(arguments.out)!r}, a folder; expected a file, such as report.html")
    _check_writable(arguments.out.absolute().parent)
    with _status("reading the ledger"):
        ablation = Ablation(Ledger(arguments.ledger), seed=arguments.seed)
    variants = {name: Variant(estimator=name) for name in estimators if name != "gdpo"}
    variants |= asked or default_variants(ablation, ())
    report = make_report(ablation, variants, estimators=estimators, progress=True)
    arguments.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.out) as path:
        path.write_text(report.page, encoding="utf-8")
    print(*report.in_short, *report.warnings, f"wrote {arguments.out}", sep="\n")


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
    _check_writable(arguments.out)
    labels = read_labels(
        samples.IIW if arguments.labels == "iiw" else arguments.labels,
        layout=arguments.layout,
        images=arguments.images,
        items=read_items(arguments.items) if arguments.items else (),
    )
    if arguments.limit:
        labels = labels.first(arguments.limit)
    console = make_console()
    judge = _judge(arguments)
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
    from capreward.presets import PRESETS
    from capreward.probe import Probe, honest_samples
    from capreward.probe_report import print_findings, write

    if (arguments.file is None) is (arguments.samples is None):
        raise InputError(f"probe: got file {arguments.file} and --samples {arguments.samples}, expected one of them")
    if not 0 <= arguments.threshold <= 1:
        raise InputError(f"--threshold: got {arguments.threshold}, expected a share in [0, 1]")
    _check_writable(arguments.out)
    console = report.make_console()
    if arguments.samples:
        rollouts = honest_samples(arguments.samples)
    else:
        rollouts = read_rollouts(arguments.file, items=read_items(arguments.items) if arguments.items else ())
    chosen = (
        attacks.named([name.strip() for name in arguments.attacks.split(",")]) if arguments.attacks else attacks.ATTACKS
    )
    if arguments.samples == "shapes" and arguments.judge is None:
        from capreward.shapes import ShapesJudge

        judge: Judge = ShapesJudge()
    else:
        arguments.judge = arguments.judge or "lite"
        judge = _judge(arguments)
    suite = PRESETS[arguments.suite](
        judge,
        weights=dict(_weight(text) for text in arguments.weight),
        max_length=arguments.max_length,
        max_missing=arguments.max_missing,
        precise=arguments.precise,
    )
    findings = Probe(
        suite, rollouts, attacks=chosen, injected=arguments.injected, prompt=arguments.prompt, seed=arguments.seed
    ).run()
    print(f"wrote {' and '.join(str(path) for path in write(findings, arguments.out, arguments.threshold))}")
    print_findings(findings, arguments.threshold, console)
    return int(bool(findings.failed(arguments.threshold)))


def _evaluate(arguments: argparse.Namespace) -> None:
    from capreward.evaluate.command import evaluate

    _check_writable(arguments.out)
    arguments.cache = arguments.cache or arguments.out / "replies.sqlite"
    written = evaluate(
        arguments.files,
        lambda: _judge(arguments),
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


def _variants(arguments: argparse.Namespace) -> dict[str, Variant]:
    """What the options of `ablate` ask for but estimators, by what the page calls it."""
    from capreward.ablation import Variant
    from capreward.components import LengthMask

    variants = {}
    for text in arguments.weights:
        weights = dict(_weight(part, "--weights") for part in text.split(","))
        variants[text.replace(",", ", ")] = Variant(weights=weights)
    for name in arguments.drop:
        variants[f"without {name}"] = Variant(drop=(name,))
    for text in arguments.length_mask:
        target, _, bounds = text.partition("=")
        try:
            low, high = map(float, bounds.split(":"))
        except ValueError:
            expected = "TARGET=LOW:HIGH, such as fluency=0.5:2"
            raise InputError(f"--length-mask: got {text!r}, expected {expected}") from None
        variants[f"mask {target} {low:g} to {high:g}"] = Variant(gates=[LengthMask(target, low=low, high=high)])
    return variants


def _verl_overrides(arguments: argparse.Namespace) -> None:
    from capreward.adapters import verl

    path, _, name = arguments.file.partition(":")
    name = name or "compute_score"
    suite = verl.suite_in(path, name)
    print(*verl.verl_overrides(suite, path=path, name=name, v1=not arguments.legacy, mode=arguments.mode), sep="\n")


def _check_writable(out: Path) -> None:
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"--out: got {str(out)!r}, but {existing} is a file; expected a folder")
    if not os.access(existing, os.W_OK):
        raise InputError(f"--out: got {str(out)!r}, but {existing} cannot be written to")


def _weight(text: str, option: str = "--weight") -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise InputError(f"{option}: got {text!r}, expected NAME=NUMBER, such as fluency=0.5") from None


def _weights(text: str) -> dict[str, float]:
    """Of a condition of a sweep."""
    if text == "recipe":
        return {}
    try:
        return dict(_weight(part) for part in text.split(","))
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


@contextmanager
def _status(what: str) -> Iterator[None]:
    try:
        from rich.console import Console
    except ImportError:  # the report will say which extra to install
        yield
        return
    with Console(stderr=True).status(what):
        yield


if __name__ == "__main__":
    sys.exit(main())
