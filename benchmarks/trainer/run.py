"""The bundled trainer beside TRL's GRPOTrainer on the CPU: a policy pass, a whole step, memory, and how they grow.

    python benchmarks/trainer/run.py [--quick]

A LLaVA with random weights, 8.7 million parameters, a fifth of them in the vision tower; its tokens are bytes, so that the
vocabulary, which TRL multiplies with every token of the prompt on a CPU, costs neither side much. float32, one thread. Both
sides train the same weights on the same prompts, images and completions, without gradient checkpointing; the end token is made
impossible, so that every completion has its full length. The two losses are compared in each measured pass: if they
differ, the run fails. All times are seconds of the process on the CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from datasets import Dataset
from PIL import Image
from transformers.utils import logging
from trl import GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from common import finish
from sides import Group, Pass, check_same, now, our_loss, policy_pass as one_pass, trl_config, trl_loss, trl_trainer
from tiny import CHAT_TEMPLATE, byte_tokenizer

from capreward import Item, RewardSuite, Rollout, Score
from capreward.train.config import TrainConfig
from capreward.train.loop import Trainer
from capreward.train.policy import Policy

FOLDER = Path(__file__).parent
INSTRUCTION = "Describe this image in detail."
PATCH = 8
G = 8
SIDES = ("trl", "ours")
KL = 0.04
QUICK = {"side": 16, "tokens": 32, "turns": 2, "groups": 1, "runs": 1, "steps": 1}
"""Patches along a side of the image, tokens of a completion, turns that the sides take, items in a batch, whole runs, steps
that count in each."""
FULL = {"side": 23, "tokens": 64, "turns": 5, "groups": 2, "runs": 2, "steps": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 image tokens, 32-token completions, as one JSON line")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:  # a process for each
            taken = pool.starmap(memory, [(side, Path(folder), size) for side in SIDES], chunksize=1)
        bytes_ = dict(zip(SIDES, taken, strict=True))
        passes = policy_pass(Path(folder), size["side"], size["tokens"], G, size["turns"], forms=not options.quick)
        steps = whole_step(Path(folder), size)
        headline = [
            {"name": "policy pass, TRL / ours", "value": passes["trl"] / passes["ours"], "unit": "x"},
            {"name": "whole step, TRL / ours", "value": steps["trl"] / steps["ours"], "unit": "x"},
            {"name": "generation, TRL / ours", "value": steps["trl_generate"] / steps["ours_generate"], "unit": "x"},
            {"name": "memory of the policy pass, TRL / ours", "value": bytes_["trl"] / bytes_["ours"], "unit": "x"},
        ]
        details: dict[str, Any] = {
            "size": {**size, "group_size": G, "patch": PATCH},
            "policy_pass": passes,
            "step": steps,
            "memory_mib": {side: value / 2**20 for side, value in bytes_.items()},
        }
        if not options.quick:
            details["step_with_kl"] = whole_step(Path(folder), {**size, "runs": 1}, kl=KL)
            details["growth"] = growth(Path(folder))
            plot(details["growth"])
    packages = ("capreward", "torch", "transformers", "trl", "accelerate")
    finish(FOLDER, headline, details, options.quick, packages=packages)


# ---------------------------------------------------------------------------------------------- what is measured


def policy_pass(
    folder: Path, side: int, tokens: int, group_size: int, turns: int, *, forms: bool = False
) -> dict[str, Any]:
    """Seconds of a group's forward and backward pass: medians, the sides taking turns after a first turn that is not counted.

    With `forms`, the three forms of `completion_logprobs` too, by name.

    Raises:
        RuntimeError: the sides do not compute the same.
    """
    model, processor = llava(side)
    group = the_group(Policy(model, processor, instruction=INSTRUCTION), folder, side, tokens, group_size)
    config = trl_config(folder / "trl", size=group_size, max_tokens=tokens)
    trainer = trl_trainer(model, processor.tokenizer, config)
    sides: dict[str, Callable[[], Any]] = {
        "trl": lambda: trl_loss(trainer, group),
        "ours": lambda: our_loss(model, group, max_tokens=tokens),
    }
    for form in ("expanded", "packed", "repeated") if forms else ():
        sides[form] = lambda form=form: our_loss(model, group, max_tokens=tokens, form=form)
    all_passes: list[dict[str, Pass]] = []
    for _ in range(turns + 1):
        all_passes.append({name: one_pass(model, [loss]) for name, loss in sides.items()})
        check_same(all_passes[-1], loss=1e-5, gradient=1e-3)
    seconds = {name: [passes[name].seconds for passes in all_passes[1:]] for name in sides}
    return {
        **{name: statistics.median(taken) for name, taken in seconds.items()},
        "all": seconds,
        "prompt_tokens": len(group.prompt),
        "losses": {side: all_passes[-1][side].loss for side in SIDES},
        "gradients": {side: all_passes[-1][side].gradient for side in SIDES},
    }


def whole_step(folder: Path, size: Mapping[str, int], *, kl: float = 0.0) -> dict[str, Any]:
    """Seconds of a step, and of its generation: medians over runs that take turns, without the first and last step of each."""
    seconds: dict[str, list[float]] = {name: [] for name in (*SIDES, "trl_generate", "ours_generate")}
    for _ in range(size["runs"]):
        for side, run in (("trl", trl_run), ("ours", our_run)):
            with tempfile.TemporaryDirectory(dir=folder) as out:
                began, generated = run(Path(out), size, kl)
            assert len(began) == len(generated) == size["steps"] + 2
            seconds[side] += np.diff(began)[1:].tolist()
            seconds[f"{side}_generate"] += generated[1:-1]
    return {**{name: statistics.median(taken) for name, taken in seconds.items()}, "all": seconds}


def our_run(folder: Path, size: Mapping[str, int], kl: float) -> tuple[list[float], list[float]]:
    """When each step began, and the seconds of its generation."""
    config = TrainConfig(
        model="", data="", out=folder / "out", prompt=INSTRUCTION, steps=size["steps"] + 2, groups=size["groups"],
        group_size=G, max_tokens=size["tokens"], kl=kl, estimator="grpo", save_every=1000,
    )  # fmt: skip
    model, processor = llava(size["side"])
    policy = Policy(model, processor, instruction=INSTRUCTION, reference=kl > 0)
    items = [Item(id=str(n), image=picture(folder, n, size["side"])) for n in range(size["groups"])]
    trainer = TimedOurs(config, policy, RewardSuite({"trivial": Trivial()}), items)
    trainer.train()
    rows = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    check_lengths([row["length"] for row in rows], size)
    return trainer.began, trainer.generated


def trl_run(folder: Path, size: Mapping[str, int], kl: float) -> tuple[list[float], list[float]]:
    """The same of TRL; a group on the device at a time, as many as ours has in an update, sampled all at once."""

    def reward(completions: Sequence[Any], **_: Any) -> list[float]:
        return [trivial(completion[0]["content"]) for completion in completions]

    model, processor = llava(size["side"])
    if kl:  # TRL reads its reference from the folder that the policy's configuration names
        model.save_pretrained(folder / "start")
        model.config._name_or_path = str(folder / "start")
    config = trl_config(
        folder / "trl", size=G, max_tokens=size["tokens"], gradient_accumulation_steps=size["groups"],
        max_steps=size["steps"] + 2, beta=kl, use_bias_correction_kl=False,
    )  # fmt: skip
    pictures = [Image.open(picture(folder, n, size["side"])) for n in range(size["groups"])]
    rows = [{"prompt": [{"role": "user", "content": INSTRUCTION}], "image": picture} for picture in pictures]
    trainer = TimedTRL(model, reward, config, Dataset.from_list(rows), processing_class=processor)
    if kl:
        never_ends(trainer.ref_model, processor)
    trainer.train()
    check_lengths(trainer.lengths, size)
    ours = Policy(model, processor, instruction=INSTRUCTION).prompt(
        Item(id="0", image=picture(folder, 0, size["side"]))
    )
    if ours.tokens != trainer.prompt:
        raise RuntimeError("the comparison is void: the prompts differ")
    return trainer.began, trainer.generated


class TimedTRL(GRPOTrainer):
    """TRL's trainer, which remembers when its steps began, how long each generated, and what came of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.began: list[float] = []
        self.generated: list[float] = []
        self.lengths: list[int] = []

    def training_step(self, *args: Any) -> Any:
        if self._step % self.args.steps_per_generation == 0:  # the first of the step's batches
            self.began.append(now())
        return super().training_step(*args)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **options: Any) -> Any:
        start = now()
        result = super()._generate_single_turn(prompt_ids, *args, **options)
        self.generated.append(now() - start)
        self.prompt = list(prompt_ids[0])
        self.lengths += [len(ids) for ids in result[0]]
        return result


