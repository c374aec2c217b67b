"""Probe: does a reward pay for captions that it should not pay for?

Attacks (`capreward.attacks`) are made of honest rollouts and scored beside them. What an attack gains is measured on each
component, on the reward (the weighted mean of the scores that both captions have) and on the advantage in a group of
the honest rollouts and that one attack. Gates are applied afterwards, to scores that were asked for once, so that every
defence can be switched off, and others on, without asking a judge again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capreward import samples
from capreward.attacks import ATTACKS, Attack, Material
from capreward.components import Condition, LengthMask
from capreward.coroutines import run as wait
from capreward.errors import InputError, TooManyMissingError, missing_extra
from capreward.groups import Float
from capreward.intervals import interval, resampled_means, several
from capreward.missing import Missing
from capreward.records import Rollout
from capreward.scoring import Gate, Score, ScoreTable
from capreward.suite import RewardSuite

if TYPE_CHECKING:
    import pandas as pd

REWARD, ADVANTAGE = "reward", "advantage"
AS_IT_IS = "as it is"
TIE = 1e-3
"""A lead of this or less, in units of a score or an advantage, is a tie: embeddings and 16-bit models round."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one attack gains on one component, on the reward or in the advantage."""

    attack: str
    on: str
    """A component's name, "reward" or "advantage"."""
    captions: int
    """Made by the attack. The shares below are of those whose honest caption has a score; 0 where none has."""
    wins: float
    """Share of its captions that score above the honest caption they were made of, and above their group's mean."""
    ties: float
    """Share that scores the same as the honest caption."""
    missing: float
    """Share that has no score where the honest caption has one (of any component, for reward and advantage)."""
    margin: float
    """Mean lead over the honest caption, below 0 where it loses; NaN if there is no pair of scores."""
    low: float
    high: float
    """95 % interval of the margin, from a bootstrap over groups; NaN with one group."""


@dataclass(frozen=True, slots=True)
class Defence:
    """What becomes of an attack with a gate or limit left out, or added."""

    attack: str
    suite: str
    """Which change: "as it is", "without ..." or "with ..."."""
    wins: float
    """Share of its captions that win in the reward or in the advantage, whichever is more."""
    missing: float
    """Share that has no score of a component where the honest caption has one."""
    honest: float
    """Mean reward of the honest captions under it: what the defence costs."""


@dataclass(frozen=True, slots=True)
class Example:
    """The caption of an attack with the largest lead."""

    attack: str
    variant: str
    rollout: str
    """Id of the honest rollout that it was made of."""
    caption: str
    lead: float


