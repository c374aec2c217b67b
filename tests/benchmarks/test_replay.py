"""The ledger that benchmarks/replay makes up is one that LedgerWriter writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from capreward.ablation import Ablation
from capreward.ledger import Ledger

RUN = Path(__file__).parents[2] / "benchmarks" / "replay" / "run.py"


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("replay_run", RUN)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_first_step_is_what_a_suite_writes(run: ModuleType, tmp_path: Path) -> None:
    run.scored(tmp_path)
    ledger = Ledger(tmp_path)
    assert (tmp_path / "rollouts.jsonl").read_text("utf-8") == "".join(run.lines(0, ledger.suites[0]["digest"]))
    rows = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text("utf-8").splitlines()]
    assert {None, "server"} == {row["missing"]["rubric"] for row in rows}
    assert {0, 1} == {len(row["gated"]) for row in rows}


def test_two_steps_are_two_batches(run: ModuleType, tmp_path: Path) -> None:
    suite = run.write(tmp_path, 2)
    ablation = Ablation(Ledger(tmp_path))
    assert (len(ablation), ablation.groups, ablation.items) == (1024, 128, 128)
    np.testing.assert_array_equal(Ledger(tmp_path).rows().batch, np.repeat([0, 1], 512))
    assert suite.components["qa"].asked == 512
