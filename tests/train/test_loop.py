from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import runs
import torch
from fakes import FakeComponent
from safetensors.torch import load_file

from capreward import Fluency, Item, Missing, Reason, Rollout, Score
from capreward.advantage import gdpo, grpo
from capreward.errors import ComponentError, InputError, NonFiniteError, TooManyMissingError
from capreward.judges.fake import FunctionJudge
from capreward.ledger import Ledger, LedgerWriter
from capreward.train import checkpoint, loop
from capreward.train.loop import Trainer
from capreward.train.loss import Loss

HERE = Path(__file__).parent
DOWN = Missing(Reason.SERVER, "server is down")

LEDGER = ("ledger/suites.jsonl", "ledger/items.jsonl", "ledger/rollouts-0.jsonl")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 16 steps."""
    out = tmp_path_factory.mktemp("learned")
    judge = FunctionJudge((0.5, 0.5, 0.5), name="bored")
    reward = runs.suite(
        components={"letters": FakeComponent(runs.likes_letters), "fluency": Fluency(judge)}, weights={"fluency": 0.5}
    )
    trained = runs.trainer(
        out,
        reward=reward,
        held_out=runs.items(8)[6:],
        steps=16,
        save_every=5,
        group_size=8,
        max_tokens=6,
        learning_rate=1e-2,
        warmup=4,
    )
    assert trained.train() == out / "final"
    return out


NUMBERS = {"loss", "gradient_norm", "learning_rate", "clip_fraction", "kl", "entropy", "tokens", "length", "truncated"}
NUMBERS |= {"step", "total", "skipped", "tokens_per_second"}
NUMBERS |= {f"seconds/{phase}" for phase in ("generate", "reference", "score", "update")}
OF_A_COMPONENT = ("raw", "value", "missing", "gated", "varies", "spread", "grpo", "gdpo", "advantage_share")


class TestTraining:
    def test_raises_what_is_rewarded(self, learned: Path) -> None:
        letters = [row["letters/value"] for row in runs.rows(learned / "metrics.jsonl")]
        assert np.mean(letters[:3]) < 0.2
        assert np.mean(letters[-3:]) > 0.6

    def test_on_held_out_items_too(self, learned: Path) -> None:
        before, after = (
            [row["scores"]["letters"]["value"] for row in runs.rows(learned / f"{when}.jsonl")]
            for when in ("before", "after")
        )
        assert len(before) == len(after) == 2
        assert np.mean(after) > np.mean(before) + 0.3

    def test_numbers_of_every_step(self, learned: Path) -> None:
        rows = runs.rows(learned / "metrics.jsonl")
        assert [row["step"] for row in rows] == [*range(1, 17)]
        expected = NUMBERS | {f"{name}/{key}" for name in ("letters", "fluency") for key in OF_A_COMPONENT}
        expected |= {f"judge/bored/{key}" for key in ("calls", "hits", "failures", "money")}
        for row in rows:
            assert set(row) - {"seconds/save"} == expected
            unknown = {name for name, value in row.items() if value is None}
            assert unknown <= {"fluency/grpo", "fluency/gdpo"}, "where it does not vary nothing can follow it"
            assert all(isinstance(value, int | float) for name, value in row.items() if name not in unknown)
        assert [row["step"] for row in rows if "seconds/save" in row] == [6, 11, 16]  # the step after it

    def test_numbers_are_right(self, learned: Path) -> None:
        rows = runs.rows(learned / "metrics.jsonl")
        for row in rows:
            assert row["tokens"] == 2 * 8 * row["length"]
            calls = row["judge/bored/calls"]  # empty captions are 0 without it
            assert row["fluency/value"] == pytest.approx(0.5 * calls / 16)
            assert row["letters/advantage_share"] + row["fluency/advantage_share"] in (0, pytest.approx(1))
            assert row["total"] == pytest.approx((row["letters/value"] + 0.5 * row["fluency/value"]) / 1.5)
            assert row["clip_fraction"] == row["kl"] == row["skipped"] == 0
            assert row["gradient_norm"] > 0
            assert 0 < row["entropy"] < math.log(262)
        assert [row["learning_rate"] for row in rows[:6]] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
        assert rows[-1]["judge/bored/calls"] == 16
        assert rows[-1]["fluency/advantage_share"] == 0

    def test_samples(self, learned: Path) -> None:
        rows = runs.rows(learned / "samples.jsonl")
        assert [row["step"] for row in rows] == [step for step in range(1, 17) for _ in range(2)]
        for best, worst in zip(rows[::2], rows[1::2], strict=True):
            assert best["group"] == worst["group"]
            assert best["advantages"]["gdpo"] >= worst["advantages"]["gdpo"]
            assert best["scores"]["letters"]["value"] >= worst["scores"]["letters"]["value"]
            assert best["scores"]["letters"]["value"] == runs.likes_letters(
                Rollout(item=Item(id="x"), caption=best["caption"])
            )

    def test_checkpoints(self, learned: Path) -> None:
        assert sorted(path.name for path in (learned / "checkpoints").iterdir()) == ["step-00000015", "step-00000016"]

    def test_curves_for_tensorboard(self, learned: Path) -> None:
        assert list((learned / "tensorboard").glob("events.out.tfevents.*"))

    def test_the_trained_model_is_the_policy(self, learned: Path) -> None:
        found = runs.Policy.load(learned / "final", instruction=runs.INSTRUCTION)
        last = checkpoint.latest(learned / "checkpoints")
        assert last is not None
        saved = checkpoint.load(last)["model"]
        parameters = dict(found.named_parameters())
        assert set(parameters) <= set(saved)
        for name, parameter in parameters.items():
            assert torch.equal(parameter, saved[name]), name
        again = Trainer(runs.config(learned, max_tokens=6), found, runs.suite(), runs.items())
        _, rollouts = again.evaluate(runs.items(8)[6:])
        assert [rollout.caption for rollout in rollouts] == [
            row["caption"] for row in runs.rows(learned / "after.jsonl")
        ]


class TestUpdates:
    def test_the_second_on_a_batch_is_off_policy(self, tmp_path: Path) -> None:
        runs.trainer(tmp_path, updates=3, kl=0.1, steps=1, learning_rate=1e-2).train()
        [row] = runs.rows(tmp_path / "metrics.jsonl")
        assert 0.01 < row["clip_fraction"] < 1
        assert row["kl"] > 0

    def test_the_first_is_not(self, tmp_path: Path) -> None:
        runs.trainer(tmp_path, kl=0.1, steps=2, learning_rate=1e-2).train()
        first, second = runs.rows(tmp_path / "metrics.jsonl")
        assert first["clip_fraction"] == second["clip_fraction"] == 0
        # the reference is what the run started from
        assert first["kl"] == pytest.approx(0, abs=1e-6)
        assert second["kl"] > 1e-3

    def test_gradient_is_that_of_the_whole_batch(self, tmp_path: Path) -> None:
        """Groups go through the model one after the other; the loss of the batch, in one piece, says the same."""
        made = runs.trainer(tmp_path, learning_rate=1e-6)
        groups, parts = made._rollouts()
        table = loop.concatenated([part.result() for part in parts])
        by_id = dict(zip(table.ids, table.advantages("gdpo").tolist(), strict=True))
        tokens = sum(len(completion) for group in groups for completion in group.completions)
        made.policy.train()
        total = torch.zeros(())
        for group in groups:
            group.advantages = torch.tensor([by_id[str(rollout.id)] for rollout in group.rollouts])
            for completion, advantage in zip(group.completions, group.advantages, strict=True):
                sequence = torch.tensor([[*group.prompt.tokens, *completion]])
                logits = made.policy.model(input_ids=sequence, **(group.prompt.images or {})).logits[0]
                logprobs = logits[len(group.prompt.tokens) - 1 : -1].log_softmax(-1)
                chosen = logprobs[range(len(completion)), completion]
                total = total - (chosen * advantage).sum() / tokens
        gradients = torch.autograd.grad(total, list(made.policy.parameters()), allow_unused=True)
        seen: dict[str, torch.Tensor] = {}
        step = made.optimizer.step

        def spy() -> None:
            seen.update({name: p.grad.clone() for name, p in made.policy.named_parameters() if p.grad is not None})
            step()

        made.optimizer.step = spy
        numbers = made._update(groups)
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None))
        assert numbers["gradient_norm"] == pytest.approx(norm, rel=1e-4)
        assert numbers["length"] * len(table) == numbers["tokens"] == tokens
        for (name, _), gradient in zip(made.policy.named_parameters(), gradients, strict=True):
            if gradient is not None:
                torch.testing.assert_close(seen[name], gradient / max(norm, 1.0), atol=1e-5, rtol=1e-3)

    @pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo"])
    def test_every_loss_runs(self, tmp_path: Path, kind: Any) -> None:
        made = runs.trainer(tmp_path, loss=kind, steps=1)
        before = runs.weights(made)
        made.train()
        assert any(not torch.equal(before[name], value) for name, value in runs.weights(made).items())

    def test_gradient_checkpointing_changes_no_weight(self, tmp_path: Path) -> None:
        plain, saving = (
            runs.trainer(tmp_path / str(on), gradient_checkpointing=on, learning_rate=1e-4) for on in (False, True)
        )
        start = runs.weights(plain)
        assert plain.train() != saving.train()
        assert any(getattr(module, "gradient_checkpointing", False) for module in saving.policy.modules())
        after = runs.weights(saving)
        for name, value in runs.weights(plain).items():
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0)
        assert max((after[name] - value).abs().max() for name, value in start.items()) > 1e-4
        for one, other in zip(
            *(runs.untimed(tmp_path / on / "metrics.jsonl") for on in ("False", "True")), strict=True
        ):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)

    def test_frozen_parameters_stay(self, tmp_path: Path) -> None:
        settings = runs.config(tmp_path, save_every=1)
        policy = runs.policy(settings)
        policy.model.base_model.vision_tower.requires_grad_(False)
        made = Trainer(settings, policy, runs.suite(), runs.items())
        before = runs.weights(made)
        made.train()
        for name, value in runs.weights(made).items():
            if "vision_tower" in name:
                assert torch.equal(value, before[name])
        found = checkpoint.latest(tmp_path / "checkpoints")
        assert found is not None
        assert not [name for name in checkpoint.load(found)["model"] if "vision_tower" in name]


class TestAdapters:
    def test_they_alone_are_trained_and_saved(self, tmp_path: Path) -> None:
        made = runs.trainer(tmp_path, lora_rank=2, kl=0.1, updates=2, learning_rate=1e-2)
        before = runs.weights(made)
        made.train()
        changed = {name for name, value in runs.weights(made).items() if not torch.equal(value, before[name])}
        assert changed
        assert all("lora_" in name and "language_model" in name for name in changed)
        kept = load_file(tmp_path / "final" / "adapter_model.safetensors")
        assert len(kept) == len(changed)
        state = checkpoint.load(tmp_path / "checkpoints" / "step-00000003")
        assert set(state["model"]) == changed
        rows = runs.rows(tmp_path / "metrics.jsonl")
        assert all(row["kl"] > 0 for row in rows)  # over both updates, of which the second has moved away

    def test_resume(self, tmp_path: Path) -> None:
        settings = {"lora_rank": 2, "kl": 0.1, "learning_rate": 1e-2}
        whole = runs.trainer(tmp_path / "whole", steps=4, **settings)
        whole.train()
        runs.trainer(tmp_path / "halves", steps=2, **settings).train()
        second = runs.trainer(tmp_path / "halves", steps=4, **settings)
        second.train(resume=True)
        found = runs.weights(second)
        assert all(torch.equal(value, found[name]) for name, value in runs.weights(whole).items())


class TestScoring:
    def test_goes_on_while_the_next_are_sampled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "SAMPLED_TOGETHER", 1)
        scored = [threading.Event() for _ in range(3)]
        order: list[str] = []

        class Told:
            name = "told"

            async def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
                order.append("scores")
                scored[len([what for what in order if what == "scores"]) - 1].set()
                return [Score(runs.likes_letters(rollout)) for rollout in rollouts]

        sample = Trainer._sample

        def waits(self: Trainer, *args: Any) -> Any:
            sampled = order.count("samples")
            if sampled:  # would wait in vain if scoring began behind the last one only
                assert scored[sampled - 1].wait(30)
            order.append("samples")
            return sample(self, *args)

        monkeypatch.setattr(Trainer, "_sample", waits)
        runs.trainer(tmp_path, groups=3, steps=1, reward=runs.suite(components={"a": Told()})).train()
        assert order == ["samples", "scores"] * 3

    def test_in_parts_or_as_a_whole_is_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(together: int) -> tuple[list[Any], Any]:
            monkeypatch.setattr(loop, "SAMPLED_TOGETHER", together)
            made = runs.trainer(tmp_path / str(together), groups=3, steps=1)
            made.train()
            return runs.untimed(tmp_path / str(together) / "metrics.jsonl"), runs.weights(made)

        (rows, weights), (others, other_weights) = run(8), run(1)
        assert rows == others
        assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())

    def test_advantages_are_those_of_the_config(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[loop.Group] = []
        update = Trainer._update

        def spy(self: Trainer, groups: Any) -> Any:
            given.extend(groups)
            return update(self, groups)

        monkeypatch.setattr(Trainer, "_update", spy)
        reward = runs.suite(components={"a": FakeComponent(lambda rollout: int(str(rollout.id)[-1]) / 10)})
        runs.trainer(tmp_path, steps=1, estimator="dr_grpo", reward=reward).train()
        assert len(given) == 2
        for group in given:
            scores = np.array([0 if rollout.is_empty else n / 10 for n, rollout in enumerate(group.rollouts)])
            assert scores.any()
            np.testing.assert_allclose(group.advantages, scores - scores.mean(), rtol=1e-6)

    def test_an_estimator_in_place_of_the_config_s(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[Any] = []

        def upside_down(values: Any, groups: Any, weights: Any = None) -> Any:
            given.append((values, groups, weights))
            return -gdpo(values, groups, weights)

        def taught(**options: Any) -> list[float]:
            made = runs.trainer(tmp_path / f"{len(options)}", steps=1, **options)
            monkeypatch.setattr(made, "_update", lambda groups: {"tokens": 1.0, "length": taught_by(groups)})
            made.train()
            return found.pop()

        def taught_by(groups: Sequence[loop.Group]) -> float:
            found.append([a for group in groups for a in group.advantages.tolist()])
            return 0.0

        found: list[list[float]] = []
        usual = taught()
        assert any(usual)
        assert taught(by=upside_down) == [-a for a in usual]
        assert len(given) == 1

    @pytest.mark.parametrize(("parts", "sizes"), [(1, [4]), (2, [2, 2]), (3, [2, 2]), (4, [1, 1, 1, 1])])
    def test_parts_of_a_batch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int, sizes: list[int]
    ) -> None:
        sample, seen = Trainer._sample, []

        def counts(self: Trainer, on: Sequence[Item], uniforms: torch.Tensor) -> Any:
            seen.append(len(on))
            return sample(self, on, uniforms)

        monkeypatch.setattr(Trainer, "_sample", counts)
        runs.trainer(tmp_path, groups=4, parts=parts, steps=1).train()
        assert seen == sizes

    def test_an_item_twice_in_a_batch(self, tmp_path: Path) -> None:
        runs.trainer(tmp_path, on=runs.items(1), groups=3, steps=1).train()
        groups = {row["group"] for row in runs.rows(tmp_path / "samples.jsonl")}
        assert groups == {"item 0/0.0"}

    def test_goes_through_all_items_in_turn(self, tmp_path: Path) -> None:
        made = runs.trainer(tmp_path, on=runs.items(5), groups=2)
        ids = [item.id for step in range(10) for item in made._batch(step)]
        rounds = [ids[start : start + 5] for start in range(0, 20, 5)]
        assert [sorted(each) for each in rounds] == [[f"item {n}" for n in range(5)]] * 4
        assert len(set(map(tuple, rounds))) > 1
        other = runs.trainer(tmp_path, on=runs.items(5), groups=2, seed=1)
        assert ids != [item.id for step in range(10) for item in other._batch(step)]


class TestMissing:
    def reward(self, broken: list[bool]) -> Any:
        """Component b is down on half of the rollouts while `broken` holds a True."""

        def verdict(rollout: Rollout) -> Any:
            return DOWN if broken[0] and int(str(rollout.id)[-1]) % 2 else runs.likes_letters(rollout)

        components = {"a": FakeComponent(runs.is_long), "b": FakeComponent(verdict)}
        return runs.suite(components=components, max_missing=0.4)

    def test_too_much_stops_after_a_checkpoint(self, tmp_path: Path) -> None:
        made = runs.trainer(tmp_path / "whole", reward=self.reward([False]), steps=4, save_every=3)
        made.train()
        broken = [False]
        stopped = runs.trainer(tmp_path / "stopped", reward=self.reward(broken), steps=4, save_every=3)
        sample = stopped._sample

        def breaks(*args: Any) -> Any:
            broken[0] = stopped.step == 2
            return sample(*args)

        stopped._sample = breaks  # type: ignore[method-assign]
        said = r"component 'b': missing for 4 of 8 rollouts \(server: 4\), more than max_missing=0.4"
        with pytest.raises(TooManyMissingError, match=said):
            stopped.train()
        assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["step-00000002"]
        for again in range(2):  # the step is taken again, at first with the judge still down
            resumed = runs.trainer(tmp_path / "stopped", reward=self.reward([not again]), steps=4, save_every=3)
            if not again:
                with pytest.raises(TooManyMissingError):
                    resumed.train(resume=True)
            else:
                resumed.train(resume=True)
        found = runs.weights(resumed)
        assert all(torch.equal(value, found[name]) for name, value in runs.weights(made).items())
        for name in ("metrics.jsonl", "samples.jsonl", *LEDGER):
            assert runs.untimed(tmp_path / "stopped" / name) == runs.untimed(tmp_path / "whole" / name)

    def test_at_the_first_step(self, tmp_path: Path) -> None:
        with pytest.raises(TooManyMissingError):
            runs.trainer(tmp_path, reward=self.reward([True])).train()
        made = runs.trainer(tmp_path, reward=self.reward([False]))
        made.train(resume=True)
        assert [row["step"] for row in runs.rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]

    def test_what_is_missing_is_told_and_adds_nothing(self, tmp_path: Path) -> None:
        reward = runs.suite(components={"a": FakeComponent(DOWN), "b": FakeComponent(runs.likes_letters)})
        runs.trainer(tmp_path, reward=reward, steps=1).train()
        [row] = runs.rows(tmp_path / "metrics.jsonl")
        assert row["a/missing"] > 0.5  # empty captions are scored 0
        assert row["a/missing_server"] == row["a/missing"]
        assert row["a/advantage_share"] == 0

    def test_nothing_to_learn_from(self, tmp_path: Path) -> None:
        reward = runs.suite(components={"a": FakeComponent(DOWN)})
        made = runs.trainer(tmp_path, reward=reward, steps=1)
        before = runs.weights(made)
        made.train()
        found = runs.weights(made)
        assert all(torch.equal(value, found[name]) for name, value in before.items())


class TestNotFinite:
    """The loss of some updates is made infinite or NaN."""

    def spoil(self, monkeypatch: pytest.MonkeyPatch, bad: set[int], by: float) -> None:
        calls = []

        def spoiled(*args: Any, **options: Any) -> Loss:
            calls.append(1)
            result = policy_loss(*args, **options)
            return result._replace(loss=result.loss * by) if (len(calls) - 1) // 2 in bad else result

        policy_loss = loop.policy_loss
        monkeypatch.setattr(loop, "policy_loss", spoiled)

    @pytest.mark.parametrize("by", [math.nan, math.inf])
    def test_one_bad_update_is_skipped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, by: float
    ) -> None:
        self.spoil(monkeypatch, {0, 1, 3}, by)
        made = runs.trainer(tmp_path, steps=5)
        at_updates = []
        update = made._update
        made._update = lambda groups: (at_updates.append(runs.weights(made)), update(groups))[1]  # type: ignore[method-assign]
        made.train()
        at_updates.append(runs.weights(made))
        changed = [
            any(not torch.equal(value, after[name]) for name, value in before.items())
            for before, after in pairwise(at_updates)
        ]
        assert changed == [False, False, True, False, True]
        rows = runs.rows(tmp_path / "metrics.jsonl")
        assert [row["skipped"] for row in rows] == [1, 2, 2, 3, 3]
        assert rows[0]["loss"] is None
        assert all(value.isfinite().all() for weights in at_updates for value in weights.values())
        assert "update skipped" in caplog.text

    def test_three_in_a_row_stop_the_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spoil(monkeypatch, {1, 2, 3}, math.nan)
        with pytest.raises(
            NonFiniteError, match=r"step 3: 3 updates in a row were not finite \(loss nan, gradient nan\)"
        ):
            runs.trainer(tmp_path, steps=5).train()

    def test_they_are_counted_across_a_resume(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spoil(monkeypatch, {1, 2, 3}, math.nan)
        runs.trainer(tmp_path, steps=3).train()
        with pytest.raises(NonFiniteError):
            runs.trainer(tmp_path, steps=5).train(resume=True)

    def test_an_infinite_gradient_of_a_finite_loss(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = runs.trainer(tmp_path, steps=1)
        before = runs.weights(made)
        parameter = next(p for name, p in made.policy.named_parameters() if "lm_head" in name)
        parameter.register_hook(lambda gradient: gradient * math.inf)
        made.train()
        found = runs.weights(made)
        assert all(torch.equal(value, found[name]) for name, value in before.items())
        [row] = runs.rows(tmp_path / "metrics.jsonl")
        assert row["gradient_norm"] is None
        assert row["skipped"] == 1

    @pytest.mark.parametrize("lost", [math.nan, math.inf])
    def test_a_weight_that_is_lost(self, tmp_path: Path, lost: float) -> None:
        made = runs.trainer(tmp_path, steps=5)
        with torch.no_grad():
            made.policy.model.get_output_embeddings().weight[5] = lost
        with pytest.raises(NonFiniteError):
            made.train()


class TestResume:
    def test_needs_to_be_asked_for(self, tmp_path: Path) -> None:
        runs.trainer(tmp_path, steps=1).train()
        with pytest.raises(InputError, match=r"holds the checkpoint step-00000001; resume.* or choose another folder"):
            runs.trainer(tmp_path, steps=2).train()

    def test_from_nothing_starts(self, tmp_path: Path) -> None:
        runs.trainer(tmp_path, steps=1).train(resume=True)
        assert len(runs.rows(tmp_path / "metrics.jsonl")) == 1

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"max_tokens": 9}, "written with max_tokens=8, got 9"),
            ({"clip": (0.1, 0.28)}, r"written with clip=\[0.2, 0.28\], got \[0.1, 0.28\]"),
            ({"weights": {"long": 1.0}}, "written with weights={}, got {'long': 1.0}"),
            ({"seed": 1, "group_size": 8}, "written with group_size=4, got 8"),
            ({"by": gdpo}, "written with estimator='grpo', got 'gdpo'"),
        ],
    )
    def test_refuses_other_settings_by_name(self, tmp_path: Path, changed: Any, said: str) -> None:
        made = runs.trainer(tmp_path, steps=1, by=grpo)
        made.log, made.ledger = loop.metrics.Log(tmp_path), LedgerWriter(tmp_path / "ledger")
        made._save()
        changed = {"by": grpo, **changed}
        with pytest.raises(
            InputError, match=rf"step-00000000: was {said}; resume with the same settings \(only .*steps"
        ):
            runs.trainer(tmp_path, steps=1, **changed).train(resume=True)

    def test_a_checkpoint_from_before_a_setting_was_there(self, tmp_path: Path) -> None:
        runs.trainer(tmp_path, steps=1).train()
        [folder] = (tmp_path / "checkpoints").iterdir()
        state = checkpoint.load(folder)
        del state["config"]["warmup"], state["estimator"]
        torch.save(state, folder / "state.pt")
        with pytest.raises(InputError, match="was written with warmup=0, got 3"):
            runs.trainer(tmp_path, steps=2, warmup=3).train(resume=True)
        runs.trainer(tmp_path, steps=2).train(resume=True)
        assert [row["step"] for row in runs.rows(tmp_path / "metrics.jsonl")] == [1, 2]

    def test_refuses_other_items(self, tmp_path: Path) -> None:
        runs.trainer(tmp_path, steps=1).train()
        with pytest.raises(InputError, match=r"was written with other items"):
            runs.trainer(tmp_path, steps=2, on=runs.items(3)).train(resume=True)

    def test_takes_more_steps_and_another_judge(self, tmp_path: Path) -> None:
        runs.trainer(tmp_path, steps=1).train()
        changed = {"judge": {"name": "other"}, "max_missing": 0.9, "save_every": 1}
        runs.trainer(tmp_path, steps=2, **changed).train(resume=True)
        assert [row["step"] for row in runs.rows(tmp_path / "metrics.jsonl")] == [1, 2]

    def test_a_finished_run_finishes_again(self, tmp_path: Path) -> None:
        runs.trainer(tmp_path, steps=2, held_out=runs.items(2)).train()
        before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
        runs.trainer(tmp_path, steps=2, held_out=runs.items(2)).train(resume=True)
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before


class TestTrainer:
    def test_no_items(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="items: got none to train on"):
            runs.trainer(tmp_path, on=[])

    def test_no_parts(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="parts: got 0, expected a number >= 1"):
            runs.trainer(tmp_path, parts=0)

    def test_a_kl_to_nothing(self, tmp_path: Path) -> None:
        settings = runs.config(tmp_path, kl=0.1)
        without = runs.policy(runs.config(tmp_path))
        with pytest.raises(InputError, match=r"kl: got 0.1 with a policy that kept no reference"):
            Trainer(settings, without, runs.suite(), runs.items())

    def test_evaluate_samples_the_same_each_time(self, tmp_path: Path) -> None:
        made = runs.trainer(tmp_path)
        (table, rollouts), (again, same) = (made.evaluate(runs.items(10)) for _ in range(2))
        assert [rollout.caption for rollout in rollouts] == [rollout.caption for rollout in same]
        assert [rollout.item.id for rollout in rollouts] == [f"item {n}" for n in range(10)]
        np.testing.assert_array_equal(table.values, again.values)
        assert len({rollout.caption for rollout in rollouts}) > 5

    def test_evaluate_by_another_suite(self, tmp_path: Path) -> None:
        made = runs.trainer(tmp_path)
        length = FakeComponent(lambda rollout: min(1.0, len(rollout.caption) / 100))
        table, rollouts = made.evaluate(runs.items(4), runs.suite(components={"length": length}))
        assert table.names == ("length",)
        assert table.values[:, 0].tolist() == [min(1.0, len(rollout.caption) / 100) for rollout in rollouts]
        assert made.evaluate(runs.items(4))[0].names == made.suite.names != table.names

    def test_evaluate_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="items: got none"):
            runs.trainer(tmp_path).evaluate([])

    def test_a_reward_that_breaks(self, tmp_path: Path) -> None:
        def breaks(_: Rollout) -> float:
            raise ValueError("no such colour")

        broken = runs.suite(components={"colour": FakeComponent(breaks)})
        with pytest.raises(ComponentError, match="component 'colour': ValueError: no such colour"):
            runs.trainer(tmp_path, reward=broken).evaluate(runs.items(2))

    def test_without_held_out_items_there_are_no_files_of_them(self, tmp_path: Path) -> None:
        runs.trainer(tmp_path, steps=1).train()
        assert not (tmp_path / "before.jsonl").exists()
        assert not (tmp_path / "after.jsonl").exists()

    def test_an_item_without_a_picture(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="item 'bare' has no image"):
            runs.trainer(tmp_path, on=[Item(id="bare")]).train()


def started(*command: str, timeout: int = 900) -> str:
    """What a script of this folder prints."""
    alone = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**os.environ, **alone},
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_killed_ten_times_is_as_never_killed(tmp_path: Path) -> None:
    kills = [line.split() for line in started(str(HERE / "killed.py"), str(tmp_path)).splitlines()]
    assert len(kills) == 10
    assert any("writing" in kill for kill in kills)
    assert all(life <= int(kill[0]) <= life + 3 for life, kill in enumerate(kills))  # spread over the run
    alive, killed = tmp_path / "alive", tmp_path / "killed"
    assert (alive / "final" / "model.safetensors").read_bytes() == (killed / "final" / "model.safetensors").read_bytes()
    for name in ("samples.jsonl", "before.jsonl", "after.jsonl", *LEDGER):
        assert (alive / name).read_bytes() == (killed / name).read_bytes()
    rows = runs.untimed(killed / "metrics.jsonl")
    assert rows == runs.untimed(alive / "metrics.jsonl")
    assert [row["step"] for row in rows] == [*range(1, len(rows) + 1)]
    states = []
    for folder in (alive, killed):
        found = checkpoint.latest(folder / "checkpoints")
        assert found is not None
        states.append(checkpoint.load(found))
    for state in states:
        del state["positions"], state["config"]  # timing makes lines longer; the folders differ
    assert equal(*states)


WHOLE = {"groups": 4, "steps": 4, "updates": 2, "kl": 0.05}
ADAPTERS = {"groups": 4, "steps": 3, "kl": 0.05, "lora_rank": 2, "learning_rate": 1e-2}
RUNS = ({"out": "whole", **WHOLE}, {"out": "adapters", **ADAPTERS})
SHARDED = (
    {"out": "sharded whole", "sharded": True, **WHOLE, "steps": 2},
    {"out": "sharded whole", "sharded": True, **WHOLE, "resume": True},
    {"out": "sharded adapters", "sharded": True, **ADAPTERS},
)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process."""
    folder = tmp_path_factory.mktemp("one")
    started(str(HERE / "ranks.py"), str(folder), json.dumps(RUNS))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs of two, and those of two that share one model."""
    folder = tmp_path_factory.mktemp("two")
    launch = "-m torch.distributed.run --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0"
    work = [str(HERE / "ranks.py"), str(folder), json.dumps([*RUNS, *SHARDED])]
    started(*launch.split(), "--local-addr=127.0.0.1", *work)
    return folder


class TestProcesses:
    """Two processes, on one computer, do what one does."""

    def advantages(self, folder: Path, rank: int = 0) -> dict[tuple[str, str], str]:
        return {
            (row["estimator"], id): value
            for row in runs.rows(folder / f"advantages.{rank}.jsonl")
            for id, value in row["advantages"].items()
        }

    def compare(self, one: Path, two: Path) -> None:
        gdpo = {key: value for key, value in self.advantages(one).items() if key[0] == "gdpo" and "/" in key[1]}
        assert len(gdpo) >= 3 * 16
        assert len(set(gdpo.values())) > 10
        for rank in range(2):
            found = self.advantages(two, rank)
            assert {key: found.get(key) for key in gdpo} == gdpo
        for row, other in zip(*(runs.untimed(each / "metrics.jsonl") for each in (one, two)), strict=True):
            assert row.keys() == other.keys()
            assert row["length"] < 8
            assert row["loss"] == pytest.approx(other["loss"], abs=1e-6)
            assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
        for name in ("samples.jsonl", "before.jsonl", "after.jsonl"):
            captions = [[row["id"], row["caption"]] for row in runs.rows(one / name)]
            assert captions == [[row["id"], row["caption"]] for row in runs.rows(two / name)]
        scores = [
            {r["id"]: (r["step"], r["batch"], r["value"]) for r in Ledger(each / "ledger").records()}
            for each in (one, two)
        ]
        assert len(scores[0]) >= 3 * 16
        assert scores[0] == scores[1]
        [name] = [path.name for path in (one / "final").glob("*model.safetensors")]
        weights, others = load_file(one / "final" / name), load_file(two / "final" / name)
        assert weights.keys() == others.keys()
        for name, value in weights.items():
            torch.testing.assert_close(others[name], value, atol=5e-4, rtol=0)

    @pytest.mark.parametrize("run", ["whole", "adapters"])
    def test_give_the_same_run(self, one: Path, two: Path, run: str) -> None:
        self.compare(one / run, two / run)

    @pytest.mark.parametrize("run", ["whole", "adapters"])
    def test_give_the_same_run_with_the_model_spread_over_them(self, one: Path, two: Path, run: str) -> None:
        """The first was resumed from a checkpoint half way."""
        self.compare(one / run, two / f"sharded {run}")

    def test_a_checkpoint_of_theirs_resumes_on_one(self, two: Path) -> None:
        out = two / "sharded whole"
        runs.trainer(out, **{**WHOLE, "steps": 5}).train(resume=True)
        assert [row["step"] for row in runs.rows(out / "metrics.jsonl")] == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize(
        ("kind", "version", "said"),
        [
            ("DEEPSPEED", 0, "accelerate is set to .*DEEPSPEED; use DDP, or FSDP in its version 2"),
            ("FSDP", 1, "FSDP in its version 1; use version 2"),
            ("FSDP", 2, "FSDP: a model of another kind"),
        ],
    )
    def test_models_that_cannot_be_spread(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, version: int, said: str
    ) -> None:
        def refuses(_: Any) -> None:
            raise ValueError("a model of another kind")

        accelerate = loop.accelerate
        monkeypatch.setattr(accelerate.Accelerator, "distributed_type", loop.DistributedType[kind])
        plugin = SimpleNamespace(fsdp_version=version)
        monkeypatch.setattr(accelerate.state.AcceleratorState, "fsdp_plugin", plugin, raising=False)
        monkeypatch.setattr("capreward.prefix.check", refuses)
        with pytest.raises(InputError, match=said):
            runs.trainer(tmp_path)

    def test_groups_that_cannot_be_shared(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop.accelerate.Accelerator, "num_processes", 2)
        with pytest.raises(InputError, match="groups: got 3, expected a multiple of the 2 processes"):
            runs.trainer(tmp_path, groups=3)
