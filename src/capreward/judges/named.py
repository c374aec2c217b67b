"""A judge from the text that a command line or a configuration file names it by."""

from __future__ import annotations

from pathlib import Path

from capreward.errors import InputError
from capreward.judges.base import Judge

KINDS = ("lite", "openai:MODEL", "local:MODEL", "vllm:MODEL")


def make_judge(
    name: str,
    *,
    base_url: str | None = None,
    images: bool = False,
    concurrency: int | None = None,
    prices: tuple[float, float] | None = None,
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
        cache: file in which every reply is kept, so that nothing is asked twice.

    Raises:
        InputError: an unknown kind of judge, or an option that it does not have.
        MissingExtraError: what it needs is not installed.
    """
    kind, colon, model = name.partition(":")
    if kind not in ("lite", "openai", "local", "vllm") or bool(model) != (kind != "lite") or bool(colon) != bool(model):
        raise InputError(f"judge: got {name!r}, expected one of {', '.join(KINDS)}")
    of_a_server = {"base_url": base_url, "concurrency": concurrency, "prices": prices}
    given = [option for option, value in of_a_server.items() if value is not None and kind != "openai"]
    given += ["images"] * (images and kind in ("lite", "local"))
    if given:
        raise InputError(f"judge {name!r}: got {' and '.join(given)}, which this kind of judge does not have")
    judge: Judge
    match kind:
        case "lite":
            from capreward.judges.lite import LiteJudge

            judge = LiteJudge()
        case "openai":
            from capreward.judges.openai import OpenAIJudge
            from capreward.judges.wrap import Limited, Retried

            server = OpenAIJudge(model, base_url=base_url, images=images, prices=prices or (0.0, 0.0))
            judge = Retried(Limited(server, 64 if concurrency is None else concurrency))
        case "local":
            from capreward.judges.local import LocalJudge

            judge = LocalJudge(model)
        case _:
            from capreward.judges.vllm import VLLMJudge

            judge = VLLMJudge(model, images=images)
    if cache is None:
        return judge
    from capreward.judges.cache import Cached

    return Cached(judge, cache)
