"""Tests of capreward.sweep and of `capreward sweep`."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import llava

from capreward import recipe, shapes, sweep
from capreward.cli import main
from capreward.errors import CaprewardError, InputError
from capreward.train.config import TrainConfig

RECIPE = Path(__file__).parents[1] / "recipes" / "shapes.yaml"
QUICK = {"groups": 2, "group_size": 2, "max_tokens": 8, "held_out": 3, "save_every": 1}
UNWARMED = {"model": "none", "steps": 2, **QUICK}
"""For the trainer's stand-in, which needs no model."""

STAND_IN = """
import json, os, sys, time, yaml
from pathlib import Path

config = yaml.safe_load(open(sys.argv[-1]))
out = Path(config["out"])
with open(out / "calls.jsonl", "a") as calls:
    calls.write(json.dumps({name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}) + "\\n")
{acts}

def write(name, mean):
    row = {"scores": {"coverage": {"value": mean}}}
    (out / name).write_text(json.dumps(row) + "\\n")

(out / "metrics.jsonl").write_text("{}\\n" * config["steps"])
write("before.jsonl", 0.25)
write("after.jsonl", 0.5 + config["seed"] / 8)
"""
"""Writes what a trainer would, once it has done what the test wants."""
StandIn = Callable[[str], None]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """In the trainer's place, a script that does something and then writes what a trainer would."""

    def set_up(acts: str) -> None:
        script = tmp_path / "stand_in.py"
        script.write_text(STAND_IN.replace("{acts}", acts))
        monkeypatch.setattr(sweep, "TRAIN", (str(script),))
        monkeypatch.setattr(sweep, "POLL", 0.05)

    return set_up


def planned(out: Path, **options: Any) -> list[sweep.Run]:
    defaults: dict[str, Any] = {"weights": [{}], "estimators": None, "seeds": [0, 1], "grid": {}, "changes": UNWARMED}
    return sweep.plan(RECIPE, out, **{**defaults, **options})


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def calls(run: sweep.Run) -> int:
    return len(rows(run.folder / "calls.jsonl"))


