from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import runs
import tiny
import torch
import transformers

from capreward import Item
from capreward.errors import InputError, MissingExtraError
from capreward.prefix import completion_logprobs
from capreward.train.policy import LORA_LAYERS, Policy, Prompt

ITEM = Item(id="red", image=runs.picture(0))


def policy(**options: Any) -> Policy:
    return Policy(*tiny.llava(), instruction="Say e.", **options)


def logprobs(model: Any, prompt: Prompt) -> torch.Tensor:
    with torch.no_grad():
        return completion_logprobs(model, prompt.tokens, [[5, 6, 7], [8]], images=prompt.images)[0]


def move(changed: Policy) -> None:
    """Changes whatever is trained, as an update does."""
    with torch.no_grad():
        for parameter in changed.parameters():
            if parameter.requires_grad:
                parameter += 0.1


class TestPrompt:
    def test_by_hand(self) -> None:
        made = policy()
        prompt = made.prompt(ITEM)
        text = made.tokenizer.decode(prompt.tokens)
        assert text == "<|im_start|>user\n" + "<image>" * 4 + "Say e.<|im_end|>\n<|im_start|>assistant\n"
        assert prompt.images is not None
        assert {name: tuple(value.shape) for name, value in prompt.images.items()} == {"pixel_values": (1, 3, 16, 16)}

    def test_is_the_processors(self) -> None:
        made = policy()
        content = [{"type": "image", "image": tiny_picture()}, {"type": "text", "text": "Say e."}]
        expected = made.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        prompt = made.prompt(ITEM)
        assert prompt.tokens == expected["input_ids"][0].tolist()
        assert prompt.images is not None
        assert torch.equal(prompt.images["pixel_values"], expected["pixel_values"])

    def test_depends_on_the_picture(self) -> None:
        made = policy()
        one, other = (logprobs(made.model, made.prompt(Item(id="x", image=runs.picture(n)))) for n in range(2))
        assert (one - other).abs().max() > 1e-3

    def test_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "red.png"
        path.write_bytes(runs.picture(0))
        made = policy()
        assert made.prompt(Item(id="x", image=path)).tokens == made.prompt(ITEM).tokens

    @pytest.mark.parametrize("image", [b"no picture", Path("nowhere.png")])
    def test_a_picture_that_cannot_be_read(self, image: Any) -> None:
        with pytest.raises(InputError, match="item 'broken': its image cannot be read"):
            policy().prompt(Item(id="broken", image=image))

    def test_no_picture(self) -> None:
        with pytest.raises(InputError, match="item 'bare' has no image; every item needs one"):
            policy().prompt(Item(id="bare"))

    def test_no_chat_template(self) -> None:
        model, processor = tiny.llava()
        processor.chat_template = processor.tokenizer.chat_template = None
        with pytest.raises(InputError, match="LlavaProcessor has no chat template; set its chat_template"):
            Policy(model, processor, instruction="Say e.")

    def test_the_tokenizers_template_will_do(self) -> None:
        model, processor = tiny.llava()
        processor.chat_template = None
        assert Policy(model, processor, instruction="Say e.").prompt(ITEM).tokens == policy().prompt(ITEM).tokens


def tiny_picture() -> Any:
    from capreward.processing import open_image

    return open_image(runs.picture(0))


class TestTokens:
    def test_captions_hold_no_special_tokens(self) -> None:
        made = policy()
        tokens = [*made.tokenizer.encode(" a red cup \n"), *made.ends]
        assert made.caption(tokens) == "a red cup"
        assert made.caption([]) == ""

    @pytest.mark.parametrize(("end", "expected"), [(260, {260}), ([260, 7], {260, 7}), (None, {260})])
    def test_ends(self, end: Any, expected: set[int]) -> None:
        made = policy()
        made.model.generation_config.eos_token_id = end
        assert made.ends == expected

    def test_unspeakable(self) -> None:
        made = policy()
        image = made.model.config.image_token_id
        assert made.unspeakable == [image, *range(len(made.tokenizer), tiny.BYTE_VOCABULARY)]
        made.model.generation_config.eos_token_id = [260, 270]
        assert set(made.unspeakable) & made.ends == set()


