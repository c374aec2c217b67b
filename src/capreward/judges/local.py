"""A model of transformers in this process, as the judge: answers read from probabilities; only statements are decoded."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from capreward.errors import InputError, missing_extra
from capreward.groups import Float
from capreward.hub import find_model
from capreward.judges.base import Reply, Request, Task, Usage
from capreward.judges.chat import LETTERS
from capreward.judges.encode import PROMPTS, PROMPTS_HASH, Encoder
from capreward.judges.parse import parse
from capreward.missing import Missing, Reason

if TYPE_CHECKING:
    import torch

CACHED_PRIORS = 100_000
"""Options whose likelihood without a caption is kept, for `answers="likelihood"`."""
Option = tuple[str, str, str]
"""Text, question, option."""
Answer = Callable[[Sequence[Request]], dict[Request, Reply | Missing]]
"""Answers requests that run together."""
DECODED_AT_ONCE = 16
"""Texts whose statements are decoded in one batch."""


class LocalJudge:
    """Answers with a language model or a vision-language model of transformers, from the probabilities of one forward.

    All that is asked about one text runs as one shared-prefix forward (`capreward.prefix`): the text goes through the model once.
    The same holds for all that is asked about one image. Only statements (EXTRACT) are decoded, greedily.

    Prompts go through the chat template; without one they are plain text.

    - CHOOSE: the probabilities of the options' letters as the first token of the answer, made to add up to 1. A request with a
      temperature gets one letter, drawn from them by its seed.
    - SUPPORT: P(yes) / (P(yes) + P(no)), each statement by itself. VERIFY the same, of the image.
    - RATE, LIKERT: the expected rating x of 1 to 5, as (x - 1) / 4, each aspect by itself.
    - EXTRACT: decoded JSON. Takes a model of some billions of parameters; smaller ones often end as Missing.

    Args:
        model: name or folder, or a loaded model: an `AutoModelForCausalLM`, or an `AutoModelForImageTextToText`.
        processing_class: the model's tokenizer, or the processor of one that sees; its own when left out. Needed beside a
            loaded model that has no name. A vision-language model with a mere tokenizer answers, but sees no images.
        device: where a model given by name runs: a GPU when left out, if there is one.
        dtype: its number format; that of its file when left out.
        answers: how options are chosen. "letters" reads the probability of each option's letter. "likelihood" is for models too
            small for that: as logits, mean log P(option's tokens | text, question) less the same without the text.
            All other tasks work the same with both.
        revision: branch, tag or commit on the hub; part of the judge's name.
        chunk_tokens: most tokens in one forward; 512 on a CPU and 4,096 elsewhere when left out.
        max_tokens: longest decoded reply; one that hits it is Missing(truncated).

    Missing: a prompt exceeds the model's window (`truncated`), an image cannot be read (`no_image`) or the judge sees none
    (`refused`), decoded JSON is broken (`unparseable`), or the forward about this text failed, by lack of memory say (`server`).

    Raises:
        MissingExtraError: the extra `local` is not installed.
        InputError: no such model; its architecture or attention has no exact shared-prefix forward, or its processor cannot
            be built.
    """

    def __init__(
        self,
        model: Any,
        processing_class: Any = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        answers: Literal["letters", "likelihood"] = "letters",
        revision: str | None = None,
        chunk_tokens: int | None = None,
        max_tokens: int = 1024,
    ) -> None:
        try:
            import PIL  # noqa: F401  # processors need it
            import torch
            import transformers

            from capreward import prefix
        except ImportError as error:
            raise missing_extra("LocalJudge", "local", error) from error
        if answers not in ("letters", "likelihood"):
            raise InputError(f"LocalJudge: got answers={answers!r}, expected 'letters' or 'likelihood'")
        if isinstance(model, str | Path):
            source = str(model)
            found = find_model("LocalJudge", source, revision=revision)
            options = {"revision": revision, "local_files_only": found.local}
            try:
                sees = hasattr(transformers.AutoConfig.from_pretrained(found.source, **options), "vision_config")
                kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
                model = kind.from_pretrained(found.source, dtype=dtype or "auto", **options)
            except (OSError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise InputError(f"LocalJudge: {source} cannot be loaded as a language model: {reason}") from error
            revision = found.commit or revision
            model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        else:
            source = model.config.name_or_path
        try:
            prefix.check(model)
        except ValueError as error:
            raise InputError(f"LocalJudge: {error}") from error
        self._model: Any = model.eval()
        if processing_class is None:
            processing_class = _processing_class(model, source, revision)
        self._encoder = Encoder(processing_class)
        self.images = self._encoder.images
        self.tasks = frozenset(PROMPTS) - (set() if self.images else {Task.VERIFY})
        revision = getattr(model.config, "_commit_hash", None) or revision or "local"
        self.name = f"local/{Path(source).name or type(model).__name__}@{revision}+{answers}+{PROMPTS_HASH}"
        self.usage = Usage()
        self._by_likelihood = answers == "likelihood"
        self._chunk_tokens = chunk_tokens or (prefix.CHUNK_TOKENS if model.device.type == "cpu" else 4096)
        self._max_tokens = max_tokens
        self._window: int = model.config.get_text_config().max_position_embeddings
        self._lock = threading.Lock()
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
        with self._lock, torch.inference_mode():
            start = time.perf_counter()
            replies: dict[Request, Reply | Missing] = dict.fromkeys(asked, Reply())  # what stays of one without options
            for answer, group in self._groups(list(asked)):
                try:
                    replies |= answer(group)
                except (RuntimeError, MemoryError) as error:  # torch's own, lack of memory among them
                    failure = Missing(Reason.SERVER, f"{self.name}: {type(error).__name__}: {error}")
                    replies |= dict.fromkeys(group, failure)
            answers = [replies[request] for request in requests]
            self.usage.requests += len(requests)
            self.usage.calls += len(replies)
            self.usage.hits += len(requests) - len(replies)
            self.usage.failures += sum(isinstance(answer, Missing) for answer in answers)
            self.usage.seconds += time.perf_counter() - start
        return answers

    def _groups(self, requests: Sequence[Request]) -> Iterator[tuple[Answer, list[Request]]]:
        """The requests that run together, and what answers them: those about one text, or with one prompt about one image."""
        groups: dict[Any, tuple[Answer, list[Request]]] = {}
        for request in requests:
            key: Any
            answer: Answer
            if request.images and not self.images:
                key, answer = "refused", self._refuse
            elif request.task is Task.EXTRACT:
                key, answer = "extract", self._decode
            elif not request.options:
                continue
            elif request.images:
                key, answer = (request.images, request.task), self._from_tokens
            elif self._by_likelihood and request.task is Task.CHOOSE:
                key, answer = (request.context, "likelihood"), self._from_likelihoods
            else:
                key, answer = request.context, self._from_tokens
            groups.setdefault(key, (answer, []))[1].append(request)
        # Texts of like length are padded least beside each other.
        _, extracts = groups.pop("extract", (self._decode, []))
        extracts.sort(key=lambda request: len(request.context))
        for i in range(0, len(extracts), DECODED_AT_ONCE):
            yield self._decode, extracts[i : i + DECODED_AT_ONCE]
        yield from groups.values()

    def _refuse(self, requests: Sequence[Request]) -> dict[Request, Reply | Missing]:
        return dict.fromkeys(requests, Missing(Reason.REFUSED, f"judge {self.name!r} sees no images and got one"))

    def _from_tokens(self, requests: Sequence[Request]) -> dict[Request, Reply | Missing]:
        """Answers read from the probabilities of the next token."""
        from capreward.prefix import last_logits

        try:
            frames = {
                task: self._encoder.frame(task, requests[0].images) for task in {request.task for request in requests}
            }
        except OSError as error:
            return dict.fromkeys(requests, Missing(Reason.NO_IMAGE, str(error)))
        sequences, replies = self._within_window({r: self._encoder.prompts(r, frames[r.task]) for r in requests})
        if not sequences:
            return replies
        answers = {request: self._encoder.answer_tokens(request) for request in sequences}
        columns = sorted({token for each in answers.values() for tokens in each for token in tokens})
        prompts_ = [ids for each in sequences.values() for ids in each]
        images = {name: value.to(self._model.device) for name, value in frames[requests[0].task].images.items()}
        logits = self._counted(last_logits, prompts_, columns, images=images or None)
        rows = iter(logits.double().cpu().numpy())
        for request, each in sequences.items():
            places = [[columns.index(token) for token in tokens] for tokens in answers[request]]
            scores = [[np.logaddexp.reduce(row[place]) for place in places] for _, row in zip(each, rows, strict=False)]
            probabilities = _softmax(np.array(scores))
            if request.task is Task.CHOOSE:
                replies[request] = self._chosen(request, probabilities[0])
            else:
                values = np.clip(probabilities @ np.linspace(0, 1, len(places)), 0, 1)
                replies[request] = Reply(tuple(values.tolist()))
        return replies

    def _chosen(self, request: Request, probabilities: Float) -> Reply:
        """The probabilities (n,), or one option drawn from them if the request has a temperature."""
        temperature = request.sampling.temperature
        if not temperature:
            return Reply(tuple(probabilities.tolist()))
        with np.errstate(divide="ignore"):
            weights = _softmax(np.log(probabilities) / temperature)
        # the key tells draws apart by their seed, and requests with one seed from each other
        [drawn] = random.Random(request.key(self.name)).choices(range(len(weights)), weights.tolist())
        return Reply(tuple(float(i == drawn) for i in range(len(weights))))

    def _decode(self, requests: Sequence[Request]) -> dict[Request, Reply | Missing]:
        """Statements, decoded greedily."""
        import torch

        sequences, replies = self._within_window(
            {r: self._encoder.prompts(r, self._encoder.frame(r.task)) for r in requests}, spare=self._max_tokens
        )
        prompts_ = [ids for [ids] in sequences.values()]
        if not prompts_:
            return replies
        width = max(map(len, prompts_))
        device = self._model.device
        tokens = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts_], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts_], device=device)
        ends = self._ends()
        out = self._model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=self._max_tokens,
            do_sample=False,
            pad_token_id=ends[0],
            eos_token_id=ends,
        )
        self.usage.input_tokens += sum(map(len, prompts_))
        for request, ids in zip(sequences, out[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(ids) if token in ends), None)
            self.usage.output_tokens += len(ids) if end is None else end + 1
            text = self._encoder.tokenizer.decode(ids[:end], skip_special_tokens=True)
            if end is None:
                detail = f"no end within {self._max_tokens} tokens: ...{text[-100:]!r}"
                replies[request] = Missing(Reason.TRUNCATED, detail, raw=text)
            else:
                replies[request] = parse(request, text)
        return replies

    def _ends(self) -> list[int]:
        """The tokens that end a reply, one at least."""
        configured = self._model.generation_config.eos_token_id
        several = configured if isinstance(configured, list) else [configured]
        return [token for token in dict.fromkeys([*several, self._encoder.tokenizer.eos_token_id]) if token is not None]

    def _from_likelihoods(self, requests: Sequence[Request]) -> dict[Request, Reply | Missing]:
        """Choices by how much likelier the text makes each option."""
        from capreward.prefix import sequence_logprobs

        sequences, replies = self._within_window(
            {r: [self._encoder.continued(r.context, r.question, option)[0] for option in r.options] for r in requests}
        )
        wanted = [(text, r.question, option) for r in sequences for option in r.options for text in (r.context, "")]
        new = [option for option in dict.fromkeys(wanted) if option not in self._priors]
        means = {option: self._priors[option] for option in wanted if option in self._priors}
        if new:
            pairs = [self._encoder.continued(*option) for option in new]
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
        self, sequences: Mapping[Request, list[list[int]]], spare: int = 0
    ) -> tuple[dict[Request, list[list[int]]], dict[Request, Reply | Missing]]:
        """The requests whose sequences all fit into the model's window, `spare` tokens left, and Missing for the others."""
        longest = {request: max(map(len, each), default=0) + spare for request, each in sequences.items()}
        return {r: each for r, each in sequences.items() if longest[r] <= self._window}, {
            r: Missing(Reason.TRUNCATED, f"{self.name}: {n} tokens, {self._window} fit into the model's window")
            for r, n in longest.items()
            if n > self._window
        }

    def _counted(self, forward: Any, *args: Any, **options: Any) -> Any:
        """What `forward` answers; its tokens are added to the usage."""
        from capreward.prefix import Counts

        counts = Counts()
        answer = forward(self._model, *args, chunk_tokens=self._chunk_tokens, counts=counts, **options)
        self.usage.input_tokens += counts.run
        return answer


def _processing_class(model: Any, source: str, revision: str | None) -> Any:
    """The tokenizer that belongs to a model, or the processor of one that sees.

    Raises:
        InputError: there is no name to find it by, or it cannot be built here.
    """
    import transformers

    if not source:
        raise InputError(
            "LocalJudge: got a loaded model that has no name and no processing_class, expected both or a name"
        )
    found = find_model("LocalJudge", source, revision=revision)
    options = {"revision": revision, "local_files_only": found.local}
    if not hasattr(model.config, "vision_config"):
        return transformers.AutoTokenizer.from_pretrained(found.source, **options)
    try:
        return transformers.AutoProcessor.from_pretrained(found.source, **options)  # type: ignore[no-untyped-call]
    except (ImportError, ValueError) as error:  # Qwen's wants torchvision
        raise InputError(
            f"LocalJudge: the processor of {source!r} cannot be built here: {error}; without images, pass its tokenizer"
        ) from error


def _softmax(x: Float) -> Float:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))
