from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from capreward import Criterion, Fact, Item, Question, Rollout
from capreward.errors import InputError
from capreward.records import Record, count_words

QUESTION = {"text": "What colour is the cup?", "options": ["blue", "white"], "answer": 1}


class TestErrors:
    """The message gives the record's name, the field, what came and what is allowed."""

    @pytest.mark.parametrize(
        ("kind", "fields", "said"),
        [
            (Question, QUESTION | {"answer": 2}, ["Question: answer: got 2, expected an index from 0 to 1"]),
            (Question, QUESTION | {"answer": -1}, ["answer: got -1, expected an index from 0 to 1"]),
            (Question, QUESTION | {"options": ["white"], "answer": 0}, ["options: got ['white']", "at least 2"]),
            (Question, QUESTION | {"options": ["a", "a"]}, ["options: got ['a', 'a']", "expected options that all differ"]),
            (Question, QUESTION | {"options": ["a", " a "]}, ["options", "expected options that all differ"]),
            (Question, QUESTION | {"options": ["a", " "]}, ["options[1]: got ' '", "at least 1 character"]),
            (Question, QUESTION | {"text": ""}, ["text: got ''", "at least 1 character"]),
            (Criterion, {"text": "t", "weight": 0}, ["Criterion: weight: got 0", "greater than 0"]),
            (Criterion, {"text": "t", "weight": -1.5}, ["weight: got -1.5", "greater than 0"]),
            (Criterion, {"text": "t", "weight": float("inf")}, ["weight: got inf", "finite"]),
            (Criterion, {"text": "t", "weight": float("nan")}, ["weight: got nan", "finite"]),
            (Fact, {"text": "t", "true": "perhaps"}, ["Fact: true: got 'perhaps'", "boolean"]),
            (Item, {"id": ""}, ["Item '': id: got ''", "at least 1 character"]),
            (Item, {}, ["Item: id: required, but not given"]),
            (Item, {"id": "cup", "color": 1}, ["Item 'cup': color: unknown field; expected one of id, image, references"]),
            (Item, {"id": "cup", "references": "A cup."}, ["Item 'cup': references: got 'A cup.'", "tuple"]),
            (Item, {"id": "cup", "references": ["A cup.", None]}, ["Item 'cup': references[1]: got None", "string"]),
            (Item, {"id": "cup", "image": "data:text/plain,hi"}, ["Item 'cup': image: got 'data:text", "base64 data URL"]),
            (Item, {"id": "cup", "image": "data:image/png;base64,AAH/$$$$"}, ["Item 'cup': image: got 'data:image", "base64"]),
            (Rollout, {"caption": "A cup."}, ["Rollout: item: required, but not given"]),
            (Rollout, {"item": {"id": "cup"}, "caption": None}, ["Rollout 'cup': caption: got None", "string"]),
            (Rollout, {"item": {"id": "cup"}, "caption": "A cup.", "id": ""}, ["Rollout '': id: got ''"]),
        ],
    )  # fmt: skip
    def test_say_what_is_wrong(self, kind: type[Record], fields: dict[str, Any], said: list[str]) -> None:
        with pytest.raises(InputError) as error:
            kind(**fields)
        for words in said:
            assert words in str(error.value)
        assert "\n" not in str(error.value)

    def test_of_a_nested_record_lead_to_it(self) -> None:
        with pytest.raises(InputError) as error:
            Item(id="cup", questions=[QUESTION, QUESTION | {"answer": 7}])
        assert str(error.value) == "Item 'cup': questions[1]: Question: answer: got 7, expected an index from 0 to 1"

    def test_of_a_record_nested_twice_lead_to_it(self) -> None:
        with pytest.raises(InputError) as error:
            Rollout(item={"id": "cup", "rubric": [{"text": "t", "wait": 1}]}, caption="A cup.", id="r1")
        assert str(error.value) == (
            "Rollout 'r1': item: Item 'cup': rubric[0]: Criterion: wait: unknown field; expected one of text, weight"
        )

    def test_name_every_fault(self) -> None:
        with pytest.raises(InputError, match=r"answer: required.*; colour: unknown field"):
            Question(text="t", options=["a", "b"], colour="red")

    def test_shorten_what_came(self) -> None:
        with pytest.raises(InputError) as error:
            Item(id="cup", references="word " * 1000)
        assert len(str(error.value)) < 200

    def test_of_the_image_name_the_field(self) -> None:
        with pytest.raises(InputError) as error:
            Item(id="cup", image=5)
        assert "image: got 5" in str(error.value)
        assert "lax-or-strict" not in str(error.value)

    def test_of_an_unknown_field_called_self(self) -> None:
        with pytest.raises(InputError, match="self: unknown field"):
            Item(**dict.fromkeys(["id", "self"], "cup"))


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (Item(id="cup"), "id"),
        (Question(**QUESTION), "answer"),
        (Rollout(item=Item(id="cup"), caption="A cup."), "caption"),
    ],
)
def test_records_are_frozen(record: Record, field: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, field, getattr(record, field))


