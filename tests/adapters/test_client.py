from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters.served import Told, gated, serving, told
from judges import chat_server

from capreward import Item, RewardSuite, Rollout, gdpo
from capreward.adapters.client import Client
from capreward.errors import InputError, ServerError

CAPTIONS = ["0.1 0.9", "0.7 m", "0.30000000000000004 0.2", "", "m m", "1 1"]


def rollouts(*captions: str, item: Item | None = None, **fields: Any) -> list[Rollout]:
    return [Rollout(item=item or Item(id="x"), caption=caption, **fields) for caption in captions]


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPREWARD_TOKEN", raising=False)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.mark.parametrize("estimator", ["gdpo", "dr_grpo"])
def test_the_same_as_the_suite_in_process(estimator: str) -> None:
    batch = rollouts(*CAPTIONS, item=Item(id="cup", references=("two words",), metadata={"day": float("nan")}))
    with serving(gated()) as url:
        answer = Client(url).score(batch, estimator=estimator)
    table = gated().score(batch)
    assert [one.advantage for one in answer.rollouts] == table.advantages(estimator).tolist()
    values = [[one.scores[name].value for name in answer.components] for one in answer.rollouts]
    np.testing.assert_array_equal(np.array(values, float), table.values)
    assert answer.missing == table.missing_by_reason()


def test_items_travel_whole_and_once(tmp_path: Path) -> None:
    class Sees(Told):
        async def score(self, rollouts: Sequence[Rollout]) -> Any:
            self.seen = list(rollouts)
            return await super().score(rollouts)

    (tmp_path / "x.png").write_bytes(b"no picture")
    fields: dict[str, Any] = {
        "references": ("y",),
        "facts": ({"text": "z", "true": False},),
        "questions": ({"text": "q", "options": ("a", "b"), "answer": 1},),
        "rubric": ({"text": "r", "weight": 2.0},),
        "metadata": {"kind": "photo"},
    }
    item = Item(id="x", image=tmp_path / "x.png", **fields)
    sees = Sees("sees", 0)
    with serving(RewardSuite({"sees": sees})) as url:
        Client(url).score(rollouts("0.5", "0.6", item=item, metadata={"step": 1}))
    whole = item.model_copy(update={"image": b"no picture"})
    expected = rollouts("0.5", "0.6", item=whole, metadata={"step": 1})
    assert [rollout.model_dump() for rollout in sees.seen] == [rollout.model_dump() for rollout in expected]
    assert sees.seen[0].item is sees.seen[1].item


def test_waits_for_the_group_of_several_clients(url: str) -> None:
    captions = ["0.1 0.9", "0.4 0.2", "0.5 0.1"]

    async def all_of_them() -> list[Any]:
        calls = [Client(url).ascore(rollouts(caption), group_size=3) for caption in captions]
        return await asyncio.gather(*calls)

    got = [answer.rollouts[0].advantage for answer in asyncio.run(all_of_them())]
    values = [[float(word) for word in caption.split()] for caption in captions]
    np.testing.assert_allclose(got, gdpo(np.array(values), [0, 0, 0], whiten=False), rtol=1e-12)


def test_inside_a_running_loop(url: str) -> None:
    async def notebook() -> int:
        return len(Client(url).score(rollouts("0.5")).rollouts)

    assert asyncio.run(notebook()) == 1


def test_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(token="open sesame") as url:
        assert Client(url, token="open sesame").score(rollouts("0.5")).components
        with pytest.raises(InputError, match="401 wrong or no token") as error:
            Client(url, token="close sesame").score(rollouts("0.5"))
        assert "sesame" not in str(error.value) + repr(Client(url, token="close sesame"))
        monkeypatch.setenv("CAPREWARD_TOKEN", "open sesame")
        assert Client(url).score(rollouts("0.5")).components


def test_a_token_that_no_header_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(token="open sesame") as url:
        monkeypatch.setenv("CAPREWARD_TOKEN", "open sesame\n")  # as a file has it
        assert Client(url).score(rollouts("0.5")).components
    for token in ("sésame", "open\nsesame"):
        with pytest.raises(InputError, match="token: got an empty one or one with special") as error:
            Client(url, token=token)
        assert "sesame" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8900", "ftp://x", "http://", "http://[::1", "http://x:99999", "http://any:sesame@x:8900"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InputError, match="url: expected an address such as http://127") as error:
        Client(url)
    assert "sesame" not in str(error.value)


def test_what_the_server_refuses(url: str) -> None:
    with pytest.raises(InputError, match=r"/score: 422 rollouts\[1\]: id 'a' is taken by rollouts\[0\]"):
        Client(url).score(rollouts("0.5", "0.6", id="a"))
    with pytest.raises(InputError, match="422 estimator: expected one of"):
        Client(url).score(rollouts("0.5"), estimator="ppo")
    with pytest.raises(InputError, match="404 Not Found"):
        Client(f"{url}/elsewhere").score(rollouts("0.5"))


def test_what_it_refuses_itself(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"item 'x': image: got '.*gone.png', which cannot be read"):
        Client(url).score(rollouts("0.5", item=Item(id="x", image=tmp_path / "gone.png")))
    with pytest.raises(InputError, match="two different items have the id 'x'"):
        Client(url).score(rollouts("0.5") + rollouts("0.5", item=Item(id="x", references=("y",))))
    with pytest.raises(InputError, match="got metadata that JSON cannot hold"):
        Client(url).score(rollouts("0.5", metadata={"text": "half a pair: \ud800"}))
    with pytest.raises(InputError, match="Client: got attempts=0, expected a number > 0"):
        Client(url, attempts=0)


def test_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Starts(Told):
        calls = 0

        async def score(self, rollouts: Sequence[Rollout]) -> Any:
            self.calls += 1
            if self.calls < 3:
                raise ConnectionError("the model is still loading")
            return await super().score(rollouts)

    monkeypatch.setattr("random.uniform", lambda *_: 0.0)
    component = Starts("starts", 0)
    with serving(RewardSuite({"starts": component})) as url:
        with pytest.raises(ServerError, match=r"no answer in 2 attempts; the last: 503 component .*still loading"):
            Client(url, attempts=2).score(rollouts("0.5"))
        assert Client(url).score(rollouts("0.5")).rollouts[0].total == 0.5
    with pytest.raises(ServerError, match="no answer in 4 attempts; the last: ConnectError"):
        Client(url).score(rollouts("0.5"))


def test_a_server_too_slow() -> None:
    with serving(told()) as url, pytest.raises(ServerError, match="ReadTimeout"):
        Client(url, timeout=0.2, attempts=1).score(rollouts("z"))


def test_somebody_elses_answer(url: str) -> None:
    with pytest.raises(InputError, match="405 Method Not Allowed"):
        asyncio.run(Client(url)._post("/docs", {}))
    page = (503, "<html>The proxy is asleep.</html>")
    with (
        chat_server.serving(lambda _: page) as proxy,
        pytest.raises(ServerError, match="503 <html>The proxy is asleep"),
    ):
        Client(proxy.url, attempts=1).score(rollouts("0.5"))


def test_needs_no_server() -> None:
    code = """
import sys
for package in ("fastapi", "starlette", "uvicorn", "prometheus_client", "torch"):
    sys.modules[package] = None
from capreward.adapters.client import Client
Client("http://127.0.0.1:8900")
sys.modules["httpx2"] = None
try:
    Client("http://127.0.0.1:8900")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "Client needs httpx2, which is not installed; run: pip install 'capreward[server]'\n", (
        done.stderr
    )
