"""The two sides of the comparison: a group's policy pass, ours and that of TRL's GRPOTrainer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from capreward.prefix import Form, completion_logprobs
from capreward.train.loss import policy_loss, token_weights

CLIP = (0.2, 0.28)
ALL = slice(None)
now = time.perf_counter if torch.cuda.is_available() else time.process_time
"""On a CPU the process's own seconds on it: with one thread those of the clock on the wall, less what other processes take."""


class Group(NamedTuple):
    """A prompt and its completions, all of one length."""

    prompt: list[int]
    images: Mapping[str, Tensor]
    completions: list[list[int]]
    advantages: Tensor
    old: Tensor
    """Log-probs of the policy that sampled, (G, T). Were they the policy's own, the loss would not depend on the model."""


def our_loss(model: Any, group: Group, *, max_tokens: int, form: Form | None = None) -> Tensor:
    """As `capreward.train.loop` computes it for one group."""
    logprobs, _ = completion_logprobs(model, group.prompt, group.completions, images=group.images, form=form)
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    weights = token_weights(mask, "dapo", rollouts=len(mask), tokens=mask.numel(), max_tokens=max_tokens)
    return policy_loss(logprobs, group.old, group.advantages, weights, clip=CLIP).loss


def trl_loss(trainer: Any, group: Group, rows: slice = ALL) -> Tensor:
    """As TRL computes it for some rows of the group that are on the device together; the parts add up to the group's."""
    loss: Tensor = trainer._compute_loss(trainer.model, trl_inputs(trainer.model.config, group, rows))
    return loss


def trl_inputs(config: Any, group: Group, rows: slice = ALL) -> dict[str, Any]:
    """What TRL's `_generate_and_score_completions` hands to `_compute_loss`: prompt and image with every completion."""
    device = group.advantages.device
    completions = torch.tensor(group.completions[rows], device=device)
    prompts = torch.tensor([group.prompt] * len(completions), device=device)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": group.advantages[rows],
        "old_per_token_logps": group.old[rows],
        "num_images": [1] * len(completions),
        "num_items_in_batch": torch.tensor(sum(map(len, group.completions)), device=device),
        **repeated_images(config, torch.cat([prompts, completions], 1), group.images),
    }


def repeated_images(config: Any, tokens: Tensor, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a processor would make of prompts with the same images, one for each row of `tokens`."""
    again = {name: torch.cat([value] * len(tokens)) for name, value in images.items()}
    if "image_grid_thw" in again:
        again["mm_token_type_ids"] = (tokens == config.image_token_id).int()
    return again


def trl_config(folder: Path, *, size: int, max_tokens: int, **options: Any) -> GRPOConfig:
    """As close to ours as it can be set: DAPO's loss, no KL, no gradient checkpointing (TRL's default has it)."""
    settings = {
        "per_device_train_batch_size": size,
        "num_generations": size,
        "max_completion_length": max_tokens,
        "loss_type": "dapo",
        "beta": 0.0,
        "epsilon": CLIP[0],
        "epsilon_high": CLIP[1],
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    return GRPOConfig(str(folder), **(settings | options))


def trl_trainer(model: Any, tokenizer: Any, config: GRPOConfig) -> Any:
    """One whose `_compute_loss` is called from outside."""
    rows = Dataset.from_list([{"prompt": "never used"}])
    trainer = GRPOTrainer(model, no_reward, config, rows, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1  # as the training loop would set it
    trainer.model.train()
    return trainer


def no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


class Pass(NamedTuple):
    loss: float
    gradient: float
    """The length of the whole gradient."""
    seconds: float


def policy_pass(model: Any, losses: Sequence[Callable[[], Tensor]]) -> Pass:
    """Forward and backward through each of the losses, which add up."""
    model.zero_grad()
    start = now()
    total = torch.zeros((), device=model.device)
    for loss in losses:
        value = loss()
        value.backward()
        total += value.detach()
    loss_ = total.item()  # waits for a GPU, but for its backward pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = now() - start
    norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
    return Pass(loss_, torch.stack(norms).norm().item(), seconds)


def check_same(passes: Mapping[str, Pass], loss: float, gradient: float) -> None:
    """Raise, unless all losses are within `loss` of each other, and the gradients' lengths within this share.

    Raises:
        RuntimeError: they are not.
    """
    losses = [each.loss for each in passes.values()]
    lengths = [each.gradient for each in passes.values()]
    if max(losses) - min(losses) > loss or max(lengths) > (1 + gradient) * min(lengths):
        raise RuntimeError(f"the comparison is void: the sides do not compute the same: {passes}")