@dataclass(frozen=True)
class Findings:
    """What a probe found. The figures are plain numbers; `to_pandas`, `to_rows` and `probe_report` show them."""

    names: tuple[str, ...]
    """The suite's components."""
    honest: int
    """Honest captions attacked."""
    groups: int
    findings: tuple[Finding, ...]
    """By attack: each component, then the reward, then the advantage."""
    defences: tuple[Defence, ...]
    examples: tuple[Example, ...]
    advice: Mapping[str, str] = field(default_factory=dict)
    """By attack, what to do where it wins."""

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks that could be made, in order."""
        return tuple(dict.fromkeys(finding.attack for finding in self.findings))

    def of(self, attack: str, on: str = REWARD) -> Finding:
        """One finding."""
        return next(finding for finding in self.findings if (finding.attack, finding.on) == (attack, on))

    def wins(self, attack: str) -> float:
        """Share of its captions that win in the reward or in the advantage, whichever is more."""
        return max(self.of(attack, on).wins for on in (REWARD, ADVANTAGE))

    def failed(self, threshold: float = 0.0) -> list[str]:
        """The attacks that win, or buy a missing score, more often than `threshold`, a share."""
        return [name for name in self.attacks if max(self.wins(name), self.of(name).missing) > threshold]

    def paid_by(self, attack: str) -> str | None:
        """The component on which the attack gains most; None if it gains on none."""
        best = max((self.of(attack, name) for name in self.names), key=lambda finding: _or(finding.margin, -1.0))
        return best.on if _or(best.margin, -1.0) > TIE else None

    def stopped_by(self, attack: str) -> str | None:
        """The component on which the attack loses most; None if it loses on none."""
        worst = min((self.of(attack, name) for name in self.names), key=lambda finding: _or(finding.margin, 1.0))
        return worst.on if _or(worst.margin, 1.0) < -TIE else None

    def held_by(self, attack: str, threshold: float = 0.0) -> list[str]:
        """The gates and limits of the suite without which the attack would win more often than `threshold`, and does not now."""
        if self.wins(attack) > threshold:
            return []
        return [
            d.suite.removeprefix("without ")
            for d in self.defences
            if d.attack == attack and d.suite.startswith("without ") and d.wins > threshold
        ]

    def would_stop(self, attack: str, threshold: float = 0.0) -> list[Defence]:
        """The defences under which a winning attack would neither win nor buy a missing score more often than `threshold`.

        The cheapest for honest captions come first.
        """
        if self.wins(attack) <= threshold:
            return []
        stops = [
            d
            for d in self.defences
            if d.attack == attack and d.suite.startswith("with ") and max(d.wins, d.missing) <= threshold
        ]
        return sorted(stops, key=lambda d: -d.honest)

    def what_to_do(self, attack: str, threshold: float = 0.0) -> str:
        """A sentence; empty where the attack neither wins nor buys a missing score."""
        if attack not in self.failed(threshold):
            return ""
        parts = []
        if self.of(attack).missing > threshold:
            parts.append("it buys a missing score: repair the judge, or set max_length")
        if self.wins(attack) > threshold:
            if name := self.paid_by(attack):
                parts.append(f"{name} pays for it")
            now = next(d.honest for d in self.defences if d.suite == AS_IT_IS)
            for defence in self.would_stop(attack, threshold)[:1]:
                cost = f"honest captions {defence.honest - now:+.2f}"
                parts.append(f"{defence.suite.removeprefix('with ')} stops it ({cost})")
            parts.append(self.advice[attack])
        return "; ".join(parts)

    def to_rows(self) -> list[dict[str, Any]]:
        """The findings as JSON-ready rows; None = no number."""
        return [_plain(finding) for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON-ready data."""
        return {
            "components": list(self.names),
            "honest": self.honest,
            "groups": self.groups,
            "findings": self.to_rows(),
            "defences": [_plain(defence) for defence in self.defences],
            "examples": [_plain(example) for example in self.examples],
        }

    def to_pandas(self) -> pd.DataFrame:
        """One row an attack and component, the reward and the advantage."""
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_extra("to_pandas", "report", error) from error
        return pd.DataFrame([asdict(finding) for finding in self.findings])


