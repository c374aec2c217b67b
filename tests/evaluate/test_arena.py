from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from math import log

import choix
import numpy as np
import pytest
from fakes import FakeJudge
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from capreward import Item, Missing, Reason, Reply, Rollout
from capreward.errors import InputError
from capreward.evaluate import Battle, Outcome, auto_scores, bradley_terry, fight
from capreward.evaluate.arena import POINTS, QUESTION, pair_up
from capreward.judges import Request, Task
from capreward.judges.base import Judge

FIRST, SECOND, TIE = Outcome
ITEM = Item(id="cup", references=("A white cup.", "A cup on a table."))
LOST = Missing(Reason.TIMEOUT, "late")


def caption(text: str, item: Item = ITEM) -> Rollout:
    return Rollout(item=item, caption=text)


def fought(judge: Judge, *pairs: tuple[str, str], item: Item = ITEM) -> Sequence[Outcome | Missing]:
    return asyncio.run(fight(judge, [(caption(one, item), caption(other, item)) for one, other in pairs]))


def prefers(better: Callable[[str], float]) -> FakeJudge:
    def answer(request: Request) -> tuple[float, ...]:
        one, other = map(better, request.options)
        return (0.5, 0.5) if one == other else (0.9, 0.1) if one > other else (0.1, 0.9)

    return FakeJudge(answer)


class TestFight:
    def test_both_orders_are_asked(self) -> None:
        judge = prefers(len)
        assert fought(judge, ("a long cup", "a cup"), ("a cup", "a long cup"), ("a cup", "a cat")) == [
            FIRST,
            SECOND,
            TIE,
        ]
        assert [request.options for request in judge.asked[:2]] == [("a long cup", "a cup"), ("a cup", "a long cup")]
        assert {(request.task, request.question, request.context) for request in judge.asked} == {
            (Task.CHOOSE, QUESTION, "A white cup.\nA cup on a table.")
        }

    def test_a_judge_that_takes_the_first_makes_ties(self) -> None:
        assert fought(FakeJudge((0.8, 0.2)), ("a cup", "a cat")) == [TIE]

    def test_one_order_undecided_is_a_tie(self) -> None:
        judge = FakeJudge(lambda request: (0.5, 0.5) if request.options[0] == "a cat" else (0.9, 0.1))
        assert fought(judge, ("a cup", "a cat")) == [TIE]

    def test_what_needs_no_judge(self) -> None:
        judge = FakeJudge(LOST)
        pairs = ("a cup", " a  cup"), ("", "..."), ("a cup", ""), ("!", "a cup")
        assert fought(judge, *pairs) == [TIE, TIE, FIRST, SECOND]
        assert judge.asked == []

    def test_a_judge_that_fails_in_one_order(self) -> None:
        judge = FakeJudge(lambda request: LOST if request.options[0] == "a cat" else Reply((0.9, 0.1)))
        assert fought(judge, ("a cup", "a cat")) == [LOST]

    def test_what_it_goes_by(self) -> None:
        judge = prefers(len)
        units, facts = {"reference_units": ("A cup.",)}, ({"text": "A cup."}, {"text": "A dog.", "true": False})
        for item in (Item(id="cup", **units, facts=facts), Item(id="cup", facts=facts)):
            assert fought(judge, ("a long cup", "a cup"), item=item) == [FIRST]
        assert {request.context for request in judge.asked} == {"A cup."}
        (missing,) = fought(judge, ("a long cup", "a cup"), item=Item(id="bare"))
        assert missing == Missing(Reason.NO_REFERENCE, "item 'bare' has nothing to compare captions with")

    def test_a_judge_that_sees_is_shown_the_image(self) -> None:
        judge = prefers(len)
        judge.images = True
        item = Item(id="cup", image=b"image")
        assert fought(judge, ("a long cup", "a cup"), item=item) == [FIRST]
        assert {request.images for request in judge.asked} == {(b"image",)}

    def test_a_judge_that_cannot(self) -> None:
        with pytest.raises(InputError, match="fight: judge 'fake' cannot choose, only rate"):
            fought(FakeJudge(tasks=[Task.RATE]), ("a cup", "a cat"))


class TestPairs:
    captions = {  # noqa: RUF012
        "x": [caption("1"), caption("2"), caption("3", Item(id="dog"))],
        "y": [caption("4"), caption("5", Item(id="cat"))],
        "z": [caption("6"), caption("7")],
    }

    def said(self, *baselines: str) -> list[tuple[str, str]]:
        return [(one.caption, other.caption) for (_, one), (_, other) in pair_up(self.captions, baselines)]

    def test_every_two_on_every_item_that_both_have(self) -> None:
        assert self.said() == [("1", "4"), ("1", "6"), ("2", "7"), ("4", "6")]

    def test_against_baselines(self) -> None:
        assert self.said("y") == [("1", "4"), ("4", "6")]

    def test_unknown_baseline(self) -> None:
        with pytest.raises(InputError, match="baselines: got 'w', expected one of"):
            self.said("w")


