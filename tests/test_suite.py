from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fakes import FakeComponent, FakeGate, rollouts

from capreward import (
    Condition,
    Fluency,
    Item,
    LengthMask,
    Missing,
    QAUtility,
    Reason,
    RewardSuite,
    Rollout,
    Score,
    ScoreTable,
    Usage,
)
from capreward.coroutines import start
from capreward.errors import ComponentError, InputError, TooManyMissingError
from capreward.judges.fake import FunctionJudge
from capreward.scoring import concatenated

NAN = np.nan
DOWN = Missing(Reason.SERVER, "server is down")
NO_REFERENCE = Missing(Reason.NO_REFERENCE, "no reference")


def by_caption(**verdicts: Any) -> FakeComponent:
    """A component that knows what to say of each caption."""
    return FakeComponent(lambda rollout: verdicts[rollout.caption])


def cells(table: ScoreTable, name: str) -> tuple[list[float], list[float]]:
    """Raw and gated values of one component."""
    column = table.names.index(name)
    return table.raw[:, column].tolist(), table.values[:, column].tolist()


class Synchronous:
    name = "synchronous"

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(1.0) for _ in rollouts]


class TestFlow:
    def test_gates_act_before_and_weights_after_normalisation(self) -> None:
        suite = RewardSuite(
            {"a": by_caption(one=1.0, two=0.75), "b": by_caption(one=0.2, two=0.4)},
            weights={"a": 2, "b": 0.5},
            gates=[FakeGate("a", lambda rollout: 0.0 if rollout.caption == "one" else 1.0)],
            spare=False,
        )
        table = suite.score(rollouts("one", "two"))
        assert table.names == ("a", "b")
        assert table.raw.tolist() == [[1.0, 0.2], [0.75, 0.4]]
        assert table.values.tolist() == [[0.0, 0.2], [0.75, 0.4]]
        assert table.weights.tolist() == [2, 0.5]
        # normalised, each component is -1/sqrt 2 and 1/sqrt 2, whatever its scale: only the weights tell them apart
        z = 2.5 / np.sqrt(2)
        np.testing.assert_allclose(table.advantages("gdpo", eps=1e-300, whiten=False), [-z, z])
        # not normalised, the gated scores count, each by its weight
        np.testing.assert_allclose(table.advantages("dr_grpo"), [-0.8, 0.8])
        assert table.gated == {(0, 0): "fake gate"}

    def test_evidence_stays_with_its_rollout(self) -> None:
        component = FakeComponent(lambda rollout: Score(0.5, rollout.caption, {"length": len(rollout.caption)}))
        table = RewardSuite({"a": component}).score(rollouts("one", "", "three"))
        assert [score.why for score in table.scores[0]] == ["one", "empty caption", "three"]
        assert table.scores[0][2].evidence == {"length": 5}

    def test_groups_and_ids(self) -> None:
        cup, dog = Item(id="cup"), Item(id="dog")
        batch = [
            Rollout(item=cup, caption="a"),
            Rollout(item=dog, caption="b", group="prompt"),
            Rollout(item=cup, caption="c", id="mine"),
            Rollout(item=cup, caption="d"),
            Rollout(item=cup, caption="e", group="prompt"),
        ]
        table = RewardSuite({"a": FakeComponent(1.0)}).score(batch)
        assert table.groups.tolist() == ["cup", "prompt", "cup", "cup", "prompt"]
        assert table.ids == ("cup#0", "prompt#0", "mine", "cup#2", "prompt#1")

    def test_components_are_asked_once_with_everything(self) -> None:
        component = FakeComponent(1.0)
        RewardSuite({"a": component}).score(rollouts("one", "two"), progress=False)
        assert component.batches == [["one", "two"]]

    def test_components_run_side_by_side(self) -> None:
        meeting = asyncio.Barrier(2)

        class Meets:
            name = "meets"

            async def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
                await asyncio.wait_for(meeting.wait(), 30)
                return [Score(1.0) for _ in rollouts]

        table = RewardSuite({"a": Meets(), "b": Meets()}).score(rollouts("one"))
        assert table.values.tolist() == [[1, 1]]


