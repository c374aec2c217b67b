"""`capreward ablate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from capreward.cli.options import Commands, add_command, check_writable, status, weight
from capreward.errors import InputError

if TYPE_CHECKING:
    from capreward.ablation import Variant


def add(commands: Commands) -> None:
    """Adds the command to the command line."""
    ablate = add_command(
        commands,
        "ablate",
        _ablate,
        help="ask of recorded rollouts: what if?",
        description="Computes other weights, gates and estimators on the rollouts of a ledger, beside what was recorded, and "
        "writes one HTML page. No judge is asked (docs/ablation.md).",
        examples=[
            "capreward ablate run/ledger --out report.html",
            "capreward ablate run/ledger --weights fluency=2,coverage=0.5 \\\n"
            "--length-mask fluency=0.5:1.5 --out report.html",
        ],
    )
    ablate.add_argument(
        "ledger", type=Path, metavar="FOLDER", help="ledger of a run, of score --out or of LedgerWriter"
    )
    variants = ablate.add_argument_group(
        "variants", "Without the first three: each weight doubled, each component dropped."
    )
    variants.add_argument(
        "--weights", action="append", default=[], metavar="NAME=W,...", help="these; the others as recorded; repeatable"
    )
    variants.add_argument(
        "--drop", action="append", default=[], metavar="NAME", help="without this component; repeatable"
    )
    variants.add_argument(
        "--length-mask",
        action="append",
        default=[],
        metavar="TARGET=LOW:HIGH",
        help="this mask in the place of the recorded gates; repeatable",
    )
    variants.add_argument("--estimators", default="gdpo,grpo", metavar="NAME,...", help="each but gdpo is a variant")
    output = ablate.add_argument_group("output")
    output.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page, such as report.html")
    output.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals")


def _ablate(arguments: argparse.Namespace) -> None:
    from capreward.ablation import Ablation, Variant, default_variants
    from capreward.ablation_report import make_report
    from capreward.data import replacing
    from capreward.ledger import Ledger

    asked = _variants(arguments)
    estimators = arguments.estimators.split(",")
    if arguments.out.is_dir():
        raise InputError(f"--out: got {str(arguments.out)!r}, a folder; expected a file, such as report.html")
    check_writable(arguments.out.absolute().parent)
    with status("reading the ledger"):
        ablation = Ablation(Ledger(arguments.ledger), seed=arguments.seed)
    variants = {name: Variant(estimator=name) for name in estimators if name != "gdpo"}
    variants |= asked or default_variants(ablation, ())
    report = make_report(ablation, variants, estimators=estimators, progress=True)
    arguments.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.out) as path:
        path.write_text(report.page, encoding="utf-8")
    print(*report.in_short, *report.warnings, f"wrote {arguments.out}", sep="\n")


def _variants(arguments: argparse.Namespace) -> dict[str, Variant]:
    """What the options of `ablate` ask for but estimators, by what the page calls it."""
    from capreward.ablation import Variant
    from capreward.components import LengthMask

    variants = {}
    for text in arguments.weights:
        weights = dict(weight(part, "--weights") for part in text.split(","))
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