def battles(*outcomes: Outcome | Missing, first: str = "x", second: str = "y") -> list[Battle]:
    return [Battle(str(number), first, second, outcome) for number, outcome in enumerate(outcomes)]


def test_a_battle_has_two_sides() -> None:
    with pytest.raises(InputError, match="battle on item '1': 'x' against itself"):
        Battle("1", "x", "x", TIE)
    assert Battle("1", "x", "y", TIE, (20, 10)).log_length_ratio == pytest.approx(log(2))
    assert Battle("1", "x", "y", TIE, (0, 10)).log_length_ratio == pytest.approx(log(1 / 10))


class TestAutoScores:
    played = [  # noqa: RUF012
        *battles(FIRST, FIRST, FIRST, SECOND, TIE, LOST),
        *battles(SECOND, SECOND, TIE, first="z", second="x"),
    ]

    def test_by_hand(self) -> None:
        # x has won 3 and lost 1 against y; won 2 and lost none against z
        assert auto_scores(self.played) == {
            "x": {"y": 1.0, "z": 1.0, "mean": 1.0},
            "y": {"x": -1.0, "mean": -1.0},
            "z": {"x": -1.0, "mean": -1.0},
        }

    def test_against_baselines(self) -> None:
        assert auto_scores(self.played, ["y"]) == {"x": {"y": 1.0, "mean": 1.0}}
        with pytest.raises(InputError, match=r"baselines: got 'w', expected one of \['x', 'y', 'z'\]"):
            auto_scores(self.played, ["w"])

    def test_a_baseline_whose_battles_are_missing_is_a_baseline(self) -> None:
        played = [*battles(FIRST), *battles(LOST, LOST, second="z")]
        assert auto_scores(played, ["y", "z"]) == {"x": {"y": 0.5, "mean": 0.5}}
        assert auto_scores(played, ["z"]) == {}


def drawn(count: int = 150, seed: int = 0, effect: float = 0.8) -> list[Battle]:
    """Of four captioners whose strengths are known."""
    chance = np.random.default_rng(seed)
    strength = {"a": 1.0, "b": 0.3, "c": -0.3, "d": -1.0}
    result = []
    for number in range(count):
        for one, other in (("a", "b"), ("c", "a"), ("a", "d"), ("b", "c"), ("d", "b"), ("c", "d")):
            words = chance.integers(20, 200), chance.integers(20, 200)
            ahead = strength[one] - strength[other] + effect * log(words[0] / words[1])
            won = chance.random() < 1 / (1 + np.exp(-ahead))
            outcome = TIE if chance.random() < 0.15 else FIRST if won else SECOND
            result.append(Battle(str(number), one, other, outcome, (int(words[0]), int(words[1]))))
    return result


def as_wins(played: Sequence[Battle], names: Sequence[str]) -> list[tuple[int, int]]:
    """(winner, loser), each decided battle twice and a tie once each way."""
    wins = []
    for battle in played:
        one, other = names.index(battle.first), names.index(battle.second)
        wins += {FIRST: [(one, other)] * 2, SECOND: [(other, one)] * 2, TIE: [(one, other), (other, one)]}[
            Outcome(battle.outcome)  # type: ignore[arg-type]
        ]
    return wins