class TestGates:
    MASK = FakeGate("a", lambda rollout: 0.0 if rollout.caption == "long" else 1.0)

    def test_without_judge_spare_calls(self) -> None:
        a, b = by_caption(short=0.7), by_caption(short=0.6, long=0.5)
        table = RewardSuite({"a": a, "b": b}, gates=[self.MASK]).score(rollouts("short", "long"))
        assert (a.asked, b.asked) == (["short"], ["short", "long"])
        np.testing.assert_array_equal(cells(table, "a"), [[0.7, NAN], [0.7, 0.0]])
        assert table.scores[0][1] == Missing(Reason.NOT_ASKED, "a gate decides")
        assert table.gated == {(1, 0): "fake gate"}
        assert table.missing == {}
        assert table.why(1, 0) == "fake gate"

    def test_spare_off_asks(self) -> None:
        a = by_caption(short=0.7, long=0.9)
        table = RewardSuite({"a": a}, gates=[self.MASK], spare=False).score(rollouts("short", "long"))
        assert a.asked == ["short", "long"]
        assert cells(table, "a") == ([0.7, 0.9], [0.7, 0.0])

    def test_spare_changes_no_value(self) -> None:
        def table(spare: bool) -> ScoreTable:
            components = {
                "a": by_caption(short=0.7, long=0.9, lost=0.1),
                "b": by_caption(short=0.4, long=DOWN, lost=0.3),
            }
            gates = [
                FakeGate("a", lambda rollout: {"short": 0.5, "long": 0.0, "lost": NO_REFERENCE}[rollout.caption]),
                Condition("b", on="a", at_least=0.1),
            ]
            return RewardSuite(components, gates=gates, spare=spare).score(rollouts("short", "long", "lost"))

        spared, asked = table(True), table(False)
        np.testing.assert_array_equal(spared.values, [[0.35, 0.4], [0.0, 0.0], [NAN, NAN]])
        np.testing.assert_array_equal(spared.values, asked.values)
        assert spared.missing == asked.missing
        assert spared.gated == asked.gated

    def test_that_read_wait_for_scores_and_spare_nothing(self) -> None:
        a, b = by_caption(one=1.0, two=0.2), by_caption(one=0.6, two=0.7)
        table = RewardSuite({"a": a, "b": b}, gates=[Condition("b", on="a", at_least=0.5)]).score(
            rollouts("one", "two")
        )
        assert b.asked == ["one", "two"]
        assert cells(table, "b") == ([0.6, 0.7], [0.6, 0.0])
        assert table.why(1, 1) == "a is 0.20, needs 0.5"

    def test_read_scores_as_the_gates_before_left_them(self) -> None:
        reads = FakeGate("b", 1.0, reads=("a",))
        suite = RewardSuite({"a": FakeComponent(0.8), "b": FakeComponent(1.0)}, gates=[FakeGate("a", 0.5), reads])
        suite.score(rollouts("one"))
        assert [values["a"].tolist() for values in reads.read] == [[0.4]]

    def test_condition_on_a_gated_component(self) -> None:
        components = {"a": FakeComponent(1.0), "b": FakeComponent(1.0), "c": FakeComponent(1.0)}
        gates = [
            FakeGate("a", lambda rollout: 0.0 if rollout.caption == "one" else 1.0),
            Condition("b", on="a", at_least=0.5),
            Condition("c", on="b", at_least=0.5),
        ]
        table = RewardSuite(components, gates=gates).score(rollouts("one", "two"))
        assert table.values.tolist() == [[0, 0, 0], [1, 1, 1]]

    def test_that_read_act_in_the_order_listed(self) -> None:
        components = {"a": FakeComponent(0.1), "b": FakeComponent(1.0), "c": FakeComponent(1.0)}
        gates = [Condition("c", on="b", at_least=0.5), Condition("b", on="a", at_least=0.5)]
        assert RewardSuite(components, gates=gates).score(rollouts("one")).values.tolist() == [[0.1, 0, 1]]

    def test_that_read_nothing_act_first_wherever_they_are_listed(self) -> None:
        components = {"a": FakeComponent(1.0), "b": FakeComponent(1.0)}
        gates = [Condition("b", on="a", at_least=0.5), FakeGate("a", 0.0)]
        assert RewardSuite(components, gates=gates).score(rollouts("one")).values.tolist() == [[0, 0]]

    def test_cannot_change_what_they_read(self) -> None:
        class Vandal(FakeGate):
            def factors(self, rollouts: Sequence[Rollout], values: Any) -> list[Score]:
                values["a"][:] = 0
                return [Score(1.0) for _ in rollouts]

        suite = RewardSuite({"a": FakeComponent(0.5), "b": FakeComponent(0.5)}, gates=[Vandal("b", 1.0, reads=("a",))])
        assert suite.score(rollouts("one")).values.tolist() == [[0.5, 0.5]]

    def test_multiply(self) -> None:
        table = RewardSuite({"a": FakeComponent(0.8)}, gates=[FakeGate("a", 0.5), FakeGate("a", 0.25)]).score(
            rollouts("one")
        )
        assert cells(table, "a") == ([0.8], [0.1])

    def test_factor_of_one_is_no_change(self) -> None:
        table = RewardSuite({"a": FakeComponent(0.8)}, gates=[FakeGate("a", 1.0)]).score(rollouts("one"))
        assert (table.values.tolist(), table.gated) == ([[0.8]], {})

    @pytest.mark.parametrize("spare", [True, False])
    def test_factor_of_zero_makes_a_missing_score_zero(self, spare: bool) -> None:
        """Else a policy could trade a zero for a missing score."""
        suite = RewardSuite({"a": FakeComponent(DOWN)}, gates=[FakeGate("a", 0.0)], spare=spare)
        table = suite.score(rollouts("one"))
        np.testing.assert_array_equal(cells(table, "a"), [[NAN], [0.0]])
        assert table.missing == {}

    def test_factor_between_leaves_a_missing_score_missing(self) -> None:
        table = RewardSuite({"a": FakeComponent(DOWN)}, gates=[FakeGate("a", 0.5)]).score(rollouts("one"))
        assert np.isnan(table.values).all()
        assert table.missing == {(0, 0): DOWN}
        assert table.gated == {}

    @pytest.mark.parametrize("spare", [True, False])
    def test_missing_factor_makes_the_score_missing(self, spare: bool) -> None:
        suite = RewardSuite({"a": FakeComponent(0.8)}, gates=[FakeGate("a", NO_REFERENCE)], spare=spare)
        table = suite.score(rollouts("one"))
        assert np.isnan(table.values).all()
        assert table.missing == {(0, 0): NO_REFERENCE}

    @pytest.mark.parametrize(("score", "spare"), [(0.8, True), (0.8, False), (0.0, True), (0.0, False)])
    def test_missing_factor_after_one_between_makes_the_score_missing(self, score: float, spare: bool) -> None:
        gates = [FakeGate("a", 0.5), FakeGate("a", NO_REFERENCE)]
        table = RewardSuite({"a": FakeComponent(score)}, gates=gates, spare=spare).score(rollouts("one"))
        assert np.isnan(table.values).all()
        assert table.missing == {(0, 0): NO_REFERENCE}

    def test_missing_score_keeps_its_reason_when_the_factor_is_missing_too(self) -> None:
        suite = RewardSuite({"a": FakeComponent(DOWN)}, gates=[FakeGate("a", NO_REFERENCE)], spare=False)
        assert suite.score(rollouts("one")).missing == {(0, 0): DOWN}

    def test_condition_on_a_missing_score(self) -> None:
        suite = RewardSuite(
            {"a": FakeComponent(DOWN), "b": FakeComponent(1.0)}, gates=[Condition("b", on="a", at_least=0.5)]
        )
        table = suite.score(rollouts("one"))
        assert table.missing == {(0, 0): DOWN, (0, 1): Missing(Reason.DEPENDS, "needs 'a', which is missing")}

    def test_a_zero_factor_beats_a_missing_one_listed_before_it(self) -> None:
        gates = [FakeGate("a", NO_REFERENCE), FakeGate("a", 0.0)]
        assert RewardSuite({"a": FakeComponent(0.8)}, gates=gates).score(rollouts("one")).values.tolist() == [[0]]

    def test_a_zero_factor_beats_a_missing_one_listed_after_it(self) -> None:
        gates = [FakeGate("a", 0.0), FakeGate("a", NO_REFERENCE)]
        assert RewardSuite({"a": FakeComponent(0.8)}, gates=gates).score(rollouts("one")).values.tolist() == [[0]]

    def test_a_missing_score_was_not_lowered(self) -> None:
        gates = [FakeGate("a", 0.5), FakeGate("a", NO_REFERENCE)]
        table = RewardSuite({"a": FakeComponent(0.8)}, gates=gates).score(rollouts("one"))
        assert (dict(table.gated), dict(table.missing)) == ({}, {(0, 0): NO_REFERENCE})

    @pytest.mark.parametrize(
        ("factor", "said"),
        [
            (2.0, "gate FakeGate('a'), item 'bare': got score 2.0, expected a number in [0, 1]"),
            (0, "gate FakeGate('a'), item 'bare': got 0, expected a capreward.Score"),
        ],
    )
    def test_that_break_their_contract(self, factor: Any, said: str) -> None:
        with pytest.raises(ComponentError) as error:
            RewardSuite({"a": FakeComponent(1.0)}, gates=[FakeGate("a", factor)]).score(rollouts("one"))
        assert said in str(error.value)

    def test_that_answer_too_little(self) -> None:
        class Short(FakeGate):
            def factors(self, rollouts: Sequence[Rollout], values: Any) -> list[Score]:
                return [Score(1.0)]

        with pytest.raises(ComponentError, match=r"gate Short\('a'\): got 1 factors for 2 rollouts"):
            RewardSuite({"a": FakeComponent(1.0)}, gates=[Short("a", 1.0)]).score(rollouts("one", "two"))

    def test_that_raise(self) -> None:
        with pytest.raises(ComponentError, match="gate FakeGate"):
            RewardSuite({"a": FakeComponent(1.0)}, gates=[FakeGate("a", KeyError("oops"))]).score(rollouts("one"))


