"""DCScore (DeCapBench, arXiv 2503.07906): F1 over the facts of a caption, of all facts and of the relevant ones.

    precision = verified / claims        recall = (covered + extra) / (oracle + extra)
    DCScore = 100 (F1 of all facts + F1 of relevant facts) / 2

An oracle is the list of facts that a complete caption states. `extra` are verified facts that the oracle lacks: they count on
both sides of recall, so that a caption is not punished for seeing more than the oracle's writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from capreward.errors import InputError
from capreward.missing import Missing, Reason
from capreward.records import Item
from capreward.scoring import Score

STATED = 0.5
"""Probability from which a unit counts as covered: DCScore counts facts, it does not weigh them."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Facts of one caption, or of one image's oracle.

    Raises:
        InputError: negative counts, or parts larger than their whole.
    """

    claims: int
    """Facts that the caption states."""
    verified: int
    """Those that are true of the image."""
    extra: int
    """Those of the verified that the oracle lacks."""
    covered: int
    """Facts of the oracle that the caption states."""
    oracle: int
    """Facts of the oracle."""

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0:
            raise InputError(f"{self}: expected counts >= 0")
        if not (self.extra <= self.verified <= self.claims and self.covered <= self.oracle):
            raise InputError(f"{self}: expected extra <= verified <= claims, and covered <= oracle")

    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1].

        0 for a caption that states nothing; NaN if there is nothing to state, neither in the oracle nor verified beyond it.
        """
        if not self.oracle + self.extra:
            return float("nan")
        if not self.verified or not self.covered + self.extra:
            return 0.0
        precision = self.verified / self.claims
        recall = (self.covered + self.extra) / (self.oracle + self.extra)
        return 2 * precision * recall / (precision + recall)


def dc_score(all_facts: Counts, relevant: Counts) -> float:
    """DCScore of one caption, in [0, 100]; NaN where either F1 is.

    Args:
        all_facts: of every fact.
        relevant: of those that describe the image (DeCapBench), which here are the pointable ones.

    Raises:
        InputError: more relevant facts than facts.
    """
    for name in Counts.__slots__:
        if getattr(relevant, name) > getattr(all_facts, name):
            raise InputError(
                f"relevant: got {name}={getattr(relevant, name)}, expected at most the {getattr(all_facts, name)} of all facts"
            )
    return 100 * (all_facts.f1() + relevant.f1()) / 2


def dc_score_of_set(counts: Sequence[tuple[Counts, Counts]]) -> float:
    """Mean over captions, in [0, 100]; those that are NaN are left out, NaN if all are."""
    scores = np.array([dc_score(*pair) for pair in counts], np.float64)
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else float("nan")


def counts_of(item: Item, precision: Score | Missing, coverage: Score | Missing) -> tuple[Counts, Counts] | Missing:
    """Counts of all facts and of the relevant ones, from what the components have found; Missing where that is not enough.

    The oracle is the item's true facts, the relevant ones are those that are pointable. Every verified statement is then in the
    oracle, so there are no extra ones. Statements come as the judge splits the caption: the lite judge's are sentences, each of
    which is matched to one fact. A relevant fact is covered if `Coverage` finds it, another if a statement is matched to it.

    Args:
        item: the caption's, with labelled facts. Its `reference_units`, which `Coverage` would look for instead, have to be
            the true and pointable facts, if there are any.
        precision: of ``Precision(judge, against="facts")``. The evidence of the other kinds does not tell what is true from
            what is pointable.
        coverage: of ``Coverage(judge)``.
    """
    for score in (precision, coverage):
        if isinstance(score, Missing):
            return score
    assert isinstance(precision, Score)
    assert isinstance(coverage, Score)
    oracle = {fact.text: fact for fact in item.facts if fact.true}
    if not oracle:
        return Missing(Reason.NO_FACTS, f"item {item.id!r} has no true facts")
    statements = precision.evidence.get("statements", ())
    if any("fact" not in statement for statement in statements):
        return Missing(Reason.NO_FACTS, f"item {item.id!r}: DCScore needs precision against labelled facts")
    units = coverage.evidence.get("units", ())
    pointable = {text for text, fact in oracle.items() if fact.pointable}
    if units and {unit["text"] for unit in units} != pointable:
        return Missing(
            Reason.NO_FACTS, f"item {item.id!r}: DCScore needs coverage of its facts, not of reference units"
        )
    matched = [oracle[statement["fact"]] for statement in statements if statement["fact"] in oracle]
    elsewhere = {fact.text for fact in matched if not fact.pointable}
    covered = len({unit["text"] for unit in units if unit["probability"] >= STATED})  # a fact may have been given twice
    vague = sum(statement["verdict"] == "not pointable" for statement in statements)
    return (
        Counts(len(statements), len(matched), 0, covered + len(elsewhere), len(oracle)),
        Counts(len(statements) - vague, sum(fact.pointable for fact in matched), 0, covered, len(pointable)),
    )
