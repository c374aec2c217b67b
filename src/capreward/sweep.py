"""Training sweeps: one recipe under several settings and seeds, compared by the scores of held-out items.

Each run is a process of its own (`capreward train`) with a folder of its own, so that what ends one ends no other:

- `OUT/CONDITION/seed-N/`: what the trainer writes, `settings.yaml`, and `log.txt`, what it said.
- `OUT/start-N/`: the warmed-up captioner of the drawn world, shared by the runs of a seed.
- `OUT/runs.jsonl`, `OUT/results.csv`, `OUT/results.png`: a line a run; a line a condition and score; `figure`.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from capreward import recipe as recipes, report
from capreward.data import digest, replacing, write_rows
from capreward.errors import CaprewardError, InputError, missing_extra
from capreward.judges.fake import FunctionJudge
from capreward.presets import PRESETS
from capreward.train.config import TrainConfig

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

log = logging.getLogger("capreward")

SET_BY = {"weights": "weights", "estimator": "estimators", "seed": "seeds", "out": "out"}
"""Settings that a sweep sets, and what it takes them from."""
FREE = {"out", "save_every", "max_missing"}
OF_A_SERVER = {"base_url", "concurrency", "prices", "cache"}
"""Settings, and options of a judge, that may change from one call to the next: scores do not depend on them."""
TRAIN = ("-m", "capreward.cli", "train", "--resume")
WARM_UP = """
import sys
from capreward import recipe
from capreward.train.config import TrainConfig
recipe.warmed_up(TrainConfig.from_yaml(sys.argv[1], out=sys.argv[2]))
"""
POLL = 1.0
"""Seconds from one look at the runs to the next."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep: a condition and a seed."""

    condition: str
    config: TrainConfig

    @property
    def folder(self) -> Path:
        """Where the trainer writes."""
        return self.config.out

    @property
    def settings(self) -> Path:
        """The recipe of this run alone."""
        return self.folder / "settings.yaml"

    @property
    def log(self) -> Path:
        """What its processes said."""
        return self.folder / "log.txt"

    def is_begun(self) -> bool:
        """Whether there is something to go on from."""
        return self.is_finished() or (self.folder / "checkpoints").is_dir()

    def is_finished(self) -> bool:
        """Whether the trainer has written the last of its results."""
        return (self.folder / "after.jsonl").is_file()

    def steps(self) -> int:
        """Steps done so far."""
        metrics = self.folder / "metrics.jsonl"
        if self.is_finished() or not metrics.is_file():
            return self.config.steps * self.is_finished()
        return metrics.read_bytes().count(b"\n")


def sweep(
    recipe: str | Path,
    *,
    out: str | Path,
    weights: Sequence[Mapping[str, float]] = ({},),
    estimators: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    grid: Mapping[str, Sequence[Any]] | None = None,
    jobs: int | None = None,
    **changes: Any,
) -> pd.DataFrame:
    """Train the product of weights, estimators, `grid` and seeds; a second call goes on where the first one ended.

    >>> frame = sweep("shapes", weights=[{}, {"fluency": 2}], estimators=["gdpo", "grpo"], out="sweep")   # doctest: +SKIP

    Args:
        recipe: YAML file, or the name of one that comes with the package.
        out: folder of the sweep.
        weights: by component, in place of the recipe's; what is not named keeps the recipe's, so that `{}` stands for these.
        estimators: names; the recipe's alone when left out.
        seeds: what is averaged over.
        grid: values of other settings, by setting.
        jobs: runs at once; one a GPU, or, without any, one a core.
        changes: settings in place of the recipe's, for all runs.

    Returns:
        What `results` gives.

    Raises:
        InputError: settings that cannot be used, or other than those that a run of the folder was trained with.
        CaprewardError: another sweep works in the folder, or no run came to its end.
    """
    return train(plan(recipe, out, weights, estimators, seeds, grid or {}, changes), out, jobs)