class TestEmptyAndOverlong:
    def test_empty_caption_is_zero_on_every_component_whatever_is_missing(self) -> None:
        components = {"a": FakeComponent(DOWN), "b": FakeComponent(1.0), "c": FakeComponent(1.0)}
        gates = [LengthMask("b"), Condition("c", on="a", at_least=0.5)]  # the item has no references
        table = RewardSuite(components, gates=gates).score(rollouts("", "one"))
        np.testing.assert_array_equal(table.raw[0], [0, 0, 0])
        np.testing.assert_array_equal(table.values, [[0, 0, 0], [NAN, NAN, NAN]])
        assert {row for row, _ in table.missing} == {1}
        assert [component.asked for component in components.values()] == [["one"], [], ["one"]]

    def test_max_length_is_a_limit_in_words(self) -> None:
        components = {"a": FakeComponent(0.5), "b": FakeComponent(DOWN)}
        table = RewardSuite(components, max_length=3).score(rollouts("one two three", "one two three four"))
        np.testing.assert_array_equal(table.raw, [[0.5, NAN], [0, 0]])
        np.testing.assert_array_equal(table.values, table.raw)
        assert [component.asked for component in components.values()] == [["one two three"]] * 2
        assert table.why(1, 0) == "caption of length 4, longer than the limit of 3"

    def test_max_length_in_another_unit(self) -> None:
        table = RewardSuite({"a": FakeComponent(0.5)}, max_length=4, count=len).score(rollouts("four", "fives"))
        assert table.values.tolist() == [[0.5], [0]]


