"""DCScore from counts (capreward.evaluate.dcscore) for Hugging Face's `evaluate`."""
# One import a line, as `evaluate` reads them; and combined metrics are handed the inputs of one another.

from typing import Any

import datasets
import evaluate

from capreward.evaluate.dcscore import Counts, dc_score_of_set

KINDS = ("claims", "verified", "extra", "covered", "oracle")


class DCScore(evaluate.Metric):  # type: ignore[misc]
    """``compute(claims=[...], verified=..., extra=..., covered=..., oracle=..., relevant_claims=...)``: a number a caption."""

    def _info(self) -> Any:
        names = [*KINDS, *(f"relevant_{kind}" for kind in KINDS)]
        return evaluate.MetricInfo(
            description="DCScore: 100 (F1 of all facts + F1 of relevant facts) / 2, mean over captions, in [0, 100]",
            citation="DeCapBench, arXiv 2503.07906",
            features=datasets.Features({name: datasets.Value("int64") for name in names}),
        )

    def _compute(self, **counts: list[int]) -> dict[str, float]:
        sides = ([counts[prefix + kind] for kind in KINDS] for prefix in ("", "relevant_"))
        pairs = [[Counts(*map(int, row)) for row in zip(*side, strict=True)] for side in sides]
        return {"dcscore": dc_score_of_set(list(zip(*pairs, strict=True)))}
