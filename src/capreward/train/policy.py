"""The model that is trained, its processor, and the model that it started from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from capreward.errors import InputError, missing_extra
from capreward.hub import find_model
from capreward.prefix import Images
from capreward.processing import with_images
from capreward.records import Item

T = TypeVar("T")

LORA_LAYERS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
"""Every linear layer of the language model in a vision-language model of transformers 5, and none of the vision tower."""


class Prompt(NamedTuple):
    """An item's image and the instruction, as the model takes them."""

    tokens: list[int]
    images: Images | None


class Policy(torch.nn.Module):
    """A vision-language model of transformers under training.

    Its parameters that require gradients are trained; freeze others before, such as those of the vision tower.

    Args:
        model: an `AutoModelForImageTextToText`.
        processor: the model's.
        instruction: what stands beside the image in every prompt.
        lora_rank: of adapters on the language model, which are trained alone; 0 for none. Their scale is 2.
        reference: keep what the model is now, for `reference_model`: a frozen copy, or, with adapters, the model without them.

    Raises:
        InputError: a processor without a chat template; a model without a layer for adapters.
        MissingExtraError: adapters without peft.
    """

    def __init__(
        self, model: Any, processor: Any, *, instruction: str, lora_rank: int = 0, reference: bool = False
    ) -> None:
        super().__init__()
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        self.head = _head(processor, instruction)
        self.model = model
        # Both in lists, so that they are no parts of this module: the adapters are in `model` already, the copy is not trained.
        self._adapters = [_with_adapters(model, lora_rank)] if lora_rank else []
        self._reference = [_frozen_copy(model)] if reference and not lora_rank else []

    @classmethod
    def load(cls, source: str | Path, *, lora_rank: int = 0, **options: Any) -> Policy:
        """The model and processor of a name or folder; `options` as above.

        On a GPU, a model that adapters are trained on is held in bfloat16. One that is trained as a whole is held in
        float32, since updates of usual size would round to nothing in bfloat16; it is run in bfloat16 all the same.

        Raises:
            InputError: no such model, or one of another kind.
        """
        import transformers

        half = lora_rank and torch.cuda.is_available()
        found = find_model("Policy", source)
        try:
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                found.source,
                dtype=torch.bfloat16 if half else torch.float32,
                attn_implementation="sdpa",
                local_files_only=found.local,
            )
            processor = transformers.AutoProcessor.from_pretrained(found.source, local_files_only=found.local)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"model: {source} cannot be loaded as a vision-language model: {reason}") from error
        model.name_or_path = model.config.name_or_path = str(
            source
        )  # which saved adapters name, not a folder of the cache
        return cls(model, processor, lora_rank=lora_rank, **options)

    def forward(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """`function(model, *args, **options)`: wrappers that spread the model over processes hook in here."""
        return function(self.model, *args, **options)

    def prompt(self, item: Item) -> Prompt:
        """The prompt for an item.

        Raises:
            InputError: an item without an image, or one whose image cannot be read.
        """
        if item.image is None:
            raise InputError(f"item {item.id!r} has no image; every item needs one to be captioned")
        try:
            tokens, images = with_images(self.processor, self.head, [item.image])
        except OSError as error:
            raise InputError(f"item {item.id!r}: its image cannot be read: {error}") from None
        device = self.model.device
        return Prompt(tokens, {name: value.to(device) for name, value in images.items()})

    def caption(self, tokens: Sequence[int]) -> str:
        """The text of a completion, without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    @property
    def ends(self) -> set[int]:
        """Tokens that end a caption."""
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        return {ends} if isinstance(ends, int) else set(ends)

    @property
    def unspeakable(self) -> list[int]:
        """Tokens that no caption may hold: those that stand for images, and rows of the vocabulary without a text."""
        config = self.model.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        named = {getattr(config, name) for name in names if getattr(config, name, None) is not None}
        rows = self.model.get_output_embeddings().weight.shape[0]
        return sorted((named | set(range(len(self.tokenizer), rows))) - self.ends)

    @property
    def has_reference(self) -> bool:
        """Whether `reference_model` is there."""
        return bool(self._reference or self._adapters)

    @contextmanager
    def reference_model(self) -> Iterator[Any]:
        """The model as it was at the start; only where one was asked for."""
        with self._adapters[0].disable_adapter() if self._adapters else nullcontext():
            yield self._reference[0] if self._reference else self.model

    def move_reference(self, device: torch.device) -> None:
        """The frozen copy is no part of this module, so that `to` leaves it where it is."""
        for reference in self._reference:
            reference.to(device)

    def tie_weights(self) -> None:
        """Of the model: accelerate asks for it when it has moved the parameters."""
        self.model.tie_weights()

    @property
    def _no_split_modules(self) -> list[str]:
        """The layers that FSDP's transformer-based wrapping spreads one by one; accelerate looks for them here."""
        return list(self.model._no_split_modules or ())

    def save(self, folder: Path, state: Mapping[str, Any] | None = None) -> None:
        """Weights (of the adapters, where there are any) and processor, for `from_pretrained`.

        Args:
            state: this module's `state_dict`, where its parameters themselves are spread over processes.
        """
        outer, prefix = (self._adapters[0], "base_model.model.") if self._adapters else (self.model, "")
        renamed = state and {prefix + name.removeprefix("model."): value for name, value in state.items()}
        outer.save_pretrained(folder, state_dict=renamed)
        self.processor.save_pretrained(folder)


def _head(processor: Any, instruction: str) -> str:
    template = processor.chat_template or processor.tokenizer.chat_template
    if not template:
        raise InputError(f"{type(processor).__name__} has no chat template; set its chat_template")
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}
    rendered = processor.tokenizer.apply_chat_template(
        [user], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return str(rendered)


def _with_adapters(model: Any, rank: int) -> Any:
    try:
        import peft
    except ImportError as error:
        raise missing_extra("lora_rank", "train", error) from error
    try:
        return peft.get_peft_model(
            model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_LAYERS, lora_dropout=0.0)
        )
    except ValueError as error:
        raise InputError(f"lora_rank: {type(model).__name__} has no layers for adapters: {error}") from None


def _frozen_copy(model: Any) -> Any:
    copy = deepcopy(model).eval().requires_grad_(False)
    if torch.cuda.is_available():
        for (
            parameter
        ) in copy.parameters():  # not the buffers: rounded rotary frequencies would be those of another model
            parameter.data = parameter.data.bfloat16()
    return copy
