from __future__ import annotations

import math

import pytest

from capreward import Rollout
from capreward.errors import InputError
from capreward.evaluate import distinct, has_meta_commentary, length, meta_commentary, repetition
from capreward.samples import iiw


def test_length() -> None:
    assert (length("A well-lit cup, 2.5 cm tall."), length("...")) == (7, 0)


def test_repetition_by_hand() -> None:
    # "a cup a cup a": bigrams a-cup, cup-a, a-cup, cup-a: two of four stood there before
    assert repetition("A cup, a cup. A", 2) == 0.5
    assert repetition("one two three", 4) == 0
    assert repetition("") == 0
    assert repetition("a cup on a table " * 10) > 0.85


def test_distinct_by_hand() -> None:
    # bigrams: a-cup, cup-stands; a-cup, cup-falls: three different of four
    assert distinct(["A cup stands.", "a cup falls"]) == 0.75
    # no n-gram reaches from one caption into the next
    assert distinct(["a b", "c d"], 2) == 1
    assert distinct(["a b", "b a"], 1) == 0.5
    assert math.isnan(distinct(["cup", ""], 2))
    assert math.isnan(distinct([]))


@pytest.mark.parametrize("n", [0, -1])
def test_n_is_at_least_one(n: int) -> None:
    with pytest.raises(InputError, match=f"n: got {n}, expected a number >= 1"):
        repetition("a cup", n)
    with pytest.raises(InputError, match=f"n: got {n}, expected a number >= 1"):
        distinct(["a cup"], n)


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A cup. This description is complete.", ["This description"]),
        ("My caption covers a cup; the above description is right.", ["My caption", "the above description"]),
        ("The caption captures a cup.", ["The caption captures"]),
        ("I can see a cup. I’ll add that we see a spoon.", ["I can", "I'll", "we see"]),
        ("As an AI language model, let me say: a cup.", ["As an AI", "language model", "let me"]),
        ("Sure! Here is a detailed caption of a cup.", ["Sure!", "Here is a detailed caption"]),
        ("Here's the description: a cup.", ["Here's the description"]),
        ("A cup that draws the viewer in and guides the eye.", ["draws the viewer", "guides the eye"]),
        ("The lines lead the viewer’s gaze to a cup.", ["lead the viewer"]),
        ("A cup in the corner catches one's eye.", ["catches one's eye"]),
        ("As you can see, one might also notice a cup.", ["As you can see", "one might also notice"]),
        ("Note that the cup is white.", ["Note that"]),
    ],
)
def test_meta_commentary(caption: str, phrases: list[str]) -> None:
    assert meta_commentary(caption) == phrases
    assert has_meta_commentary(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "A cup stands on a table.",
        "The bowl of the spoon points toward the viewer.",
        "A cat faces the viewer; its eyes are green and draw closed.",
        "The image shows a man who looks at the camera.",
        "A caption under the photograph reads 'Hope'.",
        "A newspaper with a description of a house for sale.",
        "A sign says SURE THING.",
        "A crowd of onlookers and an audience in the background.",
        "A teacher gives a child one of the cups you find in a canteen.",
        "Roman numerals I and II stand above the doors.",
    ],
)
def test_what_is_of_the_image_is_no_meta_commentary(caption: str) -> None:
    assert meta_commentary(caption) == []
    assert not has_meta_commentary(caption)


def test_on_captions_that_come_with_the_package(photos: list[Rollout]) -> None:
    praise = [rollout.caption for rollout in photos if rollout.metadata["kind"] == "praise"]
    others = [rollout.caption for rollout in photos if rollout.metadata["kind"] != "praise"]
    written_by_people = [rollout.caption for rollout in iiw() if rollout.metadata["author"] == "human"]
    assert sum(map(has_meta_commentary, praise)) == len(praise) == 9
    assert sum(map(has_meta_commentary, others)) == 0
    assert sum(map(has_meta_commentary, written_by_people)) == 0
