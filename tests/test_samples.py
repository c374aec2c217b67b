from __future__ import annotations

import json
import unicodedata
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from capreward import Item, Rollout, samples

FOLDER = samples.PHOTOS.parent
KINDS = {"dense", "short", "overlong", "false", "telegraphic", "praise"}


@pytest.fixture(scope="module")
def items(photos: list[Rollout]) -> list[Item]:
    return list({rollout.item.id: rollout.item for rollout in photos}.values())


@pytest.fixture(scope="module")
def iiw() -> list[Rollout]:
    return samples.iiw()


class TestPhotos:
    def test_nine_items_six_kinds_each(self, photos: list[Rollout], items: list[Item]) -> None:
        assert len(items) == 9
        assert len(photos) == 54
        for item in items:
            of_item = [rollout for rollout in photos if rollout.item is item]
            assert {rollout.metadata["kind"] for rollout in of_item} == KINDS
            assert {rollout.id for rollout in of_item} == {f"{item.id}/{kind}" for kind in KINDS}
            assert {rollout.group for rollout in of_item} == {item.id}

    def test_captions_all_differ_and_none_is_empty(self, photos: list[Rollout]) -> None:
        assert len({rollout.caption for rollout in photos}) == 54
        assert not any(rollout.is_empty for rollout in photos)

    def test_pictures_open(self, items: list[Item]) -> None:
        for item in items:
            assert isinstance(item.image, Path)
            with Image.open(item.image) as image:
                image.load()
                assert min(image.size) >= 256, item.id

    def test_every_picture_is_used(self, items: list[Item]) -> None:
        assert {item.image for item in items} == set((FOLDER / "photos").iterdir())

    def test_questions(self, items: list[Item]) -> None:
        for item in items:
            assert len(item.questions) >= 5
            assert {len(question.options) for question in item.questions} == {4}
            assert any(question.hard for question in item.questions)
            assert not all(question.hard for question in item.questions)
            assert all(question.kind for question in item.questions)

    def test_right_answers_stand_in_every_place(self, items: list[Item]) -> None:
        """Else a judge that always takes the same option would look better or worse than chance."""
        places = Counter(question.answer for item in items for question in item.questions)
        assert set(places) == {0, 1, 2, 3}
        assert max(places.values()) <= 0.4 * places.total()

    def test_facts_are_true_false_and_beyond_pointing(self, items: list[Item]) -> None:
        for item in items:
            kinds = Counter((fact.true, fact.pointable) for fact in item.facts)
            assert kinds[True, True] >= 10
            assert kinds[False, True] >= 5
            assert kinds[True, False] + kinds[False, False] >= 2

    def test_references_and_rubrics(self, items: list[Item]) -> None:
        for item in items:
            assert item.references
            assert len(item.rubric) >= 3
            assert {criterion.weight for criterion in item.rubric} <= {1.0, 2.0, 3.0}


class TestImageInWords:
    def test_100_images_two_descriptions_each(self, iiw: list[Rollout]) -> None:
        assert len(iiw) == 200
        assert len({rollout.item.id for rollout in iiw}) == 100
        for human, p5b in zip(iiw[::2], iiw[1::2], strict=True):
            assert human.item is p5b.item
            assert (human.id, p5b.id) == (f"{human.item.id}/human", f"{human.item.id}/p5b")
            assert (human.metadata["author"], p5b.metadata["author"]) == ("human", "p5b")
            assert human.caption != p5b.caption

    def test_references_and_captions_are_not_empty(self, iiw: list[Rollout]) -> None:
        for rollout in iiw:
            assert not rollout.is_empty
            assert all(any(c.isalpha() for c in reference) for reference in rollout.item.references)
            assert len(rollout.item.references) == 1
            assert rollout.caption not in rollout.item.references

    def test_labels(self, iiw: list[Rollout]) -> None:
        axes = {"Comprehensiveness", "First few line(s) as tldr", "Hallucination", "Human Like", "Specificity"}
        for rollout in iiw:
            labels = rollout.item.metadata["labels"]
            assert set(labels) == axes
            assert set(labels.values()) <= {-2, -1, 0, 1, 2}
        assert {label for rollout in iiw for label in rollout.item.metadata["labels"].values()} == {-2, -1, 0, 1, 2}

    def test_labels_by_hand(self, iiw: list[Rollout]) -> None:
        """The sign: 2 says that the human's description is substantially better."""
        rows = {row["image/key"]: row for row in map(json.loads, samples.IIW.read_text("utf-8").splitlines())}
        for rollout in iiw:
            said = rows[rollout.item.id]["iiw-human-sxs-iiw-p5b"]["metrics/Specificity"]
            label = rollout.item.metadata["labels"]["Specificity"]
            strength = 0 if said == "Neutral" else 2 if "substantially" in said else 1
            assert label == (strength if said.startswith("IIW-Human") or not strength else -strength)


class TestInjections:
    def test_50_distinct_texts_in_14_families(self) -> None:
        found = samples.injections()
        assert len(found) == len({one.id for one in found}) == len({one.text for one in found}) == 50
        assert len({one.family for one in found}) == 14
        assert all(one.id.startswith(one.family) for one in found)
        assert not any(one.text.isspace() for one in found)

    def test_every_line_can_be_read_by_a_person(self) -> None:
        """What hides in a text is escaped in the file."""
        lines = samples.INJECTIONS.read_text(encoding="utf-8")
        assert not [c for c in lines if unicodedata.category(c) in ("Cf", "Co", "Cn")]


class TestLicences:
    README = files("capreward.samples").joinpath("README.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("name", sorted(path.name for path in (FOLDER / "photos").iterdir()))
    def test_every_photo_has_a_row(self, name: str) -> None:
        (row,) = [line for line in self.README.splitlines() if line.startswith(f"| {name} |")]
        _, source, licence, author, change = (cell.strip() for cell in row.strip("|").split("|"))
        assert source
        assert any(known in licence for known in ("CC0", "public domain", "CC BY 2.0"))
        assert author
        assert change

    def test_image_in_words_is_attributed(self) -> None:
        section = self.README.partition("ImageInWords")[2]
        assert "CC BY 4.0" in section
        assert "Garg et al." in section
