from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings, strategies as st
from tiny import IMAGE, VOCABULARY, text_model, vision_model

from capreward import prefix
from capreward.prefix import Counts, Trie, check, completion_logprobs, last_logits, sequence_logprobs

MODELS = {kind: text_model(kind) for kind in ("Llama", "Qwen2", "Qwen3")}
EAGER = text_model("Llama", attn_implementation="eager")
kinds = pytest.mark.parametrize("kind", MODELS)


def plain(model: Any, sequence: Sequence[int]) -> Any:
    """Logits (T, V) of the plain forward over one sequence."""
    return model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0]


@st.composite
def families(draw: Any) -> list[list[int]]:
    """Sequences that continue each other: nested beginnings, duplicates, a sequence within another, strangers."""
    token = st.integers(0, VOCABULARY - 1)
    sequences = [draw(st.lists(token, min_size=1, max_size=12))]
    for _ in range(draw(st.integers(0, 7))):
        parent = draw(st.sampled_from(sequences))
        kept = draw(st.integers(0, len(parent)))
        sequences.append([*parent[:kept], *draw(st.lists(token, min_size=0 if kept else 1, max_size=8))])
    return draw(st.permutations(sequences))


@kinds
@settings(max_examples=40)
@given(sequences=families(), chunk_tokens=st.integers(1, 40))
def test_last_logits_are_those_of_the_plain_forward(kind: str, sequences: list[list[int]], chunk_tokens: int) -> None:
    model = MODELS[kind]
    with torch.no_grad():
        expected = torch.stack([plain(model, sequence)[-1] for sequence in sequences])
        torch.testing.assert_close(
            last_logits(model, sequences, chunk_tokens=chunk_tokens), expected, atol=1e-5, rtol=1e-5
        )
        columns = [5, 1, 5]
        some = last_logits(model, sequences, columns, chunk_tokens=chunk_tokens)
        torch.testing.assert_close(some, expected[:, columns], atol=1e-5, rtol=1e-5)


@kinds
@settings(max_examples=30)
@given(sequences=families(), chunk_tokens=st.integers(1, 40), data=st.data())
def test_logprobs_are_those_of_the_plain_forward(
    kind: str, sequences: list[list[int]], chunk_tokens: int, data: st.DataObject
) -> None:
    sequences = [[0, 1, *sequence] for sequence in sequences]
    starts = [data.draw(st.integers(1, len(sequence) - 1)) for sequence in sequences]
    with torch.no_grad():
        sums, tokens = sequence_logprobs(MODELS[kind], sequences, starts, chunk_tokens=chunk_tokens)
        for sequence, start, total, n in zip(sequences, starts, sums, tokens, strict=True):
            logprobs = plain(MODELS[kind], sequence).log_softmax(-1)
            expected = sum(logprobs[i - 1, sequence[i]] for i in range(start, len(sequence)))
            assert total.item() == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
            assert n == len(sequence) - start


@given(families(), st.integers(1, 40))
def test_every_beginning_runs_once(sequences: list[list[int]], chunk_tokens: int) -> None:
    counts = Counts()
    with torch.no_grad():
        last_logits(MODELS["Llama"], sequences, [0], chunk_tokens=chunk_tokens, counts=counts)
    beginnings = {tuple(sequence[:n]) for sequence in sequences for n in range(1, len(sequence) + 1)}
    assert counts == Counts(len(beginnings), len(beginnings))


def test_trie_by_hand() -> None:
    trie = Trie.of([[7, 8, 9], [7, 8], [7, 5], [7, 8, 9]])
    assert trie.tokens == [7, 5, 8, 9]
    assert trie.depths == [0, 1, 1, 2]
    assert trie.ends == [4, 2, 4, 4]
    assert trie.paths == [[0, 2, 3], [0, 2], [0, 1], [0, 2, 3]]


def test_counts_add_up_over_calls() -> None:
    counts = Counts()
    for _ in range(2):
        last_logits(MODELS["Llama"], [[1, 2, 3], [1, 2, 4, 5]], counts=counts)
    assert counts == Counts(10, 10)


