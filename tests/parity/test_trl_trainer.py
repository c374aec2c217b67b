"""Our loss and its gradients beside those of TRL's GRPOTrainer, on the same completions and advantages.

TRL runs all rows at once, each with its prompt and image; ours runs a prompt once and adds the groups up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from capreward.prefix import completion_logprobs
from capreward.train.loss import Loss, policy_loss, token_weights

G = 4
MAX_TOKENS = 12
TEMPERATURE = 0.8
CLIP = (0.1, 0.3)
KINDS = ("grpo", "dapo", "dr_grpo")


class Group(NamedTuple):
    prompt: list[int]
    image: Tensor
    completions: list[list[int]]
    advantages: Tensor
    old: Tensor
    """Log-probs off the policy, (G, MAX_TOKENS)."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    model, processor = tiny.llava()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def trl_trainer(saved: Path, kind: str, beta: float, **options: Any) -> Any:
    trainer = GRPOTrainer(
        str(saved),
        lambda completions, **_: [0.0] * len(completions),
        GRPOConfig(
            str(saved / "trl"),
            loss_type=kind,
            beta=beta,
            # True, TRL's default, takes DeepSeek-V3.2's KL, where ours is DeepSeekMath's
            **{"use_bias_correction_kl": False} | options,
            epsilon=CLIP[0],
            epsilon_high=CLIP[1],
            temperature=TEMPERATURE,
            max_completion_length=MAX_TOKENS,
            num_generations=G,
            per_device_train_batch_size=G,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        Dataset.from_list([{"prompt": "never used"}]),
        processing_class=tiny.llava()[1],
    )
    trainer.current_gradient_accumulation_steps = 1  # as the training loop would set it
    trainer.model.train()
    with torch.no_grad():  # a policy that has moved away from its reference
        for parameter in trainer.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return trainer


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    """Three, with prompts and completions of several lengths; their old log-probs are the policy's with noise."""
    model, _ = tiny.llava()
    chance = torch.Generator().manual_seed(1)

    def tokens(n: int) -> list[int]:
        return torch.randint(3, 256, (n,), generator=chance).tolist()

    image_token = model.config.image_token_id
    made = []
    for seed, lengths in enumerate([(12, 3, 7, 1), (5, 5, 9, 2), (4, 11, 6, 8)]):
        prompt = [*tokens(1 + seed), *[image_token] * 4, *tokens(5 - 2 * seed)]
        pixels = tiny.image("Llava", seed)[0]["pixel_values"]
        completions = [tokens(n) for n in lengths]
        with torch.no_grad():
            logprobs, _ = completion_logprobs(
                model, prompt, completions, images={"pixel_values": pixels}, temperature=TEMPERATURE
            )
        old = torch.zeros(G, MAX_TOKENS)
        old[:, : logprobs.shape[1]] = logprobs
        old += 0.4 * torch.randn(old.shape, generator=chance)
        made.append(Group(prompt, pixels, completions, torch.randn(G, generator=chance), old))
    return made


def trl_inputs(trainer: Any, groups: list[Group], off_policy: bool) -> dict[str, Any]:
    """What `_generate_and_score_completions` would hand to `_compute_loss`: prompts padded on the left."""
    width = max(len(group.prompt) for group in groups)
    gaps = torch.tensor([width - len(group.prompt) for group in groups]).repeat_interleave(G)
    rows = [completion for group in groups for completion in group.completions]
    mask = torch.tensor([[int(t < len(row)) for t in range(MAX_TOKENS)] for row in rows])
    inputs = {
        "prompt_ids": torch.tensor([[0] * (width - len(g.prompt)) + g.prompt for g in groups for _ in range(G)]),
        "prompt_mask": (torch.arange(width) >= gaps[:, None]).int(),
        "completion_ids": torch.tensor([row + [0] * (MAX_TOKENS - len(row)) for row in rows]),
        "completion_mask": mask,
        "pixel_values": torch.cat([group.image for group in groups for _ in range(G)]),
        "num_images": [1] * len(rows),
        "advantages": torch.cat([group.advantages for group in groups]),
        "num_items_in_batch": mask.sum(),
    }
    if off_policy:
        inputs["old_per_token_logps"] = torch.cat([group.old for group in groups])
    if trainer.beta:
        with torch.no_grad():
            inputs["ref_per_token_logps"], _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.ref_model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
                torch.cat([inputs["prompt_mask"], mask], 1),
                MAX_TOKENS,
                pixel_values=inputs["pixel_values"],
                num_images=inputs["num_images"],
            )
    return inputs


