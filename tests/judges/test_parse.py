from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from capreward import Missing, Reason
from capreward.judges import Reply, Request, Task
from capreward.judges.parse import from_letters, parse

CHOICE = Request(Task.CHOOSE, "A cup.", ("white", "blue", "red"), "Which colour?")
SUPPORT = Request(Task.SUPPORT, "A cup.", ("There is a cup.", "There is a dog."))


def verdicts(*entries: object) -> str:
    return json.dumps({"verdicts": entries})


def holds(number: object, value: object = True) -> dict[str, object]:
    return {"number": number, "why": "seen", "holds": value}


@pytest.mark.parametrize("text", ["B", " B\n", "B.", "(B)", "B) blue", "B: blue", "B, I think"])
def test_letter(text: str) -> None:
    assert parse(CHOICE, text) == Reply((0.0, 1.0, 0.0), raw=text)


@pytest.mark.parametrize(
    "text", ["", "b", "D", "blue", "Answer: B", "Because it is blue", "BLUE", "A or B?", "A white cup", "I"]
)
def test_what_is_no_letter_is_not_guessed(text: str) -> None:
    reply = parse(CHOICE, text)
    assert isinstance(reply, Missing)
    assert reply.reason is Reason.UNPARSEABLE
    assert repr(text) in reply.detail
    assert reply.raw == text


def test_probabilities_of_letters_are_added_up_over_spellings_and_renormalised() -> None:
    reply = from_letters(CHOICE, {"A": 0.1, " A": 0.1, "B": 0.2, "The": 0.5, "Z": 0.1, "a": 0.4}, "A")
    assert isinstance(reply, Reply)
    assert reply.values == pytest.approx((0.5, 0.5, 0.0))


def test_without_a_letter_among_the_tokens_the_text_decides() -> None:
    assert from_letters(CHOICE, {"The": 1.0}, "C") == Reply((0.0, 0.0, 1.0), raw="C")
    assert from_letters(CHOICE, {"The": 1.0}, "The").raw == "The"


def test_verdicts_come_back_in_the_order_of_the_options() -> None:
    text = verdicts(holds(2, False), holds(1))
    assert parse(SUPPORT, text) == Reply((1.0, 0.0), why=("seen", "seen"), raw=text)
    assert parse(SUPPORT, f"```json\n{text}\n```").values == (1.0, 0.0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("All criteria are met.", "not JSON"),
        (verdicts(holds(1), holds(2))[:-4], "not JSON"),
        ("[]", "expected an object with a list 'verdicts'"),
        ('{"verdicts": {"1": true}}', "expected an object with a list 'verdicts'"),
        (verdicts(holds(1)), "got numbers [1], expected each from 1 to 2 once"),
        (verdicts(holds(1), holds(1)), "got numbers [1, 1], expected each from 1 to 2 once"),
        (verdicts(holds(1), holds(2), holds(3)), "got numbers [1, 2, 3]"),
        (verdicts(holds(1), holds(None)), "got numbers [1, None]"),
        (verdicts(holds(1), {"number": 2}), "got holds None, expected true or false"),
        (verdicts(holds(1), holds(2, "yes")), "got holds 'yes', expected true or false"),
        (verdicts(holds(1), holds(2, 1)), "got holds 1, expected true or false"),
        (verdicts(1, 2), "expected a list of objects"),
        ('{"verdicts": [], "verdicts": []}', "got names ['verdicts', 'verdicts'], expected each once"),
        ('{"verdicts": [], "checked": []}', "expected an object with a list 'verdicts' alone"),
    ],
)
def test_incomplete_verdicts_are_missing(text: str, said: str) -> None:
    reply = parse(SUPPORT, text)
    assert isinstance(reply, Missing)
    assert reply.reason is Reason.UNPARSEABLE
    assert said in reply.detail
    assert reply.raw == text


def test_verify_needs_both() -> None:
    request = Request(Task.VERIFY, "", ("a", "b", "c"))
    both = [(True, True), (True, False), (False, True)]
    text = verdicts(*({"number": n, "true": t, "pointable": p} for n, (t, p) in enumerate(both, 1)))
    assert parse(request, text).values == (1.0, 0.0, 0.0)  # type: ignore[union-attr]


@pytest.mark.parametrize(("rating", "value"), [(1, 0.0), (3, 0.5), (5, 1.0)])
@pytest.mark.parametrize("task", [Task.RATE, Task.LIKERT])
def test_ratings(task: Task, rating: int, value: float) -> None:
    text = json.dumps({"ratings": [{"number": 1, "rating": rating}]})
    assert parse(Request(task, "A cup.", ("clarity",)), text).values == (value,)  # type: ignore[union-attr]


@pytest.mark.parametrize("rating", [0, 6, 2.5, "5", None, True])
def test_ratings_off_the_scale(rating: object) -> None:
    text = json.dumps({"ratings": [{"number": 1, "rating": rating}]})
    assert isinstance(parse(Request(Task.RATE, "A cup.", ("clarity",)), text), Missing)


def test_statements() -> None:
    request = Request(Task.EXTRACT, "A cup. A cup. A dog.")
    text = json.dumps({"statements": ["A cup.", " A cup. ", "", "A dog."]})
    assert parse(request, text).texts == ("A cup.", "A dog.")  # type: ignore[union-attr]
    assert isinstance(parse(request, '{"statements": [1]}'), Missing)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.sampled_from(Task), st.text() | JSON.map(json.dumps) | JSON.map(lambda x: json.dumps({"verdicts": [x, x]})))
def test_whatever_it_says_is_a_complete_reply_or_missing(task: Task, text: str) -> None:
    reply = parse(Request(task, "A cup.", ("a", "b") if task is not Task.EXTRACT else ()), text)
    assert isinstance(reply, Missing) or len(reply.values) == (0 if task is Task.EXTRACT else 2)
