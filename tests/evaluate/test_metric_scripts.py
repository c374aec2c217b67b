from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import evaluate
import pytest

from capreward.errors import InputError
from capreward.evaluate import (
    Battle,
    Counts,
    Outcome,
    b_capscore_of_set,
    bradley_terry,
    dc_score,
    distinct,
    metric_script,
)
from capreward.evaluate.metrics import SCRIPTS


def load(name: str) -> Any:
    return evaluate.load(metric_script(name))


def test_every_script_is_there() -> None:
    for name in SCRIPTS:
        assert Path(metric_script(name)).is_file()
    with pytest.raises(InputError, match="metric_script: got 'bleu', expected one of arena_strengths, b_capscore"):
        metric_script("bleu")


def test_b_capscore() -> None:
    numbers = {"precision": [1.0, 0.5, math.nan], "recall": [1.0, 0.25, 1.0], "linguistic": [1.0, 1.0, 1.0]}
    metric = load("b_capscore")
    assert metric.compute(**numbers) == {"b_capscore": pytest.approx((1 + 3 / 7) / 2)}
    assert metric.compute(**numbers, over="means")["b_capscore"] == b_capscore_of_set(*numbers.values(), over="means")
    numbers["precision"][2] = None  # type: ignore[call-overload]
    assert metric.compute(**numbers) == {"b_capscore": pytest.approx((1 + 3 / 7) / 2)}


def test_caption_statistics() -> None:
    captions = ["A cup stands.", "This description is a cup a cup a cup."]
    assert load("caption_statistics").compute(predictions=captions) == {
        "words": 6.0,
        "repetition": pytest.approx((0 + 1 / 6) / 2),
        "distinct_1": distinct(captions, 1),
        "distinct_2": distinct(captions, 2),
        "meta_commentary": 0.5,
    }


def test_dcscore() -> None:
    every, relevant = (10, 8, 2, 5, 8), (6, 6, 1, 4, 5)
    names = ("claims", "verified", "extra", "covered", "oracle")
    columns = {name: [number] for name, number in zip(names, every, strict=True)}
    columns |= {f"relevant_{name}": [number] for name, number in zip(names, relevant, strict=True)}
    assert load("dcscore").compute(**columns) == {"dcscore": dc_score(Counts(*every), Counts(*relevant))}


BATTLES = {
    "item": ["1", "2", "3", "4"],
    "first": ["x", "x", "y", "x"],
    "second": ["y", "y", "x", "y"],
    "outcome": ["first", "tie", "second", "first"],
}
WORDS = [20, 10, 15, 30], [10, 10, 20, 20]


def test_arena_strengths() -> None:
    battles = [
        Battle(item, first, second, Outcome(outcome), words)
        for item, first, second, outcome, words in zip(*BATTLES.values(), zip(*WORDS, strict=True), strict=True)
    ]
    metric = load("arena_strengths")
    plain = metric.compute(**BATTLES, draws=20)
    assert plain["strength"] == dict(zip("xy", bradley_terry(battles, draws=0).strength, strict=True))
    assert plain["score"]["x"] == {"y": 1.5, "mean": 1.5}
    assert plain["length_effect"] is None
    controlled = metric.compute(**BATTLES, first_words=WORDS[0], second_words=WORDS[1], draws=20, baselines=["y"])
    expected = bradley_terry(battles, control_length=True, draws=20)
    assert controlled["length_effect"] == expected.length_effect
    assert controlled["interval"]["x"] == (expected.low[0], expected.high[0])
    assert list(controlled["score"]) == ["x"]


def test_arena_strengths_of_what_cannot_be() -> None:
    metric = load("arena_strengths")
    with pytest.raises(InputError, match="outcome: got 'won', expected one of first, second, tie"):
        metric.compute(item=["1"], first=["x"], second=["y"], outcome=["won"])
    with pytest.raises(InputError, match="first_words, second_words: got one of them"):
        metric.compute(**BATTLES, first_words=WORDS[0])


def test_combined() -> None:
    """Each takes its own inputs of those that all are handed."""
    together = evaluate.combine([metric_script(name) for name in SCRIPTS])
    counts = {name: [4] * 4 for name in ("claims", "verified", "covered", "oracle")} | {"extra": [0] * 4}
    found = together.compute(
        predictions=["A cup.", "A dog.", "A cat.", "A man."],
        precision=[1.0, 1.0, 0.5, 0.5],
        recall=[1.0, 1.0, 1.0, 1.0],
        linguistic=[1.0, 1.0, 1.0, 1.0],
        **counts,
        **{f"relevant_{name}": numbers for name, numbers in counts.items()},
        **BATTLES,
        draws=10,
    )
    assert found["b_capscore"] == pytest.approx((1 + 1 + 0.75 + 0.75) / 4)
    assert found["dcscore"] == 100
    assert found["words"] == 2
    assert found["strength"]["x"] > 0
