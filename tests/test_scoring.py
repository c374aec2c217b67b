from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import FakeComponent, FakeGate, rollouts, table_of
from hypothesis import given, strategies as st

from capreward import (
    Component,
    Gate,
    LengthMask,
    Missing,
    Reason,
    RewardSuite,
    Rollout,
    Score,
    ScoreTable,
    dr_grpo,
    gdpo,
    grpo,
)
from capreward.advantage import ESTIMATORS
from capreward.errors import ComponentError, InputError
from capreward.scoring import checked, concatenated, fill, score_component, scores_empty_as_zero, weights_of

NAN = np.nan
DOWN = Missing(Reason.SERVER, "server is down")
NO_FACTS = Missing(Reason.NO_FACTS, "no facts")


@pytest.fixture
def table() -> ScoreTable:
    """Two groups of two; `b` weighs 3. A gate has halved b's first score; two scores of b and one of a are missing."""
    scores = (
        (Score(1.0, "all right"), Score(0.5), Score(0.25, "a quarter"), DOWN),
        (Score(0.8, "good"), Score(0.0), NO_FACTS, DOWN),
    )
    raw = np.array([[s.value if isinstance(s, Score) else NAN for s in column] for column in scores]).T
    values = raw.copy()
    values[0, 1] = 0.4
    return ScoreTable(
        names=("a", "b"),
        ids=("x#0", "x#1", "y#0", "y#1"),
        groups=np.array(["x", "x", "y", "y"]),
        raw=raw,
        values=values,
        weights=np.array([1.0, 3.0]),
        scores=scores,
        gated={(0, 1): "too long"},
        missing={(2, 1): NO_FACTS, (3, 0): DOWN, (3, 1): DOWN},
    )


