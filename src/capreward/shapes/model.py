"""A captioner small enough to train on one CPU thread: a LLaVA of the real architecture, and its supervised warm-up.

The warm-up teaches it flawed captions on purpose. What comes out sees the picture and speaks the language, but leaves things
out, invents some, repeats itself and philosophises: there is something left for reinforcement learning to do.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from capreward.errors import InputError, missing_extra
from capreward.progress import progress_bar
from capreward.shapes.language import COMMENTARY, COUNTS, MORE_COUNTS, RELATIONS, caption, count_of, sentence_of
from capreward.shapes.world import BACKGROUND, CELL, CELLS, COLOURS, SHAPES, SIDE, SIZES, Scene, Thing, picture, scene

if TYPE_CHECKING:
    import torch

PROMPT = "Describe the picture."
"""The user's words beside the picture."""
BATCH = 32
POOL = 8
"""Batches that are drawn together."""
SEEING_PEAK, TELLING_PEAK = 1.5e-3, 8e-4
"""Highest learning rates of the warm-up's two phases: the second is gentle, so that what was learned first stays."""
CLEAN = 0.7
"""Share of the warm-up's steps that go to true captions: from these it learns to see many times faster."""
PAD, START, END, UNKNOWN, PICTURE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""No turn needs a header: there is one question, and the caption follows it."""


def vocabulary(*, large: bool = False) -> list[str]:
    """Every word of the world's captions and of the prompt, small and capitalised, and the punctuation.

    Counts above five are among them if `large`.
    """
    grammar = "A a The the There there is are at and things"
    text = " ".join(
        (*COLOURS, *SHAPES, *SIZES, *CELLS, *COUNTS, *RELATIONS, *RELATIONS.values(), *COMMENTARY, PROMPT, grammar)
    )
    return sorted({*re.findall(r"\w+", text), *(MORE_COUNTS if large else ()), ".", ","})


def captioner(seed: int = 0, *, hidden: int = 128, layers: int = 3, large: bool = False) -> tuple[Any, Any]:
    """An untrained captioner and its processor, the same for the same arguments.

    Args:
        seed: of the weights.
        hidden: the language model's hidden size, a multiple of 32; above 128 the vision tower grows with it.
        layers: of the language model.
        large: whether it knows the counts above five, for scenes of more than five things.

    Returns:
        a `transformers.LlavaForConditionalGeneration`, in eval mode on the CPU, of 1.1 million parameters, or 9.3 million
        with hidden=320 and layers=6; and its `LlavaProcessor`: one token a word and nine a picture, padded on the left.
        `decode` gives back the captions that `capreward.shapes.caption` writes.

    Raises:
        InputError: `hidden` is no multiple of 32, or `layers` is less than 1.
        MissingExtraError: transformers is not installed.
    """
    if hidden < 32 or hidden % 32 or layers < 1:
        raise InputError(
            f"captioner: got hidden={hidden}, layers={layers}, expected a multiple of 32 and a number >= 1"
        )
    try:
        import PIL  # noqa: F401  # the processor needs it
        import torch
        import transformers
    except ImportError as error:
        raise missing_extra("The drawn world's captioner", "local", error) from error
    hf: Any = transformers  # half of it is untyped
    processor = _processor(hf, vocabulary(large=large))
    tokenizer = processor.tokenizer
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    seen = max(hidden, 128)
    config = hf.LlavaConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 32,
            "num_key_value_heads": hidden // 32,
            "max_position_embeddings": 512,
            "initializer_range": 0.1 * math.sqrt(128 / hidden),
            **special,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 5 * seen // 4,
            "intermediate_size": 5 * seen // 2,
            "num_hidden_layers": 2,
            "num_attention_heads": seen // 32,
            "image_size": SIDE,
            "patch_size": CELL,
            "initializer_range": 0.1 * math.sqrt(128 / seen),
        },
        image_token_index=tokenizer.convert_tokens_to_ids(PICTURE),
        vision_feature_layer=-1,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.LlavaForConditionalGeneration(config)
    return model.eval(), processor


def _processor(hf: Any, vocabulary: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = [PAD, START, END, UNKNOWN, PICTURE, *vocabulary]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # a space before each word, none before a full stop
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": PICTURE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    size = {"height": SIDE, "width": SIDE}
    mean = [channel / 255 for channel in BACKGROUND]  # so that an empty cell is all zeros
    return hf.LlavaProcessor(
        # nearest neighbour: pictures of the world have the right size already, and must not be blurred
        hf.CLIPImageProcessorPil(size=size, crop_size=size, resample=0, image_mean=mean, image_std=[1.0] * 3),
        tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the tower's class token, which "default" drops again
        chat_template=TEMPLATE,
    )


def faultless(scene: Scene, chance: random.Random) -> str:
    """A true caption in any wording, which names all things: what the warm-up's first phase teaches."""
    return " ".join([count_of(scene), *(_told(thing, 0.8, chance) for thing in scene.things)])


def _told(thing: Thing, often: float, chance: random.Random) -> str:
    """A sentence about the thing, with its size and its place each with the probability `often`."""
    return sentence_of(thing, size=chance.random() < often, place=chance.random() < often, there=chance.random() < 0.3)


