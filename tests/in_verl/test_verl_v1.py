"""verl's default trainer: a Ray on this machine, real workers of the reward loop, a real transfer queue; no policy and no GPU.

Not verl's: the captions, which no engine wrote, and the workers that need GPUs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import transfer_queue
from omegaconf import OmegaConf, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, PPOTrainer, get_trainer_cls
from verl_config import composed

from capreward import gdpo
from capreward.adapters.verl import PLUGIN
from capreward.errors import InputError

WEIGHTS = [1.0, 0.5]
ITEM = {"id": "cup", "references": np.array(["a white cup on a table"], object)}
CAPTIONS = {
    "one": ("a white white cup on a table", "a white cup", "cup", "asleep cup on a table"),
    "two": ("a white cup on a table", "a white cup"),
    "three": ("a white cup on a table",),
}


pytestmark = pytest.mark.filterwarnings("ignore:Disabled critic")


@pytest.fixture(scope="module")
def config(suite_file: Path, tokenizer_folder: Path) -> Any:
    config = composed(
        suite_file,
        f"actor_rollout_ref.model.path='{tokenizer_folder}'",
        "actor_rollout_ref.rollout.name=vllm",
        "data.train_batch_size=4",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    )
    OmegaConf.resolve(config)
    return config


@pytest.fixture(scope="module")
def queue(config: Any) -> Iterator[Any]:
    """Ray with the environment that `run_ppo` gives it under our settings, and verl's transfer queue in it."""
    environment = OmegaConf.to_container(
        OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.runtime_env)
    )
    os.environ.pop("VERL_USE_EXTERNAL_MODULES")  # so that workers have it from the settings alone
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1", runtime_env=environment
    )
    transfer_queue.init(config.transfer_queue)
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()
    os.environ["VERL_USE_EXTERNAL_MODULES"] = PLUGIN


@pytest.fixture(scope="module")
def batch(queue: Any, config: Any, tokenizer_folder: Path) -> KVBatchMeta:
    """Scored by a worker of the reward loop, put into the queue by verl's agent loop, filled up with three rows, interleaved."""
    agent = object.__new__(AgentLoopWorkerTQ.__ray_metadata__.modified_class)
    agent.processor, agent.mm_processor_kwargs, agent.distillation_enabled = None, None, False
    agent.reward_loop_worker_handles = [ray.remote(RewardLoopWorker).remote(config)]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    async def write() -> None:
        for uid, captions in CAPTIONS.items():
            for session, caption in enumerate(captions):
                ids = [*tokenizer(caption).input_ids, tokenizer.eos_token_id]
                output = AgentLoopOutput(
                    prompt_ids=[tokenizer.eos_token_id],
                    response_ids=ids,
                    response_mask=[1] * len(ids),
                    response_logprobs=[-1.0] * len(ids),
                    num_turns=2,
                    metrics=AgentLoopMetrics(),
                    extra_fields={"min_global_steps": 1, "max_global_steps": 1},
                )
                # "one" 0 is a rollout of which the agent loop wrote two rows
                outputs = [output.model_copy(deep=True), output] if (uid, session) == ("one", 0) else output
                await agent._agent_loop_postprocess(
                    outputs,
                    validate=False,
                    uid=uid,
                    session_id=session,
                    global_steps=1,
                    data_source="captions",
                    reward_model={"ground_truth": ""},
                    extra_info=ITEM,
                )

    asyncio.run(write())
    listed = queue.kv_list("train")["train"]
    keys = sorted(listed, key=lambda key: key.split("_")[1:])
    batch = KVBatchMeta(keys=keys, tags=[listed[key] for key in keys], partition_id="train", extra_info={})
    batch = upsample_batch_to_divisible_size(batch, 11, tokenizer.eos_token_id)
    log_probs = queue.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["rollout_log_probs"])
    old = TensorDict({"old_log_probs": log_probs["rollout_log_probs"]}, batch_size=len(batch))
    queue.kv_batch_put(keys=batch.keys, partition_id="train", fields=old)  # as the policy does, before the advantages
    batch.reorder(np.random.default_rng(0).permutation(len(batch)).tolist())
    return batch