class TestPlan:
    """The product of the settings."""

    def test_is_every_condition_with_every_seed(self, tmp_path: Path) -> None:
        runs = planned(
            tmp_path,
            weights=[{}, {"fluency": 2, "coverage": 0.5}],
            estimators=["gdpo", "grpo"],
            grid={"learning_rate": [1e-4, 3e-4]},
        )
        assert [str(run.folder.relative_to(tmp_path)) for run in runs] == [
            f"{estimator}{weights},learning_rate={rate}/seed-{seed}"
            for weights in ("", ",coverage=0.5,fluency=2")
            for estimator in ("gdpo", "grpo")
            for rate in ("0.0001", "0.0003")
            for seed in (0, 1)
        ]
        last = runs[-1].config
        assert last.weights == {"rubric": 0, "coverage": 0.5, "fluency": 2}  # the recipe's stays where nothing is said
        assert (last.estimator, last.learning_rate, last.seed, last.steps) == ("grpo", 3e-4, 1, 2)
        assert list(tmp_path.iterdir()) == []

    def test_folders_hold_any_value(self, tmp_path: Path) -> None:
        runs = planned(tmp_path, grid={"data": ["a/b.jsonl", "../c.jsonl"], "clip": [[0.1, 0.2]]}, seeds=[0])
        assert [run.folder.parent.parent for run in runs] == [tmp_path] * 2
        assert runs[0].condition == "gdpo,data=a%2Fb.jsonl,clip=[0.1, 0.2]"
        long, longer = planned(tmp_path, grid={"prompt": ["a" * 250, "a" * 251]}, seeds=[0])
        assert long.condition[:180] == longer.condition[:180]
        assert long.condition != longer.condition
        (tmp_path / longer.condition).mkdir()

    def test_a_value_has_one_name_however_it_is_written(self, tmp_path: Path) -> None:
        for rate in (1e-4, "1e-4", "0.00010"):
            assert planned(tmp_path, grid={"learning_rate": [rate]})[0].condition == "gdpo,learning_rate=0.0001"

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"seeds": []}, "seeds: got none, expected at least one"),
            ({"grid": {"steps": []}}, "steps: got none, expected at least one"),
            ({"seeds": [1, 1]}, "conditions: got gdpo with seed 1 twice; name every condition and seed once"),
            ({"weights": [{"qa": 1}, {"qa": 1.0}]}, "got gdpo,qa=1 with seed 0 twice"),
            ({"estimators": ["ppo"]}, "estimator: got 'ppo'"),
            ({"weights": [{"colour": 1}]}, r"weights: got component 'colour', expected one of \['qa', 'precision'"),
            ({"weights": [{"qa": -1}]}, r"weights\['qa'\]: got -1.0, expected a finite number >= 0"),
            ({"estimators": []}, "estimators: got none"),
            ({"grid": {"stepz": [1]}}, "stepz: got 1; there is no such setting"),
            ({"grid": {"seeds": [1]}}, "seeds: got 1; there is no such setting"),
            ({"grid": {"seed": [1]}}, "seed: a sweep takes it from seeds; give it there"),
            ({"changes": {"weights": {}}}, "weights: a sweep takes it from weights"),
            ({"changes": {"held_out": 0}}, "held_out: got 0, expected more: a sweep compares scores of held-out items"),
            ({"grid": {"held_out": [3, 0]}}, "held_out: got 0, expected more"),
        ],
    )
    def test_says_what_is_wrong(self, tmp_path: Path, options: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            planned(tmp_path, **options)
        assert list(tmp_path.iterdir()) == []

    def test_weights_may_name_what_a_seeing_judge_alone_has(self, tmp_path: Path) -> None:
        names = ("precision", "precision_vs_facts")
        assert [run.config.weights[name] for name in names for run in planned(tmp_path, weights=[{name: 2}])] == [2] * 4


class TestResults:
    """The table's arithmetic."""

    @pytest.fixture
    def runs(self, tmp_path: Path) -> list[sweep.Run]:
        """Three seeds of gdpo; two and an unfinished one of grpo; two held-out items each."""
        scores = {
            ("gdpo", 0): (0.1, 0.5),
            ("gdpo", 1): (0.2, 0.7),
            ("gdpo", 2): (0.3, 0.6),
            ("grpo", 0): (0.1, 0.4),
            ("grpo", 2): (0.3, 0.8),
        }
        runs = planned(tmp_path, estimators=["gdpo", "grpo"], seeds=[0, 1, 2])
        for run in runs:
            if means := scores.get((run.condition, run.config.seed)):
                run.folder.mkdir(parents=True)
                (run.folder / "metrics.jsonl").touch()
                for name, mean in zip(("before", "after"), means, strict=True):
                    fluency = 0.5 if (run.condition, name) == ("gdpo", "before") else None
                    cells = [{"coverage": {"value": mean + d}, "fluency": {"value": fluency}} for d in (-0.1, 0.1)]
                    lines = [json.dumps({"scores": cell}) + "\n" for cell in cells]
                    (run.folder / f"{name}.jsonl").write_text("".join(lines))
        return runs

    def test_by_hand(self, runs: list[sweep.Run]) -> None:
        frame = sweep.results(runs).set_index(["condition", "score"])
        assert list(frame.index) == [(c, s) for c in ("gdpo", "grpo") for s in ("coverage", "fluency")]
        gdpo, grpo = frame.loc["gdpo", "coverage"], frame.loc["grpo", "coverage"]
        expected = {
            "seeds": 3, "unfinished": 0, "pairs": 3,
            "before": 0.2, "before_se": 0.1 / math.sqrt(3),  # deviations of 0.1, 0, 0.1 over n - 1 = 2
            "after": 0.6, "after_se": 0.1 / math.sqrt(3),
            "change": 0.4, "change_se": 0.1 / math.sqrt(3),  # 0.4, 0.5, 0.3
            "difference": 0, "difference_se": 0,
        }  # fmt: skip
        assert gdpo.to_dict() == pytest.approx(expected)
        expected = {
            "seeds": 2, "unfinished": 1, "pairs": 2,
            "before": 0.2, "before_se": 0.1,
            "after": 0.6, "after_se": 0.2,
            "change": 0.4, "change_se": 0.1,  # 0.3, 0.5
            "difference": 0.05, "difference_se": 0.15,  # -0.1 and 0.2; unpaired it would be 0
        }  # fmt: skip
        assert grpo.to_dict() == pytest.approx(expected)

    def test_what_is_missing_is_no_number(self, runs: list[sweep.Run]) -> None:
        fluency = sweep.results(runs).set_index(["score", "condition"]).loc["fluency"]
        assert list(fluency.seeds) == [0, 0]
        assert list(fluency.before) == [0.5, pytest.approx(math.nan, nan_ok=True)]
        assert fluency[["after", "after_se", "difference", "difference_se"]].isna().all(axis=None)

    def test_one_seed_has_no_error(self, runs: list[sweep.Run]) -> None:
        frame = sweep.results([run for run in runs if run.config.seed == 0])
        assert frame[["before_se", "after_se", "change_se", "difference_se"]].isna().all(axis=None)
        assert frame.difference[2] == pytest.approx(-0.1)

    def test_a_condition_without_a_finished_run(self, runs: list[sweep.Run]) -> None:
        frame = sweep.results([run for run in runs if run.condition == "gdpo" or run.config.seed == 1])
        assert frame.seeds[2] == 0
        assert frame.unfinished[2] == 1
        assert math.isnan(frame.after[2])

    def test_a_first_condition_that_lacks_a_seed(self, runs: list[sweep.Run]) -> None:
        frame = sweep.results([*runs[3:], *runs[:3]]).set_index(["condition", "score"])
        assert (frame.pairs["gdpo", "coverage"], frame.seeds["gdpo", "coverage"]) == (2, 3)
        assert frame.difference["gdpo", "coverage"] == pytest.approx(-0.05)

    def test_printed(self, runs: list[sweep.Run]) -> None:
        console = Console(record=True, width=120, file=io.StringIO())
        sweep.print_sweep(sweep.results(runs), console)
        said = [line.split() for line in console.export_text().splitlines()]
        assert ["gdpo", "3", "0.20", "±0.06", "0.50", "±0.00"] in said
        assert ["grpo", "2", "of", "3", "0.20", "±0.10", "-"] in said
        assert ["→", "0.60", "±0.20", "→", "-"] in said
        assert ["grpo", "2", "+0.05", "±0.15", "-"] in said

    def test_drawn(self, runs: list[sweep.Run]) -> None:
        picture = sweep.figure(sweep.results(runs))
        means, _, differences, _ = picture.axes
        [before, _, _], [after, _, _] = (container.lines for container in means.containers)
        assert list(before.get_xdata()) == pytest.approx([0.2, 0.2])
        assert list(after.get_xdata()) == pytest.approx([0.6, 0.6])
        assert before.get_markerfacecolor() == "white"  # told apart without colours
        [(points, _, [bars])] = (container.lines for container in differences.containers)
        assert list(points.get_xdata()) == pytest.approx([0, 0.05])
        assert bars.get_segments()[1][:, 0] == pytest.approx([-0.1, 0.2])
        assert [label.get_text() for label in means.get_yticklabels()] == ["gdpo", "grpo"]
        picture.savefig(io.BytesIO())


class TestTrain:
    """Processes, with a stand-in for the trainer."""

    def test_writes_down_what_every_run_ended_with(self, tmp_path: Path, stand_in: StandIn) -> None:
        stand_in("")
        frame = sweep.sweep(RECIPE, out=tmp_path / "out", estimators=["gdpo", "grpo"], seeds=[0, 1], **UNWARMED)
        assert list(frame.after) == [0.5625, 0.5625]
        assert list(frame.difference) == [0, 0]
        lines = rows(tmp_path / "out" / "runs.jsonl")
        assert [(line["condition"], line["seed"], line["finished"]) for line in lines] == [
            (name, seed, True) for name in ("gdpo", "grpo") for seed in (0, 1)
        ]
        assert lines[1]["scores"] == {"coverage": {"before": 0.25, "after": 0.625}}
        assert lines[3]["settings"]["estimator"] == "grpo"
        with (tmp_path / "out" / "results.csv").open() as file:
            assert [float(row["after"]) for row in csv.DictReader(file)] == [0.5625, 0.5625]

    def test_runs_are_those_of_the_recipe(self, tmp_path: Path, stand_in: StandIn) -> None:
        stand_in("")
        runs = planned(tmp_path / "out", weights=[{"qa": 1e-5}])
        sweep.train(runs, tmp_path / "out")
        assert [TrainConfig.from_yaml(run.settings) for run in runs] == [run.config for run in runs]

    def test_two_at_once_and_no_more(self, tmp_path: Path, stand_in: StandIn) -> None:
        here = tmp_path / "here"
        here.mkdir()
        stand_in(
            f"mark = Path({str(here)!r}, str(config['seed']))\n"
            "mark.touch()\n"
            "seen = 0\n"
            "end = time.monotonic() + 60\n"
            "while seen < 2 and time.monotonic() < end:\n"  # would wait in vain, were it alone
            "    seen = max(seen, len(list(mark.parent.iterdir())))\n"
            "time.sleep(0.3)\n"
            "(out / 'seen').write_text(str(max(seen, len(list(mark.parent.iterdir())))))\n"
            "mark.unlink()\n"
        )
        runs = planned(tmp_path / "out", seeds=range(4))
        sweep.train(runs, tmp_path / "out", jobs=2)
        assert {(run.folder / "seen").read_text() for run in runs} <= {"1", "2"}
        assert (runs[0].folder / "seen").read_text() == "2"

    def test_one_that_fails_sinks_no_other(
        self, tmp_path: Path, stand_in: StandIn, caplog: pytest.LogCaptureFixture
    ) -> None:
        stand_in(
            "if config['seed'] == 1: sys.exit('capreward: error: the judge is down')\n"
            "if config['seed'] == 2: os.kill(os.getpid(), 9)\n"
        )
        runs = planned(tmp_path / "out", seeds=range(4))
        with caplog.at_level(logging.WARNING, "capreward"):
            frame = sweep.train(runs, tmp_path / "out", jobs=2)
        assert (frame.seeds[0], frame.unfinished[0], frame.after[0]) == (2, 2, pytest.approx((0.5 + 0.875) / 2))
        failures = [line["failure"] for line in rows(tmp_path / "out" / "runs.jsonl")]
        assert failures == [None, "the judge is down", "ended by SIGKILL", None]
        assert f"{runs[1].folder} failed: the judge is down (see log.txt)" in caplog.messages

        stand_in("")
        again = sweep.train(runs, tmp_path / "out", jobs=2)
        assert (again.seeds[0], again.unfinished[0]) == (4, 0)
        assert [calls(run) for run in runs] == [1, 2, 2, 1]

    def test_all_that_fail(self, tmp_path: Path, stand_in: StandIn) -> None:
        stand_in("print('no memory'); sys.exit(3)")
        with pytest.raises(CaprewardError, match="none of the 2 runs came to its end: no memory"):
            sweep.train(planned(tmp_path / "out"), tmp_path / "out")
        assert [line["finished"] for line in rows(tmp_path / "out" / "runs.jsonl")] == [False, False]

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"steps": 3}, r"gdpo/seed-0: was trained with steps=2, got 3 \(2 of 2 runs differ\); give the settings"),
            ({"judge": {"name": "lite"}}, r"judge={'name': 'shapes'}, got {'name': 'lite'}"),
        ],
    )
    def test_does_not_mix_settings(self, tmp_path: Path, stand_in: StandIn, changed: Any, said: str) -> None:
        stand_in("")
        sweep.train(planned(tmp_path), tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
        with pytest.raises(InputError, match=said):
            planned(tmp_path, changes={**UNWARMED, **changed})
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before

    def test_takes_what_scores_do_not_depend_on(self, tmp_path: Path, stand_in: StandIn) -> None:
        stand_in("if config['seed']: sys.exit(1)")
        judge = {"name": "openai:m", "base_url": "http://127.0.0.1:1/v1"}
        sweep.train(planned(tmp_path, changes={**UNWARMED, "judge": judge}), tmp_path)
        changed = {**UNWARMED, "judge": {**judge, "base_url": "http://127.0.0.1:2/v1"}, "save_every": 7}
        assert len(planned(tmp_path, changes=changed)) == 2
        # nothing has been trained in seed-1, so nothing would be mixed
        assert len(planned(tmp_path, changes={**changed, "steps": 3}, seeds=[1])) == 1

    def test_refuses_a_folder_in_use(self, tmp_path: Path, stand_in: StandIn) -> None:
        stand_in("")
        with sweep._locked(tmp_path), pytest.raises(CaprewardError, match="another sweep works in this folder"):
            sweep.train(planned(tmp_path), tmp_path)

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
    def test_processes_hold_the_folder_too(self, tmp_path: Path, stand_in: StandIn) -> None:
        stand_in(
            'names = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]\n'
            'assert str(out.parents[1] / ".lock") in names'
        )
        runs = planned(tmp_path.resolve() / "out", seeds=[0])
        sweep.train(runs, tmp_path.resolve() / "out")
        assert runs[0].is_finished()

    def test_runs_of_a_seed_share_a_warm_up(
        self, tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stand_in(
            "config['seed'] = len(list((out / f\"start-{config['seed']}\").iterdir()))"
        )  # files that it starts from
        warm_up = (
            "import sys, time, yaml, pathlib\n"
            "seed = yaml.safe_load(open(sys.argv[1]))['seed']\n"
            "start = pathlib.Path(sys.argv[2], f'start-{seed}')\n"
            "open(f'{start}.log', 'a').write('made ')\n"
            "if seed == 2 and open(f'{start}.log').read() == 'made ': sys.exit('no memory')\n"
            "time.sleep(0.3)\n"
            "start.mkdir()\n"
            "for name in range(seed): (start / str(name)).touch()\n"
        )
        monkeypatch.setattr(sweep, "WARM_UP", warm_up)
        runs = planned(tmp_path, changes={**UNWARMED, "model": "shapes"}, estimators=["gdpo", "grpo"], seeds=[1, 2])
        sweep.train(runs, tmp_path, jobs=4)
        assert [run.is_finished() for run in runs].count(True) == 3
        sweep.train(runs, tmp_path, jobs=4)
        assert (tmp_path / "start-1.log").read_text() == "made "
        assert (tmp_path / "start-2.log").read_text() == "made made "  # again, as the first one failed
        assert [rows(run.folder / "after.jsonl")[0]["scores"]["coverage"]["value"] for run in runs] == [0.625, 0.75] * 2

    def test_an_interrupt_ends_the_processes(self, tmp_path: Path, stand_in: StandIn) -> None:
        stand_in("(out / 'pid').write_text(str(os.getpid())); time.sleep(60)")
        program = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
            f"import sys; from capreward import cli, sweep; sweep.TRAIN = {sweep.TRAIN!r}; sweep.POLL = 0.05\n"
            "sys.exit(cli.main(sys.argv[1:]))"
        )
        changes = [part for name, value in UNWARMED.items() for part in ("--set", f"{name}={value}")]
        command = [sys.executable, "-c", program, "sweep", str(RECIPE), *changes, "--out", str(tmp_path), "--jobs", "2"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        runs = planned(tmp_path)
        pids = [run.folder / "pid" for run in runs]
        wait_for(lambda: all(pid.is_file() and pid.read_text() for pid in pids), process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=55)  # less than the processes would run for
        assert process.returncode == 130
        assert "capreward: interrupted; the same command goes on" in said
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(int(pid.read_text()), 0)
        assert not (planned(tmp_path, seeds=[2])[0].folder / "pid").exists()
        stand_in("")
        assert list(sweep.train(runs, tmp_path).seeds) == [2]


class TestEnvironments:
    """What a worker's processes get."""

    def test_a_core_each(self) -> None:
        cores = len(os.sched_getaffinity(0))
        alone = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        assert sweep._environments(None) == [alone] * cores
        assert sweep._environments(3) == [alone] * 3

    @pytest.mark.parametrize(("visible", "names"), [(None, ["0", "1"]), ("3,5", ["3", "5"]), ("3,5,99", ["3", "5"])])
    def test_a_gpu_each(self, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str]) -> None:
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [each["CUDA_VISIBLE_DEVICES"] for each in sweep._environments(None)] == names
        assert [each["CUDA_VISIBLE_DEVICES"] for each in sweep._environments(3)] == [*names, names[0]]

    def test_reaches_the_processes(self, tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        stand_in(  # so that one does not do the work of both
            "end = time.monotonic() + 60\n"
            "while len(list(out.parents[1].glob('*/*/calls.jsonl'))) < 2 and time.monotonic() < end:\n"
            "    time.sleep(0.01)\n"
        )
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        runs = planned(tmp_path / "out")
        sweep.train(runs, tmp_path / "out")
        assert {rows(run.folder / "calls.jsonl")[0]["CUDA_VISIBLE_DEVICES"] for run in runs} == {"3", "5"}

    def test_at_least_one(self) -> None:
        with pytest.raises(InputError, match="jobs: got 0, expected at least 1"):
            sweep._environments(0)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
    """Until it holds; for as long as the process that is to bring it about lives."""
    end = time.monotonic() + 300
    while not condition():
        assert process is None or process.poll() is None, f"ended with status {process.returncode}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights and the same captions."""
    names = ("final/model.safetensors", "before.jsonl", "after.jsonl", "samples.jsonl")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


class TestRealRuns:
    """`capreward sweep`, beside `capreward train` of the same settings."""

    def test_killed_and_resumed_is_as_never_killed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, processor = llava()
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        items = tmp_path / "items.jsonl"
        items.write_text("".join(item.model_dump_json() + "\n" for item in shapes.items(6)))
        settings = {**QUICK, "model": tmp_path / "model", "data": items, "steps": 16}
        changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        out = tmp_path / "sweep"
        command = ["sweep", str(RECIPE), "--seeds", "4", "--weights", "fluency=2", *changes, "--out", str(out)]
        killed = subprocess.Popen(
            [sys.executable, "-m", "capreward.cli", *command], stderr=subprocess.DEVNULL, start_new_session=True
        )
        run = out / "gdpo,fluency=2" / "seed-4"
        try:
            wait_for(lambda: (run / "checkpoints" / "step-00000002").is_dir(), killed)
            os.killpg(killed.pid, signal.SIGSTOP)  # so that the run has not come to its end by itself when it is killed
            killed.kill()
            killed.wait()
            assert main(command) == 2  # its run lives on
            assert "another sweep works in this folder, or runs that a killed one left" in capsys.readouterr().err
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
        assert not (run / "after.jsonl").exists()
        wait_for(lambda: main(command) == 0)  # as soon as the system has buried the dead
        alone = ["--set", "seed=4", "--set", "weights={rubric: 0, fluency: 2}", "--out", str(tmp_path / "alone")]
        assert main(["train", str(RECIPE), *changes, *alone]) == 0
        assert same(run, tmp_path / "alone")
        assert [row["step"] for row in rows(run / "metrics.jsonl")] == [*range(1, 17)]
        assert "gdpo,fluency=2" in capsys.readouterr().out
        assert (out / "results.png").read_bytes().startswith(b"\x89PNG")

    def test_a_warm_up_outside_the_run_changes_no_bit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shorter = "from capreward import recipe; recipe.WARM_UP = 2\n"
        monkeypatch.setattr(sweep, "WARM_UP", shorter + sweep.WARM_UP)
        monkeypatch.setattr(recipe, "WARM_UP", 2)
        changes = [part for setting in ({**QUICK, "steps": 1}).items() for part in ("--set", "{}={}".format(*setting))]
        out = tmp_path / "sweep"
        command = ["sweep", str(RECIPE), "--estimators", "grpo", "--seeds", "3", *changes]
        assert main([*command, "--out", str(out)]) == 0
        assert (out / "start-3" / "model.safetensors").samefile(out / "grpo/seed-3/start-3/model.safetensors")
        alone = ["--set", "estimator=grpo", "--set", "seed=3", "--out", str(tmp_path / "alone")]
        assert main(["train", str(RECIPE), *changes, *alone]) == 0
        assert same(out / "grpo" / "seed-3", tmp_path / "alone")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--weights", "fluency"), "--weights: got 'fluency', expected NAME=NUMBER,..., such as fluency=2,coverage=1"),
        (("--weights", "flueny=2"), "weights: got component 'flueny'"),
        (("--seeds", "0-3"), "--seeds: got '0-3', expected whole numbers, such as 0,1,2"),
        (("--set-grid", "steps"), "--set-grid: got 'steps', expected NAME=VALUE,..."),
        (
            ("--set-grid", "steps=1", "--set-grid", "steps=2"),
            "--set-grid: got 'steps=2', expected NAME=VALUE,..., each name once",
        ),
        (("--set", "seed=1"), "seed: a sweep takes it from seeds"),
        (("--jobs", "0"), "jobs: got 0, expected at least 1"),
        (("--out", "/dev/null/sweep"), "/dev/null is a file; expected a folder"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(RECIPE), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_a_grid(tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in("if config['learning_rate'] > 2e-4 and config['seed']: sys.exit('broken')")
    changes = [part for name, value in UNWARMED.items() for part in ("--set", f"{name}={value}")]
    grid = ("--set-grid", "learning_rate=1.0e-4,3.0e-4", "--seeds", "0,1")
    assert main(["sweep", str(RECIPE), *changes, *grid, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "gdpo,learning_rate=0.0003 1 of 2" in " ".join(said.out.split())
    assert "capreward: error: 1 of 4 runs failed; the same command tries them again" in said.err