class Probe:
    """Attacks a suite with captions made of honest rollouts.

    Every component is asked about every caption, also where a gate would spare the judge: about
    (23 + 2 `injected`) captions for each honest one. Wrap an expensive judge in `Cached`.

    Args:
        suite: the reward, with its gates, weights and `max_length`.
        rollouts: honest ones, best several to an item, of several items: a policy's own captions. Their groups are the
            groups in which the advantage is computed. Empty captions are left out.
        attacks: `attacks.ATTACKS`, or some of them (`attacks.named`), or your own.
        injected: texts that talk to the judge, of the 50, that each honest caption gets (drawn anew for each).
        prompt: what the policy is asked, for the attack that echoes it.
        seed: of all that is random in the attacks, and of the intervals.
        more: defences to try, by what to call them, beside those that `trials` adds.

    Raises:
        InputError: no rollout with a caption, no attack, or fewer than one text to inject.
    """

    def __init__(
        self,
        suite: RewardSuite,
        rollouts: Sequence[Rollout],
        *,
        attacks: Sequence[Attack] = ATTACKS,
        injected: int = 5,
        prompt: str = "Describe the image in detail.",
        seed: int = 0,
        more: Mapping[str, Sequence[Gate]] | None = None,
    ) -> None:
        if not attacks:
            raise InputError("attacks: got none, expected at least one of capreward.attacks.ATTACKS")
        if injected < 1:
            raise InputError(f"injected: got {injected}, expected a number of texts >= 1")
        self.suite, self.attacks, self.injected, self.prompt, self.seed = suite, attacks, injected, prompt, seed
        self.more = dict(more or {})
        self.honest = _with_ids([rollout for rollout in rollouts if not rollout.is_empty])
        if not self.honest:
            raise InputError("rollouts: got none with a caption, expected honest captions to attack")

    def attacked(self) -> list[tuple[Attack, int, Rollout]]:
        """Every attack's rollouts: the attack, the place of the honest rollout, and what became of it."""
        high = min((gate.high for gate in self.suite.gates if isinstance(gate, LengthMask)), default=2.0)
        by_name: dict[str, list[Attack]] = {}
        for attack in self.attacks:
            by_name.setdefault(attack.name, []).append(attack)
        found = []
        for name, variants in by_name.items():
            for place, rollout in enumerate(self.honest):
                chance = random.Random(f"{self.seed} {name} {rollout.id}")
                others = [other.caption for other in self.honest if other.item.id != rollout.item.id]
                material = Material(rollout, chance, self.prompt, others, high)
                for attack in chance.sample(variants, self.injected) if len(variants) > self.injected else variants:
                    if (caption := attack.make(material)) is not None:
                        id_ = f"{rollout.id} {attack.name} {attack.variant}".rstrip()
                        found.append((attack, place, rollout.model_copy(update={"caption": caption, "id": id_})))
        return found

    def run(self, *, progress: bool = True) -> Findings:
        """Makes the attacks, scores them, and measures what they gain.

        Raises:
            ComponentError: a component broke its contract.
            InputError: two honest rollouts of one id, or two attacks of one name and variant.
            TooManyMissingError: no honest caption has a score, or more is missing than the suite's `max_missing` allows.
        """
        attacked = self.attacked()
        rollouts = [*self.honest, *(rollout for _, _, rollout in attacked)]
        weights = dict(zip(self.suite.names, self.suite.weights.tolist(), strict=True))
        bare = RewardSuite(
            self.suite.components, weights=weights, count=self.suite.count, max_missing=self.suite.max_missing
        )
        asked = bare.score(rollouts, progress=progress)
        known = {name: _Known(name, asked, k) for k, name in enumerate(asked.names)}

        def gated(gates: Sequence[Gate], max_length: int | None) -> _Measured:
            suite = RewardSuite(known, weights=weights, gates=gates, max_length=max_length, count=self.suite.count)
            table = wait(suite.ascore(rollouts, part=True))  # what is missing has been reported once
            return _Measured(table, attacked, self.honest)

        now = gated(self.suite.gates, self.suite.max_length)
        if np.isnan(now.honest).all():  # no attack can win over nothing, which must not pass for a sound reward
            first = next(iter(asked.missing.values()))
            raise TooManyMissingError(
                f"no honest caption has a score, such as {first.reason}: {first.detail}; "
                "repair the judge, give the items what the components need, or use other components"
            )
        bootstrap = _Bootstrap(now.clusters, self.seed)
        defences = []
        for name, (gates, limit) in self.trials(asked).items():
            measured = now if name == AS_IT_IS else gated(gates, limit)
            honest = float(np.nanmean(measured.honest)) if not np.isnan(measured.honest).all() else math.nan
            for attack, rows in now.rows.items():
                wins = max(measured.share(measured.wins, rows, column) for column in (-2, -1))
                defences.append(Defence(attack, name, wins, measured.share(measured.missing, rows, -2), honest))
        findings, examples = [], []
        for attack, rows in now.rows.items():
            for column, on in enumerate((*asked.names, REWARD, ADVANTAGE)):
                leads = now.leads[rows, column]
                findings.append(
                    Finding(
                        attack=attack,
                        on=on,
                        captions=len(rows),
                        wins=now.share(now.wins, rows, column),
                        ties=now.share(np.abs(now.leads) <= TIE, rows, column),
                        missing=now.share(now.missing, rows, column),
                        margin=float(np.nanmean(leads)) if not np.isnan(leads).all() else math.nan,
                        **dict(zip(("low", "high"), bootstrap.interval(leads, rows), strict=True)),
                    )
                )
            leads = now.leads[rows, -2]
            if not np.isnan(leads).all():
                best = rows[int(np.nanargmax(leads))]
                made, place, rollout = attacked[best]
                examples.append(
                    Example(attack, made.variant, str(self.honest[place].id), rollout.caption, float(np.nanmax(leads)))
                )
        return Findings(
            names=asked.names,
            honest=len(self.honest),
            groups=len({rollout.group for rollout in self.honest}),
            findings=tuple(findings),
            defences=tuple(defences),
            examples=tuple(examples),
            advice={attack.name: attack.advice for attack in self.attacks},
        )

    def trials(self, asked: ScoreTable) -> dict[str, tuple[Sequence[Gate], int | None]]:
        """Gates and limit by name: the suite's own, without each of them, and with each of a few that it lacks.

        Tried are, one at a time: each length mask without its lower bound; a limit of twice the longest honest caption or
        reference; a length mask on every component; and for each component, that all others count only where it reaches
        half its mean on the honest captions.

        Args:
            asked: the scores without gates; the honest rollouts come first.
        """
        own, limit, names = self.suite.gates, self.suite.max_length, self.suite.names
        trials: dict[str, tuple[Sequence[Gate], int | None]] = {AS_IT_IS: (own, limit)}
        described = [describe(gate) for gate in own]
        for place, gate in enumerate(own):
            nth = described[: place + 1].count(described[place])
            again = f" #{nth}" if nth > 1 else ""  # two that are described alike are tried one by one
            rest = [other for other in own if other is not gate]
            trials[f"without {described[place]}{again}"] = (rest, limit)
            if isinstance(gate, LengthMask) and gate.low > 0:
                open_ = LengthMask(gate.target, low=0, high=gate.high, count=gate.count)
                with_open = [open_ if other is gate else other for other in own]
                trials[f"with {described[place][:-1]}, low=0){again}"] = (with_open, limit)
        if limit is not None:
            trials[f"without max_length={limit}"] = (own, None)
        else:
            texts = [text for rollout in self.honest for text in (rollout.caption, *rollout.item.references)]
            longest = 2 * max(self.suite.count(text) for text in texts)
            trials[f"with max_length={longest}"] = (own, longest)
        if all(rollout.item.references for rollout in self.honest):
            masks: list[Gate] = [LengthMask(name, count=self.suite.count) for name in names]
            trials["with LengthMask on every component"] = ([*own, *masks], limit)
        for k, name in enumerate(names):
            scores = asked.raw[: len(self.honest), k]
            if len(names) > 1 and not np.isnan(scores).all() and (half := round(float(np.nanmean(scores)) / 2, 2)) > 0:
                others: list[Gate] = [Condition(other, on=name, at_least=half) for other in names if other != name]
                trials[f"with Condition on {name} >= {half:g}"] = ([*own, *others], limit)
        for name, gates in self.more.items():
            trials[f"with {name}"] = ([*own, *gates], limit)
        return trials