class TimedOurs(Trainer):
    """Our trainer, which remembers when its steps began and how long each generated."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.began: list[float] = []
        self.generated: list[float] = []

    def _train_step(self) -> Any:
        self.began.append(now())
        self.generated.append(0.0)
        return super()._train_step()

    def _sample(self, *args: Any) -> Any:
        start = now()
        result = super()._sample(*args)
        self.generated[-1] += now() - start
        return result


class Trivial:
    """A reward that costs nothing."""

    name = "trivial"

    async def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(trivial(rollout.caption), "its length") for rollout in rollouts]


def trivial(text: str) -> float:
    return len(text) % 7 / 6


def check_lengths(lengths: Iterable[float], size: Mapping[str, int]) -> None:
    if set(lengths) != {size["tokens"]}:
        raise RuntimeError(f"the comparison is void: completions of {set(lengths)} tokens, expected {size['tokens']}")


def memory(side: str, folder: Path, size: Mapping[str, int]) -> int:
    """Bytes by which a policy pass raises the peak of this process, which has done nothing else."""
    folder /= side
    folder.mkdir()
    model, processor = llava(size["side"])
    group = the_group(Policy(model, processor, instruction=INSTRUCTION), folder, size["side"], size["tokens"], G)
    config = trl_config(folder / "trl", size=G, max_tokens=size["tokens"])
    trainer = trl_trainer(model, processor.tokenizer, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # held by both
    before, held = resident("VmHWM"), resident("VmRSS")
    loss = trl_loss(trainer, group) if side == "trl" else our_loss(model, group, max_tokens=size["tokens"])
    loss.backward()
    if resident("VmHWM") == before:
        raise RuntimeError("building the model took more memory than the pass: nothing was measured")
    return resident("VmHWM") - held


def resident(name: str) -> int:
    """Bytes of this process in memory: "VmRSS" now, "VmHWM" at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def growth(folder: Path) -> list[dict[str, Any]]:
    """The policy pass by group size, and by tokens of the image; the least of three turns."""
    rows = []
    for axis, points in (("group size", (2, 4, 8, 16)), ("image tokens", (64, 256, 576))):
        for point in points:
            side, group_size = (FULL["side"], point) if axis == "group size" else (round(point**0.5), G)
            taken = policy_pass(folder, side, FULL["tokens"], group_size, turns=3)
            least = {side: min(taken["all"][side]) for side in SIDES}  # of few turns: what disturbs only adds
            rows.append({"axis": axis, "at": point, **taken, **least})
            print(f"{axis} {point}: {least['trl'] / least['ours']:.2f} x", flush=True)
    return rows


