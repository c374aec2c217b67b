"""`capreward serve` and `capreward verl-overrides`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from capreward.cli.options import Commands, add_command, add_judge, add_suite, judge_of, suite_of


def add(commands: Commands) -> None:
    """Adds the commands to the command line."""
    serve = add_command(
        commands,
        "serve",
        _serve,
        help="score over HTTP",
        description="Serves a suite over HTTP, for trainers that ask a remote reward model (docs/serving.md). Clients need the "
        "token in the environment variable CAPREWARD_TOKEN, if it is set; no other address than loopback is served without.",
        examples=[
            "capreward serve --items items.jsonl --group-size 8",
            "capreward serve --suite rubicap --judge openai:qwen2.5-vl-7b \\\n"
            "--base-url http://127.0.0.1:8000/v1 --cache replies.sqlite",
        ],
    )
    where = serve.add_argument_group("server")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on")
    where.add_argument("--port", type=int, default=8900, help="0 takes a free one")
    requests = serve.add_argument_group("requests")
    requests.add_argument("--items", type=Path, metavar="FILE", help="items that they may name by id (docs/data.md)")
    requests.add_argument("--max-body", type=int, default=32, metavar="MB", help="size")
    requests.add_argument("--max-rollouts", type=int, default=1024, metavar="N", help="rollouts")
    requests.add_argument("--timeout", type=float, default=100, metavar="S", help="for scoring")
    requests.add_argument(
        "--group-size",
        type=int,
        metavar="G",
        help="rollouts of a prompt that /get_reward waits for (default: it does not wait)",
    )
    requests.add_argument(
        "--group-timeout", type=float, default=60, metavar="S", help="that a group waits for its last rollout"
    )
    add_suite(serve, "balcaprl")
    add_judge(serve, cached="nowhere")
    serve.set_defaults(out=None)

    verl = add_command(
        commands,
        "verl-overrides",
        _verl_overrides,
        help="print verl's settings for a suite",
        description="Prints the settings of verl's command line that train with the score function in a file, one a line "
        "(docs/verl.md).",
        examples=[
            "capreward verl-overrides caption_reward.py",
            "mapfile -t settings < <(capreward verl-overrides caption_reward.py)\n"
            'python -m verl.trainer.main_ppo "${settings[@]}" \\\n'
            "data.train_files=captions.parquet",
        ],
    )
    verl.add_argument(
        "file",
        metavar="FILE[:NAME]",
        help="Python file, and what its score function is called, if not compute_score",
    )
    verl.add_argument("--mode", default="sync", help="of verl's trainer: sync, colocate_async or separate_async")
    verl.add_argument("--legacy", action="store_true", help="for the trainer before v1 (trainer.use_v1=false)")


def _serve(arguments: argparse.Namespace) -> None:
    import logging

    from capreward.adapters import server
    from capreward.data import read_items

    logging.basicConfig(format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s")
    logging.getLogger("capreward.server").setLevel(logging.INFO)
    token = os.environ.get("CAPREWARD_TOKEN") or None
    server.check_address(arguments.host, arguments.port, token)  # not only after the judge has been loaded
    items = read_items(arguments.items) if arguments.items else ()
    suite = suite_of(arguments, lambda: judge_of(arguments))
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