def plan(
    recipe: str | Path,
    out: str | Path,
    weights: Sequence[Mapping[str, float]],
    estimators: Sequence[str] | None,
    seeds: Sequence[int],
    grid: Mapping[str, Sequence[Any]],
    changes: Mapping[str, Any],
) -> list[Run]:
    """The runs of a sweep, condition by condition; nothing is written. See `sweep`."""
    for name in (*changes, *grid):
        if name in SET_BY:
            raise InputError(f"{name}: a sweep takes it from {SET_BY[name]}; give it there")
    base = TrainConfig.from_yaml(recipes.find(Path(recipe)), **changes, out=out)
    estimators = [base.estimator] if estimators is None else estimators
    axes = [("weights", weights), ("estimators", estimators), *grid.items(), ("seeds", seeds)]
    if empty := [name for name, values in axes if not len(values)]:
        raise InputError(f"{empty[0]}: got none, expected at least one")
    runs: dict[Path, Run] = {}
    for weighed, estimator, *others, seed in product(*(values for _, values in axes)):
        own = {"weights": {**base.weights, **weighed}, "estimator": estimator, "seed": seed}
        config = TrainConfig(**{**base.model_dump(), **dict(zip(grid, others, strict=True)), **own})
        if not config.held_out:
            raise InputError("held_out: got 0, expected more: a sweep compares scores of held-out items")
        _check_weights(config)
        said = config.model_dump(mode="json")
        condition = _name(
            said["estimator"],
            {name: said["weights"][name] for name in sorted(weighed)} | {name: said[name] for name in grid},
        )
        folder = base.out / condition / f"seed-{seed}"
        if folder in runs:
            raise InputError(f"conditions: got {condition} with seed {seed} twice; name every condition and seed once")
        runs[folder] = Run(condition, config.model_copy(update={"out": folder}))
    _check_unchanged(list(runs.values()))
    return list(runs.values())


def train(runs: Sequence[Run], out: str | Path, jobs: int | None = None) -> pd.DataFrame:
    """Bring every run to its end, as many at once as there are jobs, and write down how they ended. See `sweep`.

    What a run failed with is logged. An interrupt ends the processes; the next call goes on from their checkpoints.
    """
    environments = _environments(jobs)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out) as held:
        for run in runs:
            _prepare(run, out)
        failures = _train_all(runs, _Workers(out, environments, held))
        write_rows(out / "runs.jsonl", (_row(run, failures.get(run.folder)) for run in runs))
        if not any(run.is_finished() for run in runs):
            raise CaprewardError(f"none of the {len(runs)} runs came to its end: {failures[runs[0].folder]}")
        frame = results(runs)
        with replacing(out / "results.csv") as path:
            frame.to_csv(path, index=False)
        return frame


def results(runs: Sequence[Run]) -> pd.DataFrame:
    """A line a condition and score, from the folders of the runs that are finished.

    Returns:
        `condition`, `score`; `seeds` (runs with this score) and `unfinished` (runs); over seeds the mean score of the held-out
        items and its standard error (NaN for a single seed): `before`, `after`, `change` (after less before) and `difference`
        (after, less that of the first condition with the same seed), each with `..._se`; `pairs`, the seeds in `difference`.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise missing_extra("A table of results", "report", error) from error
    conditions = list(dict.fromkeys(run.condition for run in runs))
    found: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for run in runs:
        if run.is_finished():
            for name, means in _means(run).items():
                found.setdefault((run.condition, name), {})[run.config.seed] = means
    rows = []
    for condition, score in product(conditions, dict.fromkeys(name for _, name in found)):
        mine, first = found.get((condition, score), {}), found.get((conditions[0], score), {})
        differences = [after - first[seed][1] for seed, (_, after) in mine.items() if seed in first]
        columns = {
            "before": [before for before, _ in mine.values()],
            "after": [after for _, after in mine.values()],
            "change": [after - before for before, after in mine.values()],
            "difference": differences,
        }
        row: dict[str, Any] = {
            "condition": condition,
            "score": score,
            "seeds": int(np.isfinite(columns["after"]).sum()),
            "unfinished": sum(run.condition == condition and not run.is_finished() for run in runs),
        }
        for name, values in columns.items():
            row[name], row[f"{name}_se"] = mean_and_error(values)
        rows.append({**row, "pairs": int(np.isfinite(differences).sum())})
    return pd.DataFrame(rows)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, of the numbers among the values; NaN where there are too few."""
    numbers = [value for value in values if not math.isnan(value)]
    mean = float(np.mean(numbers)) if numbers else math.nan
    return mean, float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan


