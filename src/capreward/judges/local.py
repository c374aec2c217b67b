"""A language model of transformers in this process, as the judge: answers read from probabilities, nothing decoded."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from capreward import prompts
from capreward.errors import InputError, missing_extra
from capreward.judges.base import Reply, Request, Task, Usage
from capreward.missing import Missing, Reason

if TYPE_CHECKING:
    import torch

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SCALES = {Task.SUPPORT: ("no", "yes"), Task.RATE: tuple("12345"), Task.LIKERT: tuple("12345")}
"""The answers on which a value lies, from 0 to 1 in equal steps."""
LIKERT_REFERENCE = "Reference caption of the same image, to compare with: "
PROMPTS = {
    Task.CHOOSE: "choose",
    Task.SUPPORT: "local_support",
    Task.RATE: "local_rate",
    Task.LIKERT: "local_likert",
}
CACHED_PRIORS = 100_000
"""Options whose likelihood without a caption is kept, for `answers="likelihood"`."""
Option = tuple[str, str, str]
"""Text, question, option."""
USER = "\ue000user\ue000"
"""Stands for the user's message while a chat template is rendered around it; from a private area of Unicode."""


class LocalJudge:
    """Answers with a causal language model of transformers, from the probabilities of one forward.

    All that is asked about one text runs as one shared-prefix forward (`capreward.prefix`): the text goes through the model once.
    EXTRACT is not among its tasks: that would need decoding.

    Prompts go through the tokenizer's chat template; without one they are plain text.

    - CHOOSE: the probabilities of the options' letters as the first token of the answer, made to add up to 1.
    - SUPPORT: P(yes) / (P(yes) + P(no)), each statement by itself.
    - RATE, LIKERT: the expected rating x of 1 to 5, as (x - 1) / 4, each aspect by itself.

    Args:
        model: name or folder for `AutoModelForCausalLM`, or a loaded model.
        tokenizer: the model's own when left out; needed beside a loaded model that has no name.
        device: where a model given by name runs: a GPU when left out, if there is one.
        dtype: its number format; that of its file when left out.
        answers: how options are chosen. "letters" reads the probability of each option's letter. "likelihood" is for models too
            small for that: as logits, mean log P(option's tokens | text, question) less the same without the text.
            SUPPORT, RATE and LIKERT work the same with both.
        revision: branch, tag or commit on the hub; part of the judge's name.
        chunk_tokens: most tokens in one forward; 512 on a CPU and 4,096 elsewhere when left out.

    Missing: a prompt exceeds the model's window (`truncated`), or the forward about this text failed, by lack of memory say
    (`server`).

    Raises:
        MissingExtraError: the extra `local` is not installed.
        InputError: the model's architecture or attention has no exact shared-prefix forward.
    """

    tasks = frozenset(PROMPTS)
    images = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        answers: Literal["letters", "likelihood"] = "letters",
        revision: str | None = None,
        chunk_tokens: int | None = None,
    ) -> None:
        try:
            import torch
            import transformers

            from capreward import prefix
        except ImportError as error:
            raise missing_extra("LocalJudge", "local", error) from error
        if answers not in ("letters", "likelihood"):
            raise InputError(f"LocalJudge: got answers={answers!r}, expected 'letters' or 'likelihood'")
        if isinstance(model, str | Path):
            source = str(model)
            model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto", revision=revision)
            model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        else:
            source = model.config.name_or_path
        try:
            prefix.check(model)
        except ValueError as error:
            raise InputError(f"LocalJudge: {error}") from error
        self._model: Any = model.eval()
        if tokenizer is None and not source:
            raise InputError(
                "LocalJudge: got a loaded model that has no name and no tokenizer, expected both or a name"
            )
        self._tokenizer: Any = (
            transformers.AutoTokenizer.from_pretrained(source, revision=revision) if tokenizer is None else tokenizer
        )
        revision = getattr(model.config, "_commit_hash", None) or revision or "local"
        self.name = f"local/{Path(source).name or type(model).__name__}@{revision}+{answers}"
        self.usage = Usage()
        self._by_likelihood = answers == "likelihood"
        self._chunk_tokens = chunk_tokens or (prefix.CHUNK_TOKENS if model.device.type == "cpu" else 4096)
        self._window: int = model.config.max_position_embeddings
        self._bos: list[int] = self._tokenizer("").input_ids  # what the tokenizer puts before every plain text
        self._lock = threading.Lock()
        self._frames: dict[str, tuple[list[int], list[int]]] = {}
        self._priors: dict[Option, float] = {}

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        """One reply a request. Runs in a thread, so the caller's event loop stays free.

        Raises:
            InputError: a task that it cannot do, or more options than letters.
        """
        for request in requests:
            if request.task not in self.tasks:
                raise InputError(f"{self.name} cannot {request.task}, only {', '.join(sorted(self.tasks))}")
            if request.task is Task.CHOOSE and len(request.options) > len(LETTERS):
                raise InputError(f"{self.name}: got {len(request.options)} options, expected at most {len(LETTERS)}")
        return await asyncio.to_thread(self._ask, requests)

    def _ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        import torch

        asked = dict.fromkeys(requests)
        groups: dict[str, list[Request]] = {}
        for request in asked:
            groups.setdefault(request.context, []).append(request)
        with self._lock, torch.inference_mode():
            start = time.perf_counter()
            replies: dict[Request, Reply | Missing] = dict.fromkeys(asked, Reply())  # what stays of one without options
            for group in groups.values():
                replies |= self._ask_about_one([request for request in group if request.options])
            answers = [replies[request] for request in requests]
            self.usage.requests += len(requests)
            self.usage.calls += len(replies)
            self.usage.hits += len(requests) - len(replies)
            self.usage.failures += sum(isinstance(answer, Missing) for answer in answers)
            self.usage.seconds += time.perf_counter() - start
        return answers

    def _ask_about_one(self, requests: Sequence[Request]) -> dict[Request, Reply | Missing]:
        """The replies to requests that share their context."""
        likelihood = [r for r in requests if self._by_likelihood and r.task is Task.CHOOSE]
        token = [r for r in requests if not (self._by_likelihood and r.task is Task.CHOOSE)]
        replies: dict[Request, Reply | Missing] = {}
        for answer, group in ((self._from_likelihoods, likelihood), (self._from_tokens, token)):
            try:
                replies |= answer(group)
            except (RuntimeError, MemoryError) as error:  # torch's own, lack of memory among them
                replies |= dict.fromkeys(group, Missing(Reason.SERVER, f"{self.name}: {type(error).__name__}: {error}"))
        return replies

    def _from_tokens(self, requests: Sequence[Request]) -> dict[Request, Reply | Missing]:
        """Answers read from the probabilities of the next token."""
        from capreward.prefix import last_logits

        sequences, replies = self._within_window({request: self._prompts(request) for request in requests})
        if not sequences:
            return replies
        answers = {request: self._answer_tokens(_answers(request)) for request in sequences}
        columns = sorted({token for each in answers.values() for tokens in each for token in tokens})
        logits = self._counted(last_logits, [ids for each in sequences.values() for ids in each], columns)
        rows = iter(logits.double().cpu().numpy())
        for request, each in sequences.items():
            places = [[columns.index(token) for token in tokens] for tokens in answers[request]]
            scores = [[np.logaddexp.reduce(row[place]) for place in places] for _, row in zip(each, rows, strict=False)]
            probabilities = _softmax(np.array(scores))
            if request.task is Task.CHOOSE:
                values = probabilities[0]
            else:
                values = np.clip(probabilities @ np.linspace(0, 1, len(places)), 0, 1)
            replies[request] = Reply(tuple(values.tolist()))
        return replies

    def _from_likelihoods(self, requests: Sequence[Request]) -> dict[Request, Reply | Missing]:
        """Choices by how much likelier the text makes each option."""
        from capreward.prefix import sequence_logprobs

        sequences, replies = self._within_window(
            {r: [self._continued(r.context, r.question, option)[0] for option in r.options] for r in requests}
        )
        wanted = [(text, r.question, option) for r in sequences for option in r.options for text in (r.context, "")]
        new = [option for option in dict.fromkeys(wanted) if option not in self._priors]
        means = {option: self._priors[option] for option in wanted if option in self._priors}
        if new:
            pairs = [self._continued(*option) for option in new]
            sums, tokens = self._counted(sequence_logprobs, [ids for ids, _ in pairs], [start for _, start in pairs])
            means |= zip(new, (sums / tokens).double().tolist(), strict=True)
        for r in sequences:
            gains = [means[r.context, r.question, option] - means["", r.question, option] for option in r.options]
            replies[r] = Reply(tuple(_softmax(np.array(gains)).tolist()))
        if len(self._priors) > CACHED_PRIORS:
            self._priors.clear()
        self._priors |= {option: mean for option, mean in means.items() if not option[0]}
        return replies

    def _within_window(
        self, sequences: Mapping[Request, list[list[int]]]
    ) -> tuple[dict[Request, list[list[int]]], dict[Request, Reply | Missing]]:
        """The requests whose sequences all fit into the model's window, and Missing for the others."""
        longest = {request: max(map(len, each), default=0) for request, each in sequences.items()}
        return {r: each for r, each in sequences.items() if longest[r] <= self._window}, {
            r: Missing(Reason.TRUNCATED, f"{self.name}: {n} tokens, {self._window} fit into the model's window")
            for r, n in longest.items()
            if n > self._window
        }

    def _counted(self, forward: Any, *args: Any) -> Any:
        """What `forward` answers; its tokens are added to the usage."""
        from capreward.prefix import Counts

        counts = Counts()
        answer = forward(self._model, *args, chunk_tokens=self._chunk_tokens, counts=counts)
        self.usage.input_tokens += counts.run
        return answer

    def _prompts(self, request: Request) -> list[list[int]]:
        """Token sequences to be answered: one for a choice, else one for each option."""
        name = PROMPTS[request.task]
        head, tail = self._frame(name)
        if request.task is Task.CHOOSE:
            listed = ["\n".join(f"{letter}. {o}" for letter, o in zip(LETTERS, request.options, strict=False))]
        else:
            listed = list(request.options)
        return [[*head, *self._encode(fill(prompts.load(name), request, options)), *tail] for options in listed]

    def _frame(self, name: str) -> tuple[list[int], list[int]]:
        """Tokens before and after the user's message of a prompt: the only ones in which special tokens are read."""
        if name not in self._frames:
            system = prompts.load(name).system
            if self._tokenizer.chat_template:
                head, _, tail = self._tokenizer.apply_chat_template(
                    [{"role": "system", "content": system}, {"role": "user", "content": USER}],
                    tokenize=False,
                    add_generation_prompt=True,
                    enable_thinking=False,  # Qwen3: answer at once
                ).partition(USER)
                self._frames[name] = self._encode(head, trusted=True), self._encode(tail, trusted=True)
            else:
                self._frames[name] = [*self._bos, *self._encode(f"{system}\n\n")], self._encode("\nAnswer:")
        return self._frames[name]

    def _continued(self, text: str, question: str, option: str) -> tuple[list[int], int]:
        """Tokens of text, question and option, and where the option begins."""
        before = f"{text}\n\nQuestion: {question}\nAnswer:" if text else f"Question: {question}\nAnswer:"
        head = [*self._bos, *self._encode(before)]
        return [*head, *self._encode(f" {option}")], len(head)

    def _encode(self, text: str, *, trusted: bool = False) -> list[int]:
        """Tokens of a text. What spells a special token, such as the end of a turn, is one only in a trusted text."""
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=not trusted).input_ids
        return [int(token) for token in ids]

    def _answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        """For each answer the tokens that give it: with and without a space before it, in small letters or capitalised.

        Raises:
            InputError: the tokenizer has no token for an answer that is that answer's own.
        """
        tokens: list[list[int]] = []
        for answer in answers:
            spellings = {space + word for space in ("", " ") for word in (answer, answer.capitalize())}
            encoded = [self._encode(spelling) for spelling in sorted(spellings)]
            tokens.append(sorted({ids[0] for ids in encoded if len(ids) == 1}))
        every = [token for each in tokens for token in each]
        if not all(tokens) or len(set(every)) < len(every):
            raise InputError(
                f"{self.name}: its tokenizer has no single token of its own for each of {', '.join(answers)}"
            )
        return tokens


def fill(prompt: prompts.Prompt, request: Request, options: str) -> str:
    """The user's part of a prompt. The marks around the context are a hash of it, so its author cannot write them into it."""
    question = request.question
    if request.task is Task.LIKERT and question:
        question = f"{LIKERT_REFERENCE}{question}"
    mark = f"text-{hashlib.sha256(request.context.encode()).hexdigest()[:8]}"
    return Template(prompt.user).substitute(mark=mark, context=request.context, question=question, options=options)


def _answers(request: Request) -> Sequence[str]:
    return LETTERS[: len(request.options)] if request.task is Task.CHOOSE else SCALES[request.task]


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))