class TestTooMuchMissing:
    def suite(self, share: int, **options: Any) -> tuple[RewardSuite, list[Rollout]]:
        """`share` of ten rollouts are missing on `a`: one of them times out, the others' server is down."""
        verdicts = {f"c{n}": 1.0 if n >= share else DOWN if n else Missing(Reason.TIMEOUT, "60 s") for n in range(10)}
        return RewardSuite({"a": by_caption(**verdicts), "b": FakeComponent(1.0)}, **options), rollouts(*verdicts)

    def test_stops(self) -> None:
        suite, batch = self.suite(4, max_missing=0.3)
        with pytest.raises(TooManyMissingError) as error:
            suite.score(batch)
        assert str(error.value).startswith(
            "component 'a': missing for 4 of 10 rollouts (server: 3, timeout: 1), more than max_missing=0.3 allows"
        )

    @pytest.mark.parametrize("allowed", [0.3, 1.0])
    def test_as_much_as_allowed_goes_on(self, allowed: float) -> None:
        suite, batch = self.suite(3, max_missing=allowed)
        assert suite.score(batch).missing_by_reason()["a"].total() == 3

    def test_none_allowed(self) -> None:
        suite, batch = self.suite(1, max_missing=0)
        with pytest.raises(
            TooManyMissingError, match=r"1 of 10 rollouts \(timeout: 1\), more than max_missing=0 allows"
        ):
            suite.score(batch)

    @pytest.mark.parametrize(("share", "warned"), [(0, False), (5, False), (6, True), (10, True)])
    def test_warns_above_half(self, caplog: pytest.LogCaptureFixture, share: int, warned: bool) -> None:
        suite, batch = self.suite(share)
        with caplog.at_level(logging.WARNING, "capreward"):
            suite.score(batch)
        said = [record.getMessage() for record in caplog.records]
        assert bool(said) is warned
        if warned:
            assert said[0].startswith(
                f"component 'a': missing for {share} of 10 rollouts (server: {share - 1}, timeout: 1)"
            )

    def test_gated_zeros_are_not_missing(self) -> None:
        suite = RewardSuite({"a": FakeComponent(DOWN)}, gates=[FakeGate("a", 0.0)], max_missing=0)
        assert suite.score(rollouts("one", "two")).values.tolist() == [[0], [0]]


