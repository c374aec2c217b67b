from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from capreward.errors import InputError
from capreward.evaluate import agreement as module
from capreward.evaluate.agreement import STATISTICS, Agreement, Axis, Estimate, agreement

Sample = tuple[Axis, NDArray[np.float64], NDArray[np.float64], NDArray[np.str_]]
"""Labels; score, length and image of each caption."""


def pairs(label: list[float], name: str = "axis") -> Axis:
    """Labels of captions 0 and 1, 2 and 3, ..."""
    rows = np.arange(2 * len(label))
    return Axis(name, "side by side", rows[::2], rows[1::2], np.array(label, float))


def ratings(rows: list[int], label: list[float]) -> Axis:
    return Axis("axis", "rating", np.array(rows), None, np.array(label, float))


def measured(axis: Axis, score: list[float], length: list[float], image: list[str], **options: int) -> Agreement:
    return agreement(axis, np.array(score, float), np.array(length, float), np.array(image), **options)


def of_differences(x: list[float], y: list[float], z: list[float], **options: int) -> Agreement:
    """Pairs with these differences in score, label and length, an image each."""
    score, length = ([value for one in column for value in (one, 0.0)] for column in (x, z))
    image = [str(n // 2) for n in range(2 * len(x))]
    return measured(pairs(y), score, length, image, **options)


class TestByHand:
    def test_four_pairs(self) -> None:
        """Score and label order 5 of 6 pairs alike and one otherwise, no ties: tau (5 - 1) / 6. Length: 3 - 3."""
        found = of_differences([1, 2, 4, 3], [-2, -1, 1, 2], [1, 4, 3, 2])
        assert found.score["tau_b"].value == pytest.approx(4 / 6)
        assert found.score["tau_c"].value == pytest.approx(4 / 6)
        assert found.length["tau_b"].value == pytest.approx(0)
        assert found.margin["tau_b"].value == pytest.approx(4 / 6)
        assert found.score["spearman"].value == pytest.approx(1 - 6 * (1 + 1) / (4 * 15))
        assert found.score["accuracy"].value == 0.5
        assert found.one_answer == 0.5
        assert (found.labels, found.images, found.missing) == (4, 4, 0)

    def test_partial(self) -> None:
        """t_xy = 2/3, t_xz = 1/3 (4 of 6 alike), t_yz = 0."""
        found = of_differences([1, 2, 4, 3], [-2, -1, 1, 2], [1, 4, 3, 2])
        t_xz = stats.kendalltau([1, 2, 4, 3], [1, 4, 3, 2]).statistic
        assert t_xz == pytest.approx(1 / 3)
        assert found.partial.value == pytest.approx((2 / 3) / math.sqrt(1 - 1 / 9))

    def test_what_length_explains_leaves_nothing(self) -> None:
        found = of_differences([1, 2, 3, 4, 5], [-2, 1, -1, 2, 0], [1, 2, 3, 4, 5])
        assert math.isnan(found.partial.value)
        assert found.margin["tau_b"] == Estimate(0, 0, 0)

    def test_ties(self) -> None:
        """Decided pairs: right, wrong, equal scores. With epsilon from 0.2 on the tie is seen as well."""
        found = of_differences([3.0, 1.0, 0.0, 0.2, -4.0], [1, -1, 1, 0, -1], [1, 1, 1, 1, 1])
        assert found.score["accuracy"].value == pytest.approx((1 + 0 + 0.5 + 1) / 4)
        assert found.score["accuracy_with_ties"].value == pytest.approx(3 / 5)
        assert found.one_answer == 0.5

    def test_equal_scores_tie_whatever_epsilon(self) -> None:
        found = of_differences([0, 0, 1], [1, 0, 1], [1, 2, 3])
        assert found.score["accuracy_with_ties"].value == pytest.approx(2 / 3)

    def test_ratings_are_compared_within_images(self) -> None:
        """Image a: captions 0 and 1, rated 1.5 and 4; b: caption 2 alone. Caption 0 was rated twice."""
        found = measured(ratings([0, 0, 1, 2], [1, 2, 4, 1]), [0.2, 0.6, 0.9], [5, 4, 3], ["a", "a", "b"])
        assert found.score["accuracy"].value == 1
        assert found.length["accuracy"].value == 0
        assert found.one_answer == 0.5
        assert (found.labels, found.images) == (4, 2)

    def test_equally_rated_captions_are_ties(self) -> None:
        found = measured(ratings([0, 1], [2, 2]), [0.2, 0.6], [5, 5], ["a", "a"])
        assert math.isnan(found.score["accuracy"].value)
        assert found.score["accuracy_with_ties"].value == 1


class TestMissing:
    def test_leaves_the_comparison_for_length_too(self) -> None:
        axis = pairs([1, 2, -1, 0])
        score = np.array([0.9, 0.1, 0.5, np.nan, 0.2, 0.4, 0.3, 0.3])
        length = np.arange(8.0) ** 2
        image = np.repeat(["a", "b", "c", "d"], 2)
        found = agreement(axis, score, length, image)
        kept = [0, 1, 4, 5, 6, 7]
        alone = agreement(pairs([1, -1, 0]), score[kept], length[kept], image[kept])
        assert (found.labels, found.missing) == (3, 1)
        assert found.score == alone.score
        assert found.length == alone.length

    @pytest.mark.parametrize("axis", [pairs([1, 2]), ratings([0, 1, 2], [1, 2, 3])])
    def test_all(self, axis: Axis) -> None:
        found = measured(axis, [np.nan] * 4, [1, 2, 3, 4], ["a", "a", "b", "b"])
        assert (found.labels, found.missing, found.images) == (0, len(axis.label), 0)
        assert all(math.isnan(found.score[name].value) for name in STATISTICS)
        assert math.isnan(found.partial.low)


class TestUndefined:
    def test_equal_scores(self) -> None:
        found = of_differences([1, 1, 1], [1, 2, -1], [1, 2, 3])
        assert all(math.isnan(found.score[name].value) for name in ("tau_b", "tau_c", "spearman"))
        assert math.isnan(found.score["tau_b"].low)
        assert found.score["accuracy"].value == pytest.approx(2 / 3)
        assert math.isnan(found.partial.value)

    def test_resamples(self) -> None:
        with pytest.raises(InputError, match="resamples: got 0, expected a number >= 1"):
            of_differences([1, 2], [1, 2], [1, 2], resamples=0)


@pytest.fixture(scope="module")
def random() -> Sample:
    """Ratings in 4 levels of 60 captions on 12 images, some rated twice; scores with ties."""
    rng = np.random.default_rng(5)
    rows = np.concatenate([np.arange(60), rng.integers(60, size=30)])
    score = rng.integers(8, size=60) / 8
    label = np.clip(np.round(score[rows] * 3 + rng.normal(size=90)), 0, 3)
    image = np.array([f"image {n}" for n in rng.integers(12, size=60)])
    return Axis("axis", "rating", rows, None, label), score, rng.integers(20, size=60).astype(float), image


class TestAgainstOthers:
    """Every resample against scipy, or plain loops, on the drawn labels."""

    def test_correlations(self, random: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
        axis, score, _, image = random
        x, y = score[axis.first], axis.label
        names, cluster = np.unique(image[axis.first], return_inverse=True)
        draws = module._draws(len(names), 50, 3)
        monkeypatch.setattr(module, "CHUNK", 400)  # several chunks
        found = module._correlations(x, y, cluster, draws)
        for n, draw in enumerate([np.ones(len(names), int), *draws]):
            rows = np.concatenate([np.repeat(np.flatnonzero(cluster == one), times) for one, times in enumerate(draw)])
            assert found["tau_b"][n] == pytest.approx(stats.kendalltau(x[rows], y[rows]).statistic)
            assert found["spearman"][n] == pytest.approx(stats.spearmanr(x[rows], y[rows]).statistic)
            if len(np.unique(y[rows])) == 4:
                assert found["tau_c"][n] == pytest.approx(stats.kendalltau(x[rows], y[rows], variant="c").statistic)

    def test_accuracies(self, random: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
        axis, score, _, image = random
        kept = np.ones(90, bool)
        names, cluster = np.unique(image[axis.first], return_inverse=True)
        x, y, of_pair = module._pairs(axis, kept, score, cluster)
        draws = module._draws(len(names), 20, 3)
        monkeypatch.setattr(module, "CHUNK", 400)
        found = module._accuracies(x, y, of_pair, draws)
        for n, draw in enumerate([np.ones(len(names), int), *draws]):
            seen = [
                (
                    score[i] - score[j],
                    axis.label[axis.first == i].mean() - axis.label[axis.first == j].mean(),
                )
                for one, times in enumerate(draw)
                for i, j in itertools.combinations(np.flatnonzero(image == names[one]), 2)
                for _ in range(times)
            ]
            decided = [(a, b) for a, b in seen if b]
            halves = [1.0 if a * b > 0 else 0.5 if a == 0 else 0.0 for a, b in decided]
            assert found["accuracy"][n] == pytest.approx(sum(halves) / len(decided))
            best = max(
                sum((0 if abs(a) <= epsilon else np.sign(a)) == np.sign(b) for a, b in seen)
                for epsilon in {0.0, *(abs(a) for a, _ in seen)}
            )
            assert found["accuracy_with_ties"][n] == pytest.approx(best / len(seen))

    def test_partial(self, random: Sample) -> None:
        """As the inverse of the correlation matrix gives it."""
        axis, score, length, image = random
        columns = [score[axis.first], axis.label, length[axis.first]]
        inverse = np.linalg.inv([[stats.kendalltau(a, b).statistic for a in columns] for b in columns])
        expected = -inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1])
        assert agreement(axis, score, length, image).partial.value == pytest.approx(expected)


class TestIntervals:
    def test_hold_the_truth_about_as_often_as_they_say(self) -> None:
        """Spearman's rho of a bivariate normal with correlation r is 6/pi asin(r/2)."""
        rng = np.random.default_rng(0)
        truth, hits = 6 / math.pi * math.asin(0.5 / 2), 0
        for _ in range(100):
            x, noise = rng.normal(size=(2, 80))
            y = 0.5 * x + math.sqrt(0.75) * noise
            axis = ratings(list(range(80)), list(y))
            found = agreement(axis, x, rng.normal(size=80), np.arange(80).astype(str), resamples=200)
            hits += found.score["spearman"].low <= truth <= found.score["spearman"].high
        assert 86 <= hits <= 100

    def test_images_stay_together(self) -> None:
        """Labels that only repeat each other within an image add nothing."""
        rng = np.random.default_rng(1)
        x, y, z = rng.normal(size=(3, 30))
        image = np.arange(30).astype(str)
        once = agreement(ratings(list(range(30)), list(y)), x, z, image)
        axis = ratings([n for n in range(30) for _ in range(5)], list(np.repeat(y, 5)))
        five = agreement(axis, x, z, image)
        width, wide = (found.score["spearman"].high - found.score["spearman"].low for found in (once, five))
        assert wide == pytest.approx(width, rel=0.05)

    @pytest.mark.filterwarnings("error")
    def test_one_image_has_none(self) -> None:
        found = measured(pairs([1, -1, 2]), [1, 0, 0, 1, 3, 0], [1, 2, 3, 5, 4, 2], ["a"] * 6)
        assert found.score["tau_b"].value == pytest.approx(1)
        every = [*found.score.values(), *found.length.values(), *found.margin.values(), found.partial]
        assert all(math.isnan(bound) for estimate in every for bound in (estimate.low, estimate.high))

    def test_seeded(self) -> None:
        columns = np.random.default_rng(2).normal(size=(3, 30)).tolist()
        first, again, other = (of_differences(*columns, seed=seed) for seed in (1, 1, 2))
        assert first.score == again.score
        assert first.score["tau_b"] != other.score["tau_b"]
