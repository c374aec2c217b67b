from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from tiny import IMAGE, VISION_KINDS, VOCABULARY

from capreward import prefix
from capreward.train.policy import Prompt
from capreward.train.rollout import generate

END = 1
UNSPEAKABLE = [19, 20, 21, IMAGE]
SIZES = [(4, 6), (8, 4), (4, 4)]


def prompts(kind: str) -> list[Prompt]:
    """Three, of different lengths and with pictures of different sizes where the model takes them."""
    made = []
    for seed, (size, text) in enumerate(zip(SIZES, ([5, 6], [7], [8, 9, 10, 11]), strict=True)):
        images, count = tiny.image(kind, seed, size if kind != "Llava" else None)
        made.append(Prompt([0, 20, *[IMAGE] * count, 19, *text], images))
    return made


def uniforms(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


def distribution(model: Any, prompt: Prompt, completion: list[int], temperature: float, unspeakable: Any) -> Any:
    """What follows, by the model's own forward over the whole sequence."""
    tokens = torch.tensor([[*prompt.tokens, *completion]])
    images = prompt.images or {}
    types = {"mm_token_type_ids": (tokens == IMAGE).int()} if "image_grid_thw" in images else {}
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False, **images, **types).logits[0, -1].double().numpy()
    logits[list(unspeakable)] = -np.inf
    odds = np.exp((logits - logits.max()) / temperature)
    return odds / odds.sum()


def one_by_one(
    model: Any, prompt: Prompt, numbers: Any, temperature: float = 1.0, unspeakable: Any = (), ends: Any = (END,)
) -> list[int]:
    """A single rollout, without a cache and with nothing beside it."""
    completion: list[int] = []
    for number in numbers.tolist():
        below = np.cumsum(distribution(model, prompt, completion, temperature, unspeakable))
        completion.append(int(np.argmax(below > number)))
        if completion[-1] in ends:
            break
    return completion


@pytest.mark.parametrize("kind", VISION_KINDS)
class TestGroups:
    def test_each_rollout_is_sampled_as_if_by_itself(self, kind: str) -> None:
        model, given, numbers = tiny.vision_model(kind), prompts(kind), uniforms(3, 4, 9)
        found = generate(model, given, numbers, ends={END}, temperature=1.3, unspeakable=UNSPEAKABLE)
        expected = [
            [one_by_one(model, prompt, row, 1.3, UNSPEAKABLE) for row in rows]
            for prompt, rows in zip(given, numbers, strict=True)
        ]
        assert found == expected
        lengths = {len(completion) for group in found for completion in group}
        assert len(lengths) > 1  # some end before others
        assert max(lengths) == 9

    def test_in_bfloat16_as_on_a_gpu(self, kind: str) -> None:
        model, given, numbers = tiny.vision_model(kind), prompts(kind), uniforms(3, 20, 1)
        plain = generate(model, given, numbers, ends={END})
        with torch.autocast("cpu", torch.bfloat16):
            rounded = generate(model, given, numbers, ends={END})
            again = generate(model, given, numbers, ends={END})
        assert rounded == again
        same = [
            one == other
            for group, others in zip(plain, rounded, strict=True)
            for one, other in zip(group, others, strict=True)
        ]
        assert np.mean(same) > 0.8  # the same numbers on nearly the same odds

    def test_the_picture_is_looked_at(self, kind: str) -> None:
        model, [given, *_], numbers = tiny.vision_model(kind), prompts(kind), uniforms(1, 4, 6)
        assert given.images is not None
        other = given._replace(images={**given.images, "pixel_values": -given.images["pixel_values"]})
        assert generate(model, [given], numbers, ends={END}) != generate(model, [other], numbers, ends={END})

    def test_what_is_sampled_beside_it_changes_nothing(self, kind: str) -> None:
        model, given, numbers = tiny.vision_model(kind), prompts(kind), uniforms(3, 4, 8)

        def sample(which: list[int], rollouts: Any = slice(None)) -> list[list[list[int]]]:
            return generate(model, [given[n] for n in which], numbers[which][:, rollouts], ends={END})

        together = sample([0, 1, 2])
        assert sample([1]) == [together[1]]
        assert sample([2, 0]) == [together[2], together[0]]
        assert sample([0, 1, 2], [3, 1]) == [[rows[3], rows[1]] for rows in together]

    def test_unspeakable_tokens_never_come(self, kind: str) -> None:
        speakable = {2, 3, END}
        found = generate(
            tiny.vision_model(kind),
            prompts(kind),
            uniforms(3, 30, 6),
            ends={END},
            temperature=20.0,
            unspeakable=sorted(set(range(VOCABULARY)) - speakable),
        )
        assert {token for group in found for completion in group for token in completion} == speakable

    def test_a_completion_ends_at_its_end(self, kind: str) -> None:
        model, ends = tiny.vision_model(kind), {END, 4, 5}
        found = generate(model, prompts(kind), uniforms(3, 30, 6), ends=ends, temperature=5.0)
        completions = [completion for group in found for completion in group]
        assert {completion[-1] for completion in completions if len(completion) < 6} == ends
        assert all(not ends & set(completion[:-1]) for completion in completions)
        assert 1 in map(len, completions)
        assert 6 in map(len, completions)


