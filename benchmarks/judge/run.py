"""QA utility on a small real model on the CPU: the local judge beside one generation a question.

    python benchmarks/judge/run.py [--quick]

64 human captions of ImageInWords, 8 four-option questions each, every question in 4 orders of its options. The questions are
those of the package's photographs and have nothing to do with the captions: speed does not depend on who is right, and
for the comparison of expected rewards any fixed answer will do. SmolLM2-135M-Instruct, bfloat16, one thread.

The plain loop is what CapRL's released reward code implies: the full prompt for every question, a reply sampled at temperature
0.6, the first letter A to I in it is the answer. It runs on a part of the captions, spread between the local judge's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from common import finish
from smollm2 import smollm2

from capreward import prompts
from capreward.judges import Request, Task
from capreward.judges.encode import LETTERS, fill
from capreward.judges.local import LocalJudge
from capreward.prefix import Trie
from capreward.records import Question
from capreward.samples import iiw, photos

TEMPERATURE = 0.6
NEW_TOKENS = 4
QUESTIONS = 8
ORDERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="4 captions, 1 in the plain loop, printed as one JSON line"
    )
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    judge = LocalJudge(smollm2(), device="cpu")
    loop = PlainLoop()
    pool = list({question.text: question for rollout in photos() for question in rollout.item.questions}.values())
    captions = [rollout.caption for rollout in iiw() if rollout.metadata["author"] == "human"][: 4 if quick else 64]
    looped = 1 if quick else 8

    ask(judge, asked(captions[0], pool[:1]))  # both start warm
    loop.answer(asked(captions[0], pool[:1])[0])
    timed: dict[str, list[float]] = {"judge": [], "loop": [], "one forward": []}
    expected, drawn, unanswered = [], [], 0
    run, unique = judge.usage.input_tokens, 0
    for index, caption in enumerate(captions):
        requests = asked(caption, questions_of(pool, index, QUESTIONS))
        values, seconds = clock(ask, judge, requests)
        timed["judge"].append(seconds / len(requests))
        unique += len(Trie.of([loop.tokens(request) for request in requests]).tokens)
        if index % (len(captions) // looped) == 0:
            right = [fixed(request) for request in requests]
            for request, probabilities, answer in zip(requests, values, right, strict=True):
                reply, seconds = clock(loop.answer, request)
                timed["loop"].append(seconds)
                timed["one forward"].append(clock(loop.forward, request)[1])
                unanswered += reply is None
                drawn.append(float(reply == answer))
                expected.append(float(tempered(probabilities)[answer]))
    run = judge.usage.input_tokens - run
    speeds = {name: 1 / statistics.mean(seconds) for name, seconds in timed.items()}
    error = float(np.sqrt(np.sum(np.array(expected) * (1 - np.array(expected))))) / len(expected)
    difference = statistics.mean(drawn) - statistics.mean(expected)
    headline = [
        {"name": "local judge", "value": speeds["judge"], "unit": "questions/s"},
        {"name": "plain loop, sampled replies", "value": speeds["loop"], "unit": "questions/s"},
        {"name": "one full forward a question, nothing sampled", "value": speeds["one forward"], "unit": "questions/s"},
        {"name": "local judge / plain loop", "value": speeds["judge"] / speeds["loop"], "unit": "x"},
        {"name": "local judge / one full forward", "value": speeds["judge"] / speeds["one forward"], "unit": "x"},
        {"name": "expected reward, local judge at temperature 0.6", "value": statistics.mean(expected), "unit": ""},
        {"name": "mean reward, plain loop", "value": statistics.mean(drawn), "unit": ""},
        {"name": "their difference in standard errors", "value": difference / error, "unit": "z"},
        {"name": "tokens run / unique tokens", "value": run / unique, "unit": ""},
    ]
    details = {
        "captions": len(captions),
        "captions_in_plain_loop": looped,
        "questions": len(captions) * QUESTIONS * ORDERS,
        "questions_in_plain_loop": len(drawn),
        "unanswered_in_plain_loop": unanswered,
        "standard_error_of_mean_reward": error,
        "tokens_run": run,
        "words_per_caption": statistics.mean(len(caption.split()) for caption in captions),
    }
    if not quick:
        details["growth"] = growth(judge, loop, captions, pool)
        plot(details["growth"])
    finish(Path(__file__).parent, headline, details, quick, packages=("capreward", "torch", "transformers"))


class PlainLoop:
    """A generation for each question, batch size 1."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(smollm2())
        self.model: Any = AutoModelForCausalLM.from_pretrained(smollm2(), dtype="auto").eval()

    def tokens(self, request: Request) -> list[int]:
        prompt = prompts.load("choose")
        listed = "\n".join(f"{letter}. {o}" for letter, o in zip(LETTERS, request.options, strict=False))
        messages = [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": fill(prompt, request, listed)},
        ]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def answer(self, request: Request) -> int | None:
        """Place of the first letter A to I in a sampled reply."""
        ids = torch.tensor([self.tokens(request)])
        sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            reply = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, pad_token_id=2, **sampling
            )
        letter = re.search("[A-I]", self.tokenizer.decode(reply[0, ids.shape[1] :], skip_special_tokens=True))
        return LETTERS.index(letter[0]) if letter else None

    def forward(self, request: Request) -> Any:
        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([self.tokens(request)]), use_cache=False, logits_to_keep=1).logits


