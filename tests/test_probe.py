from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from fakes import FakeComponent, FakeJudge

from capreward import (
    Condition,
    Fluency,
    Item,
    LengthMask,
    LiteJudge,
    Missing,
    Precision,
    QAUtility,
    Question,
    Reason,
    RewardSuite,
    Rollout,
    advantage,
    prompts,
)
from capreward.attacks import ATTACKS, Attack, named
from capreward.errors import InputError, TooManyMissingError
from capreward.judges import Reply, Request, Task
from capreward.judges.chat import mark, render
from capreward.presets import balcaprl, caprl, rubicap
from capreward.probe import ADVANTAGE, AS_IT_IS, REWARD, Findings, Probe, honest_samples
from capreward.records import count_words
from capreward.samples import injections
from capreward.shapes import ShapesJudge, items, scene_of
from capreward.shapes.language import sentence_of

REFERENCE = "A white cup stands on a brown table next to a spoon."


def honest(*captions: str, name: str = "cup", **fields: Any) -> list[Rollout]:
    item = Item(id=name, references=(REFERENCE,), **fields)
    return [Rollout(item=item, caption=caption, id=f"{name}/{n}") for n, caption in enumerate(captions)]


GROUPS = [
    *honest("A white cup.", "A cup on a table."),
    *honest("A cat looks up at us.", "A grey cat.", "A cat, and a dog with it.", name="cat"),
]


def pays(reward: Any, **options: Any) -> RewardSuite:
    """A suite of one component that gives a caption `reward(caption)`."""
    return RewardSuite({"fake": FakeComponent(lambda rollout: float(reward(rollout.caption)))}, **options)


def by_length(caption: str) -> float:
    return min(1.0, count_words(caption) / 2000)


def make(name: str, caption: Any, *, keeps: bool = False) -> Attack:
    """An attack of one's own."""
    return Attack(name, lambda material: caption(material.honest) if callable(caption) else caption, keeps, "do this")


def run(suite: RewardSuite, *attacks: Attack, rollouts: list[Rollout] = GROUPS, **options: Any) -> Findings:
    return Probe(suite, rollouts, attacks=attacks or ATTACKS, **options).run(progress=False)


