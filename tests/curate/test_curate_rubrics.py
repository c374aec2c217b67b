from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from capreward import Criterion, Item, Missing, Reason
from capreward.curate.rubrics import Rubrics
from capreward.curate.stage import Curated
from capreward.errors import InputError
from capreward.judges import Reply, Request, Task
from capreward.judges.fake import FunctionJudge

ITEM = Item(id="cup", image=b"cup", references=["Kept."], rubric=[Criterion(text="Old")])
TIMEOUT = Missing(Reason.TIMEOUT, "30 s")
TOLD = {"one": "cup spoon", "two": "cup spoon fork", "three": "cup"}
STUDENT = "cup"


def entry(criterion: str = "spoon", severity: str = "minor", teachers: Any = (1, 2), **more: Any) -> str:
    return json.dumps({"criterion": criterion, "severity": severity, "teachers": teachers, **more})


def teacher(name: str, told: str | Missing) -> FunctionJudge:
    return FunctionJudge(told if isinstance(told, Missing) else Reply(texts=(told,)), images=True, name=name)


def holds(request: Request) -> tuple[float, ...]:
    """1 for each criterion that is a word of the caption."""
    return tuple(float(option.rstrip(".").lower() in request.context.split()) for option in request.options)


def stage(
    *texts: str,
    told: Mapping[str, str | Missing] = TOLD,
    student: str | Missing = STUDENT,
    support: Callable[[Request], Any] = holds,
    critic: Any = None,
    **more: Any,
) -> Rubrics:
    return Rubrics(
        [teacher(name, text) for name, text in told.items()],
        FunctionJudge(critic or Reply(texts=texts), images=True, name="writer"),
        FunctionJudge(support, name="judge"),
        student=teacher("student", student),
        **more,
    )


def curate(stage: Rubrics, *items: Item) -> list[Any]:
    return list(asyncio.run(stage.curate(items or [ITEM])))


def found(stage: Rubrics) -> list[tuple[str, list[str]]]:
    """Verdict of each criterion, and why."""
    (outcome,) = curate(stage)
    assert isinstance(outcome, Curated), outcome
    json.dumps(outcome.record, allow_nan=False)
    return [(criterion["verdict"], criterion["why"]) for criterion in outcome.record["criteria"]]


def test_what_teachers_agree_on_and_the_student_lacks_is_kept() -> None:
    made = stage(entry(), entry("fork", "critical", [1, 2, 3]), entry("cup", "important"), entry("dog"))
    (outcome,) = curate(made)
    assert outcome.item.rubric == (Criterion(text="spoon", weight=1.0),)
    assert outcome.item.model_copy(update={"rubric": ITEM.rubric}) == ITEM
    assert [(c["verdict"], c["why"]) for c in outcome.record["criteria"]] == [
        ("kept", []),
        ("rejected", ["not_agreed"]),
        ("rejected", ["already_met"]),
        ("rejected", ["not_agreed"]),
    ]
    assert outcome.record["criteria"][1] == {
        "verdict": "rejected",
        "why": ["not_agreed"],
        "criterion": "fork",
        "severity": "critical",
        "claimed": [1, 2, 3],
        "teachers": [0.0, 1.0, 0.0],
        "student": 0.0,
    }
    assert outcome.record["teachers"] == [{"teacher": name, "caption": text} for name, text in TOLD.items()]
    assert (outcome.record["student"], outcome.record["failed"]) == (STUDENT, [])
    assert made.count(outcome.record) == {
        "written": 4,
        "kept": 1,
        "merged": 0,
        "rejected": 3,
        "malformed": 0,
        "not_agreed": 2,
        "already_met": 1,
        "teachers_failed": 0,
        "empty": 0,
    }


def test_what_the_judges_are_asked() -> None:
    made = stage(entry("a"), entry("b"), instruction="Say.")
    curate(made)
    for judge in (*made.teachers, made.student):
        assert judge.asked == [Request(Task.DESCRIBE, "", (), "Say.", (b"cup",))]
    assert made.writer.asked == [Request(Task.CRITICISE, STUDENT, tuple(TOLD.values()), images=(b"cup",))]
    # the student's caption, which is a teacher's too, is asked about once
    assert made.judge.asked == [Request(Task.SUPPORT, text, ("a", "b")) for text in TOLD.values()]
    assert made.judges == (*made.teachers, made.student, made.writer, made.judge)


@pytest.mark.parametrize(("agree", "kept"), [(1, True), (2, True), (3, False)])
def test_agree(agree: int, kept: bool) -> None:
    assert found(stage(entry(), agree=agree))[0][0] == ("kept" if kept else "rejected")


