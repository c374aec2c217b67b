"""Inside verl's environment: composes verl's configuration from overrides, as its command line does, and validates it."""

from __future__ import annotations

import sys
from pathlib import Path

import verl.trainer
from hydra import compose, initialize_config_dir
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

HARDWARE = (
    "data.train_batch_size=16",
    "actor_rollout_ref.model.path=/nowhere",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
    "trainer.n_gpus_per_node=1",
)
"""What stands behind the dots: the settings that verl demands of everybody."""

if __name__ == "__main__":
    overrides = sys.argv[1:]
    with initialize_config_dir(str(Path(verl.trainer.__file__).parent / "config"), version_base=None):
        config = compose("ppo_trainer", overrides=[*HARDWARE, *overrides])
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    assert config.algorithm.adv_estimator == "gdpo", "our settings have not come"
    assert Path(config.reward.custom_reward_function.path).is_file()
    assert Path(config.data.train_files).is_file()
