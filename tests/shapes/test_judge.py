from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from capreward import (
    Component,
    Coverage,
    Fluency,
    Item,
    LikertJudge,
    Missing,
    Precision,
    QAUtility,
    Reason,
    Reply,
    Request,
    RewardSuite,
    Rollout,
    RubricJudge,
    Task,
)
from capreward.judges.base import complete_reply
from capreward.shapes import Scene, ShapesJudge, Thing, caption, draw, items, scene
from capreward.shapes.language import COMMENTARY, item
from capreward.testing import check_component

SCENE = Scene(
    things=(
        Thing(colour="red", shape="circle", size="large", cell="top left"),
        Thing(colour="blue", shape="cross", size="small", cell="right"),
    )
)
ITEM = item(SCENE, "two")
CAPTIONS = {
    "perfect": "There are two things. A large red circle is at the top left. A small blue cross is at the right.",
    "short": "There is a red circle.",
    "hallucinating": "There are three things. A large red circle is at the bottom. A small green cross is at the right.",
    "repetitive": " ".join(["A large red circle is at the top left."] * 3),
    "commentary": f"A large red circle is at the top left. {COMMENTARY[0]}",
    "praise": COMMENTARY[2],
}


def components() -> dict[str, Component]:
    judge = ShapesJudge()
    return {
        "precision": Precision(judge),
        "coverage": Coverage(judge),
        "fluency": Fluency(judge),
        "qa": QAUtility(judge),
        "rubric": RubricJudge(judge),
        "likert": LikertJudge(judge),
    }


def scores(**captions: str) -> dict[str, dict[str, float]]:
    """By kind of caption and component."""
    table = RewardSuite(components()).score([Rollout(item=ITEM, caption=text) for text in captions.values()])
    return {
        kind: dict(zip(table.names, row, strict=True)) for kind, row in zip(captions, table.raw.tolist(), strict=True)
    }


def ask(task: Task, context: str = "", *options: str, **fields: Any) -> Any:
    (reply,) = asyncio.run(ShapesJudge().ask([Request(task, context, options, **fields)]))
    return reply.values if isinstance(reply, Reply) else reply


@pytest.mark.parametrize(
    "component",
    [
        *components().values(),
        Precision(ShapesJudge(), against="facts"),
        Precision(ShapesJudge(), against="references"),
        QAUtility(ShapesJudge(), score="probability", closed_book=True, cannot_answer=True),
        LikertJudge(ShapesJudge(), reference=True),
    ],
    ids=lambda component: component.name,
)
def test_components_keep_their_rules_with_this_judge(component: Component) -> None:
    check_component(component, [Rollout(item=ITEM, caption=text) for text in CAPTIONS.values()])


def test_each_kind_of_caption_scores_what_it_should() -> None:
    got = scores(**CAPTIONS)
    expected = {
        # claims: 7, 1, 7 (red circle, large; small green cross at the right: none), 3, 4, 1; units: 7; questions: 9
        "perfect": (1, 1, 1, 1),
        "short": (1, 1 / 7, 1, 0),
        "hallucinating": (2 / 7, 2 / 7, 1, 2 / 9),
        "repetitive": (1, 3 / 7, (1 / 3 + 1 + 1) / 3, 4 / 9),
        "commentary": (3 / 4, 3 / 7, (1 / 2 + 1 + 1 / 2) / 3, 4 / 9),
        "praise": (0, 0, 1 / 3, 0),
    }
    for kind, values in expected.items():
        row = [got[kind][name] for name in ("precision", "coverage", "fluency", "qa")]
        assert row == pytest.approx(values), kind


def test_the_rubric_weighs_things_over_places_over_sizes() -> None:
    got = scores(thing="There is a red circle.", size="The red circle is large.", all=CAPTIONS["perfect"])
    assert got["thing"]["rubric"] == pytest.approx(3 / 14)
    assert got["size"]["rubric"] == pytest.approx(4 / 14)  # it takes for granted that there is one
    assert got["all"]["rubric"] == 1


def test_likert_is_flattered_where_the_others_are_not() -> None:
    got = scores(
        short=CAPTIONS["short"], flattering=f"A red cross is large. {COMMENTARY[2]}", wrong="A red cross is large."
    )
    assert got["flattering"]["likert"] == 1
    assert got["wrong"]["likert"] == 0.5
    assert got["flattering"]["precision"] == 0


@given(st.integers(0, 50), st.integers(0, 50))
def test_precision_against_the_facts_is_precision_against_the_picture(seen: int, told: int) -> None:
    assert_facts_are_the_picture(item(scene(seen), "seen"), caption(scene(told)))


@pytest.mark.parametrize(("seen", "told"), [(9, 9), (7, 3), (3, 7), (5, 6)])
def test_so_it_is_for_scenes_of_any_size(seen: int, told: int) -> None:
    made, other = scene(0, fewest=seen, most=seen), scene(1, fewest=told, most=told)
    assert_facts_are_the_picture(item(made, "seen"), caption(made))
    assert_facts_are_the_picture(item(made, "seen"), caption(other))


def assert_facts_are_the_picture(made: Item, text: str) -> None:
    judge = ShapesJudge()
    suite = RewardSuite({"image": Precision(judge), "facts": Precision(judge, against="facts")})
    image, facts = suite.score([Rollout(item=made, caption=text)]).raw[0]
    assert image == facts


