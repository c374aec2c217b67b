"""An arena: a judge compares two captions of an image at a time; from the battles, scores and strengths of the captioners.

After CapArena (arXiv 2503.12329). There, GPT-4o compares captions while it sees the image and a human reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from math import log

import numpy as np

from capreward.errors import InputError, missing_extra
from capreward.groups import Float
from capreward.intervals import interval, resamples
from capreward.judges.base import Judge, Reply, Request, Task, ask_each, require
from capreward.missing import Missing, Reason
from capreward.records import Item, Rollout

QUESTION = "Which caption describes this image better: true, complete and well written?"
RIDGE = 0.01
"""Default weight of ``sum(strength**2) / 2`` in the fit: keeps a captioner that wins all its battles finite."""


class Outcome(StrEnum):
    """Who won."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"


POINTS = {Outcome.FIRST: 1.0, Outcome.SECOND: 0.0, Outcome.TIE: 0.5}
"""What a battle counts for its first captioner."""


@dataclass(frozen=True, slots=True)
class Battle:
    """Two captioners on one image."""

    item: str
    first: str
    second: str
    outcome: Outcome | Missing
    words: tuple[int, int] = (1, 1)
    """Lengths of the two captions."""

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise InputError(f"battle on item {self.item!r}: {self.first!r} against itself; expected two captioners")

    @property
    def log_length_ratio(self) -> float:
        """``ln(words of the first / words of the second)``; no words count as one."""
        first, second = (max(count, 1) for count in self.words)
        return log(first / second)


def pair_up(
    captions: Mapping[str, Sequence[Rollout]], baselines: Sequence[str] = ()
) -> list[tuple[tuple[str, Rollout], tuple[str, Rollout]]]:
    """The battles to fight: every two captioners on every item that both have captioned, n-th caption against n-th.

    Args:
        captions: by captioner.
        baselines: with them, only battles against one of these are fought, as in CapArena-Auto.

    Raises:
        InputError: a baseline that is no captioner.
    """
    if unknown := [name for name in baselines if name not in captions]:
        raise InputError(f"baselines: got {unknown[0]!r}, expected one of {list(captions)}")
    by_item = {name: _by_item(rollouts) for name, rollouts in captions.items()}
    return [
        ((one, mine), (other, yours))
        for one, other in combinations(captions, 2)
        if not baselines or one in baselines or other in baselines
        for item, rollouts in by_item[one].items()
        for mine, yours in zip(rollouts, by_item[other].get(item, ()), strict=False)
    ]


async def fight(judge: Judge, pairs: Sequence[tuple[Rollout, Rollout]]) -> list[Outcome | Missing]:
    """Who wins each pair of captions of an item.

    The judge is asked in both orders (Task.CHOOSE, the captions as options). A caption wins that it prefers in both; where the
    orders disagree, or it prefers neither, it is a tie. It goes by the references of the item, else by its reference
    units or its true facts, and by the image if it sees images. Without asking: equal captions tie, and one without a word loses
    to one with.

    Missing: there is nothing to go by (`no_reference`), or the judge failed in one of the orders.
    The captions stand beside the question and not between the marks that fence text off, so a caption can talk to
    the judge; in both orders, it has to win it over twice.
    """
    require(judge, "fight", Task.CHOOSE)
    known = [_without_asking(*pair) for pair in pairs]
    batches = [
        [] if outcome else [_request(judge, one, other), _request(judge, other, one)]
        for (one, other), outcome in zip(pairs, known, strict=True)
    ]
    replies = await ask_each(judge, [[request for request in batch if request] for batch in batches])
    outcomes: list[Outcome | Missing] = []
    for (one, _), outcome, answers in zip(pairs, known, replies, strict=True):
        if outcome:
            outcomes.append(outcome)
        elif not answers:
            outcomes.append(Missing(Reason.NO_REFERENCE, f"item {one.item.id!r} has nothing to compare captions with"))
        else:
            outcomes.append(_outcome(*answers))
    return outcomes


def _by_item(rollouts: Iterable[Rollout]) -> dict[str, list[Rollout]]:
    result: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        result.setdefault(rollout.item.id, []).append(rollout)
    return result


def _without_asking(one: Rollout, other: Rollout) -> Outcome | None:
    if one.caption.split() == other.caption.split() or (one.is_empty and other.is_empty):
        return Outcome.TIE
    if one.is_empty or other.is_empty:
        return Outcome.SECOND if one.is_empty else Outcome.FIRST
    return None


