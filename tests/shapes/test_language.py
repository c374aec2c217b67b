from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from capreward.errors import InputError
from capreward.shapes import Claim, Kind, Scene, Thing, caption, claims, items, scene, scene_of
from capreward.shapes.language import (
    COMMENTARY,
    COUNTS,
    MORE_COUNTS,
    count_of,
    facts,
    item,
    questions,
    said,
    sentences,
    truths,
    units,
)

SCENE = Scene(
    things=(
        Thing(colour="red", shape="circle", size="large", cell="top left"),
        Thing(colour="blue", shape="cross", size="small", cell="right"),
    )
)
SCENES = st.one_of(
    st.builds(scene, st.integers()), st.builds(lambda seed: scene(seed, fewest=2, most=9), st.integers())
)
WORDS = (
    "a the there is are red blue circle cross large at top left right of above and two things scene . , ; 🙂 x".split()
)
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join),
    st.builds(lambda made, cut: caption(made)[:cut], SCENES, st.integers(0, 200)),
)

RED = Claim(Kind.THING, "red circle")
RED_LARGE = Claim(Kind.SIZE, "red circle", "large")
RED_TOP_LEFT = Claim(Kind.PLACE, "red circle", "top left")
LEFT_OF = Claim(Kind.RELATION, "red circle", "left of", "blue cross")


@pytest.mark.parametrize(
    ("text", "expected", "well_formed", "finished"),
    [
        ("A large red circle is at the top left.", [RED, RED_LARGE, RED_TOP_LEFT], True, True),
        ("There is a large red circle at the top left", [RED, RED_LARGE, RED_TOP_LEFT], True, False),
        ("the red circle is large!", [RED_LARGE], True, True),
        ("the red circle is large...", [RED_LARGE], True, False),
        ("The red circle is in the top left.", [RED_TOP_LEFT], True, True),
        ("The red circle is left of the blue cross.", [LEFT_OF], True, True),
        ("The blue cross is right of the red circle.", [LEFT_OF], True, True),
        ("There are two things.", [Claim(Kind.COUNT, value="two")], True, True),
        ("There is a red circle and a blue cross.", [RED, Claim(Kind.THING, "blue cross")], True, True),
        ("Red circle, top left.", [RED, Claim(Kind.UNCLEAR, value="top left")], False, True),
        ("red circle.", [RED], False, True),
        ("Large red circle at the top left.", [RED, RED_LARGE, RED_TOP_LEFT], False, True),
        ("There is a red circle is large.", [Claim(Kind.UNCLEAR, value="there is a red circle is large")], False, True),
        ("A red red circle.", [Claim(Kind.UNCLEAR, value="a red red circle")], False, True),
        ("The image feels sad.", [Claim(Kind.COMMENTARY, value="the image feels sad")], False, True),
        (COMMENTARY[2], [Claim(Kind.COMMENTARY, value="this description is accurate and complete")], True, True),
    ],
)
def test_a_sentence_is_taken_apart(text: str, expected: list[Claim], well_formed: bool, finished: bool) -> None:
    (sentence,) = sentences(text)
    assert list(sentence.claims) == expected
    assert (sentence.well_formed, sentence.finished) == (well_formed, finished)


@pytest.mark.parametrize("text", ["", " \n", "...", '"', ", and ."])
def test_what_holds_no_word_claims_nothing(text: str) -> None:
    assert claims(text) == []


@given(TEXTS)
def test_any_text_is_taken_apart_into_claims_that_read_back_as_themselves(text: str) -> None:
    made = claims(text)
    assert len(set(made)) == len(made)
    for claim in made:
        assert claims(claim.text) == [claim]
        assert claim.text.strip()


@given(TEXTS)
def test_saying_it_twice_claims_nothing_more(text: str) -> None:
    assert claims(f"{text}.{text}") == claims(text)
    assert said(f"{text}.{text}") == said(text)


@given(SCENES, st.booleans())
def test_a_complete_caption_says_all_units_and_all_truths_follow(made: Scene, there: bool) -> None:
    text = caption(made, there=there)
    assert set(claims(text)) == set(units(made))
    assert said(text) == truths(made)
    assert all(sentence.well_formed and sentence.finished for sentence in sentences(text))


