from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from capreward import Missing, Reason
from capreward.judges import Reply, Request, Task
from capreward.judges.base import complete_reply
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


@pytest.mark.parametrize(("rating", "value"), [(1, 0.0), (2, 0.25), (3, 0.5), (4, 0.75), (5, 1.0)])
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


LISTS = {Task.INQUIRE: "questions", Task.CRITICISE: "criteria"}
QUESTION = {"kind": "object", "question": "What is it?", "options": ["eine Tür", "a", "b", "c"], "answer": "eine Tür"}


@pytest.mark.parametrize(("task", "key"), LISTS.items())
class TestObjects:
    def test_each_is_a_text_with_sorted_names(self, task: Task, key: str) -> None:
        said = json.dumps({key: [QUESTION, {"odd": [None, 1.5]}, {}, QUESTION]})
        reply = parse(Request(task, "A cup.", ("a", "b")), f"```json\n{said}\n```")
        assert isinstance(reply, Reply)
        first, odd, empty, again = reply.texts
        assert first == again
        assert first.startswith('{"answer": "eine Tür", "kind": "object", "options": ["eine Tür", "a"')
        assert json.loads(first) == QUESTION
        assert (odd, empty, reply.values) == ('{"odd": [null, 1.5]}', "{}", ())

    def test_none_is_a_reply(self, task: Task, key: str) -> None:
        said = json.dumps({key: []})
        assert parse(Request(task, "A cup.", ("a",)), said) == Reply(raw=said)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "not JSON"),
            ("Here are the questions.", "not JSON"),
            ('{"KEY": [{"a": 1}', "not JSON"),
            ("[{}]", "expected an object with a list"),
            ('{"KEY": {}}', "expected an object with a list"),
            ('{"KEY": null}', "expected an object with a list"),
            ('{"KEY": [], "note": "all done"}', "alone"),
            ('{"statements": ["a"]}', "expected an object with a list"),
            ('{"KEY": ["What is it?"]}', "expected a list of objects"),
            ('{"KEY": [{}, null]}', "expected a list of objects"),
            ('{"KEY": [{"answer": "a", "answer": "b"}]}', "expected each once"),
            ('{"KEY": [{"answer": NaN}]}', "cannot be written as JSON"),
            ('{"KEY": [{"answer": 1e999}]}', "cannot be written as JSON"),
            ('{"KEY": [{"answer": "\\ud800"}]}', "no Unicode"),
            ('{"KEY": [{"\\udfff": "a"}]}', "no Unicode"),
            ('{"KEY": [{"a": ' + "[" * 100_000 + "]" * 100_000 + "}]}", "not JSON"),
            ('{"KEY": [{"a": ' + "9" * 10_000 + "}]}", "not JSON"),
        ],
    )
    def test_what_are_no_objects(self, task: Task, key: str, text: str, said: str) -> None:
        text = text.replace("KEY", key)
        reply = parse(Request(task, "A cup.", ("a", "b")), text)
        assert isinstance(reply, Missing)
        assert (reply.reason, reply.raw) == (Reason.UNPARSEABLE, text)
        assert said in reply.detail

    @pytest.mark.parametrize("depth", [500, 900, 2_000, 10_000])
    def test_depth(self, task: Task, key: str, depth: int) -> None:
        text = f'{{"{key}": [{{"a": {"[" * depth}{"]" * depth}}}]}}'
        reply = parse(Request(task, "A cup.", ("a",)), text)
        assert isinstance(reply, Reply) or reply.reason is Reason.UNPARSEABLE


def test_a_description_is_what_was_said() -> None:
    request = Request(Task.DESCRIBE, "", (), "Describe it.", (b"x",))
    assert parse(request, ' A cup.\n\n{"a": 1}\n') == Reply(texts=('A cup.\n\n{"a": 1}',), raw=' A cup.\n\n{"a": 1}\n')
    for text in ("", " \n\t", "A \ud800 cup."):
        reply = parse(request, text)
        assert isinstance(reply, Missing)
        assert (reply.reason, reply.raw) == (Reason.UNPARSEABLE, text)


def test_what_is_seen_is_chosen_by_letter() -> None:
    request = Request(Task.LOOK, "", ("white", "blue"), "Which colour?", (b"x",))
    assert parse(request, "B.") == Reply((0.0, 1.0), raw="B.")
    assert from_letters(request, {"A": 0.2, "B": 0.6}, "B").values == pytest.approx((0.25, 0.75))  # type: ignore[union-attr]
    assert isinstance(parse(request, "blue"), Missing)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
LISTED = st.dictionaries(st.sampled_from(["verdicts", "questions", "criteria"]), st.lists(JSON), min_size=1, max_size=1)


@given(st.sampled_from(Task), st.text() | JSON.map(json.dumps) | LISTED.map(json.dumps))
def test_whatever_it_says_is_a_complete_reply_or_missing(task: Task, text: str) -> None:
    request = Request(task, "A cup.", ("a", "b") if task is not Task.EXTRACT else ())
    reply = parse(request, text)
    assert complete_reply(request, reply) is reply
    if task in LISTS and isinstance(reply, Reply):
        assert all(isinstance(json.loads(each), dict) for each in reply.texts)
    "".join(getattr(reply, "texts", ())).encode()