def our_losses(trainer: Any, groups: list[Group], kind: Any, beta: float, off_policy: bool) -> list[Loss]:
    """Of each group, by TRL's model and reference."""
    lengths = [len(completion) for group in groups for completion in group.completions]
    losses = []
    for group in groups:
        asked = {"images": {"pixel_values": group.image}, "temperature": TEMPERATURE}
        logprobs, _ = completion_logprobs(trainer.model, group.prompt, group.completions, **asked)
        reference = None
        if beta:
            with torch.no_grad():
                reference, _ = completion_logprobs(trainer.ref_model, group.prompt, group.completions, **asked)
        T = logprobs.shape[1]
        mask = torch.arange(T) < torch.tensor([len(completion) for completion in group.completions])[:, None]
        losses.append(
            policy_loss(
                logprobs,
                group.old[:, :T] if off_policy else logprobs.detach(),
                group.advantages,
                token_weights(mask, kind, rollouts=len(lengths), tokens=sum(lengths), max_tokens=MAX_TOKENS),
                clip=CLIP,
                reference=reference,
                kl=beta,
            )
        )
    return losses


def gradients(loss: Tensor, model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("off_policy", [False, True])
def test_same_loss_and_gradients(saved: Path, groups: list[Group], kind: str, beta: float, off_policy: bool) -> None:
    trainer = trl_trainer(saved, kind, beta)
    inputs = trl_inputs(trainer, groups, off_policy)
    theirs = trainer._compute_loss(trainer.model, inputs)
    their_gradients = gradients(theirs, trainer.model)
    parts = our_losses(trainer, groups, kind, beta, off_policy)
    ours = torch.stack([part.loss for part in parts]).sum()
    our_gradients = gradients(ours, trainer.model)

    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in their_gradients.values())
    assert largest > 0.01  # the comparison is not one of zeros
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)

    tokens = inputs["completion_mask"].sum().item()
    logged = {name: values[0] for name, values in trainer._metrics["train"].items()}
    clipped = sum(part.clipped.sum().item() for part in parts)
    assert (clipped > 3) == off_policy
    assert clipped / tokens == pytest.approx(logged["clip_ratio/region_mean"])
    if beta:
        kl = sum(
            part.kl[row, : len(completion)].sum().item()
            for part, group in zip(parts, groups, strict=True)
            for row, completion in enumerate(group.completions)
        )
        assert kl / tokens == pytest.approx(logged["kl"], rel=1e-4)
        assert kl > 0.01


def test_the_kinds_differ_here(saved: Path, groups: list[Group]) -> None:
    """So that a loss of the wrong kind would have failed above."""
    trainer = trl_trainer(saved, "grpo", 0.0)
    losses = [sum(part.loss.item() for part in our_losses(trainer, groups, kind, 0.0, True)) for kind in KINDS]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3


def test_trl_corrects_its_kl_by_default(saved: Path, groups: list[Group]) -> None:
    """Equal to ours in value where the policy has not moved since it sampled, and yet another gradient."""
    trainer = trl_trainer(saved, "grpo", 0.1, use_bias_correction_kl=True)
    theirs = trainer._compute_loss(trainer.model, trl_inputs(trainer, groups, False))
    ours = torch.stack([part.loss for part in our_losses(trainer, groups, "grpo", 0.1, False)]).sum()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    ours, theirs = (gradients(loss, trainer.model)["lm_head.weight"] for loss in (ours, theirs))
    assert float((ours - theirs).abs().max()) > 0.01
