"""RewardSuite: components, weights and gates, together the reward of a caption."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from capreward.coroutines import run, side_by_side
from capreward.errors import ComponentError, InputError, TooManyMissingError
from capreward.groups import Float
from capreward.judges.base import Judge
from capreward.missing import Missing, Reason
from capreward.progress import progress_bar
from capreward.records import Rollout, count_words
from capreward.scoring import (
    EMPTY,
    Component,
    Gate,
    Recorder,
    Score,
    ScoreTable,
    checked,
    in_order,
    multiply,
    score_component,
    weights_of,
)

log = logging.getLogger("capreward")

CHUNK = 64
"""Rollouts that a component is handed in one call where there is a progress bar to move; calls run side by side."""


class RewardSuite:
    """Scores rollouts on several components, gates them, and tells what is missing.

    Args:
        components: by the name that tables, weights and gates use.
        weights: by name, finite and >= 0; a component that is not named weighs 1. They act after normalisation.
        gates: change a component's scores before normalisation: those that read no other component first, then the others,
            both in this order.
        max_length: captions longer than this score 0 on every component, and no judge is asked about them.
        count: how `max_length` is counted: words by default, `components.tokens(tokenizer)` for the policy's tokens.
        max_missing: largest share of rollouts, in [0, 1], whose score on a component may be missing in one call. Above half
            a warning is logged in any case. Components of weight 0 are not counted.
        ledger: keeps every rollout with its scores and reasons, such as `LedgerWriter("ledger")`.
        spare: do not ask a judge about what a gate has already set to 0 or to Missing. Turn it off to collect
            raw scores for ablations of the gates.

    Raises:
        InputError: unknown component names in `weights` or `gates`, weights that are all zero, numbers out of range.

    >>> suite = RewardSuite({"fluency": Fluency(judge)}, gates=[LengthMask("fluency")])     # doctest: +SKIP
    >>> table = suite.score(rollouts)                                                      # doctest: +SKIP
    >>> table.advantages("gdpo")                                                           # doctest: +SKIP
    """

    def __init__(
        self,
        components: Mapping[str, Component],
        *,
        weights: Mapping[str, float] | None = None,
        gates: Sequence[Gate] = (),
        max_length: int | None = None,
        count: Callable[[str], int] = count_words,
        max_missing: float = 1.0,
        spare: bool = True,
        ledger: Recorder | None = None,
    ) -> None:
        if not isinstance(components, Mapping) or not components:
            raise InputError(f"components: got {components!r}, expected at least one by its name: {{name: component}}")
        if not isinstance(gates, Sequence):
            raise InputError(f"gates: got {gates!r}, expected a list of gates")
        for name, component in components.items():
            if (
                isinstance(component, type)
                or not isinstance(component, Component)
                or not inspect.iscoroutinefunction(component.score)
            ):
                raise InputError(
                    f"component {name!r}: got {component!r}, expected an object with a name and an async method score(rollouts)"
                    + (f"; make one: {component.__name__}(...)" if isinstance(component, type) else "")
                )
        if not 0 <= max_missing <= 1:
            raise InputError(f"max_missing: got {max_missing}, expected a share in [0, 1]")
        if max_length is not None and max_length < 1:
            raise InputError(f"max_length: got {max_length}, expected a number >= 1, or None for no limit")
        self.components = dict(components)
        self.names = tuple(self.components)
        self.weights = weights_of(self.names, weights)
        self.gates = tuple(gates)
        for gate in self.gates:
            if isinstance(gate, type) or not isinstance(gate, Gate):
                raise InputError(
                    f"gates: got {gate!r}, expected a gate: LengthMask, LinearLengthPenalty, Condition or your own"
                )
            for name in (gate.target, *gate.reads):
                if name not in self.components:
                    raise InputError(
                        f"{type(gate).__name__}: got component {name!r}, expected one of {list(self.names)}"
                    )
        self.max_length, self.count, self.max_missing, self.spare = max_length, count, max_missing, spare
        self.ledger = ledger
        judges = (getattr(component, "judge", None) for component in self.components.values())
        self.judges = tuple({id(judge): judge for judge in judges if isinstance(judge, Judge)}.values())
        """Those of the components, each once."""

    def score(self, rollouts: Sequence[Rollout], *, progress: bool = True) -> ScoreTable:
        """Scores the rollouts; works in a script and inside a notebook's running loop.

        Args:
            rollouts: B rollouts of any number of groups, in any order. Ids, where given, are unique.
            progress: show a bar from the third second on, if tqdm is installed.

        Raises:
            InputError: duplicate ids, or two different items under one id.
            ComponentError: a component broke its contract.
            TooManyMissingError: more scores are missing than `max_missing` allows.
        """
        return run(self.ascore(rollouts, progress=progress))

    async def ascore(self, rollouts: Sequence[Rollout], *, progress: bool = False, part: bool = False) -> ScoreTable:
        """`score`, to be awaited, and by default without a bar.

        Args:
            rollouts, progress: as in `score`.
            part: of a batch; not held against `max_missing`: call `check_missing` on the whole.

        Raises: as `score`.
        """
        if isinstance(rollouts, Rollout):
            raise InputError("rollouts: got a single Rollout, expected a list of them")
        rollouts = list(rollouts)
        ids = _ids(rollouts)
        decided = [self.decided(rollout) for rollout in rollouts]
        early = [gate for gate in self.gates if not gate.reads]
        factors = {id(gate): _factors(gate, rollouts, {}) for gate in early}
        settled: dict[str, list[Score | Missing | None]] = {name: list(decided) for name in self.names}
        if self.spare:
            for gate in early:
                for row, factor in enumerate(factors[id(gate)]):
                    if decided[row] is None and (isinstance(factor, Missing) or factor.value == 0):
                        settled[gate.target][row] = Missing(Reason.NOT_ASKED, "a gate decides")
        before = [judge.usage.snapshot() for judge in self.judges]
        scores = await self._ask(rollouts, settled, progress)

        raw = np.array([[_number(scores[name][row]) for name in self.names] for row in range(len(rollouts))])
        values = raw.copy()
        missing = {
            (row, k): score
            for k, name in enumerate(self.names)
            for row, score in enumerate(scores[name])
            if isinstance(score, Missing)
        }
        gated: dict[tuple[int, int], str] = {}
        final = np.repeat([[known is not None] for known in decided], len(self.names), axis=1)
        for gate in in_order(self.gates):
            k = self.names.index(gate.target)
            read = {name: values[:, self.names.index(name)].copy() for name in gate.reads}
            multiplied = _factors(gate, rollouts, read) if gate.reads else factors[id(gate)]
            _note(multiplied, k, final[:, k], missing, gated)
            multiply(values[:, k], np.array([_number(factor) for factor in multiplied]), final[:, k])
        table = ScoreTable(
            names=self.names,
            ids=ids,
            groups=np.array([rollout.group for rollout in rollouts], dtype=np.str_),
            raw=raw,
            values=values,
            weights=self.weights,
            scores=tuple(tuple(scores[name]) for name in self.names),
            gated=gated,
            missing=missing,
            usage=tuple(
                (judge.name, judge.usage.since(usage)) for judge, usage in zip(self.judges, before, strict=True)
            ),
        )
        if self.ledger:
            self.ledger.write(self, table, rollouts)
        if not part:
            self.check_missing(table)
        return table

    async def _ask(
        self, rollouts: list[Rollout], settled: Mapping[str, list[Score | Missing | None]], progress: bool
    ) -> dict[str, list[Score | Missing]]:
        """Every component's scores; the components run side by side."""
        with progress_bar(len(rollouts) * len(self.names), "scoring", "score", shown=progress) as advance:
            size = CHUNK if advance else len(rollouts)

            async def ask(name: str) -> list[Score | Missing]:
                starts = range(0, len(rollouts), size)
                parts = await side_by_side(ask_chunk(name, slice(start, start + size)) for start in starts)
                return [score for part in parts for score in part]

            async def ask_chunk(name: str, chunk: slice) -> list[Score | Missing]:
                part = await score_component(name, self.components[name], rollouts[chunk], settled[name][chunk])
                if advance:
                    advance(len(part))
                return part

            columns = await side_by_side(ask(name) for name in self.names)
        return dict(zip(self.names, columns, strict=True))

    def decided(self, rollout: Rollout) -> Score | None:
        """0 for what no component needs to look at: an empty caption, or one beyond the limit."""
        if rollout.is_empty:
            return EMPTY
        if self.max_length is None or (length := self.count(rollout.caption)) <= self.max_length:
            return None
        return Score(0.0, f"caption of length {length}, longer than the limit of {self.max_length}")

    def check_missing(self, table: ScoreTable) -> None:
        """Logs what is missing in a table of this suite.

        Raises:
            TooManyMissingError: more of a component than `max_missing` allows.
        """
        for name, counts in table.missing_by_reason().items():
            if not self.weights[self.names.index(name)]:
                continue
            share = counts.total() / max(len(table), 1)
            reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.most_common())
            message = f"component {name!r}: missing for {counts.total()} of {len(table)} rollouts ({reasons})"
            if share > self.max_missing:
                raise TooManyMissingError(
                    f"{message}, more than max_missing={self.max_missing:g} allows; repair the cause, drop the component, "
                    "or raise max_missing"
                )
            if counts:
                level = logging.WARNING if share > 0.5 else logging.INFO
                log.log(level, "%s; advantages rest on the other components there", message)