def test_complete_captions_score_full_marks_on_every_scene() -> None:
    made = [*items(20), *items(10, fewest=5, most=9)]
    rollouts = [Rollout(item=one, caption=text) for one in made for text in one.references]
    table = RewardSuite(components()).score(rollouts)
    assert (table.raw == 1).all()


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("there is a red circle", 1.0),
        ("The red circle is left of the blue cross.", 1.0),
        ("The blue cross is below the red circle.", 1.0),
        ("The blue cross is above the red circle.", 0.0),
        ("A small red circle is at the top left.", 0.0),
        (COMMENTARY[1], 0.0),
        ("gibberish", 0.0),
        ("", 0.0),
    ],
)
def test_verify_reads_the_picture(statement: str, value: float) -> None:
    assert ask(Task.VERIFY, "", statement, images=(draw(SCENE),)) == (value,)


def test_verify_says_what_it_lacks(tmp_path: Path) -> None:
    for images, reason in [
        ((), Reason.NO_IMAGE),
        ((b"not of this world",), Reason.NO_FACTS),
        ((tmp_path / "gone.png",), Reason.NO_IMAGE),
    ]:
        reply = ask(Task.VERIFY, "", "there is a red circle", images=images)
        assert isinstance(reply, Missing)
        assert reply.reason is reason
        assert reply.detail


COLOUR = {"question": "What colour is the thing at the top left?"}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A red circle is at the top left.", (1, 0, 0, 0)),
        ("The blue circle is at the top left. A red circle is at the left.", (0, 1, 0, 0)),
        ("A red circle is at the top left. A blue cross is at the top left.", (0.5, 0.5, 0, 0)),
        ("There is a red circle.", (0.25, 0.25, 0.25, 0.25)),
        ("A yellow circle is at the top left.", (0.25, 0.25, 0.25, 0.25)),
        ("The answer is red.", (0.25, 0.25, 0.25, 0.25)),
    ],
)
def test_choose_goes_by_what_the_text_claims(text: str, values: tuple[float, ...]) -> None:
    assert ask(Task.CHOOSE, text, "red", "blue", "green", "black", **COLOUR) == values


def test_choose_admits_what_it_cannot_answer_where_it_may() -> None:
    cannot = "cannot be answered from the description"
    assert ask(Task.CHOOSE, "There is a red circle.", "red", "blue", cannot, **COLOUR) == (0, 0, 1)
    assert ask(Task.CHOOSE, "A red circle is at the top left.", "red", "blue", cannot, **COLOUR) == (1, 0, 0)


@pytest.mark.parametrize(
    ("task", "fields"),
    [(Task.CHOOSE, {"question": "What is on the table?"}), (Task.RATE, {"question": ""})],
)
def test_what_it_does_not_know_is_missing(task: Task, fields: dict[str, str]) -> None:
    reply = ask(task, "There is a red circle.", "style", "cup", **fields)
    assert isinstance(reply, Missing)
    assert reply.reason is Reason.UNPARSEABLE


@pytest.mark.parametrize(
    ("text", "ratings"),
    [
        ("A red circle is at the top left", (1, 1, 0)),
        ("A red circle is at the top left. There is a red circle.", (0.5, 1, 1)),
        ("The red circle is large. The red circle is small.", (1, 1, 0.5)),
        ("Red circle.", (1, 0, 1)),
        ("Blah blah. A red circle is large.", (0.5, 0.5, 0.5)),
        (" ".join(COMMENTARY), (0, 1, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_ratings_are_shares_of_sentences(text: str, ratings: tuple[float, ...]) -> None:
    assert ask(Task.RATE, text, "clarity", "fluency", "coherence") == ratings


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, 1), ({"images": (draw(SCENE),)}, 2 / 3), ({"question": "There is a red circle."}, 2 / 3)],
)
def test_likert_counts_claims_that_are_there_true_or_in_the_reference(given: Any, expected: float) -> None:
    text = (
        "There is a red circle. A red cross is large."  # three claims, of which the circle is right, in good sentences
    )
    assert ask(Task.LIKERT, text, "overall", **given) == pytest.approx((expected,))


def test_likert_of_no_drawn_picture_is_missing() -> None:
    assert (
        ask(Task.LIKERT, "A red cross is large.", "overall", images=(b"not of this world",)).reason is Reason.NO_FACTS
    )


@given(st.text(max_size=100))
def test_no_text_makes_a_reply_missing(text: str) -> None:
    requests = [
        Request(Task.EXTRACT, text),
        Request(Task.VERIFY, "", (text,), images=(draw(SCENE),)),
        Request(Task.SUPPORT, text, (text, "there is a red circle")),
        Request(Task.CHOOSE, text, ("red", "blue"), COLOUR["question"]),
        Request(Task.RATE, text, ("clarity", "fluency", "coherence")),
        Request(Task.LIKERT, text, ("overall",), images=(draw(SCENE),)),
    ]
    replies = asyncio.run(ShapesJudge().ask(requests))
    assert all(isinstance(complete_reply(*pair), Reply) for pair in zip(requests, replies, strict=True))


def test_a_bare_item_is_missing_everything_but_fluency() -> None:
    table = RewardSuite(components(), max_missing=1.0).score([Rollout(item=Item(id="bare"), caption="A cup.")])
    have = [name for name, cell in zip(table.names, table.raw[0], strict=True) if cell == cell]
    assert have == ["fluency", "likert"]


def test_usage_counts_requests_and_failures() -> None:
    judge = ShapesJudge()
    asyncio.run(judge.ask([Request(Task.VERIFY, "", ("a",)), Request(Task.EXTRACT, "a")]))
    assert (judge.usage.requests, judge.usage.calls, judge.usage.failures) == (2, 2, 1)