def print_sweep(frame: pd.DataFrame, console: Console | None = None) -> None:
    """A line a condition: held-out scores before and after training; below, their differences to the first condition."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise missing_extra("Printing tables", "report", error) from error
    console = console or report.make_console()
    conditions, scores = list(frame.condition.unique()), list(frame.score.unique())
    cells = {(row.condition, row.score): row for row in frame.itertuples()}

    def table(title: str, count: str) -> Table:
        made = Table(
            title=Text(title, "bold"), title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        made.add_column("condition", overflow="fold")
        for name in (count, *scores):
            made.add_column(Text(name.replace("_", "_\n")), justify="right")
        return made

    scored = table("Held-out scores before → after training: mean ± standard error over seeds", "seeds")
    for condition in conditions:
        rows = [cells[condition, score] for score in scores]
        seeds, unfinished = max(row.seeds for row in rows), rows[0].unfinished
        count = f"{seeds} of {seeds + unfinished}" if unfinished else str(seeds)
        shown = [f"{_number(row.before, row.before_se)}\n→ {_number(row.after, row.after_se)}" for row in rows]
        scored.add_row(Text(condition), count, *shown)
    console.print(scored)
    if len(conditions) > 1:
        compared = table(f"After training, less {conditions[0]} with the same seed: mean ± standard error", "pairs")
        for condition in conditions[1:]:
            rows = [cells[condition, score] for score in scores]
            shown = [_number(row.difference, row.difference_se, sign="+") for row in rows]
            compared.add_row(Text(condition), str(max(row.pairs for row in rows)), *shown)
        console.print(compared)


def figure(frame: pd.DataFrame) -> Figure:
    """A column a score: means of each condition before (hollow) and after (filled); below, differences to the first one.

    Bars are a standard error to both sides. Nothing is told by colour alone.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("Drawing figures", "report", error) from error
    conditions, scores = list(frame.condition.unique()), list(frame.score.unique())
    picture = Figure(figsize=(2.2 + 2.3 * len(scores), 2.8 + 0.6 * len(conditions)), layout="constrained")
    axes = picture.subplots(2, len(scores), sharey=True, squeeze=False)
    places = np.arange(len(conditions))
    for column, score in enumerate(scores):
        rows = frame[frame.score == score]
        means, differences = axes[0, column], axes[1, column]
        for name, shift, look in (
            ("before", -0.12, {"color": "#D55E00", "markerfacecolor": "white"}),
            ("after", 0.12, {"color": "#0072B2"}),
        ):
            means.errorbar(rows[name], places + shift, xerr=_bars(rows[f"{name}_se"]), fmt="o", label=name, **look)
        means.set_title(score, fontsize=10, parse_math=False)
        means.set_xlabel("held-out score", fontsize=8)
        differences.errorbar(
            rows.difference, places, xerr=_bars(rows.difference_se), fmt="D", color="black", markersize=5
        )
        differences.axvline(0, color="0.4", linewidth=0.8)
        differences.set_xlabel("difference, paired by seed", fontsize=8)
        for axis in (means, differences):
            axis.grid(axis="x", linewidth=0.4)
            axis.locator_params(axis="x", nbins=4)
            axis.tick_params(axis="x", labelsize=8)
            axis.set_yticks(places, conditions, fontsize=8, parse_math=False)
            axis.set_ylim(len(conditions) - 0.5, -0.5)
    picture.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=8, frameon=False
    )
    fewest, most = frame.seeds.min(), frame.seeds.max()
    seeds = f"{fewest} to {most} seeds" if fewest < most else f"{most} seeds"
    picture.suptitle(f"Mean ± standard error over {seeds}; below, less {conditions[0]}", fontsize=11, parse_math=False)
    return picture


