"""The bundled trainer's work beside TRL's on a GPU, with a model of Qwen2.5-VL-3B's shape.

    python benchmarks/trainer/gpu.py [--tiny]

Random weights in bfloat16, the vision tower frozen, SDPA attention, 8 items a step, 1,000 image tokens, 8 rollouts of 200 tokens
each. There is no processor: both sides start from tokens and pixels. Ours is what `capreward.train.loop` calls: `generate`,
`completion_logprobs`, `policy_loss`. TRL's is what `GRPOTrainer` calls: `generate` of transformers with TRL's settings, and
`_compute_loss` of a real trainer, on as many rows at a time as the memory holds. Optimiser and clipping are the same for both;
rewards are left out. `--tiny`: a small model on the CPU, to test the code.

A machine with Python 3.12, torch, transformers, accelerate, pandas and pyarrow, but no network and no TRL, needs these wheels as
well, 5 MB, all pure Python but for pydantic-core. Where there is a network:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_17_x86_64 \\
        --dest wheels trl==1.16.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 \\
        pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0 typing-inspection==0.4.5

Where there is none:

    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site HF_HUB_OFFLINE=1 python benchmarks/trainer/gpu.py
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from common import finish
from sides import (
    Group,
    Pass,
    check_same,
    now,
    our_loss,
    policy_pass,
    repeated_images,
    trl_config,
    trl_loss,
    trl_trainer,
)
from tiny import byte_tokenizer

from capreward.train.policy import Prompt
from capreward.train.rollout import generate

TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
END = 1
UNSPEAKABLE = [END, *TOKENS.values()]
"""The end too, so that every completion has its full length."""
QWEN_3B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128_000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": END,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "out_hidden_size": 2048,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "tie_word_embeddings": True,
    **TOKENS,
}
TINY: dict[str, Any] = {
    **QWEN_3B,
    "text_config": {
        **QWEN_3B["text_config"],
        "vocab_size": 280,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    },
    "vision_config": {
        **QWEN_3B["vision_config"],
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
}
G = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU, printed as one JSON line")
    tiny = parser.parse_args().tiny
    side = Sides(tiny)
    turns = 2 if tiny else 5
    rate = matrix_rate(side.device, 512 if tiny else 8192)

    group = side.group([[side.token() for _ in range(side.T)] for _ in range(G)], side.prompts[0])
    rows = side.rows_that_fit(group)
    passes = side.passes(group, turns, rows)
    side.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows_checkpointed = side.rows_that_fit(group)
    checkpointed = side.passes(group, turns, rows_checkpointed)
    side.model.gradient_checkpointing_disable()
    flops = side.flops(len(group.prompt) + G * side.T)

    rows_of_step = side.rows_that_fit(group, with_optimizer=True)
    steps = {name: [] for name in ("trl", "ours")}
    for turn in range(3):
        for name in steps:
            taken = side.step(name, rows_of_step)
            if turn:
                steps[name].append(taken)
    step = {
        name: {phase: statistics.median(t[phase] for t in taken) for phase in taken[0]} for name, taken in steps.items()
    }
    tokens = len(side.prompts) * G * side.T
    seconds = {name: sum(phases.values()) for name, phases in step.items()}
    headline = [
        {"name": "policy pass, TRL / ours", "value": passes["trl"] / passes["ours"], "unit": "x"},
        {"name": "policy pass under gradient checkpointing, TRL / ours",
         "value": checkpointed["trl"] / checkpointed["ours"], "unit": "x"},
        {"name": "whole step, TRL / ours", "value": seconds["trl"] / seconds["ours"], "unit": "x"},
        {"name": "generation, TRL / ours", "value": step["trl"]["generate"] / step["ours"]["generate"], "unit": "x"},
        {"name": "memory of the policy pass, TRL / ours", "value": passes["trl_gib"] / passes["ours_gib"], "unit": "x"},
        {"name": "step, ours", "value": seconds["ours"], "unit": "s"},
        {"name": "tokens generated and learnt from, ours", "value": tokens / seconds["ours"], "unit": "/s"},
        {"name": "policy pass, ours: share of the measured matrix rate",
         "value": flops / passes["ours"] / rate, "unit": ""},
    ]  # fmt: skip
    details = {
        "size": {"items": len(side.prompts), "group_size": G, "prompt_tokens": len(group.prompt), "tokens": side.T},
        "matrix_tflops": rate / 1e12,
        "policy_pass": {**passes, "trl_rows_at_once": rows},
        "policy_pass_checkpointed": {**checkpointed, "trl_rows_at_once": rows_checkpointed},
        "tflop_of_our_policy_pass": flops / 1e12,
        "step": {**step, "trl_rows_at_once": rows_of_step},
    }
    name = "cpu" if tiny else torch.cuda.get_device_name().split()[1].lower()
    packages = ("transformers", "trl", "accelerate")
    versions = {"torch": torch.__version__}
    finish(Path(__file__).parent, headline, details, tiny, packages=packages, versions=versions, device=name)


class Sides:
    """A model, prompts, and what both sides do with them."""

    def __init__(self, tiny: bool) -> None:
        self.device = torch.device("cpu" if tiny else "cuda")
        torch.manual_seed(0)
        with self.device:
            self.model: Any = Qwen2_5_VLForConditionalGeneration._from_config(
                Qwen2_5_VLConfig(**(TINY if tiny else QWEN_3B)), dtype=torch.float32 if tiny else torch.bfloat16
            )
        self.model.model.visual.requires_grad_(False)
        self.tolerance = {"loss": 1e-5, "gradient": 1e-3} if tiny else {"loss": 0.02, "gradient": 0.1}
        self.chance = torch.Generator().manual_seed(0)
        self.T = 8 if tiny else 200
        grid = (8, 12) if tiny else (50, 80)
        self.prompts = [self.prompt(*grid) for _ in range(2 if tiny else 8)]
        settings = {"generation_kwargs": {"suppress_tokens": UNSPEAKABLE}, "use_cpu": tiny, "bf16": not tiny}
        config = trl_config(Path(tempfile.mkdtemp()), size=G, max_tokens=self.T, **settings)
        self.trainer = trl_trainer(self.model, byte_tokenizer(), config)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer: Any = None

    def prompt(self, height: int, width: int) -> Prompt:
        vision = self.model.config.vision_config
        row = 3 * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(height * width, row, generator=self.chance).to(self.device)
        count = height * width // vision.spatial_merge_size**2
        start, end, image = (TOKENS[f"{name}_token_id"] for name in ("vision_start", "vision_end", "image"))
        tokens = [start, *[image] * count, end, *(self.token() for _ in range(30))]
        return Prompt(
            tokens, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]]).to(self.device)}
        )

    def token(self) -> int:
        return int(torch.randint(10, self.model.config.text_config.vocab_size, (), generator=self.chance))

    def group(self, completions: list[list[int]], prompt: Prompt) -> Group:
        advantages = torch.randn(G, generator=self.chance)
        old = torch.randn(G, self.T, generator=self.chance) / 4
        old -= torch.tensor(self.model.config.text_config.vocab_size).log()
        assert prompt.images is not None
        return Group(prompt.tokens, prompt.images, completions, advantages.to(self.device), old.to(self.device))

    def autocast(self) -> Any:
        """What accelerate puts around the forward of both trainers."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def ours(self, group: Group, form: Any = None) -> list[Callable[[], torch.Tensor]]:
        def loss() -> torch.Tensor:
            with self.autocast():
                return our_loss(self.model, group, max_tokens=self.T, form=form)

        return [loss]

    def trl(self, group: Group, rows: int) -> list[Callable[[], torch.Tensor]]:
        return [
            lambda part=slice(begin, begin + rows): trl_loss(self.trainer, group, part) for begin in range(0, G, rows)
        ]

    def rows_that_fit(self, group: Group, *, with_optimizer: bool = False) -> int:
        """The most rows that TRL can hold at once."""
        if with_optimizer and self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6, weight_decay=0.0, fused=True)
            policy_pass(self.model, self.ours(group))
            self.optimizer.step()
        rows = G
        while rows > 1:
            try:
                policy_pass(self.model, self.trl(group, rows))
                break
            except torch.OutOfMemoryError:
                rows //= 2
            gc.collect()
            torch.cuda.empty_cache()
        return rows

    def passes(self, group: Group, turns: int, rows: int) -> dict[str, Any]:
        """Medians of seconds, the sides taking turns, and what each adds to the memory; a first turn is not counted."""
        sides = {
            "trl": self.trl(group, rows),
            "ours": self.ours(group),
            "expanded": self.ours(group, "expanded"),
            "packed": self.ours(group, "packed"),
        }
        if any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules()):
            del sides["expanded"]  # keeps no keys and values there
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        memory: dict[str, float] = {}
        for turn in range(turns + 1):
            done: dict[str, Pass] = {}
            for name, losses in sides.items():
                held = self.start_counting()
                done[name] = policy_pass(self.model, losses)
                memory[f"{name}_gib"] = self.most_held() - held
                if turn:
                    seconds[name].append(done[name].seconds)
            check_same(done, **self.tolerance)
        medians = {name: statistics.median(taken) for name, taken in seconds.items()}
        return {**medians, **memory, "all": seconds, "losses": {name: each.loss for name, each in done.items()}}

    def start_counting(self) -> float:
        if self.device.type == "cpu":
            return 0.0
        self.model.zero_grad()
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**30

    def most_held(self) -> float:
        return 1.0 if self.device.type == "cpu" else torch.cuda.max_memory_allocated() / 2**30

    def step(self, name: str, rows: int) -> dict[str, float]:
        """Seconds of each phase of a step."""
        clock = [self.now()]
        completions = self.our_completions() if name == "ours" else self.trl_completions()
        assert {len(row) for rows in completions for row in rows} == {self.T}
        groups = [self.group(rows, prompt) for rows, prompt in zip(completions, self.prompts, strict=True)]
        clock.append(self.now())
        losses = [loss for group in groups for loss in (self.ours(group) if name == "ours" else self.trl(group, rows))]
        policy_pass(self.model, losses)
        clock.append(self.now())
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        clock.append(self.now())
        phases = ("generate", "passes", "optimizer")
        return {phase: b - a for phase, a, b in zip(phases, clock, clock[1:], strict=False)}

    def our_completions(self) -> list[list[list[int]]]:
        self.model.eval()
        uniforms = torch.rand(len(self.prompts), G, self.T, generator=self.chance, dtype=torch.float64)
        with self.autocast():
            made = generate(self.model, self.prompts, uniforms, ends={END}, unspeakable=UNSPEAKABLE)
        self.model.train()
        return made

    def trl_completions(self) -> list[list[list[int]]]:
        self.model.eval()
        tokens = torch.tensor([prompt.tokens for prompt in self.prompts for _ in range(G)], device=self.device)
        all_images = [repeated_images(self.model.config, tokens[:G], prompt.images or {}) for prompt in self.prompts]
        images = {name: torch.cat([each[name] for each in all_images]) for name in all_images[0]}
        with torch.no_grad(), self.autocast():
            made = self.model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=self.trainer.generation_config,
                **images,
            )
        self.model.train()
        rows = made[:, tokens.shape[1] :].tolist()
        return [rows[begin : begin + G] for begin in range(0, len(rows), G)]

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return now()

    def flops(self, tokens: int) -> float:
        """Of the matrices in forward and backward of this many tokens with one image; attention scores are left out."""
        text = sum(p.numel() for p in self.model.model.language_model.layers.parameters())
        tower = sum(p.numel() for p in self.model.model.visual.parameters())
        head = self.model.get_output_embeddings().weight.numel()
        patches = len((self.prompts[0].images or {})["pixel_values"])
        return 6.0 * text * tokens + 6.0 * head * G * self.T + 2.0 * tower * patches


def matrix_rate(device: torch.device, n: int) -> float:
    """Floating-point operations a second of a large bfloat16 matrix product; the median of ten, after three."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds: list[float] = []
    for _ in range(13):
        start = now()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(now() - start)
    return 2 * n**3 / statistics.median(seconds[3:])


if __name__ == "__main__":
    main()