class TestScoreTable:
    def test_has_a_length(self, table: ScoreTable) -> None:
        assert len(table) == 4

    def test_advantages_by_hand(self, table: ScoreTable) -> None:
        # group x: a is 1 and 0.5, b is 0.4 and 0 with weight 3; group y has no two scores to compare
        expected = [0.25 + 3 * 0.2, -0.25 - 3 * 0.2, 0, 0]
        np.testing.assert_allclose(table.advantages("dr_grpo"), expected, rtol=1e-12)

    @pytest.mark.parametrize(("name", "function"), [("gdpo", gdpo), ("grpo", grpo), ("dr_grpo", dr_grpo)])
    def test_advantages_by_name_are_the_functions(self, table: ScoreTable, name: str, function: Any) -> None:
        expected = function(table.values, table.groups, table.weights)
        np.testing.assert_array_equal(table.advantages(name), expected)
        np.testing.assert_array_equal(table.advantages(function), expected)
        assert expected[0] > 0

    def test_advantages_are_gdpos_unless_told_otherwise(self, table: ScoreTable) -> None:
        np.testing.assert_array_equal(table.advantages(), table.advantages("gdpo"))
        assert not np.array_equal(table.advantages(), table.advantages("grpo"))

    @pytest.mark.parametrize("name", ESTIMATORS)
    def test_advantages_by_every_name(self, table: ScoreTable, name: str) -> None:
        expected = ESTIMATORS[name](table.values, table.groups, table.weights)
        np.testing.assert_array_equal(table.advantages(name), expected)
        assert np.isfinite(expected).all()

    def test_advantages_pass_options_on(self, table: ScoreTable) -> None:
        expected = gdpo(table.values, table.groups, table.weights, eps=0.5, whiten=False)
        np.testing.assert_array_equal(table.advantages("gdpo", eps=0.5, whiten=False), expected)

    def test_advantages_with_an_estimator_of_ones_own(self, table: ScoreTable) -> None:
        def count(values: Any, groups: Any, weights: Any = None) -> Any:  # noqa: ARG001  an estimator's signature
            return (~np.isnan(values)) @ weights

        assert table.advantages(count).tolist() == [4, 4, 1, 0]

    @pytest.mark.parametrize(
        ("weights", "used"),
        [(None, [1, 3]), ({"a": 2}, [2, 3]), ({"b": 0}, [1, 0]), ({"a": 0, "b": 0.5}, [0, 0.5]), ({}, [1, 3])],
    )
    def test_advantages_weights_by_name(self, table: ScoreTable, weights: Any, used: list[float]) -> None:
        expected = dr_grpo(table.values, table.groups, used)
        np.testing.assert_array_equal(table.advantages("dr_grpo", weights), expected)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("gpdo",), "estimator: got 'gpdo', expected one of ['corr_grpo', 'dara', 'dr_grpo',"),
            (("gdpo", {"c": 1}), "weights: got component 'c', expected one of ['a', 'b']"),
            (("gdpo", {"a": -1}), "weights['a']: got -1, expected a finite number >= 0"),
            (("gdpo", {"a": 0, "b": 0}), "weights: all are zero"),
        ],
    )
    def test_advantages_errors(self, table: ScoreTable, arguments: Any, said: str) -> None:
        with pytest.raises(InputError) as error:
            table.advantages(*arguments)
        assert said in str(error.value)

    def test_total_is_the_weighted_mean_of_what_is_present(self, table: ScoreTable) -> None:
        np.testing.assert_allclose(table.total(), [(1 + 3 * 0.4) / 4, 0.5 / 4, 0.25, NAN])

    def test_missing_by_reason(self, table: ScoreTable) -> None:
        assert table.missing_by_reason() == {
            "a": Counter({Reason.SERVER: 1}),
            "b": Counter({Reason.SERVER: 1, Reason.NO_FACTS: 1}),
        }

    def test_diagnostics(self, table: ScoreTable) -> None:
        diagnostics = table.diagnostics()
        assert diagnostics["a"] == pytest.approx(
            {"raw": 1.75 / 3, "value": 1.75 / 3, "missing": 0.25, "gated": 0, "varies": 0.5}
            | {"spread": math.sqrt(0.5) * 0.5, "grpo": 1, "gdpo": 1}  # the one pair that has both scores
        )
        assert diagnostics["b"] == pytest.approx(
            {"raw": 0.4, "value": 0.2, "missing": 0.5, "gated": 0.25, "varies": 0.5}
            | {"spread": math.sqrt(0.5) * 0.4, "grpo": 1, "gdpo": 1}
        )

    def test_diagnostics_of_scores_that_disagree(self) -> None:
        # b is against a and half as loud in x, where GRPO takes a's side and GDPO none; in y they agree
        table, _ = table_of({"a": [1.0, 0.0, 1.0, 0.0], "b": [0.0, 0.5, 1.0, 0.0]})
        a, b = table.diagnostics().values()
        assert (a["spread"], b["spread"]) == pytest.approx((math.sqrt(0.5), math.sqrt((0.125 + 0.5) / 2)))
        # GRPO: (1, -1, 1, -1) / sqrt 2, against (1, -1, 1, -1) / 2 and (-1, 1, 2, -2) / 4
        assert (a["grpo"], b["grpo"]) == pytest.approx((1, 1 / math.sqrt(10)), abs=1e-3)
        # GDPO: (0, 0, 1, -1)
        assert (a["gdpo"], b["gdpo"]) == pytest.approx((1 / math.sqrt(2), 2 / math.sqrt(5)), abs=1e-3)

    def test_diagnostics_of_a_component_without_weight(self) -> None:
        table, _ = table_of({"a": [1.0, 0.0, 0.0, 1.0], "b": [0.5, 0.0, 0.5, 0.0]}, weights={"b": 0})
        row = table.diagnostics()["b"]
        assert row["spread"] == pytest.approx(math.sqrt(0.125))
        assert row["grpo"] == row["gdpo"] == 0  # with a in x, against it in y

    @pytest.mark.parametrize(
        ("row", "column", "why"),
        [
            (0, 0, "all right"),
            (0, 1, "too long"),
            (2, 1, "missing (no_facts): no facts"),
            (3, 0, "missing (server): server is down"),
            (1, 0, ""),
        ],
    )
    def test_why(self, table: ScoreTable, row: int, column: int, why: str) -> None:
        assert table.why(row, column) == why

    def test_to_pandas(self, table: ScoreTable) -> None:
        frame = table.to_pandas()
        assert list(frame.columns) == ["id", "group", "raw.a", "value.a", "why.a", "raw.b", "value.b", "why.b", "total"]
        assert frame["id"].tolist() == list(table.ids)
        assert frame["group"].tolist() == ["x", "x", "y", "y"]
        np.testing.assert_array_equal(frame["raw.b"], table.raw[:, 1])
        np.testing.assert_array_equal(frame["value.b"], table.values[:, 1])
        np.testing.assert_array_equal(frame["total"], table.total())
        assert frame["why.b"].tolist() == [table.why(row, 1) for row in range(4)]