def test_the_truths_of_two_things() -> None:
    blue = [
        Claim(Kind.THING, "blue cross"),
        Claim(Kind.SIZE, "blue cross", "small"),
        Claim(Kind.PLACE, "blue cross", "right"),
    ]
    above = Claim(Kind.RELATION, "red circle", "above", "blue cross")
    count = Claim(Kind.COUNT, value="two")
    assert truths(SCENE) == {count, RED, RED_LARGE, RED_TOP_LEFT, *blue, LEFT_OF, above}


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("The red circle is large. The red circle is small.", RED_LARGE),
        ("The red circle is at the top left. The red circle is at the left.", RED_TOP_LEFT),
        ("The red circle is at the top left. The blue cross is at the top left.", RED_TOP_LEFT),
        ("The red circle is left of the blue cross. The red circle is right of the blue cross.", LEFT_OF),
        ("There are two things. There are three things.", Claim(Kind.COUNT, value="two")),
    ],
)
def test_a_contradicted_claim_is_not_said(text: str, lost: Claim) -> None:
    assert lost in claims(text)
    assert lost not in said(text)
    assert lost in said(text.split(".")[0])


@given(SCENES)
def test_facts_are_labelled_and_exhaustive(made: Scene) -> None:
    labels = {fact.text: fact.true for fact in facts(made) if fact.pointable}
    assert {text for text, true in labels.items() if true} == {claim.text for claim in truths(made)}
    assert len(labels) == len([fact for fact in facts(made) if fact.pointable])
    assert {fact.text for fact in facts(made) if not fact.pointable} == set(COMMENTARY)


@given(SCENES)
def test_questions_have_four_options_and_the_right_one_is_a_claim(made: Scene) -> None:
    asked = questions(made, random.Random(0))
    assert len(asked) == 4 * len(made.things) + 1
    for question in asked:
        assert len(set(question.options)) == 4
    where = [question for question in asked if question.kind == "place"]
    assert [question.options[question.answer] for question in where] == [f"at the {t.cell}" for t in made.things]
    assert f"There are {asked[-1].options[asked[-1].answer]} things." == count_of(made)


def test_where_a_thing_is_cannot_be_guessed_from_the_wrong_options_of_a_large_scene() -> None:
    asked = questions(scene(0, fewest=9, most=9), random.Random(0))
    wrong = [set(question.options) for question in asked if question.kind == "place"]
    assert len(set.union(*wrong[:3])) > 4  # not the same three cells each time


def test_a_question_is_hard_when_another_thing_has_the_wrong_option() -> None:
    hard = {question.text: question.hard for question in questions(SCENE, random.Random(0))}
    assert hard["What colour is the thing at the right?"]
    assert hard["What size is the blue cross?"]
    assert not hard["How many things are there?"]


def test_an_item_has_everything() -> None:
    made = item(SCENE, "two")
    assert made.references[0] == (
        "There are two things. A large red circle is at the top left. A small blue cross is at the right."
    )
    assert made.references[1].endswith("The red circle is left of the blue cross.")
    assert made.reference_units[:3] == ("there are two things", "there is a red circle", "the red circle is large")
    assert [criterion.weight for criterion in made.rubric] == [2, 3, 1, 2, 3, 1, 2]
    assert isinstance(made.image, bytes)
    assert scene_of(made.image) == SCENE


@pytest.mark.parametrize("count", range(2, 10))
def test_a_scene_of_any_size_holds_its_true_count(count: int) -> None:
    made = scene(0, fewest=count, most=count)
    word = (*COUNTS, *MORE_COUNTS)[count - 2]
    counts = [fact for fact in facts(made) if fact.text.startswith("there are ")]
    assert count_of(made) == f"There are {word} things."
    assert [fact.text for fact in counts if fact.true] == [f"there are {word} things"]
    assert len(counts) == (4 if count <= 5 else 8)
    assert len(units(made)) == 1 + 3 * count
    assert units(made)[0] == Claim(Kind.COUNT, value=word)


@pytest.mark.parametrize(("count", "related"), [(2, 1), (4, 6), (5, 4), (9, 8)])
def test_the_second_reference_relates_each_two_of_four_things_and_neighbours_of_more(count: int, related: int) -> None:
    made = scene(1, fewest=count, most=count)
    told = claims(item(made, "one").references[1])
    pairs = {frozenset((claim.subject, claim.other)) for claim in told if claim.kind is Kind.RELATION}
    names = [thing.name for thing in made.things]
    assert truths(made).issuperset(told)
    assert len(pairs) == related
    assert all(frozenset(pair) in pairs for pair in pairwise(names))


def test_items_of_other_sizes_have_other_ids() -> None:
    assert [made.id for made in items(2, 3, fewest=4, most=8)] == ["shapes-3-4to8-0", "shapes-3-4to8-1"]
    assert items(2, fewest=2, most=4) == items(2)
    with pytest.raises(InputError, match="fewest=1"):
        items(1, fewest=1)


def test_items_are_seeded() -> None:
    assert items(3, seed=1)[:2] == items(2, seed=1)
    assert [made.id for made in items(2, seed=1)] == ["shapes-1-0", "shapes-1-1"]
    assert items(1, seed=1)[0].image != items(1, seed=2)[0].image