MODEL = tiny.vision_model("Llava")


class TestGenerate:
    def test_the_prompt_and_its_picture_run_once_for_a_group(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []
        forward = MODEL.base_model.forward

        def spy(**kwargs: Any) -> Any:
            sizes.append((kwargs["input_ids"].shape, "pixel_values" in kwargs))
            return forward(**kwargs)

        monkeypatch.setattr(MODEL.base_model, "forward", spy)
        given = prompts("Llava")[:2]
        generate(MODEL, given, uniforms(2, 5, 4), ends={VOCABULARY})  # never
        assert sizes == [*(((1, len(prompt.tokens)), True) for prompt in given), *[((2 * 5, 1), False)] * 3]

    def test_stops_when_all_have_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        steps = []
        all_done = lambda done: steps.append(done) or done  # noqa: E731
        ends = set(range(VOCABULARY))
        found = generate(MODEL, prompts("Llava"), uniforms(3, 2, 50), ends=ends, all_done=all_done)
        assert [[len(completion) for completion in group] for group in found] == [[1, 1]] * 3
        assert steps == [True]

    def test_goes_on_in_step_with_others(self) -> None:
        asked = []

        def all_done(done: bool) -> bool:
            asked.append(done)
            return len(asked) == 3

        ends = set(range(VOCABULARY))
        found = generate(MODEL, prompts("Llava"), uniforms(3, 2, 50), ends=ends, all_done=all_done)
        assert asked == [True, True, True]
        assert [[len(completion) for completion in group] for group in found] == [[1, 1]] * 3

    @pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
    def test_sampled_as_often_as_probable(self, temperature: float) -> None:
        [prompt, *_], draws = prompts("Llava"), 20_000
        # evenly spread numbers: every count is right to one draw
        numbers = ((torch.arange(draws).double() + 0.5) / draws)[None, torch.randperm(draws), None]
        [found] = generate(MODEL, [prompt], numbers, ends={END}, temperature=temperature, unspeakable=[2, 3])
        counts = np.bincount([completion[0] for completion in found], minlength=VOCABULARY)
        expected = distribution(MODEL, prompt, [], temperature, [2, 3])
        np.testing.assert_allclose(counts, draws * expected, atol=1.1)
        assert counts.max() < 0.95 * draws

    def test_second_tokens_too(self) -> None:
        [prompt, *_], draws = prompts("Llava"), 4000
        [found] = generate(
            MODEL, [prompt], uniforms(1, draws, 2), ends={VOCABULARY}, temperature=3.0, unspeakable=UNSPEAKABLE
        )
        pairs = np.zeros((VOCABULARY, VOCABULARY))
        np.add.at(pairs, tuple(np.transpose(found)), 1)
        first = distribution(MODEL, prompt, [], 3.0, UNSPEAKABLE)
        expected = np.zeros_like(pairs)
        for token in np.flatnonzero(first):
            expected[token] = draws * first[token] * distribution(MODEL, prompt, [int(token)], 3.0, UNSPEAKABLE)
        enough = expected > 5
        chi_square = ((pairs - expected)[enough] ** 2 / expected[enough]).sum()
        freedom = enough.sum()
        assert freedom > 50
        assert chi_square < freedom + 4 * np.sqrt(2 * freedom)

    @pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
    def test_the_ends_of_the_interval(self, number: float) -> None:
        numbers = torch.full((1, 1, 3), number, dtype=torch.float64)
        every = list(range(VOCABULARY))
        [[found]] = generate(
            MODEL, prompts("Llava")[:1], numbers, ends={VOCABULARY}, unspeakable=[*every[:3], *every[-3:]]
        )
        assert all(3 <= token < VOCABULARY - 3 for token in found)

    def test_needs_no_gradients(self) -> None:
        generate(MODEL, prompts("Llava"), uniforms(3, 2, 3), ends={END})
        assert torch.is_grad_enabled()

    def test_without_a_picture(self) -> None:
        model, numbers = tiny.text_model("Qwen3"), uniforms(2, 3, 5)
        given = [Prompt([0, 5, 6], None), Prompt([0, 7], None)]
        expected = [
            [one_by_one(model, prompt, row) for row in rows] for prompt, rows in zip(given, numbers, strict=True)
        ]
        assert generate(model, given, numbers, ends={END}) == expected


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=VOCABULARY, initializer_range=0.5, bos_token_id=0, eos_token_id=END
    )
    return transformers.GPT2LMHeadModel(config).eval()


