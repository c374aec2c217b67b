"""Bradley-Terry strengths from battles (capreward.evaluate.arena) for Hugging Face's `evaluate`."""
# One import a line, as `evaluate` reads them; and combined metrics are handed the inputs of one another.

from typing import Any

import datasets
import evaluate

from capreward.errors import InputError
from capreward.evaluate.arena import RIDGE, Battle, Outcome, auto_scores, bradley_terry


class ArenaStrengths(evaluate.Metric):  # type: ignore[misc]
    """``compute(item=[...], first=[...], second=[...], outcome=["first" | "second" | "tie", ...])``.

    With ``first_words=[...], second_words=[...]`` the strengths are length-controlled. `baselines`, `ridge`, `draws`
    and `seed` as in `auto_scores` and `bradley_terry`.
    """

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Bradley-Terry strengths in log odds with 95% intervals over items, and (wins - losses) / 2",
            citation="CapArena, arXiv 2503.12329",
            features=datasets.Features(
                {name: datasets.Value("string") for name in ("item", "first", "second", "outcome")}
            ),
        )

    def _compute(
        self,
        item: list[str],
        first: list[str],
        second: list[str],
        outcome: list[str],
        first_words: list[int] | None = None,
        second_words: list[int] | None = None,
        baselines: list[str] | None = None,
        ridge: float = RIDGE,
        draws: int = 1000,
        seed: int = 0,
        **_of_others: Any,
    ) -> dict[str, Any]:
        if unknown := [word for word in outcome if word not in list(Outcome)]:
            raise InputError(f"outcome: got {unknown[0]!r}, expected one of {', '.join(Outcome)}")
        if (first_words is None) != (second_words is None):
            raise InputError("first_words, second_words: got one of them, expected both or neither")
        words = list(zip(first_words or [1] * len(item), second_words or [1] * len(item), strict=True))
        battles = [
            Battle(id, one, other, Outcome(word), lengths)
            for id, one, other, word, lengths in zip(item, first, second, outcome, words, strict=True)
        ]
        fitted = bradley_terry(battles, control_length=first_words is not None, ridge=ridge, draws=draws, seed=seed)
        intervals = zip(fitted.names, fitted.low.tolist(), fitted.high.tolist(), strict=True)
        return {
            "strength": dict(zip(fitted.names, fitted.strength.tolist(), strict=True)),
            "interval": {name: (low, high) for name, low, high in intervals},
            "length_effect": fitted.length_effect,
            "score": auto_scores(battles, baselines or ()),
        }