def test_chunks_are_full_and_keep_only_the_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["Llama"]
    sizes = []
    forward = model.model.forward

    def spy(**kwargs: Any) -> Any:
        past = kwargs["past_key_values"].get_seq_length()
        sizes.append((past, kwargs["input_ids"].numel()))
        return forward(**kwargs)

    monkeypatch.setattr(model.model, "forward", spy)
    last_logits(model, [[1] * 10 + [end, end] for end in range(2, 6)], chunk_tokens=4)
    assert sizes == [(0, 4), (4, 4), (8, 4), (10, 4), (10, 2)]


def test_eager_attention() -> None:
    sequences = [[3, 4, 5], [3, 4, 6, 7], [8]]
    expected = torch.stack([plain(EAGER, sequence)[-1] for sequence in sequences])
    torch.testing.assert_close(last_logits(EAGER, sequences, chunk_tokens=2), expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_within_its_rounding() -> None:
    model = text_model("Llama", initializer_range=0.1).to(torch.bfloat16)
    sequences = [[3, 4, 5, end] for end in range(8)]
    expected = torch.stack([plain(model, sequence)[-1] for sequence in sequences]).float()
    for columns in (None, range(VOCABULARY)):
        logits = last_logits(model, sequences, columns, chunk_tokens=4)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, atol=0.03, rtol=0.03)


def test_gradients_are_those_of_the_plain_forward() -> None:
    model = text_model("Llama")
    sequences = [[3, 4, 5], [3, 4, 6, 7], [3, 4, 6, 8]]
    sum(plain(model, sequence)[-1, 2] for sequence in sequences).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    last_logits(model, sequences, chunk_tokens=2)[:, 2].sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module", params=tiny.VISION_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return vision_model(kind)