class TestConstruction:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"weights": {"c": 1}}, "weights: got component 'c', expected one of ['a', 'b']"),
            ({"weights": {"a": 0, "b": 0}}, "weights: all are zero"),
            ({"weights": {"a": -1}}, "weights['a']: got -1, expected a finite number >= 0"),
            ({"weights": {"a": NAN}}, "weights['a']: got nan, expected a finite number >= 0"),
            ({"weights": {"b": np.inf}}, "weights['b']: got inf, expected a finite number >= 0"),
            ({"gates": [LengthMask("c")]}, "LengthMask: got component 'c', expected one of ['a', 'b']"),
            ({"gates": [Condition("a", on="c", at_least=1)]}, "Condition: got component 'c', expected one of ['a', 'b']"),
            ({"gates": [FakeComponent(1.0)]}, "expected a gate: LengthMask, LinearLengthPenalty, Condition or your own"),
            ({"max_missing": 1.1}, "max_missing: got 1.1, expected a share in [0, 1]"),
            ({"max_missing": -0.1}, "max_missing: got -0.1, expected a share in [0, 1]"),
            ({"max_missing": NAN}, "max_missing: got nan, expected a share in [0, 1]"),
            ({"max_length": 0}, "max_length: got 0, expected a number >= 1, or None for no limit"),
        ],
    )  # fmt: skip
    def test_refuses_settings(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError) as error:
            RewardSuite({"a": FakeComponent(1.0), "b": FakeComponent(1.0)}, **options)
        assert said in str(error.value)

    def test_refuses_no_components(self) -> None:
        with pytest.raises(InputError, match=r"components: got \{\}, expected at least one"):
            RewardSuite({})

    @pytest.mark.parametrize(
        "component", [None, "fluency", LengthMask("a"), lambda _: [1.0], FakeComponent, Synchronous()]
    )
    def test_refuses_what_is_no_component(self, component: Any) -> None:
        with pytest.raises(
            InputError, match=r"component 'a': got .*, expected an object with a name and an async method"
        ):
            RewardSuite({"a": component})

    @pytest.mark.parametrize("components", [[FakeComponent(1.0)], None])
    def test_refuses_components_without_names(self, components: Any) -> None:
        with pytest.raises(InputError, match=r"components: got .*, expected at least one by its name"):
            RewardSuite(components)

    @pytest.mark.parametrize("gates", [LengthMask("a"), [LengthMask]])
    def test_refuses_what_is_no_list_of_gates(self, gates: Any) -> None:
        with pytest.raises(InputError, match="gates: got "):
            RewardSuite({"a": FakeComponent(1.0)}, gates=gates)

    def test_refuses_weights_without_names(self) -> None:
        with pytest.raises(InputError, match=r"weights: got \[1\], expected numbers by component"):
            RewardSuite({"a": FakeComponent(1.0)}, weights=[1])  # type: ignore[arg-type]

    def test_refuses_a_weight_that_is_no_number(self) -> None:
        with pytest.raises(InputError, match=r"weights\['a'\]: got '1', expected a finite number"):
            RewardSuite({"a": FakeComponent(1.0)}, weights={"a": "1"})  # type: ignore[dict-item]

    def test_a_component_of_weight_zero_does_not_count_as_missing(self) -> None:
        components = {"a": FakeComponent(1.0), "b": FakeComponent(DOWN)}
        suite = RewardSuite(components, weights={"b": 0}, max_missing=0.0)
        assert suite.score(rollouts("one")).missing == {(0, 1): DOWN}


