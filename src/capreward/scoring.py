"""Scores, the protocols of components and gates, and the table that scores end up in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from capreward import advantage
from capreward.errors import ComponentError, InputError, missing_extra
from capreward.groups import Float
from capreward.judges.base import Usage
from capreward.missing import Missing, Reason
from capreward.records import Rollout

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Score:
    """A component's verdict on one rollout."""

    value: float
    """In [0, 1], higher is better. NaN is read as Missing(Reason.NAN)."""
    why: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What the value rests on (verdicts, matches, answers), as JSON-ready data."""


@runtime_checkable
class Component(Protocol):
    """One axis of the reward: the one thing a user writes."""

    name: str

    async def score(self, rollouts: Sequence[Rollout]) -> Sequence[Score | Missing]:
        """One score a rollout, in the same order."""
        ...


@runtime_checkable
class Gate(Protocol):
    """Changes the scores of one component before they are normalised: multiplies each by a factor in [0, 1]."""

    target: str
    """Name of the component whose scores it changes."""
    reads: tuple[str, ...]
    """Components whose scores it needs. With none, it runs before any judge, and what it decides
    (a factor of 0, or a missing one) is not asked."""

    def factors(self, rollouts: Sequence[Rollout], values: Mapping[str, Float]) -> Sequence[Score | Missing]:
        """One factor a rollout, in the same order.

        Args:
            rollouts: B rollouts.
            values: scores of the components in `reads`, [B] each, as the gates before this one left them; NaN = missing.
        """
        ...


def multiply(values: Float, factors: Float, final: NDArray[np.bool_]) -> None:
    """A gate's factors into its component's scores, in place.

    A factor of 0 makes a score 0 whatever it was and whatever comes after it, a missing factor makes it missing.

    Args:
        values: scores of the component, [B]; NaN = missing.
        factors: in [0, 1], [B]; NaN = missing.
        final: scores that stay as they are, [B]; those that become 0 here are added.
    """
    values[~final] *= factors[~final]
    zero = ~final & (factors == 0)
    values[zero] = 0.0
    final |= zero


def in_order(gates: Sequence[Gate]) -> list[Gate]:
    """Those that read no other component first, then the others, both in their order."""
    return sorted(gates, key=lambda gate: bool(gate.reads))


class Recorder(Protocol):
    """Keeps what a suite scores (`capreward.ledger.LedgerWriter`)."""

    def write(self, suite: Any, table: ScoreTable, rollouts: Sequence[Rollout]) -> None:
        """Add the rollouts of a table."""
        ...


ScoreMethod = Callable[[Any, Sequence[Rollout]], Awaitable[Sequence[Score | Missing]]]

EMPTY = Score(0.0, "empty caption")


def scores_empty_as_zero(score: ScoreMethod) -> Any:
    """Decorator of a component's `score`: a caption without a letter or digit gets 0, the rest is passed on.

    A policy must not be able to trade a bad score for a missing one by saying nothing.
    """

    @wraps(score)
    async def wrapped(self: Any, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        return await fill(rollouts, [EMPTY if r.is_empty else None for r in rollouts], lambda rest: score(self, rest))

    return wrapped


async def fill(
    rollouts: Sequence[Rollout],
    known: Sequence[Score | Missing | None],
    score: Callable[[Sequence[Rollout]], Awaitable[Sequence[Score | Missing]]],
) -> list[Score | Missing]:
    """The known scores, and `score`'s for the rollouts where None stands; `score` is not called without any.

    Raises:
        ComponentError: `score` answered with the wrong number of scores.
    """
    rest = [rollout for rollout, verdict in zip(rollouts, known, strict=True) if verdict is None]
    scored = list(await score(rest)) if rest else []
    if len(scored) != len(rest):
        raise ComponentError(
            f"got {len(scored)} scores for {len(rest)} rollouts, expected one for each, in their order"
        )
    answers = iter(scored)
    return [next(answers) if verdict is None else verdict for verdict in known]


async def score_component(
    name: str,
    component: Component,
    rollouts: Sequence[Rollout],
    known: Sequence[Score | Missing | None] | None = None,
) -> list[Score | Missing]:
    """One component's scores, checked.

    Args:
        name: what errors call the component.
        known: scores settled without it, one or None a rollout; empty captions are settled as 0 in any case.

    Raises:
        ComponentError: it raised, or answered with the wrong number of scores or a score outside [0, 1].
    """
    settled = [
        verdict if verdict is not None else EMPTY if rollout.is_empty else None
        for rollout, verdict in zip(rollouts, known or [None] * len(rollouts), strict=True)
    ]
    try:
        scores = await fill(rollouts, settled, component.score)
    except InputError as error:
        raise InputError(f"component {name!r}: {error}") from error
    except Exception as error:
        raise ComponentError(f"component {name!r}: {type(error).__name__}: {error}") from error
    return [checked(score, f"component {name!r}", rollout) for score, rollout in zip(scores, rollouts, strict=True)]


def checked(score: object, source: str, rollout: Rollout) -> Score | Missing:
    """`score` if it is a Score in [0, 1] or Missing; NaN becomes Missing.

    Raises:
        ComponentError: anything else; names the source and the rollout.
    """
    if isinstance(score, Missing):
        return score
    if not isinstance(score, Score):
        raise ComponentError(
            f"{source}, item {rollout.item.id!r}: got {score!r}, expected a capreward.Score or capreward.Missing"
        )
    try:
        value = float(score.value)
    except (TypeError, ValueError):
        value = None
    if value is None or isinstance(score.value, str | bytes):
        raise ComponentError(
            f"{source}, item {rollout.item.id!r}: got score {score.value!r}, expected a number in [0, 1]"
        )
    if math.isnan(value):
        return Missing(Reason.NAN, score.why or "the component answered NaN")
    if not 0.0 <= value <= 1.0:
        raise ComponentError(
            f"{source}, item {rollout.item.id!r}: got score {score.value}, expected a number in [0, 1], or Missing"
        )
    return score


@dataclass(frozen=True)
class ScoreTable:
    """The scores of B rollouts on K components, before and after the gates."""

    names: tuple[str, ...]
    """Components, [K]."""
    ids: tuple[str, ...]
    """Rollouts, [B]."""
    groups: NDArray[np.str_]
    """Group of each rollout, [B]."""
    raw: Float
    """What the components said, [B, K]; NaN where there is no score."""
    values: Float
    """`raw` after the gates, [B, K]; NaN = missing. Advantages are made of this."""
    weights: Float
    """Of each component, [K]; they act after normalisation."""
    scores: tuple[tuple[Score | Missing, ...], ...]
    """What stands behind `raw`: value, why and evidence, or why it is missing; K tuples of B."""
    gated: Mapping[tuple[int, int], str]
    """(rollout, component) -> why a gate changed that cell."""
    missing: Mapping[tuple[int, int], Missing]
    """(rollout, component) -> why that cell of `values` is NaN."""
    usage: tuple[tuple[str, Usage], ...] = ()
    """Each judge's name, and what it did while these were scored (for others too, if they asked it meanwhile)."""

    def __len__(self) -> int:
        return len(self.ids)

    def advantages(
        self, estimator: str | advantage.Estimator = "gdpo", weights: Mapping[str, float] | None = None, **options: Any
    ) -> Float:
        """Advantage of each rollout, [B], float64.

        Args:
            estimator: a name in `capreward.advantage.ESTIMATORS`, or a function of the same signature.
            weights: by component; the table's own when left out. A component that is not named keeps its own.
            options: passed to the estimator, such as `eps` or `whiten`.

        Raises:
            InputError: an unknown estimator or component, or weights that are all zero.
            ValueError, TypeError: options that the estimator refuses or does not have.
        """
        w = self.weights if weights is None else weights_of(self.names, weights, self.weights)
        return np.asarray(estimator_of(estimator)(self.values, self.groups, w, **options))

    def total(self) -> Float:
        """Weighted mean of the scores present, [B], in [0, 1]; NaN where there is none. For reading, not for training."""
        present = ~np.isnan(self.values)
        weight: Float = present @ self.weights
        weighted: Float = np.where(present, self.values, 0.0) @ self.weights
        return np.asarray(np.divide(weighted, weight, out=np.full(len(self), np.nan), where=weight > 0))

    def missing_by_reason(self) -> dict[str, Counter[Reason]]:
        """How often each component's value is missing, by reason; every component is a key."""
        counts: dict[str, Counter[Reason]] = {name: Counter() for name in self.names}
        for (_, column), cell in self.missing.items():
            counts[self.names[column]][cell.reason] += 1
        return counts

    def diagnostics(self) -> dict[str, dict[str, float]]:
        """What to log of each component.

        Returns:
            By component: `raw` (mean over what the component was asked: without the captions that a gate had already ruled
            out, unless `spare=False`) and `value` (mean after the gates, over what is present), NaN with nothing; `missing`
            and `gated` (shares of rollouts); `varies` (share of the groups in which it takes more
            than one value: elsewhere it teaches nothing).

            What decides between GRPO and GDPO: `spread` (`advantage.spread`: how far it varies within groups, in units of a
            score); `grpo` and `gdpo` (`advantage.follows`: correlation of the score with that estimator's advantage, under the
            table's weights). Where `grpo` and `gdpo` differ little, GDPO will change little. A component whose weight times
            `spread` is small beside the others' is one that GRPO does not follow. A weight of 0 changes what the estimators
            do, not what is measured. NaN: `spread` where no group has two scores, the others where nothing varies.
        """
        varies = advantage.varies(self.values, self.groups)
        spread = advantage.spread(self.values, self.groups)
        grpo, gdpo = (advantage.follows(self.advantages(name), self.values, self.groups) for name in ("grpo", "gdpo"))
        result = {}
        for k, name in enumerate(self.names):
            result[name] = {
                "raw": _mean(self.raw[:, k]),
                "value": _mean(self.values[:, k]),
                "missing": float(np.isnan(self.values[:, k]).mean()) if len(self) else 0.0,
                "gated": sum(column == k for _, column in self.gated) / max(len(self), 1),
                "varies": float(varies[:, k].mean()) if len(varies) else 0.0,
                "spread": float(spread[k]),
                "grpo": float(grpo[k]),
                "gdpo": float(gdpo[k]),
            }
        return result

    def metrics(self) -> dict[str, float]:
        """What a trainer logs of a batch, flat.

        Returns:
            Of each component NAME/raw, value, missing, gated, varies, spread, grpo and gdpo (see `diagnostics`), and
            NAME/missing_REASON for the reasons that occur. NAME/advantage_share: ``mean |w_k z_k|`` over the sum of this over
            all components, z_k normalised as in GDPO: how much of what GDPO would teach comes from the component, in [0, 1];
            all are 0 if none varies.
            `total`, the mean of `total()`. NaN where there is nothing to take a mean of.
        """
        result = {f"{name}/{key}": value for name, row in self.diagnostics().items() for key, value in row.items()}
        for name, counts in self.missing_by_reason().items():
            result |= {f"{name}/missing_{reason}": count / len(self) for reason, count in counts.items()}
        taught = [
            float(weight * np.abs(advantage.gdpo(column[:, None], self.groups, whiten=False)).mean())
            for weight, column in zip(self.weights, self.values.T, strict=True)
        ]
        for name, part in zip(self.names, taught, strict=True):
            result[f"{name}/advantage_share"] = part / (sum(taught) or 1.0)
        return {**result, "total": _mean(self.total())}

    def to_pandas(self) -> pd.DataFrame:
        """One row a rollout: id, group, `raw.NAME`, `value.NAME` and `why.NAME` of each component, and the total.

        Raises:
            MissingExtraError: the extra `report` is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_extra("to_pandas", "report", error) from error
        columns: dict[str, Any] = {"id": self.ids, "group": self.groups}
        for k, name in enumerate(self.names):
            columns[f"raw.{name}"] = self.raw[:, k]
            columns[f"value.{name}"] = self.values[:, k]
            columns[f"why.{name}"] = [self.why(row, k) for row in range(len(self))]
        return pd.DataFrame({**columns, "total": self.total()})

    def to_rows(self, rollouts: Sequence[Rollout], rows: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """What a file holds of each rollout, as JSON-ready data; None = missing.

        Args:
            rollouts: those that the table is of, in its order.
            rows: where `rollouts` stand in the table, if they are not all of it.

        Raises:
            ValueError: more or fewer rollouts than rows.
        """
        advantages = {name: self.advantages(name) for name in ("grpo", "gdpo")}
        total = self.total()
        for row, rollout in zip(range(len(self)) if rows is None else rows, rollouts, strict=True):
            yield {
                "id": self.ids[row],
                "group": rollout.group,
                "item": rollout.item.id,
                "caption": rollout.caption,
                "scores": {name: self.cell(row, k) for k, name in enumerate(self.names)},
                "total": _or_none(total[row]),
                "advantages": {name: float(column[row]) for name, column in advantages.items()},
            }

    def cell(self, row: int, column: int) -> dict[str, Any]:
        """One rollout's score on one component, and what stands behind it, as JSON-ready data; None = missing."""
        score = self.scores[column][row]
        missing = self.missing.get((row, column))
        return {
            "raw": _or_none(self.raw[row, column]),
            "value": _or_none(self.values[row, column]),
            "why": self.why(row, column),
            "missing": missing.reason if missing else None,
            "unread": missing.raw if missing else "",
            "gated": (row, column) in self.gated,
            "evidence": dict(score.evidence) if isinstance(score, Score) else {},
        }

    def why(self, row: int, column: int) -> str:
        """Why a cell of `values` is what it is, in a phrase."""
        if (row, column) in self.missing:
            cell = self.missing[row, column]
            return f"missing ({cell.reason}): {cell.detail}"
        score = self.scores[column][row]
        return self.gated.get((row, column)) or (score.why if isinstance(score, Score) else score.detail)


