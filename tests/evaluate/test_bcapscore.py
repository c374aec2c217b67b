from __future__ import annotations

from statistics import harmonic_mean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from capreward.errors import InputError
from capreward.evaluate import b_capscore, b_capscore_of_set

NAN = float("nan")


def test_by_hand() -> None:
    # 3 / (1/0.5 + 1/0.25 + 1/1) = 3/7, and 3 / (1/0.8 + 1/0.5 + 1/0.4) = 3/5.75
    np.testing.assert_allclose(b_capscore([0.5, 0.8], [0.25, 0.5], [1, 0.4]), [3 / 7, 3 / 5.75])


def test_zero_and_missing() -> None:
    assert b_capscore([0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]).tolist() == [0, 1, 0]
    assert np.isnan(b_capscore([NAN, 0.0, 1.0], [1.0, NAN, 1.0], [1.0, 1.0, NAN])).all()


def test_of_a_set_by_hand() -> None:
    numbers: Any = [0.5, 1.0, NAN], [0.25, 0.5, 1.0], [1.0, 0.75, 1.0]
    # complete: the first two; 3/7 and 3 / (1 + 2 + 4/3) = 9/13
    assert b_capscore_of_set(*numbers) == pytest.approx((3 / 7 + 9 / 13) / 2)
    # their means are 0.75, 0.375 and 0.875
    assert b_capscore_of_set(*numbers, over="means") == pytest.approx(3 / (1 / 0.75 + 1 / 0.375 + 1 / 0.875))


@pytest.mark.parametrize("over", ["captions", "means"])
def test_of_a_set_without_a_complete_caption(over: Any) -> None:
    assert np.isnan(b_capscore_of_set([NAN, 1], [1, NAN], [1, 1], over=over))
    assert np.isnan(b_capscore_of_set([], [], [], over=over))


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=5))
def test_agrees_with_the_standard_library(rows: list[tuple[float, ...]]) -> None:
    np.testing.assert_allclose(
        b_capscore(*zip(*rows, strict=True)), [harmonic_mean(row) for row in rows], rtol=1e-9, atol=1e-300
    )
    of_captions, of_means = (b_capscore_of_set(*zip(*rows, strict=True), over=over) for over in ("captions", "means"))
    assert of_captions <= of_means + 1e-12


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (([1.5], [1], [1]), "precision: got 1.5, expected numbers in [0, 1]"),
        (([1], [-0.1], [1]), "recall: got -0.1, expected numbers in [0, 1]"),
        (([1, 1], [1, 1], [1]), "linguistic: got shape (1,), expected one number a caption: 2"),
        ((1, 1, 1), "precision: got shape (), expected one number a caption: 1"),
    ],
)
def test_cannot_be(numbers: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        b_capscore(*numbers)
    assert said in str(error.value)


def test_over_what() -> None:
    with pytest.raises(InputError, match="over: got 'set', expected 'captions' or 'means'"):
        b_capscore_of_set([1], [1], [1], over="set")  # type: ignore[arg-type]