def _note(
    factors: Sequence[Score | Missing],
    k: int,
    final: NDArray[np.bool_],
    missing: dict[tuple[int, int], Missing],
    gated: dict[tuple[int, int], str],
) -> None:
    """Keeps the reasons of component k in step with what `multiply` does to its scores."""
    for row, factor in enumerate(factors):
        cell = row, k
        if final[row]:
            continue
        if isinstance(factor, Missing):
            if cell not in missing or missing[cell].reason is Reason.NOT_ASKED:
                missing[cell] = factor
            gated.pop(cell, None)
        elif factor.value < 1 and not (cell in missing and factor.value > 0):
            missing.pop(cell, None)
            gated[cell] = factor.why


def _factors(gate: Gate, rollouts: Sequence[Rollout], read: Mapping[str, Float]) -> list[Score | Missing]:
    name = f"gate {type(gate).__name__}({gate.target!r})"
    try:
        factors = list(gate.factors(rollouts, read))
    except Exception as error:
        raise ComponentError(f"{name}: {type(error).__name__}: {error}") from error
    if len(factors) != len(rollouts):
        raise ComponentError(f"{name}: got {len(factors)} factors for {len(rollouts)} rollouts, expected one for each")
    return [checked(factor, name, rollout) for factor, rollout in zip(factors, rollouts, strict=True)]