class TestDefaults:
    def test_group_is_the_items_id(self) -> None:
        assert Rollout(item=Item(id="cup"), caption="A cup.").group == "cup"
        assert Rollout(item=Item(id="cup"), caption="A cup.", group="prompt 3").group == "prompt 3"

    def test_numbers_become_ids(self) -> None:
        rollout = Rollout(item=Item(id=7), caption="A cup.", id=0, group=3)
        assert (rollout.item.id, rollout.id, rollout.group) == ("7", "0", "3")

    def test_of_question_criterion_and_fact(self) -> None:
        assert Question(**QUESTION).hard is False
        assert Criterion(text="Mentions a cup").weight == 1.0
        assert Fact(text="The cup is white.") == Fact(text="The cup is white.", true=True, pointable=True)

    def test_texts_lose_the_space_around_them_but_captions_keep_it(self) -> None:
        item = Item(id="cup", references=[" A cup.\n"])
        assert item.references == ("A cup.",)
        assert Rollout(item=item, caption=" A cup.\n").caption == " A cup.\n"


class TestImage:
    @pytest.mark.parametrize(
        ("given_", "kept"),
        [
            (None, None),
            ("photos/cup.jpg", Path("photos/cup.jpg")),
            (Path("cup.jpg"), Path("cup.jpg")),
            (b"\x00\x01\xff", b"\x00\x01\xff"),
            ("data:image/png;base64,AAH/", b"\x00\x01\xff"),
        ],
    )
    def test_forms(self, given_: Any, kept: Any) -> None:
        assert Item(id="cup", image=given_).image == kept

    @pytest.mark.parametrize("image", [None, Path("photos/cup.jpg"), b"\x89PNG\x00\xff"])
    def test_survives_json(self, image: Any) -> None:
        item = Item(id="cup", image=image, references=["A cup."], questions=[QUESTION], metadata={"split": "train"})
        assert Item.model_validate_json(item.model_dump_json()) == item
        rollout = Rollout(item=item, caption="A cup.", id="r1", group="g")
        assert Rollout.model_validate_json(rollout.model_dump_json()) == rollout


class TestCaption:
    def test_lone_surrogates_are_replaced(self) -> None:
        assert Rollout(item=Item(id="cup"), caption="A \ud800cup\udfff.").caption == "A ?cup?."

    @given(st.text())
    def test_any_other_text_is_kept(self, caption: str) -> None:
        assert Rollout(item=Item(id="cup"), caption=caption).caption == caption

    @pytest.mark.parametrize("caption", ["", " \n\t", "...", "—!?", "🙂🎉", "\u200b\ufeff", "\x00", "_"])
    def test_without_letter_or_digit_is_empty(self, caption: str) -> None:
        assert Rollout(item=Item(id="cup"), caption=caption).is_empty

    @pytest.mark.parametrize("caption", ["a", "7", "é", "ж", "杯", "فنجان", "कप", "ถ้วย", "...a", "٣"])
    def test_with_a_letter_or_digit_of_any_script_is_not(self, caption: str) -> None:
        assert not Rollout(item=Item(id="cup"), caption=caption).is_empty


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" ... — !", 0),
        ("A white cup.", 3),
        ("the cup's rim", 3),
        ("It doesn’t shine", 3),
        ("a well-worn table", 4),
        ("3.5 metres, 20 steps", 4),
        ("one--two", 2),
        ("red,green", 2),
        ("'quoted' words", 2),
        ("una taza pequeña", 3),
        ("हिन्दी में", 2),
        ("cafe\u0301s", 1),
        ("20,000 people", 2),
        *((mark.join(["cup"] * 60), 60) for mark in "-/._:|\u200b\u2060"),
        ("cup" * 60, 6),
        ("a wh\u200bi\u00adte\u2060 cup\ufeff", 3),
        ("\u202ba\u202c \u202bcup\u202c", 2),
        ("белая чашка", 2),
        ("白色的杯子，在桌上", 2),
    ],
)
def test_count_words(text: str, words: int) -> None:
    assert count_words(text) == words
