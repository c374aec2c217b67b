"""verl's reward loop calls the score function, and its metrics take what it returns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopWorker, _InternalAgentLoopOutput
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.reward import extract_reward
from verl_config import composed

from capreward import gdpo
from capreward.errors import InputError

ITEM = {"id": "cup", "references": np.array(["a white cup on a table"], object), "rubric": None, "index": 3}


def worker(suite_file: Path, tokenizer_folder: Path, manager: str = "gdpo") -> RewardLoopWorker:
    config = composed(
        suite_file,
        f"actor_rollout_ref.model.path='{tokenizer_folder}'",
        f"reward.reward_manager.name={manager}",
    )
    return RewardLoopWorker(config)


def batch(worker: RewardLoopWorker, *captions: str, extra_info: Any = ITEM) -> DataProto:
    """What an agent loop sends to the reward loop: one prompt token, responses padded on the right."""
    tokenizer = worker.input_tokenizer
    ids = [torch.tensor([*tokenizer(caption).input_ids, tokenizer.eos_token_id]) for caption in captions]
    responses = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    written = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    prompts = torch.full((len(captions), 1), tokenizer.eos_token_id)
    rows = {
        "data_source": ["captions"] * len(captions),
        "reward_model": [{"ground_truth": ""}] * len(captions),
        "extra_info": [dict(extra_info) for _ in captions],
    }
    return DataProto(
        batch=TensorDict(
            {
                "prompts": prompts,
                "responses": responses,
                "attention_mask": torch.cat([torch.ones_like(prompts), written], dim=1),
            },
            batch_size=len(captions),
        ),
        non_tensor_batch={name: np.array(column, dtype=object) for name, column in rows.items()},
    )


def widened(rows: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]))


def scored(worker: RewardLoopWorker, *captions: str, **fields: Any) -> list[dict[str, Any]]:
    done: list[dict[str, Any]] = worker.loop.run_until_complete(
        worker.compute_score_batch(batch(worker, *captions, **fields))
    )
    return done


@pytest.mark.parametrize("manager", ["gdpo", "naive"])
def test_the_reward_loop_calls_it(suite_file: Path, tokenizer_folder: Path, manager: str) -> None:
    captions = ("a white white cup on a table", "a white cup", "cup", "asleep cup on a table", "")
    rows = scored(worker(suite_file, tokenizer_folder, manager), *captions)
    infos = [row["reward_extra_info"] for row in rows]
    assert [info["colours"] for info in infos] == [1.0, 0.5, 0.0, None, 0.0]
    # the gate asks for half to twice the reference's six words
    assert [info["short"] for info in infos] == [pytest.approx(1 / 7), pytest.approx(1 / 3), 0.0, 0.2, 0.0]
    assert [info["raw.short"] for info in infos] == [pytest.approx(1 / 7), pytest.approx(1 / 3), None, 0.2, 0.0]
    assert [info["missing"] for info in infos] == [0, 0, 0, 1, 0]
    assert [info["why_missing"] for info in infos] == ["", "", "", "colours: timeout: slept", ""]
    expected = [(1 + 0.5 / 7) / 1.5, (0.5 + 0.5 / 3) / 1.5, 0.0, 0.2, 0.0]
    assert [row["reward_score"] for row in rows] == [pytest.approx(score) for score in expected]


def test_a_component_that_raises_is_missing_once_something_was_scored(
    suite_file: Path, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = worker(suite_file, tokenizer_folder)
    with pytest.raises(Exception, match="component 'colours': ConnectionError: the judge is gone"):
        scored(loop, "crash")
    scored(loop, "a white cup")
    row = scored(loop, "a crash on a table")[0]
    assert row["reward_score"] == 0
    assert row["reward_extra_info"] == {
        "score": 0.0,
        "colours": None,
        "short": None,
        "raw.short": None,
        "missing.colours": "",
        "missing.short": "",
        "missing": 2,
        "why_missing": "component 'colours': ConnectionError: the judge is gone",
    }
    assert "item 'cup': no score: component 'colours': ConnectionError" in caplog.text


def test_a_wrong_item_is_refused(suite_file: Path, tokenizer_folder: Path) -> None:
    loop = worker(suite_file, tokenizer_folder)
    scored(loop, "a white cup")
    with pytest.raises(InputError, match="row 0: Item 'cup': references: got 'a cup'"):
        scored(loop, "a cup", extra_info={"id": "cup", "references": "a cup"})


def test_validation_metrics_are_of_what_is_present(suite_file: Path, tokenizer_folder: Path) -> None:
    captions = ("a white white cup on a table", "asleep cup on a table", "asleep on a table", "asleep a table")
    rows = scored(worker(suite_file, tokenizer_folder), *captions)
    infos = {name: [row["reward_extra_info"][name] for row in rows] for name in rows[0]["reward_extra_info"]}
    uids = ["one", "one", "two", "two"]  # nothing of "two" has colours
    metrics = process_validation_metrics(["captions"] * 4, uids, infos)["captions"]
    assert metrics["colours"]["mean@1"] == 1.0
    assert metrics["missing"]["mean@2"] == 0.75
    assert metrics["short"]["mean@2"] == pytest.approx((1 / 7 + 1 / 5 + 1 / 4 + 1 / 3) / 4)
    assert not {"missing.colours", "why_missing"} & set(metrics)

    infos["colours"] = [math.nan if value is None else value for value in infos["colours"]]
    nan = process_validation_metrics(["captions"] * 4, uids, infos)["captions"]
    assert math.isnan(nan["colours"]["mean@2"])


def test_on_the_way_to_the_legacy_trainer(suite_file: Path, tokenizer_folder: Path) -> None:
    """Two of its agent loop's workers, of which only one has missing scores, then its advantages."""
    loop = worker(suite_file, tokenizer_folder)
    agent = object.__new__(AgentLoopWorker)
    agent.reward_loop_worker_handles = [loop]
    halves = []
    for captions in (("a white white cup on a table", "a white cup"), ("asleep cup on a table", "cup cup cup a crash")):
        data = batch(loop, *captions)
        rows = loop.loop.run_until_complete(loop.compute_score_batch(data))
        written = widened(data.batch["attention_mask"][:, 1:], 9)
        halves.append(
            agent._postprocess(
                [
                    _InternalAgentLoopOutput(
                        prompt_ids=data.batch["prompts"][[k]],
                        response_ids=widened(data.batch["responses"][[k]], 9),
                        response_mask=written[[k]],
                        attention_mask=widened(data.batch["attention_mask"][[k]], 10),
                        input_ids=torch.zeros(1, 10),
                        position_ids=torch.zeros(1, 10),
                        reward_score=row["reward_score"],
                        metrics=AgentLoopMetrics(),
                        extra_fields={"reward_extra_info": row["reward_extra_info"]},
                    )
                    for k, row in enumerate(rows)
                ]
            )
        )
    data = DataProto.concat(halves)
    rewards, infos = extract_reward(data)
    assert rewards.sum(dim=1).tolist() == pytest.approx(infos["score"].tolist())
    assert infos["missing.colours"].tolist() == ["", "", "timeout", ""]
    data.batch["token_level_rewards"] = rewards
    data.non_tensor_batch["uid"] = np.array(["cup"] * 4, dtype=object)
    data = compute_advantage(data, adv_estimator="gdpo", config=loop.config.algorithm)
    values = np.array([[1, 1 / 7], [0.5, 1 / 3], [np.nan, 1 / 5], [np.nan, np.nan]])
    expected = gdpo(values, ["cup"] * 4, [1.0, 0.5])
    np.testing.assert_array_equal(data.batch["advantages"][:, 0].numpy(), np.float32(expected))
    assert expected[3] == 0
