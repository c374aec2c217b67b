"""Sampling captions: the prompt of a group runs once, and its rollouts read the same keys and values.

In each step the newest tokens of the G rollouts of a group look at their prompt together and at their own tokens apart. So the
prompt's keys and values are held and read once a group, not once a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from capreward import prefix
from capreward.errors import NonFiniteError
from capreward.train.policy import Prompt

Completions = list[list[int]]
"""Tokens of the G rollouts of a group, each with the token that ended it, if it did end."""

ATTENTION = "capreward_rollouts"
"""What `_attend` is called in transformers."""


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Prompt],
    uniforms: Tensor,
    *,
    ends: set[int],
    temperature: float = 1.0,
    unspeakable: Sequence[int] = (),
    all_done: Callable[[bool], bool] = bool,
) -> list[Completions]:
    """Sample G completions of each of N prompts, of at most T tokens.

    Args:
        model: passes `prefix.check`; anything else is sampled by transformers, which repeats the prompt.
        uniforms: (N, G, T), numbers in [0, 1) that decide what is sampled: a rollout depends on nothing else but the
            model and its prompt, whatever is sampled beside it.
        ends: tokens that end a completion.
        temperature: logits are divided by it.
        unspeakable: tokens that are never sampled.
        all_done: of "all of mine have ended", whether everybody's have; for a model that is spread over processes, which
            have to run in step.

    Raises:
        NonFiniteError: the model's logits are no finite numbers.
    """
    try:
        prefix.check(model)
    except ValueError as error:
        prefix.say_once(f"{error}; sampling with the prompt and its images repeated for every rollout")
        return [
            _repeated(model, prompt, row, ends, temperature, unspeakable)
            for prompt, row in zip(prompts, uniforms, strict=True)
        ]
    N, G, T = uniforms.shape
    end = min(ends)
    group = _Group(model, prompts, G, T)
    tokens = torch.full((N, G, T), end, device=model.device)
    done = torch.zeros(N, G, dtype=torch.bool, device=model.device)
    stops = torch.tensor(sorted(ends), device=model.device)
    forbidden = torch.tensor(unspeakable, dtype=torch.long, device=model.device)
    uniforms = uniforms.to(model.device)
    hidden = group.last
    finite = torch.ones((), dtype=torch.bool, device=model.device)
    patience = 1 if model.device.type == "cpu" else 8  # a GPU that is asked whether all have ended has to be waited for
    for t in range(T):
        logits = model.get_output_embeddings()(hidden).float() / temperature
        drawn, total = _draw(logits.index_fill(-1, forbidden, -torch.inf), uniforms[:, :, t])
        finite &= total.isfinite().all()
        tokens[:, :, t] = torch.where(done, end, drawn)
        done |= torch.isin(drawn, stops)
        if t + 1 == T or ((t + 1) % patience == 0 and all_done(bool(done.all()))):
            break
        hidden = group.advance(tokens[:, :, t])
    if not finite:
        raise NonFiniteError(
            "the model's logits are no finite numbers, so weights of it are lost; start again with a lower learning_rate"
        )
    return [[_cut(row, ends) for row in rows] for rows in tokens.tolist()]


def _draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the cumulated probability passes the uniform number, and the whole probability, (N, G) both."""
    cumulated = logits.softmax(-1).double().cumsum(-1)
    passed = uniforms[..., None] * cumulated[..., -1:]
    drawn = torch.searchsorted(cumulated, passed, right=True)[..., 0]
    return drawn.clamp(max=logits.shape[-1] - 1), cumulated[..., -1]  # beyond the last where probabilities are NaN


def _cut(tokens: list[int], ends: set[int]) -> list[int]:
    """Up to the token that ends it, that one included."""
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]