class TestRollouts:
    SUITE = RewardSuite({"a": FakeComponent(1.0)})

    def test_none(self) -> None:
        with pytest.raises(InputError, match="rollouts: got none"):
            self.SUITE.score([])

    @pytest.mark.parametrize("batch", [["A cup."], [{"caption": "A cup."}], rollouts("A cup.")[0]])
    def test_what_are_no_rollouts(self, batch: Any) -> None:
        with pytest.raises(InputError, match="rollouts: got "):
            self.SUITE.score(batch)

    def test_metadata_may_hold_anything(self) -> None:
        first, second = (Item(id="cup", metadata={"array": np.zeros(2)}) for _ in range(2))
        assert len(self.SUITE.score([*rollouts("a", item=first), *rollouts("b", item=second)])) == 2

    def test_an_id_twice(self) -> None:
        item = Item(id="cup")
        batch = [Rollout(item=item, caption=text, id=name) for text, name in [("a", "r"), ("b", "s"), ("c", "r")]]
        with pytest.raises(InputError, match=r"rollouts\[2\]: id 'r' is taken by rollouts\[0\]"):
            self.SUITE.score(batch)

    def test_an_id_that_was_generated_for_another(self) -> None:
        item = Item(id="cup")
        with pytest.raises(InputError, match=r"rollouts\[1\]: id 'cup#0' is taken by rollouts\[0\]"):
            self.SUITE.score([Rollout(item=item, caption="a"), Rollout(item=item, caption="b", id="cup#0")])

    def test_two_items_under_one_id(self) -> None:
        batch = [*rollouts("a", item=Item(id="cup")), *rollouts("b", item=Item(id="cup", references=["A cup."]))]
        with pytest.raises(InputError, match="two different items have the id 'cup'"):
            self.SUITE.score(batch)

    def test_one_item_in_two_equal_objects(self) -> None:
        batch = [*rollouts("a", item=Item(id="cup")), *rollouts("b", item=Item(id="cup"))]
        assert len(self.SUITE.score(batch)) == 2

    def test_from_an_iterator(self) -> None:
        assert len(self.SUITE.score(iter(rollouts("a", "b")))) == 2


