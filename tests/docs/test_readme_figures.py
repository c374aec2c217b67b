"""The README's figures are those of the results files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
FIGURES = [
    ("trainer/results/cpu", "policy pass 4.6 times as fast", "policy pass, TRL / ours", 4.6),
    ("trainer/results/cpu", "whole step 3.8 times", "whole step, TRL / ours", 3.8),
    ("trainer/results/cpu", "in 3.5 times less memory", "memory of the policy pass, TRL / ours", 3.5),
    ("trainer/results/cpu", "| 4.6 x time, 3.5 x memory |", "policy pass, TRL / ours", 4.6),
    (
        "advantage/results/cpu",
        "0.58 s, 222 times as fast",
        "ours, GDPO, unequal interleaved groups, 1,000,000 x 8",
        0.58,
    ),
    ("advantage/results/cpu", "222 times as fast as verl's", "verl's time over ours, GDPO, same batch", 222),
    (
        "advantage/results/cpu",
        "| 1.5 x, equal groups",
        "TRL's time over ours, GDPO, equal groups of 8, 1,000,000 x 8",
        1.5,
    ),
    ("advantage/results/cpu", "| 0.38 x |", "TRL's time over ours, GRPO, the same", 0.38),
    ("judge/results/cpu", "12 times the questions a second", "local judge / plain loop", 12),
    ("shapes/results/cpu", "precision 0.55 to 0.89", "precision before", 0.55),
    ("shapes/results/cpu", "precision 0.55 to 0.89", "precision after", 0.89),
    ("shapes/results/cpu", "coverage 0.29 to 0.80", "coverage after", 0.80),
    ("shapes/results/cpu", "fluency 0.33 to 0.92", "fluency after", 0.92),
    ("shapes/results/cpu", "QA 0.23 to 0.79 in 2.3 minutes", "qa after", 0.79),
    ("shapes/results/cpu", "QA 0.23 to 0.79 in 2.3 minutes", "a run", 2.3),
    ("photos/results/cpu", "false details on QA, 8 of 9", "false below dense on qa", 8),
    ("iiw/results/lite", "coverage +0.23 on comprehensiveness", "tau_b coverage / Comprehensiveness", 0.23),
    ("iiw/results/lite", "length alone +0.34", "tau_b length / Comprehensiveness", 0.34),
    ("iiw/results/lite", "fluency +0.20 on hallucination", "tau_b fluency / Hallucination", 0.20),
    ("curate/results/cpu", "precision of 0.92", "questions kept that are good, as it comes", 0.92),
    ("curate/results/cpu", "at 0.89", "questions kept that are good, seen 0.75, guessed 0.5", 0.89),
    ("scale/results/cpu", "two workers 1.9 times one", "two / one", 1.9),
    ("serve/results/cpu", "530 rollouts a second", "served, answered at once", 530),
    ("first_hour/results/cpu", "`make demo` 216 s", "make demo", 216),
    ("first_hour/results/cpu", "65 of them installing", "of which installing", 65),
    ("first_hour/results/cpu", "`capreward --help` 0.04 s", "capreward --help", 0.04),
    ("first_hour/results/cpu", "3.5 times `python -c pass`", "capreward --help / python -c pass", 3.5),
    ("injection/results/cpu", "23 % of SUPPORT verdicts", "SUPPORT verdicts flipped to yes, injection", 23),
    ("injection/results/cpu", "against 4 % with", "SUPPORT verdicts flipped to yes, control", 4),
]


@pytest.mark.parametrize(("results", "said", "name", "value"), FIGURES)
def test_as_measured(results: str, said: str, name: str, value: float) -> None:
    assert said in README
    headline = json.loads((ROOT / "benchmarks" / f"{results}.json").read_text(encoding="utf-8"))["headline"]
    [measured] = [entry["value"] for entry in headline if entry["name"] == name]
    digits = len(str(value).partition(".")[2])
    assert measured == pytest.approx(value, abs=0.5 * 10**-digits if value != 530 else 5)  # 530: in tens


def test_on_other_pairs() -> None:
    """Measured by `capreward agree`, whose file has no headline."""
    assert "-0.04 on 100 other pairs" in README
    rows = json.loads((ROOT / "benchmarks/iiw/docci/agreement.json").read_text(encoding="utf-8"))["rows"]
    [row] = [row for row in rows if (row["component"], row["axis"]) == ("fluency", "Hallucination")]
    assert row["labels"] == 100
    assert [round(value, 2) for value in row["score"]["tau_b"]] == [-0.04, -0.19, 0.11]