def _number(score: Score | Missing) -> float:
    return float(score.value) if isinstance(score, Score) else np.nan


def _ids(rollouts: Sequence[Rollout]) -> tuple[str, ...]:
    """Ids of the rollouts; one without is called GROUP#N, by its place in its group.

    Raises:
        InputError: no rollouts, duplicate ids, or two different items under one id.
    """
    if not rollouts:
        raise InputError("rollouts: got none, expected at least one")
    if strange := [rollout for rollout in rollouts if not isinstance(rollout, Rollout)]:
        raise InputError(
            f"rollouts: got {strange[0]!r}, expected capreward.Rollout objects (or read_rollouts for rows)"
        )
    items = {rollout.item.id: rollout.item for rollout in rollouts}
    ids: dict[str, int] = {}
    places: dict[str, int] = {}
    for row, rollout in enumerate(rollouts):
        if not rollout.item.same_as(items[rollout.item.id]):
            raise InputError(
                f"rollouts: two different items have the id {rollout.item.id!r}; item ids have to be unique"
            )
        place = places[rollout.group] = places.get(rollout.group, -1) + 1
        name = rollout.id if rollout.id is not None else f"{rollout.group}#{place}"
        if name in ids:
            raise InputError(
                f"rollouts[{row}]: id {name!r} is taken by rollouts[{ids[name]}]; rollout ids have to be unique"
            )
        ids[name] = row
    return tuple(ids)