class TestImages:
    """Sequences that begin with the same picture."""

    def plain(self, model: Any, sequence: list[int], images: Any) -> Any:
        """Logits (T, V) of the model's own forward over one sequence, which finds the positions by itself."""
        tokens = torch.tensor([sequence])
        types = {} if "image_grid_thw" not in images else {"mm_token_type_ids": (tokens == IMAGE).int()}
        return model(input_ids=tokens, use_cache=False, **images, **types).logits[0]

    def family(self, kind: str) -> tuple[list[list[int]], Any]:
        images, tokens = tiny.image(kind)
        trunk = [0, 20, *[IMAGE] * tokens, 19, 5, 6]
        return [[*trunk, *rest] for rest in ([7, 8, 9], [7, 8], [4], [7, 8, 9, 10, 11, 3], [])], images

    @pytest.mark.parametrize("chunk_tokens", [1, 4, 13, 100])
    def test_logits_are_those_of_the_plain_forward(self, kind: str, model: Any, chunk_tokens: int) -> None:
        sequences, images = self.family(kind)
        with torch.no_grad():
            expected = torch.stack([self.plain(model, sequence, images)[-1] for sequence in sequences])
            logits = last_logits(model, sequences, images=images, chunk_tokens=chunk_tokens)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
            other = last_logits(model, sequences, images=tiny.image(kind, seed=1)[0], chunk_tokens=chunk_tokens)
        assert (other - expected).abs().max() > 0.01  # the picture is looked at

    def test_logprobs_are_those_of_the_plain_forward(self, kind: str, model: Any) -> None:
        sequences, images = self.family(kind)
        sequences.pop()  # the trunk by itself
        start = min(map(len, sequences)) - 1
        with torch.no_grad():
            sums, _ = sequence_logprobs(model, sequences, [start] * len(sequences), images=images)
            for sequence, total in zip(sequences, sums, strict=True):
                logprobs = self.plain(model, sequence, images).log_softmax(-1)
                expected = sum(logprobs[i - 1, sequence[i]] for i in range(start, len(sequence)))
                assert total.item() == pytest.approx(float(expected), rel=1e-4, abs=1e-4)

    def test_the_tower_runs_once(self, kind: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        sequences, images = self.family(kind)
        calls = []
        features = model.base_model.get_image_features

        def spy(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return features(*args, **kwargs)

        monkeypatch.setattr(model.base_model, "get_image_features", spy)
        counts = Counts()
        with torch.no_grad():
            last_logits(model, sequences, images=images, chunk_tokens=3, counts=counts)
        assert len(calls) == 1
        assert counts.run == counts.unique

    def test_gradients_are_those_of_the_plain_forward(self, kind: str) -> None:
        model = vision_model(kind)
        sequences, images = self.family(kind)
        sum(self.plain(model, sequence, images)[-1, 2] for sequence in sequences).backward()
        expected = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        last_logits(model, sequences, images=images, chunk_tokens=100)[:, 2].sum().backward()
        reached = 0
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            reached += gradient is not None
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-3)
        assert reached > 30  # the tower's among them

    def test_without_images_it_is_a_language_model(self, model: Any) -> None:
        sequences = [[3, 4, 5], [3, 4, 6, 7], [8]]
        with torch.no_grad():
            expected = torch.stack([self.plain(model, sequence, {})[-1] for sequence in sequences])
            torch.testing.assert_close(last_logits(model, sequences, chunk_tokens=2), expected, atol=1e-4, rtol=1e-4)

    def test_an_image_after_a_fork(self, kind: str, model: Any) -> None:
        images, tokens = tiny.image(kind)
        with pytest.raises(ValueError, match="an image stands where the sequences differ"):
            last_logits(model, [[0, *[IMAGE] * tokens], [1, *[IMAGE] * tokens]], images=images)


FORMS = ("expanded", "packed", "repeated")


@pytest.fixture(scope="module", params=[*tiny.VISION_KINDS, *MODELS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestCompletions:
    """Log-probs of a group's completions after their prompt."""

    COMPLETIONS = ([7, 8, 9, 1], [7, 8], [], [4], [7, 8, 9, 10, 11, 3, 1], [7, 8])

    def prompts(self, name: str) -> list[tuple[list[int], Any]]:
        """Two prompts, with pictures of different sizes where the model takes them."""
        if name in MODELS:
            return [([0, 5, 6], None), ([0, 2], None)]
        sizes = [(4, 6), (8, 4)] if name != "Llava" else [None, None]
        pictures = [tiny.image(name, seed, size) for seed, size in enumerate(sizes)]
        return [([0, 20, *[IMAGE] * tokens, 19, 5, 6], images) for images, tokens in pictures]

    def plain(self, model: Any, prompt: list[int], images: Any, temperature: float = 1.0) -> tuple[Any, Any]:
        """Log-probs and entropies by one forward for each completion."""
        logprobs, entropies = [], []
        for completion in self.COMPLETIONS:
            tokens = torch.tensor([[*prompt, *completion]])
            types = {"mm_token_type_ids": (tokens == IMAGE).int()} if "image_grid_thw" in (images or {}) else {}
            logits = model(input_ids=tokens, use_cache=False, **(images or {}), **types).logits[0]
            each = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
            logprobs.append(each[range(len(completion)), completion])
            entropies.append(-(each.exp() * each).sum(-1))
        return tuple(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (logprobs, entropies))

    def model(self, name: str) -> Any:
        return text_model(name) if name in MODELS else vision_model(name)

    @pytest.mark.parametrize("form", FORMS)
    def test_are_those_of_a_forward_for_each(self, name: str, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("capreward.prefix.VOCABULARY_ROWS", 4)  # pieces that end within a completion
        model = self.model(name)
        for prompt, images in self.prompts(name):
            expected = self.plain(model, prompt, images, 0.7)
            found = completion_logprobs(model, prompt, self.COMPLETIONS, images=images, temperature=0.7, form=form)
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.shape == (6, 7)
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_gradients_are_those_of_a_forward_for_each(self, name: str, form: Any, checkpointing: bool) -> None:
        if checkpointing and form == "expanded":
            pytest.skip("never chosen there")
        model = self.model(name)
        weights = torch.arange(42.0).reshape(6, 7).sin()
        sum((self.plain(model, prompt, images)[0] * weights).sum() for prompt, images in self.prompts(name)).backward()
        expected = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        if checkpointing:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for prompt, images in self.prompts(name):
            logprobs, _ = completion_logprobs(model, prompt, self.COMPLETIONS, images=images, form=form)
            (logprobs * weights).sum().backward()
        largest = max(gradient.norm() for gradient in expected if gradient is not None)
        for (parameter_name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
            if gradient is None:
                assert parameter.grad is None or not parameter.grad.any(), parameter_name
            else:  # a bias of keys has none but rounding errors: softmax does not see it
                allowed = 1e-4 * gradient.norm() + 1e-6 * largest
                assert (parameter.grad - gradient).norm() < allowed, parameter_name

    def test_keys_and_values_are_not_kept_under_checkpointing(self) -> None:
        model = text_model("Llama")
        assert prefix._best_form(model) == "expanded"
        model.gradient_checkpointing_enable()
        assert prefix._best_form(model) == "expanded"
        assert prefix._best_form(model.train()) == "packed"

    def test_an_unsupported_model_runs_repeated_and_says_so_once(self, caplog: pytest.LogCaptureFixture) -> None:
        torch.manual_seed(0)
        gpt2 = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=23)
        ).eval()
        for _ in range(2):
            found = completion_logprobs(gpt2, [0, 5, 6], self.COMPLETIONS)
        for ours, theirs in zip(found, self.plain(gpt2, [0, 5, 6], None), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        (said,) = [record.message for record in caplog.records if record.name == "capreward"]
        assert "'gpt2'" in said
        assert "slower" in said

    @pytest.mark.parametrize("form", FORMS)
    def test_nothing_but_empty_completions(self, form: Any) -> None:
        logprobs, entropies = completion_logprobs(MODELS["Llama"], [3], [[], []], form=form)
        assert logprobs.shape == entropies.shape == (2, 0)

    @pytest.mark.parametrize("form", FORMS)
    def test_completions_of_one_token(self, form: Any) -> None:
        logprobs, _ = completion_logprobs(MODELS["Llama"], [3, 4], [[5], [6]], form=form)
        expected = plain(MODELS["Llama"], [3, 4])[-1].log_softmax(-1)[[5, 6]]
        torch.testing.assert_close(logprobs[:, 0], expected, atol=1e-5, rtol=0)

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="got 0 prompt tokens and 1 completions"):
            completion_logprobs(MODELS["Llama"], [], [[1]])
        with pytest.raises(ValueError, match="got 1 prompt tokens and 0 completions"):
            completion_logprobs(MODELS["Llama"], [1], [])


@pytest.mark.parametrize(
    ("sequences", "trunk"),
    [([[7, 8, 9], [7, 8, 5]], 2), ([[7, 8], [7, 8, 9]], 3), ([[7, 8]], 2), ([[7, 8], [8]], 0), ([[7, 8], [7, 9]], 1)],
)
def test_trunk(sequences: list[list[int]], trunk: int) -> None:
    assert Trie.of(sequences).trunk == trunk


def test_empty_sequence() -> None:
    with pytest.raises(ValueError, match="empty"):
        last_logits(MODELS["Llama"], [[1], []])


@pytest.mark.parametrize("start", [0, 2])
def test_start_outside_the_sequence(start: int) -> None:
    with pytest.raises(ValueError, match=f"start {start} in a sequence of 2 tokens, expected 1 to 1"):
        sequence_logprobs(MODELS["Llama"], [[1, 2]], [start])


class TestCheck:
    def test_other_architecture(self) -> None:
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
        with pytest.raises(ValueError, match=r"model_type 'gpt2'.*llama, qwen2"):
            check(gpt2)

    def test_sliding_window(self) -> None:
        model = text_model("Qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
        with pytest.raises(ValueError, match="whole prefix, got sliding_attention"):
            check(model)

    def test_attention_without_masks(self) -> None:
        model = text_model("Llama")
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(ValueError, match="'flash_attention_2', expected 'sdpa' or 'eager'"):
            check(model)

    def test_rotary_embedding_that_depends_on_length(self) -> None:
        model = text_model("Llama")
        model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": "dynamic"}
        with pytest.raises(ValueError, match="'dynamic' depends on the length"):
            check(model)
