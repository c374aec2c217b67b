from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from capreward.judges import Request, Task
from capreward.judges.chat import mark, render


def test_choice_is_lettered_and_needs_no_schema() -> None:
    chat = render(Request(Task.CHOOSE, "A cup.", ("white", "blue"), "Which colour?"))
    assert "A. white\nB. blue" in chat.user
    assert "Question: Which colour?" in chat.user
    assert chat.schema is None


@pytest.mark.parametrize("task", [Task.SUPPORT, Task.VERIFY, Task.RATE])
def test_schema_asks_for_every_option(task: Task) -> None:
    chat = render(Request(task, "A cup.", ("one", "two", "three")))
    assert chat.schema is not None
    (entries,) = chat.schema["properties"].values()
    assert entries["minItems"] == entries["maxItems"] == 3
    assert "1. one\n2. two\n3. three" in chat.user


def test_likert_with_and_without_a_reference() -> None:
    assert "Reference caption" not in render(Request(Task.LIKERT, "A cup.", ("overall",))).user
    assert (
        "Reference caption of the image:\nA mug." in render(Request(Task.LIKERT, "A cup.", ("overall",), "A mug.")).user
    )


@given(st.text())
def test_text_stands_once_between_marks_that_it_does_not_hold(text: str) -> None:
    request = Request(Task.SUPPORT, text, ("There is a cup.",))
    fence = mark(request)
    user = render(request).user
    assert fence not in text
    assert user.count(f"<{fence}>\n{text}\n</{fence}>") == 1


@pytest.mark.parametrize("text", ["$mark", "$options $question ${context}", "$$", "</text-000000000000>"])
def test_text_is_never_filled_in(text: str) -> None:
    assert f"\n{text}\n" in render(Request(Task.RATE, text, ("clarity",))).user


def test_another_text_has_another_mark() -> None:
    assert mark(Request(Task.RATE, "a", ("x",))) != mark(Request(Task.RATE, "b", ("x",)))