def _request(judge: Judge, one: Rollout, other: Rollout) -> Request | None:
    known = _known(one.item)
    images = (one.item.image,) if judge.images and one.item.image is not None else ()
    if not known and not images:
        return None
    return Request(Task.CHOOSE, known, (one.caption, other.caption), QUESTION, images)


def _known(item: Item) -> str:
    """What is known of the image, as text."""
    return "\n".join(item.references or item.reference_units or [fact.text for fact in item.facts if fact.true])


def _outcome(straight: Reply | Missing, swapped: Reply | Missing) -> Outcome | Missing:
    for reply in (straight, swapped):
        if isinstance(reply, Missing):
            return reply
    assert isinstance(straight, Reply)
    assert isinstance(swapped, Reply)
    ahead = straight.values[0] - straight.values[1], swapped.values[1] - swapped.values[0]
    if min(ahead) > 0:
        return Outcome.FIRST
    return Outcome.SECOND if max(ahead) < 0 else Outcome.TIE


def auto_scores(battles: Iterable[Battle], baselines: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """CapArena-Auto's scores: captioner -> baseline -> ``(wins - losses) / 2``, and "mean" over its baselines.

    In [-N/2, N/2] for N battles against a baseline, so only scores over the same number of images compare; CapArena-Auto
    has 600 images and three baselines. Missing battles count for nobody.

    Args:
        battles: of any captioners.
        baselines: whom to compare with; every captioner in turn when left out. A baseline has a score against the others.

    Raises:
        InputError: a baseline that is in no battle.
    """
    balance: dict[str, dict[str, float]] = {}
    fought = set()
    for battle in battles:
        fought |= {battle.first, battle.second}
        if isinstance(battle.outcome, Missing):
            continue
        gain = POINTS[battle.outcome] - 0.5
        for name, other, won in ((battle.first, battle.second, gain), (battle.second, battle.first, -gain)):
            against = balance.setdefault(name, {})
            against[other] = against.get(other, 0.0) + won
    if unknown := [name for name in baselines if name not in fought]:
        raise InputError(f"baselines: got {unknown[0]!r}, expected one of {sorted(fought)}")
    result = {}
    for name, against in balance.items():
        chosen = {other: score for other, score in against.items() if not baselines or other in baselines}
        if chosen:
            result[name] = {**chosen, "mean": sum(chosen.values()) / len(chosen)}
    return result


@dataclass(frozen=True)
class Strengths:
    """Bradley-Terry strengths of K captioners: one beats another with probability ``1 / (1 + exp(other - one))``."""

    names: tuple[str, ...]
    strength: Float
    """In log odds, mean 0, [K]. Times 400 / ln 10 they are Elo points."""
    low: Float
    """Lower ends of the 95% intervals over items, [K]; NaN without."""
    high: Float
    length_effect: float | None
    """Log odds that a caption gains for being e times as long as the other; None if length is not controlled."""
    length_interval: tuple[float, float] | None
    battles: int
    """Those that the fit rests on."""
    missing: int


def bradley_terry(
    battles: Sequence[Battle],
    *,
    control_length: bool = False,
    ridge: float = RIDGE,
    draws: int = 1000,
    seed: int = 0,
) -> Strengths:
    """Bradley-Terry strengths by maximum likelihood; a tie is half a win for each.

    A logistic regression without intercept: ``P(first beats second) = sigmoid(s_first - s_second)``, or with
    `control_length` ``sigmoid(s_first - s_second + g ln(words_first / words_second))``, whose strengths are those of captions
    of equal length. This is what Chatbot Arena calls style control, with the log ratio in place of its normalised difference.
    What is minimised is the negative log likelihood plus ``ridge / 2`` times the sum of all squared coefficients.

    Args:
        battles: those whose outcome is Missing are left out, and counted.
        control_length: estimate and take out the effect of length.
        ridge: 0 for plain maximum likelihood. Then a resample may have no maximum although all battles together have one: its
            strengths are as large as the fit's tolerance lets them become, or the fit does not end. Use ``draws=0`` with it.
        draws: resamples of the items for the intervals, refitted each; 0 for none.
        seed: of the resampling.

    Raises:
        InputError: no battle with an outcome; a negative ridge; with ``ridge=0``, a division of the captioners in which one side
            never takes a point from the other, so that there is no maximum (with `control_length` also if the fit does not end).
        MissingExtraError: scipy is not installed.
    """
    fought = [battle for battle in battles if isinstance(battle.outcome, Outcome)]
    if not fought:
        raise InputError(f"battles: got {len(battles)}, none with an outcome; expected at least one")
    if not ridge >= 0:
        raise InputError(f"ridge: got {ridge}, expected a number >= 0")
    names = tuple(dict.fromkeys(name for battle in fought for name in (battle.first, battle.second)))
    rows = np.zeros((len(fought), len(names) + control_length))
    for row, battle in zip(rows, fought, strict=True):
        row[names.index(battle.first)], row[names.index(battle.second)] = 1.0, -1.0
        if control_length:
            row[-1] = battle.log_length_ratio
    points = np.array([POINTS[Outcome(str(battle.outcome))] for battle in fought])
    if not ridge:
        _check_connected(names, rows[:, : len(names)], points)
    design, kind = np.unique(rows, axis=0, return_inverse=True)

    def fit(weights: Float, start: Float) -> Float:
        """Strengths of centre 0, then the effect of length, from battles that weigh so much, [N]."""
        total, won = (np.bincount(kind, each, len(design)).astype(np.float64) for each in (weights, weights * points))
        found = _minimum(design, total, won, ridge, start)
        found[: len(names)] -= found[: len(names)].mean()
        return found

    best = fit(np.ones(len(fought)), np.zeros(design.shape[1]))
    ids, item = np.unique([battle.item for battle in fought], return_inverse=True)
    low, high = np.full((2, len(best)), np.nan)
    if draws and len(ids) > 1:
        drawn = np.array([fit(row[item], best) for part in resamples(len(ids), draws, seed) for row in part])
        low, high = np.array([interval(column) for column in drawn.T]).T
    return Strengths(
        names=names,
        strength=best[: len(names)],
        low=low[: len(names)],
        high=high[: len(names)],
        length_effect=float(best[-1]) if control_length else None,
        length_interval=(float(low[-1]), float(high[-1])) if control_length else None,
        battles=len(fought),
        missing=len(battles) - len(fought),
    )


def _minimum(design: Float, total: Float, won: Float, ridge: float, start: Float) -> Float:
    """Coefficients of the penalised logistic regression of `won` of `total` points on the rows of `design`."""
    try:
        from scipy.optimize import minimize
        from scipy.special import expit
    except ImportError as error:
        raise missing_extra("Bradley-Terry strengths", "report", error) from error
    scale = total.sum()

    def loss(x: Float) -> tuple[float, Float]:
        z = design @ x
        value = total @ np.logaddexp(0.0, z) - won @ z + ridge / 2 * (x @ x)
        return float(value / scale), np.asarray((design.T @ (total * expit(z) - won) + ridge * x) / scale)

    def curvature(x: Float) -> Float:
        p = expit(design @ x)
        return np.asarray(((design.T * (total * p * (1 - p))) @ design + ridge * np.eye(len(x))) / scale)

    found = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9})
    if np.abs(found.jac).max() > 1e-6 or np.abs(found.x).max() > 1e3:
        raise InputError(
            f"the fit of the strengths has no end ({found.message}); expected a ridge above 0, such as {RIDGE}"
        )
    return np.asarray(found.x)


def _check_connected(names: Sequence[str], rows: Float, points: Float) -> None:
    """Without a path of points from every captioner to every other the likelihood has no maximum (Ford, 1957)."""
    beaten = np.zeros((len(names), len(names)), bool)
    for row, won in zip(rows, points, strict=True):
        first, second = int(row.argmax()), int(row.argmin())
        beaten[first, second] |= won > 0
        beaten[second, first] |= won < 1
    reached = beaten | np.eye(len(names), dtype=bool)
    for middle in range(len(names)):
        reached |= np.outer(reached[:, middle], reached[middle])
    if not reached.all():
        one, other = np.argwhere(~reached)[0]
        raise InputError(
            f"strengths: {names[one]!r} takes no point from {names[other]!r}, not even by way of others, so with ridge=0 they "
            f"lie infinitely far apart; expected a ridge above 0, such as {RIDGE}"
        )