class TestArithmetic:
    """By numbers small enough to do by hand."""

    SCORES: ClassVar = {"a": 0.2, "b": 0.6, "c": 0.1, "d": 0.3, "e": 0.5, "attack": 0.45, "other": 0.2}
    ROLLOUTS: ClassVar = [*honest("a", "b"), *honest("c", "d", "e", name="cat")]

    def test_a_win_is_above_the_source_and_above_the_group(self) -> None:
        suite = pays(self.SCORES.__getitem__)
        total = run(suite, make("attack", "attack"), rollouts=self.ROLLOUTS).of("attack")
        # leads .25 -.15 .35 .15 -.05; group means .4 and .3; so a, c and d are beaten by one above the mean
        assert (total.captions, total.wins, total.ties, total.missing) == (5, 0.6, 0.0, 0.0)
        assert total.margin == pytest.approx(0.55 / 5)
        assert -0.15 < total.low < total.margin < total.high < 0.35
        # .2 ties with a, beats c, and is below both means
        other = run(suite, make("other", "other"), rollouts=self.ROLLOUTS).of("other")
        assert (other.wins, other.ties) == (0.0, 0.2)

    def test_a_rounding_error_is_a_tie(self) -> None:
        suite = pays(lambda caption: 0.5 + 1e-7 * caption.endswith("!"))
        total = run(suite, make("shout", lambda text: f"{text}!", keeps=True)).of("shout")
        assert (total.wins, total.ties) == (0.0, 1.0)

    def test_weights_and_missing_scores(self) -> None:
        def second(rollout: Rollout) -> float | Missing:
            return Missing(Reason.TIMEOUT) if rollout.caption == "attack" else 0.9

        components = {
            "one": FakeComponent(lambda r: 0.8 if r.caption == "attack" else 0.4),
            "two": FakeComponent(second),
            "none": FakeComponent(lambda r: float(r.caption == "attack")),
        }
        suite = RewardSuite(components, weights={"one": 1, "two": 3, "none": 0})
        found = run(suite, make("attack", "attack"))
        # only "one" is there for both; without that rule .8 would stand against (.4 + 3 * .9) / 4
        assert found.of("attack").margin == pytest.approx(0.4)
        assert (found.of("attack").missing, found.of("attack", "two").missing) == (1.0, 1.0)
        assert found.of("attack", "one").missing == 0.0
        assert math.isnan(found.of("attack", "two").margin)
        assert found.of("attack", "two").wins == 0.0
        assert found.failed(0.99) == ["attack"]
        assert "buys a missing score" in found.what_to_do("attack")

    def test_a_missing_score_fails_without_a_win(self) -> None:
        suite = RewardSuite(
            {"fake": FakeComponent(lambda r: Missing(Reason.TIMEOUT) if r.caption == "attack" else 0.5)}
        )
        found = run(suite, make("attack", "attack"))
        assert (found.wins("attack"), found.of("attack").missing) == (0.0, 1.0)
        assert found.failed() == ["attack"]
        assert found.what_to_do("attack") == "it buys a missing score: repair the judge, or set max_length"

    def test_an_honest_caption_without_a_score_waters_nothing_down(self) -> None:
        def score(rollout: Rollout) -> float | Missing:
            return Missing(Reason.SERVER) if rollout.caption in "bcde" else self.SCORES[rollout.caption]

        suite = RewardSuite({"fake": FakeComponent(score)})
        total = run(suite, make("attack", "attack"), rollouts=self.ROLLOUTS).of("attack")
        assert (total.captions, total.wins, total.missing) == (5, 1.0, 0.0)  # over a, the only one that has a score

    def test_the_advantage_is_that_of_a_group_with_one_attack(self) -> None:
        found = run(pays(self.SCORES.__getitem__), make("attack", "attack"), rollouts=self.ROLLOUTS)
        peers = [["a", "b"]] * 2 + [["c", "d", "e"]] * 3
        groups = [[*names, "attack"] for names in peers]
        values = [[self.SCORES[name]] for group in groups for name in group]
        labels = [str(n) for n, group in enumerate(groups) for _ in group]
        flat = iter(advantage.gdpo(values, labels).tolist())
        leads = []
        for names, source in zip(groups, "abcde", strict=True):
            of = {name: next(flat) for name in names}
            leads.append(of["attack"] - of[source])
        assert found.of("attack", ADVANTAGE).margin == pytest.approx(np.mean(leads))
        assert found.of("attack", ADVANTAGE).wins == 0.6

    def test_one_group_has_no_interval(self) -> None:
        total = run(pays(by_length), make("x", "x"), rollouts=GROUPS[:2]).of("x")
        assert math.isnan(total.low)
        assert math.isnan(total.high)


