"""What if? Other weights, gates and estimators on rollouts that were judged once: no judge is asked, nothing is scored again.

    ablation = Ablation(Ledger("run/ledger"))
    ablation.compare({"grpo": Variant(estimator="grpo"), "no mask": Variant(gates=[])})

Every frame is tidy: a row a number, `value`, with the bounds `low` and `high` of its bootstrap interval. Items are drawn with
replacement, since rollouts of one item go together, and each number is computed again from the drawn items' sums; the
bounds are percentiles. They are NaN with fewer than two items. A `value` is NaN where there is nothing to compute it from.

Advantages, and means of picks, nearer to each other than 1e-9 count as equal, and to 0 as 0: what is left of equal sums is
rounding noise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from capreward import advantage
from capreward.advantage import Estimator
from capreward.errors import InputError, missing_extra
from capreward.groups import Batch, Bool, Float, Groups
from capreward.intervals import interval
from capreward.ledger import Ledger, named
from capreward.scoring import Gate, estimator_of, in_order, multiply, weights_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("capreward")

TOLERANCE = 1e-9
"""Advantages, and means of picks, nearer to each other than this are equal."""
BLOCK = 1 << 22
"""Numbers of a bootstrap that are drawn at once."""
PER_GROUP = ("grpo", "dr_grpo", "mo_grpo", "dvao", "rvpo", "corr_grpo")
"""Estimators that look at no more than a group, so that one call does for all batches."""
BASES: Mapping[Estimator, Estimator] = {
    advantage.grpo: advantage.dr_grpo,
    advantage.dr_grpo: advantage.dr_grpo,
    advantage.gdpo: advantage.mo_grpo,
    advantage.mo_grpo: advantage.mo_grpo,
}
"""Estimators whose advantage is a sum over components, and what the sum is of: they scale it by group or by batch."""
SUMS = tuple(name for name, estimator in advantage.ESTIMATORS.items() if estimator in BASES)
"""Their names."""


@dataclass(frozen=True, eq=False)
class Variant:
    """What to compute otherwise than it was recorded; with no argument, as it was, by GDPO."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """By component; one that is not named keeps what its suite gave it."""
    scale: Mapping[str, float] = field(default_factory=dict)
    """Factors on the weights, by component: `{"fluency": 2}` doubles it in every suite."""
    drop: Sequence[str] = ()
    """Components that are left out of the advantage; gates still read them."""
    gates: Sequence[Gate] | None = None
    """In the place of the recorded ones: `LengthMask`, `LinearLengthPenalty`, `Condition`, or any gate with their `of`."""
    estimator: str | Estimator = "gdpo"
    """A name in `capreward.advantage.ESTIMATORS`, or a function of the same signature."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Passed to the estimator, such as `eps`."""


RECORDED = Variant()


@dataclass(frozen=True)
class _Suite:
    """What one of the ledger's suites scored with."""

    names: tuple[str, ...]
    columns: list[int]
    """Where its components stand among the ledger's."""
    weights: Float
    gates: Sequence[Mapping[str, Any]]
    count: str


