from __future__ import annotations

import random
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image

from capreward.errors import InputError
from capreward.shapes import PROMPT, Scene, caption, captioner, faultless, imperfect, items, scene, scene_of, warm_up
from capreward.shapes.language import COMMENTARY, claims, sentences, truths
from capreward.shapes.model import BATCH, END, POOL


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return captioner(0)


def prepared(processor: Any, count: int) -> Any:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    images = [Image.open(BytesIO(item.image)) for item in items(count)]  # type: ignore[arg-type]
    return processor(text=[prompt] * count, images=images, return_tensors="pt")


def test_the_captioner_is_small_and_comes_from_its_seed(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    assert 1_000_000 < sum(weights.numel() for weights in model.parameters()) < 5_000_000
    state = torch.get_rng_state()
    again, other = captioner(0)[0], captioner(1)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(model, again)
    assert not same_weights(model, other)


def same_weights(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_decode_gives_back_what_captions_say(pair: tuple[Any, Any]) -> None:
    tokenizer = pair[1].tokenizer
    chance = random.Random(0)
    made = [scene(seed) for seed in range(50)]
    texts = [*items(1)[0].references, *COMMENTARY, PROMPT]
    for text in [*texts, *map(caption, made), *(imperfect(one, chance) for one in made)]:
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_a_large_captioner_knows_the_words_of_nine_things(pair: tuple[Any, Any]) -> None:
    tokenizer = captioner(large=True)[1].tokenizer
    for made in items(8, fewest=6, most=9) + items(1, fewest=9, most=9):
        for text in made.references:
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
            assert len(ids) < 256
    nine = caption(scene(0, fewest=9, most=9))
    assert pair[1].tokenizer(nine).input_ids.count(pair[1].tokenizer.unk_token_id) == 1


def test_a_captioner_of_another_size_captions() -> None:
    model, processor = captioner(hidden=160, layers=2)
    text, vision = model.config.text_config, model.config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (160, 320, 2)
    assert (vision.hidden_size, vision.intermediate_size) == (200, 400)
    inputs = prepared(processor, 1)
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
    small = captioner(hidden=32, layers=1)[0]
    assert small.config.vision_config.hidden_size == 160
    assert sum(weights.numel() for weights in small.parameters()) < 600_000


def test_the_large_captioner_has_about_ten_million_parameters() -> None:
    model, _ = captioner(hidden=320, layers=6, large=True)
    assert 9_000_000 < sum(weights.numel() for weights in model.parameters()) < 12_000_000


@pytest.mark.parametrize(("hidden", "layers"), [(100, 3), (0, 3), (-32, 3), (128, 0)])
def test_a_captioner_has_whole_heads_and_a_layer(hidden: int, layers: int) -> None:
    with pytest.raises(InputError, match=f"captioner: got hidden={hidden}, layers={layers}"):
        captioner(hidden=hidden, layers=layers)


def test_a_picture_is_nine_tokens_and_one_patch_sees_one_cell(pair: tuple[Any, Any]) -> None:
    model, processor = pair
    inputs = prepared(processor, 2)
    assert (inputs["input_ids"] == model.config.image_token_id).sum(dim=1).tolist() == [9, 9]
    assert inputs["input_ids"][0, 0] == processor.tokenizer.bos_token_id
    patches = inputs["pixel_values"].reshape(2, 3, 3, 16, 3, 16).abs().amax(dim=(1, 3, 5)) > 0.01
    for item, seen in zip(items(2), patches, strict=True):
        things = scene_of(item.image).things  # type: ignore[arg-type]
        assert {(thing.row, thing.column) for thing in things} == set(map(tuple, seen.nonzero().tolist()))


def test_it_captions(pair: tuple[Any, Any]) -> None:
    model, processor = pair
    inputs = prepared(processor, 2)
    made = model.generate(**inputs, do_sample=True, max_new_tokens=5)
    assert made.shape[0] == 2
    assert inputs["input_ids"].shape[1] < made.shape[1] <= inputs["input_ids"].shape[1] + 5


def test_a_reply_in_the_template_ends_with_the_end_token(pair: tuple[Any, Any]) -> None:
    messages = [{"role": "user", "content": "Describe"}, {"role": "assistant", "content": "A red circle."}]
    assert pair[1].apply_chat_template(messages) == f"<s>DescribeA red circle.{END}"


def test_warm_up_learns_and_is_reproducible_to_the_bit() -> None:
    (one, processor), (other, _), (third, _) = captioner(0), captioner(0), captioner(0)
    losses = warm_up(one, processor, steps=6, progress=False)
    torch.rand(1)  # it does not depend on the global generator
    assert warm_up(other, processor, steps=6, progress=False) == losses
    assert same_weights(one, other)
    assert warm_up(third, processor, steps=6, seed=1, progress=False) != losses
    assert losses[-1] < losses[0] - 1
    assert not one.training
    with pytest.raises(InputError, match="steps=0"):
        warm_up(one, processor, steps=0)


def test_a_warm_up_without_a_first_phase_teaches_the_given_captions_alone() -> None:
    model, processor = captioner(0)
    seen: list[Scene] = []

    def short(made: Scene, chance: random.Random) -> str:
        seen.append(made)
        return chance.choice(["A red circle.", "A blue cross."])

    assert len(warm_up(model, processor, steps=2, seeing=0, captions=short, progress=False)) == 2
    assert len(seen) == POOL * BATCH
    warm_up(model, processor, steps=1, seeing=1, captions=short, progress=False)
    assert len(seen) == POOL * BATCH


def test_a_warm_up_shows_the_given_scenes() -> None:
    model, processor = captioner(0, large=True)
    seeds: list[int] = []

    def large(seed: int) -> Scene:
        seeds.append(seed)
        return scene(seed, fewest=6, most=9)

    warm_up(model, processor, steps=2, seeing=0.5, scenes=large, progress=False)
    assert len(set(seeds)) == 2 * POOL * BATCH  # of both phases
    with pytest.raises(InputError, match=r"'There are (six|seven|eight|nine) things.*captioner\(large=True\)"):
        warm_up(*captioner(0), steps=1, scenes=large, progress=False)


@pytest.mark.parametrize("seeing", [-0.1, 1.1, float("nan")])
def test_the_share_of_the_first_phase_is_a_share(pair: tuple[Any, Any], seeing: float) -> None:
    with pytest.raises(InputError, match=rf"warm_up: got seeing={seeing}, expected a share in \[0, 1\]"):
        warm_up(*pair, seeing=seeing)


def test_the_first_phase_of_the_warm_up_teaches_the_truth_about_all_things() -> None:
    for seed in range(50):
        made = scene(seed)
        told = claims(faultless(made, random.Random(seed)))
        assert truths(made).issuperset(told)
        assert {thing.name for thing in made.things} == {claim.subject for claim in told if claim.subject}


def test_commentary_is_as_likely_as_told() -> None:
    def reflecting(**share: float) -> list[bool]:
        texts = [imperfect(scene(seed), random.Random(seed), **share) for seed in range(100)]
        return [any(sentence[:-1] in text for sentence in COMMENTARY) for text in texts]

    assert not any(reflecting(commentary=0))
    assert reflecting(commentary=0.5) == reflecting()
    assert sum(reflecting(commentary=1)) > 70  # the others are complete, or broken off


def test_imperfect_captions_have_every_fault_and_some_are_complete() -> None:
    chance = random.Random(0)
    scenes = [scene(seed) for seed in range(300)]
    texts = [imperfect(made, chance) for made in scenes]
    assert texts == [imperfect(made, again) for again in [random.Random(0)] for made in scenes]
    parsed = [sentences(text) for text in texts]
    complete = sum(text == caption(made) for text, made in zip(texts, scenes, strict=True)) / 300
    repeating = sum(len(set(each)) < len(each) for each in parsed) / 300
    reflecting = sum(any(sentence in text for sentence in COMMENTARY) for text in texts) / 300
    assert 0.05 < complete < 0.2
    fragmentary = sum(not sentence.well_formed for each in parsed for sentence in each) / sum(map(len, parsed))
    unfinished = sum(not each[-1].finished for each in parsed) / 300
    assert 0.1 < fragmentary < 0.4
    assert 0.05 < unfinished < 0.25
    assert 0.2 < repeating < 0.5
    assert 0.3 < reflecting < 0.6
