"""OpenAIJudge: any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, hosted ones."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from capreward.errors import InputError, missing_extra
from capreward.judges.base import CHOICES, SEEING, Reply, Request, Task, Usage
from capreward.judges.chat import LETTERS, lacks_image, messages, render
from capreward.judges.parse import from_letters, parse
from capreward.missing import Missing, Reason

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SECRET = 8
"""Characters from which on a key is taken for one; shorter ones are words that a reply may hold, such as "none" or "EMPTY"."""


class OpenAIJudge:
    """A language model behind an OpenAI-compatible server.

    Choices are read from the probabilities of the first token (`top_logprobs`) where the server gives them, from the
    letter that it wrote where not, or where the request asks for a sampled draw (temperature above 0). A description is plain
    text. All else is structured output by JSON schema, checked for completeness. It retries nothing and limits nothing; wrap it:
    ``Cached(Retried(Limited(OpenAIJudge(...), 64)), path)``.

    Args:
        model: as the server calls it.
        base_url: such as ``http://127.0.0.1:8000/v1``; the environment's OPENAI_BASE_URL, then OpenAI's, when left out. No place
            for a key: HTTP clients log addresses.
        api_key: the environment's OPENAI_API_KEY when left out. It appears in no name, error, reply, log or cache, also where a
            server quotes it.
        revision: of the model, where the server's name does not say; part of `name` and so of every cache key.
        images: whether the model sees images; with it, the tasks VERIFY, LOOK and DESCRIBE are offered.
        max_tokens: longest reply that is no choice; one that hits it is Missing(truncated).
        timeout: seconds for one call.
        extra_body: further fields of every request, such as ``{"chat_template_kwargs": {"enable_thinking": False}}``.
        guided_choice: constrain choices to the letters by vLLM's `structured_outputs`, for models too small to obey.
        prices: money for a million input and output tokens, for `usage.money`.

    Raises:
        MissingExtraError: the extra `openai` is not installed.
        InputError: a key that no HTTP header can hold.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        revision: str = "",
        images: bool = False,
        max_tokens: int = 2048,
        timeout: float = 60.0,
        extra_body: Mapping[str, Any] | None = None,
        guided_choice: bool = False,
        prices: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        try:
            import openai  # noqa: F401  should show at construction
        except ImportError as error:
            raise missing_extra("OpenAIJudge", "openai", error) from error
        self.model, self.images = model, images
        self.name = f"openai/{model}{'@' * bool(revision)}{revision}"
        self.tasks = frozenset(Task) if images else frozenset(Task) - SEEING
        self.usage = Usage()
        self.max_tokens, self.extra_body, self.guided_choice, self.prices = (
            max_tokens,
            extra_body,
            guided_choice,
            prices,
        )
        self._key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip() or "none"
        if not (self._key.isascii() and self._key.isprintable()):
            # the HTTP client would quote it in its complaint
            raise InputError("OpenAIJudge: the API key holds characters that no HTTP header can; is it a key?")
        self.base_url, self.timeout = base_url, timeout
        # connections belong to the event loop that opened them
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncOpenAI] = weakref.WeakKeyDictionary()

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        """One reply a request; all are sent at once."""
        self.usage.requests += len(requests)
        return list(await asyncio.gather(*(self._ask(request) for request in requests)))

    async def _ask(self, request: Request) -> Reply | Missing:
        import openai

        if request.images and not self.images:
            return self._failed(Reason.REFUSED, f"judge {self.name!r} was built with images=False and got an image")
        if lacks_image(request):
            return self._failed(Reason.NO_IMAGE, f"{request.task}: got no image")
        try:
            body = self._body(request)
        except OSError as error:
            return self._failed(Reason.NO_IMAGE, str(error))
        self.usage.calls += 1
        started = time.perf_counter()
        try:
            completion = await self._client().chat.completions.create(**body)
        except openai.APITimeoutError:
            return self._failed(Reason.TIMEOUT, f"no answer within {self.timeout:g} s")
        except openai.APIStatusError as error:
            refused = 400 <= error.status_code < 500 and error.status_code not in (408, 409, 425, 429)
            return self._failed(
                Reason.REFUSED if refused else Reason.SERVER, f"HTTP {error.status_code}: {error.message}"
            )
        except openai.APIConnectionError as error:
            return self._failed(Reason.SERVER, f"no connection ({error.__cause__ or error})")
        except (openai.OpenAIError, ValueError) as error:
            return self._failed(Reason.UNPARSEABLE, f"no completion ({type(error).__name__}: {error})")
        finally:
            self.usage.seconds += time.perf_counter() - started
        self._count(completion)
        reply = self._read(request, completion)
        self.usage.failures += isinstance(reply, Missing)
        return reply

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            # a client of its own making would, when collected, close itself on whatever loop runs then
            self._clients[loop] = AsyncOpenAI(
                api_key=self._key,
                base_url=self.base_url,
                timeout=self.timeout,
                max_retries=0,
                http_client=DefaultAsyncHttpxClient(),
            )
        return self._clients[loop]

    def _body(self, request: Request) -> dict[str, Any]:
        chat = render(request)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages(chat, request.images),
            "temperature": request.sampling.temperature,
            "extra_body": dict(self.extra_body or {}),
        }
        if request.sampling.seed is not None:
            body["seed"] = request.sampling.seed
        if request.task in CHOICES:
            body |= {"max_tokens": 4, "logprobs": True, "top_logprobs": 20}
            if self.guided_choice:
                body["extra_body"]["structured_outputs"] = {"choice": list(LETTERS[: len(request.options)])}
        else:
            body["max_tokens"] = self.max_tokens
        if chat.schema is not None:
            schema = {"name": request.task.value, "schema": chat.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _read(self, request: Request, completion: Any) -> Reply | Missing:
        """The reply in a completion. Servers differ in what they leave out, so nothing is taken for granted."""
        choices = getattr(completion, "choices", None)
        if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
            return Missing(Reason.UNPARSEABLE, "the server answered without a message")
        choice = choices[0]
        said = choice.message.content or ""
        if not isinstance(said, str):
            return Missing(Reason.UNPARSEABLE, f"the server answered with a {type(said).__name__}, expected a text")
        # some servers complain of the key where the reply should be
        text = self._without_key(said)
        if choice.finish_reason == "content_filter" or getattr(choice.message, "refusal", None):
            return Missing(Reason.REFUSED, self._safe(getattr(choice.message, "refusal", None) or "content filter"))
        if request.task not in CHOICES:
            if choice.finish_reason == "length":
                return Missing(Reason.TRUNCATED, f"no end within {self.max_tokens} tokens: ...{text[-100:]!r}", text)
            return parse(request, text)
        first = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
        if request.sampling.temperature or not first:
            return parse(request, text)
        # servers mark what cannot be sampled with -9999 or so; it counts for nothing
        return from_letters(request, {top.token: math.exp(top.logprob) for top in first[0].top_logprobs or ()}, text)

    def _count(self, completion: Any) -> None:
        usage = getattr(completion, "usage", None)
        read, written = (getattr(usage, name, None) or 0 for name in ("prompt_tokens", "completion_tokens"))
        self.usage.input_tokens += read
        self.usage.output_tokens += written
        per_input, per_output = self.prices
        self.usage.money += (read * per_input + written * per_output) / 1e6

    def _failed(self, reason: Reason, detail: str) -> Missing:
        self.usage.failures += 1
        return Missing(reason, self._safe(detail)[:500])

    def _safe(self, text: str) -> str:
        """An error's text without the key: servers quote it, in whole or in part."""
        return re.sub(r"\bsk-\S+", "[key]", self._without_key(text))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= SECRET else text
