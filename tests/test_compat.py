"""The peers' arithmetic by numbers small enough to do by hand; the packages themselves are in parity/test_compat_peers.py."""

from __future__ import annotations

import doctest
import math
from typing import Any

import numpy as np
import pytest
import torch
from fakes import table_of

from capreward import compat, gdpo, grpo
from capreward.compat import ms_swift, nemo_rl, trl, verl

NAN = math.nan
R2 = math.sqrt(2)
every_peer = pytest.mark.parametrize("peer", [trl, verl, ms_swift, nemo_rl])
both = pytest.mark.parametrize("method", ["gdpo", "grpo"])


@both
@every_peer
def test_where_nothing_is_missing_all_are_ours_but_for_eps(peer: Any, method: Any) -> None:
    values, groups = np.random.default_rng(0).random((48, 3)), np.repeat(np.arange(6), 8)
    options = {"leave_one_out": False} if peer is nemo_rl else {}
    theirs = peer(values, groups, [1, 2, 0.5], method=method, **options)
    ours = (gdpo if method == "gdpo" else grpo)(values, groups, [1, 2, 0.5])
    assert theirs.dtype == np.float32
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(theirs, ours, rtol=2e-3, atol=1e-4)


@both
@every_peer
def test_groups_may_be_interleaved_here(peer: Any, method: Any) -> None:
    values, groups = np.random.default_rng(0).random((24, 2)), np.repeat(list("abc"), 8)
    order = np.argsort(np.tile(np.arange(8), 3), kind="stable")
    np.testing.assert_array_equal(
        peer(values[order], groups[order], method=method), peer(values, groups, method=method)[order]
    )


@every_peer
def test_full_sized_advantages_of_groups_that_do_not_vary(peer: Any) -> None:
    values = np.repeat(np.random.default_rng(0).random((16, 4)), 7, axis=0)
    groups = np.repeat(np.arange(16), 7)
    assert np.abs(peer(values, groups)).max() > 0.5
    assert not gdpo(values, groups).any()


@every_peer
def test_usable_in_a_table(peer: Any) -> None:
    table, _ = table_of({"a": [0.1, 0.9, 0.3, 0.8], "b": [0.5, 0.2, 0.9, 0.4]})
    expected = peer(table.values, table.groups, table.weights, method="grpo")
    np.testing.assert_array_equal(table.advantages(peer, method="grpo"), expected)


@every_peer
def test_torch_in_torch_out_and_nothing_in_nothing_out(peer: Any) -> None:
    values = torch.tensor([[0.0, 0.3], [1.0, 0.1], [0.5, 0.9]])
    result = peer(values, [0, 0, 0])
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result.numpy(), peer(values.numpy(), [0, 0, 0]))
    for method in ("gdpo", "grpo"):
        assert peer(np.zeros((0, 2)), [], method=method).shape == (0,)


@every_peer
def test_refused(peer: Any) -> None:
    with pytest.raises(ValueError, match="method: got 'ppo', expected 'gdpo' or 'grpo'"):
        peer([[0.0], [1.0]], [0, 0], method="ppo")
    with pytest.raises(ValueError, match=r"groups: got shape \(1,\)"):
        peer([[0.0], [1.0]], [0])


@pytest.mark.parametrize("peer", [trl, ms_swift])
def test_groups_of_different_sizes_are_refused(peer: Any) -> None:
    with pytest.raises(ValueError, match=r"groups: got sizes \[1, 2\], expected one size"):
        peer([[0.0], [1.0], [2.0]], [0, 0, 1])


# ---------------------------------------------------------------------------------------------- missing, alone, tokens

MISSING = [[0.0, 0.5], [1.0, NAN], [NAN, NAN], [2.0, 0.5]]
"""One group; the second component does not vary, the third rollout has no score."""


def test_missing_scores() -> None:
    # z = (-1, 0, -, 1) in the first; over three rollouts, whose deviation is 1; ms-swift counts four: sqrt(2 / 3).
    np.testing.assert_allclose(trl(MISSING, [0] * 4), [-1, 0, 0, 1], atol=1e-3)
    np.testing.assert_allclose(ms_swift(MISSING, [0] * 4), np.array([-1, 0, 0, 1]) / math.sqrt(2 / 3), atol=1e-3)
    for peer in (verl, nemo_rl):
        assert np.isnan(peer([*MISSING, [0.1, 0.2], [0.3, 0.9]], [0] * 4 + [1] * 2)).all()
    # GRPO: sums 0.5, 1, nothing, 2.5. TRL leaves the third out, ms-swift takes it for 0.
    three, four = np.array([0.5, 1, 2.5]), np.array([0.5, 1, 0, 2.5])
    a, b, c = (three - three.mean()) / three.std(ddof=1)
    np.testing.assert_allclose(trl(MISSING, [0] * 4, method="grpo"), [a, b, 0, c], atol=1e-3)
    np.testing.assert_allclose(ms_swift(MISSING, [0] * 4, method="grpo"), (four - 1) / four.std(ddof=1), atol=1e-3)
    for peer in (verl, nemo_rl):
        result = peer([*MISSING, [0.1, 0.2], [0.3, 0.9]], [0] * 4 + [1] * 2, method="grpo")
        assert np.isnan(result).tolist() == [True] * 4 + [False] * 2


@both
def test_a_group_of_one(method: Any) -> None:
    alone = np.array([[5.0], [3.0]])
    assert trl(alone, [0, 1], method=method).tolist() == [0, 0]
    assert ms_swift(alone, [0, 1], method=method).tolist() == [0, 0]
    assert nemo_rl(alone, [0, 1], method=method).tolist() == [0, 0]
    # verl: 5 and 3 themselves; GDPO then whitens them, 4 +- 1, whose deviation is sqrt(2).
    expected = [5, 3] if method == "grpo" else [1 / R2, -1 / R2]
    np.testing.assert_allclose(verl(alone, [0, 1], method=method), expected, rtol=1e-5)


def test_verl_whitens_over_tokens() -> None:
    # z = -0.71 and 0.71 on 1 and 3 tokens: their mean is 0.35, their variance ((-1.06)**2 + 3 * 0.35**2) / 3 = 0.5.
    np.testing.assert_allclose(verl([[0.0], [1.0]], [0, 0], lengths=[1, 3]), [-1.5, 0.5], rtol=1e-4)
    for lengths in ([1], [0, 2]):
        with pytest.raises(ValueError, match=r"lengths: got .*, expected \(2,\): tokens of each rollout, at least 1"):
            verl([[0.0], [1.0]], [0, 0], lengths=lengths)
    with pytest.raises(ValueError, match="lengths: got a single token in all"):
        verl([[0.0]], [0])


def test_nemo_rl_leaves_one_out() -> None:
    # Others' means 1.5, 1, 0.5 and deviations 1 / sqrt(2), sqrt(2), 1 / sqrt(2).
    three = np.array([[0.0], [1.0], [2.0]])
    np.testing.assert_allclose(nemo_rl(three, [0] * 3, method="grpo"), np.array([-1.5, 0, 1.5]) * R2, rtol=1e-5)
    np.testing.assert_allclose(nemo_rl(three, [0] * 3, method="grpo", leave_one_out=False), [-1, 0, 1], atol=1e-5)
    np.testing.assert_allclose(nemo_rl(three, [0] * 3), [-1, 0, 1], atol=1e-5)
    # Of a pair, the deviation of the one other score is not defined, so it divides by nothing.
    np.testing.assert_allclose(nemo_rl([[0.0], [3.0]], [0, 0], method="grpo"), [-3, 3])


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(compat).failed == 0