class _Group:
    """The keys and values of N groups under way: those of the prompts, and those of their N G rollouts, a row each."""

    def __init__(self, model: Any, prompts: Sequence[Prompt], G: int, T: int) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION, _attend)
        self.model, self.steps = model, 0
        self.config = model.config.get_text_config()
        prefilled = [prefix.prefill(model, prompt.tokens, prompt.images) for prompt in prompts]
        lengths = [len(prompt.tokens) for prompt in prompts]
        P = max(lengths)
        self.axes = prefilled[0].axes
        self.next = torch.stack([each.next_position for each in prefilled])[:, None]
        self.last = torch.stack([each.last for each in prefilled])[:, None].expand(-1, G, -1)
        """What predicts the next token of each rollout, (N, G, H)."""
        layers = zip(*(each.past for each in prefilled), strict=True)
        self.prompts: prefix.Past = [_stacked(layer, P) for layer in layers]
        kind = model.device.type
        if torch.is_autocast_enabled(kind):  # else it would cast all of them again for every token
            dtype = torch.get_autocast_dtype(kind)
            self.prompts = [(keys.to(dtype), values.to(dtype)) for keys, values in self.prompts]
        # Room for all that will come: to join a new token to what is there would copy it, which took half of the time.
        self.own = [
            tuple(part.new_empty(len(prompts) * G, part.shape[1], T, part.shape[3]) for part in layer)
            for layer in self.prompts
        ]
        places = torch.arange(P, device=model.device)
        inside = places >= P - torch.tensor(lengths, device=model.device)[:, None]
        self.mask = prefix.additive_mask(model, inside)[:, None, None]

    def advance(self, tokens: Tensor) -> Tensor:
        """Run the newest token of each rollout, (N, G): what predicts the next one, (N, G, H)."""
        positions = (self.next + self.steps).expand_as(tokens).reshape(-1, 1)
        usual = self.config._attn_implementation
        self.config._attn_implementation = ATTENTION
        try:
            output = self.model.base_model(
                input_ids=tokens.reshape(-1, 1),
                position_ids=positions.expand(*self.axes, -1, -1),
                attention_mask=self.mask,
                use_cache=False,
                rollouts=self,
            )
        finally:
            self.config._attn_implementation = usual
        self.steps += 1
        return torch.as_tensor(output.last_hidden_state).view(*tokens.shape, -1)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float, rollouts: _Group, **_: Any
) -> tuple[Tensor, None]:
    """Attention of the newest token of each rollout to its prompt and to its own tokens, in the form that transformers asks for.

    SDPA would want each prompt's keys and values repeated, for all rollouts and for all heads that share them, in every step.
    Here the queries that look at the same keys stand together: K heads of keys, R heads of queries for each.
    """
    (prompt_keys, prompt_values), (keys, values) = rollouts.prompts[module.layer_idx], rollouts.own[module.layer_idx]
    now = rollouts.steps
    keys[:, :, now], values[:, :, now] = key[:, :, 0], value[:, :, 0]
    keys, values = keys[:, :, : now + 1], values[:, :, : now + 1]
    N, K, P, D = prompt_keys.shape
    B, R = len(query), query.shape[1] // K

    def by_group(rows: Tensor) -> Tensor:
        """(B, K, R, x) as (N, K, G R, x)."""
        return rows.reshape(N, B // N, K, R, -1).transpose(1, 2).reshape(N, K, B // N * R, -1)

    def by_rollout(rows: Tensor) -> Tensor:
        """Back again."""
        return rows.view(N, K, B // N, R, -1).transpose(1, 2).reshape(B, K, R, -1)

    query = query.reshape(B, K, R, D) * scaling
    to_prompt = by_rollout(by_group(query) @ prompt_keys.mT + mask)
    weights = torch.cat([to_prompt, query @ keys.mT], dim=-1).softmax(-1, dtype=torch.float32).to(values.dtype)
    seen = by_rollout(by_group(weights[..., :P]) @ prompt_values) + weights[..., P:] @ values
    return seen.reshape(B, 1, K * R, D), None


def _stacked(layer: Sequence[tuple[Tensor, Tensor]], length: int) -> tuple[Tensor, Tensor]:
    """The keys and values of one layer of all prompts as (N, heads, length, size), zeros on the left of the shorter ones."""
    keys, values = (
        torch.cat([torch.nn.functional.pad(part, (0, 0, length - part.shape[2], 0)) for part in parts])
        for parts in zip(*layer, strict=True)
    )
    return keys, values


def _repeated(
    model: Any, prompt: Prompt, uniforms: Tensor, ends: set[int], temperature: float, unspeakable: Sequence[int]
) -> Completions:
    tokens = torch.tensor([prompt.tokens] * len(uniforms), device=model.device)
    again = {name: torch.cat([value] * len(uniforms)) for name, value in (prompt.images or {}).items()}
    if "image_grid_thw" in again:
        again["mm_token_type_ids"] = (tokens == model.config.image_token_id).int()
    uniforms = uniforms.to(model.device)

    def draw(so_far: Tensor, logits: Tensor) -> Tensor:
        """Leaves a choice of one token for each rollout."""
        logits = logits.float() / temperature
        logits[:, list(unspeakable)] = -torch.inf
        drawn, _ = _draw(logits, uniforms[:, so_far.shape[1] - tokens.shape[1]])
        return torch.full_like(logits, -torch.inf).scatter(-1, drawn[:, None], 0.0)

    # What the model likes to sample with, such as a penalty on repetitions, would not be the distribution that is trained.
    liked = model.generation_config
    model.generation_config = type(liked)(
        do_sample=False, max_new_tokens=uniforms.shape[1], eos_token_id=sorted(ends), pad_token_id=min(ends)
    )
    try:
        sampled = model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), logits_processor=[draw], **again
        )
    finally:
        model.generation_config = liked
    return [_cut(row, ends) for row in sampled[:, len(prompt.tokens) :].tolist()]
