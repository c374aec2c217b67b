"""Runs VLLMJudge with vLLM and writes what it answered as JSON: `python in_process.py text|images|killed OUT MODEL`."""

from __future__ import annotations

import asyncio
import io
import json
import multiprocessing
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

from capreward import Missing, QAUtility, RewardSuite, VLLMJudge, samples
from capreward.judges import Reply, Request, Sampling, Task
from capreward.judges.chat import messages, render

CUP = "A white cup stands on a brown table. A silver spoon lies next to it."
CHOICE = Request(Task.CHOOSE, CUP, ("a dog", "a cup", "a tree"), "What stands on the table?")
SUPPORT = Request(Task.SUPPORT, CUP, ("There is a cup.", "There is a dog."))
RATE = Request(Task.RATE, CUP, ("clarity", "fluency", "coherence"))
EXTRACT = Request(Task.EXTRACT, CUP)
OVERLONG = Request(Task.SUPPORT, CUP * 500, ("There is a cup.",))
IMAGE = Request(Task.VERIFY, "", ("There is a cup.",), images=(b"\x89PNG\r\n\x1a\n",))
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}\
{% else %}<image>{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ENGINE: dict[str, Any] = {"max_model_len": 2048, "enforce_eager": True, "block_size": 32}


def drawn(seed: int) -> Request:
    return Request(Task.CHOOSE, CUP, CHOICE.options, CHOICE.question, sampling=Sampling(1.0, seed))


def plain(replies: list[Reply | Missing]) -> list[dict[str, Any]]:
    return [
        {"missing": reply.reason, "detail": reply.detail}
        if isinstance(reply, Missing)
        else {"values": reply.values, "texts": reply.texts, "raw": reply.raw}
        for reply in replies
    ]


def ask(judge: VLLMJudge, *requests: Request) -> list[dict[str, Any]]:
    return plain(asyncio.run(judge.ask(requests)))


async def ticks_while_asking(judge: VLLMJudge) -> int:
    """How often the event loop came round while the engine was busy."""
    asking, ticks = asyncio.create_task(judge.ask([RATE])), 0
    while not asking.done():
        await asyncio.sleep(0.005)
        ticks += 1
    return ticks


async def ask_at_once(judge: VLLMJudge, other: VLLMJudge) -> list[dict[str, Any]]:
    """Two judges on one engine, each asked in a task of its own."""
    questions = [
        [Request(Task.CHOOSE, f"Cup {n}.", ("a", "b", "c")[:size], "Which?") for n in range(4)] for size in (2, 3)
    ]
    replies = await asyncio.gather(judge.ask(questions[0]), other.ask(questions[1]))
    return plain([reply for each in replies for reply in each])


def by_transformers(model: str) -> list[float]:
    """What P(letter) is for CHOICE, going by another implementation and the whole vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    chat = messages(render(CHOICE))
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        p = AutoModelForCausalLM.from_pretrained(model)(**ids).logits[0, -1].float().softmax(-1)
    words = [tokenizer.decode([token]).strip() for token in range(len(p))]
    mass = [sum(float(p[token]) for token, word in enumerate(words) if word == letter) for letter in "ABC"]
    return [each / sum(mass) for each in mass]


def text(model: str) -> dict[str, Any]:
    judge = VLLMJudge(model, revision="r1", max_tokens=300, **ENGINE)
    llm = judge._llm
    done: dict[str, Any] = {"name": judge.name, "tasks": sorted(judge.tasks)}
    done["batch"] = ask(judge, CHOICE, OVERLONG, SUPPORT, IMAGE, RATE, EXTRACT)
    done["usage"] = {name: getattr(judge.usage, name) for name in judge.usage.__slots__}
    done["by transformers"] = by_transformers(model)
    draws = [drawn(seed) for seed in range(8)]
    done["draws"] = [ask(judge, *draws), ask(judge, *draws)]
    done["hot"] = ask(judge, Request(Task.SUPPORT, CUP, ("A cup.",), sampling=Sampling(99.0)), CHOICE)
    done["short"] = ask(VLLMJudge(llm, max_tokens=5), SUPPORT)
    done["eyes"] = ask(VLLMJudge(llm, images=True), IMAGE, CHOICE)
    done["at once"] = asyncio.run(ask_at_once(judge, VLLMJudge(llm)))
    done["ticks"] = asyncio.run(ticks_while_asking(judge))

    step = llm.llm_engine.step
    llm.llm_engine.step = lambda: 1 / 0
    done["broken"] = ask(judge, CHOICE, SUPPORT)
    llm.llm_engine.step = step
    done["left over"] = llm.llm_engine.get_num_unfinished_requests()
    done["mended"] = ask(judge, CHOICE)

    start = time.perf_counter()
    table = RewardSuite({"qa": QAUtility(judge, score="probability")}).score(samples.photos()[:6])
    done["qa"] = {
        "values": table.values[:, 0].tolist(),
        "missing": len(table.missing),
        "s": time.perf_counter() - start,
    }
    return done


def llava(folder: Path, words: str) -> str:
    """A tiny random LLaVA, in `folder`, with the tokenizer of the model in `words`; weights large enough for it to see."""
    import torch
    from safetensors.torch import save_file
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(words)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
    }
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 2048, **size},
        vision_config={"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, **size},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    weights = LlavaForConditionalGeneration(config).state_dict()
    named = {name.replace("vision_tower.", "vision_tower.vision_model."): weight for name, weight in weights.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    square = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    return str(folder)


def without_torchvision() -> None:
    """Lets vLLM load LLaVA where torchvision is missing: only Pixtral, which its file also imports, would call it."""
    from vllm.model_executor.models import registry

    stub: Any = types.ModuleType("transformers.models.pixtral.image_processing_pixtral")
    stub._num_image_tokens = None
    sys.modules[stub.__name__] = stub
    registry._run_in_subprocess = lambda look: look()  # where the stub would be missing


def images(words: str) -> dict[str, Any]:
    from PIL import Image

    without_torchvision()

    pictures = []
    for colour in ("white", "black"):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(file, "PNG")
        pictures.append(file.getvalue())
    seen = [Request(Task.CHOOSE, "", ("white", "black"), "Which colour?", images=(picture,)) for picture in pictures]
    verify = Request(Task.VERIFY, "", ("There is a cup.",), images=(pictures[0],))
    gone = Request(Task.VERIFY, "", ("There is a cup.",), images=(Path("no/such.png"),))
    with tempfile.TemporaryDirectory() as folder:
        model = llava(Path(folder) / "llava", words)
        judge = VLLMJudge(model, images=True, max_tokens=200, dtype="float32", **ENGINE)
        return {"tasks": sorted(judge.tasks), "batch": ask(judge, *seen, IMAGE, verify, gone)}


def killed(model: str) -> dict[str, Any]:
    """With the engine in a process of its own, as on a GPU."""
    judge = VLLMJudge(model, **ENGINE)
    done = {"alive": ask(judge, CHOICE, OVERLONG)}
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    return done | {"dead": ask(judge, CHOICE, SUPPORT), "failures": judge.usage.failures}


if __name__ == "__main__":
    what, out, model = sys.argv[1:]
    Path(out).write_text(json.dumps({"text": text, "images": images, "killed": killed}[what](model)))