class TestCalls:
    def test_inside_a_running_event_loop(self) -> None:
        async def main() -> ScoreTable:
            return RewardSuite({"a": FakeComponent(0.5)}).score(rollouts("one"))

        assert asyncio.run(main()).values.tolist() == [[0.5]]

    def test_awaited(self) -> None:
        async def main() -> list[ScoreTable]:
            suite = RewardSuite({"a": by_caption(one=0.1, two=0.2)})
            return await asyncio.gather(suite.ascore(rollouts("one")), suite.ascore(rollouts("two")))

        assert [table.values.tolist() for table in asyncio.run(main())] == [[[0.1]], [[0.2]]]

    def test_awaited_inside_a_component(self) -> None:
        inner = RewardSuite({"a": FakeComponent(0.5)})

        class Nested:
            name = "nested"

            async def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
                table = await inner.ascore(rollouts)
                return [Score(value) for value in table.total()]

        assert RewardSuite({"b": Nested()}).score(rollouts("one", "two")).values.tolist() == [[0.5], [0.5]]

    def test_score_inside_a_component_is_refused(self) -> None:
        """In a process of its own: if it hung, it would take this one's event loop with it."""
        script = """
            from fakes import FakeComponent, rollouts
            from capreward import RewardSuite, Score
            from capreward.errors import InputError

            suite = RewardSuite({"a": FakeComponent(lambda rollout: suite.score([rollout]))})
            for _ in range(2):
                try:
                    suite.score(rollouts("one"))
                except InputError as error:
                    print(error)
            print(RewardSuite({"a": FakeComponent(0.5)}).score(rollouts("one")).values)
        """
        refusal = (
            "component 'a': a blocking call such as score() was made inside a component, a judge or a stage, "
            "and would wait for itself; await a coroutine there, such as ascore()"
        )
        assert in_process(script) == [refusal, refusal, "[[0.5]]"]

    def test_started(self) -> None:
        suite = RewardSuite({"a": FakeComponent(0.5)})
        tables = [start(suite.ascore(rollouts(text), part=True)) for text in ("one", "two")]
        assert [table.result(10).values.tolist() for table in tables] == [[[0.5]], [[0.5]]]

    def test_in_a_forked_child(self) -> None:
        script = """
            import os
            from fakes import FakeComponent, rollouts
            from capreward import RewardSuite

            suite = RewardSuite({"a": FakeComponent(0.5)})
            before = suite.score(rollouts("one")).values  # starts the loop's thread, which no child inherits
            child = os.fork()
            if not child:
                os._exit(7 if (suite.score(rollouts("one")).values == before).all() else 1)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            print(suite.score(rollouts("one")).values)
        """
        assert in_process(script) == ["7", "[[0.5]]"]

    def test_from_many_threads_at_once(self) -> None:
        suite = RewardSuite({"a": FakeComponent(lambda rollout: float(rollout.caption) / 100)})
        with ThreadPoolExecutor(8) as threads:
            tables = threads.map(lambda n: suite.score(rollouts(str(n), str(99 - n))), range(100))
            values = [table.values[:, 0].tolist() for table in tables]
        assert values == [[n / 100, (99 - n) / 100] for n in range(100)]

    def test_an_exception_in_one_component_stops_the_call(self) -> None:
        broken = FakeComponent(ValueError("no such colour"))
        suite = RewardSuite({"a": FakeComponent(1.0), "b": broken, "c": FakeComponent(1.0)})
        with pytest.raises(ComponentError, match=r"^component 'b': ValueError: no such colour$"):
            suite.score(rollouts("one"))

    def test_an_exception_in_one_component_stops_the_others(self) -> None:
        ended: list[str] = []

        class Waits:
            name = "waits"

            async def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    ended.append("cancelled")
                    raise
                return []

        async def main() -> None:
            suite = RewardSuite({"a": Waits(), "b": FakeComponent(2.0)})
            with pytest.raises(ComponentError):
                await suite.ascore(rollouts("one"))
            assert ended == ["cancelled"]

        asyncio.run(main())

    def test_progress_gives_the_same_table(self) -> None:
        captions = [f"caption {n}" if n % 7 else "" for n in range(150)]

        def table(progress: bool) -> tuple[ScoreTable, FakeComponent]:
            component = FakeComponent(lambda rollout: DOWN if "3" in rollout.caption else len(rollout.caption) / 100)
            mask = FakeGate("a", lambda rollout: 0.0 if rollout.caption.endswith("5") else 0.5)
            suite = RewardSuite({"a": component, "b": FakeComponent(1.0)}, gates=[mask])
            return suite.score(rollouts(*captions), progress=progress), component

        (shown, chunked), (plain, whole) = table(True), table(False)
        np.testing.assert_array_equal(shown.raw, plain.raw)
        np.testing.assert_array_equal(shown.values, plain.values)
        assert shown.ids == plain.ids
        assert shown.scores == plain.scores
        assert shown.missing == plain.missing
        assert shown.gated == plain.gated
        assert (len(chunked.batches), len(whole.batches)) == (3, 1)
        assert chunked.asked == whole.asked


