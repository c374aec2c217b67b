"""The score function and the settings for verl, without verl; tests/in_verl has them in verl's own hands."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeComponent, FakeGate

from capreward import Missing, Reason, RewardSuite
from capreward.adapters.verl import MODES, PLUGIN, TAKEN, score_function, suite_in, verl_overrides
from capreward.cli import main
from capreward.errors import ComponentError, InputError
from capreward.ledger import LedgerWriter

DOWN = Missing(Reason.SERVER, "server is down")

FILE = """
from capreward import RewardSuite, Score
from capreward.adapters.verl import score_function

class Short:
    name = "short"

    async def score(self, rollouts):
        return [Score(1 / (1 + len(rollout.caption))) for rollout in rollouts]

def make_suite():
    return RewardSuite({"short": Short(), "even shorter": Short()}, weights={"short": 0.5})

reward = score_function(make_suite)
"""


def called(score: Callable[..., Any], caption: str, extra_info: Any = None) -> dict[str, Any]:
    """As verl calls it, each time in another loop."""
    done: dict[str, Any] = asyncio.run(
        score(
            data_source="captions",
            solution_str=caption,
            ground_truth="",
            extra_info=extra_info,
            reward_router_address=None,
        )
    )
    return done


def test_of_a_rollout() -> None:
    suite = RewardSuite(
        {"a": FakeComponent(0.5), "b": FakeComponent(1.0), "c": FakeComponent(DOWN)},
        weights={"b": 3},
        gates=[FakeGate("b", 0.5)],
    )
    assert called(score_function(lambda: suite), "a cup") == {
        "score": (0.5 + 3 * 0.5) / 4,
        "a": 0.5,
        "b": 0.5,
        "c": None,
        "raw.b": 1.0,
        "missing.a": "",
        "missing.b": "",
        "missing.c": "server",
        "missing": 1,
        "why_missing": "c: server: server is down",
    }


def test_the_item_comes_from_extra_info() -> None:
    seen: list[Any] = []

    def keep(rollout: Any) -> float:
        seen.append(rollout.item)
        return 1.0

    def make_suite() -> RewardSuite:
        return RewardSuite({"a": FakeComponent(keep)})

    row = {"id": "cup", "image": b"bytes", "references": np.array(["A cup."], object), "rubric": None, "num_turns": 2}
    called(score_function(make_suite), "a cup", row)
    called(score_function(make_suite, columns={"references": "captions"}), "a cup", {"captions": ["A mug."]})
    called(score_function(make_suite), "a cup")
    assert [item.references for item in seen] == [("A cup.",), ("A mug.",), ()]
    assert (seen[0].id, seen[0].image) == ("cup", b"bytes")


def test_the_suite_is_made_once_and_late() -> None:
    made: list[RewardSuite] = []

    def make_suite() -> RewardSuite:
        made.append(RewardSuite({"a": FakeComponent(0.5)}))
        return made[-1]

    score = score_function(make_suite)
    assert not made
    for _ in range(2):
        called(score, "a cup")
    assert len(made) == 1


def test_a_component_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    def verdict(rollout: Any) -> Any:
        if "crash" in rollout.caption:
            raise ConnectionError("gone")
        return DOWN if "down" in rollout.caption else 0.5

    score = score_function(lambda: RewardSuite({"a": FakeComponent(verdict)}))
    for caption in ("crash", "down", "crash", "", "crash"):  # nothing has worked yet
        if caption == "crash":
            with pytest.raises(ComponentError, match="component 'a': ConnectionError: gone"):
                called(score, caption)
        else:
            assert called(score, caption)["score"] == 0.0
    assert called(score, "a cup")["a"] == 0.5
    row = called(score, "crash", {"id": "cup"})
    assert (row["score"], row["a"], row["missing"]) == (0.0, None, 1)
    assert list(row) == list(called(score, "a cup"))  # verl's legacy trainer wants the same keys in the same order
    assert "item 'cup': no score: component 'a': ConnectionError: gone" in caplog.text
    with pytest.raises(InputError, match="row 0: Item 'cup': questions"):
        called(score, "a cup", {"id": "cup", "questions": 3})


def test_a_suite_with_a_ledger_is_refused(tmp_path: Path) -> None:
    score = score_function(lambda: RewardSuite({"a": FakeComponent(0.5)}, ledger=LedgerWriter(tmp_path)))
    with pytest.raises(InputError, match="got a suite with a ledger, expected one without"):
        called(score, "A cup.")


def test_a_verl_without_the_plugin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verl", object())
    score = score_function(lambda: RewardSuite({"a": FakeComponent(0.5)}))
    with pytest.raises(InputError, match=rf"got a verl without {PLUGIN}.*VERL_USE_EXTERNAL_MODULES"):
        called(score, "a cup")
    monkeypatch.setitem(sys.modules, PLUGIN, object())
    assert called(score, "a cup")["a"] == 0.5


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_names_that_verl_has_are_refused(name: str) -> None:
    suite = RewardSuite({name: FakeComponent(0.5)})
    with pytest.raises(InputError, match=f"component '{name}': verl has that name already"):
        called(score_function(lambda: suite), "a cup")
    with pytest.raises(InputError, match=f"component '{name}'"):
        verl_overrides(suite, path="reward.py")


def test_settings() -> None:
    suite = RewardSuite({"a": FakeComponent(0.5), "it's b": FakeComponent(0.5)}, weights={"a": 0.25})
    assert verl_overrides(suite, path="/my rewards/reward.py", name="reward", mode="colocate_async") == [
        "reward.custom_reward_function.path='/my rewards/reward.py'",
        "reward.custom_reward_function.name=reward",
        "reward.reward_manager.name=gdpo",
        "algorithm.adv_estimator=gdpo",
        r"+algorithm.gdpo_reward_keys=['a','it\'s b']",
        "+algorithm.gdpo_reward_weights=[0.25,1.0]",
        f"+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES={PLUGIN}",
        "trainer.use_v1=true",
        "trainer.v1.trainer_mode=capreward_colocate_async",
    ]
    legacy = verl_overrides(suite, path="reward.py", v1=False)
    assert legacy[0] == f"reward.custom_reward_function.path='{Path('reward.py').absolute()}'"
    assert legacy[-1] == "trainer.use_v1=false"
    with pytest.raises(InputError, match=r"mode: got 'fast', expected one of \['sync'"):
        verl_overrides(suite, path="reward.py", mode="fast")
    assert set(MODES) == {"sync", "colocate_async", "separate_async"}


class TestCommand:
    """`capreward verl-overrides`."""

    def test_prints_the_settings(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "reward.py"
        file.write_text(FILE)
        assert main(["verl-overrides", f"{file}:reward", "--mode", "separate_async"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed == verl_overrides(suite_in(file, "reward"), path=file, name="reward", mode="separate_async")
        assert "+algorithm.gdpo_reward_keys=['short','even shorter']" in printed
        assert main(["verl-overrides", f"{file}:reward", "--legacy"]) == 0
        assert "trainer.use_v1=false" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("reward.py", "no score function 'compute_score'"),
            ("nowhere.py", "no such file"),
            ("notes.txt", "a Python file"),
        ],
    )
    def test_of_what_is_not_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
    ) -> None:
        (tmp_path / "reward.py").write_text(FILE)
        (tmp_path / "notes.txt").write_text("")
        assert main(["verl-overrides", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