class TestReference:
    @pytest.mark.parametrize("lora_rank", [0, 2])
    def test_stays_what_the_model_was(self, lora_rank: int) -> None:
        made = policy(lora_rank=lora_rank, reference=True)
        prompt = made.prompt(ITEM)
        before = logprobs(made.model, prompt)
        with made.reference_model() as reference:
            assert torch.equal(logprobs(reference, prompt), before)
        move(made)
        with made.reference_model() as reference:
            torch.testing.assert_close(logprobs(reference, prompt), before, atol=0, rtol=0)
        assert (logprobs(made.model, prompt) - before).abs().max() > 1e-3

    def test_is_not_trained(self) -> None:
        made, plain = policy(reference=True), policy()
        assert len(list(made.parameters())) == len(list(plain.parameters()))
        assert made.state_dict().keys() == plain.state_dict().keys()
        with made.reference_model() as reference:
            assert not any(parameter.requires_grad for parameter in reference.parameters())
            assert not reference.training

    def test_moves_when_told_to(self) -> None:
        made = policy(reference=True).to("meta")
        with made.reference_model() as reference:
            assert reference.device.type == "cpu"
        made.move_reference(torch.device("meta"))
        with made.reference_model() as reference:
            assert reference.device.type == "meta"

    def test_on_a_gpu_only_its_weights_are_rounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        made = policy(reference=True)
        with made.reference_model() as reference:
            assert {parameter.dtype for parameter in reference.parameters()} == {torch.bfloat16}
            frequencies = [value for name, value in reference.named_buffers() if name.endswith("inv_freq")]
            assert frequencies
            assert all(value.dtype == torch.float32 for value in frequencies)
        assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}

    def test_what_is_tied_can_be_tied_again(self) -> None:
        made = policy()
        made.model.config.get_text_config().tie_word_embeddings = made.model.config.tie_word_embeddings = True
        made.tie_weights()
        assert made.model.get_output_embeddings().weight is made.model.get_input_embeddings().weight

    def test_layers_that_sharding_spreads_one_by_one(self) -> None:
        assert "LlamaDecoderLayer" in policy()._no_split_modules

    def test_a_frozen_part_stays_frozen(self) -> None:
        model, processor = tiny.llava()
        model.base_model.vision_tower.requires_grad_(False)
        made = Policy(model, processor, instruction="Say e.", reference=True)
        assert any(parameter.requires_grad for parameter in made.parameters())
        assert not any(parameter.requires_grad for parameter in made.model.base_model.vision_tower.parameters())


class TestAdapters:
    def test_alone_are_trained(self) -> None:
        made = policy(lora_rank=3)
        trained = {name: p for name, p in made.named_parameters() if p.requires_grad}
        # two layers of seven linear ones, two factors each
        assert len(trained) == 2 * 7 * 2
        assert all("language_model" in name and "lora_" in name for name in trained)
        assert {min(parameter.shape) for parameter in trained.values()} == {3}

    def test_change_nothing_at_first(self) -> None:
        made = policy(lora_rank=3)
        prompt = made.prompt(ITEM)
        assert torch.equal(logprobs(made.model, prompt), logprobs(policy().model, prompt))

    @pytest.mark.parametrize("kind", tiny.VISION_KINDS)
    def test_are_on_the_language_model_of_every_architecture(self, kind: str) -> None:
        model = tiny.vision_model(kind)
        peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules=LORA_LAYERS))
        names = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert len(names) == 14
        assert not any("vis" in name for name in names)

    def test_a_model_without_such_layers(self) -> None:
        _, processor = tiny.llava()
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
        with pytest.raises(InputError, match="lora_rank: GPT2LMHeadModel has no layers for adapters"):
            Policy(gpt2, processor, instruction="Say e.", lora_rank=2)

    def test_without_peft(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(MissingExtraError, match=r"lora_rank needs peft.*capreward\[train\]"):
            policy(lora_rank=2)


class TestSaveAndLoad:
    def test_whole(self, tmp_path: Path) -> None:
        made = policy()
        move(made)
        made.save(tmp_path)
        loaded = Policy.load(tmp_path, instruction="Say e.")
        prompt = made.prompt(ITEM)
        assert loaded.prompt(ITEM).tokens == prompt.tokens
        torch.testing.assert_close(logprobs(loaded.model.eval(), prompt), logprobs(made.model, prompt), atol=0, rtol=0)
        assert loaded.ends == made.ends
        assert loaded.unspeakable == made.unspeakable

    @pytest.mark.parametrize("spread", [False, True])
    @pytest.mark.parametrize("lora_rank", [0, 2])
    def test_adapters_or_all_by_the_state(self, tmp_path: Path, lora_rank: int, spread: bool) -> None:
        """A state in place of the parameters: from these, nothing is read then."""
        torch.manual_seed(1)
        made = policy(lora_rank=lora_rank)
        move(made)
        prompt = made.prompt(ITEM)
        expected = logprobs(made.model, prompt)
        state = deepcopy(made.state_dict()) if spread else None
        if spread:
            move(made)
        made.save(tmp_path, state)
        if lora_rank:
            loaded = peft.PeftModel.from_pretrained(tiny.llava()[0], tmp_path)
            assert not (tmp_path / "model.safetensors").exists()
        else:
            loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        found = logprobs(loaded.base_model.model if lora_rank else loaded, prompt)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert transformers.AutoProcessor.from_pretrained(tmp_path).chat_template == tiny.CHAT_TEMPLATE


def test_forward_hands_the_model_over() -> None:
    made = policy()
    assert made(lambda model, *args, **options: (model is made.model, args, options), 1, b=2) == (True, (1,), {"b": 2})