def describe(gate: Gate) -> str:
    """A gate, in a few words."""
    read = f", on={gate.reads[0]!r}" if gate.reads else ""
    return f"{type(gate).__name__}({gate.target!r}{read})"


def honest_samples(which: str, count: int = 24) -> list[Rollout]:
    """Honest captions to attack.

    Args:
        which: "photos": of each of the nine photographs the dense caption, the short one and the reference. "shapes": of
            `count` scenes of the drawn world four captions each: complete, complete in other words, with a thing left
            out, and with a wrong size.

    Raises:
        InputError: another name.
    """
    if which == "photos":
        taken = [rollout for rollout in samples.photos() if rollout.metadata["kind"] in ("dense", "short")]
        items = {rollout.item.id: rollout.item for rollout in taken}
        references = [
            Rollout(item=item, caption=item.references[0], id=f"{item.id}/reference") for item in items.values()
        ]
        return sorted([*taken, *references], key=lambda rollout: str(rollout.id))
    if which != "shapes":
        raise InputError(f"samples: got {which!r}, expected 'photos' or 'shapes'")
    from capreward import shapes

    return [
        Rollout(item=item, caption=caption, id=f"{item.id}/{kind}")
        for item in shapes.items(count)
        if isinstance(item.image, bytes)
        for kind, caption in _told(shapes.scene_of(item.image)).items()
    ]


def _told(scene: Any) -> dict[str, str]:
    from capreward.shapes import caption, language

    told = [language.sentence_of(thing) for thing in scene.things]
    first = scene.things[0]
    wrong = first.model_copy(update={"size": "small" if first.size == "large" else "large"})
    return {
        "complete": caption(scene),
        "in-other-words": caption(scene, there=True),
        "incomplete": " ".join([language.count_of(scene), *told[:-1]]),
        "wrong-size": " ".join([language.sentence_of(wrong), *told[1:]]),
    }


class _Known:
    """A component that repeats what another has said of each rollout, by id."""

    def __init__(self, name: str, table: ScoreTable, column: int) -> None:
        self.name = name
        self.scores = dict(zip(table.ids, table.scores[column], strict=True))

    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        return [self.scores[str(rollout.id)] for rollout in rollouts]