class _Workers:
    """Runs processes for the threads of a sweep, each in the environment of a free worker, until it is stopped."""

    def __init__(self, out: Path, environments: Sequence[Mapping[str, str]], held: int) -> None:
        self.count = len(environments)
        self._out, self._held = out, held
        self._free: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
        for environment in environments:
            self._free.put(environment)
        self._lock = threading.Lock()
        self._warming: dict[int, threading.Lock] = {}
        self._alive: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def train(self, run: Run) -> str | None:
        """Bring a run to its end; what it failed with, if it did."""
        environment = self._free.get()
        try:
            with run.log.open("ab") as log:
                said = log.tell()
                code = self._warm_up(run, log, environment) or self._process((*TRAIN, run.settings), log, environment)
        finally:
            self._free.put(environment)
        if code == 0:
            return None
        text = run.log.read_bytes()[said:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if code < 0 or not lines:
            return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return lines[-1].removeprefix("capreward: error: ")

    def stop(self) -> None:
        """End the processes that run, and start no other."""
        with self._lock:
            self._stopped = True
            for process in self._alive:
                process.terminate()

    def _warm_up(self, run: Run, log: Any, environment: Mapping[str, str]) -> int:
        """Make what runs of the drawn world with this seed start from, unless it is there; 0 if all went well."""
        if run.config.model != recipes.SHAPES:
            return 0
        with self._lock:
            warming = self._warming.setdefault(run.config.seed, threading.Lock())
        with warming:
            if (self._out / f"start-{run.config.seed}").is_dir():
                return 0
            return self._process(("-c", WARM_UP, run.settings, self._out), log, environment)

    def _process(self, arguments: Sequence[str | Path], log: Any, environment: Mapping[str, str]) -> int:
        """Run Python to its end; returns the exit status."""
        with self._lock:
            if self._stopped:
                return -signal.SIGTERM
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                pass_fds=(self._held,),
            )
            self._alive.add(process)
        code = process.wait()
        with self._lock:
            self._alive.remove(process)
        return code


def _train_all(runs: Sequence[Run], workers: _Workers) -> dict[Path, str]:
    """Train those that are not finished, under a progress bar; what each that failed did so with, by its folder."""
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise missing_extra("Training", "train", error) from error
    failures: dict[Path, str] = {}
    steps = sum(run.steps() for run in runs)
    with (
        tqdm(total=sum(run.config.steps for run in runs), initial=steps, desc="sweep", unit="step", smoothing=0) as bar,
        ThreadPoolExecutor(workers.count) as pool,
    ):
        futures: dict[Future[str | None], Run] = {
            pool.submit(workers.train, run): run for run in runs if not run.is_finished()
        }
        pending = set(futures)
        try:
            while True:
                bar.n = sum(run.steps() for run in runs)  # set, not added to: a resumed run repeats some
                bar.set_postfix_str(f"{sum(run.is_finished() for run in runs)} of {len(runs)} runs done")
                if not pending:
                    return failures
                done, pending = wait(pending, timeout=POLL, return_when="FIRST_COMPLETED")
                for future in done:
                    run, reason = futures[future], future.result()
                    if reason is not None:
                        failures[run.folder] = reason
                        log.warning("%s failed: %s (see %s)", run.folder, reason, run.log.name)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.stop()


def _prepare(run: Run, out: Path) -> None:
    """The run's folder, its recipe, and the way to what it starts from."""
    import yaml

    run.folder.mkdir(parents=True, exist_ok=True)
    with replacing(run.settings) as path:
        path.write_text(
            yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), "utf-8"
        )
    start = f"start-{run.config.seed}"
    link = run.folder / start
    if run.config.model == recipes.SHAPES and not link.is_symlink():
        link.symlink_to(os.path.relpath(out / start, run.folder), target_is_directory=True)