class TestUnsupported:
    """Models whose prompt cannot be shared exactly."""

    PROMPT = Prompt([0, 5, 6], None)

    def test_says_so_once(self, caplog: pytest.LogCaptureFixture) -> None:
        prefix.say_once.cache_clear()
        model = gpt2()
        for _ in range(2):
            generate(model, [self.PROMPT], uniforms(1, 2, 3), ends={END})
        (said,) = [record.message for record in caplog.records if record.name == "capreward"]
        assert "'gpt2'" in said
        assert "repeated for every rollout" in said

    def test_each_rollout_is_sampled_as_if_by_itself(self) -> None:
        model, numbers = gpt2(), uniforms(2, 4, 8)
        given, unspeakable = [self.PROMPT, Prompt([0, 7], None)], [2, 3, 4]
        expected = [
            [one_by_one(model, prompt, row, 2.5, unspeakable) for row in rows]
            for prompt, rows in zip(given, numbers, strict=True)
        ]
        found = generate(model, given, numbers, ends={END}, temperature=2.5, unspeakable=unspeakable)
        assert found == expected
        assert len({len(completion) for group in found for completion in group}) > 1

    @pytest.mark.parametrize("kind", VISION_KINDS)
    def test_with_pictures(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: Any) -> None:
            raise ValueError("no")

        model, given, numbers = tiny.vision_model(kind), prompts(kind), uniforms(3, 4, 8)
        shared = generate(model, given, numbers, ends={END}, temperature=1.3, unspeakable=UNSPEAKABLE)
        monkeypatch.setattr(prefix, "check", refuse)
        assert generate(model, given, numbers, ends={END}, temperature=1.3, unspeakable=UNSPEAKABLE) == shared

    def test_whatever_the_model_likes_to_sample_with(self) -> None:
        """Log-probabilities are those of the plain distribution, so what is sampled has to be, too."""
        model, numbers = gpt2(), uniforms(1, 20, 6)
        expected = generate(model, [self.PROMPT], numbers, ends={END})
        liked = transformers.GenerationConfig(
            do_sample=True,
            temperature=0.1,
            top_k=3,
            repetition_penalty=5.0,
            no_repeat_ngram_size=1,
            suppress_tokens=[7],
        )
        model.generation_config = liked
        assert generate(model, [self.PROMPT], numbers, ends={END}) == expected
        assert model.generation_config is liked

    def test_leaves_others_their_random_numbers(self) -> None:
        model = gpt2()
        before = torch.get_rng_state()
        generate(model, [self.PROMPT], uniforms(1, 5, 8), ends={END})
        assert torch.equal(torch.get_rng_state(), before)

    def test_ends_and_unspeakable(self) -> None:
        ends = {END, 4, 5}
        [found] = generate(
            gpt2(), [self.PROMPT], uniforms(1, 60, 6), ends=ends, temperature=9.0, unspeakable=range(6, 20)
        )
        assert {completion[-1] for completion in found if len(completion) < 6} == ends
        assert all(not ends & set(completion[:-1]) for completion in found)
        assert {token for completion in found for token in completion} == {0, 1, 2, 3, 4, 5, 20, 21, 22}