@pytest.mark.parametrize(
    ("of_teachers", "of_student", "why"),
    [
        (0.5, 0.49, []),
        (0.49, 0.49, ["not_agreed"]),
        (0.5, 0.5, ["already_met"]),
        (0.4, 0.6, ["not_agreed", "already_met"]),
    ],
)
def test_at_one_half(of_teachers: float, of_student: float, why: list[str]) -> None:
    made = stage(entry(), student="s", support=lambda r: (of_student if r.context == "s" else of_teachers,))
    assert found(made) == [("rejected" if why else "kept", why)]


@pytest.mark.parametrize(("severity", "weight"), [("critical", 3.0), ("important", 2.0), ("minor", 1.0)])
def test_weights(severity: str, weight: float) -> None:
    (outcome,) = curate(stage(entry(severity=severity)))
    assert outcome.item.rubric[0].weight == weight


def test_weights_of_ones_own() -> None:
    (outcome,) = curate(stage(entry(severity="big"), entry("fork", "minor"), weights={"big": 5.0}))
    assert outcome.item.rubric == (Criterion(text="spoon", weight=5.0),)
    assert [c["why"] for c in outcome.record["criteria"]] == [[], ["malformed"]]


def test_the_same_criterion_twice_is_one_at_the_heavier_severity() -> None:
    made = stage(entry(), entry("Spoon.", "critical"), entry(" SPOON", "important"), entry("spoons"))
    (outcome,) = curate(made)
    assert outcome.item.rubric == (Criterion(text="spoon", weight=3.0),)
    assert [c["verdict"] for c in outcome.record["criteria"]] == ["kept", "merged", "merged", "rejected"]
    assert made.count(outcome.record)["merged"] == 2
    assert made.judge.asked[0].options == ("spoon", "spoons")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("none", "not JSON"),
        ("[]", "exactly the fields"),
        (entry(more=1), "exactly the fields"),
        (entry(" "), "criterion: expected a text"),
        (json.dumps({"criterion": 1, "severity": "minor", "teachers": []}), "criterion: expected a text"),
        (entry(severity="huge"), "severity: expected one of critical, important, minor"),
        (json.dumps({"criterion": "a", "severity": [], "teachers": []}), "severity: expected one of"),
    ],
)
def test_malformed(text: str, fault: str) -> None:
    made = stage(text, entry())
    (outcome,) = curate(made)
    bad, good = outcome.record["criteria"]
    assert (bad["verdict"], bad["why"], bad["raw"], good["verdict"]) == (
        "rejected",
        ["malformed"],
        text.strip(),
        "kept",
    )
    assert fault in bad["fault"]
    assert made.count(outcome.record)["malformed"] == 1


@pytest.mark.parametrize("claim", [[9], "one", [True, "2", 1.5], None, {}])
def test_the_writers_word_is_not_relied_upon(claim: Any) -> None:
    assert found(stage(entry(teachers=claim), entry("dog", teachers=[1, 2, 3]))) == [
        ("kept", []),
        ("rejected", ["not_agreed"]),
    ]


def test_an_empty_rubric_is_a_result() -> None:
    for made in (stage(), stage(entry("cup")), stage("?")):
        (outcome,) = curate(made)
        assert outcome.item.rubric == ()
        assert made.count(outcome.record)["empty"] == 1


def test_given_captions() -> None:
    given = {"cup": ["cup spoon ", "", "spoon\ud800"]}
    made = Rubrics(
        lambda item: given[item.id],
        FunctionJudge(Reply(texts=(entry(),))),
        FunctionJudge(lambda r: tuple(float(o in r.context) for o in r.options)),
        student=lambda item: item.id,
    )
    bare = Item(id="cup")
    (outcome,) = curate(made, bare)
    assert outcome.item.rubric == (Criterion(text="spoon"),)
    assert [told["teacher"] for told in outcome.record["teachers"]] == ["given 1", "given 3"]
    assert outcome.record["student"] == "cup"
    assert made.describe()["teachers"] == made.describe()["student"] == "given captions"
    assert set(made.describe()["prompts"]) == {"criticise", "support"}
    assert len(made.judges) == 2
    given["cup"] = ["cup spoon", " "]
    (outcome,) = curate(made, bare)
    assert outcome == Missing(Reason.NO_REFERENCE, "item 'cup' has fewer than 2 teachers' captions")


def test_given_captions_in_the_same_words_are_one_teachers() -> None:
    given = ["cup spoon", " cup spoon", "cup spoon\n"]
    made = Rubrics(
        lambda _: given, FunctionJudge(Reply(texts=(entry(),))), FunctionJudge(holds), student=lambda _: STUDENT
    )
    (outcome,) = curate(made)
    assert outcome == Missing(Reason.NO_REFERENCE, "item 'cup' has fewer than 2 teachers' captions")
    given.append("spoon")
    (outcome,) = curate(made)
    assert outcome.record["teachers"] == [
        {"teacher": "given 1", "caption": "cup spoon"},
        {"teacher": "given 4", "caption": "spoon"},
    ]