def plot(rows: Sequence[Mapping[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    fixed = {"group size": f"{FULL['side'] ** 2} image tokens", "image tokens": f"group size {G}"}
    for ax, (axis, other) in zip(axes, fixed.items(), strict=True):
        chosen = [row for row in rows if row["axis"] == axis]
        at = [row["at"] for row in chosen]
        length, extra = (
            FULL["tokens"],
            chosen[0]["prompt_tokens"] - (FULL["side"] ** 2 if axis == "group size" else at[0]),
        )
        sizes = [(n, FULL["side"] ** 2) if axis == "group size" else (G, n) for n in at]
        share = [n * (image + extra + length) / (image + extra + n * length) for n, image in sizes]
        ax.plot(at, [row["trl"] / row["ours"] for row in chosen], "o-", label="measured")
        ax.plot(at, share, ":", color="grey", label="tokens that TRL runs / tokens that ours runs")
        ax.axhline(1, color="black", linewidth=0.5)
        ax.set(xlabel=f"{axis} ({other}, {length}-token completions)", ylim=(0, None))
        ax.set_xticks(at)
    axes[0].set_ylabel("policy pass: TRL's seconds / ours")
    axes[0].legend()
    (FOLDER / "results").mkdir(exist_ok=True)
    figure.savefig(FOLDER / "results" / "growth.png", dpi=120)


# ---------------------------------------------------------------------------------------------- what it is measured on


def llava(side: int) -> tuple[Any, Any]:
    """A LLaVA that never ends a completion, and its processor, for images of side x side patches."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    pixels = side * PATCH
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 384, "intermediate_size": 1024,
        "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 3, "image_size": pixels, "patch_size": PATCH,
    }  # fmt: skip
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_id=image_token)
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels}
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    never_ends(model, processor)
    return model, processor


def never_ends(model: Any, processor: Any) -> None:
    head = model.lm_head
    bias = torch.zeros(head.out_features)
    bias[processor.tokenizer.eos_token_id] = -1e4
    head.bias = torch.nn.Parameter(bias)


def picture(folder: Path, n: int, side: int) -> Path:
    path = folder / f"{n}-{side}.png"
    if not path.exists():
        pixels = np.random.default_rng(n).integers(0, 256, (side * PATCH, side * PATCH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return path


def the_group(policy: Policy, folder: Path, side: int, tokens: int, group_size: int) -> Group:
    """A group of random completions of the prompt that the trainer would make of a picture."""
    prompt = policy.prompt(Item(id="0", image=picture(folder, 0, side)))
    chance = torch.Generator().manual_seed(0)
    completions = torch.randint(0, 256, (group_size, tokens), generator=chance).tolist()
    assert prompt.images is not None
    old = torch.randn(group_size, tokens, generator=chance) / 4 - np.log(len(policy.tokenizer))
    return Group(prompt.tokens, prompt.images, completions, torch.randn(group_size, generator=chance), old)


if __name__ == "__main__":
    main()
