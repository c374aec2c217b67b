"""Tiny random models of every supported architecture, their weights large enough for sharp attention: faint ones would hide a
wrong mask."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

VOCABULARY = 23
IMAGE = 22
"""The token that stands for a patch of an image."""
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
TOKENS = {"image_token_id": IMAGE, "video_token_id": 21, "vision_start_token_id": 20, "vision_end_token_id": 19}


def text_model(kind: str, **config: Any) -> Any:
    """A language model: kind "Llama", "Qwen2" or "Qwen3"."""
    torch.manual_seed(0)
    sizes = {**TEXT, **({"head_dim": 8} if kind == "Qwen3" else {}), **config}
    made = getattr(transformers, f"{kind}Config")(**sizes)
    return getattr(transformers, f"{kind}ForCausalLM")(made).eval()


def vision_model(kind: str) -> Any:
    """A vision-language model: kind "Llava", "Qwen2VL", "Qwen2_5_VL" or "Qwen3VL"."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**_VISION[kind])
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()


def image(kind: str, seed: int = 0, size: tuple[int, int] | None = None) -> tuple[dict[str, Tensor], int]:
    """What a processor would make of one picture, and how many tokens stand for it; size in patches, for the Qwens."""
    chance = torch.Generator().manual_seed(seed)
    if kind == "Llava":
        return {"pixel_values": torch.randn(1, 3, 16, 16, generator=chance)}, 4
    height, width = size or (4, 6)
    patch = 3 * 2 * 4 * 4  # colours, time, height, width
    pixels = torch.randn(height * width, patch, generator=chance)
    # 2 x 2 patches make a token
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]])}, height * width // 4


_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
_TOWER = {"depth": 2, "hidden_act": "silu", "num_heads": 2, "patch_size": 4, "initializer_range": 0.3}
_VISION: dict[str, dict[str, Any]] = {
    "Llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "initializer_range": 0.3,
        },
        "image_token_id": IMAGE,
        "vision_feature_layer": -1,
    },
    "Qwen2VL": {
        "text_config": {**TEXT, "rope_parameters": _ROPE},
        "vision_config": {**_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        **TOKENS,
    },
    "Qwen2_5_VL": {
        "text_config": {**TEXT, "rope_parameters": _ROPE},
        "vision_config": {
            **_TOWER,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        **TOKENS,
    },
    "Qwen3VL": {
        "text_config": {**TEXT, "head_dim": 8, "rope_parameters": {**_ROPE, "mrope_interleaved": True}},
        "vision_config": {
            **_TOWER,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        **TOKENS,
    },
}
VISION_KINDS = tuple(_VISION)


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<image>")
BYTE_VOCABULARY = 280
"""Of a model for the tokenizer below; more than it has."""


def byte_tokenizer(*, chat: bool = True) -> Any:
    """Bytes as tokens, but for "yes" and "no", and three special tokens."""
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    start, end, picture = SPECIAL
    tokens = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=start, eos_token=end, extra_special_tokens={"image_token": picture}
    )
    tokens.chat_template = CHAT_TEMPLATE if chat else None
    return tokens


def llava() -> tuple[Any, Any]:
    """A vision-language model and its processor, for pictures of any size; every picture is four tokens."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    text = {
        **_VISION["Llava"]["text_config"],
        "vocab_size": BYTE_VOCABULARY,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.LlavaConfig(**{**_VISION["Llava"], "text_config": text, "image_token_id": image_token})
    side = config.vision_config.image_size
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the tower's class token, which "default" drops again
        chat_template=CHAT_TEMPLATE,
    )
    return transformers.LlavaForConditionalGeneration(config).eval(), processor