class TestMetrics:
    def test_by_hand(self) -> None:
        table, _ = table_of({"a": [1.0, 0.0, 0.5, 0.5], "b": [0.25, 0.75, DOWN, 0.5]}, weights={"b": 2})
        numbers = table.metrics()
        assert numbers["a/raw"] == numbers["a/value"] == numbers["b/value"] == 0.5
        assert (numbers["a/missing"], numbers["b/missing"], numbers["b/missing_server"]) == (0, 0.25, 0.25)
        assert "a/missing_server" not in numbers
        assert (numbers["a/varies"], numbers["b/varies"]) == (0.5, 0.5)
        # each varies in one group of two, by 1 and 0.5: normalised, both by 1/sqrt 2, but that b counts twice
        assert numbers["a/advantage_share"] == pytest.approx(1 / 3, abs=1e-3)
        assert numbers["b/advantage_share"] == pytest.approx(2 / 3, abs=1e-3)
        assert numbers["total"] == pytest.approx(np.mean([1.5 / 3, 1.5 / 3, 0.5, 1.5 / 3]))
        # in x, a's 1 and twice b's 0.5 cancel in GRPO, and b's z counts twice in GDPO; in y nothing varies
        assert (numbers["a/spread"], numbers["b/spread"]) == pytest.approx((0.5, 0.5 / math.sqrt(2)))
        assert math.isnan(numbers["a/grpo"])
        assert (numbers["a/gdpo"], numbers["b/gdpo"]) == pytest.approx((-1, 1))

    def test_gates(self) -> None:
        table, _ = table_of({"a": [1.0, 0.5, 0.5, 0.5]}, gates=[FakeGate("a", lambda r: 0.0 if r.id == "x#0" else 1.0)])
        numbers = table.metrics()
        assert numbers["a/gated"] == 0.25
        assert numbers["a/value"] == 0.375
        assert numbers["a/advantage_share"] == 1

    def test_nothing_varies(self) -> None:
        numbers = table_of({"a": [1.0] * 4, "b": [0.5] * 4})[0].metrics()
        assert numbers["a/advantage_share"] == numbers["b/advantage_share"] == numbers["a/spread"] == 0
        assert math.isnan(numbers["a/grpo"])
        assert math.isnan(numbers["a/gdpo"])

    def test_nothing_is_there(self) -> None:
        numbers = table_of({"a": [DOWN] * 4})[0].metrics()
        assert math.isnan(numbers["total"])
        assert all(math.isnan(numbers[f"a/{key}"]) for key in ("value", "spread", "grpo", "gdpo"))
        assert numbers["a/advantage_share"] == 0

    def test_a_weight_of_0_has_no_share(self) -> None:
        numbers = table_of({"a": [1.0, 0.0, 1.0, 0.0], "b": [1.0, 0.0, 1.0, 0.0]}, weights={"b": 0})[0].metrics()
        assert (numbers["a/advantage_share"], numbers["b/advantage_share"]) == (1, 0)


class TestToRows:
    def rollouts(self, table: ScoreTable) -> list[Rollout]:
        return [
            rollouts(f"caption {n}", group=group, id=id)[0]
            for n, (id, group) in enumerate(zip(table.ids, table.groups.tolist(), strict=True))
        ]

    def test_by_hand(self, table: ScoreTable) -> None:
        first, _, third, last = table.to_rows(self.rollouts(table))
        assert (first["id"], first["group"], first["item"], first["caption"]) == ("x#0", "x", "bare", "caption 0")
        assert first["scores"]["b"] == {
            "raw": 0.8,
            "value": 0.4,
            "why": "too long",
            "missing": None,
            "unread": "",
            "gated": True,
            "evidence": {},
        }
        assert first["total"] == pytest.approx((1 + 3 * 0.4) / 4)
        assert first["advantages"] == {
            "grpo": table.advantages("grpo")[0],
            "gdpo": table.advantages("gdpo")[0],
        }
        assert (third["scores"]["b"]["value"], third["scores"]["b"]["missing"]) == (None, "no_facts")
        assert last["total"] is None

    def test_is_json(self, table: ScoreTable) -> None:
        rows = list(table.to_rows(self.rollouts(table)))
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows

    def test_of_some(self, table: ScoreTable) -> None:
        every = self.rollouts(table)
        rows = list(table.to_rows(every))
        assert list(table.to_rows([every[3], every[1]], [3, 1])) == [rows[3], rows[1]]

    def test_what_was_said_but_not_read(self) -> None:
        said = Missing(Reason.UNPARSEABLE, "no number", "very good")
        table = ScoreTable(
            names=("a",),
            ids=("x#0",),
            groups=np.array(["x"]),
            raw=np.array([[NAN]]),
            values=np.array([[NAN]]),
            weights=np.ones(1),
            scores=((said,),),
            gated={},
            missing={(0, 0): said},
        )
        [row] = table.to_rows(self.rollouts(table))
        assert row["scores"]["a"]["unread"] == "very good"

    def test_evidence(self) -> None:
        table = RewardSuite({"a": FakeComponent(Score(0.5, "half", {"claims": [1, 2]}))}).score(rollouts("A cup."))
        [row] = table.to_rows(rollouts("A cup."))
        assert row["scores"]["a"]["evidence"] == {"claims": [1, 2]}

    def test_too_few_rollouts(self, table: ScoreTable) -> None:
        with pytest.raises(ValueError, match="shorter"):
            list(table.to_rows(self.rollouts(table)[:2]))