def trainer(config: Any, name: str = "capreward_sync") -> PPOTrainer:
    """verl's own, but for `init`, which starts the workers that need GPUs."""
    return get_trainer_cls(name)(config.copy())


def expected() -> dict[str, float]:
    """By rollout, from the captions alone."""
    rows = [(uid, session, caption) for uid, captions in CAPTIONS.items() for session, caption in enumerate(captions)]
    values = []
    for _, _, caption in rows:
        words = len(caption.split())
        colours = np.nan if "asleep" in caption else min(1, caption.count("white") / 2)
        values.append((colours, 1 / words if 3 <= words <= 12 else 0.0))
    advantages = gdpo(np.array(values), [uid for uid, _, _ in rows], WEIGHTS)
    return {f"{uid}_{session}": advantages[row] for row, (uid, session, _) in enumerate(rows)}


def test_advantages_reach_the_queue(config: Any, batch: KVBatchMeta) -> None:
    metrics: dict[str, Any] = {}
    made = trainer(config)
    written = made._compute_advantage(batch, metrics)
    fields = ["advantages", "returns", "response_mask"]
    data = transfer_queue.kv_batch_get(keys=written.keys, partition_id="train", select_fields=fields)
    advantages = expected()
    assert len({round(value, 6) for value in advantages.values()}) > 4
    assert advantages["three_0"] == 0
    assert len(batch.keys) == 11
    for row, key in enumerate(batch.keys):
        per_token = data["advantages"][row]
        assert len(per_token) == len(data["response_mask"][row])
        rollout = key.rsplit("_", 1)[0]
        assert bool((per_token == np.float32(advantages.get(rollout, 0.0))).all()), key
        torch.testing.assert_close(data["returns"][row], per_token, rtol=0, atol=0)
    assert sum(key.startswith("pad") for key in batch.keys) == 3

    made._get_n_gpus_for_throughput = lambda: 1
    made._compute_metrics(written, metrics, {"step": 1.0, "gen": 1.0}, global_steps=2, epoch=0)
    assert metrics["critic/advantages/max"] == np.float32(max(advantages.values()))
    assert metrics["capreward/colours/missing"] == pytest.approx(1 / 7)
    assert metrics["capreward/colours/missing_timeout"] == pytest.approx(1 / 7)
    assert metrics["capreward/colours/varies"] == pytest.approx(1 / 3)
    assert metrics["capreward/colours/value"] == pytest.approx((1 + 0.5 + 0 + 0.5 + 0.5 + 0.5) / 6)
    assert metrics["capreward/short/gated"] == pytest.approx(1 / 7)
    assert metrics["capreward/short/raw"] == pytest.approx((1 / 7 + 1 / 3 + 1 / 5 + 1 / 6 + 1 / 3 + 1 / 6) / 6)


def test_verls_own_trainer_cannot(config: Any, batch: KVBatchMeta) -> None:
    with pytest.raises(InputError, match=r"no scores of 'colours'.*capreward_sync"):
        trainer(config, "sync")._compute_advantage(batch, {})


def test_scores_that_are_not_ours_are_refused(config: Any, batch: KVBatchMeta) -> None:
    changed = config.copy()
    with open_dict(changed):
        changed.algorithm.gdpo_reward_keys = ["colours", "other"]
    with pytest.raises(InputError, match=r"rollout (one|two|three)_\d has no score 'other'"):
        trainer(changed)._compute_advantage(batch, {})


@pytest.mark.usefixtures("queue")
@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_a_ray_worker_finds_the_trainer(mode: str) -> None:
    @ray.remote
    def parents(name: str) -> list[str]:
        import verl  # noqa: F401
        from verl.trainer.ppo.v1 import get_trainer_cls

        return [cls.__name__ for cls in get_trainer_cls(name).__mro__]

    own = get_trainer_cls(mode).__name__
    assert ray.get(parents.remote(f"capreward_{mode}"))[:2] == ["Trainer", own]


def test_verl_sees_its_own_mode(config: Any) -> None:
    made = trainer(config)
    assert made.trainer_mode == made.config.trainer.v1.trainer_mode == "sync"
