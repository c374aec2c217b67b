"""The settings that `verl_overrides` gives, in verl's own configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl_config import composed

MORE = (
    "data.train_batch_size=16",
    "actor_rollout_ref.model.path=/nowhere",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
    "trainer.n_gpus_per_node=1",
)


@pytest.mark.parametrize(
    "options", [{}, {"mode": "colocate_async"}, {"mode": "separate_async"}, {"v1": False}], ids=str
)
@pytest.mark.filterwarnings("ignore:Disabled critic")
def test_verl_takes_the_settings(suite_file: Path, options: dict[str, object]) -> None:
    config = composed(suite_file, *MORE, **options)
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    assert config.reward.custom_reward_function.path == str(suite_file)
    assert config.reward.custom_reward_function.name == "compute_score"
    assert config.algorithm.adv_estimator == "gdpo"
    assert config.algorithm.gdpo_reward_keys == ["colours", "short"]
    assert config.algorithm.gdpo_reward_weights == [1.0, 0.5]
    assert config.trainer.use_v1 is options.get("v1", True)
    if config.trainer.use_v1:
        assert config.trainer.v1.trainer_mode == f"capreward_{options.get('mode', 'sync')}"
