"""What a processor of transformers makes of a text with images."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def with_images(processor: Any, text: str, images: Sequence[Path | bytes]) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Tokens of a rendered prompt, with as many for each image as it needs, and what the model wants of the images.

    Args:
        processor: of a vision-language model.
        text: with the processor's image token once for each image.

    Raises:
        OSError: an image cannot be read.
    """
    opened = [open_image(image) for image in images]
    bos = processor.tokenizer.bos_token  # some templates hold it, others (LLaVA-1.5's) leave it to the tokenizer
    special = not (bos and text.startswith(bos))
    made = processor(text=[text], images=opened or None, add_special_tokens=special, return_tensors="pt")
    of_text = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
    return made["input_ids"][0].tolist(), {name: value for name, value in made.items() if name not in of_text}


def open_image(image: Path | bytes) -> Any:
    """A picture of PIL, in RGB.

    Raises:
        OSError: it cannot be read, or has more pixels than PIL takes.
    """
    from PIL import Image

    try:
        return Image.open(BytesIO(image) if isinstance(image, bytes) else image).convert("RGB")
    except (
        Image.DecompressionBombError,
        SyntaxError,
        struct.error,
        ValueError,
    ) as error:  # as PIL has it of broken files
        raise OSError(f"the image cannot be read: {error}") from error
