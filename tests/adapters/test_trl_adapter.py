"""A suite as TRL's reward functions: called as TRL calls them, and in runs of TRL's own trainers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import FakeComponent, FakeGate
from trl import GRPOConfig, RLOOConfig

from capreward import Missing, Reason, RewardSuite, Rollout, gdpo
from capreward.adapters.trl import grpo_kwargs, reward_funcs, rloo_kwargs
from capreward.advantage import ESTIMATORS
from capreward.errors import ComponentError, InputError, TooManyMissingError

HERE = Path(__file__).parent
DOWN = Missing(Reason.SERVER, "server is down")
WEIGHTS = [1.0, 1.0, 0.5]


class Logs:
    """What TRL passes for logging, keeping what is logged."""

    def __init__(self) -> None:
        self.extra: dict[str, list[Any]] = {}
        self.metrics: list[tuple[str, float]] = []

    def log_extra(self, column: str, values: list[Any]) -> None:
        self.extra.setdefault(column, []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        self.metrics.append((name, value))


def call(
    functions: Sequence[Any], completions: list[Any], prompts: Any = None, **columns: Any
) -> tuple[list[Any], Logs]:
    """What each function answers when they are called as TRL 1.16 calls them."""
    logs = Logs()
    given = {
        "prompts": prompts or ["Describe."] * len(completions),
        "completions": completions,
        "completion_ids": [[1]] * len(completions),
        "trainer_state": SimpleNamespace(global_step=0),
        "log_extra": logs.log_extra,
        "log_metric": logs.log_metric,
        "id": ["cup"] * len(completions),
        **columns,
    }

    async def gather() -> list[Any]:
        return list(await asyncio.gather(*(function(**given) for function in functions)))

    if asyncio.iscoroutinefunction(functions[0]):
        return asyncio.run(gather()), logs
    return [function(**given) for function in functions], logs


def by_caption(**scores: Any) -> FakeComponent:
    """Scores by caption; an exception is raised."""

    def verdict(rollout: Rollout) -> Any:
        if isinstance(score := scores[rollout.caption], Exception):
            raise score
        return score

    return FakeComponent(verdict)


class Keeping(FakeComponent):
    """Gives everything 1 and keeps the rollouts."""

    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []
        super().__init__(lambda rollout: self.rollouts.append(rollout) or 1.0)


class TestComponents:
    def test_a_function_each_of_one_scoring(self) -> None:
        a, b = by_caption(x=0.25, y=0.5), by_caption(x=DOWN, y=1.0)
        functions = reward_funcs(RewardSuite({"a": a, "b": b}))
        assert [function.__name__ for function in functions] == ["a", "b"]
        assert call(functions, ["x", "y"])[0] == [[0.25, 0.5], [None, 1.0]]
        assert len(a.batches) == len(b.batches) == 1
        assert call(functions, ["y", "x"])[0] == [[0.5, 0.25], [1.0, None]]
        assert len(a.batches) == 2

    def test_gates_act(self) -> None:
        suite = RewardSuite(
            {"a": FakeComponent(0.5)}, gates=[FakeGate("a", lambda rollout: 0.0 if rollout.caption == "x" else 1.0)]
        )
        assert call(reward_funcs(suite), ["x", "y"])[0] == [[0.0, 0.5]]

    @pytest.mark.parametrize(
        "completion",
        [
            "A cup.",
            [{"role": "assistant", "content": "A cup."}],
            [{"role": "assistant", "content": [{"type": "text", "text": "A "}, {"type": "text", "text": "cup."}]}],
            [{"role": "tool", "content": "no"}, {"role": "assistant", "content": "A cup."}],
        ],
    )
    def test_forms_of_a_completion(self, completion: Any) -> None:
        component = Keeping()
        call(reward_funcs(RewardSuite({"a": component})), [completion])
        assert [rollout.caption for rollout in component.rollouts] == ["A cup."]

    @pytest.mark.parametrize(
        "completion",
        [
            [],
            [{"role": "assistant", "content": None}],
            [{"role": "assistant", "tool_calls": []}],
            [{"role": "assistant", "content": [{"type": "image", "text": None}]}],
        ],
    )
    def test_no_text_at_all_is_an_empty_caption(self, completion: Any) -> None:
        assert call(reward_funcs(RewardSuite({"a": FakeComponent(1.0)})), [completion])[0] == [[0.0]]

    @pytest.mark.parametrize("exact", [False, True])
    def test_a_column_of_any_name_is_a_column(self, exact: bool) -> None:
        functions = reward_funcs(RewardSuite({"a": FakeComponent(DOWN)}, max_missing=0.5), exact=exact)
        with pytest.raises(TooManyMissingError):
            call(functions, ["x"], part=["whole"], process=["printing"], given=["g"], row=[1])

    def test_items_come_from_columns(self) -> None:
        component = Keeping()
        functions = reward_funcs(RewardSuite({"a": component}), columns={"id": "file", "references": "texts"})
        call(functions, ["x", "y"], file=["1", "2"], texts=[["One."], ["Two."]], other=[3, 4])
        items = [rollout.item for rollout in component.rollouts]
        assert [(item.id, item.references) for item in items] == [("1", ("One.",)), ("2", ("Two.",))]
        with pytest.raises(InputError, match="no column 'texts'"):
            call(functions, ["x"], file=["1"])

    def test_a_group_is_an_item_and_a_prompt(self) -> None:
        component = Keeping()
        call(reward_funcs(RewardSuite({"a": component})), list("wxyz"), list("ppqp"), id=["1", "1", "1", "2"])
        w, x, y, z = (rollout.group for rollout in component.rollouts)
        assert w == x
        assert len({w, y, z}) == 3

    def test_logs_once_a_batch(self) -> None:
        suite = RewardSuite({"a": by_caption(x=0.25, y=0.5), "b": FakeComponent(DOWN)})
        _, logs = call(reward_funcs(suite), ["x", "y"])
        metrics = dict(logs.metrics)
        assert len(metrics) == len(logs.metrics)
        assert (metrics["a/value"], metrics["a/missing"], metrics["a/varies"]) == (0.375, 0, 1)
        assert (metrics["b/missing"], metrics["b/missing_server"]) == (1, 1)
        assert "b/value" not in metrics  # there is none, and TRL would take a mean with a NaN in it
        assert logs.extra == {"a/why": ["", ""], "b/why": ["missing (server): server is down"] * 2}

    def test_a_ledger_knows_steps_and_batches(self) -> None:
        component = Keeping()
        functions = reward_funcs(RewardSuite({"a": component}))
        for step in (7, 7, 8):
            call(functions, ["x"], trainer_state=SimpleNamespace(global_step=step))
        assert [rollout.metadata for rollout in component.rollouts] == [
            {"step": 7, "batch": "step 7, batch 1"},
            {"step": 7, "batch": "step 7, batch 2"},
            {"step": 8, "batch": "step 8, batch 1"},
        ]

    def test_weights_and_aggregation_are_trls(self) -> None:
        suite = RewardSuite({"a": FakeComponent(1.0), "b": FakeComponent(1.0)}, weights={"b": 0.5})
        config = GRPOConfig(use_cpu=True, bf16=False, **grpo_kwargs(suite))
        assert config.reward_weights == [1.0, 0.5]
        assert config.multi_objective_aggregation == "normalize_then_sum"


class TestBreaking:
    def test_before_anything_has_worked_it_is_a_mistake(self) -> None:
        with pytest.raises(ComponentError, match="component 'a': ValueError: a bug"):
            call(reward_funcs(RewardSuite({"a": FakeComponent(ValueError("a bug"))})), ["x"])

    @pytest.mark.parametrize("first", ["", "down", "too long for it"])
    def test_a_batch_that_no_component_has_scored_is_not_working(self, first: str) -> None:
        suite = RewardSuite({"a": by_caption(down=DOWN, x=ValueError("a bug"))}, max_length=2)
        functions = reward_funcs(suite)
        call(functions, [first])
        with pytest.raises(ComponentError, match="component 'a': ValueError: a bug"):
            call(functions, ["x"])

    @pytest.mark.parametrize("exact", [False, True])
    def test_later_a_batch_goes_without_scores(self, exact: bool, caplog: pytest.LogCaptureFixture) -> None:
        suite = RewardSuite({"a": by_caption(x=0.5, y=1.0, z=ValueError("a bug"))})
        functions = reward_funcs(suite, exact=exact)
        call(functions, ["x", "y"])
        with caplog.at_level(logging.ERROR, "capreward"):
            answers, logs = call(functions, ["x", "z"])
        assert answers == [[None, None]]
        assert logs.metrics == [("a/missing", 1.0)]
        assert logs.extra == {"a/why": ["the batch goes without scores: component 'a': ValueError: a bug"] * 2}
        assert "a batch of 2 rollouts goes without scores" in caplog.text
        assert "ValueError: a bug" in caplog.text
        assert None not in call(functions, ["x", "y"])[0][0]

    @pytest.mark.parametrize("exact", [False, True])
    def test_too_much_missing_ends_the_run(self, exact: bool) -> None:
        suite = RewardSuite({"a": by_caption(x=DOWN, y=1.0)}, max_missing=0.25)
        functions = reward_funcs(suite, exact=exact)
        call(functions, list("xyyy"))
        with pytest.raises(TooManyMissingError, match="component 'a': missing for 2 of 4"):
            call(functions, list("xxyy"))


class TestExact:
    def test_the_value_is_the_advantage(self) -> None:
        scores = {"w": 0.1, "x": 0.4, "y": 0.9, "z": DOWN}
        suite = RewardSuite({"a": by_caption(**scores), "b": by_caption(w=1.0, x=0.0, y=0.0, z=DOWN)})
        (answers,), _ = call(reward_funcs(suite, exact=True), list("wxyz"))
        expected = gdpo([[0.1, 1], [0.4, 0], [0.9, 0], [np.nan] * 2], ["g"] * 4)
        assert answers == [*expected[:3].tolist(), None]

    @pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
    def test_every_estimator_comes_through_or_is_refused(self, estimator: str) -> None:
        values = np.random.default_rng(0).random((12, 2)).round(1)
        values[[1, 6], [0, 1]] = np.nan
        scores = [{str(row): DOWN if np.isnan(x) else x for row, x in enumerate(column)} for column in values.T]
        suite = RewardSuite({"a": by_caption(**scores[0]), "b": by_caption(**scores[1])})
        expected = ESTIMATORS[estimator](values, np.repeat([0, 1, 2], 4))
        options: dict[str, Any] = {"exact": True, "estimator": estimator}
        if np.abs(expected.reshape(3, 4).sum(axis=1)).max() > 1e-9:
            with pytest.raises(InputError, match=rf"estimator: got '{estimator}', expected one of \['corr_grpo'"):
                reward_funcs(suite, **options)
            return
        (given,), _ = call(reward_funcs(suite, **options), list(scores[0]), list("ppppqqqqrrrr"))
        of_group = np.reshape(given, (3, 4))
        less_mean = of_group - of_group.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(less_mean.ravel(), expected, rtol=1e-12, atol=1e-14)

    def test_an_unknown_estimator(self) -> None:
        with pytest.raises(InputError, match="estimator: got 'ppo', expected one of"):
            reward_funcs(RewardSuite({"a": FakeComponent(1.0)}), exact=True, estimator="ppo")

    def test_before_the_mean_of_the_others_is_taken(self) -> None:
        suite = RewardSuite({"a": by_caption(w=0.1, x=0.4, y=0.9, z=DOWN)})
        (given,), _ = call(reward_funcs(suite, exact=True, trainer="rloo"), list("wxyz"))
        (w, x, y), missing = given[:3], given[3]
        assert missing is None
        expected = gdpo([[0.1], [0.4], [0.9]], ["g"] * 3)
        np.testing.assert_allclose([w - (x + y) / 2, x - (w + y) / 2, y - (w + x) / 2], expected, rtol=1e-12)

    def test_a_group_of_one(self) -> None:
        suite = RewardSuite({"a": FakeComponent(0.5)})
        for trainer in ("grpo", "rloo"):
            assert call(reward_funcs(suite, exact=True, trainer=trainer), ["x"])[0] == [[0.0]]

    def test_settings_are_trls(self) -> None:
        options = grpo_kwargs(RewardSuite({"a": FakeComponent(1.0), "b": FakeComponent(1.0)}), exact=True)
        config = GRPOConfig(use_cpu=True, bf16=False, **options)
        assert (config.reward_weights, config.scale_rewards) == ([1.0], "none")
        assert not RLOOConfig(use_cpu=True, bf16=False, **rloo_kwargs()).normalize_advantages

    def test_rloo_has_no_other_form(self) -> None:
        with pytest.raises(InputError, match=r"got trainer='rloo' with exact=False, expected exact=True"):
            reward_funcs(RewardSuite({"a": FakeComponent(1.0)}), trainer="rloo")


# ---------------------------------------------------------------------------------------------- TRL's trainers


Runs = dict[str, list[list[dict[str, Any]]]]
"""Of each kind of run, the batches of each process, and last TRL's log."""


