from __future__ import annotations

import asyncio

import pytest
from fakes import FakeJudge, rollouts, score
from hypothesis import given, strategies as st

from capreward import Item, Missing, Reason, Reply, Score
from capreward.components.qa import CANNOT
from capreward.errors import InputError
from capreward.evaluate import WithinBudget, caption_qa, cut, prism
from capreward.judges import Request
from capreward.records import count_words

ITEM = Item(
    id="cup",
    questions=(
        {"text": "colour?", "options": ("white", "red", "blue", "green"), "answer": 0},
        {"text": "material?", "options": ("wood", "metal"), "answer": 1},
        {"text": "handle?", "options": ("yes", "no"), "answer": 0},
        {"text": "height?", "options": ("low", "middle", "high"), "answer": 2},
    ),
)


def reader(request: Request) -> tuple[float, ...]:
    """Chooses the option that the caption holds; else says that it cannot be answered, where that is offered, else the last."""
    said = [option for option in request.options if option in request.context.split()]
    chosen = said[0] if said else CANNOT if CANNOT in request.options else request.options[-1]
    return tuple(float(option == chosen) for option in request.options)


def test_caption_qa_by_hand() -> None:
    # right, wrong, "no" for yes or no (nothing else is offered), and an admission worth 1/3 + 0.05
    (found,) = score(caption_qa(FakeJudge(reader)), "white wood no", item=ITEM)
    assert isinstance(found, Score)
    assert found.value == pytest.approx((1 + 0 + 0 + 1 / 3 + 0.05) / 4)
    # nothing at all: 1/4 + 0.05, 1/2 + 0.05, the last of yes and no, 1/3 + 0.05
    judge = FakeJudge(reader)
    (found,) = score(caption_qa(judge), "dog", item=ITEM)
    assert isinstance(found, Score)
    last = next(request for request in judge.asked if request.question == "handle?").options[-1]
    assert found.value == pytest.approx((0.3 + 0.55 + (last == "yes") + 1 / 3 + 0.05) / 4)
    assert sum(CANNOT in request.options for request in judge.asked) == 3


def test_prism_by_hand() -> None:
    judge = FakeJudge(reader)
    (found,) = score(prism(judge), "white metal no low", item=ITEM)
    assert found == Score(0.5, "2 of 4 right", found.evidence)  # type: ignore[union-attr]
    assert not any(CANNOT in request.options for request in judge.asked)
    assert score(prism(judge), "cup") == [Missing(Reason.NO_QUESTIONS, "item 'bare' has no questions")]


def test_within_a_budget() -> None:
    judge = FakeJudge(reader)
    whole, short = prism(judge), WithinBudget(prism(judge), 2)
    caption = "metal yes high white"
    assert [found.value for part in (whole, short) for found in score(part, caption, item=ITEM)] == [1, 0.5]  # type: ignore[union-attr]
    assert short.name == "qa@2"
    assert {request.context for request in judge.asked} == {caption, "metal yes"}
    assert score(short, "", item=ITEM)[0].value == 0  # type: ignore[union-attr]


def test_a_caption_within_the_budget_is_asked_nothing_new() -> None:
    judge = FakeJudge(lambda request: Reply((1.0,) + (0.0,) * (len(request.options) - 1)))
    batch = rollouts("a white cup", item=ITEM)
    asyncio.run(prism(judge).score(batch))
    asked = set(judge.asked)
    asyncio.run(WithinBudget(prism(judge), 100).score(batch))
    assert set(judge.asked) == asked


@pytest.mark.parametrize(
    ("caption", "budget", "left"),
    [
        ("A white cup stands.", 4, "A white cup stands."),
        ("A white cup stands.", 3, "A white cup"),
        ("  A white\n\ncup  stands.", 2, "  A white"),
        ("A well-lit cup", 2, "A"),
        ("A cup - 2.5 cm", 3, "A cup - 2.5"),
        ("well-lit cup", 1, ""),
        ("", 5, ""),
    ],
)
def test_cut(caption: str, budget: int, left: str) -> None:
    assert cut(caption, budget) == left


@given(st.text(alphabet="ab ,.-'’1é\u0301\n", max_size=60), st.integers(1, 8))
def test_cut_keeps_the_budget_and_as_much_as_it_can(caption: str, budget: int) -> None:
    left = cut(caption, budget)
    assert caption.startswith(left)
    assert count_words(left) <= budget
    rest = caption[len(left) :].split()
    if rest:
        assert count_words(left) + count_words(rest[0]) > budget
    else:
        assert left == caption


def test_budget_is_at_least_one() -> None:
    with pytest.raises(InputError, match="WithinBudget: got budget=0, expected a number of words >= 1"):
        WithinBudget(prism(FakeJudge(reader)), 0)
