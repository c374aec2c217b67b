from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from asked_judge import answer
from fakes import FakeJudge

from capreward import Coverage, Fluency, Item, Missing, Precision, Reason, RewardSuite, Rollout
from capreward.errors import InputError
from capreward.evaluate import Evaluation, evaluate_captions
from capreward.evaluate.evaluation import METRICS, OF_MEANS
from capreward.judges import Task

ITEMS = [
    Item(
        id=f"item{number}",
        references=(f"a white cup {number} on a brown table",),
        facts=({"text": f"white cup {number}"}, {"text": "brown table"}, {"text": "red cup", "true": False}),
        questions=(
            {"text": "colour", "options": ("white", "red", "blue"), "answer": 0},
            {"text": "table", "options": ("brown", "black"), "answer": 0},
        ),
    )
    for number in range(4)
]
BARE = Item(id="bare")


def captions(**texts: str) -> dict[str, list[Rollout]]:
    """One caption of each item by each captioner."""
    return {
        name: [
            Rollout(item=item, caption=text.format(number), id=f"{name}{number}") for number, item in enumerate(ITEMS)
        ]
        for name, text in texts.items()
    }


TWO = {"good": "white cup {}. brown table", "bad": "red cup"}


def evaluated(given: Any = None, judge: Any = None, **options: Any) -> Evaluation:
    options = {"metrics": METRICS, "draws": 50, **options}
    return evaluate_captions(given or captions(**TWO), judge or FakeJudge(answer), **options)


@pytest.fixture(scope="module")
def both() -> Evaluation:
    return evaluated(budgets=[3, 2, 3])


def test_metrics(both: Evaluation) -> None:
    assert both.metrics == [
        *("precision_vs_facts", "coverage", "fluency", "prism", "prism@2", "prism@3", "captionqa", "captionqa@2"),
        *("captionqa@3", "b_capscore", "b_capscore_of_means", "dcscore", "words", "repetition", "meta_commentary"),
        "distinct_2",
    ]  # fmt: skip
    assert [both.author.tolist().count(name) for name in both.captioners] == [4, 4]


def test_b_capscore_is_made_of_the_components(both: Evaluation) -> None:
    judge = FakeJudge(answer)
    suite = RewardSuite({"p": Precision(judge), "c": Coverage(judge), "f": Fluency(judge)})
    table = suite.score(both.rollouts)
    with np.errstate(divide="ignore"):
        expected = 3 / (1 / table.values).sum(axis=1)
    np.testing.assert_allclose(both.columns["b_capscore"], expected)
    of_good = table.values[:4].mean(axis=0)
    assert both.estimates["good"][OF_MEANS].mean == pytest.approx(3 / (1 / of_good).sum())


def test_by_hand(both: Evaluation) -> None:
    good, bad = (both.estimates[name] for name in ("good", "bad"))
    # the good caption holds both right options; two of its words are enough for the colour
    assert (good["prism"].mean, good["prism@2"].mean, good["prism@3"].mean) == (1, 0.5, 0.5)
    assert (bad["prism"].mean, bad["captionqa"].mean) == (0, 0)
    assert (good["words"].mean, bad["words"].mean, bad["words"].low) == (5, 2, 2)
    assert (good["precision_vs_facts"].mean, bad["precision_vs_facts"].mean) == (1, 0)
    # two true claims, both units covered; and no true claim
    assert (good["dcscore"].mean, bad["dcscore"].mean) == (100, 0)
    # red-cup, four times
    assert bad["distinct_2"].mean == 1 / 4


def test_arena(both: Evaluation) -> None:
    assert both.arena is not None
    assert {(battle.first, battle.second, battle.outcome) for battle in both.arena.battles} == {
        ("good", "bad", "first")
    }
    assert both.arena.scores == {"good": {"bad": 2.0, "mean": 2.0}, "bad": {"good": -2.0, "mean": -2.0}}
    assert both.arena.plain is not None
    assert both.arena.plain.names == ("good", "bad")
    assert both.arena.battles[0].words == (5, 2)


def test_what_comes_out_is_json(both: Evaluation) -> None:
    said = json.loads(json.dumps(both.to_json(), allow_nan=False))
    assert said["captioners"]["good"]["prism"] == {
        "mean": 1.0,
        "low": 1.0,
        "high": 1.0,
        "scored": 4,
        "missing": 0,
        "reasons": {},
    }
    assert said["captioners"]["good"]["distinct_2"]["low"] is None
    assert said["settings"] == {"metrics": list(METRICS), "budgets": [2, 3], "baselines": [], "draws": 50, "seed": 0}
    assert said["judge"]["name"] == "fake"
    assert said["judge"]["usage"]["requests"] > 0
    assert said["arena"]["length_controlled"]["length_effect"] > 0
    rows = [json.loads(json.dumps(row, allow_nan=False)) for row in both.to_rows()]
    assert [row["id"] for row in rows] == [f"{name}{n}" for name in ("good", "bad") for n in range(4)]
    assert rows[0]["metrics"]["prism"] == 1
    assert rows[0]["why"]["prism"] == "2 of 2 right"