class Ablation:
    """Answers of a ledger, from its numbers alone.

    Each suite's rollouts are computed with its own components and weights, and each of its batches by itself. A group is the
    rollouts that one suite scored of a group in a batch; for the intervals it belongs to the item of its first rollout.

    Args:
        ledger: at least one rollout.
        resamples: draws of a bootstrap interval; 0 for none.
        level: its confidence, in (0, 1).
        seed: of the draws; every frame draws the same items.

    Raises:
        InputError: an empty ledger, or settings out of range.
        MissingExtraError: without the extra `data`; the frames need `report`.
    """

    def __init__(self, ledger: Ledger, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> None:
        if resamples < 0:
            raise InputError(f"resamples: got {resamples}, expected a number >= 0; 0 for no intervals")
        if not 0 < level < 1:
            raise InputError(f"level: got {level}, expected a confidence in (0, 1), such as 0.95")
        if seed < 0:
            raise InputError(f"seed: got {seed}, expected a number >= 0")
        self.ledger, self.resamples, self.level, self.seed = ledger, resamples, level, seed
        rows = ledger.rows()
        self.names = rows.names
        self.weights = dict(zip(rows.names, rows.weights.tolist(), strict=True))
        """Of the components, as the last suite had them."""
        self._suites = [_suite(self.names, suite) for suite in ledger.suites]
        block = rows.batch * len(self._suites) + rows.suite
        self._order = np.lexsort((rows.group, block))  # every group one run, every block too
        self._raw, self._values = rows.raw[self._order], rows.values[self._order]
        self._ratio, self._length = rows.ratio[self._order], rows.length[self._order].astype(np.float64)
        self._decided, self._suite = rows.decided[self._order], rows.suite[self._order]
        block, group = block[self._order], rows.group[self._order]
        self._blocks = np.flatnonzero(np.diff(block, prepend=-1))
        self._group = np.cumsum((np.diff(block, prepend=-1) != 0) | (np.diff(group, prepend=-1) != 0))
        self._groups = Groups.of(self._group)
        self._items = Groups.of(rows.item[self._order][self._groups.starts])
        self._cache: WeakKeyDictionary[Variant, Float] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._group)

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self._groups.starts)

    @property
    def items(self) -> int:
        """How many there are."""
        return len(self._items.starts)

    def missing(self) -> dict[str, int]:
        """Recorded scores that are missing, by component; where a suite has no such component none is."""
        return {
            name: sum(
                int(np.isnan(self._values[self._suite == number, k]).sum())
                for number, suite in enumerate(self._suites)
                if name in suite.names
            )
            for k, name in enumerate(self.names)
        }

    def can_do_without(self, name: str) -> bool:
        """Whether every suite has another component with a weight."""
        return all(
            any(weight and other != name for other, weight in zip(suite.names, suite.weights, strict=True))
            for suite in self._suites
        )

    def values(self, variant: Variant = RECORDED) -> Float:
        """Scores after the variant's gates, [N, K], in the ledger's order; NaN = missing, or not a component of its suite."""
        return self._unsorted(self._gated(variant))

    def advantages(self, variant: Variant = RECORDED) -> Float:
        """Advantages, [N], in the ledger's order.

        To the bit what `suite.score(...).advantages(...)` gave for each batch; with other gates what it would have given with
        `spare=False`, but for cells that were never asked (`not_asked`). Estimators that look at more than a group are run
        batch by batch.

        Raises:
            InputError: a component, estimator or gate that cannot be used here, a suite left without any weight, or a
                function that gives no finite number for each rollout.
            ValueError, TypeError: options that the estimator refuses or does not have.
        """
        return self._unsorted(self._advantages(variant))

    def not_asked(self, variant: Variant = RECORDED) -> dict[str, int]:
        """Scores, by component, that the variant's gates let through and that no judge was asked for.

        A recorded gate had decided them, and `RewardSuite(spare=True)` saves such calls. They count as missing. A ledger to
        ablate gates on is written with `spare=False`. Counted are the cells without a raw score that a gate had set to 0, or
        that a gate on lengths had made missing for want of a reference; whether a judge was asked in vain cannot be told.
        """
        if variant.gates is None:
            return dict.fromkeys(self.names, 0)
        spared = np.isnan(self._raw) & ((self._values == 0) | self._without_reference())
        asked = self._replayed(np.where(spared, 1.0, self._raw), variant.gates)
        lost = np.isnan(self._gated(variant)) & ~np.isnan(asked)
        return dict(zip(self.names, lost.sum(axis=0).tolist(), strict=True))

    def compare(self, variants: Mapping[str, Variant], baseline: Variant = RECORDED) -> pd.DataFrame:
        """How far each variant's advantages are from the baseline's.

        Returns:
            `variant`, `measure`, `value`, `low`, `high`, and `not_asked`, the variant's total. Measures:
            `rank_correlation`: mean of Spearman's rho over the groups in which both advantages vary, ties at their mean rank.
            `sign_flips`: rollouts whose advantages have opposite signs, over those where at least one is not 0.
            `mean_change`: mean of |A - A'| over all rollouts.
        """
        self._need(variants)
        before = self._advantages(baseline)
        places, old = self._levels(before)[0], _signs(before)
        sums = np.zeros((self.groups, len(variants), 6))
        for v, variant in enumerate(variants.values()):
            after = self._advantages(variant)
            rho, defined = self._correlated(places, self._levels(after)[0])
            signs = _signs(after)
            rows = (signs * old < 0, (signs != 0) | (old != 0), np.abs(after - before), np.ones(len(self)))
            sums[:, v] = np.stack([rho, defined, *(self._groups.sum(row) for row in rows)], axis=1)
        measures = ("rank_correlation", "sign_flips", "mean_change")
        lost = [sum(self.not_asked(variant).values()) for variant in variants.values()]
        return self._frame(
            {
                "variant": [name for name in variants for _ in measures],
                "measure": [*measures] * len(variants),
                "not_asked": [count for count in lost for _ in measures],
            },
            sums,
            lambda s: _ratio(s[..., 0::2], s[..., 1::2]).reshape(len(s), -1),
        )

    def contributions(self, variant: Variant = RECORDED) -> pd.DataFrame:
        """Effective weight of each component: ``cov(part_k, A) / var(A)`` over all rollouts, where A is the sum of the parts.

        The shares add up to 1; a negative one works against the others. Every part adds up to 0 in its group, so that the
        covariance is the mean of ``part_k A``. NaN if all advantages are 0.

        Returns:
            `component`, `value`, `low`, `high`.

        Raises:
            InputError: an estimator that is no sum over components: not one of grpo, dr_grpo, gdpo, mo_grpo.
        """
        estimator = estimator_of(variant.estimator)
        if estimator not in BASES:
            raise InputError(
                f"estimator: got {variant.estimator!r}, whose advantage is no sum over components; expected one of {sorted(SUMS)}"
            )
        base = BASES[estimator]
        options = {} if base is advantage.dr_grpo else {key: v for key, v in variant.options.items() if key == "eps"}
        a, values = self._advantages(variant), self._gated(variant)
        parts = np.zeros((len(self), len(self.names)))
        for rows, suite in self._by_suite():
            columns, weights = self._weighted(suite, variant)
            for k, weight in zip(columns, weights.tolist(), strict=True):
                parts[rows, k] = weight * base(values[rows][:, [k]], self._group[rows], **options)
        whole = parts.sum(axis=1)
        scale = np.divide(
            a, whole, out=np.zeros(len(a)), where=whole != 0
        )  # where it is 0, so is A, and any part of it
        products = np.stack([self._groups.sum(part * scale * a) for part in parts.T], axis=1)
        return self._frame({"component": self.names}, products, lambda s: _ratio(s, s.sum(axis=1, keepdims=True)))

    def conflicts(self, variant: Variant = RECORDED) -> pd.DataFrame:
        """Correlation of every two components within groups: below 0, raising one goes with lowering the other.

        ``sum xy / sqrt(sum x^2 sum y^2)`` over the rollouts that have both scores, x and y less their group's mean over these.
        NaN where either varies in no group.

        Returns:
            `component`, `other` (all K x K pairs), `value`, `low`, `high`.
        """
        values, count = self._gated(variant), len(self.names)
        sums = np.zeros((self.groups, count, count, 3))
        for k in range(count):
            for other in range(k, count):
                sums[:, k, other] = self._products(values[:, k], values[:, other])
                sums[:, other, k] = sums[:, k, other]
        return self._frame(
            {"component": [name for name in self.names for _ in self.names], "other": [*self.names] * count},
            sums,
            lambda s: _correlation(s).reshape(len(s), -1),
        )

    def variation(self, variant: Variant = RECORDED) -> pd.DataFrame:
        """Share of groups in which a component takes more than one value: elsewhere it teaches nothing.

        Over all groups of the suites that have the component.

        Returns:
            `component`, `value`, `low`, `high`.
        """
        varies = advantage.varies(self._gated(variant), self._group)
        suite = self._suite[self._groups.starts]
        present = np.array([[name in s.names for name in self.names] for s in self._suites])[suite]
        sums = np.stack([varies, present], axis=-1).astype(np.float64)
        return self._frame({"component": self.names}, sums, lambda s: _ratio(s[..., 0], s[..., 1]))

    def collapse(
        self, estimators: Sequence[str | Estimator] = ("grpo", "gdpo"), variant: Variant = RECORDED
    ) -> pd.DataFrame:
        """How many advantages an estimator tells apart: means over the groups of at least two rollouts.

        Returns:
            `estimator`, `measure`, `value`, `low`, `high`. Measures: `levels`, the number of distinct advantages in a group;
            `relative`, that over the group's size.
        """
        sizes, sums = self._groups.sizes, np.zeros((self.groups, len(estimators), 3))
        several = sizes > 1
        for e, estimator in enumerate(estimators):
            _, levels = self._levels(self._advantages(replace(variant, estimator=estimator, options={})))
            sums[:, e] = np.stack([levels, levels / sizes, np.ones(len(sizes))], axis=1) * several[:, None]
        names = [estimator if isinstance(estimator, str) else named(estimator) for estimator in estimators]
        return self._frame(
            {"estimator": [name for name in names for _ in range(2)], "measure": ["levels", "relative"] * len(names)},
            sums,
            lambda s: _ratio(s[..., :2], s[..., 2:]).reshape(len(s), -1),
        )

    def best_of(self, variant: Variant = RECORDED) -> pd.DataFrame:
        """What the picks score: in each group the rollout of the largest advantage, or the mean of those that share it.

        Scores are those recorded, whatever the variant's gates, so that variants can be compared. Means are over the
        groups in which a pick has a score on the component.

        Returns:
            `component`, `measure`, `value`, `low`, `high`. Measures: `best`, the picks' mean; `mean`, that of the groups'
            means; `gain`, their difference.
        """
        measures = ("best", "mean", "gain")
        sums = self._picked(variant)

        def means(s: Float) -> Float:
            both = _ratio(s[..., :2], s[..., 2:])
            return np.concatenate([both, both[..., :1] - both[..., 1:]], axis=-1).reshape(len(s), -1)

        return self._frame(
            {
                "component": [name for name in self.names for _ in measures],
                "measure": [*measures] * len(self.names),
            },
            sums,
            means,
        )

    def pareto(self, variants: Mapping[str, Variant]) -> pd.DataFrame:
        """What each variant's picks score (`best_of`), and which variants are dominated.

        A variant is dominated by another whose picks score at least as well on every component and better on one.

        Returns:
            `variant`, `component`, `value`, `low`, `high`; `dominated_by`, the variants that do so, joined by ", ", empty on the
            front; `dominated`, the share of the bootstrap's draws in which some variant does so.
        """
        self._need(variants)
        sums = np.stack([self._picked(variant)[..., [0, 2]] for variant in variants.values()], axis=1)
        per_item = self._per_item(sums)
        scores, drawn = (_ratio(s[..., 0], s[..., 1]) for s in (per_item.sum(axis=0)[None], self._drawn(per_item)))
        names, width = list(variants), len(self.names)
        frame = self._table(
            {"variant": [name for name in names for _ in self.names], "component": [*self.names] * len(names)},
            scores.reshape(-1),
            drawn.reshape(len(drawn), len(names) * width),
        )
        by = [", ".join(names[other] for other in np.flatnonzero(row)) for row in _dominated(scores)[0]]
        share = _dominated(drawn).any(axis=2).mean(axis=0) if len(drawn) else np.full(len(names), np.nan)
        return frame.assign(dominated_by=np.repeat(by, width), dominated=np.repeat(share, width))

    def length_bias(self, variant: Variant = RECORDED) -> pd.DataFrame:
        """Correlation with the caption's length within groups, as in `conflicts`, of each component and the advantage.

        Returns:
            `component` (the last row is "advantage"), `value`, `low`, `high`.
        """
        columns = [*self._gated(variant).T, self._advantages(variant)]
        sums = np.stack([self._products(column, self._length) for column in columns], axis=1)
        return self._frame({"component": [*self.names, "advantage"]}, sums, _correlation)

    def _advantages(self, variant: Variant) -> Float:
        """Advantages, [N], in our order."""
        if variant in self._cache:
            return self._cache[variant]
        estimator = estimator_of(variant.estimator)
        values, result = self._gated(variant), np.zeros(len(self))
        per_group = estimator in (advantage.ESTIMATORS[name] for name in PER_GROUP)
        weighted = {id(suite): self._weighted(suite, variant) for _, suite in self._by_suite()}
        for rows, suite in self._by_suite() if per_group else self._by_batch():
            columns, weights = weighted[id(suite)]
            given = estimator(values[rows][:, columns], self._group[rows], weights, **variant.options)
            given = np.asarray(given, np.float64)
            if given.shape != self._group[rows].shape or not np.isfinite(given).all():
                raise InputError(
                    f"estimator {variant.estimator!r}: got an array of shape {given.shape}, expected a finite advantage for "
                    f"each of {len(self._group[rows])} rollouts"
                )
            result[rows] = given
        self._cache[variant] = result
        return result

    def _gated(self, variant: Variant) -> Float:
        """Scores after the variant's gates, [N, K], in our order."""
        return self._values if variant.gates is None else self._replayed(self._raw, variant.gates)

    def _replayed(self, raw: Float, gates: Sequence[Gate]) -> Float:
        """Scores after the gates, [N, K], as `RewardSuite` computes them."""
        values = raw.copy()
        for gate in gates:
            self._check(gate)
        for rows, suite in self._by_suite():
            mine, final = values[rows], np.repeat(self._decided[rows, None], len(self.names), axis=1)
            for gate in in_order([gate for gate in gates if gate.target in suite.names]):
                k = self.names.index(gate.target)
                if gate.reads:
                    factors = _of(gate, *(mine[:, self.names.index(name)].copy() for name in gate.reads))
                else:
                    factors = _of(gate, self._ratio[rows])
                multiply(mine[:, k], factors, final[:, k])
            values[rows] = mine
        return values

    def _check(self, gate: Gate) -> None:
        name = f"gate {type(gate).__name__}({gate.target!r})"
        if not callable(getattr(gate, "of", None)):
            raise InputError(
                f"{name}: has no method `of` (factors [B] of length ratios, or of the scores that it reads), so it cannot be "
                "replayed without captions; use LengthMask, LinearLengthPenalty, Condition, or give it one"
            )
        if gate.target not in self.names:
            raise InputError(f"{name}: got component {gate.target!r}, expected one of {list(self.names)}")
        for suite in (suite for suite in self._suites if gate.target in suite.names):
            for read in gate.reads:
                if read not in suite.names:
                    raise InputError(f"{name}: reads {read!r}, which a suite does not have: {list(suite.names)}")
            count = named(getattr(gate, "count", None))
            if not gate.reads and count != suite.count:
                raise InputError(
                    f"{name}: counts lengths by {count}, but the ledger holds those counted by {suite.count}; give the gate the "
                    "same `count`, or score the captions again"
                )

    def _weighted(self, suite: _Suite, variant: Variant) -> tuple[list[int], Float]:
        """A suite's columns that the variant keeps, and their weights."""
        weights_of(self.names, variant.weights)
        for what, given in (("scale", variant.scale), ("drop", variant.drop)):
            if unknown := [name for name in given if name not in self.names]:
                raise InputError(f"{what}: got component {unknown[0]!r}, expected one of {list(self.names)}")
        for name, factor in variant.scale.items():
            if not (isinstance(factor, Real) and math.isfinite(factor) and factor >= 0):
                raise InputError(f"scale[{name!r}]: got {factor!r}, expected a finite number >= 0")
        columns, weights = [], []
        for name, column, weight in zip(suite.names, suite.columns, suite.weights.tolist(), strict=True):
            if name not in variant.drop:
                columns.append(column)
                weights.append(variant.weights.get(name, weight) * variant.scale.get(name, 1.0))
        if not any(weights):
            raise InputError(
                f"variant: leaves no component with a weight of a suite with {list(suite.names)}; keep one, or give one a weight"
            )
        return columns, np.array(weights)

    def _by_suite(self) -> Iterator[tuple[Any, _Suite]]:
        """The rows of each suite that has any: a slice if they are all, to spare a copy."""
        for number, suite in enumerate(self._suites):
            rows = self._suite == number
            if rows.any():
                yield (slice(None) if rows.all() else np.flatnonzero(rows)), suite

    def _by_batch(self) -> Iterator[tuple[Any, _Suite]]:
        for start, stop in zip(self._blocks, [*self._blocks[1:], len(self)], strict=True):
            yield slice(start, stop), self._suites[self._suite[start]]

    def _without_reference(self) -> Bool:
        """Cells that a recorded gate on lengths made missing, [N, K]."""
        found = np.zeros(self._raw.shape, bool)
        for rows, suite in self._by_suite():
            for gate in suite.gates:
                if "count" in gate:
                    found[rows, self.names.index(gate["target"])] = np.isnan(self._ratio[rows])
        return found

    def _levels(self, advantages: Float) -> tuple[Float, Float]:
        """Place of each advantage in its group's order, ties at their mean, [N]; distinct ones in each group."""
        order = np.empty(len(advantages), np.int64)
        for size in np.unique(self._groups.sizes):  # all groups of a size at once: faster than one sort of all rows
            rows = self._groups.starts[self._groups.sizes == size][:, None] + np.arange(size)
            order[rows] = np.take_along_axis(rows, np.argsort(advantages[rows], axis=1), axis=1)
        new = (np.diff(advantages[order], prepend=-np.inf) > TOLERANCE) | (np.diff(self._group, prepend=-1) != 0)
        starts = np.flatnonzero(new)
        sizes = np.diff(starts, append=len(new))
        places = np.empty(len(advantages))
        places[order] = np.repeat(starts + (sizes - 1) / 2, sizes)
        return places - self._groups.spread(self._groups.starts + (self._groups.sizes - 1) / 2), self._groups.sum(new)

    def _correlated(self, a: Float, b: Float) -> tuple[Float, Bool]:
        """Correlation of centred numbers in each group, 0 where either does not vary; where both do."""
        xy, xx, yy = self._groups.sum(a * b), self._groups.sum(a * a), self._groups.sum(b * b)
        defined = (xx > 0) & (yy > 0)
        return np.divide(xy, np.sqrt(xx * yy), out=np.zeros(len(xy)), where=defined), defined

    def _products(self, x: Float, y: Float) -> Float:
        """Sums of xy, x^2 and y^2 in each group, over the rows that have both, centred on these, [groups, 3]."""
        lacking = np.isnan(x) | np.isnan(y)
        (x, _), (y, _) = Batch(np.where(lacking[:, None], np.nan, np.stack([x, y], axis=1)), self._group).centred()
        return np.stack([self._groups.sum(product) for product in (x * y, x * x, y * y)], axis=1)

    def _picked(self, variant: Variant) -> Float:
        """Of each group and component: recorded score of the picks, mean of the group, 1; zeros without, [groups, K, 3]."""
        a = self._advantages(variant)
        top = a >= self._groups.spread(self._groups.max(a)) - TOLERANCE
        columns = []
        for column in self._values.T:
            present = ~np.isnan(column)
            score = np.where(present, column, 0.0)
            sums = [self._groups.sum(each) for each in (score * top, present & top, score, present)]
            picked = sums[1] > 0
            columns.append(np.stack([_ratio(*sums[:2]), _ratio(*sums[2:]), picked], axis=1) * picked[:, None])
            columns[-1][~picked] = 0.0
        return np.stack(columns, axis=1)

    def _frame(
        self, keys: Mapping[str, Sequence[Any]], sums: Float, statistic: Callable[[Float], Float]
    ) -> pd.DataFrame:
        """A frame of the numbers that a statistic makes of sums over items, [R, ...] -> [R, rows], with intervals."""
        per_item = self._per_item(sums)
        value, drawn = statistic(per_item.sum(axis=0)[None])[0], self._drawn(per_item)
        return self._table(keys, value, statistic(drawn) if len(drawn) else np.empty((0, len(value))))

    def _per_item(self, per_group: Float) -> Float:
        """Sums over the groups of each item, [groups, ...] -> [items, ...]."""
        return np.asarray(np.add.reduceat(self._items.gather(per_group), self._items.starts, axis=0))

    def _drawn(self, per_item: Float) -> Float:
        """Sums over items drawn with replacement, [resamples, ...]; none with fewer than two items."""
        items = len(per_item)
        flat = per_item.reshape(items, -1)
        draws = self.resamples if items > 1 else 0
        result = np.zeros((draws, flat.shape[1]))
        chance = np.random.default_rng(self.seed)
        step = max(1, BLOCK // items)
        for start in range(0, draws, step):
            drawn = [chance.integers(0, items, items) for _ in range(min(step, draws - start))]
            counts = np.stack([np.bincount(each, minlength=items) for each in drawn])
            result[start : start + len(drawn)] = counts.astype(np.float64) @ flat
        return result.reshape(draws, *per_item.shape[1:])

    def _table(self, keys: Mapping[str, Sequence[Any]], value: Float, drawn: Float) -> pd.DataFrame:
        """A frame of numbers [rows] with the percentiles of what was drawn, [resamples, rows]."""
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_extra("An ablation's frames", "report", error) from error
        low, high = zip(*(interval(column, self.level) for column in drawn.T), strict=True)
        return pd.DataFrame({**keys, "value": value, "low": low, "high": high})

    def _need(self, variants: Mapping[str, Variant]) -> None:
        if not variants:
            raise InputError("variants: got none, expected at least one by its name: {name: Variant(...)}")

    def _unsorted(self, rows: Float) -> Float:
        result = np.empty_like(rows)
        result[self._order] = rows
        return result


def default_variants(ablation: Ablation, estimators: Sequence[str] = ("grpo",)) -> dict[str, Variant]:
    """Each estimator, each weight doubled, and without each component that every suite can spare."""
    variants = {name: Variant(estimator=name) for name in estimators}
    weighted = [name for name, weight in ablation.weights.items() if weight]
    variants |= {f"{name} x 2": Variant(scale={name: 2.0}) for name in weighted}
    return variants | {f"without {name}": Variant(drop=(name,)) for name in weighted if ablation.can_do_without(name)}


def _suite(names: Sequence[str], described: Mapping[str, Any]) -> _Suite:
    own = tuple(described["components"])
    return _Suite(
        names=own,
        columns=[names.index(name) for name in own],
        weights=np.array([described["weights"][name] for name in own]),
        gates=described["gates"],
        count=described["count"],
    )


def _of(gate: Any, *numbers: Float) -> Float:
    return np.asarray(gate.of(*numbers), np.float64)


def _signs(advantages: Float) -> Float:
    return np.where(np.abs(advantages) > TOLERANCE, np.sign(advantages), 0.0)


def _ratio(numerator: Float, denominator: Float) -> Float:
    """NaN where there is nothing to divide by."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.asarray(np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0))


def _correlation(sums: Float) -> Float:
    """Of sums of xy, x^2 and y^2, [..., 3] -> [...]."""
    return _ratio(sums[..., 0], np.sqrt(sums[..., 1] * sums[..., 2]))


def _dominated(scores: Float) -> Bool:
    """Whether a variant is dominated by another, [R, V, K] -> [R, V, V]; a missing score compares with nothing."""
    mine, other = scores[:, :, None], scores[:, None]
    return np.asarray(~(other < mine - TOLERANCE).any(axis=-1) & (other > mine + TOLERANCE).any(axis=-1))
