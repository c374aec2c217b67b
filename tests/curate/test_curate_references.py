from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from capreward import Item, Missing, Reason
from capreward.curate.references import References
from capreward.curate.stage import Curated
from capreward.errors import InputError
from capreward.judges import Reply, Request, Task
from capreward.judges.fake import FunctionJudge

ITEM = Item(id="cup", image=b"cup", references=["An old one."], reference_units=["Old."], metadata={"kept": 1})
TIMEOUT = Missing(Reason.TIMEOUT, "30 s")


def sentences(request: Request) -> Reply:
    return Reply(texts=tuple(f" {text}." for text in request.context.split(".")[:-1]))


def stage(
    caption: Any = "A cup. A dog. A cup.",
    extract: Callable[[Request], Any] = sentences,
    verify: Callable[[Request], Any] | None = None,
    **more: Any,
) -> References:
    told = caption if isinstance(caption, Missing) or callable(caption) else Reply(texts=(caption,))
    return References(
        FunctionJudge(told, images=True, name="describer"),
        FunctionJudge(extract, name="extractor"),
        verifier=None if verify is None else FunctionJudge(verify, images=True, name="verifier"),
        **more,
    )


def curate(stage: References, *items: Item) -> list[Any]:
    return list(asyncio.run(stage.curate(items or [ITEM])))


def test_the_reference_is_new_and_so_are_its_units() -> None:
    made = stage(" A cup. A dog. A cup.\n", instruction="Say.")
    (outcome,) = curate(made)
    assert outcome.item.references == ("A cup. A dog. A cup.",)
    assert outcome.item.reference_units == ("A cup.", "A dog.")
    old = {"references": ITEM.references, "reference_units": ITEM.reference_units}
    assert outcome.item.model_copy(update=old) == ITEM
    assert outcome.record == {
        "reference": "A cup. A dog. A cup.",
        "old_references": ["An old one."],
        "statements": [{"text": "A cup.", "kept": True}, {"text": "A dog.", "kept": True}],
    }
    assert made.describer.asked == [Request(Task.DESCRIBE, "", (), "Say.", (b"cup",))]
    assert made.extractor.asked == [Request(Task.EXTRACT, "A cup. A dog. A cup.")]
    assert made.count(outcome.record) == {"written": 2, "kept": 2, "dropped": 0}
    assert made.judges == (made.describer, made.extractor)


def test_old_references_can_stay_behind_the_new_one() -> None:
    (outcome,) = curate(stage(keep_old=True))
    assert outcome.item.references == ("A cup. A dog. A cup.", "An old one.")
    assert outcome.item.reference_units == ("A cup.", "A dog.")


def test_what_the_image_does_not_bear_out_is_no_unit() -> None:
    made = stage("A. B. C.", verify=lambda _: (0.5, 0.49, 1.0))
    (outcome,) = curate(made)
    assert outcome.item.reference_units == ("A.", "C.")
    assert outcome.item.references == ("A. B. C.",)
    assert outcome.record["statements"][1] == {"text": "B.", "kept": False, "probability": 0.49}
    assert made.verifier.asked == [Request(Task.VERIFY, "", ("A.", "B.", "C."), images=(b"cup",))]
    assert made.count(outcome.record) == {"written": 3, "kept": 2, "dropped": 1}
    assert made.judges == (made.describer, made.extractor, made.verifier)


@pytest.mark.parametrize(
    "made",
    [
        stage(TIMEOUT),
        stage(extract=lambda _: TIMEOUT),
        stage(verify=lambda _: TIMEOUT),
    ],
)
def test_failures(made: References) -> None:
    assert curate(made) == [TIMEOUT]


def test_a_description_of_nothing() -> None:
    (outcome,) = curate(stage(extract=lambda _: Reply(texts=(" ",))))
    assert outcome == Missing(Reason.NO_REFERENCE, "item 'cup': a description without a statement in it")
    (outcome,) = curate(stage(verify=lambda r: (0.0,) * len(r.options)))
    assert outcome.reason is Reason.NO_REFERENCE
    assert "bears out no statement" in outcome.detail
    (outcome,) = curate(stage(" "))
    assert outcome.reason is Reason.UNPARSEABLE


def test_no_image() -> None:
    made = stage(verify=lambda r: (1.0,) * len(r.options))
    none, cup = curate(made, Item(id="none", references=["A cup."]), ITEM)
    assert none == Missing(Reason.NO_IMAGE, "item 'none' has no image to describe")
    assert isinstance(cup, Curated)


def test_items_alone_or_together_come_out_the_same_in_one_call_to_each_judge() -> None:
    items = [Item(id=str(n), image=f"{n}".encode()) for n in range(4)]
    calls: list[str] = []

    def run(some: Sequence[Item]) -> list[Any]:
        made = stage(
            lambda r: Reply(texts=(f"A {r.images[0].decode()}. B.",)),
            verify=lambda r: tuple(float(option != "A 2.") for option in r.options),
        )
        for judge in made.judges:

            async def ask(requests: Sequence[Request], judge: Any = judge) -> Any:
                calls.append(judge.name)
                return await FunctionJudge.ask(judge, requests)

            judge.ask = ask
        return curate(made, *some)

    together = run(items)
    assert calls == ["describer", "extractor", "verifier"]
    assert together == [run([item])[0] for item in items] == run(items[::-1])[::-1]
    assert [outcome.item.reference_units for outcome in together][1:3] == [("A 1.", "B."), ("B.",)]


def test_settings_are_described() -> None:
    described = stage(verify=lambda _: ()).describe()
    json.dumps(described)
    assert (described["describer"], described["extractor"], described["verifier"]) == (
        "describer",
        "extractor",
        "verifier",
    )
    assert set(described["prompts"]) == {"describe", "extract", "verify"}
    assert stage().describe()["verifier"] is None


def test_what_it_refuses() -> None:
    able, blind = FunctionJudge(images=True), FunctionJudge(name="blind")
    with pytest.raises(InputError, match="References: judge 'blind' sees no image"):
        References(blind, able)
    with pytest.raises(InputError, match="References: judge 'blind' sees no image"):
        References(able, able, verifier=blind)
    with pytest.raises(InputError, match="References: judge 'mute' cannot extract"):
        References(able, FunctionJudge(tasks=[Task.CHOOSE], name="mute"))
    with pytest.raises(InputError, match="References: got an empty instruction"):
        stage(instruction=" ")


TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)


@settings(deadline=None)
@given(TEXTS, st.lists(TEXTS, max_size=4), st.floats(0, 1))
def test_whatever_is_written_nothing_raises(caption: str, statements: list[str], p: float) -> None:
    made = stage(caption, extract=lambda _: Reply(texts=tuple(statements)), verify=lambda r: (p,) * len(r.options))
    (outcome,) = curate(made)
    if isinstance(outcome, Curated):
        json.dumps(outcome.record, ensure_ascii=False).encode()
        assert Item.model_validate_json(outcome.item.model_dump_json()).same_as(outcome.item)
        counts = made.count(outcome.record)
        assert counts["written"] == counts["kept"] + counts["dropped"]
