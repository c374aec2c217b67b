from __future__ import annotations

import numpy as np
import pytest

from capreward.errors import InputError
from capreward.intervals import Estimate, interval, means, resampled_means

NAN = float("nan")


def test_missing_leaves_the_mean_and_is_counted() -> None:
    values = np.array([[0.2, NAN], [0.4, NAN], [NAN, NAN]])
    one, none = means(values, ["a", "b", "c"], draws=200)
    assert (one.mean, one.scored, one.missing) == (pytest.approx(0.3), 2, 1)
    assert 0.2 <= one.low <= one.mean <= one.high <= 0.4
    assert np.isnan([none.mean, none.low, none.high]).all()
    assert (none.scored, none.missing) == (0, 3)


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(5, 2, (400, 1))
    (found,) = means(values, np.arange(400), draws=4000)
    error = 1.96 * 2 / np.sqrt(400)
    assert found.low == pytest.approx(values.mean() - error, abs=0.03)
    assert found.high == pytest.approx(values.mean() + error, abs=0.03)


def test_captions_of_an_item_are_drawn_together() -> None:
    # ten captions a item that all say the same are no more than one
    once = np.random.default_rng(2).random((30, 1))
    (one,) = means(once, np.arange(30), seed=3)
    (many,) = means(np.repeat(once, 10, axis=0), np.repeat(np.arange(30), 10), seed=3)
    assert (one.low, one.high) == pytest.approx((many.low, many.high))


def test_same_seed_same_items_drawn_whatever_the_order_and_the_values() -> None:
    values = np.random.default_rng(4).random((6, 1))
    items = np.array(list("fbcade"))
    order = np.argsort(items)
    straight = resampled_means(values, items, draws=250, seed=1)
    np.testing.assert_allclose(straight, resampled_means(values[order], items[order], draws=250, seed=1))
    np.testing.assert_allclose(1 - straight, resampled_means(1 - values, items, draws=250, seed=1))
    assert len(straight) == 250
    assert len(np.unique(straight.round(12))) > 150
    assert not np.allclose(straight, resampled_means(values, items, draws=250, seed=2))


def test_the_middle_of_what_was_drawn() -> None:
    drawn = np.array([*range(101), NAN])
    assert interval(drawn) == pytest.approx((2.5, 97.5))
    assert interval(drawn, 0.5) == pytest.approx((25, 75))


def test_one_item_has_no_interval() -> None:
    (found,) = means(np.array([[0.5], [0.7]]), ["a", "a"])
    assert repr(found) == repr(Estimate(0.6, NAN, NAN, 2, 0))


def test_cannot_be() -> None:
    with pytest.raises(InputError, match="draws: got 0, expected a number >= 1"):
        resampled_means(np.ones((2, 1)), ["a", "b"], draws=0)
    with pytest.raises(InputError, match="level: got 95, expected a number in"):
        interval(np.ones(3), 95)
    with pytest.raises(InputError, match="values: got no captions"):
        means(np.ones((0, 1)), [])
