from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import llava

from capreward import Cached, Limited, LiteJudge, LocalJudge, OpenAIJudge, Retried
from capreward.errors import InputError, MissingExtraError
from capreward.judges.named import make_judge


def test_lite() -> None:
    assert isinstance(make_judge("lite"), LiteJudge)


def test_a_server_is_limited_and_retried() -> None:
    judge = make_judge(
        "openai:qwen/qwen:7b",
        base_url="http://127.0.0.1:1/v1",
        images=True,
        concurrency=3,
        prices=(1, 2),
        timeout=5,
        max_tokens=300,
    )
    assert isinstance(judge, Retried)
    assert isinstance(judge.judge, Limited)
    assert judge.judge.concurrency == 3
    server = judge.judge.judge
    assert isinstance(server, OpenAIJudge)
    assert (server.model, server.base_url, server.images, server.prices) == (
        "qwen/qwen:7b",
        "http://127.0.0.1:1/v1",
        True,
        (1, 2),
    )
    assert (server.timeout, server.max_tokens) == (5, 300)


def test_a_cache_lies_outermost(tmp_path: Path) -> None:
    judge = make_judge("openai:m", cache=tmp_path / "replies.sqlite")
    assert isinstance(judge, Cached)
    assert isinstance(judge.judge, Retried)
    assert judge.path == tmp_path / "replies.sqlite"


def test_a_folder_is_a_local_model(tmp_path: Path) -> None:
    model, processor = llava()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    judge = make_judge(f"local:{tmp_path}", max_tokens=77)
    assert isinstance(judge, LocalJudge)
    assert judge._max_tokens == 77
    assert judge.images


def test_vllm_needs_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"capreward\[vllm\]"):
        make_judge("vllm:m")


@pytest.mark.parametrize("name", ["", "gpt", "openai", "openai:", "lite:", "lite:x", "local"])
def test_unknown(name: str) -> None:
    with pytest.raises(InputError, match=r"expected one of lite, openai:MODEL, local:MODEL, vllm:MODEL"):
        make_judge(name)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("lite", {"base_url": "http://127.0.0.1:1/v1"}, "base_url"),
        ("local:m", {"images": True, "concurrency": 2}, "concurrency and images"),
        ("vllm:m", {"prices": (1.0, 2.0), "timeout": 5.0}, "prices and timeout"),
        ("lite", {"max_tokens": 5}, "max_tokens"),
    ],
)
def test_an_option_that_would_do_nothing(name: str, options: Any, named: str) -> None:
    with pytest.raises(InputError, match=f"got {named}, which"):
        make_judge(name, **options)


@pytest.mark.parametrize("options", [{"timeout": 0.0}, {"max_tokens": -1}])
def test_numbers_are_above_0(options: Any) -> None:
    [name] = options
    with pytest.raises(InputError, match=f"judge 'openai:m': got {name}=.*expected a number > 0"):
        make_judge("openai:m", **options)
