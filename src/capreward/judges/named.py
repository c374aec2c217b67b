"""A judge from the text that a command line or a configuration file names it by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capreward.errors import InputError, require_positive
from capreward.judges.base import Judge
from capreward.judges.wrap import Limited, Retried

KINDS = ("lite", "openai:MODEL", "local:MODEL", "vllm:MODEL")


def make_judge(
    name: str,
    *,
    base_url: str | None = None,
    images: bool = False,
    concurrency: int | None = None,
    prices: tuple[float, float] | None = None,
    timeout: float | None = None,
    max_tokens: int | None = None,
    cache: Path | None = None,
) -> Judge:
    """The judge called `name`, ready for use: retried and limited if it is on a server, cached if a file is given.

    Args:
        name: ``lite`` (no language model), ``openai:MODEL`` (a server that speaks OpenAI's protocol), ``local:MODEL``
            (transformers, in this process) or ``vllm:MODEL`` (vLLM, in this process); MODEL is a name or a folder.
        base_url: of the server, for `openai`; such as ``http://127.0.0.1:8000/v1``.
        images: whether the model sees images, for `openai` and `vllm`; `local` finds out by itself.
        concurrency: requests at once, for `openai`; 64 when left out.
        prices: money for a million input and output tokens, for `openai`.
        timeout: seconds for one reply, for `openai`; 60 when left out.
        max_tokens: longest reply that is no choice, for a language model; the judge's own default when left out.
        cache: file in which every reply is kept, so that nothing is asked twice.

    Raises:
        InputError: an unknown kind of judge, an option that it does not have, or a number that is not above 0.
        MissingExtraError: what it needs is not installed.
    """
    kind, colon, model = name.partition(":")
    if kind not in ("lite", "openai", "local", "vllm") or bool(model) != (kind != "lite") or bool(colon) != bool(model):
        raise InputError(f"judge: got {name!r}, expected one of {', '.join(KINDS)}")
    of_a_server = {"base_url": base_url, "concurrency": concurrency, "prices": prices, "timeout": timeout}
    given = [option for option, value in of_a_server.items() if value is not None and kind != "openai"]
    given += ["images"] * (images and kind in ("lite", "local"))
    given += ["max_tokens"] * (max_tokens is not None and kind == "lite")
    if given:
        raise InputError(f"judge {name!r}: got {' and '.join(given)}, which this kind of judge does not have")
    require_positive(f"judge {name!r}", timeout=timeout, max_tokens=max_tokens)
    limits: dict[str, Any] = {"timeout": timeout, "max_tokens": max_tokens}
    limits = {option: value for option, value in limits.items() if value is not None}
    judge: Judge
    match kind:
        case "lite":
            from capreward.judges.lite import LiteJudge

            judge = LiteJudge()
        case "openai":
            from capreward.judges.openai import OpenAIJudge

            server = OpenAIJudge(model, base_url=base_url, images=images, prices=prices or (0.0, 0.0), **limits)
            judge = Retried(Limited(server, 64 if concurrency is None else concurrency))
        case "local":
            from capreward.judges.local import LocalJudge

            judge = LocalJudge(model, **limits)
        case _:
            from capreward.judges.vllm import VLLMJudge

            judge = VLLMJudge(model, images=images, **limits)
    if cache is None:
        return judge
    from capreward.judges.cache import Cached

    return Cached(judge, cache)
