from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import rollouts
from hypothesis import given, strategies as st

from capreward import Condition, Item, LengthMask, LinearLengthPenalty, Missing, Reason, Score
from capreward.components import tokens
from capreward.errors import InputError


def words(count: int) -> str:
    return " ".join(["word"] * count)


def factor(gate: LengthMask | LinearLengthPenalty, length: int, *references: int) -> float:
    """A gate's factor for a caption and references of these lengths, in words."""
    item = Item(id="cup", references=[words(count) for count in references])
    (result,) = gate.factors(rollouts(words(length), item=item), {})
    assert isinstance(result, Score)
    return result.value


class TestLengthMask:
    @pytest.mark.parametrize(
        ("length", "inside"), [(1, False), (4, False), (5, True), (10, True), (20, True), (21, False), (500, False)]
    )
    def test_bounds_belong_to_the_inside(self, length: int, inside: bool) -> None:
        assert factor(LengthMask("fluency"), length, 10) == inside

    @pytest.mark.parametrize(("length", "inside"), [(8, False), (9, True), (15, True), (16, False)])
    def test_bounds_of_ones_own(self, length: int, inside: bool) -> None:
        assert factor(LengthMask("fluency", low=0.9, high=1.5), length, 10) == inside

    @pytest.mark.parametrize(("length", "inside"), [(9, False), (10, True), (40, True), (41, False)])
    def test_several_references_count_by_their_mean(self, length: int, inside: bool) -> None:
        assert factor(LengthMask("fluency"), length, 10, 30) == inside

    def test_bounds_belong_to_the_inside_with_several_references(self) -> None:
        assert factor(LengthMask("fluency", high=1.2), 22, 10, 20, 25) == 1

    @given(st.integers(1, 50), st.lists(st.integers(1, 50), min_size=1, max_size=4))
    def test_default_bounds_are_exact(self, length: int, references: list[int]) -> None:
        ratio_is_inside = sum(references) <= 2 * length * len(references) <= 4 * sum(references)
        assert factor(LengthMask("fluency"), length, *references) == ratio_is_inside

    def test_of_ratios_as_an_ablation_asks(self) -> None:
        np.testing.assert_array_equal(LengthMask("fluency").of(np.array([0.4, 0.5, 2.0, np.nan])), [0, 1, 1, np.nan])

    def test_says_why(self) -> None:
        (result,) = LengthMask("fluency").factors(rollouts("A cup.", item=Item(id="c", references=[words(8)])), {})
        assert result == Score(0.0, "length 0.25 x reference, allowed 0.5 to 2")

    def test_no_reference(self) -> None:
        (result,) = LengthMask("fluency").factors(rollouts("A cup."), {})
        assert result == Missing(Reason.NO_REFERENCE, "item 'bare' has no reference to compare the length with")

    def test_references_without_length_are_none(self) -> None:
        (result,) = LengthMask("fluency").factors(rollouts("A cup.", item=Item(id="cup", references=["..."])), {})
        assert result.reason == Reason.NO_REFERENCE

    def test_needs_no_score(self) -> None:
        assert LengthMask("fluency").reads == LinearLengthPenalty("fluency").reads == ()

    @pytest.mark.parametrize(("low", "high"), [(2, 0.5), (1, 1), (-0.1, 1), (float("nan"), 1), (0.5, float("nan"))])
    def test_impossible_bounds(self, low: float, high: float) -> None:
        with pytest.raises(InputError, match=r"LengthMask\('fluency'\): got low=.*, expected 0 <= low < high"):
            LengthMask("fluency", low=low, high=high)


class TestTokens:
    @staticmethod
    def tokenizer(text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """One token a character."""
        return {"input_ids": [1] * add_special_tokens + [ord(character) for character in text]}

    def test_count_without_special_ones(self) -> None:
        assert tokens(self.tokenizer)("cup") == 3

    def test_as_a_gates_unit(self) -> None:
        item = Item(id="cup", references=["four"])
        gate = LengthMask("fluency", count=tokens(self.tokenizer))
        factors = gate.factors(rollouts("a", "ab", "eight888", "nine99999", item=item), {})
        assert [result.value for result in factors] == [0, 1, 1, 0]


class TestLinearLengthPenalty:
    @pytest.mark.parametrize(
        ("length", "expected"), [(1, 1), (10, 1), (12, 0.8), (15, 0.5), (19, 0.1), (20, 0), (21, 0), (500, 0)]
    )
    def test_falls_from_start_to_end(self, length: int, expected: float) -> None:
        assert factor(LinearLengthPenalty("fluency"), length, 10) == pytest.approx(expected)

    @pytest.mark.parametrize(("length", "expected"), [(12, 1), (15, 0.9), (25, 0.5), (37, 0.02)])
    def test_between_bounds_of_ones_own(self, length: int, expected: float) -> None:
        assert factor(LinearLengthPenalty("fluency", start=1.25, end=3.75), length, 10) == pytest.approx(expected)

    def test_several_references_count_by_their_mean(self) -> None:
        assert factor(LinearLengthPenalty("fluency"), 30, 10, 30) == 0.5

    def test_no_reference(self) -> None:
        (result,) = LinearLengthPenalty("fluency").factors(rollouts("A cup."), {})
        assert result.reason == Reason.NO_REFERENCE

    @given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 50))
    def test_lies_in_the_unit_interval_and_never_rises(self, one: int, other: int, reference: int) -> None:
        gate = LinearLengthPenalty("fluency", start=0.7, end=1.9)
        long, short = (factor(gate, length, reference) for length in (max(one, other), min(one, other)))
        assert 0 <= long <= short <= 1

    @pytest.mark.parametrize(("start", "end"), [(2, 1), (1, 1), (-1, 1), (1, float("inf")), (float("nan"), 2)])
    def test_impossible_bounds(self, start: float, end: float) -> None:
        with pytest.raises(
            InputError, match=r"LinearLengthPenalty\('fluency'\): got start=.*, expected 0 <= start < end"
        ):
            LinearLengthPenalty("fluency", start=start, end=end)


class TestCondition:
    def test_by_hand(self) -> None:
        gate = Condition("fluency", on="precision", at_least=0.5)
        values = {"precision": np.array([0.49, 0.5, 1.0, 0.0, np.nan])}
        factors = gate.factors(rollouts(*"abcde"), values)
        assert [result.value for result in factors[:4]] == [0, 1, 1, 0]
        assert factors[0].why == "precision is 0.49, needs 0.5"
        assert factors[4] == Missing(Reason.DEPENDS, "needs 'precision', which is missing")

    def test_reads_the_other_component(self) -> None:
        gate = Condition("fluency", on="precision", at_least=0.5)
        assert (gate.target, gate.reads) == ("fluency", ("precision",))

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"target": "a", "on": "a", "at_least": 0.5}, "target and on are both 'a'"),
            ({"target": "a", "on": "b", "at_least": 0}, "got at_least=0, expected a number in (0, 1]"),
            ({"target": "a", "on": "b", "at_least": 1.1}, "got at_least=1.1, expected a number in (0, 1]"),
            ({"target": "a", "on": "b", "at_least": float("nan")}, "got at_least=nan, expected a number in (0, 1]"),
        ],
    )
    def test_impossible(self, arguments: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError) as error:
            Condition(**arguments)
        assert said in str(error.value)