def asked(caption: str, questions: Sequence[Question]) -> list[Request]:
    """Each question in every rotation of its options."""
    return [
        Request(Task.CHOOSE, caption, (*q.options[i:], *q.options[:i]), q.text)
        for q in questions
        for i in range(ORDERS)
    ]


def questions_of(pool: Sequence[Question], index: int, n: int) -> list[Question]:
    return [pool[(index * n + i) % len(pool)] for i in range(n)]


def fixed(request: Request) -> int:
    """The place of the option that counts as right: the same option in every order, letters evenly often."""
    return request.options.index(min(request.options))


def ask(judge: LocalJudge, requests: Sequence[Request]) -> list[tuple[float, ...]]:
    return [reply.values for reply in asyncio.run(judge.ask(requests))]  # type: ignore[union-attr]


def tempered(probabilities: Sequence[float]) -> NDArray[np.float64]:
    """Probabilities at TEMPERATURE, from those at 1."""
    sharp = np.array(probabilities) ** (1 / TEMPERATURE)
    return np.asarray(sharp / sharp.sum())


def clock(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return function(*args), time.perf_counter() - start


def growth(
    judge: LocalJudge, loop: PlainLoop, captions: Sequence[str], pool: Sequence[Question]
) -> list[dict[str, float | str]]:
    """Seconds a caption, by number of questions at 200 words and by words at 8 questions; the least of three."""
    text = " ".join(" ".join(captions).split())
    rows: list[dict[str, float | str]] = []
    for axis, points in (("questions", (1, 2, 4, 8, 16)), ("words", (50, 100, 200, 400))):
        for point in points:
            questions, words = (point, 200) if axis == "questions" else (8, point)
            requests = asked(" ".join(text.split()[:words]), pool[:questions])
            seconds = min(clock(ask, judge, requests)[1] for _ in range(3))
            each = min(clock(loop.answer, request)[1] for request in requests[:3])
            rows.append({"axis": axis, "at": point, "judge_s": seconds, "loop_s": each * len(requests)})
            print(
                f"{axis:9s} {point:4d}  local judge {seconds:6.2f} s   plain loop {rows[-1]['loop_s']:6.1f} s",
                flush=True,
            )
    return rows


def plot(rows: Sequence[dict[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    titles = {"questions": "questions a caption, 4 orders each (200 words)", "words": "words a caption (8 questions)"}
    for ax, (axis, title) in zip(axes, titles.items(), strict=True):
        chosen = [row for row in rows if row["axis"] == axis]
        for key, label in (("loop_s", "plain loop (first 3 questions, extrapolated)"), ("judge_s", "local judge")):
            ax.plot([row["at"] for row in chosen], [row[key] for row in chosen], "o-", label=label)
        ax.set(xlabel=title, xscale="log", yscale="log")
        ax.set_xticks([row["at"] for row in chosen], [str(row["at"]) for row in chosen])
        ax.minorticks_off()
    axes[0].set_ylabel("seconds a caption")
    axes[0].legend()
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
