"""`capreward.compat` beside the packages that it imitates: equal within float32, and the same faults."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from trl_formula import trl_advantages
from verl_formula import VERL_PYTHON, VerlResults, verl_gdpo

from capreward.compat import ms_swift, trl, verl

NAN = float("nan")
TOLERANCE = 2e-4  # float32, in another order of additions
METHODS = ("gdpo", "grpo")
AGGREGATION = {"gdpo": "normalize_then_sum", "grpo": "sum_then_normalize"}
both = pytest.mark.parametrize("method", METHODS)


def scores(seed: int, size: int, k: int, missing: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores of 6 groups in a row, group ids, weights)"""
    rng = np.random.default_rng(seed)
    values = rng.random((6 * size, k)).astype(np.float32)
    values[rng.random(values.shape) < missing] = NAN
    values[rng.random(len(values)) < missing / 2] = NAN
    return values, np.repeat(np.arange(6), size), rng.uniform(0.2, 2, k).astype(np.float32)


def constant(size: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(size).random((16, 4)).astype(np.float32)
    return np.repeat(values, size, axis=0), np.repeat(np.arange(16), size)


# ---------------------------------------------------------------------------------------------- TRL


@both
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_trl(size: int, missing: float, method: Any) -> None:
    for seed in range(10):
        values, groups, weights = scores(seed, size, 3, missing)
        theirs = trl_advantages(torch.tensor(values), torch.tensor(weights), size, AGGREGATION[method])
        ours = trl(values, groups, weights, method=method)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=TOLERANCE)
        assert (np.abs(ours).max() > 0.5) == (size > 1)


@pytest.mark.parametrize("size", [7, 8])
def test_trl_trains_on_noise(size: int) -> None:
    values, groups = constant(size)
    assert np.abs(trl(values, groups)).max() > 0.5
    assert trl_advantages(torch.tensor(values), None, size, "normalize_then_sum").abs().max() > 0.5


def test_trl_punishes_a_judges_failure_in_grpo() -> None:
    values = np.array([[0.5, NAN], [0.5, 1], [0.5, 1], [0.5, 1]], np.float32)
    np.testing.assert_allclose(trl(values, [0] * 4, method="grpo"), [-1.5, 0.5, 0.5, 0.5], atol=1e-3)


# ---------------------------------------------------------------------------------------------- verl, ms-swift


def cases() -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for seed, size in enumerate([2, 3, 8, 13]):
        values, groups, weights = scores(seed, size, 3)
        order = np.random.default_rng(seed).permutation(len(groups))
        lengths = np.random.default_rng(seed).integers(1, 40, len(groups))
        verls = {"rewards": values[order], "groups": groups[order], "weights": weights, "lengths": lengths}
        made[f"verl gdpo {size}"] = verls
        made[f"verl grpo {size}"] = {"rewards": values[order], "groups": groups[order], "function": "verl grpo"}
        for method in METHODS:
            for missing in (0.0, 0.3):
                values, groups, weights = scores(seed, size, 3, missing)
                swifts = {"rewards": values, "groups": groups, "weights": weights, "function": f"swift {method}"}
                made[f"swift {method} {size} {missing}"] = swifts
    values, groups, weights = scores(0, 4, 2)
    alone = {"rewards": values * 3, "groups": np.array([9, *groups[1:]]), "weights": weights}
    made["verl gdpo alone"] = {**alone, "lengths": np.arange(1, len(groups) + 1)}
    made["verl grpo alone"] = {**alone, "function": "verl grpo"}
    values, groups, _ = scores(0, 4, 1)
    values[5] = NAN
    made["verl gdpo missing"] = {"rewards": values, "groups": groups}
    made["verl grpo missing"] = {"rewards": values, "groups": groups, "function": "verl grpo"}
    values, groups, weights = scores(0, 1, 3)
    for method in METHODS:
        made[f"swift {method} groups of one"] = {"rewards": values, "groups": groups, "function": f"swift {method}"}
    for size in (7, 8):
        values, groups = constant(size)
        made[f"verl constant {size}"] = {"rewards": values, "groups": groups}
        made[f"swift constant {size}"] = {"rewards": values, "groups": groups, "function": "swift gdpo"}
    return made


CASES = cases()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> VerlResults:
    if not VERL_PYTHON.exists():
        message = "verl's environment .venv-verl is not there; `make test` sets it up"
        if os.environ.get("CAPREWARD_PEERS") == "required":
            pytest.fail(message)
        pytest.skip(message)
    return verl_gdpo(
        {name: {k: np.asarray(v) for k, v in case.items()} for name, case in CASES.items()},
        tmp_path_factory.mktemp("peers"),
    )


def ours(name: str) -> np.ndarray:
    case = CASES[name]
    values, groups, weights = case["rewards"], case["groups"], case.get("weights")
    if name.startswith("swift"):
        return ms_swift(values, groups, weights, method="grpo" if "grpo" in name else "gdpo")
    if "grpo" in name:
        return verl(values[:, :1], groups, method="grpo")
    return verl(values, groups, weights, lengths=case.get("lengths"))


@pytest.mark.parametrize("name", [name for name in CASES if "constant" not in name])
def test_verl_and_ms_swift(theirs: VerlResults, name: str) -> None:
    expected = theirs.advantages[name][:, 0]
    np.testing.assert_allclose(ours(name), expected, rtol=0, atol=TOLERANCE)
    if "missing" in name:
        assert np.isnan(expected).any()
    elif "groups of one" not in name:
        assert np.abs(expected).max() > 0.5


@pytest.mark.parametrize("name", [name for name in CASES if "constant" in name])
def test_full_sized_advantages_of_groups_that_do_not_vary(theirs: VerlResults, name: str) -> None:
    noisy = np.abs(theirs.advantages[name]).max() > 0.5
    assert noisy == (name != "swift constant 8")
    assert (np.abs(ours(name)).max() > 0.5) == noisy