class TestBradleyTerry:
    def test_by_hand(self) -> None:
        # three of four points: odds of 3, so ln 3 apart
        found = bradley_terry(battles(FIRST, FIRST, TIE, TIE), ridge=0, draws=0)
        assert found.names == ("x", "y")
        assert found.strength == pytest.approx([log(3) / 2, -log(3) / 2])
        assert (found.battles, found.missing, found.length_effect) == (4, 0, None)
        assert np.isnan(found.low).all()

    def test_agrees_with_choix(self) -> None:
        played = drawn()
        found = bradley_terry(played, ridge=0, draws=0)
        expected = choix.ilsr_pairwise(4, as_wins(played, found.names), tol=1e-10)
        np.testing.assert_allclose(found.strength, expected - expected.mean(), atol=1e-6)
        # choix counts each of our points twice, and penalises alpha * sum(strength**2)
        ridged = bradley_terry(played, ridge=3.0, draws=0)
        expected = choix.opt_pairwise(4, as_wins(played, found.names), alpha=3.0, tol=1e-10)
        np.testing.assert_allclose(ridged.strength, expected, atol=1e-5)

    @pytest.mark.parametrize("ridge", [0.5, 4.0])
    def test_length_controlled_agrees_with_scikit_learn(self, ridge: float) -> None:
        played = drawn()
        found = bradley_terry(played, control_length=True, ridge=ridge, draws=0)
        rows, won, weight = [], [], []
        for battle in played:
            sides = [(name == battle.first) - (name == battle.second) for name in found.names]
            for side, points in ((1, POINTS[Outcome(battle.outcome)]), (0, 1 - POINTS[Outcome(battle.outcome)])):  # type: ignore[arg-type]
                if points:
                    rows.append([*sides, log(battle.words[0] / battle.words[1])])
                    won.append(side)
                    weight.append(points)
        model = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=10_000)
        model.fit(np.array(rows), won, sample_weight=weight)
        np.testing.assert_allclose([*found.strength, found.length_effect], model.coef_[0], atol=1e-5)

    def test_length_controlled_agrees_with_scipy_without_a_ridge(self) -> None:
        played = drawn(seed=5)
        found = bradley_terry(played, control_length=True, ridge=0, draws=0)

        def loss(x: np.ndarray) -> float:
            strength = dict(zip(found.names, x, strict=False))
            total = 0.0
            for battle in played:
                z = strength[battle.first] - strength[battle.second] + x[-1] * battle.log_length_ratio
                points = POINTS[Outcome(battle.outcome)]  # type: ignore[arg-type]
                total += points * np.log1p(np.exp(-z)) + (1 - points) * np.log1p(np.exp(z))
            return total / len(played)

        best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-7}).x
        np.testing.assert_allclose(found.strength, best[:4] - best[:4].mean(), atol=1e-4)
        assert found.length_effect == pytest.approx(best[4], abs=1e-4)

    def test_finds_what_the_battles_were_drawn_from(self) -> None:
        found = bradley_terry(drawn(800, effect=1.0), control_length=True, draws=100)
        assert found.length_interval is not None
        # ties take 15% of what is decided, so all is drawn towards 0
        assert found.length_effect == pytest.approx(0.8, abs=0.15)
        order = dict(zip(found.names, found.strength, strict=True))
        assert sorted(order, key=order.__getitem__) == ["d", "c", "b", "a"]
        assert (found.low < found.strength).all()
        assert (found.strength < found.high).all()
        assert (found.high - found.low < 0.4).all()

    def test_length_explains_what_length_decides(self) -> None:
        chance = np.random.default_rng(3)
        played = []
        for number in range(400):
            words = int(chance.integers(50, 100)), int(chance.integers(75, 150))  # y is longer, and that is all
            won = chance.random() < 1 / (1 + np.exp(-2 * log(words[0] / words[1])))
            played.append(Battle(str(number), "x", "y", FIRST if won else SECOND, words))
        plain, controlled = (bradley_terry(played, control_length=control, draws=100) for control in (False, True))
        assert plain.high[0] < 0 < plain.low[1]
        assert controlled.low[0] < 0 < controlled.high[0]

    def test_intervals_cover(self) -> None:
        """Of 30 draws, the 95% interval of a's strength holds in nearly all what very many battles give."""
        many = bradley_terry(drawn(4000, seed=99, effect=0), ridge=0, draws=0)
        place = many.names.index("a")
        held = 0
        for seed in range(30):
            found = bradley_terry(drawn(60, seed=seed, effect=0), draws=60)
            held += bool(found.low[place] <= many.strength[place] <= found.high[place])
        assert held >= 24

    def test_missing_battles_are_left_out(self) -> None:
        outcomes = [FIRST, FIRST, TIE, SECOND]
        without, beside = (bradley_terry(battles(*outcomes, *more), draws=0) for more in ([], [LOST] * 3))
        np.testing.assert_allclose(without.strength, beside.strength)
        assert (beside.battles, beside.missing) == (4, 3)

    def test_a_captioner_that_wins_all_needs_a_ridge(self) -> None:
        found = bradley_terry(battles(FIRST, FIRST, FIRST), draws=10)
        assert 2 < found.strength[0] < 5
        with pytest.raises(InputError, match="'y' takes no point from 'x', not even by way of others, so with ridge=0"):
            bradley_terry(battles(FIRST, FIRST), ridge=0)

    def test_lengths_that_decide_every_battle_need_a_ridge(self) -> None:
        played = [
            Battle(str(number), "x", "y", FIRST if number % 2 else SECOND, (20, 10) if number % 2 else (10, 20))
            for number in range(8)
        ]
        assert bradley_terry(played, control_length=True, draws=0).length_effect > 3  # type: ignore[operator]
        with pytest.raises(InputError, match="the fit of the strengths has no end"):
            bradley_terry(played, control_length=True, ridge=0, draws=0)

    def test_one_item_has_no_interval(self) -> None:
        played = [Battle("1", "x", "y", TIE), Battle("1", "y", "z", FIRST)]
        assert np.isnan(bradley_terry(played).high).all()

    def test_same_seed_same_intervals(self) -> None:
        one, again, other = (bradley_terry(drawn(20), draws=30, seed=seed) for seed in (1, 1, 2))
        assert one.low.tolist() == again.low.tolist() != other.low.tolist()

    def test_cannot_be(self) -> None:
        with pytest.raises(InputError, match="battles: got 1, none with an outcome"):
            bradley_terry(battles(LOST))
        with pytest.raises(InputError, match="ridge: got -1, expected a number >= 0"):
            bradley_terry(battles(TIE), ridge=-1)
