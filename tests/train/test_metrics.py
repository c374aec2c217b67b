from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs
from fakes import table_of

from capreward import Score
from capreward.errors import MissingExtraError
from capreward.train.metrics import Clock, Log, samples


def log_of(folder: Path, steps: range, positions: Any = None) -> Log:
    made = Log(folder, positions)
    for step in steps:
        made.step(step, {"loss": step / 2}, [{"id": f"é {step}", "caption": "A cup.", "scores": {}}])
    return made


class TestLog:
    def test_a_line_a_step(self, tmp_path: Path) -> None:
        log_of(tmp_path / "new" / "run", range(1, 4)).close()
        assert runs.rows(tmp_path / "new" / "run" / "metrics.jsonl") == [
            {"step": step, "loss": step / 2} for step in (1, 2, 3)
        ]
        assert [row["id"] for row in runs.rows(tmp_path / "new" / "run" / "samples.jsonl")] == ["é 1", "é 2", "é 3"]

    def test_can_be_read_meanwhile(self, tmp_path: Path) -> None:
        log = log_of(tmp_path, range(1, 3))
        assert len(runs.rows(tmp_path / "metrics.jsonl")) == 2
        log.close()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_no_finite_number_is_null(self, tmp_path: Path, value: float) -> None:
        log = Log(tmp_path)
        log.step(1, {"loss": value, "length": 2.0}, [])
        log.close()
        assert runs.rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None, "length": 2.0}]

    def test_a_new_run_starts_anew(self, tmp_path: Path) -> None:
        log_of(tmp_path, range(1, 4)).close()
        log_of(tmp_path, range(1, 2)).close()
        assert len(runs.rows(tmp_path / "metrics.jsonl")) == len(runs.rows(tmp_path / "samples.jsonl")) == 1

    def test_goes_on_from_its_positions(self, tmp_path: Path) -> None:
        log = log_of(tmp_path, range(1, 3))
        positions = log.positions()
        assert positions == {name: (tmp_path / name).stat().st_size for name in ("metrics.jsonl", "samples.jsonl")}
        log.step(3, {"loss": 99.0}, [{"id": "lost", "caption": "", "scores": {}}])
        log.close()
        log_of(tmp_path, range(3, 5), positions).close()
        assert [row["loss"] for row in runs.rows(tmp_path / "metrics.jsonl")] == [0.5, 1.0, 1.5, 2.0]
        assert [row["id"] for row in runs.rows(tmp_path / "samples.jsonl")] == ["é 1", "é 2", "é 3", "é 4"]

    def test_positions_right_after_a_resume(self, tmp_path: Path) -> None:
        log = log_of(tmp_path, range(1, 3))
        positions = log.positions()
        log.step(3, {"loss": 99.0}, [])
        log.close()
        again = Log(tmp_path, positions)
        assert again.positions() == positions
        again.close()

    def test_half_a_surrogate_pair(self, tmp_path: Path) -> None:
        log = Log(tmp_path)
        log.step(1, {}, [{"id": "x", "caption": "\ud83d", "scores": {}}])
        log.close()
        assert runs.rows(tmp_path / "samples.jsonl")[0]["caption"] == "\ud83d"

    def test_without_tensorboard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorboardX", None)
        with pytest.raises(MissingExtraError, match=r"Training needs tensorboardX.*capreward\[train\]"):
            Log(tmp_path)


class TestClock:
    def test_adds_up_and_starts_from_0_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told = iter([0.0, 1.0, 10.0, 12.0, 20.0, 20.5])
        monkeypatch.setattr("capreward.train.metrics.time", SimpleNamespace(perf_counter=lambda: next(told)))
        clock = Clock()
        for name in ("a", "a", "b"):
            with clock.phase(name):
                pass
        assert clock.read() == {"a": 3.0, "b": 0.5}
        assert clock.read() == {}

    def test_counts_what_fails(self) -> None:
        clock = Clock()
        with pytest.raises(ValueError, match="no"), clock.phase("a"):
            raise ValueError("no")
        assert "a" in clock.read()


def test_samples_are_the_best_and_the_worst() -> None:
    table, rollouts = table_of({"a": [Score(0.2), Score(0.9, "why"), Score(0.5), Score(0.1)]})
    best, worst = samples(table, rollouts[2:], table.advantages("gdpo"))
    assert (best["id"], worst["id"]) == ("y#0", "y#1")
    best, worst = samples(table, rollouts[:2], table.advantages("gdpo"))
    assert (best["id"], worst["id"]) == ("x#1", "x#0")
    assert best["scores"]["a"]["why"] == "why"
    assert best["advantages"]["gdpo"] == table.advantages("gdpo")[1]