def estimator_of(estimator: str | advantage.Estimator) -> advantage.Estimator:
    """The estimator of a name in `capreward.advantage.ESTIMATORS`; a function is one already.

    Raises:
        InputError: an unknown name.
    """
    if not isinstance(estimator, str):
        return estimator
    if estimator not in advantage.ESTIMATORS:
        raise InputError(f"estimator: got {estimator!r}, expected one of {sorted(advantage.ESTIMATORS)}")
    return advantage.ESTIMATORS[estimator]


def weights_of(names: Sequence[str], weights: Mapping[str, float] | None, default: Float | None = None) -> Float:
    """Weights by name -> weights [K].

    Raises:
        InputError: a name that is no component, a weight that is not a finite number >= 0, or all of them zero.
    """
    if weights is not None and not isinstance(weights, Mapping):
        raise InputError(f"weights: got {weights!r}, expected numbers by component: {{name: weight}}")
    result = np.ones(len(names)) if default is None else default.copy()
    for name, weight in (weights or {}).items():
        if name not in names:
            raise InputError(f"weights: got component {name!r}, expected one of {list(names)}")
        if not (isinstance(weight, Real) and math.isfinite(weight) and weight >= 0):
            raise InputError(f"weights[{name!r}]: got {weight!r}, expected a finite number >= 0")
        result[names.index(name)] = weight
    if not result.any():
        raise InputError("weights: all are zero, so every advantage would be 0; give a component a weight")
    return result