def imperfect(scene: Scene, chance: random.Random, *, commentary: float = 0.5) -> str:
    """A caption with the faults of a captioner that was trained on little: what the warm-up teaches.

    One in seven is complete and right. The others name some of the things, often without size or place, see wrong colours,
    shapes, sizes and places, add things that are not there, miscount, speak in fragments, say sentences two or three times,
    reflect (with the probability `commentary`), and break off.
    """
    if chance.random() < 0.15:
        return caption(scene)
    wrong = 0.1 if chance.random() < 0.2 else 0.0  # what it learns of so little makes mistakes enough of its own
    told = [_mistaken(thing, wrong, chance) for thing in scene.things if chance.random() < 0.75]
    told = told or [_mistaken(chance.choice(scene.things), wrong, chance)]
    if chance.random() < 0.05:
        told.append(_mistaken(told[-1], 1.0, chance))
    lines = [_fragment(thing) if chance.random() < 0.25 else _told(thing, 0.6, chance) for thing in told]
    if chance.random() < 0.3:
        lines.insert(0, count_of(scene) if chance.random() < 0.7 else f"There are {chance.choice(COUNTS)} things.")
    if chance.random() < 0.4:
        spot = chance.randrange(len(lines))
        lines[spot:spot] = [lines[spot]] * chance.choice((1, 1, 2))
    if chance.random() < commentary:
        lines.insert(chance.randint(1, len(lines)), chance.choice(COMMENTARY))
    text = " ".join(lines)
    return text.rsplit(" ", chance.randint(1, 3))[0] if chance.random() < 0.15 else text


def _fragment(thing: Thing) -> str:
    return f"{thing.name} at the {thing.cell}."


def _mistaken(thing: Thing, wrong: float, chance: random.Random) -> Thing:
    """The thing, each of its features drawn anew with the probability `wrong`."""
    return Thing(
        colour=chance.choice(COLOURS) if chance.random() < wrong else thing.colour,
        shape=chance.choice(SHAPES) if chance.random() < wrong else thing.shape,
        size=chance.choice(SIZES) if chance.random() < wrong else thing.size,
        cell=chance.choice(CELLS) if chance.random() < wrong else thing.cell,
    )


def warm_up(
    model: Any,
    processor: Any,
    *,
    steps: int = 480,
    seed: int = 0,
    progress: bool = True,
    captions: Callable[[Scene, random.Random], str] = imperfect,
    seeing: float = CLEAN,
    scenes: Callable[[int], Scene] = scene,
) -> list[float]:
    """Trains the model on captions of 32 fresh scenes a step, by plain cross-entropy with AdamW.

    The first 70 % of the steps (`seeing`) show `faultless` captions, so that it learns to see; the rest `imperfect` ones
    (`captions`), the likes of which it writes in the end, in eval mode. The same arguments give the same weights to the bit,
    on the same machine and number of threads.

    Args:
        model: of `captioner`; trained in place, all of it.
        processor: of `captioner`.
        steps: 480 take about a minute on one thread.
        seed: of scenes and captions.
        progress: show a bar from the third second on, if tqdm is installed.
        captions: writes the second phase's caption of a scene, with random numbers of the given source.
        seeing: share of the steps that the first phase takes; 0 to teach a captioner further that sees already.
        scenes: makes a scene of a seed.

    Returns:
        the loss of each step, in nats a token.

    Raises:
        InputError: `steps` is less than 1, `seeing` is not in [0, 1], or a caption has a word that the captioner does not know.
    """
    if steps < 1:
        raise InputError(f"warm_up: got steps={steps}, expected a number >= 1")
    if not 0 <= seeing <= 1:
        raise InputError(f"warm_up: got seeing={seeing}, expected a share in [0, 1]")
    import torch

    device = next(model.parameters()).device
    chance = random.Random(f"warm-up {seed}")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    first = math.ceil(seeing * steps)
    losses = []
    model.train()
    try:
        with progress_bar(steps, "warm-up", "step", shown=progress) as advance:
            for step in range(steps):
                clean = step < first
                number, of = (step, first) if clean else (step - first, steps - first)
                if number % POOL == 0:
                    batches = _batches(processor, chance, faultless if clean else captions, scenes)
                batch = next(batches)
                for group in optimizer.param_groups:
                    group["lr"] = (SEEING_PEAK if clean else TELLING_PEAK) * _cycle(number / of)
                loss = model(**{name: value.to(device) for name, value in batch.items()}).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                if advance:
                    advance(1)
    finally:
        model.eval()
    return losses


def _cycle(done: float) -> float:
    """Share of the peak learning rate: rises for the first tenth of a phase, then falls to zero along a cosine."""
    return min(1.0, 0.02 + 10 * done) * (1 + math.cos(math.pi * done)) / 2


def _batches(
    processor: Any,
    chance: random.Random,
    captions: Callable[[Scene, random.Random], str],
    scenes: Callable[[int], Scene],
) -> Iterator[dict[str, torch.Tensor]]:
    """`POOL` batches of pictures, prompts and captions of fresh scenes.

    Captions of like length share a batch, which saves half of the padding; labels are on the captions and their end alone.
    """
    import torch

    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}], add_generation_prompt=True
    )
    pairs = []
    for _ in range(POOL * BATCH):
        made = scenes(chance.getrandbits(62))
        pairs.append((made, f"{captions(made, chance)}{END}"))
    pairs.sort(key=lambda pair: pair[1].count(" "))
    batches = [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]
    chance.shuffle(batches)
    for batch in batches:
        seen = processor(text=[prompt] * BATCH, images=[picture(made) for made, _ in batch], return_tensors="pt")
        prompts, tokenizer = seen["input_ids"], processor.tokenizer
        texts = [text for _, text in batch]
        ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
        for text, row in zip(texts, ids, strict=True):
            if tokenizer.unk_token_id in row:
                raise InputError(
                    f"warm_up: got the caption {text.removesuffix(END)!r}, expected words that the captioner knows "
                    "(counts above five with captioner(large=True))"
                )
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
        # without an attention mask: no token sees what comes after it, and so none sees the padding
        yield {
            "input_ids": torch.cat([prompts, ids], dim=1),
            "labels": torch.cat([torch.full_like(prompts, -100), labels], dim=1),
            "pixel_values": seen["pixel_values"],
        }