class TestParts:
    """A batch that is scored in parts, while more of it is on the way."""

    SUITE = RewardSuite({"a": by_caption(good=1.0, lost=DOWN)}, max_missing=0.5)

    def test_are_not_held_against_the_limit(self) -> None:
        lost, good = (asyncio.run(self.SUITE.ascore(rollouts(text, id=text), part=True)) for text in ("lost", "good"))
        whole = concatenated([lost, good])
        self.SUITE.check_missing(whole)
        with pytest.raises(TooManyMissingError, match=r"component 'a': missing for 1 of 1 rollouts \(server: 1\)"):
            self.SUITE.check_missing(lost)

    def test_a_whole_batch_is(self) -> None:
        with pytest.raises(TooManyMissingError):
            asyncio.run(self.SUITE.ascore(rollouts("lost")))

    def test_check_missing_tells_what_it_lets_pass(self, caplog: pytest.LogCaptureFixture) -> None:
        table = RewardSuite({"a": by_caption(good=1.0, lost=DOWN)}).score(rollouts("good"))
        caplog.clear()
        caplog.set_level(logging.INFO, "capreward")
        self.SUITE.check_missing(table)
        assert caplog.messages == []
        self.SUITE.check_missing(asyncio.run(self.SUITE.ascore(rollouts("good", "lost"), part=True)))
        [said] = caplog.messages
        assert said.startswith("component 'a': missing for 1 of 2 rollouts (server: 1)")


def in_process(script: str) -> list[str]:
    """Lines that a script prints in an interpreter of its own; it fails when the script fails or hangs."""
    code = f"import sys, textwrap; sys.path[:0] = {sys.path!r}; exec(textwrap.dedent({script!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class TestUsage:
    """What the table says of its judges."""

    def test_of_each_judge_while_these_were_scored(self, cup: Item) -> None:
        shared, own = FunctionJudge((1.0, 1.0, 1.0), name="shared"), FunctionJudge((0.0, 1.0), name="own")
        suite = RewardSuite({"fluency": Fluency(shared), "qa": QAUtility(own), "again": Fluency(shared)})
        for _ in range(2):  # the second table does not count the first one's questions
            table = suite.score([Rollout(item=cup, caption="A cup."), Rollout(item=cup, caption="A mug.")])
            assert table.usage == (("shared", Usage(requests=4, calls=4)), ("own", Usage(requests=2, calls=2)))

    def test_of_no_judge(self) -> None:
        table = RewardSuite({"rule": FakeComponent(1.0)}).score(rollouts("A cup."))
        assert table.usage == ()
