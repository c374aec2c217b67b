"""The scripted judges of benchmarks/curate: they err as often as they say, and the truth that they are held against is true."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from capreward import Question
from capreward.curate.questions import FIELDS, leaking, malformed
from capreward.curate.writing import read
from capreward.judges.base import Request, Sampling, Task
from capreward.shapes import Scene, Thing, caption, claims, draw, scene
from capreward.shapes.language import said, truths, units

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "curate"))
import curate_world as world

SCENE = Scene(
    things=(
        Thing(colour="red", shape="circle", size="large", cell="top left"),
        Thing(colour="blue", shape="square", size="small", cell="center"),
        Thing(colour="green", shape="cross", size="small", cell="right"),
        Thing(colour="black", shape="triangle", size="small", cell="bottom"),
    )
)
SCENES = [scene(seed, fewest=3, most=5) for seed in range(200)]
WHAT_SHAPE = Question(
    text="What shape is the thing at the top left?", options=("circle", "square", "cross", "triangle"), answer=0
)


def asked(judge: Any, *requests: Request) -> list[Any]:
    return asyncio.run(judge.ask(requests))


def chosen(judge: Any, *requests: Request) -> list[str]:
    replies = asked(judge, *requests)
    return [request.options[reply.values.index(1.0)] for request, reply in zip(requests, replies, strict=True)]


def put(question: Question, task: Task = Task.CHOOSE, *, number: int = 0, context: str = "", **image: Any) -> Request:
    return Request(task, context, question.options, question.text, sampling=Sampling(1.0, number), **image)


def changed(question: Question, **fields: Any) -> Question:
    return question.model_copy(update=fields)


class TestTruth:
    @pytest.mark.parametrize(
        ("text", "options", "answer"),
        [
            ("What shape is the thing at the top left?", ("square", "circle"), "circle"),
            ("Which shape does the object at the top left have?", ("square", "circle"), "circle"),
            ("what shape is the thing at the top left?", ("square", "circle"), "circle"),
            ("What shape is the round thing at the top left?", ("square", "circle"), "circle"),
            ("What colour is the red circle at the top left?", ("blue", "red"), "red"),
            ("Which colour does the object at the center have?", ("blue", "red"), "blue"),
            ("How big is the red circle?", ("large", "small"), "large"),
            ("In which part of the picture is the blue square?", ("at the top", "at the center, as far as"), 1),
            ("What is the number of things in the picture?", ("three", "four"), "four"),
            ("Which of these can be seen?", ("a red circle", "a blue square", "a green cross", "all of these"), 3),
            ("Which of these can be seen?", ("a red circle", "a pink square", "a red cross", "all of these"), 0),
            ("What shape is the thing at the top right?", ("square", "circle"), None),
            ("What size is the blue cross?", ("large", "small"), None),
        ],
    )
    def test_an_answer_is_what_the_scene_shows(self, text: str, options: Any, answer: str | int | None) -> None:
        right = options[answer] if isinstance(answer, int) else answer

        assert world.true_answer(SCENE, Question(text=text, options=options, answer=0)) == right

    @pytest.mark.parametrize(
        ("question", "aim", "fault"),
        [
            (WHAT_SHAPE, "sound", ""),
            (changed(WHAT_SHAPE, answer=1), "wrong key", "wrong key"),
            (changed(WHAT_SHAPE, answer=1), "sound", "misseen"),
            (changed(WHAT_SHAPE, text="What shape is the thing at the top?"), "sound", "misseen"),
            (
                Question(text="What size is the red circle?", options=("small", "large", "tiny"), answer=1),
                "sound",
                "prior",
            ),
            (Question(text="What size is the blue square?", options=("small", "large", "tiny"), answer=0), "sound", ""),
            (Question(text="How many things are there?", options=("three", "four"), answer=1), "sound", "prior"),
        ],
    )
    def test_a_fault_is_told_by_the_scene_and_the_guesser(self, question: Question, aim: str, fault: str) -> None:
        assert world._fault(SCENE, question, aim) == fault

    def test_good_questions_are_answered_and_not_guessed(self) -> None:
        for each in SCENES[:50]:
            for written in world.write(each):
                if not written.fault:
                    entry = json.loads(written.text)
                    options = tuple(entry["options"])
                    answer = options.index(entry["answer"])
                    question = Question(text=entry["question"], options=options, answer=answer)
                    assert world.true_answer(each, question) == entry["answer"]
                    assert world.odds(question.text, options, entry["answer"]) <= 1 / len(options)
                    assert not leaking(question)["rejected"]


class TestWriter:
    def test_the_same_scene_is_written_about_alike(self) -> None:
        assert world.write(SCENE) == world.write(SCENE) != world.write(SCENE, seed=1)

    def test_the_judge_writes_what_is_labelled(self) -> None:
        (reply,) = asked(world.Writer(), Request(Task.INQUIRE, "", images=(draw(SCENE),)))

        assert reply.texts == tuple(each.text for each in world.write(SCENE))

    def test_faults_are_written_as_often_as_the_shares_say(self) -> None:
        faults = Counter(each.fault for scene in SCENES for each in world.write(scene))

        for fault in ("wrong key", "malformed", "implied", "longest", "worded"):
            assert faults[fault] / faults.total() == pytest.approx(world.SHARES[fault], abs=0.025)

    def test_malformed_ones_and_no_others_are_malformed(self) -> None:
        for written in (each for drawn in SCENES for each in world.write(drawn)):
            entry = read(written.text, FIELDS)
            assert (isinstance(entry, str) or bool(malformed(entry))) == (written.fault == "malformed")

    def test_one_who_sees_all_writes_nothing_misseen(self) -> None:
        assert not any(each.fault == "misseen" for scene in SCENES[:50] for each in world.write(scene, misseen=0))
        assert any(each.fault == "misseen" for scene in SCENES[:50] for each in world.write(scene, misseen=0.1))


class TestSight:
    @pytest.mark.parametrize("error", [0.0, 0.15])
    def test_it_errs_at_its_rate(self, error: float) -> None:
        sight = world.Sight(error, misseen=0)
        looks = [put(WHAT_SHAPE, Task.LOOK, number=n, images=(draw(SCENE),)) for n in range(1000)]

        assert sum(answer != "circle" for answer in chosen(sight, *looks)) / 1000 == pytest.approx(error, abs=0.035)
        assert chosen(sight, *looks[:50]) == chosen(sight, *looks[:50])

    def test_what_it_sees_wrong_it_sees_wrong_each_time(self) -> None:
        misled = next(s for s in SCENES if world.perceived(s, "model", 0.1).things[0].size != s.things[0].size)
        thing = world.perceived(misled, "model", 0.1).things[0]
        question = Question(text=f"What size is the {thing.name}?", options=("large", "small"), answer=0)
        looks = [put(question, Task.LOOK, number=n, images=(draw(misled),)) for n in range(20)]

        assert set(chosen(world.Sight(0.0, misseen=0.1), *looks)) == {thing.size}

    def test_another_model_sees_other_things_wrong(self) -> None:
        assert [world.perceived(s, "model", 0.1) for s in SCENES] != [world.perceived(s, "other", 0.1) for s in SCENES]
        assert [world.perceived(s, "model", 0.0) for s in SCENES] == SCENES


class TestGuessing:
    @pytest.mark.parametrize(
        ("text", "options", "option", "sign"),
        [
            ("What size is the blue square?", ("tiny", "small", "large", "huge"), "large", "prior"),
            ("How big is the blue square?", ("tiny", "small", "large", "huge"), "large", "prior"),
            ("How many things are there?", ("two", "three", "four", "five"), "four", "prior"),
            (
                "What shape is the round thing at the top?",
                ("square", "cross", "circle", "triangle"),
                "circle",
                "implied",
            ),
            ("What colour is the red circle at the top?", ("blue", "red", "green", "black"), "red", "worded"),
            (
                "Where is the cross?",
                ("at the top", "at the left, as far", "at the right", "at the center"),
                "at the left, as far",
                "longest",
            ),
            (
                "Which of these can be seen?",
                ("a cross", "a red cross", "a", "all of these"),
                "all of these",
                "all of them",
            ),
        ],
    )
    def test_signs_are_followed_as_often_as_said(
        self, text: str, options: tuple[str, ...], option: str, sign: str
    ) -> None:
        question = Question(text=text, options=options, answer=0)
        answers = chosen(world.Blind(), *(put(question, number=n) for n in range(1000)))
        expected = world.SURE[sign] + (1 - world.SURE[sign]) / 4

        assert world.odds(text, options, option) == pytest.approx(expected)
        assert answers.count(option) / 1000 == pytest.approx(expected, abs=0.04)

    def test_without_a_sign_every_option_is_as_likely(self) -> None:
        counts = Counter(chosen(world.Blind(), *(put(WHAT_SHAPE, number=n) for n in range(2000))))

        assert all(count / 2000 == pytest.approx(0.25, abs=0.04) for count in counts.values())
        assert len(counts) == 4

    def test_one_who_likes_the_first_takes_it(self) -> None:
        answers = chosen(world.Blind(first=0.5), *(put(WHAT_SHAPE, number=n) for n in range(4000)))

        assert answers.count("circle") / 4000 == pytest.approx(0.5 + 0.5 / 4, abs=0.05)

    def test_one_who_sticks_takes_the_same_in_any_order(self) -> None:
        turned = changed(WHAT_SHAPE, options=WHAT_SHAPE.options[::-1])
        requests = [put(question, number=n) for n in range(10) for question in (WHAT_SHAPE, turned)]

        assert len(set(chosen(world.Blind(sticks=True), *requests))) == 1

    def test_a_reader_answers_from_the_caption_and_guesses_at_the_rest(self) -> None:
        told = [put(WHAT_SHAPE, number=n, context=caption(SCENE)) for n in range(50)]
        silent = [put(WHAT_SHAPE, number=n, context="There are four things.") for n in range(50)]

        assert set(chosen(world.Reader(), *told)) == {"circle"}
        assert len(set(chosen(world.Reader(), *silent))) == 4


class TestStudent:
    def test_what_is_planted_is_lacking_and_the_rest_is_said(self) -> None:
        for each in SCENES:
            planted = world.plant(each)
            lacking = {claim for mistake in planted for claim in (mistake.claim, *mistake.follow) if claim}
            assert lacking == set(units(each)) - said(world.tell(each, planted))
            false = [claim for claim in claims(world.tell(each, planted)) if claim not in truths(each)]
            assert bool(false) == any(mistake.fault != "dropped" for mistake in planted)

    def test_repairing_a_mistake_repairs_no_other(self) -> None:
        each = next(scene for scene in SCENES if len(world.plant(scene)) >= 3)
        _, *rest = world.plant(each)
        lacking = set(units(each)) - said(world.tell(each, rest))

        assert lacking == {claim for mistake in rest for claim in (mistake.claim, *mistake.follow) if claim}
        assert world.tell(each) == caption(each)

    def test_mistakes_are_as_frequent_as_said(self) -> None:
        faults = Counter(mistake.fault for each in SCENES for mistake in world.plant(each))
        things = sum(len(each.things) for each in SCENES)

        for fault, rate in world.MISTAKES.items():
            assert faults[fault] / things == pytest.approx(rate, abs=0.05)
        assert faults["count"] / len(SCENES) == pytest.approx(world.MISCOUNT, abs=0.08)
        assert faults["added"] / len(SCENES) == pytest.approx(world.ADDED, abs=0.08)


class TestTeachersAndCritic:
    def test_a_teacher_without_fault_says_all(self) -> None:
        assert world.teach(SCENE, "a", 0.0, omits=0.0) == caption(SCENE)

    @pytest.mark.parametrize(("error", "omits"), [(0.25, 0.0), (0.0, 0.1)])
    def test_teachers_err_at_their_rates(self, error: float, omits: float) -> None:
        texts = [world.teach(each, "a", error, omits=omits) for each in SCENES]
        counts = [
            f"{world.COUNTS[len(each.things) - 2]} things" in text for each, text in zip(SCENES, texts, strict=True)
        ]

        assert 1 - sum(counts) / len(SCENES) == pytest.approx(error + omits, abs=0.09)

    def test_teachers_differ_unless_they_share_their_eyes(self) -> None:
        request = Request(Task.DESCRIBE, "", images=(draw(SCENE),))
        one, two, same = (world.Teacher(name, 0.3, eyes=eyes) for name, eyes in (("a", None), ("b", None), ("c", "a")))
        texts = [asked(teacher, request)[0].texts for teacher in (one, two, same)]

        assert texts[0] == texts[2] != texts[1]

    def test_a_careful_critic_names_just_what_the_student_lacks(self) -> None:
        critic = world.Critic(notices=1, unneeded=0, misweighs=0, repeats=0, spoils=0)
        student = "There are four things. A small red circle is at the top left. A small blue square is at the center."
        teachers = (
            "There are four things. A large red circle is at the top left.",
            "A large red circle is at the top left. There is a green cross.",
        )
        (reply,) = asked(critic, Request(Task.CRITICISE, student, teachers))

        assert [json.loads(text) for text in reply.texts] == [
            {"criterion": "the red circle is large.", "severity": "minor", "teachers": [1, 2]},
            {"criterion": "there is a green cross.", "severity": "critical", "teachers": [2]},
        ]

    def test_a_judge_flips_its_verdicts_at_its_rate(self) -> None:
        options = tuple(claim.text for each in SCENES for claim in truths(each))
        request = Request(Task.SUPPORT, "There is nothing.", options)
        ((exact,), (flipped,), (again,)) = (asked(world.Flipping(rate), request) for rate in (0, 0.1, 0.1))

        changed_ = sum(a != b for a, b in zip(exact.values, flipped.values, strict=True)) / len(options)
        assert flipped == again
        assert changed_ == pytest.approx(0.1, abs=0.03)


def test_rephrased_and_repeated_questions_ask_the_same() -> None:
    chance = random.Random(0)
    for aim in ("same words", "rephrased"):
        again = world._again(WHAT_SHAPE, aim, chance)
        assert world.true_answer(SCENE, again) == "circle" == again.options[again.answer]