def concatenated(tables: Sequence[ScoreTable]) -> ScoreTable:
    """The tables of one suite as one, their rollouts in order: for batches that are scored in parts.

    Without `usage`: parts that were scored side by side have counted each other's.

    Raises:
        InputError: no tables, or tables of different suites; a rollout id that occurs twice.
    """
    if not tables:
        raise InputError("tables: got none, expected at least one")
    first = tables[0]
    for table in tables:
        if table.names != first.names or not np.array_equal(table.weights, first.weights):
            raise InputError(
                f"tables: got components {list(table.names)} and {list(first.names)}, or other weights; expected one suite's"
            )
    ids = tuple(id for table in tables for id in table.ids)
    if len(set(ids)) < len(ids):
        raise InputError("tables: a rollout id occurs twice; give the rollouts ids of their own, or groups")
    starts = np.cumsum([0, *map(len, tables)]).tolist()
    return ScoreTable(
        names=first.names,
        ids=ids,
        groups=np.concatenate([table.groups for table in tables]),
        raw=np.concatenate([table.raw for table in tables]),
        values=np.concatenate([table.values for table in tables]),
        weights=first.weights,
        scores=tuple(tuple(score for table in tables for score in table.scores[k]) for k in range(len(first.names))),
        gated={
            (start + row, k): why for start, t in zip(starts, tables, strict=False) for (row, k), why in t.gated.items()
        },
        missing={
            (start + row, k): why
            for start, t in zip(starts, tables, strict=False)
            for (row, k), why in t.missing.items()
        },
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _mean(column: Float) -> float:
    present = column[~np.isnan(column)]
    return float(present.mean()) if len(present) else float("nan")
