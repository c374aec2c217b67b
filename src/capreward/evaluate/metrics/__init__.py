"""The metrics that need no judge as scripts for Hugging Face's `evaluate`."""

from __future__ import annotations

from pathlib import Path

from capreward.errors import InputError

SCRIPTS = ("arena_strengths", "b_capscore", "caption_statistics", "dcscore")


def metric_script(name: str) -> str:
    """Path of a script, for ``evaluate.load(metric_script("b_capscore"))``; needs no network.

    Raises:
        InputError: a name that is not in `SCRIPTS`.
    """
    if name not in SCRIPTS:
        raise InputError(f"metric_script: got {name!r}, expected one of {', '.join(SCRIPTS)}")
    return str(Path(__file__).parent / name / f"{name}.py")
