from __future__ import annotations

import pytest
from fakes import FakeJudge, score

from capreward import Item, LikertJudge, Missing, Reason, Score
from capreward.errors import InputError
from capreward.judges import Reply, Request, Task
from capreward.judges.fake import FunctionJudge

ITEM = Item(id="cup", references=["A white cup.", "A mug."], image=b"image")
RATED = Reply((0.75,), why=("well put",))


def test_the_rating_is_the_score() -> None:
    judge = FakeJudge(RATED)
    assert score(LikertJudge(judge), "A cup.", item=ITEM) == [Score(0.75, "well put", {"why": ["well put"]})]
    assert judge.asked == [Request(Task.LIKERT, "A cup.", ("overall",))]


def test_with_the_first_reference() -> None:
    judge = FakeJudge(RATED)
    component = LikertJudge(judge, reference=True)
    assert component.name == "likert_with_reference"
    (first, second) = (*score(component, "A cup.", item=ITEM), *score(component, "A cup."))
    assert isinstance(first, Score)
    assert judge.asked == [Request(Task.LIKERT, "A cup.", ("overall",), "A white cup.")]
    assert second == Missing(Reason.NO_REFERENCE, "item 'bare' has no references")


def test_a_judge_that_sees_is_shown_the_image() -> None:
    judge = FunctionJudge(RATED, images=True)
    score(LikertJudge(judge), "A cup.", item=ITEM)
    assert judge.asked[0].images == (b"image",)


def test_failures() -> None:
    down = Missing(Reason.SERVER, "down")
    assert score(LikertJudge(FakeJudge(down)), "A cup.") == [down]
    (reply,) = score(LikertJudge(FakeJudge((0.5, 0.5))), "A cup.")
    assert reply.reason is Reason.UNPARSEABLE
    with pytest.raises(InputError, match="LikertJudge: judge 'fake' cannot likert"):
        LikertJudge(FakeJudge(tasks=[Task.RATE]))