def test_missing_is_not_zero() -> None:
    late = Missing(Reason.TIMEOUT, "late")
    given = captions(**TWO)
    given["good"].append(Rollout(item=BARE, caption="white cup"))
    judge = FakeJudge(lambda request: late if "white cup 1" in request.context else answer(request))
    found = evaluated(given, judge, metrics=["bcapscore", "qa", "dcscore"])
    good = found.estimates["good"]
    assert (good["prism"].mean, good["prism"].scored, good["prism"].missing) == (1, 3, 2)
    assert found.missing("good", "prism") == {"timeout": 1, "no_questions": 1}
    assert found.missing("good", "b_capscore") == {"timeout": 1, "no_facts": 1}
    assert found.missing("good", "dcscore") == {"timeout": 1, "no_facts": 1}
    assert found.missing("bad", "b_capscore") == {}
    assert found.estimates["good"]["b_capscore"].mean > 0.5
    row = list(found.to_rows())[1]
    assert row["metrics"]["prism"] is None
    assert row["missing"]["prism"] == "timeout: late"


def test_captions_with_two_of_three_scores_are_not_in_the_interval_either() -> None:
    """The caption without a precision covers nothing; the others are all alike."""
    given = captions(good=TWO["good"])
    given["good"][1] = Rollout(item=ITEMS[1], caption="red cup")
    late = Missing(Reason.TIMEOUT, "late")
    judge = FakeJudge(lambda r: late if (r.task, r.context) == (Task.EXTRACT, "red cup") else answer(r))
    found = evaluated(given, judge, metrics=["bcapscore"])
    whole = found.estimates["good"][OF_MEANS]
    assert (found.estimates["good"]["coverage"].missing, whole.missing) == (0, 1)
    assert whole.low == pytest.approx(whole.mean)
    assert whole.high == pytest.approx(whole.mean)


def test_a_metric_that_nothing_has() -> None:
    given = {name: [Rollout(item=BARE, caption=name)] for name in ("x", "y")}
    found = evaluated(given, metrics=["qa", "arena"])
    assert np.isnan(found.estimates["x"]["prism"].mean)
    assert found.arena is not None
    assert found.arena.plain is None
    assert found.to_json()["arena"] == {"scores": {}, "plain": None, "length_controlled": None}


def test_a_baseline_without_an_outcome_does_not_sink_the_others() -> None:
    given = captions(**TWO)
    given["elsewhere"] = [Rollout(item=BARE, caption="white cup")]  # shares no item with the others
    for name in TWO:
        given[name].append(Rollout(item=Item(id="dark"), caption=name))
    given["unjudged"] = [Rollout(item=Item(id="dark"), caption="white cup")]  # shares one that has no reference
    found = evaluated(given, metrics=["arena"], baselines=["bad", "elsewhere", "unjudged"])
    assert found.arena is not None
    assert found.arena.scores == {"good": {"bad": 2.0, "mean": 2.0}}


def test_captioners_are_asked_the_same_whatever_their_groups() -> None:
    given = captions(x="white cup {}", y="white cup {}")
    given["y"] = [rollout.model_copy(update={"group": f"other{n}"}) for n, rollout in enumerate(given["y"])]
    judge = FakeJudge(answer)
    evaluated(given, judge, metrics=["qa"])
    assert len(judge.asked) == len(set(judge.asked)) == 8


def test_statistics_need_no_judge() -> None:
    found = evaluate_captions(captions(x="a cup, a cup"), draws=10)
    assert found.judge is None
    assert found.metrics == ["words", "repetition", "meta_commentary", "distinct_2"]
    assert found.estimates["x"]["words"].mean == 4


def test_a_judge_that_sees_images_gives_the_papers_precision() -> None:
    judge = FakeJudge(answer)
    judge.images = True
    item = Item(id="cup", image=b"image", references=("a cup",))
    found = evaluated({"x": [Rollout(item=item, caption="a cup")]}, judge, metrics=["bcapscore"])
    assert "precision" in found.metrics


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": ["bleu"]}, "metrics: got 'bleu', expected some of bcapscore, qa"),
        ({"metrics": []}, "metrics: got none, expected some of"),
        ({"metrics": ["statistics"], "budgets": [100]}, "budgets: got [100] with metrics statistics; expected qa"),
        ({"budgets": [0]}, "WithinBudget: got budget=0"),
        ({"baselines": ["ugly"]}, "baselines: got 'ugly', expected one of ['good', 'bad']"),
        (
            {"metrics": ["qa"], "baselines": ["good"]},
            "baselines: got ['good'] with metrics qa; expected arena among them",
        ),
        ({"draws": 0}, "draws: got 0, expected a number >= 1"),
    ],
)
def test_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        evaluated(**options)
    assert said in str(error.value)


def test_captions_that_cannot_be() -> None:
    with pytest.raises(InputError, match="captions: got none, expected at least one"):
        evaluate_captions({})
    with pytest.raises(InputError, match="captions: got none of 'x', expected at least one"):
        evaluate_captions({"x": []})
    with pytest.raises(InputError, match="metrics: got arena with one captioner, 'x'"):
        evaluated(captions(x="a cup"))
    with pytest.raises(InputError, match="judge: got none, but all metrics except statistics need one"):
        evaluate_captions(captions(x="a cup"), metrics=["qa"])
    other = Item(id="item0", references=("a dog",))
    with pytest.raises(InputError, match="two different items have the id 'item0'"):
        evaluated({**captions(x="a cup"), "y": [Rollout(item=other, caption="a dog")]}, metrics=["arena"])