def runs(folder: Path, *kinds: str, processes: int = 1) -> Runs:
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--local-addr=127.0.0.1"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    command = [sys.executable, *(launch if processes > 1 else []), str(HERE / "trl_runs.py"), str(folder), *kinds]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return {
        kind: [
            [json.loads(line) for line in (folder / f"{kind}.{rank}.jsonl").read_text().splitlines()]
            for rank in range(processes)
        ]
        for kind in kinds
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs(tmp_path_factory.mktemp("one"), "grpo", "exact", "rloo", "broken")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs(tmp_path_factory.mktemp("two"), "grpo", "exact", "rloo", processes=2)


def batches(processes: list[list[dict[str, Any]]]) -> list[tuple[np.ndarray, list[str], np.ndarray]]:
    """(values [B, K], groups [B], TRL's advantages [B]) of each batch, over all processes."""
    return [
        (
            np.vstack([np.array(part["values"], float) for part in parts]),
            [group for part in parts for group in part["groups"]],
            np.concatenate([part["advantages"] for part in parts]),
        )
        for parts in zip(*(process[:-1] for process in processes), strict=True)
    ]


class TestTrainers:
    @pytest.mark.parametrize("processes", ["one", "two"])
    @pytest.mark.parametrize("kind", ["grpo", "exact", "rloo"])
    def test_trls_advantages_are_ours(self, kind: str, processes: str, request: pytest.FixtureRequest) -> None:
        made = batches(request.getfixturevalue(processes)[kind])
        assert len(made) == 10
        for values, groups, advantages in made:
            ours = gdpo(values, groups, WEIGHTS)
            assert np.abs(ours).max() > 1
            # TRL normalises in float32, which keeps 7 digits of a score; small scores that nearly agree lose more
            np.testing.assert_allclose(advantages, ours, rtol=0, atol=2e-5 if kind == "grpo" else 1e-6)

    def test_some_scores_were_missing_some_altogether_and_some_gated(self, one: Runs) -> None:
        values = np.vstack([values for values, _, _ in batches(one["grpo"])])
        assert 0.1 < np.isnan(values).mean() < 0.5
        assert np.isnan(values).all(axis=1).any()
        assert sum(batch["metrics"]["fluency/gated"] for batch in one["grpo"][0][:-1]) > 1

    def test_groups_are_trls(self, one: Runs, two: Runs) -> None:
        """Runs of G rollouts, one of which two processes share."""
        for made in (one["exact"], two["grpo"], two["exact"]):
            for _, groups, _ in batches(made):
                for start in range(0, len(groups), 4):
                    assert len(set(groups[start : start + 4])) == 1
                assert len(set(groups)) == 5

    def test_rewards_logged_are_ours(self, one: Runs, two: Runs) -> None:
        for made in (one, two):
            *log, _ = made["grpo"][0][-1]["log"]  # the last line sums the run up
            for (values, _, _), line in zip(batches(made["grpo"]), log, strict=True):
                for k, name in enumerate(("precision", "coverage", "fluency")):
                    np.testing.assert_allclose(line[f"rewards/{name}/mean"], np.nanmean(values[:, k]), rtol=1e-6)

    @pytest.mark.parametrize("kind", ["grpo", "exact", "rloo"])
    def test_metrics_logged_are_the_tables(self, kind: str, one: Runs) -> None:
        *made, last = one[kind][0]
        for batch, line in zip(made, last["log"][:-1], strict=True):
            expected = {name: value for name, value in batch["metrics"].items() if not np.isnan(value)}
            assert "precision/missing_server" in expected or batch is not made[0]
            for name, value in expected.items():
                np.testing.assert_allclose(line[name], value, rtol=1e-6, atol=1e-9)

    def test_the_table_of_completions_says_why(self, one: Runs) -> None:
        reasons = one["grpo"][0][0]["table"]["precision/why"]
        values = np.array(one["grpo"][0][0]["values"], float)[:, 0]
        assert [why.startswith("missing (server)") for why in reasons] == np.isnan(values).tolist()

    def test_a_component_that_breaks_does_not_end_the_run(self, one: Runs) -> None:
        *made, last = one["broken"][0]
        broken = [n for n, batch in enumerate(made) if batch["groups"] is None]
        assert broken == [1, 4, 7]
        for n in broken:
            assert not any(made[n]["advantages"])
            assert last["log"][n]["broken/missing"] == 1
        assert all(any(batch["advantages"]) for n, batch in enumerate(made) if n not in broken)
