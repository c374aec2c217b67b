"""VLLMJudge: vLLM's engine in this process, asked in batches."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capreward.errors import InputError, missing_extra
from capreward.hub import find_model
from capreward.judges.base import CHOICES, SEEING, Reply, Request, Task, Usage
from capreward.judges.chat import LETTERS, Chat, lacks_image, messages, render
from capreward.judges.parse import from_letters, parse
from capreward.missing import Missing, Reason

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

TOO_LONG = ("maximum context length", "maximum model length")
"""What vLLM says of a prompt that exceeds the window."""
TURNED_DOWN = {"VLLMClientError", "ValueError", "TypeError", "OSError", "TemplateError"}
"""Errors by which vLLM turns a request down, by name, since they move from version to version. Others are its own failures."""

LIVENESS_SECONDS = 1.0
"""Between two looks at whether an engine in a process of its own still lives."""

_LOCKS: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()


class VLLMJudge:
    """A language model in vLLM's engine, in this process: no server, and all requests of an `ask` are one batch.

    Choices are read from the probabilities of the letters as the first token; where the request asks for a sampled draw
    (temperature above 0), from the letter that was drawn. A description is plain text. All else is structured output by JSON
    schema, checked for completeness. A ready engine may be shared by several judges; whatever else uses it must not do so
    meanwhile.

    Args:
        model: name or folder, or a ready `vllm.LLM`.
        images: whether the model sees images; with it, the tasks VERIFY, LOOK and DESCRIBE are offered.
        revision: branch, tag or commit on the hub; part of the judge's name.
        max_tokens: longest reply that is no choice; one that hits it is Missing(truncated).
        chat_template_kwargs: for the model's chat template; ``{"enable_thinking": False}`` when left out.
        engine: options of `vllm.LLM`, such as ``max_model_len=8192, gpu_memory_utilization=0.4``.

    Missing: a prompt exceeds the window, or a reply `max_tokens` (`truncated`); vLLM turns the request down (`refused`); the
    engine fails (`server`).

    Raises:
        MissingExtraError: the extra `vllm` is not installed.
        InputError: no such model; engine options beside a ready engine; a vLLM before 0.23; a tokenizer without a token for
            each letter.
    """

    def __init__(
        self,
        model: str | Path | LLM,
        *,
        images: bool = False,
        revision: str = "",
        max_tokens: int = 2048,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **engine: Any,
    ) -> None:
        try:
            import torch
            from vllm import LLM
        except ImportError as error:
            raise missing_extra("VLLMJudge", "vllm", error) from error
        if isinstance(model, str | Path):
            if "://" not in str(model):  # the engine reads buckets itself
                found = find_model("VLLMJudge", model, revision=revision or None)
                revision = found.commit or revision  # so that the engine looks for no newer one than is in the cache
            model = LLM(str(model), revision=revision or None, **engine)
        elif engine:
            raise InputError(f"VLLMJudge: got a ready engine and options of one ({', '.join(engine)}); leave them out")
        if not hasattr(model, "enqueue_chat"):
            raise InputError(f"VLLMJudge: got {model!r}, expected a name, a folder or the LLM of vLLM 0.23 or later")
        self._llm: Any = model
        self._lock = _LOCKS.setdefault(model, threading.Lock())
        cuda: Any = torch.cuda
        # asking takes memory on the GPU, so only where the engine computes in this process it is asked
        self._device: int | None = cuda.current_device() if cuda.is_initialized() else None
        config = self._llm.model_config
        source = Path(config.model).name if Path(config.model).exists() else config.model
        revision = getattr(config.hf_config, "_commit_hash", None) or revision or config.revision or ""
        self.name = f"vllm/{source}{'@' * bool(revision)}{revision}"
        self.tasks = frozenset(Task) if images else frozenset(Task) - SEEING
        self.images, self.max_tokens = images, max_tokens
        self.usage = Usage()
        self._template = {"enable_thinking": False} if chat_template_kwargs is None else dict(chat_template_kwargs)
        self._letters = self._letter_tokens()

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        """One reply a request. Runs in a thread, so the caller's event loop stays free."""
        return await asyncio.to_thread(self._ask, requests)

    def _ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        import torch

        # a thread of its own starts on the first GPU
        with self._lock, contextlib.nullcontext() if self._device is None else torch.cuda.device(self._device):
            start = time.perf_counter()
            sent = [self._send(request) for request in requests]
            outputs = iter(self._wait([each for each in sent if isinstance(each, str)]))
            answers = [
                self._read(request, next(outputs)) if isinstance(each, str) else each
                for request, each in zip(requests, sent, strict=True)
            ]
            self.usage.requests += len(requests)
            self.usage.calls += sum(isinstance(each, str) for each in sent)
            self.usage.failures += sum(isinstance(answer, Missing) for answer in answers)
            self.usage.seconds += time.perf_counter() - start
        return answers

    def _send(self, request: Request) -> str | Missing:
        """Queues one request: its id in the engine, or why it has none."""
        if request.images and not self.images:
            return Missing(Reason.REFUSED, f"judge {self.name!r} was built with images=False and got an image")
        if lacks_image(request):
            return Missing(Reason.NO_IMAGE, f"{request.task}: got no image")
        chat = render(request)
        try:
            conversation = messages(chat, request.images)
        except OSError as error:
            return Missing(Reason.NO_IMAGE, str(error))
        try:
            sampling = self._sampling(request, chat)
            (sent,) = self._llm.enqueue_chat(
                conversation, sampling, use_tqdm=False, chat_template_kwargs=self._template
            )
        except Exception as error:  # noqa: BLE001  one request must not sink the others
            return _failed(error)
        return str(sent)

    def _wait(self, sent: Sequence[str]) -> Sequence[RequestOutput | Missing]:
        """What the engine made of the requests, in their order."""
        if not sent:
            return []
        try:
            # sorted by age; before ours may come what somebody else left in the queue
            outputs: list[RequestOutput] = self._finished()[-len(sent) :]
            if len(outputs) < len(sent):
                raise RuntimeError(f"{len(outputs)} outputs of {len(sent)} requests")
        except Exception as error:  # noqa: BLE001  a failed judge is Missing, not an exception
            # a living engine would run them with the next batch; a dead one cannot be told
            with contextlib.suppress(Exception):
                self._llm.llm_engine.abort_request(list(sent), internal=True)
            return [Missing(Reason.SERVER, f"{type(error).__name__}: {error}"[:500])] * len(sent)
        return outputs

    def _finished(self) -> list[RequestOutput]:
        """Outputs of all that the engine was given. vLLM alone would wait for ever if the engine's process died meanwhile.

        Raises:
            RuntimeError: it died.
        """
        resources = getattr(self._llm.llm_engine.engine_core, "resources", None)
        if resources is None:  # the engine runs in this very thread
            return list(self._llm.wait_for_completion(use_tqdm=False))
        outputs: Future[list[RequestOutput]] = Future()

        def wait() -> None:
            try:
                outputs.set_result(self._llm.wait_for_completion(use_tqdm=False))
            except BaseException as error:  # noqa: BLE001  handed on
                outputs.set_exception(error)

        threading.Thread(target=wait, name="capreward-vllm", daemon=True).start()
        while not futures.wait([outputs], timeout=LIVENESS_SECONDS).done:
            if resources.engine_dead:
                raise RuntimeError("the process of vLLM's engine died")
        return outputs.result()

    def _sampling(self, request: Request, chat: Chat) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        temperature, seed = request.sampling.temperature, request.sampling.seed
        form, length = None, self.max_tokens
        if request.task in CHOICES and not temperature:
            tokens = [token for each in self._letters[: len(request.options)] for token in each]
            return SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=tokens)
        if request.task in CHOICES:
            form, length = StructuredOutputsParams(choice=list(LETTERS[: len(request.options)])), 4
        elif chat.schema is not None:
            form = StructuredOutputsParams(json=chat.schema)
        return SamplingParams(temperature=temperature, seed=seed, max_tokens=length, structured_outputs=form)

    def _read(self, request: Request, output: RequestOutput | Missing) -> Reply | Missing:
        if isinstance(output, Missing):
            return output
        completion = output.outputs[0]
        self.usage.input_tokens += len(output.prompt_token_ids or ())
        self.usage.output_tokens += len(completion.token_ids)
        if completion.finish_reason in ("abort", "error"):
            return Missing(Reason.SERVER, f"vLLM ended the request by {completion.finish_reason}")
        if request.task in CHOICES and not request.sampling.temperature:
            first = completion.logprobs[0] if completion.logprobs else {}
            mass = [sum(math.exp(first[token].logprob) for token in each if token in first) for each in self._letters]
            return from_letters(request, dict(zip(LETTERS, mass, strict=True)), completion.text)
        if completion.finish_reason == "length":
            text, count = completion.text, len(completion.token_ids)
            return Missing(Reason.TRUNCATED, f"no end within {count} tokens: ...{text[-100:]!r}", text)
        return parse(request, completion.text)

    def _letter_tokens(self) -> list[set[int]]:
        """For each letter the tokens that spell it: alone, after a space, on a new line."""
        tokenizer = self._llm.get_tokenizer()
        tokens = []
        for letter in LETTERS:
            last = {tokenizer.encode(f"{before}{letter}", add_special_tokens=False)[-1] for before in ("", " ", "\n")}
            tokens.append({int(token) for token in last if tokenizer.decode([token]).strip() == letter})
            if not tokens[-1]:
                raise InputError(f"{self.name}: its tokenizer has no token for the letter {letter}")
        return tokens


def _failed(error: Exception) -> Missing:
    """Why a request was not taken."""
    if any(words in str(error) for words in TOO_LONG):
        reason = Reason.TRUNCATED
    else:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        reason = Reason.REFUSED if kinds & TURNED_DOWN else Reason.SERVER
    return Missing(reason, f"{type(error).__name__}: {error}"[:500])
