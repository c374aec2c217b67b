"""The parts of benchmarks/ablation that could quietly make a result wrong: its judges, its questions and its verdicts."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capreward import Precision, QAUtility, Rollout, advantage
from capreward.judges.base import Request, Task
from capreward.shapes import ShapesJudge, items

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "ablation"))
import claims
import conditions
import faults
import page
import run
import training

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "ablation" / "results" / "cpu.json").read_text(encoding="utf-8"))
MEASURES = {(run["condition"], run["seed"]): run["measures"] for run in RESULTS["runs"]}
ITEM = items(1)[0]
CAPTION = ITEM.references[0]
COMMENT = "The scene invites the viewer to reflect."


def scored(component: Any, *captions: str, item: Any = ITEM) -> list[float]:
    rollouts = [Rollout(item=item, caption=caption, group="g") for caption in captions]
    return [score.value for score in asyncio.run(component.score(rollouts))]


def asked(judge: Any, *requests: Request) -> list[tuple[float, ...]]:
    return [reply.values for reply in asyncio.run(judge.ask(requests))]


class TestJudges:
    def test_a_repeated_claim_counts_again(self) -> None:
        wrong = "There are five things." if "five" not in CAPTION else "There are two things."
        true = CAPTION.partition(". ")[2].partition(".")[0] + "."
        pair = f"{true} {wrong}", f"{true} {true} {true} {wrong}"
        once, again = (scored(Precision(judge()), *pair) for judge in (ShapesJudge, faults.CountsAgain))
        assert once[0] == once[1] == again[0] < again[1] < 1

    def test_commentary_is_held_true(self) -> None:
        exact, unpointed = (
            scored(Precision(judge()), f"{CAPTION} {COMMENT}") for judge in (ShapesJudge, faults.Unpointed)
        )
        assert exact[0] < unpointed[0] == 1.0
        assert scored(Precision(faults.Unpointed()), "A purple banana sings.") == [0.0]

    def test_commentary_lowers_the_rating_unless_prose_is_liked(self) -> None:
        aspects = ("clarity", "fluency", "coherence")
        request = Request(Task.RATE, f"{COMMENT} {CAPTION}", aspects)
        for judge in (ShapesJudge(), faults.Unpointed()):
            [(clarity, fluency, coherence)] = asked(judge, request)
            assert fluency == 1.0 > clarity == coherence
        assert asked(faults.Unpointed(likes_prose=True), request) == [(1.0, 1.0, 1.0)]
        repeated = Request(Task.RATE, f"{CAPTION} {CAPTION}", aspects)
        assert asked(faults.Unpointed(likes_prose=True), repeated) == asked(ShapesJudge(), repeated)

    def test_noise_is_the_same_of_the_same_text_and_as_large_as_it_says(self) -> None:
        names = [f"there is a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "cross")]
        requests = [Request(Task.SUPPORT, f"{CAPTION} {number}", tuple(names)) for number in range(200)]
        judge = faults.Noisy()
        noisy = np.array(asked(judge, *requests))
        assert np.array_equal(noisy, asked(judge, *requests))
        flipped = (noisy != np.array(asked(ShapesJudge(), *requests))).mean()
        assert flipped == pytest.approx(judge.flips, abs=0.04)
        [ratings] = asked(judge, Request(Task.RATE, CAPTION, ("clarity", "fluency", "coherence")))
        assert all(rating * 4 == round(rating * 4) for rating in ratings)

    def test_the_first_option_where_the_caption_does_not_tell(self) -> None:
        question = ITEM.questions[0]
        silent = Request(Task.CHOOSE, "", question.options, question.text)
        told = Request(Task.CHOOSE, CAPTION, question.options, question.text)
        assert asked(faults.LikesTheFirst(), silent) == [(1.0, 0.0, 0.0, 0.0)]
        assert asked(faults.LikesTheFirst(), told) == asked(ShapesJudge(), told)

    def test_silence_pays_where_options_are_not_shuffled(self) -> None:
        item = faults.right_first(1.0)(ITEM)
        assert all(question.answer == 0 for question in item.questions)
        assert {frozenset(q.options) for q in item.questions} == {frozenset(q.options) for q in ITEM.questions}
        [paid] = scored(QAUtility(faults.LikesTheFirst(), shuffle=False), "A picture.", item=item)
        [shuffled] = scored(QAUtility(faults.LikesTheFirst()), "A picture.", item=item)
        assert paid == 1.0
        assert shuffled == pytest.approx(0.25, abs=0.1)
        first = [faults.right_first(0.7)(item).questions for item in items(60)]
        share = np.mean([question.answer == 0 for questions in first for question in questions])
        assert share == pytest.approx(0.7 + 0.3 / 4, abs=0.06)

    def test_a_leaking_question_is_answered_without_a_caption(self) -> None:
        item = faults.leaking(ITEM)
        leaks = [question for question in item.questions if question.text.startswith("Which of these is")]
        assert len(leaks) == len(item.questions) // 2
        closed = [Request(Task.CHOOSE, "", question.options, question.text) for question in leaks]
        for question, values in zip(leaks, asked(faults.ReadsTheQuestion(), *closed), strict=True):
            assert values[question.answer] == 1.0
        others = [question for question in item.questions if question not in leaks]
        told = [Request(Task.CHOOSE, CAPTION, question.options, question.text) for question in others]
        assert asked(faults.ReadsTheQuestion(), *told) == asked(ShapesJudge(), *told)

    def test_one_question(self) -> None:
        assert len(faults.one_question(ITEM).questions) == 1
        assert faults.one_question(ITEM) == faults.one_question(ITEM)

    def test_praise_is_taken_for_completeness(self) -> None:
        short = CAPTION.partition(". ")[2].partition(".")[0] + "."
        praised = f"{short} This description is accurate and complete."
        likert = [Request(Task.LIKERT, text, ("overall",), images=(ITEM.image,)) for text in (short, praised, CAPTION)]
        plain, flattered, whole = (values[0] for values in asked(faults.TakesItsWord(), *likert))
        assert plain < flattered <= whole == 1.0


def test_scaled() -> None:
    chance = np.random.default_rng(0)
    values, groups = chance.random((16, 3)), np.repeat(np.arange(4), 4)
    by_weight = advantage.grpo(values, groups, [1, 1, 5])
    np.testing.assert_allclose(conditions.Scaled(advantage.grpo, 5.0)(values, groups), by_weight, rtol=1e-3)
    np.testing.assert_allclose(
        conditions.Scaled(advantage.gdpo, 5.0)(values, groups), advantage.gdpo(values, groups), atol=2e-3
    )


def test_every_claim_names_conditions_that_are_trained() -> None:
    known = {*conditions.CONDITIONS, *conditions.STARTS}
    for claim in claims.CLAIMS:
        assert {claim.condition, claim.baseline} <= known, claim
        assert claim.sign in (-1, 0, 1)
    tested = {name for claim in claims.CLAIMS for name in (claim.condition, claim.baseline)}
    assert set(conditions.CONDITIONS) <= tested


def test_what_can_be_told_of_captions_without_a_judge() -> None:
    first = CAPTION.partition(". ")[2].partition(".")[0] + "."
    texts = (CAPTION, f"{first} {first}", "This description is accurate and complete.", COMMENT)
    rollouts = [Rollout(item=ITEM, caption=text, group="g") for text in texts]
    found = training._texts(rollouts)
    assert found["length_ratio"][0] == pytest.approx(
        found["words"][0] / np.mean([len(text.split()) for text in ITEM.references])
    )
    assert found["words"] == [len(text.split()) for text in texts]
    assert found["commentary"] == [0.0, 0.0, 1.0, 1.0]
    assert found["praise"] == [0.0, 0.0, 1.0, 0.0]
    assert found["repeated"][0] == 0.0
    assert found["repeated"][1] == 0.5


def test_a_run_of_an_earlier_version_is_read_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    measures = {**MEASURES["c-GDPO", 0], "gone": 1.0}
    old = {"condition": "c-GDPO", "seed": 0, "seconds": 1.0, "measures": measures, "curve": {"qa": [0.1]}}
    (tmp_path / "runs" / "c-GDPO.0.json").write_text(json.dumps(old))
    found = training.run(tmp_path, "c-GDPO", 0, training.SIZES["cpu"])
    assert found.items() >= old.items()
    written: list[Any] = []
    monkeypatch.setattr(run, "finish", lambda *arguments, **_: written.append(arguments))
    run.report([found], training.SIZES["quick"], 1, [0], quick=True)
    [(_, _, details, _)] = written
    assert details["runs"] == [
        {"condition": "c-GDPO", "seed": 0, "seconds": 1.0, "ended": found["ended"], "measures": measures}
    ]


class TestVerdicts:
    @pytest.mark.parametrize(
        ("numbers", "sign", "verdict"),
        [
            ((0.1, 0.2, 0.15), 1, "shown"),
            ((0.1, 0.2, 0.15), -1, "opposite"),
            ((-0.1, 0.2, 0.15), 1, "not shown"),
            ((0.01, 0.012, 0.011), 0, "shown"),
            ((0.1, 0.12, 0.11), 0, "opposite"),
            ((-0.1, -0.12, -0.11), 0, "opposite"),
            ((0.03, 0.05, 0.04), 0, "not shown"),
            ((-0.2, 0.2, 0.0), 0, "not shown"),
        ],
    )
    def test_each(self, numbers: tuple[float, ...], sign: int, verdict: str) -> None:
        assert claims.mean_with_interval(numbers).verdict(sign) == verdict

    def test_a_single_seed_shows_nothing(self) -> None:
        found = claims.mean_with_interval([0.5])
        assert math.isnan(found.low)
        assert [found.verdict(sign) for sign in (-1, 0, 1)] == ["not shown"] * 3

    def test_interval_by_hand(self) -> None:
        """Of 1, 2, 3: the mean is 2, the standard error 1 / sqrt(3), Student's t with 2 degrees of freedom 4.303."""
        found = claims.mean_with_interval([1.0, 2.0, 3.0])
        assert (found.mean, found.seeds) == (2.0, 3)
        assert found.high - 2 == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
        assert 2 - found.low == pytest.approx(found.high - 2)

    def test_interval_covers(self) -> None:
        chance = random.Random(0)
        drawn = [claims.mean_with_interval([chance.gauss(1, 1) for _ in range(5)]) for _ in range(2000)]
        assert np.mean([found.low <= 1 <= found.high for found in drawn]) == pytest.approx(0.95, abs=0.02)

    def test_differences_are_paired_by_seed(self) -> None:
        measures = {
            ("a", 0): {"qa": 0.5},
            ("a", 1): {"qa": 0.9},
            ("b", 1): {"qa": 0.8},
            ("b", 0): {"qa": 0.4},
            ("a", 2): {"qa": 0},
        }
        found = claims.difference(measures, "a", "b", "qa")
        assert found is not None
        assert (round(found.mean, 9), found.seeds) == (0.1, 2)
        assert claims.difference(measures, "a", "c", "qa") is None


class TestPages:
    """What is written beside the results file is what it holds."""

    def test_claims_are_those_of_the_code_and_of_the_runs(self) -> None:
        rows = page.claim_rows(MEASURES, claims.CLAIMS)
        assert len(rows) == len(claims.CLAIMS)
        assert json.loads(json.dumps(rows)) == RESULTS["claims"]

    def test_tables(self) -> None:
        docs = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
        assert page.claims_table(RESULTS["claims"]) in docs
        assert page.follows_table(RESULTS["follows"]) in docs
        readme = (ROOT / "benchmarks" / "ablation" / "README.md").read_text(encoding="utf-8")
        assert page.conditions_table(MEASURES) in readme

    def test_counts_in_the_readme(self) -> None:
        found = Counter(row["verdict"] for row in RESULTS["claims"] if row["source"] != "control")
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        [told] = re.findall(
            r"(\d+) claims of the papers.*?(\d+) shown, (\d+) not shown, (\d+) opposite", readme, re.DOTALL
        )
        assert tuple(map(int, told)) == (found.total(), found["shown"], found["not shown"], found["opposite"])
        controls = sum(row["source"] == "control" for row in RESULTS["claims"])
        assert controls == 2
        assert "opposite, and two controls" in " ".join(readme.split())
