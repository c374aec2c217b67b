"""b-CapScore (capreward.evaluate.bcapscore) for Hugging Face's `evaluate`."""
# One import a line, as `evaluate` reads them; and combined metrics are handed the inputs of one another.

from typing import Any

import datasets
import evaluate

from capreward.evaluate.bcapscore import b_capscore_of_set


class BCapScore(evaluate.Metric):  # type: ignore[misc]
    """``compute(precision=[...], recall=[...], linguistic=[...], over="captions")``; NaN = missing."""

    def _info(self) -> Any:
        numbers = {name: datasets.Value("float64") for name in ("precision", "recall", "linguistic")}
        return evaluate.MetricInfo(
            description="b-CapScore: harmonic mean of precision, recall and linguistic quality, in [0, 1]",
            citation="BalCapRL, arXiv 2605.07394",
            features=datasets.Features(numbers),
        )

    def _compute(
        self,
        precision: list[float],
        recall: list[float],
        linguistic: list[float],
        over: Any = "captions",
        **_of_others: Any,
    ) -> dict[str, float]:
        return {"b_capscore": b_capscore_of_set(precision, recall, linguistic, over=over)}
