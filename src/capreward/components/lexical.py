"""Lexical: any metric of the `evaluate` library as a component."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capreward.errors import ComponentError, InputError, missing_extra, require_positive
from capreward.hub import find_metric
from capreward.missing import Missing, Reason
from capreward.records import Rollout
from capreward.scoring import Score, scores_empty_as_zero


class Lexical:
    """A text metric of Hugging Face's `evaluate` library against the references, such as RubiCap's ROUGE-L baseline.

    Args:
        metric: name on the hub (``"rouge"``), whose script is fetched and run if it is not in the cache; path of a metric script;
            or a loaded module. A metric that has a model of its own, such as ``"bertscore"``, fetches that by itself.
        key: which number of the metric's result to take (``"rougeL"``).
        scale: the result is divided by this; 100 for metrics in percent. It has to end in [0, 1].
        several: hand over all references of an item as a list, and let the metric decide how it treats them; False for
            metrics that take a single reference (``"wer"``): they get the first.
        options: passed to `compute` (``use_stemmer=True``).

    Missing: the item has no references (`no_reference`).

    Raises:
        InputError: no such metric, or one that cannot be loaded; a scale that is not above 0.
        MissingExtraError: the extra `lexical` is not installed.
    """

    def __init__(
        self, metric: str | Path | Any, key: str, *, scale: float = 1.0, several: bool = True, **options: Any
    ) -> None:
        if isinstance(metric, str | Path):
            try:
                import evaluate
            except ImportError as error:
                raise missing_extra("Lexical", "lexical", error) from error
            script = find_metric("Lexical", str(metric))
            try:
                metric = evaluate.load(str(script or metric))
            except (
                FileNotFoundError,
                ImportError,
            ) as error:  # no such metric; what its script imports is not installed
                raise InputError(f"Lexical: metric {str(metric)!r} cannot be loaded: {error}") from error
        require_positive("Lexical", scale=scale)
        self.metric, self.key, self.scale, self.several, self.options = metric, key, scale, several, options
        self.name = key
        plain = {name: value for name, value in options.items() if isinstance(value, bool | int | float)}
        self.recorded = {"scale": scale, "several": several, **plain}
        """What a ledger says of it (`ledger.describe`)."""
        self._lock = threading.Lock()  # a metric module collects its inputs in one file

    @scores_empty_as_zero
    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        """Values in [0, 1]."""
        return await asyncio.to_thread(lambda: [self._score(rollout) for rollout in rollouts])

    def _score(self, rollout: Rollout) -> Score | Missing:
        references = list(rollout.item.references)
        if not references:
            return Missing(Reason.NO_REFERENCE, f"item {rollout.item.id!r} has no references")
        with self._lock:
            result = self.metric.compute(
                predictions=[rollout.caption],
                references=[references] if self.several else references[:1],
                **self.options,
            )
        if self.key not in result:
            raise ComponentError(f"metric {self.metric.name!r} has no {self.key!r}, only {sorted(result)}")
        value = float(np.squeeze(result[self.key])) / self.scale
        value = min(max(value, 0.0), 1.0) if -1e-9 < value < 1 + 1e-9 else value  # some metrics round past their bounds
        return Score(value, f"{self.key} {value:.3f} against {len(references)} references")
