"""The shared-prefix forward beside one generation a question, on a GPU, with a model of Qwen2.5-3B's shape.

    python benchmarks/judge/gpu.py [--tiny]

Random weights and random tokens, so torch and transformers are all that it needs: speed does not depend on what they mean.
A caption: 60 tokens of instructions, 250 of text, then 8 questions of 20 tokens in 4 orders of 4 options of 5 tokens, and 18
tokens to end the turn. The plain loop generates 4 tokens for each of these 32 prompts at temperature 0.6, batch size 1. A second
loop generates for all 32 at once: what a batching engine without a prefix cache would run.
`--tiny`: a small model on the CPU, to test the code.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from common import finish

from capreward.prefix import Counts, last_logits

TEMPERATURE = 0.6
NEW_TOKENS = 4
LETTERS = [32, 33, 34, 35]
"""Stand for A to D."""
QWEN_3B = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11_008,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
TINY = {
    **QWEN_3B,
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU, printed as one JSON line")
    tiny = parser.parse_args().tiny
    device = "cpu" if tiny else "cuda"
    config = Qwen2Config(**(TINY if tiny else QWEN_3B), bos_token_id=0, eos_token_id=1, pad_token_id=2)
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    draw = random.Random(0)
    captions = [caption(draw, config.vocab_size) for _ in range(3 if tiny else 64)]
    looped = captions[: 1 if tiny else 4]

    counts = Counts()
    with torch.inference_mode():
        # Each runs once before its clock starts.
        last_logits(model, captions[0], LETTERS)
        chunks = {
            size: statistics.median(
                clock(lambda c, n=size: last_logits(model, c, LETTERS, chunk_tokens=n).cpu(), sequences)
                for sequences in captions[:8]
            )
            for size in (512, 1024, 2048, 4096)
        }
        best = min(chunks, key=lambda size: chunks[size])
        judge = [
            clock(lambda c: last_logits(model, c, LETTERS, chunk_tokens=best, counts=counts).cpu(), sequences)
            for sequences in captions
        ]
        generate(model, captions[0][:1])
        loop = [clock(lambda c: [generate(model, [ids]) for ids in c], sequences) for sequences in looped]
        generate(model, captions[0])
        batched = [clock(lambda c: generate(model, c), sequences) for sequences in looped]
        plain = torch.stack([model(input_ids=torch.tensor([ids], device=device)).logits[0, -1] for ids in captions[0]])
        shared = last_logits(model, captions[0], range(config.vocab_size), chunk_tokens=best)
    n = len(captions[0])
    speed = {
        name: n / statistics.mean(times) for name, times in (("judge", judge), ("loop", loop), ("batched", batched))
    }
    headline = [
        {"name": "shared-prefix forward", "value": speed["judge"], "unit": "questions/s"},
        {"name": "plain loop, sampled replies", "value": speed["loop"], "unit": "questions/s"},
        {"name": f"{n} sampled replies at once", "value": speed["batched"], "unit": "questions/s"},
        {"name": "shared prefix / plain loop", "value": speed["judge"] / speed["loop"], "unit": "x"},
        {"name": f"shared prefix / {n} at once", "value": speed["judge"] / speed["batched"], "unit": "x"},
        {"name": "tokens run / unique tokens", "value": counts.run / counts.unique, "unit": ""},
    ]
    details = {
        "captions": len(captions),
        "captions_in_loops": len(looped),
        "questions": n * len(captions),
        "tokens_run": counts.run,
        "tokens_of_all_prompts": sum(len(ids) for sequences in captions for ids in sequences),
        "seconds_a_caption_by_chunk_tokens": chunks,
        "chunk_tokens": best,
        "largest_difference_of_logits": (plain.float() - shared).abs().max().item(),
        "largest_logit": plain.float().abs().max().item(),
        "memory_gib": 0 if tiny else torch.cuda.max_memory_allocated() / 2**30,
    }
    name = "cpu" if tiny else torch.cuda.get_device_name().split()[1].lower()
    versions = {"torch": torch.__version__}
    finish(Path(__file__).parent, headline, details, tiny, packages=("transformers",), versions=versions, device=name)


def caption(draw: random.Random, vocabulary: int) -> list[list[int]]:
    """The 32 prompts about one caption."""

    def tokens(n: int) -> list[int]:
        return [draw.randrange(100, vocabulary) for _ in range(n)]

    shared, end = tokens(310), tokens(18)
    prompts = []
    for _ in range(8):
        question, options = tokens(20), [tokens(5) for _ in LETTERS]
        for turn in range(4):
            ordered = zip(LETTERS, options[turn:] + options[:turn], strict=True)
            listed = [token for letter, option in ordered for token in (letter, *option)]
            prompts.append([*shared, *question, *listed, *end])
    return prompts


def generate(model: Any, sequences: list[list[int]]) -> list[list[int]]:
    """Sampled replies; the prompts are of one length."""
    ids = torch.tensor(sequences, device=model.device)
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
    reply = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, **sampling
    )
    return list(reply[:, ids.shape[1] :].tolist())


def clock(function: Callable[[Any], Any], argument: Any) -> float:
    """Seconds; the function has to hand its result to the host, or the GPU may still be at work."""
    start = time.perf_counter()
    function(argument)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