class _Measured:
    """Leads of attacks over the honest rollouts of their groups; the last two columns are reward and advantage."""

    def __init__(
        self, table: ScoreTable, attacked: Sequence[tuple[Attack, int, Rollout]], honest: Sequence[Rollout]
    ) -> None:
        members: dict[str, list[int]] = {}
        for row, rollout in enumerate(honest):
            members.setdefault(rollout.group, []).append(row)
        self.rows: dict[str, list[int]] = {}
        """By attack, its places in `attacked`."""
        for row, (attack, _, _) in enumerate(attacked):
            self.rows.setdefault(attack.name, []).append(row)
        self.honest = table.total()[: len(honest)]
        groups = list(members)
        self.clusters = np.array([groups.index(honest[place].group) for _, place, _ in attacked])
        peers = [members[honest[place].group] for _, place, _ in attacked]
        advantages = self._advantages(table, peers, len(honest))
        shape = len(attacked), len(table.names) + 2
        self.leads, self.wins = np.full(shape, np.nan), np.zeros(shape, bool)
        self.missing = np.zeros(shape, bool)
        counted = table.weights > 0
        for row, (_, place, _) in enumerate(attacked):
            mine, theirs = table.values[len(honest) + row], table.values[peers[row]]
            leads = np.column_stack([mine - theirs, _reward_leads(mine, theirs, table.weights), advantages[row]])
            own = peers[row].index(place)
            self.leads[row] = leads[own]
            present = ~np.isnan(leads)
            above = np.divide(
                np.where(present, leads, 0).sum(0), present.sum(0), out=np.full(shape[1], np.nan), where=present.any(0)
            )
            self.wins[row] = (leads[own] > TIE) & (above > TIE)
            bought = np.isnan(mine) & ~np.isnan(theirs[own])
            self.missing[row] = [*bought, *[(bought & counted).any()] * 2]

    def share(self, what: NDArray[np.bool_], rows: Sequence[int], column: int) -> float:
        """Of the attacks in `rows` whose honest caption has a score; a judge that is down must not water down a win."""
        compared = ~np.isnan(self.leads[rows, column]) | self.missing[rows, column]
        return float(what[rows, column][compared].mean()) if compared.any() else 0.0

    def _advantages(self, table: ScoreTable, peers: Sequence[Sequence[int]], start: int) -> list[Float]:
        """Of each attack, its lead in advantage over each of its peers, in a batch of such groups."""
        leads: list[Float] = [np.empty(0)] * len(peers)
        for rows in self.rows.values():
            index = [place for row in rows for place in (*peers[row], start + row)]
            groups = [str(row) for row in rows for _ in range(len(peers[row]) + 1)]
            batch = ScoreTable(
                names=table.names,
                ids=tuple(map(str, range(len(index)))),
                groups=np.array(groups),
                raw=table.raw[index],
                values=table.values[index],
                weights=table.weights,
                scores=(),
                gated={},
                missing={},
            )
            found = iter(np.split(batch.advantages("gdpo"), np.cumsum([len(peers[row]) + 1 for row in rows])[:-1]))
            for row in rows:
                *theirs, mine = next(found).tolist()
                leads[row] = mine - np.array(theirs)
        return leads


def _reward_leads(mine: Float, theirs: Float, weights: Float) -> Float:
    """Weighted mean of the leads over the components that both have; NaN where there is none."""
    leads = mine - theirs
    present = ~np.isnan(leads)
    weight = present @ weights
    total = np.where(present, leads, 0.0) @ weights
    return np.asarray(np.divide(total, weight, out=np.full(len(theirs), np.nan), where=weight > 0))


class _Bootstrap:
    """95 % intervals of means, with groups drawn anew."""

    def __init__(self, clusters: NDArray[np.int_], seed: int) -> None:
        self.clusters, self.seed = clusters, seed

    def interval(self, leads: Float, rows: Sequence[int]) -> tuple[float, float]:
        present = ~np.isnan(leads)
        of = self.clusters[rows][present]
        return (
            interval(resampled_means(leads[present, None], of, seed=self.seed)[:, 0])
            if several(of)
            else (math.nan, math.nan)
        )


def _with_ids(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """With ids as a suite would call them."""
    places: dict[str, int] = {}
    named = []
    for rollout in rollouts:
        place = places[rollout.group] = places.get(rollout.group, -1) + 1
        named.append(rollout if rollout.id else rollout.model_copy(update={"id": f"{rollout.group}#{place}"}))
    return named


def _plain(row: Finding | Defence | Example) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(row).items()
    }


def _or(value: float, default: float) -> float:
    return default if math.isnan(value) else value