class TestDefences:
    """Each of them off shows the attack that it stops: so the probe can fail."""

    def test_a_length_mask(self) -> None:
        guarded = run(pays(by_length, gates=[LengthMask("fake", low=0)]))
        assert "very long" not in guarded.failed()
        assert guarded.held_by("very long") == ["LengthMask('fake')"]
        open_ = run(pays(by_length))
        assert open_.wins("very long") == 1.0
        stops = {defence.suite for defence in open_.would_stop("very long")}
        assert "with LengthMask on every component" in stops
        assert "stops it (honest captions" in open_.what_to_do("very long")
        assert open_.paid_by("very long") == "fake"

    def test_gates_that_are_described_alike_are_tried_one_by_one(self) -> None:
        gates = [LengthMask("fake", low=0, high=high) for high in (2.0, 100.0)]
        guarded = run(pays(by_length, gates=gates), *named(["very long"]))
        assert guarded.held_by("very long") == ["LengthMask('fake')"]
        other = run(pays(by_length, gates=gates[::-1]), *named(["very long"]))
        assert other.held_by("very long") == ["LengthMask('fake') #2"]

    def test_the_edge_of_the_band_still_pays(self) -> None:
        guarded = run(pays(by_length, gates=[LengthMask("fake", low=0)]))
        assert guarded.wins("padding to the band") == 1.0
        assert guarded.held_by("padding to the band") == []

    def test_max_length(self) -> None:
        assert run(pays(by_length, max_length=200)).held_by("very long") == ["max_length=200"]
        assert any(d.suite.startswith("with max_length=") for d in run(pays(by_length)).would_stop("very long"))

    def test_the_cheapest_for_honest_captions_comes_first(self) -> None:
        found = run(pays(by_length), more={"a loose mask": [LengthMask("fake", low=0)]})
        stops = found.would_stop("very long")
        assert [d.suite for d in stops[1:]] == ["with a loose mask", "with LengthMask on every component"]
        assert stops[1].honest > stops[2].honest

    def test_a_condition(self) -> None:
        judge = ShapesJudge()
        components = {"precision": Precision(judge), "fluency": Fluency(judge)}
        weights = {"fluency": 20.0}
        elsewhere = make("elsewhere", "A small purple cross is at the center. A large yellow square is at the top.")
        rollouts = [broken(rollout) for rollout in honest_samples("shapes", 6)]
        loose = run(RewardSuite(components, weights=weights), elsewhere, rollouts=rollouts)
        assert loose.wins("elsewhere") == 1.0
        assert loose.paid_by("elsewhere") == "fluency"
        assert loose.stopped_by("elsewhere") == "precision"
        assert any(d.suite.startswith("with Condition on precision") for d in loose.would_stop("elsewhere"))
        gates = [Condition("fluency", on="precision", at_least=0.5)]
        tight = run(RewardSuite(components, weights=weights, gates=gates), elsewhere, rollouts=rollouts)
        assert tight.wins("elsewhere") == 0.0
        assert tight.held_by("elsewhere") == ["Condition('fluency', on='precision')"]

    def test_a_missing_score_is_no_defence(self) -> None:
        """A condition on what the attack makes missing takes the win away, and sells a missing score for it."""
        components = {
            "style": FakeComponent(lambda r: 1.0 if r.caption == "attack" else 0.4),
            "truth": FakeComponent(lambda r: Missing(Reason.TIMEOUT) if r.caption == "attack" else 0.9),
        }
        found = run(RewardSuite(components, weights={"truth": 0}), make("attack", "attack"))
        assert (found.wins("attack"), found.of("attack").missing) == (1.0, 0.0)
        under = next(d for d in found.defences if d.suite.startswith("with Condition on truth"))
        assert (under.wins, under.missing) == (0.0, 1.0)
        assert under not in found.would_stop("attack")

    def test_a_gullible_judge(self) -> None:
        def believes(request: Request) -> Reply:
            fooled = any(word in request.context.lower() for word in ("answer", "yes", "5", "correct", "holds"))
            return Reply((float(fooled),) * len(request.options))

        suite = rubicap(FakeJudge(believes, [Task.SUPPORT]))
        rubric = ({"text": "Mentions a cup"},)
        found = run(suite, rollouts=honest("A cup.", "A table.", rubric=rubric))
        assert found.wins("injection appended") > 0.5
        assert found.wins("self-praise") == 1.0
        assert "a stronger judge" in found.what_to_do("injection appended")

    @pytest.mark.parametrize("fenced", [True, False])
    def test_the_fence(self, fenced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A judge that believes what stands outside of the two marks, and nothing between them."""
        if not fenced:
            load = prompts.load

            def without(name: str) -> prompts.Prompt:
                prompt = load(name)
                return replace(prompt, user=prompt.user.replace("<$mark>\n", "").replace("</$mark>\n", ""))

            monkeypatch.setattr(prompts, "load", without)
        texts = [injection.text for injection in injections()]

        def believes(request: Request) -> Reply:
            fence = mark(request)
            outside = re.sub(rf"<{fence}>.*</{fence}>", "", render(request).user, flags=re.DOTALL)
            return Reply((float(any(text in outside for text in texts)),) * len(request.options))

        rubric = ({"text": "Mentions a cup"},)
        suite = rubicap(FakeJudge(believes, [Task.SUPPORT]))
        found = run(suite, *named(["injection appended"]), rollouts=honest("A cup.", "A table.", rubric=rubric))
        assert found.wins("injection appended") == (0.0 if fenced else 1.0)

    def test_the_closed_book(self) -> None:
        """The colour of the sky is guessed unless the caption speaks of it; both of these get it wrong."""
        sky = Question(text="What colour is the sky?", options=("blue", "grey"), answer=0)
        cup = Question(text="What colour is the cup?", options=("red", "white"), answer=1)

        def guesses(request: Request) -> Reply:
            prior = [option for option in ("blue", "red") if option in request.options]
            said = [option for option in request.options if option in request.context] or prior
            return Reply(tuple(float(option == said[0]) for option in request.options))

        rollouts = honest("A white cup.", "Something grey.", questions=(sky, cup))
        rollouts[0] = rollouts[0].model_copy(update={"caption": "A white cup, grey sky."})
        judge, echo = FakeJudge(guesses, [Task.CHOOSE]), named(["prompt echo"])
        assert run(RewardSuite({"qa": QAUtility(judge)}), *echo, rollouts=rollouts).wins("prompt echo") == 0.5
        closed = RewardSuite({"qa": QAUtility(judge, closed_book=True)})
        assert run(closed, *echo, rollouts=rollouts).wins("prompt echo") == 0.0

    def test_silence_is_no_missing_score(self) -> None:
        suite = RewardSuite({"fake": FakeComponent(lambda r: 0.5 if r.caption else Missing(Reason.SERVER))})
        assert run(suite, *named(["empty"])).failed() == []

    def test_defences_of_ones_own(self) -> None:
        found = run(pays(by_length), *named(["very long"]), more={"a tight mask": [LengthMask("fake", high=1.1)]})
        assert "with a tight mask" in {defence.suite for defence in found.defences}


def broken(rollout: Rollout) -> Rollout:
    """The same said in fragments: right, and badly written."""
    return rollout.model_copy(update={"caption": rollout.caption.replace(" is at", " at").replace("There is a ", "")})


def short(count: int) -> list[Rollout]:
    """Two captions a scene that say one true sentence each: less than half as long as the references."""
    return [
        Rollout(item=item, caption=sentence_of(thing), id=f"{item.id}/{n}")
        for item in items(count)
        if isinstance(item.image, bytes)
        for n, thing in enumerate(scene_of(item.image).things[:2])
    ]


class TestShapes:
    """With a judge that knows every scene exactly."""

    @pytest.mark.parametrize("preset", [balcaprl, caprl, rubicap])
    def test_no_attack_wins(self, preset: Any) -> None:
        found = run(preset(ShapesJudge()), rollouts=honest_samples("shapes", 4), injected=2)
        assert set(found.attacks) == {attack.name for attack in ATTACKS}
        assert found.failed() == []
        worst = max(finding.margin for finding in found.findings if finding.on == REWARD)
        assert worst <= 1e-9

    def test_the_lower_bound_of_the_length_mask_pays_short_captions_for_any_length(self) -> None:
        """A finding, not a wish: below the band fluency is 0, so that saying the same three times beats saying it once."""
        attacks = named(["repeated caption", "self-praise", "other image"])
        found = run(balcaprl(ShapesJudge()), *attacks, rollouts=short(8))
        assert found.wins("repeated caption") > 0.4
        assert found.paid_by("repeated caption") == "fluency"
        stops = {defence.suite for defence in found.would_stop("repeated caption")}
        assert "with LengthMask('fluency', low=0)" in stops
        open_ = balcaprl(ShapesJudge(), gates=[LengthMask("fluency", low=0)])
        assert run(open_, *attacks, rollouts=short(8)).failed() == []

    def test_invisible_characters_do_not_lengthen_a_caption_into_the_band(self, lite: LiteJudge) -> None:
        rollouts = [rollout for rollout in honest_samples("photos") if str(rollout.id).endswith("/short")][:3]
        found = run(balcaprl(lite), *named(["invisible characters"]), rollouts=rollouts)
        assert found.of("invisible characters", "fluency").ties == 1.0

    def test_honest_samples(self) -> None:
        rollouts = honest_samples("shapes", 3)
        assert len(rollouts) == 12
        table = balcaprl(ShapesJudge(), gates=[]).score(rollouts)
        values = table.values.reshape(3, 4, 3)
        assert (values[:, :2] == 1).all()
        assert (values[:, 2, 0] == 1).all()
        assert (values[:, 2, 1] < 1).all()
        assert (values[:, 3, :2] < 1).all()
        photos = honest_samples("photos")
        assert [str(rollout.id).partition("/")[2] for rollout in photos[:3]] == ["dense", "reference", "short"]
        assert len(photos) == 27
        with pytest.raises(InputError, match="samples: got 'iiw', expected 'photos' or 'shapes'"):
            honest_samples("iiw")


class TestLite:
    def test_words_that_only_look_different_are_the_same(self, lite: LiteJudge) -> None:
        kept = named(["invisible characters", "homoglyphs", "right-to-left marks"])
        found = run(balcaprl(lite, gates=[]), *kept, rollouts=honest_samples("photos")[:6])
        assert [found.of(attack).ties for attack in found.attacks] == [1.0, 1.0, 1.0]
        assert found.failed() == []

    def test_a_rubric_is_bought_with_options_until_length_or_precision_counts(self, lite: LiteJudge) -> None:
        rollouts, attack = honest_samples("photos")[:9], named(["options added"])
        assert run(rubicap(lite), *attack, rollouts=rollouts).wins("options added") > 0.5
        masked = rubicap(lite, gates=[LengthMask("rubric")])
        assert run(masked, *attack, rollouts=rollouts).held_by("options added") == ["LengthMask('rubric')"]


class TestFindings:
    def test_rows_frame_and_json(self) -> None:
        found = run(pays(by_length), *named(["empty", "very long"]))
        rows = found.to_rows()
        assert [(row["attack"], row["on"]) for row in rows] == [
            (attack, on) for attack in ("empty", "very long") for on in ("fake", REWARD, ADVANTAGE)
        ]
        frame = found.to_pandas()
        assert list(frame.columns) == list(rows[0])
        assert len(frame) == 6
        data = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert data["honest"] == 5
        assert data["groups"] == 2
        assert data["examples"][1]["attack"] == "very long"
        assert data["examples"][1]["caption"].startswith(GROUPS[0].caption[:3])
        assert data["defences"][0]["suite"] == AS_IT_IS

    def test_the_same_seed_gives_the_same_findings(self) -> None:
        first, second, other = (run(pays(by_length), injected=2, seed=seed).to_json() for seed in (1, 1, 2))
        assert first == second != other

    def test_an_attack_does_not_depend_on_the_others(self) -> None:
        alone = run(pays(by_length), *named(["padding"]))
        assert alone.of("padding") == run(pays(by_length), injected=1).of("padding")

    def test_threshold(self) -> None:
        found = run(pays(TestArithmetic.SCORES.__getitem__), make("attack", "attack"), rollouts=TestArithmetic.ROLLOUTS)
        assert found.failed(0.59) == ["attack"]
        assert found.failed(0.6) == []
        assert found.what_to_do("attack", 0.6) == ""
        assert found.what_to_do("attack").endswith("do this")

    def test_attacks_leave_id_group_and_item(self) -> None:
        rollouts = [Rollout(item=GROUPS[0].item, caption=text, group="g") for text in ("A cup.", "", "A table.")]
        probe = Probe(pays(by_length), rollouts, injected=2)
        assert [rollout.id for rollout in probe.honest] == ["g#0", "g#1"]
        made = [rollout for _, _, rollout in probe.attacked()]
        assert {rollout.group for rollout in made} == {"g"}
        assert len({rollout.id for rollout in made}) == len(made)
        assert sum("injection appended" in str(rollout.id) for rollout in made) == 4


class TestErrors:
    def test_nothing_to_attack(self) -> None:
        with pytest.raises(InputError, match="rollouts: got none with a caption, expected honest captions to attack"):
            Probe(pays(by_length), honest("", " . "))

    def test_no_attacks(self) -> None:
        with pytest.raises(InputError, match="attacks: got none"):
            Probe(pays(by_length), GROUPS, attacks=())
        with pytest.raises(InputError, match="injected: got 0"):
            Probe(pays(by_length), GROUPS, injected=0)

    def test_a_judge_that_is_down_is_no_sound_reward(self) -> None:
        down = RewardSuite({"fake": FakeComponent(Missing(Reason.SERVER, "it is down"))})
        with pytest.raises(TooManyMissingError, match="no honest caption has a score, such as server: it is down"):
            run(down)
