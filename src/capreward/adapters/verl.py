"""A suite as the reward of verl 0.9: the function that verl's reward loop calls, and the settings that name it.

verl calls the function once a rollout and keeps what it returns; `capreward.adapters.verl_plugin` makes the advantages of that
in verl's trainer. This module imports nothing of verl. docs/verl.md has the whole of it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from capreward.adapters.batches import has_scored, with_none
from capreward.coroutines import start
from capreward.data import items_of
from capreward.errors import ComponentError, InputError
from capreward.records import Rollout
from capreward.scoring import ScoreTable
from capreward.suite import RewardSuite

PLUGIN = "capreward.adapters.verl_plugin"
"""What the environment variable VERL_USE_EXTERNAL_MODULES has to name in every process of verl."""
TAKEN = {"score", "missing", "why_missing"} | {"acc", "pred", "reward", "uid", "index"}
TAKEN |= {"data_source", "reward_model", "extra_info", "raw_prompt"}
"""Keys beside the components', ours and verl's: no component may be called so."""

MODES = ("sync", "colocate_async", "separate_async")
"""Of verl's default trainer."""

log = logging.getLogger("capreward")


def score_function(
    make_suite: Callable[[], RewardSuite], *, columns: Mapping[str, str] | None = None
) -> Callable[..., Awaitable[dict[str, Any]]]:
    """The function for verl's `reward.custom_reward_function`, to be kept in a file of your own.

    Its `extra_info`, a column of verl's dataset, holds the fields of `Item`; other keys are left alone.
    It returns, of one rollout:

    - `score`: `ScoreTable.total`, in [0, 1]; 0.0 where nothing could be scored, since verl needs a number. For reading:
      the advantages are made of the components.
    - each component by its name: its value after the gates; None where it is missing.
    - `raw.NAME` of each component that has a gate: its score before the gates, None where there is none.
    - `missing.NAME` of each component: the reason (`capreward.Reason`), or "".
    - `missing`: how many components have no value, and `why_missing`: which and why, or "".

    None stands for missing, and not NaN, since verl's validation metrics leave None out of their means.

    A component that raises makes the rollout's scores missing, with a line in the log; until something has been scored in
    this process it raises ComponentError, since then the mistake is in the set-up.

    Args:
        make_suite: called once a process, at the first rollout: verl scores in several processes, each with its own judges. The
            suite's `max_missing` is not looked at, since each call sees one rollout.
        columns: field of `Item` -> key of `extra_info`, where they differ. When given, exactly these keys are read.

    The function raises InputError for an `extra_info` that is no item, for a component called like one of `TAKEN`, for a suite
    with a ledger, and inside a verl that was not told of the plugin.

    >>> compute_score = score_function(make_suite)     # doctest: +SKIP
    """
    suite: RewardSuite | None = None
    worked = False

    async def compute_score(
        *, solution_str: str, extra_info: Mapping[str, Any] | None = None, **_: Any
    ) -> dict[str, Any]:
        nonlocal suite, worked
        if suite is None:
            if "verl" in sys.modules and PLUGIN not in sys.modules:
                raise InputError(
                    f"verl's own GDPO takes no missing scores: got a verl without {PLUGIN}, expected its name in the environment "
                    "variable VERL_USE_EXTERNAL_MODULES; start verl with the settings that `capreward verl-overrides` prints"
                )
            made = make_suite()
            if made.ledger:
                raise InputError(
                    "score_function: got a suite with a ledger, expected one without: verl hands over a rollout a call, so "
                    "that the ledger would know neither steps nor groups"
                )
            _check_names(made)
            suite = made
        rollout = Rollout(item=items_of([extra_info or {}], columns=columns)[0], caption=solution_str)
        table, why = None, ""
        try:
            # in capreward's own loop, where the judges' connections live; verl may call from several
            table = await asyncio.wrap_future(start(suite.ascore([rollout], part=True)))
        except ComponentError as error:
            if not worked:
                raise
            why = str(error)
        worked = worked or (table is not None and has_scored(suite, table, [rollout]))
        answer = _answer(suite, table, why)
        if answer["missing"] == len(suite.names):
            log.warning("item %r: no score: %s", rollout.item.id, answer["why_missing"])
        return answer

    compute_score.make_suite = make_suite  # type: ignore[attr-defined]  # for `capreward verl-overrides`
    return compute_score