class TestConcatenated:
    """Parts of a batch as one table."""

    def parts(self, sizes: Sequence[int]) -> tuple[ScoreTable, list[ScoreTable]]:
        """The table of a batch, and those of its parts."""
        verdicts = [0.9, DOWN, 0.2, Score(0.4, "why", {"n": 1}), 0.1, NO_FACTS, 0.7, 0.3]
        batch = [rollouts(f"caption {n}", id=f"r{n}", group="xyz"[n // 3])[0] for n in range(8)]
        suite = RewardSuite(
            {"a": FakeComponent(lambda r: verdicts[int(r.caption[-1])]), "b": FakeComponent(0.5)},
            weights={"b": 2},
            gates=[FakeGate("b", lambda r: 0.5 if int(r.caption[-1]) % 3 else 0.0)],
        )
        stops = np.cumsum(sizes).tolist()
        return suite.score(batch), [suite.score(batch[a:b]) for a, b in zip([0, *stops], stops, strict=False)]

    @pytest.mark.parametrize("sizes", [[8], [3, 5], [1, 1, 6], [2, 4, 2]])
    def test_is_the_table_of_the_whole(self, sizes: list[int]) -> None:
        whole, parts = self.parts(sizes)
        found = concatenated(parts)
        assert (found.names, found.ids, found.scores) == (whole.names, whole.ids, whole.scores)
        assert (found.gated, found.missing, found.usage) == (whole.gated, whole.missing, whole.usage)
        assert len(found.gated) > 0 < len(found.missing)
        for name in ("groups", "raw", "values", "weights"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
        # also where a group is torn apart
        np.testing.assert_array_equal(found.advantages(), whole.advantages())

    def test_none(self) -> None:
        with pytest.raises(InputError, match="tables: got none"):
            concatenated([])

    def test_of_different_suites(self) -> None:
        a, b, heavy = (
            RewardSuite({name: FakeComponent(1.0)}, weights={name: weight}).score(rollouts("A cup.", id=name))
            for name, weight in (("a", 1), ("b", 1), ("a", 2))
        )
        for other in (b, heavy):
            with pytest.raises(InputError, match="tables: got components"):
                concatenated([a, other])

    def test_an_id_twice(self) -> None:
        table = RewardSuite({"a": FakeComponent(1.0)}).score(rollouts("A cup."))
        with pytest.raises(InputError, match="a rollout id occurs twice"):
            concatenated([table, table])


class TestWeightsOf:
    def test_default_is_one_each(self) -> None:
        assert weights_of(["a", "b"], {"b": 0.5}).tolist() == [1, 0.5]

    def test_leaves_the_default_alone(self) -> None:
        default = np.array([2.0, 3.0])
        assert weights_of(["a", "b"], {"a": 5}, default).tolist() == [5, 3]
        assert default.tolist() == [2, 3]


class TestChecked:
    ROLLOUT = rollouts("A cup.")[0]

    @pytest.mark.parametrize("score", [Score(0.0), Score(1.0), Score(0.3, "why", {"a": 1}), DOWN])
    def test_returns_what_is_good(self, score: Any) -> None:
        assert checked(score, "component 'c'", self.ROLLOUT) is score

    @pytest.mark.parametrize(
        ("why", "detail"), [("division by zero", "division by zero"), ("", "the component answered NaN")]
    )
    def test_nan_is_missing(self, why: str, detail: str) -> None:
        assert checked(Score(NAN, why), "component 'c'", self.ROLLOUT) == Missing(Reason.NAN, detail)

    @pytest.mark.parametrize("value", [-0.1, 1.0001, float("inf"), float("-inf")])
    def test_outside_the_range(self, value: float) -> None:
        with pytest.raises(ComponentError) as error:
            checked(Score(value), "component 'c'", self.ROLLOUT)
        assert str(error.value) == (
            f"component 'c', item 'bare': got score {value}, expected a number in [0, 1], or Missing"
        )

    @pytest.mark.parametrize("score", [0.5, None, "good", (0.5, "why")])
    def test_no_score_at_all(self, score: Any) -> None:
        with pytest.raises(ComponentError, match=r"component 'c', item 'bare': got .*, expected a capreward.Score"):
            checked(score, "component 'c'", self.ROLLOUT)

    @pytest.mark.parametrize("value", [None, "0.5", [0.5]])
    def test_no_number(self, value: Any) -> None:
        with pytest.raises(ComponentError, match="component 'c', item 'bare'"):
            checked(Score(value), "component 'c'", self.ROLLOUT)


class TestFill:
    @given(st.lists(st.booleans()))
    def test_keeps_the_order(self, known: list[bool]) -> None:
        batch = rollouts(*(f"caption {n}" for n in range(len(known))))
        settled = [Score(0.0, r.caption) if k else None for r, k in zip(batch, known, strict=True)]
        component = FakeComponent(lambda rollout: Score(1.0, rollout.caption))
        scores = asyncio.run(fill(batch, settled, component.score))
        assert [score.why for score in scores] == [rollout.caption for rollout in batch]
        assert [score.value for score in scores] == [float(not k) for k in known]
        assert component.asked == [r.caption for r, k in zip(batch, known, strict=True) if not k]

    def test_asks_nothing_when_all_is_known(self) -> None:
        component = FakeComponent(1.0)
        assert asyncio.run(fill(rollouts("a", "b"), [DOWN, Score(0.5)], component.score)) == [DOWN, Score(0.5)]
        assert component.batches == []

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_wrong_number_of_scores(self, count: int) -> None:
        async def score(_: Sequence[Rollout]) -> list[Score]:
            return [Score(1.0)] * count

        with pytest.raises(ComponentError, match=f"got {count} scores for 2 rollouts, expected one for each"):
            asyncio.run(fill(rollouts("a", "b", "c"), [None, DOWN, None], score))


class TestScoreComponent:
    def score(self, verdict: Any, *captions: str) -> list[Score | Missing]:
        return asyncio.run(score_component("c", FakeComponent(verdict), rollouts(*captions)))

    def test_empty_captions_score_zero_unseen(self) -> None:
        component = FakeComponent(1.0)
        scores = asyncio.run(score_component("c", component, rollouts("A cup.", " ", "...", "A dog.")))
        assert [score.value for score in scores] == [1, 0, 0, 1]
        assert scores[1].why == "empty caption"
        assert component.asked == ["A cup.", "A dog."]

    def test_what_is_known_is_not_asked(self) -> None:
        component = FakeComponent(1.0)
        known = [None, DOWN, None]
        assert asyncio.run(score_component("c", component, rollouts("a", "b", ""), known)) == [
            Score(1.0),
            DOWN,
            Score(0.0, "empty caption"),
        ]
        assert component.asked == ["a"]

    def test_nan_is_missing(self) -> None:
        assert self.score(NAN, "A cup.") == [Missing(Reason.NAN, "the component answered NaN")]

    def test_score_outside_the_range(self) -> None:
        with pytest.raises(ComponentError, match=r"component 'c', item 'bare': got score 1.5"):
            self.score(1.5, "A cup.")

    def test_wrong_number_of_scores(self) -> None:
        class Short:
            name = "short"

            async def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
                return [Score(1.0)]

        with pytest.raises(ComponentError, match=r"component 'c': .*got 1 scores for 2 rollouts"):
            asyncio.run(score_component("c", Short(), rollouts("a", "b")))

    @pytest.mark.parametrize("error", [KeyError("oops"), RuntimeError("server"), TimeoutError()])
    def test_an_exception_names_the_component_and_stays_the_cause(self, error: Exception) -> None:
        with pytest.raises(ComponentError) as raised:
            self.score(error, "A cup.")
        assert str(raised.value) == f"component 'c': {type(error).__name__}: {error}"
        assert raised.value.__cause__ is error

    def test_an_input_error_stays_one_and_names_the_component(self) -> None:
        with pytest.raises(InputError, match=r"^component 'c': aspect: got 'style'$"):
            self.score(InputError("aspect: got 'style'"), "A cup.")


def test_scores_empty_as_zero() -> None:
    class Ones:
        name = "ones"

        @scores_empty_as_zero
        async def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
            assert not any(rollout.is_empty for rollout in rollouts)
            return [Score(1.0) for _ in rollouts]

    scores = asyncio.run(Ones().score(rollouts("a", "", "b", "!")))
    assert [score.value for score in scores] == [1, 0, 1, 0]
    assert asyncio.run(Ones().score([])) == []


def test_protocols_tell_components_from_gates() -> None:
    component, gate = FakeComponent(1.0), LengthMask("fluency")
    assert isinstance(component, Component)
    assert not isinstance(component, Gate)
    assert isinstance(gate, Gate)
    assert not isinstance(gate, Component)
