"""Statistics of captions (capreward.evaluate.statistics) for Hugging Face's `evaluate`."""
# One import a line, as `evaluate` reads them; and combined metrics are handed the inputs of one another.

from typing import Any

import datasets
import evaluate

from capreward.evaluate.statistics import distinct, has_meta_commentary, length, repetition


class CaptionStatistics(evaluate.Metric):  # type: ignore[misc]
    """``compute(predictions=[...])``: means over captions, distinct n-grams of all of them together."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Words, repeated 4-grams, distinct 1- and 2-grams and rate of meta-commentary of captions",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], **_of_others: Any) -> dict[str, float]:
        count = len(predictions)
        return {
            "words": sum(map(length, predictions)) / count,
            "repetition": sum(map(repetition, predictions)) / count,
            "distinct_1": distinct(predictions, 1),
            "distinct_2": distinct(predictions, 2),
            "meta_commentary": sum(map(has_meta_commentary, predictions)) / count,
        }
