"""The exact forward over token sequences that share beginnings: every distinct beginning runs once.

Questions about a caption share the caption, so a forward for each would run it again and again. Here the sequences are merged
into a trie (prefix tree). Its nodes go through the model once, in depth-first order and in chunks: one forward each, in which
a token sees its own ancestors alone and stands at the position that it has in its own sequence. In that order, whatever a chunk
needs of those before it lies on the way from the root to its first node, so only the keys and values of that way are kept.

For causal language models of transformers (`SUPPORTED`) and vision-language models (`SUPPORTED_VISION`), whose images have to
stand in the beginning that all sequences share: they go through the vision tower once. Gradients flow where the caller has them
switched on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

log = logging.getLogger("capreward")

SUPPORTED = ("llama", "qwen2", "qwen3")
"""Values of `config.model_type`, of a language model or of the one inside a LLaVA, that are tested against the plain forward."""
SUPPORTED_VISION = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""The same, of vision-language models."""
CHUNK_TOKENS = 512
"""Of a chunk, at most. Right for a CPU; a GPU wants some thousands."""
VOCABULARY_ROWS = 256
"""Tokens whose distributions over the whole vocabulary are held at once."""

Images = Mapping[str, Tensor]
"""What the model's processor made of the images of all sequences, without the text: `pixel_values`, and what belongs to it."""
Form = Literal["expanded", "packed", "repeated"]
"""How a group of completions runs after their prompt; see `completion_logprobs`."""
Past = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, each (1, heads, tokens, size of a head)."""


@dataclass(slots=True)
class Counts:
    """What forwards have cost; the functions here add to it."""

    run: int = 0
    """Tokens that went through the model."""
    unique: int = 0
    """Distinct beginnings of the sequences: no exact forward can run fewer tokens."""


@dataclass(frozen=True, slots=True)
class Trie:
    """Token sequences merged into a prefix tree, its N nodes in depth-first order: a parent comes before its children."""

    tokens: list[int]
    depths: list[int]
    """Position of a node's token in its sequences."""
    ends: list[int]
    """The subtree of node i is i, i + 1, ..., ends[i] - 1."""
    paths: list[list[int]]
    """The nodes of each of the S sequences, in the order in which the sequences were given."""

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Trie:
        """Merge the sequences.

        Raises:
            ValueError: a sequence is empty.
        """
        if not all(sequences):
            raise ValueError("a token sequence is empty, expected at least one token in each")
        trie = cls([], [], [], [[] for _ in sequences])
        path: list[int] = []
        # In sorted order, a sequence shares its nodes with the one before it or has them to itself.
        for index in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
            sequence = sequences[index]
            shared = 0
            while shared < min(len(path), len(sequence)) and trie.tokens[path[shared]] == sequence[shared]:
                shared += 1
            path = path[:shared]
            for depth in range(shared, len(sequence)):
                path.append(len(trie.tokens))
                trie.tokens.append(sequence[depth])
                trie.depths.append(depth)
                trie.ends.append(0)
            for node in path:
                trie.ends[node] = len(trie.tokens)
            trie.paths[index] = path
        return trie

    @property
    def trunk(self) -> int:
        """How many nodes there are from the root to the first fork; 0 with several roots."""
        count = len(self.tokens)
        for node, depth in enumerate(self.depths):
            if depth != node or self.ends[node] != count:
                return node
        return count


