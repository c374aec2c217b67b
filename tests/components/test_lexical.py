from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import rollouts, score
from rouge_score import rouge_scorer

from capreward import Item, Lexical, Missing, Reason, RewardSuite, Rollout, Score
from capreward.errors import ComponentError, InputError

SCRIPT = Path(__file__).parents[1] / "metrics" / "rouge_l" / "rouge_l.py"
ITEM = Item(id="cup", references=["a white cup stands here", "one cup"])


@pytest.fixture(scope="module")
def rouge_l() -> Lexical:
    return Lexical(SCRIPT, "rougeL")


class FakeMetric:
    """As much of an `evaluate` module as the component uses."""

    name = "fake metric"

    def __init__(self, **result: float) -> None:
        self.result = result
        self.computed: list[dict[str, Any]] = []

    def compute(self, **arguments: Any) -> dict[str, float]:
        self.computed.append(arguments)
        return self.result


def test_script_is_loaded_by_path_and_agrees_with_rouge_score(rouge_l: Lexical, photos: list[Rollout]) -> None:
    batch = photos[:12]
    table = RewardSuite({"rouge": rouge_l}).score(batch)
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    expected = [
        max(scorer.score(reference, rollout.caption)["rougeL"].fmeasure for reference in rollout.item.references)
        for rollout in batch
    ]
    assert table.values[:, 0].tolist() == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) == 12


def test_by_hand_with_the_best_of_several_references(rouge_l: Lexical) -> None:
    # "one cup": all of the second reference; "a cup stands": 3 of its 3 words, 3 of the first reference's 5
    results = score(rouge_l, "one cup", "a cup stands", "no dogs", item=ITEM)
    assert [result.value for result in results] == pytest.approx([1, 2 * 1 * 0.6 / 1.6, 0])
    assert results[1].why == "rougeL 0.750 against 2 references"


def test_options_reach_the_metric(rouge_l: Lexical) -> None:
    stemming = Lexical(SCRIPT, "rougeL", use_stemmer=True)
    item = Item(id="cup", references=["cup"])
    assert [score(component, "cups", item=item)[0].value for component in (rouge_l, stemming)] == [0, 1]


@pytest.mark.parametrize("scale", [0, -1])
def test_scale_is_positive(scale: float) -> None:
    with pytest.raises(InputError, match=r"got scale=.*, expected a number > 0"):
        Lexical(FakeMetric(bleu=1.0), "bleu", scale=scale)


def test_script_that_does_not_exist() -> None:
    with pytest.raises(InputError, match=r"got metric 'no/such/metric.py'"):
        Lexical("no/such/metric.py", "bleu")


@pytest.mark.parametrize(("result", "value"), [(100.00000000000004, 1.0), (-1e-12, 0.0), ([35.0], 0.35)])
def test_results_as_metrics_give_them(result: Any, value: float) -> None:
    assert score(Lexical(FakeMetric(bleu=result), "bleu", scale=100), "A cup.", item=ITEM)[0].value == value


def test_metric_of_one_reference_gets_the_first() -> None:
    metric = FakeMetric(wer=0.5)
    score(Lexical(metric, "wer", several=False), "A cup.", item=ITEM)
    assert metric.computed[0]["references"] == [ITEM.references[0]]


def test_loaded_module_gets_one_caption_and_its_references_at_a_time() -> None:
    metric = FakeMetric(bleu=35.0)
    component = Lexical(metric, "bleu", scale=100, smooth=True)
    assert component.name == "bleu"
    assert [result.value for result in score(component, "A cup.", "A dog.", item=ITEM)] == [0.35, 0.35]
    assert metric.computed == [
        {"predictions": [caption], "references": [list(ITEM.references)], "smooth": True}
        for caption in ("A cup.", "A dog.")
    ]


def test_no_references_and_empty_captions_are_not_computed() -> None:
    metric = FakeMetric(bleu=1.0)
    component = Lexical(metric, "bleu")
    assert score(component, "A cup.") == [Missing(Reason.NO_REFERENCE, "item 'bare' has no references")]
    assert score(component, "...", item=ITEM) == [Score(0.0, "empty caption")]
    assert metric.computed == []


def test_unknown_key() -> None:
    with pytest.raises(ComponentError, match=r"metric 'fake metric' has no 'rouge', only \['bleu'\]"):
        score(Lexical(FakeMetric(bleu=1.0), "rouge"), "A cup.", item=ITEM)


@pytest.mark.parametrize("result", [35.0, -0.5])  # such as percent without a scale
def test_out_of_range(result: float) -> None:
    suite = RewardSuite({"bleu": Lexical(FakeMetric(bleu=result), "bleu")})
    with pytest.raises(
        ComponentError, match=rf"component 'bleu', item 'cup': got score {result}, expected a number in"
    ):
        suite.score(rollouts("A cup.", item=ITEM))