def _check_weights(config: TrainConfig) -> None:
    """Refuse weights that no judge's suite could use, before a run is started for each of them."""
    error: InputError | None = None
    for sees in (False, True):  # some components have another name with a judge that sees
        try:
            PRESETS[config.suite](FunctionJudge(images=sees), weights=config.weights)
        except InputError as refusal:
            error = refusal
        else:
            return
    assert error is not None
    raise error


def _check_unchanged(runs: Sequence[Run]) -> None:
    """Refuse to mix runs of different settings."""
    mixed = []
    for run in runs:
        if run.is_begun() and run.settings.is_file():
            was, now = _identity(TrainConfig.from_yaml(run.settings)), _identity(run.config)
            mixed += [(run, name, was[name], now[name]) for name in now if was[name] != now[name]][:1]
    if mixed:
        run, name, before, after = mixed[0]
        raise InputError(
            f"{run.folder}: was trained with {name}={before!r}, got {after!r} ({len(mixed)} of {len(runs)} runs differ); give "
            "the settings that they were trained with, take another folder (--out), or remove the folders of these runs"
        )


def _identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run's scores depend on."""
    settings = config.model_dump(mode="json", exclude=FREE)
    judge = {key: value for key, value in config.judge.items() if key not in OF_A_SERVER}
    return {**settings, "judge": judge}


def _name(estimator: str, settings: Mapping[str, Any]) -> str:
    """A condition's, fit for a folder: ``gdpo,coverage=1,fluency=0.5``."""
    parts = [
        f"{name}={value:.15g}" if isinstance(value, float) else f"{name}={value}" for name, value in settings.items()
    ]
    name = quote(",".join([estimator, *parts]), safe=",=+ []")
    return name if len(name) <= 200 else f"{name[:180]}~{digest(name)[:12]}"  # file systems take 255


def _means(run: Run) -> dict[str, tuple[float, float]]:
    """Mean score of the held-out items before and after, by component."""
    read = report.Run.read(run.folder, {})
    return {name: read.means(name) for name in read.names}


def _row(run: Run, failure: str | None) -> dict[str, Any]:
    """A run's line in the file."""
    means = _means(run) if run.is_finished() else {}
    scores = {name: [None if math.isnan(mean) else mean for mean in both] for name, both in means.items()}
    return {
        "condition": run.condition,
        "seed": run.config.seed,
        "finished": run.is_finished(),
        "failure": failure,
        "scores": {name: {"before": before, "after": after} for name, (before, after) in scores.items()},
        "settings": run.config.model_dump(mode="json"),
    }


def _environments(jobs: int | None) -> list[dict[str, str]]:
    """What the processes of each worker are started with: a GPU each, or a core."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra("Training", "train", error) from error
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: got {jobs}, expected at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    gpus = gpus[: torch.cuda.device_count()]
    jobs = jobs or len(gpus) or cores
    # without a GPU always one: the bits of a run may depend on it
    threads = max(1, cores // jobs) if gpus else 1
    shared = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if not gpus:
        return [shared] * jobs
    return [{**shared, "CUDA_VISIBLE_DEVICES": gpu} for gpu in islice(cycle(gpus), jobs)]


@contextmanager
def _locked(out: Path) -> Iterator[int]:
    """Hold the folder for this sweep and, as they inherit what is yielded, for as long as its processes live."""
    import fcntl

    with (out / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CaprewardError(
                f"{out}: another sweep works in this folder, or runs that a killed one left behind; wait for them to end, "
                f"or end them (`fuser {out / '.lock'}` names them)"
            ) from None
        yield file.fileno()


def _bars(errors: pd.Series) -> Any:
    """Lengths of error bars; none where the error is not known."""
    return errors.fillna(0.0).to_numpy()


def _number(mean: float, error: float, sign: str = "") -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:{sign}.2f}" if math.isnan(error) else f"{mean:{sign}.2f} ±{error:.2f}"