def check(model: Any) -> None:
    """Nothing, if the forward over shared prefixes is exact for `model`.

    Raises:
        ValueError: it is not; says why.
    """
    name = f"{type(model).__name__} (model_type {model.config.model_type!r})"
    config = model.config.get_text_config()
    # a LLaVA is as good as the language model inside
    family = (config if model.config.model_type == "llava" else model.config).model_type
    if family not in (*SUPPORTED, *SUPPORTED_VISION):
        expected = ", ".join((*SUPPORTED, *SUPPORTED_VISION))
        raise ValueError(f"{name}: shared prefixes are supported for model types {expected}")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{name}: got attention {config._attn_implementation!r}, expected 'sdpa' or 'eager', which take a mask of any "
            "form; load the model with attn_implementation='sdpa'"
        )
    other = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if other or getattr(config, "use_sliding_window", False):
        raise ValueError(
            f"{name}: every layer has to see the whole prefix, got {', '.join(other) or 'a sliding window'}"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise ValueError(
            f"{name}: rotary embedding {rope!r} depends on the length of the sequence, which branches differ in"
        )


def last_logits(
    model: Any,
    sequences: Sequence[Sequence[int]],
    columns: Sequence[int] | None = None,
    *,
    images: Images | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    counts: Counts | None = None,
) -> Tensor:
    """Logits of what follows each sequence, float32 (S, V); V is the vocabulary, or `columns` if given.

    With `columns` these alone are computed, in float32 also where the model is not: rounded logits would make ties.

    Raises:
        ValueError: as `hidden_states`; or a sequence is empty.
    """
    trie = Trie.of(sequences)
    hidden = hidden_states(model, trie, images=images, chunk_tokens=chunk_tokens, counts=counts)
    hidden = hidden[[path[-1] for path in trie.paths]]
    head = model.get_output_embeddings()
    if columns is None:
        return torch.as_tensor(head(hidden)).float()
    rows = torch.tensor(columns, device=hidden.device)
    bias = None if head.bias is None else head.bias[rows].float()
    return torch.nn.functional.linear(hidden.float(), head.weight[rows].float(), bias)


def sequence_logprobs(
    model: Any,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    images: Images | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    counts: Counts | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of log P(token | all tokens before it) over each sequence from its start on, and over how many tokens.

    Both (S,), in nats and float32, and in tokens. The mean is their quotient.

    Raises:
        ValueError: as `hidden_states`; or a start lies outside 1 to the length of its sequence - 1.
    """
    for sequence, start in zip(sequences, starts, strict=True):
        if not 1 <= start < len(sequence):
            raise ValueError(
                f"got start {start} in a sequence of {len(sequence)} tokens, expected 1 to {len(sequence) - 1}"
            )
    trie = Trie.of(sequences)
    hidden = hidden_states(model, trie, images=images, chunk_tokens=chunk_tokens, counts=counts)
    scored = [path[start:] for path, start in zip(trie.paths, starts, strict=True)]
    before = {
        n: p for path, s in zip(trie.paths, starts, strict=True) for p, n in zip(path[s - 1 :], path[s:], strict=False)
    }
    nodes = list(before)
    targets = torch.tensor([trie.tokens[node] for node in nodes], device=hidden.device)
    logprob, _ = _of_targets(model.get_output_embeddings(), hidden[[before[node] for node in nodes]], targets, 1.0)
    row = {node: i for i, node in enumerate(nodes)}
    sums = torch.stack([logprob[[row[node] for node in path]].sum() for path in scored])
    return sums, torch.tensor([len(path) for path in scored], device=sums.device)


def completion_logprobs(
    model: Any,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    *,
    images: Images | None = None,
    temperature: float = 1.0,
    form: Form | None = None,
) -> tuple[Tensor, Tensor]:
    """Log P(token | prompt and the tokens before it) of G completions of one prompt, and the entropy of each distribution.

    Both (G, T) in nats and float32, T the length of the longest completion, 0 behind the end of a shorter one. The
    prompt and its images run once. Full logits are held for `VOCABULARY_ROWS` tokens at a time, in the backward pass too.

    Args:
        images: of the prompt.
        temperature: that the tokens were sampled with; logits are divided by it.
        form: three exact ways to run, which differ in speed and memory.
            "expanded": the prompt by itself, then the completions as a batch on its keys and values. Fastest on a CPU.
            "packed": one sequence of prompt and completions under a mask, beginnings that completions share once. Chosen under
            gradient checkpointing, which cannot keep keys and values.
            "repeated": the prompt and its images with every completion, as other trainers do. Chosen for models without an exact
            shared-prefix forward (see `check`).

    Raises:
        ValueError: an empty prompt, no completions, or a model that the form asked for does not support.
    """
    if not prompt or not completions:
        raise ValueError(
            f"got {len(prompt)} prompt tokens and {len(completions)} completions, expected 1 of each at least"
        )
    form = form or _best_form(model)
    if form != "repeated":
        check(model)
    lengths = [len(completion) for completion in completions]
    if not max(lengths):
        empty = torch.zeros(len(completions), 0, device=model.device)
        return empty, empty.clone()
    run = {"expanded": _expanded, "packed": _packed, "repeated": _repeated}[form]
    hidden = run(model, prompt, completions, images)
    mask = torch.tensor([[t < length for t in range(max(lengths))] for length in lengths], device=hidden.device)
    targets = torch.tensor([token for completion in completions for token in completion], device=hidden.device)
    logprobs, entropies = _of_targets(model.get_output_embeddings(), hidden[mask], targets, temperature)
    zeros = torch.zeros(mask.shape, device=hidden.device)
    return zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, entropies)


def _best_form(model: Any) -> Form:
    try:
        check(model)
    except ValueError as error:
        say_once(f"{error}; running prompt and images again with every completion, which is exact but slower")
        return "repeated"
    # the model's own property of this name changes from version to version
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return "packed" if model.training and checkpointing else "expanded"


@cache
def say_once(message: str) -> None:
    """Log a warning, the first time that this message comes."""
    log.warning("%s", message)


class Prefilled(NamedTuple):
    """A prompt that has run, for completions to go on from."""

    last: Tensor
    """What predicts the first token of a completion, (H,)."""
    past: Past
    next_position: Tensor
    """Where that token stands, ()."""
    axes: tuple[int, ...]
    """What goes before the batch in the shape of position ids: (3,) for models that count time, height and width, else ()."""


def prefill(model: Any, prompt: Sequence[int], images: Images | None = None) -> Prefilled:
    """Run a prompt and its images once. `model` has to pass `check`."""
    trunk = Trie.of([prompt])
    positions = _positions(model, trunk, images)
    hidden, past = _forward(model, trunk, positions, 0, len(prompt), [], [], images or {})
    return Prefilled(hidden[-1], past, positions.amax() + 1, tuple(positions.shape[:-2]))


def _expanded(model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]], images: Images | None) -> Tensor:
    """The hidden states that predict each token of the completions, (G, T, H)."""
    prompt_ = prefill(model, prompt, images)
    last = prompt_.last.expand(len(completions), 1, -1)
    before = _padded([completion[:-1] for completion in completions], model.device)
    if not before.shape[1]:
        return last
    G = len(completions)
    expanded = [(keys.expand(G, -1, -1, -1), values.expand(G, -1, -1, -1)) for keys, values in prompt_.past]
    following = prompt_.next_position + torch.arange(before.shape[1], device=model.device)
    output = model.base_model(
        input_ids=before,
        position_ids=following.expand(*prompt_.axes, G, -1),
        past_key_values=_filled_cache(model, expanded),
        use_cache=True,
    )
    return torch.cat([last, output.last_hidden_state], dim=1)


def _packed(model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]], images: Images | None) -> Tensor:
    trie = Trie.of([[*prompt, *completion[:-1]] for completion in completions])
    count = len(trie.tokens)
    is_chain = trie.trunk == count
    output = model.base_model(
        input_ids=torch.tensor([trie.tokens], device=model.device),
        position_ids=_positions(model, trie, images),
        attention_mask=None if is_chain else _mask(model, trie, 0, count, []),
        use_cache=False,
        **(images or {}),
    )
    nodes = _padded([path[len(prompt) - 1 :] for path in trie.paths], model.device)
    return torch.as_tensor(output.last_hidden_state[0, nodes])


def _repeated(model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]], images: Images | None) -> Tensor:
    sequences = [[*prompt, *completion[:-1]] for completion in completions]
    tokens = _padded(sequences, model.device)
    inside = _padded([[1] * len(sequence) for sequence in sequences], model.device)
    again = {name: torch.cat([value] * len(completions)) for name, value in (images or {}).items()}
    if "image_grid_thw" in again:
        again["mm_token_type_ids"] = ((tokens == model.config.image_token_id) & inside.bool()).int()
    output = model.base_model(input_ids=tokens, attention_mask=inside, use_cache=False, **again)
    return torch.as_tensor(output.last_hidden_state[:, len(prompt) - 1 :])


def _padded(rows: Sequence[Sequence[int]], device: Any) -> Tensor:
    """The rows as (R, longest), filled up with 0 on the right."""
    width = max(map(len, rows))
    filled = [[*row, *[0] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long, device=device).reshape(len(rows), width)


def _of_targets(head: Any, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each target (n,) after its hidden state (n, H), and the entropy there."""

    def piece(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = (head(states).float() / temperature).log_softmax(-1)
        return logprobs.gather(-1, tokens[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)

    pieces = [
        # computed again in the backward pass, so that no two pieces' logits are ever held together
        checkpoint(piece, states, tokens, use_reentrant=False)
        for states, tokens in zip(
            torch.split(hidden, VOCABULARY_ROWS), torch.split(targets, VOCABULARY_ROWS), strict=True
        )
    ]
    logprobs, entropies = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def hidden_states(
    model: Any,
    trie: Trie,
    *,
    images: Images | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    counts: Counts | None = None,
) -> Tensor:
    """The last layer's normed output at each node of the trie, (N, H), in the model's type.

    Raises:
        ValueError: the model is not supported (see `check`), or an image stands after a fork.
    """
    check(model)
    positions = _positions(model, trie, images)
    pieces: list[Tensor] = []
    above: list[int] = []  # the ancestors of the next chunk's first node
    past: Past = []
    start = 0
    while start < len(trie.tokens):
        # The model wants the tokens of all images in one forward.
        size = max(chunk_tokens, trie.trunk) if images and not start else chunk_tokens
        stop = min(start + size, len(trie.tokens))
        hidden, past = _forward(model, trie, positions, start, stop, above, past, {} if start else images or {})
        pieces.append(hidden)
        seen = [*above, *range(start, stop)]
        places = [place for place, node in enumerate(seen) if trie.ends[node] > stop]
        above = [seen[place] for place in places]
        index = torch.tensor(places, dtype=torch.long, device=hidden.device)
        past = [(keys.index_select(2, index), values.index_select(2, index)) for keys, values in past] if above else []
        start = stop
    if counts is not None:
        counts.run += sum(len(piece) for piece in pieces)
        counts.unique += len(trie.tokens)
    return torch.cat(pieces)


def _positions(model: Any, trie: Trie, images: Images | None) -> Tensor:
    """Where each node stands in its sequences: (1, N), or (3, 1, N) for models that count time, height and width of an image."""
    depths = torch.tensor([trie.depths], device=model.device)
    if images is None:
        return depths
    trunk = trie.trunk
    if model.config.image_token_id in trie.tokens[trunk:]:
        raise ValueError("an image stands where the sequences differ, expected all in the beginning that they share")
    if "image_grid_thw" not in images:
        return depths
    tokens = torch.tensor([trie.tokens[:trunk]], device=model.device)
    of_trunk, _ = model.base_model.get_rope_index(
        input_ids=tokens,
        mm_token_type_ids=(tokens == model.config.image_token_id).int(),
        image_grid_thw=images["image_grid_thw"],
    )
    # An image takes up fewer positions than it has tokens; the text after it counts on from the largest.
    following = of_trunk.max() + 1 + depths[:, trunk:] - trunk
    return torch.cat([of_trunk, following.expand(3, 1, -1)], dim=-1)


def _forward(
    model: Any, trie: Trie, positions: Tensor, start: int, stop: int, above: list[int], past: Past, images: Images
) -> tuple[Tensor, Past]:
    """Output (n, H) at the nodes start to stop - 1, and keys and values of `above` and these."""
    filled = _filled_cache(model, past)
    is_chain = trie.depths[stop - 1] - trie.depths[start] == stop - 1 - start
    output = model.base_model(
        input_ids=torch.tensor([trie.tokens[start:stop]], device=model.device),
        position_ids=positions[..., start:stop],
        attention_mask=None if is_chain else _mask(model, trie, start, stop, above),
        past_key_values=filled,
        use_cache=True,
        **images,
    )
    layers: Any = filled.layers
    return output.last_hidden_state[0], [(layer.keys, layer.values) for layer in layers]


def _filled_cache(model: Any, past: Past) -> Any:
    """A cache with these keys and values: a new one each time, since how to cut one differs between versions of transformers."""
    from transformers import DynamicCache

    filled = DynamicCache(config=model.config)
    for layer, (keys, values) in enumerate(past):
        filled.update(keys, values, layer)
    return filled


def _mask(model: Any, trie: Trie, start: int, stop: int, above: list[int]) -> Tensor:
    """What is added to the attention scores, (1, 1, n, above + n): 0 to see oneself and one's ancestors, else -large."""
    seen = [*above, *range(start, stop)]
    node = torch.tensor(seen, device=model.device)
    ends = torch.tensor([trie.ends[i] for i in seen], device=model.device)
    own = node[len(above) :, None]
    return additive_mask(model, (node <= own) & (own < ends))[None, None]


def additive_mask(model: Any, sees: Tensor) -> Tensor:
    """What is added to attention scores, so that a token sees what `sees` is true for: 0 there, else the most negative number."""
    mask = torch.zeros(sees.shape, dtype=model.dtype, device=sees.device)
    return mask.masked_fill(~sees, torch.finfo(model.dtype).min)