def test_an_item_without_a_students_caption() -> None:
    made = Rubrics(lambda _: ["cup", "mug"], FunctionJudge(()), FunctionJudge(()), student=lambda _: None)
    (outcome,) = curate(made, Item(id="cup"))
    assert outcome == Missing(Reason.NO_REFERENCE, "item 'cup' has no student's caption")


def test_the_others_go_on_without_a_teacher_that_failed() -> None:
    made = stage(entry(), told=TOLD | {"three": TIMEOUT})
    (outcome,) = curate(made)
    assert outcome.record["failed"] == [{"teacher": "three", "why": "timeout: 30 s"}]
    assert made.writer.asked[0].options == ("cup spoon", "cup spoon fork")
    assert outcome.item.rubric == (Criterion(text="spoon"),)
    assert made.count(outcome.record)["teachers_failed"] == 1


@pytest.mark.parametrize(
    "made",
    [
        stage(entry(), told=TOLD | {"two": TIMEOUT, "three": TIMEOUT}),
        stage(entry(), student=TIMEOUT),
        stage(critic=TIMEOUT),
        stage(entry(), support=lambda r: TIMEOUT if "fork" in r.context else holds(r)),
    ],
)
def test_failures(made: Rubrics) -> None:
    assert curate(made) == [TIMEOUT]


def test_no_image() -> None:
    made = stage(entry())
    none, cup = curate(made, Item(id="none"), ITEM)
    assert none == Missing(Reason.NO_IMAGE, "item 'none' has no image to describe")
    assert isinstance(cup, Curated)


def test_items_alone_or_together_come_out_the_same() -> None:
    items = [Item(id=str(n), image=f"{n}".encode()) for n in range(4)]

    def critic(request: Request) -> Reply:
        return Reply(texts=(entry(), entry("fork")) if request.images[0] in (b"1", b"2") else (entry("fork"), "?"))

    def run(some: Sequence[Item]) -> list[Any]:
        return curate(stage(critic=critic, agree=1), *some)

    together = run(items)
    assert together == [run([item])[0] for item in items] == run(items[::-1])[::-1]
    assert [len(outcome.item.rubric) for outcome in together] == [1, 2, 2, 1]


def test_each_judge_is_asked_in_one_call() -> None:
    made = stage(entry())
    calls: list[str] = []
    for judge in made.judges:

        async def ask(requests: Sequence[Request], judge: Any = judge) -> Any:
            calls.append(judge.name)
            return await FunctionJudge.ask(judge, requests)

        judge.ask = ask
    curate(made, *(Item(id=str(n), image=b"x") for n in range(4)))
    assert sorted(calls) == ["judge", "one", "student", "three", "two", "writer"]


def test_settings_are_described() -> None:
    described = stage().describe()
    json.dumps(described)
    assert described["teachers"] == ["one", "two", "three"]
    assert described["writer_sees"] == "captions and image"
    assert set(described["prompts"]) == {"describe", "criticise", "support"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agree": 0}, "agree=0 with 3 teachers"),
        ({"agree": 4}, "agree=4 with 3 teachers"),
        ({"weights": {}}, "weights={}"),
        ({"weights": {"minor": 0.0}}, "weights={'minor': 0.0}"),
        ({"instruction": " "}, "an empty instruction"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"Rubrics: got {message}"):
        stage(**settings)


def test_judges_that_cannot() -> None:
    able, blind = FunctionJudge(images=True), FunctionJudge(name="blind")
    with pytest.raises(InputError, match="Rubrics: judge 'blind' sees no image"):
        Rubrics([blind], able, able, student=able, agree=1)
    with pytest.raises(InputError, match="Rubrics: judge 'blind' sees no image"):
        Rubrics([able], able, able, student=blind, agree=1)
    with pytest.raises(InputError, match="expected different ones"):
        Rubrics([able, able], able, able, student=able)
    with pytest.raises(InputError, match="got student='a cup', expected a judge, or a function"):
        Rubrics([able], able, able, student="a cup", agree=1)  # type: ignore[arg-type]


SURROGATES = st.text(st.characters(exclude_categories=()), max_size=8)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
WORDS = st.sampled_from(["spoon", "Spoon.", "fork", "cup", "dog"])
ENTRIES = st.builds(entry, SURROGATES | WORDS, st.sampled_from(["minor", "critical", "?"]), ANY_JSON)


@settings(deadline=None)
@given(st.lists(SURROGATES | ANY_JSON.map(json.dumps) | ENTRIES, max_size=6))
def test_whatever_is_written_nothing_raises_and_each_is_counted_once(texts: list[str]) -> None:
    made = stage(*texts)
    (outcome,) = curate(made)
    json.dumps(outcome.record, allow_nan=False, ensure_ascii=False).encode()
    outcome.item.model_dump_json()
    counts = made.count(outcome.record)
    assert counts["written"] == len(texts) == counts["kept"] + counts["merged"] + counts["rejected"]
    assert counts["kept"] == len(outcome.item.rubric)
