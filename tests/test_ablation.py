from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes import FakeComponent, FakeGate
from scipy import stats

from capreward import Condition, Item, LengthMask, Missing, Reason, RewardSuite, Rollout, ScoreTable, gdpo
from capreward.ablation import PER_GROUP, RECORDED, Ablation, Variant, default_variants
from capreward.advantage import ESTIMATORS
from capreward.components.gates import LinearLengthPenalty
from capreward.errors import InputError
from capreward.ledger import Ledger, LedgerWriter

DOWN = Missing(Reason.SERVER, "down")
NAMES = ("a", "b", "c")
MASK = (LengthMask("b", low=0.5, high=2.0), Condition("a", on="b", at_least=0.3))


def read(name: str) -> Callable[[Rollout], Any]:
    """A component's verdict, from the rollout's metadata; NaN is a judge that failed."""

    def verdict(rollout: Rollout) -> Any:
        score = rollout.metadata["scores"][name]
        return DOWN if math.isnan(score) else float(score)

    return verdict


def make_suite(folder: Path | None = None, names: Sequence[str] = NAMES, **options: Any) -> RewardSuite:
    settings: dict[str, Any] = {"weights": {"a": 2.0}, "gates": MASK, "spare": False, "max_length": 25}
    settings |= {} if "a" in names else {"weights": {}, "gates": ()}
    return RewardSuite(
        {name: FakeComponent(read(name), name) for name in names},
        ledger=LedgerWriter(folder) if folder else None,
        **{**settings, **options},
    )


def make_rollouts(items: int = 5, size: int = 6, seed: int = 0, missing: float = 0.1, **metadata: Any) -> list[Rollout]:
    """Groups of different sizes, interleaved; captions too short, too long, beyond the limit, empty; items without reference."""
    chance = np.random.default_rng(seed)
    made = []
    for n in range(items):
        item = Item(id=f"item {n}", references=() if n == 1 else ("word " * 8,))
        for _ in range(size + n % 3):
            scores = np.round(chance.random(len(NAMES)), 1)
            scores[chance.random(len(NAMES)) < missing] = np.nan
            words = chance.choice([0, 3, 5, 8, 12, 20, 30])
            given = dict(zip(NAMES, scores.tolist(), strict=True))
            made.append(Rollout(item=item, caption="word " * words, metadata={"scores": given, **metadata}))
    return [made[n] for n in chance.permutation(len(made))]


def ledger_of(folder: Path, *batches: list[Rollout], **options: Any) -> list[ScoreTable]:
    suite = make_suite(folder, **options)
    return [suite.score(batch) for batch in batches]


