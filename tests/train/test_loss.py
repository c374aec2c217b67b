from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from capreward.train.loss import policy_loss, token_weights

KINDS = ("grpo", "dapo", "dr_grpo")
CLIP = (0.2, 0.28)


def mask_of(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def by_loops(
    logprobs: Any, old: Any, advantages: Any, lengths: Any, kind: str, clip: Any, reference: Any, kl: float, whole: Any
) -> tuple[float, Any, Any]:
    """The loss, its gradient and what is clipped, token by token, from the papers' formulas.

    Args:
        whole: rollouts, tokens and max_tokens of the batch.
    """
    rollouts, tokens, max_tokens = whole
    loss, gradient, clipped = 0.0, np.zeros(logprobs.shape), np.zeros(logprobs.shape, bool)
    for g, length in enumerate(lengths):
        weight = {"grpo": 1 / rollouts / max(length, 1), "dapo": 1 / tokens, "dr_grpo": 1 / rollouts / max_tokens}[kind]
        for t in range(length):
            ratio, a = np.exp(logprobs[g, t] - old[g, t]), advantages[g]
            plain, held = ratio * a, min(max(ratio, 1 - clip[0]), 1 + clip[1]) * a
            clipped[g, t] = held < plain
            loss -= weight * (held if clipped[g, t] else plain)
            gradient[g, t] -= 0 if clipped[g, t] else weight * plain
            if reference is not None:
                apart = np.exp(reference[g, t] - logprobs[g, t])
                loss += kl * weight * (apart - np.log(apart) - 1)
                gradient[g, t] += kl * weight * (1 - apart)
    return loss, gradient, clipped


class TestTokenWeights:
    def test_by_hand(self) -> None:
        mask = mask_of(2, 0, 4)

        def weights(kind: Any) -> list[list[float]]:
            return token_weights(mask, kind, rollouts=10, tokens=40, max_tokens=8).tolist()

        assert weights("grpo") == pytest.approx(np.array([[0.05, 0.05, 0, 0], [0, 0, 0, 0], [0.025] * 4]))
        assert weights("dapo") == pytest.approx(np.array([[0.025, 0.025, 0, 0], [0, 0, 0, 0], [0.025] * 4]))
        assert weights("dr_grpo") == pytest.approx(np.array([[0.0125, 0.0125, 0, 0], [0, 0, 0, 0], [0.0125] * 4]))

    @pytest.mark.parametrize(("kind", "total"), [("grpo", 1.0), ("dapo", 1.0), ("dr_grpo", 11 / (5 * 6))])
    def test_of_all_groups_of_a_batch(self, kind: Any, total: float) -> None:
        groups = [mask_of(1, 4, 2), mask_of(1, 3)]
        sums = [token_weights(mask, kind, rollouts=5, tokens=11, max_tokens=6).sum() for mask in groups]
        assert float(sum(sums)) == pytest.approx(total)

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_but_empty_completions(self, kind: Any) -> None:
        weights = token_weights(torch.zeros(2, 0, dtype=torch.bool), kind, rollouts=2, tokens=0, max_tokens=4)
        assert weights.shape == (2, 0)
        padded = token_weights(torch.zeros(2, 3, dtype=torch.bool), kind, rollouts=2, tokens=0, max_tokens=4)
        assert padded.tolist() == [[0, 0, 0]] * 2


@settings(max_examples=150)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    kind=st.sampled_from(KINDS),
    clip=st.tuples(st.floats(0.05, 0.5), st.floats(0.05, 0.5)),
    kl=st.sampled_from([None, 0.0, 0.04, 1.0]),
    others=st.integers(0, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_loss_is_that_of_the_formulas(
    lengths: list[int], kind: Any, clip: Any, kl: float | None, others: int, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    shape = len(lengths), max(lengths)
    logprobs, old, reference = (-1 - chance.random(shape) for _ in range(3))
    advantages = chance.normal(size=len(lengths))
    whole = {"rollouts": len(lengths) + others, "tokens": max(sum(lengths) + 3 * others, 1), "max_tokens": 7}
    policy = torch.tensor(logprobs, requires_grad=True)
    found = policy_loss(
        policy,
        torch.tensor(old),
        torch.tensor(advantages),
        token_weights(mask_of(*lengths), kind, **whole),
        clip=clip,
        reference=None if kl is None else torch.tensor(reference),
        kl=kl or 0.0,
    )
    found.loss.backward()
    loss, gradient, clipped = by_loops(
        logprobs, old, advantages, lengths, kind, clip, None if kl is None else reference, kl or 0.0, whole.values()
    )
    # the weights are float32
    assert float(found.loss.detach()) == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert policy.grad is not None
    np.testing.assert_allclose(policy.grad, gradient, rtol=1e-5, atol=1e-6)
    assert found.clipped.tolist() == clipped.tolist()
    assert not found.clipped.requires_grad
    assert not found.kl.requires_grad


class TestPolicyLoss:
    """By hand: one rollout with advantage 2 and one with -1, three tokens of ratios 0.5, 1 and 2 each, weight 1."""

    RATIOS = torch.tensor([[0.5, 1.0, 2.0]] * 2)
    ADVANTAGES = torch.tensor([2.0, -1.0])

    def of(self, **options: Any) -> tuple[Any, list[list[float]]]:
        logprobs = self.RATIOS.log().requires_grad_()
        old = torch.zeros(2, 3)
        result = policy_loss(logprobs, old, self.ADVANTAGES, torch.ones(2, 3), **{"clip": CLIP, **options})
        result.loss.backward()
        assert logprobs.grad is not None
        return result, logprobs.grad.tolist()

    def test_clips_above_what_is_rewarded_and_below_what_is_not(self) -> None:
        result, gradient = self.of()
        # 2 x (0.5 + 1 + 1.28) gained, 1 x (0.8 + 1 + 2) lost
        assert result.loss.item() == pytest.approx(-2 * 2.78 + 3.8)
        assert result.clipped.tolist() == [[False, False, True], [True, False, False]]
        assert gradient == pytest.approx(np.array([[-1, -2, 0], [0, 1, 2]]))

    def test_each_bound_acts_on_its_own_side(self) -> None:
        low, _ = self.of(clip=(0.6, 0.28))
        assert low.clipped.tolist() == [[False, False, True], [False, False, False]]
        high, _ = self.of(clip=(0.2, 1.5))
        assert high.clipped.tolist() == [[False, False, False], [True, False, False]]

    def test_without_a_reference_there_is_no_kl(self) -> None:
        result, _ = self.of(kl=0.1)
        assert result.kl.tolist() == [[0, 0, 0]] * 2

    def test_kl_by_hand(self) -> None:
        reference = torch.zeros(2, 3)  # 1 / ratio as likely as the policy
        result, gradient = self.of(reference=reference, kl=0.5)
        k3 = [2 - np.log(2) - 1, 0, 0.5 + np.log(2) - 1]
        assert result.kl.tolist() == pytest.approx(np.array([k3, k3]), abs=1e-6)
        assert result.loss.item() == pytest.approx(-2 * 2.78 + 3.8 + 0.5 * 2 * sum(k3))
        # a clipped token is still drawn to the reference
        assert gradient == pytest.approx(np.array([[-1 - 0.5, -2, 0.25], [-0.5, 1, 2.25]]))

    def test_kl_is_told_where_it_does_not_count(self) -> None:
        with_kl, gradient = self.of(reference=torch.zeros(2, 3))
        without, plain = self.of()
        assert with_kl.kl.sum() > 0.5
        assert with_kl.loss.item() == without.loss.item()
        assert gradient == plain

    def test_first_update_has_the_gradient_of_the_policy(self) -> None:
        logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], requires_grad=True)
        weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
        result = policy_loss(logprobs, logprobs.detach(), self.ADVANTAGES, weights, clip=CLIP)
        result.loss.backward()
        assert result.loss.item() == pytest.approx(-2 * 1 + 1)
        assert logprobs.grad is not None
        assert logprobs.grad.tolist() == [[-1, -1], [1, 0]]
        assert not result.clipped.any()

    def test_what_lies_behind_the_end_does_nothing(self) -> None:
        logprobs = torch.tensor([[-1.0, 5.0], [-1.0, -1.0]], requires_grad=True)
        weights = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        result = policy_loss(logprobs, torch.full((2, 2), -1.0), self.ADVANTAGES, weights, clip=CLIP)
        result.loss.backward()
        assert not result.clipped.any()
        assert logprobs.grad is not None
        assert logprobs.grad[0, 1] == 0

    def test_an_advantage_of_zero_teaches_nothing(self) -> None:
        logprobs = self.RATIOS.log().requires_grad_()
        result = policy_loss(logprobs, torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3), clip=CLIP)
        result.loss.backward()
        assert result.loss.item() == 0
        assert not result.clipped.any()
        assert logprobs.grad is not None
        assert not logprobs.grad.any()
