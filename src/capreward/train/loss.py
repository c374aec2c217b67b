"""GRPO's clipped loss and its variants: pure functions on tensors of one group."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["grpo", "dapo", "dr_grpo"]


class Loss(NamedTuple):
    """The loss of a group, and what to log of it."""

    loss: Tensor
    """Scalar; the losses of all groups of a batch add up to the loss of the batch."""
    clipped: Tensor
    """(G, T), bool: tokens whose ratio was clipped, so that they have no gradient but the KL's."""
    kl: Tensor
    """(G, T), nats: the estimate of KL(policy || reference) at each token; 0 without a reference."""


def token_weights(mask: Tensor, kind: Kind, *, rollouts: int, tokens: int, max_tokens: int) -> Tensor:
    """What each token of a group counts in the loss of its batch, (G, T).

    "grpo": every rollout the same, so a token of a long one less (DeepSeekMath, arXiv 2402.03300, Eq. 3).
    "dapo": every token of the batch the same (DAPO, arXiv 2503.14476, Eq. 8).
    "dr_grpo": every token the same in every batch, 1 / (rollouts max_tokens) (arXiv 2503.20783).

    Args:
        mask: (G, T), true at the tokens of each completion.
        rollouts, tokens: in the whole batch, over all groups and ranks.
        max_tokens: the longest completion that sampling allows.
    """
    if kind == "grpo":
        return mask / (mask.sum(-1, keepdim=True).clamp(min=1) * rollouts)
    return mask / {"dapo": max(tokens, 1), "dr_grpo": rollouts * max_tokens}[kind]


def policy_loss(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip: tuple[float, float],
    reference: Tensor | None = None,
    kl: float = 0.0,
) -> Loss:
    """Clipped policy gradient of a group, with a penalty for leaving the reference.

    ``sum_t w_t (-min(rho_t A, clip(rho_t, 1 - low, 1 + high) A) + kl (exp(d_t) - d_t - 1))`` with the ratio
    ``rho = exp(logprobs - old)`` and ``d = reference - logprobs``: PPO's clip, asymmetric as in DAPO, and the k3 estimate of
    KL as in DeepSeekMath, Eq. 4.

    Args:
        logprobs: of the policy, (G, T), with gradients.
        old: of the policy that sampled, (G, T).
        advantages: (G,).
        weights: `token_weights`, (G, T); 0 behind the end of a completion.
        clip: (low, high), how far the ratio may fall below and rise above 1 before it earns nothing more.
        reference: log-probs of the reference model, (G, T); needed where `kl` is not 0.
        kl: weight of the penalty.
    """
    low, high = clip
    advantages = advantages[:, None]
    ratio = (logprobs - old).exp()
    gained = torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    clipped = ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    penalty = torch.zeros_like(logprobs)
    if reference is not None:
        behind = reference - logprobs
        penalty = behind.exp() - behind - 1
    return Loss((weights * (kl * penalty - gained)).sum(), clipped.detach() & (weights > 0), penalty.detach())