def simple(
    folder: Path,
    scores: Sequence[Sequence[Sequence[float]]],
    lengths: Sequence[int] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Ablation:
    """An ablation of groups of rollouts, an item each, [group][rollout][component], with components a, b, ... and no gates."""
    names = [chr(ord("a") + k) for k in range(len(scores[0][0]))]
    rollouts = [
        Rollout(
            item=Item(id=f"item {g}"),
            caption="word " * (lengths[n] if lengths else 1),
            metadata={"scores": dict(zip(names, row, strict=True))},
        )
        for g, group in enumerate(scores)
        for n, row in enumerate(group)
    ]
    make_suite(folder, names, weights=weights or {}, gates=(), max_length=None).score(rollouts)
    return Ablation(Ledger(folder), resamples=100)


def at(frame: pd.DataFrame, **keys: Any) -> float:
    for name, key in keys.items():
        frame = frame[frame[name] == key]
    assert len(frame) == 1, keys
    return float(frame["value"].iloc[0])


class TestAdvantages:
    """To the bit what a suite gives."""

    @pytest.mark.parametrize("name", sorted(ESTIMATORS))
    def test_as_recorded(self, tmp_path: Path, name: str) -> None:
        tables = ledger_of(tmp_path, *(make_rollouts(seed=seed) for seed in range(3)))
        given = Ablation(Ledger(tmp_path)).advantages(Variant(estimator=name))
        expected = np.concatenate([table.advantages(name) for table in tables])
        assert np.isnan(np.vstack([table.values for table in tables])).any()
        assert expected.any()
        np.testing.assert_array_equal(given, expected)

    def test_weights_scale_and_options(self, tmp_path: Path) -> None:
        tables = ledger_of(tmp_path, make_rollouts(), make_rollouts(seed=1))
        ablation = Ablation(Ledger(tmp_path))
        for variant, options in (
            (Variant(weights={"a": 0.5}), {"weights": {"a": 0.5}}),
            (Variant(scale={"a": 3.0, "b": 0.5}), {"weights": {"a": 6.0, "b": 0.5}}),
            (Variant(weights={"a": 1.0}, scale={"a": 3.0}), {"weights": {"a": 3.0}}),
            (Variant(drop=("a",)), {"weights": {"a": 0.0}}),
            (Variant(options={"eps": 0.1, "whiten": False}), {"eps": 0.1, "whiten": False}),
            (Variant(estimator=gdpo), {}),
        ):
            expected = np.concatenate([table.advantages("gdpo", **options) for table in tables])  # type: ignore[arg-type]
            np.testing.assert_array_equal(ablation.advantages(variant), expected)

    @pytest.mark.parametrize("estimator", ["gdpo", "grpo"])
    @pytest.mark.parametrize(
        "gates",
        [
            (),
            (LengthMask("b", low=0.1, high=1.2),),
            (LengthMask("a"), LengthMask("b", low=0.9, high=3)),
            (Condition("c", on="a", at_least=0.5), LinearLengthPenalty("a", start=0.5, end=2.0)),
            (Condition("b", on="a", at_least=0.2), Condition("c", on="b", at_least=0.4), LengthMask("a")),
            (LengthMask("b", low=0.9), LinearLengthPenalty("b"), Condition("b", on="c", at_least=0.1)),
        ],
        ids=lambda gates: "+".join(type(gate).__name__ for gate in gates) if isinstance(gates, tuple) else None,
    )
    def test_other_gates(self, tmp_path: Path, gates: Any, estimator: str) -> None:
        batches = [make_rollouts(seed=seed) for seed in range(3)]
        ledger_of(tmp_path, *batches)
        ablation = Ablation(Ledger(tmp_path))
        variant = Variant(gates=gates, estimator=estimator)
        tables = [make_suite(gates=gates).score(batch) for batch in batches]
        np.testing.assert_array_equal(ablation.values(variant), np.vstack([table.values for table in tables]))
        expected = np.concatenate([table.advantages(estimator) for table in tables])
        np.testing.assert_array_equal(ablation.advantages(variant), expected)

    def test_gates_that_spared_calls_and_are_as_tight(self, tmp_path: Path) -> None:
        batch = make_rollouts(missing=0)
        ledger_of(tmp_path, batch, spare=True)
        ablation = Ablation(Ledger(tmp_path))
        tighter = (LengthMask("b", low=0.9, high=1.6), MASK[1])
        variant = Variant(gates=tighter)
        np.testing.assert_array_equal(ablation.values(variant), make_suite(gates=tighter).score(batch).values)
        assert ablation.not_asked(variant) == {"a": 0, "b": 0, "c": 0}

    def test_several_suites(self, tmp_path: Path) -> None:
        first, second = make_rollouts(), make_rollouts(seed=1)
        suites = [
            make_suite(tmp_path),
            make_suite(tmp_path, ("c", "b"), weights={"c": 0.1, "b": 0.7}, gates=[LengthMask("b")]),
            make_suite(tmp_path, weights={"a": 0.3}),
        ]
        tables = [suite.score(batch) for suite, batch in zip(suites, (first, second, first), strict=True)]
        ablation = Ablation(Ledger(tmp_path))
        for name in ESTIMATORS:
            expected = np.concatenate([table.advantages(name) for table in tables])
            np.testing.assert_array_equal(ablation.advantages(Variant(estimator=name)), expected)
        variant = Variant(weights={"b": 3.0}, scale={"c": 2}, gates=[LengthMask("b", low=0.9)])
        again = [
            replace(table, values=make_suite(None, suite.names, gates=variant.gates).score(batch).values)
            for suite, table, batch in zip(suites, tables, (first, second, first), strict=True)
        ]
        weights = ({"b": 3.0, "c": 2.0}, {"b": 3.0, "c": 0.2}, {"b": 3.0, "c": 2.0})
        expected = np.concatenate([table.advantages("gdpo", w) for table, w in zip(again, weights, strict=True)])
        np.testing.assert_array_equal(ablation.advantages(variant), expected)

    def test_two_suites_in_one_step_are_two_batches(self, tmp_path: Path) -> None:
        batch = make_rollouts(step=7)
        tables = [make_suite(tmp_path, weights={"a": w}).score(batch) for w in (1.0, 2.0)]
        given = Ablation(Ledger(tmp_path))
        np.testing.assert_array_equal(given.advantages(), np.concatenate([table.advantages() for table in tables]))
        assert given.groups == 2 * len(set(tables[0].groups))

    def test_a_step_scored_in_parts_is_one_batch(self, tmp_path: Path) -> None:
        batch = sorted(make_rollouts(step=7), key=lambda rollout: rollout.item.id)
        cut = next(n for n, rollout in enumerate(batch) if rollout.item.id == "item 2")
        ledger_of(tmp_path, batch[:cut], batch[cut:])
        expected = make_suite().score(batch).advantages()
        np.testing.assert_array_equal(Ablation(Ledger(tmp_path)).advantages(), expected)

    def test_estimators_that_look_at_one_group_only(self) -> None:
        chance = np.random.default_rng(0)
        groups = np.repeat(np.arange(60), chance.integers(1, 9, 60))
        values = np.round(chance.random((len(groups), 3)), 1)
        values[chance.random(values.shape) < 0.1] = np.nan
        for name in PER_GROUP:
            parts = [
                ESTIMATORS[name](values[rows], groups[rows])
                for rows in (groups < 7, (groups >= 7) & (groups < 30), groups >= 30)
            ]
            np.testing.assert_array_equal(ESTIMATORS[name](values, groups), np.concatenate(parts))


class TestNotAsked:
    def test_a_looser_gate_lets_through_what_was_never_asked(self, tmp_path: Path) -> None:
        batch = make_rollouts(missing=0)
        (table,) = ledger_of(tmp_path, batch, spare=True)
        ratios = [len(rollout.caption.split()) / 8 for rollout in batch]
        free = [
            not rollout.item.references or not 0.5 <= ratio <= 2
            for rollout, ratio in zip(batch, ratios, strict=True)
            if 0 < ratio <= 25 / 8
        ]
        ablation = Ablation(Ledger(tmp_path))
        assert ablation.not_asked(Variant(gates=[])) == {"a": 0, "b": sum(free), "c": 0}
        assert sum(free) == sum(
            table.missing.get((row, 1), DOWN).reason is Reason.NO_REFERENCE for row in range(len(batch))
        ) + sum(math.isnan(table.raw[row, 1]) and table.values[row, 1] == 0 for row in range(len(batch)))
        wider = Variant(
            gates=[LengthMask("b", low=0.1, high=2.0)]
        )  # as before without a reference, and from 3 words on
        short = sum(bool(r.item.references) and 0.1 <= ratio < 0.5 for r, ratio in zip(batch, ratios, strict=True))
        assert ablation.not_asked(wider) == {"a": 0, "b": short, "c": 0}
        frame = ablation.compare({"free": Variant(gates=[]), "grpo": Variant(estimator="grpo")})
        assert frame["not_asked"].tolist() == [sum(free)] * 3 + [0] * 3

    def test_what_depends_on_it_counts_too(self, tmp_path: Path) -> None:
        batch = make_rollouts(missing=0)
        ledger_of(tmp_path, batch, spare=True, gates=[LengthMask("b")])
        lost = Ablation(Ledger(tmp_path)).not_asked(Variant(gates=[Condition("a", on="b", at_least=0.5)]))
        assert lost["a"] == lost["b"] > 0

    def test_failed_judges_are_not_counted(self, tmp_path: Path) -> None:
        ledger_of(tmp_path, make_rollouts(missing=0.5), gates=())
        ablation = Ablation(Ledger(tmp_path))
        assert sum(ablation.not_asked(Variant(gates=[])).values()) == 0
        assert sum(ablation.missing().values()) > 10

    def test_missing_counts_a_suites_own_components(self, tmp_path: Path) -> None:
        tables = ledger_of(tmp_path, make_rollouts()) + ledger_of(tmp_path, make_rollouts(), names=("c",))
        missing = [np.isnan(table.values).sum(axis=0).tolist() for table in tables]
        assert Ablation(Ledger(tmp_path)).missing() == {
            "a": missing[0][0],
            "b": missing[0][1],
            "c": missing[0][2] + missing[1][0],
        }


class TestErrors:
    @pytest.fixture
    def ablation(self, tmp_path: Path) -> Ablation:
        ledger_of(tmp_path, make_rollouts())
        ledger_of(tmp_path, make_rollouts(), names=("c",))
        return Ablation(Ledger(tmp_path))

    @pytest.mark.parametrize(
        ("variant", "said"),
        [
            ({"weights": {"d": 1}}, r"weights: got component 'd', expected one of \['a', 'b', 'c'\]"),
            ({"weights": {"a": -1}}, r"weights\['a'\]: got -1, expected a finite number >= 0"),
            ({"scale": {"d": 1}}, r"scale: got component 'd', expected one of"),
            ({"scale": {"a": math.nan}}, r"scale\['a'\]: got nan, expected a finite number >= 0"),
            ({"drop": ("d",)}, r"drop: got component 'd', expected one of"),
            ({"drop": ("c",)}, r"leaves no component with a weight of a suite with \['c'\]; keep one"),
            ({"estimator": "ppo"}, r"estimator: got 'ppo', expected one of \['corr_grpo'"),
            ({"estimator": lambda values, *_: values}, r"shape \(34, 3\), expected a finite advantage for each of 34"),
            ({"estimator": lambda values, *_: np.full(len(values), np.nan)}, "expected a finite advantage for each of 34"),
            ({"gates": [FakeGate("a", 1.0)]}, r"gate FakeGate\('a'\): has no method `of`"),
            ({"gates": [LengthMask("d")]}, r"gate LengthMask\('d'\): got component 'd', expected one of"),
            ({"gates": [LengthMask("a", count=len)]}, r"counts lengths by builtins.len, but .* capreward.records.count_words"),
            ({"gates": [Condition("c", on="a", at_least=0.5)]}, r"reads 'a', which a suite does not have: \['c'\]"),
        ],
    )  # fmt: skip
    def test_a_variant_that_cannot_be(self, ablation: Ablation, variant: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            ablation.advantages(Variant(**variant))

    def test_contributions_of_what_is_no_sum(self, ablation: Ablation) -> None:
        with pytest.raises(
            InputError, match=r"got 'rvpo', whose .* expected one of \['dr_grpo', 'gdpo', 'grpo', 'mo_grpo'\]"
        ):
            ablation.contributions(Variant(estimator="rvpo"))

    def test_no_variants(self, ablation: Ablation) -> None:
        for frame in (ablation.compare, ablation.pareto):
            with pytest.raises(InputError, match="variants: got none"):
                frame({})

    def test_settings(self, tmp_path: Path) -> None:
        ledger_of(tmp_path, make_rollouts())
        with pytest.raises(InputError, match=r"level: got 95, expected a confidence in \(0, 1\)"):
            Ablation(Ledger(tmp_path), level=95)
        with pytest.raises(InputError, match="resamples: got -1, expected a number >= 0"):
            Ablation(Ledger(tmp_path), resamples=-1)
        with pytest.raises(InputError, match="seed: got -1, expected a number >= 0"):
            Ablation(Ledger(tmp_path), seed=-1)


class TestByHand:
    def test_compare(self, tmp_path: Path) -> None:
        # group 0 varies in a alone, and group 1 in both, against each other: a wins by its weight, until b weighs more
        ablation = simple(tmp_path, [[[0.0, 0.5], [0.5, 0.5], [1.0, 0.5]], [[0.0, 1.0], [1.0, 0.0]]], weights={"a": 2})
        frame = ablation.compare(
            {"b": Variant(weights={"b": 4.0}), "same": RECORDED, "none of a": Variant(drop=("a",))}
        )
        assert at(frame, variant="b", measure="rank_correlation") == 0.0  # 1 and -1
        assert at(frame, variant="b", measure="sign_flips") == 0.5  # 2 of 4: the middle one is 0 in both
        assert at(frame, variant="none of a", measure="rank_correlation") == -1.0  # the other group no longer varies
        assert [
            at(frame, variant="same", measure=name) for name in ("rank_correlation", "sign_flips", "mean_change")
        ] == [1, 0, 0]
        change = np.abs(ablation.advantages() - ablation.advantages(Variant(weights={"b": 4.0}))).mean()
        assert at(frame, variant="b", measure="mean_change") == pytest.approx(change)

    def test_contributions(self, tmp_path: Path) -> None:
        # 3a + b: parts of -+1.5 and +-0.5, together -+1, so that b's share is 1.5 and -0.5
        ablation = simple(tmp_path, [[[0.0, 1.0], [1.0, 0.0]]], weights={"a": 3})
        for estimator in ("dr_grpo", "grpo", "gdpo", "mo_grpo"):
            frame = ablation.contributions(Variant(estimator=estimator))
            assert frame["value"].tolist() == pytest.approx([1.5, -0.5])

    def test_contributions_of_nothing(self, tmp_path: Path) -> None:
        ablation = simple(tmp_path, [[[0.5, 1.0], [0.5, 1.0]]])
        assert ablation.contributions()["value"].isna().all()

    def test_conflicts_and_variation(self, tmp_path: Path) -> None:
        nan = math.nan
        ablation = simple(
            tmp_path, [[[0.0, 1.0, 0.3], [1.0, 0.0, 0.3], [0.5, nan, 0.3]], [[0.5, 0.5, nan], [0.5, 0.7, nan]]]
        )
        frame = ablation.conflicts()
        assert len(frame) == 9
        # b's third score is missing, so a's mean is over two; in the second group only b varies
        assert (
            at(frame, component="a", other="b")
            == at(frame, component="b", other="a")
            == pytest.approx(-0.5 / math.sqrt(0.5 * 0.52))
        )
        assert at(frame, component="a", other="a") == pytest.approx(1.0)
        assert math.isnan(at(frame, component="a", other="c"))
        assert [at(ablation.variation(), component=name) for name in "abc"] == [0.5, 1.0, 0.0]

    def test_collapse(self, tmp_path: Path) -> None:
        # sums 1, 1, 2, 0 in the first group, 0.30000000000000004 and 0.3 in the second: equal but for rounding
        ablation = simple(
            tmp_path, [[[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], [[0.1, 0.2], [0.3, 0.0]], [[0.1, 0.1]]]
        )
        frame = ablation.collapse(["grpo", "dr_grpo", gdpo])
        assert at(frame, estimator="grpo", measure="levels") == (3 + 1) / 2
        assert at(frame, estimator="dr_grpo", measure="relative") == (3 / 4 + 1 / 2) / 2
        assert at(frame, estimator="capreward.advantage.gdpo", measure="levels") == (3 + 1) / 2

    def test_best_of(self, tmp_path: Path) -> None:
        nan = math.nan
        ablation = simple(
            tmp_path,
            [[[0.0, 0.8], [1.0, 0.0], [1.0, 0.4]], [[0.5, 0.2], [0.5, 0.4]], [[0.0, 0.9], [1.0, nan]]],
            weights={"b": 0},
        )
        frame = ablation.best_of()
        # picks: the last two of the first group, both of the second, and the last of the third, which has no b
        assert at(frame, component="a", measure="best") == pytest.approx((1.0 + 0.5 + 1.0) / 3)
        assert at(frame, component="a", measure="mean") == pytest.approx((2 / 3 + 0.5 + 0.5) / 3)
        assert at(frame, component="b", measure="best") == pytest.approx((0.2 + 0.3) / 2)
        assert at(frame, component="b", measure="mean") == pytest.approx((0.4 + 0.3) / 2)
        assert at(frame, component="b", measure="gain") == pytest.approx(-0.1)

    def test_pareto(self, tmp_path: Path) -> None:
        ablation = simple(tmp_path, [[[0.0, 1.0], [1.0, 0.0], [0.6, 0.6], [0.5, 0.6]]] * 2)
        worst = Variant(estimator=lambda *_: np.tile([0.0, 0.0, 0.0, 1.0], 2))
        frame = ablation.pareto(
            {"a": Variant(drop=("b",)), "b": Variant(drop=("a",)), "both": RECORDED, "worst": worst}
        )
        assert at(frame, variant="both", component="a") == 0.6
        assert at(frame, variant="b", component="b") == 1.0
        by = dict(zip(frame["variant"], frame["dominated_by"], strict=True))
        assert by == {"a": "", "b": "", "both": "", "worst": "both"}
        assert dict(zip(frame["variant"], frame["dominated"], strict=True)) == {"a": 0, "b": 0, "both": 0, "worst": 1}

    def test_rounding_is_no_advantage(self, tmp_path: Path) -> None:
        ablation = simple(tmp_path, [[[0.2], [0.8], [0.0]]] * 2)
        exact, noisy = (Variant(estimator=lambda *_, a=a: np.tile(a, 2)) for a in ([1.0, 1, -2], [1.0, 1 + 1e-15, -2]))
        assert at(ablation.best_of(noisy), measure="best") == at(ablation.best_of(exact), measure="best") == 0.5
        above, below = (Variant(estimator=lambda *_, e=e: np.tile([1.0, e, -1], 2)) for e in (1e-15, -1e-15))
        assert at(ablation.compare({"x": above}, below), measure="sign_flips") == 0

    def test_rounding_dominates_nothing(self, tmp_path: Path) -> None:
        # one pick of 0.1, or three of 0.1, whose mean is 0.10000000000000002
        ablation = simple(tmp_path, [[[0.1], [0.1], [0.1], [0.0]], [[0.1], [0.1], [0.1], [0.0]]])
        one, three = (
            Variant(estimator=lambda *_, picks=picks: np.tile(picks, 2)) for picks in ([1.0, 0, 0, 0], [1.0, 1, 1, 0])
        )
        frame = ablation.pareto({"one": one, "three": three})
        assert set(frame["dominated_by"]) == {""}
        assert set(frame["dominated"]) == {0.0}

    def test_length_bias(self, tmp_path: Path) -> None:
        ablation = simple(tmp_path, [[[0.0, 0.3], [0.5, 0.3], [1.0, 0.3]]], lengths=[3, 2, 1])
        frame = ablation.length_bias()
        assert frame["component"].tolist() == ["a", "b", "advantage"]
        np.testing.assert_allclose(frame["value"], [-1.0, np.nan, -1.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    ledger_of(folder, *(make_rollouts(items=7, seed=seed) for seed in range(3)))
    return folder


class Slow:
    """The frames' numbers by loops over what the ledger holds, of the rollouts of some items (which may come again)."""

    def __init__(self, folder: Path, items: Sequence[int] | None = None) -> None:
        self.ablation = Ablation(Ledger(folder))
        rows = Ledger(folder).rows()
        self.rows = rows
        chosen = range(rows.item.max() + 1) if items is None else items
        self.groups = [
            np.flatnonzero(rows.group == group)
            for item in chosen
            for group in sorted(set(rows.group[rows.item == item]))
        ]

    def compare(self, variant: Variant) -> list[float]:
        a, b = self.ablation.advantages(), self.ablation.advantages(variant)
        a, b = (np.round(x, 12) for x in (a, b))
        rho = [stats.spearmanr(a[g], b[g]).statistic for g in self.groups if len(set(a[g])) > 1 and len(set(b[g])) > 1]
        rows = np.concatenate(self.groups)
        either = [n for n in rows if a[n] or b[n]]
        return [np.mean(rho), np.mean([a[n] * b[n] < 0 for n in either]), np.mean([abs(a[n] - b[n]) for n in rows])]

    def contributions(self, variant: Variant) -> list[float]:
        w = self.rows.weights
        a = self.ablation.advantages(variant)
        parts = np.zeros((len(a), len(w)))
        whole = np.zeros(len(a))
        for g in (np.flatnonzero(self.rows.group == group) for group in set(self.rows.group)):
            for k in range(len(w)):
                x = self.rows.values[g, k]
                if (~np.isnan(x)).sum() > 1:
                    z = (x - np.nanmean(x)) / (1 if variant.estimator == "grpo" else np.nanstd(x, ddof=1) + 1e-4)
                    parts[g, k] = w[k] * np.nan_to_num(z)
            whole[g] = parts[g].sum(axis=1)
            if variant.estimator == "grpo":
                scored = (~np.isnan(self.rows.values[g])).any(axis=1).sum()
                parts[g] /= math.sqrt((whole[g] ** 2).sum() / max(scored - 1, 1)) + 1e-4
        if variant.estimator == "gdpo":
            for batch in set(self.rows.batch):
                rows = self.rows.batch == batch
                scored = (~np.isnan(self.rows.values[rows])).any(axis=1).sum()
                parts[rows] /= math.sqrt((whole[rows] ** 2).sum() / (scored - 1)) + 1e-4
        np.testing.assert_allclose(parts.sum(axis=1), a, atol=1e-9)
        rows = np.concatenate(self.groups)
        covariance = np.cov(np.column_stack([parts[rows], a[rows]]).T)
        return list(covariance[:-1, -1] / covariance[-1, -1])

    def correlation(self, x: Any, y: Any) -> float:
        xs, ys = [], []
        for g in self.groups:
            both = g[~np.isnan(x[g]) & ~np.isnan(y[g])]
            if len(both):
                xs.append(x[both] - x[both].mean())
                ys.append(y[both] - y[both].mean())
        return float(stats.pearsonr(np.concatenate(xs), np.concatenate(ys)).statistic)

    def conflicts(self) -> list[float]:
        return [self.correlation(x, y) for x, y in itertools.product(self.rows.values.T, repeat=2)]

    def length_bias(self) -> list[float]:
        columns = [*self.rows.values.T, self.ablation.advantages()]
        return [self.correlation(column, self.rows.length.astype(float)) for column in columns]

    def variation(self) -> list[float]:
        return [np.mean([len(set(x[g][~np.isnan(x[g])])) > 1 for g in self.groups]) for x in self.rows.values.T]

    def collapse(self) -> list[float]:
        result = []
        for name in ("grpo", "gdpo"):
            a = np.round(self.ablation.advantages(Variant(estimator=name)), 12)
            levels = [len(set(a[g])) for g in self.groups if len(g) > 1]
            result += [np.mean(levels), np.mean([n / len(g) for n, g in zip(levels, self.groups, strict=True)])]
        return result

    def best_of(self) -> list[float]:
        a = np.round(self.ablation.advantages(), 12)
        result = []
        for x in self.rows.values.T:
            means = []
            for g in self.groups:
                picks = [x[n] for n in g if a[n] == a[g].max() and not np.isnan(x[n])]
                if picks:
                    means.append((np.mean(picks), np.nanmean(x[g])))
            best, mean = np.mean(means, axis=0)
            result += [best, mean, best - mean]
        return result


FRAMES: dict[str, tuple[Callable[[Ablation], pd.DataFrame], Callable[[Slow], list[float]]]] = {
    "compare": (
        lambda ablation: ablation.compare({"x": Variant(estimator="grpo", drop=("c",))}),
        lambda slow: slow.compare(Variant(estimator="grpo", drop=("c",))),
    ),
    "contributions of gdpo": (Ablation.contributions, lambda slow: slow.contributions(RECORDED)),
    "contributions of grpo": (
        lambda ablation: ablation.contributions(Variant(estimator="grpo")),
        lambda slow: slow.contributions(Variant(estimator="grpo")),
    ),
    "conflicts": (Ablation.conflicts, Slow.conflicts),
    "variation": (Ablation.variation, Slow.variation),
    "collapse": (Ablation.collapse, Slow.collapse),
    "best_of": (Ablation.best_of, Slow.best_of),
    "length_bias": (Ablation.length_bias, Slow.length_bias),
}


@pytest.mark.parametrize("name", FRAMES)
class TestAgainstLoops:
    def test_value(self, folder: Path, name: str) -> None:
        fast, slow = FRAMES[name]
        frame = fast(Ablation(Ledger(folder), resamples=50))
        np.testing.assert_allclose(frame["value"], slow(Slow(folder)), atol=1e-9)
        assert (frame["low"] <= frame["high"]).all()
        assert list(frame)[-3:] == ["value", "low", "high"]

    def test_interval(self, folder: Path, name: str) -> None:
        fast, slow = FRAMES[name]
        frame = fast(Ablation(Ledger(folder), resamples=20, level=0.8, seed=3))
        chance = np.random.default_rng(3)
        drawn = [slow(Slow(folder, chance.integers(0, 7, 7).tolist())) for _ in range(20)]
        # an item drawn twice is there twice; `cov` divides by its rows less one in both places
        np.testing.assert_allclose(frame["low"], np.quantile(drawn, 0.1, axis=0), atol=1e-9)
        np.testing.assert_allclose(frame["high"], np.quantile(drawn, 0.9, axis=0), atol=1e-9)


class TestIntervals:
    def test_same_seed_same_bounds(self, folder: Path) -> None:
        first, again, other = (Ablation(Ledger(folder), seed=seed).variation() for seed in (0, 0, 1))
        pd.testing.assert_frame_equal(first, again)
        assert (first["low"] != other["low"]).any() or (first["high"] != other["high"]).any()

    def test_none(self, folder: Path) -> None:
        ablation = Ablation(Ledger(folder), resamples=0)
        for frame in (ablation.conflicts(), ablation.pareto({"x": RECORDED}), ablation.compare({"x": RECORDED})):
            assert frame[["low", "high"]].isna().all(axis=None)
            assert frame["value"].notna().all()

    def test_of_one_item(self, tmp_path: Path) -> None:
        ablation = simple(tmp_path, [[[0.0], [1.0]]])
        assert ablation.items == 1
        assert ablation.contributions()[["value", "low", "high"]].to_numpy().tolist()[0][0] == 1
        assert ablation.contributions()["low"].isna().all()

    def test_covers_as_often_as_it_says(self, tmp_path: Path) -> None:
        # a share of groups that vary, 0.3 in truth: the width that a binomial share of 60 has
        chance = np.random.default_rng(0)
        groups = [[[0.0], [float(varies)]] for varies in chance.random(60) < 0.3]
        frame = simple(tmp_path, groups).variation()
        value, low, high = frame[["value", "low", "high"]].to_numpy()[0]
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(value * (1 - value) / 60), rel=0.15)


class TestDefaults:
    def test_variants(self, folder: Path) -> None:
        variants = default_variants(Ablation(Ledger(folder)))
        assert list(variants) == ["grpo", "a x 2", "b x 2", "c x 2", "without a", "without b", "without c"]
        assert variants["b x 2"].scale == {"b": 2}
        assert variants["without a"].drop == ("a",)

    def test_what_no_suite_can_spare_is_kept(self, tmp_path: Path) -> None:
        ledger_of(tmp_path, make_rollouts(), names=("c",))
        ledger_of(tmp_path, make_rollouts(), weights={"a": 0})
        ablation = Ablation(Ledger(tmp_path), resamples=10)
        variants = default_variants(ablation)
        assert list(variants) == ["grpo", "c x 2", "b x 2", "without b"]
        assert len(ablation.compare(variants)) == 12


def test_a_ledger_that_a_training_run_goes_on_writing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger_of(tmp_path, make_rollouts())
    with (tmp_path / "rollouts.jsonl").open("a") as file:
        file.write('{"id": "cut')
    with caplog.at_level(logging.WARNING):
        assert len(Ablation(Ledger(tmp_path))) == len(make_rollouts())