def verl_overrides(
    suite: RewardSuite, *, path: str | Path, name: str = "compute_score", v1: bool = True, mode: str = "sync"
) -> list[str]:
    """The settings of verl's command line for a suite, in Hydra's grammar, such as ``algorithm.adv_estimator=gdpo``.

    Args:
        suite: its components and their weights are named in the settings.
        path: of the file that holds the score function.
        name: of the score function in it.
        v1: for verl's default trainer; False for the one before it (`trainer.use_v1=false`).
        mode: of the default trainer: "sync", "colocate_async" or "separate_async".

    Raises:
        InputError: a component called as something that verl has, or an unknown mode.
    """
    if mode not in MODES:
        raise InputError(f"mode: got {mode!r}, expected one of {list(MODES)}")
    _check_names(suite)
    keys = ",".join(_quoted(name) for name in suite.names)
    weights = ",".join(str(float(weight)) for weight in suite.weights)
    return [
        f"reward.custom_reward_function.path={_quoted(str(Path(path).absolute()))}",
        f"reward.custom_reward_function.name={name}",
        "reward.reward_manager.name=gdpo",
        "algorithm.adv_estimator=gdpo",
        f"+algorithm.gdpo_reward_keys=[{keys}]",
        f"+algorithm.gdpo_reward_weights=[{weights}]",
        f"+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES={PLUGIN}",
        *(("trainer.use_v1=true", f"trainer.v1.trainer_mode=capreward_{mode}") if v1 else ("trainer.use_v1=false",)),
    ]


def suite_in(path: str | Path, name: str = "compute_score") -> RewardSuite:
    """The suite of the score function that is called `name` in a file, made anew.

    Raises:
        InputError: no such file, or no score function of that name in it. What the file itself raises is passed on.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location("capreward_verl_suite", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make_suite = getattr(getattr(module, name, None), "make_suite", None)
    if make_suite is None:
        raise InputError(f"{path}: no score function {name!r}; expected `{name} = score_function(make_suite)` in it")
    suite: RewardSuite = make_suite()
    return suite


def _answer(suite: RewardSuite, table: ScoreTable | None, why: str) -> dict[str, Any]:
    """What the score function returns: always the same keys in the same order, as verl wants them."""
    nothing = np.full(len(suite.names), np.nan)
    values = dict(zip(suite.names, with_none(nothing if table is None else table.values[0]), strict=True))
    raw = dict(zip(suite.names, with_none(nothing if table is None else table.raw[0]), strict=True))
    total = None if table is None else with_none(table.total())[0]
    missing = {} if table is None else {suite.names[k]: cell for (_, k), cell in table.missing.items()}
    gated = {gate.target for gate in suite.gates}
    return {
        "score": total or 0.0,
        **values,
        **{f"raw.{name}": score for name, score in raw.items() if name in gated},
        **{f"missing.{name}": str(missing[name].reason) if name in missing else "" for name in suite.names},
        "missing": sum(value is None for value in values.values()),
        "why_missing": why or "; ".join(f"{name}: {cell.reason}: {cell.detail}" for name, cell in missing.items()),
    }


def _check_names(suite: RewardSuite) -> None:
    if taken := sorted(TAKEN & set(suite.names)):
        raise InputError(f"component {taken[0]!r}: verl has that name already; expected none of {sorted(TAKEN)}")


def _quoted(text: str) -> str:
    """In Hydra's grammar, where a bare `1` or `true` would be no text."""
    return "'" + text.replace("'", r"\'") + "'"
