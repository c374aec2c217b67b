"""`capreward serve` and `capreward verl-overrides`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from capreward.cli.options import Commands, add_judge, add_suite, judge_of, weight


def add(commands: Commands) -> None:
    """Adds the commands to the command line."""
    serve = commands.add_parser(
        "serve",
        help="score over HTTP",
        description="Serves a suite over HTTP, for trainers that ask a remote reward model (docs/serving.md). Clients need the "
        "token in the environment variable CAPREWARD_TOKEN, if it is set; no other address than loopback is served without.",
        epilog="example: capreward serve --judge openai:qwen2.5-vl-7b --base-url http://127.0.0.1:8000/v1 --cache replies.sqlite",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_suite(serve, "balcaprl")
    _add_serving(serve)
    add_judge(serve, cached="nowhere")
    serve.set_defaults(run=_serve, out=None)

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
        judge_of(arguments),
        weights=dict(weight(text) for text in arguments.weight),
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


def _verl_overrides(arguments: argparse.Namespace) -> None:
    from capreward.adapters import verl

    path, _, name = arguments.file.partition(":")
    name = name or "compute_score"
    suite = verl.suite_in(path, name)
    print(*verl.verl_overrides(suite, path=path, name=name, v1=not arguments.legacy, mode=arguments.mode), sep="\n")
