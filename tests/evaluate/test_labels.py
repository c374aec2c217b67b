"""Each layout with a small made-up file; no row is of the real data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from capreward import Item, samples
from capreward.errors import InputError
from capreward.evaluate.labels import Labels, read_labels

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, *rows: Any) -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def said(labels: Labels) -> dict[str, list[tuple[str, ...]]]:
    """axis -> (kind, first caption, second caption if any, label)."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for axis in labels.axes:
        columns = [axis.first] if axis.second is None else [axis.first, axis.second]
        for n, label in enumerate(axis.label):
            texts = [labels.rollouts[column[n]].caption for column in columns]
            found.setdefault(axis.name, []).append((axis.kind, *texts, f"{label:g}"))
    return found


class TestRows:
    ITEM = {"id": "cup", "references": ["A cup."]}  # noqa: RUF012

    def test_pairs_and_ratings(self, write: Write) -> None:
        path = write(
            "labels.jsonl",
            {"item": self.ITEM, "first": "A white cup.", "second": "A dog.", "labels": {"detail": 2}},
            {"item": "cup", "caption": "A dog.", "labels": {"quality": 1.5}},
            {"item": "cup", "first": "A white cup.", "second": "A dog.", "labels": {"best": "second"}},
            {"item": "cup", "first": "A white cup.", "second": "A dog.", "labels": {"best": "tie"}},
        )
        labels = read_labels(path)
        assert labels.layout == "rows"
        assert said(labels) == {
            "detail": [("side by side", "A white cup.", "A dog.", "2")],
            "quality": [("rating", "A dog.", "1.5")],
            "best": [("choice", "A white cup.", "A dog.", "-1"), ("choice", "A white cup.", "A dog.", "0")],
        }
        assert [rollout.item.references for rollout in labels.rollouts] == [("A cup.",)] * 2
        assert list(labels.images) == ["cup", "cup"]

    def test_a_given_item_takes_the_place_of_the_rows(self, write: Write) -> None:
        rows = [{"item": item, "caption": "A dog.", "labels": {"quality": 1}} for item in (self.ITEM, "cup", self.ITEM)]
        given = Item(id="cup", references=("A white cup.", "A mug."))
        (rollout,) = read_labels(write("labels.jsonl", *rows), items=[given]).rollouts
        assert rollout.item is given

    def test_empty_lines_are_passed_over(self, write: Write) -> None:
        row = {"item": self.ITEM, "caption": "A dog.", "labels": {"quality": 1.5}}
        assert said(read_labels(write("labels.jsonl", "", row, " "))) == {"quality": [("rating", "A dog.", "1.5")]}

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (
                {"item": "dog", "caption": "A dog.", "labels": {"a": 1}},
                "item: got 'dog', expected the fields of an item",
            ),
            ({"item": {"id": ""}, "caption": "A dog.", "labels": {"a": 1}}, "Item ''"),
            ({"item": {"id": "cup"}, "caption": "A", "labels": {"a": 1}}, "has come with other contents before"),
            ({"item": "cup", "caption": 3, "labels": {"a": 1}}, "caption: got 3, expected a text"),
            ({"item": "cup", "first": "A", "labels": {"a": 1}}, "second: got None, expected a text"),
            ({"item": "cup", "caption": "A", "labels": [1]}, r"labels: got \[1\], expected an object"),
            ({"item": "cup", "caption": "A", "labels": {"a": "good"}}, "a: got 'good', expected a finite number"),
            (
                {"item": "cup", "first": "A", "second": "B", "labels": {"b": "A"}},
                "b: got 'A', expected a number, 'first'",
            ),
            (
                {"item": "cup", "first": "A", "second": "B", "labels": {"a": 1}},
                "a: got a side by side label, expected a rating",
            ),
            (
                {"item": {"id": "dog"}, "caption": "A dog.", "labels": {"a": True}},
                "a: got True, expected a finite number",
            ),
            ({"item": 3, "caption": "A cup.", "labels": {"a": 1}}, "item: got 3, expected the fields of an item"),
            ("{", "not JSON"),
            ([1], "got list, expected an object with named fields"),
        ],
    )
    def test_unusable(self, write: Write, row: Any, message: str) -> None:
        path = write("labels.jsonl", {"item": self.ITEM, "caption": "A cup.", "labels": {"a": 1}}, row)
        with pytest.raises(InputError, match=rf"labels.jsonl, line 2: .*{message}"):
            read_labels(path)


class TestImageInWords:
    def row(self, **sides: Any) -> dict[str, Any]:
        parts = [{"description": " A cup. "}, {"description": "A table."}]
        return {"image/key": "k1", "IIW": "A white cup.", "IIW-P5B": "A cup.", "objects": parts} | sides

    def test_iiw_400(self, write: Write) -> None:
        one = {
            "metrics/Specificity": "IIW-Human is substantially better",
            "metrics/Human Like": "IIW-P5B is marginally better",
        }
        path = write(
            "data.jsonl",
            self.row(**{"iiw-human-sxs-iiw-p5b": one, "iiw-human-sxs-gpt4v": one}),
            {"image/key": "k2", "IIW": "A dog.", "objects": []},
        )
        labels = read_labels(path)
        assert labels.layout == "iiw"
        assert said(labels) == {
            "Specificity": [("side by side", "A white cup.", "A cup.", "2")],
            "Human Like": [("side by side", "A white cup.", "A cup.", "-1")],
        }
        assert labels.rollouts[0].item.references == ("A cup. A table.",)
        assert labels.left_out == {
            "labels against gpt4v, whose caption the file does not hold": 1,
            "images with one caption": 1,
        }

    def test_docci(self, write: Write) -> None:
        row = {"image": "t1", "IIW": "A white cup.", "DOCCI": "A cup.", "metrics/Hallucination": "Neutral"}
        worse = row | {"image": "t2", "metrics/Hallucination": "DOCCI is substantially better"}
        assert said(read_labels(write("docci.jsonl", row, worse))) == {
            "Hallucination": [("side by side", "A white cup.", "A cup.", label) for label in ("0", "-2")]
        }

    def test_what_comes_with_the_package(self) -> None:
        labels, rollouts = read_labels(samples.IIW), samples.iiw()
        assert [rollout.caption for rollout in labels.rollouts] == [rollout.caption for rollout in rollouts]
        assert [rollout.item.references for rollout in labels.rollouts] == [r.item.references for r in rollouts]
        for axis in labels.axes:
            assert axis.label.tolist() == [rollout.item.metadata["labels"][axis.name] for rollout in rollouts[::2]]
            assert axis.second is not None
            assert (axis.first.tolist(), axis.second.tolist()) == (list(range(0, 200, 2)), list(range(1, 200, 2)))

    @pytest.mark.parametrize(
        ("odd", "message"),
        [
            ({"objects": ["cup"]}, "objects: got 'cup', expected objects with a description"),
            ({"objects": "cup"}, "objects: got 'cup', expected a list"),
            ({"objects": [{"name": "cup"}]}, "objects: description: got None, expected a text"),
            ({"iiw-human-sxs-iiw-p5b": "IIW"}, "iiw-human-sxs-iiw-p5b: got 'IIW', expected an object"),
        ],
    )
    def test_unusable(self, write: Write, odd: Any, message: str) -> None:
        with pytest.raises(InputError, match=f"data.jsonl, line 1: {message}"):
            read_labels(write("data.jsonl", self.row(**odd)))

    def test_an_unknown_verdict(self, write: Write) -> None:
        path = write("data.jsonl", self.row(**{"iiw-human-sxs-iiw-p5b": {"metrics/Specificity": "IIW is better"}}))
        with pytest.raises(InputError, match="line 1: metrics/Specificity: got 'IIW is better', expected 'Neutral' or"):
            read_labels(path)


class TestFlickr8k:
    TOKENS = tuple(f"{name}.jpg#{n}\tThe {name} , caption {n} ." for name in ("cup", "dog") for n in range(5))

    def test_three_ratings_a_caption(self, write: Write) -> None:
        write("Flickr8k.token.txt", *self.TOKENS)
        path = write("ExpertAnnotations.txt", "cup.jpg\tdog.jpg#2\t1\t1\t2", "cup.jpg\tcup.jpg#0\t4\t4\t4")
        for source in (path, path.parent):
            labels = read_labels(source)
            assert labels.layout == "flickr8k-expert"
            caption = "The dog , caption 2 ."
            assert said(labels) == {
                "expert": [("rating", caption, "1"), ("rating", caption, "1"), ("rating", caption, "2")]
            }
            (rollout,) = labels.rollouts
            assert rollout.item.references == tuple(f"The cup , caption {n} ." for n in range(5))
            assert labels.left_out == {"captions that are among the references": 1}

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("cup.jpg\tdog.jpg#2\t1\t1", "line 1: got 4 columns, expected 5"),
            ("cup.jpg\tdog.jpg#2\t1\t1\t5", "line 1: got rating '5', expected 1, 2, 3 or 4"),
            ("cup.jpg\tcat.jpg#2\t1\t1\t2", "line 1: 'cat.jpg#2' has no caption in"),
        ],
    )
    def test_unusable(self, write: Write, row: str, message: str) -> None:
        write("Flickr8k.token.txt", *self.TOKENS)
        with pytest.raises(InputError, match=f"ExpertAnnotations.txt, {message}"):
            read_labels(write("ExpertAnnotations.txt", row))

    def test_odd_text(self, write: Write) -> None:
        """A mark inside a caption that is a line's end to some, an empty line; then bytes that are no UTF-8."""
        tokens = write("Flickr8k.token.txt", *self.TOKENS, "odd.jpg#0\tA\u2028cup .", "")
        path = write("ExpertAnnotations.txt", "cup.jpg\todd.jpg#0\t1\t1\t2", "")
        assert read_labels(path).rollouts[0].caption == "A\u2028cup ."
        tokens.write_bytes(b"odd.jpg#0\tcaf\xe9 .\n")
        with pytest.raises(InputError, match=r"Flickr8k.token.txt: not UTF-8 text .*; expected 2 columns"):
            read_labels(path)

    def test_without_the_captions(self, write: Write) -> None:
        with pytest.raises(InputError, match=r"Flickr8k.token.txt: no such file; the layout flickr8k-expert needs it"):
            read_labels(write("ExpertAnnotations.txt", "cup.jpg\tdog.jpg#2\t1\t1\t2"))


class TestThumb:
    ROW = {"SYS": "one", "seg_id": "7", "hyp": "A cup.", "image": "cup.jpg", "P": 4.0, "R": 3.0, "Fl": -0.5}  # noqa: RUF012
    ROW |= {"Con": -0.0, "Inc": -0.0, "human_score": 3.0}

    def test_two_systems_that_say_the_same_are_scored_once(self, write: Write) -> None:
        path = write("thumb.jsonl", self.ROW, self.ROW | {"SYS": "two", "P": 5.0})
        labels = read_labels(path, items=[Item(id="cup.jpg", references=("A white cup.",))])
        assert labels.layout == "thumb"
        assert [axis.name for axis in labels.axes] == [
            "precision",
            "recall",
            "fluency",
            "conciseness",
            "inclusive",
            "total",
        ]
        assert said(labels)["precision"] == [("rating", "A cup.", "4"), ("rating", "A cup.", "5")]
        (rollout,) = labels.rollouts
        assert rollout.item.references == ("A white cup.",)

    def test_a_rating_is_lacking(self, write: Write) -> None:
        row = {key: value for key, value in self.ROW.items() if key != "R"}
        with pytest.raises(InputError, match="line 1: R: got None, expected a finite number"):
            read_labels(write("thumb.jsonl", row))


class TestPascal50s:
    CAPTIONS = (("A cup . ", "A dog ."), ("A cat .", "A cow ."))

    def write(self, folder: Path, winners: list[int], category: int = 3, captions: Any = CAPTIONS) -> None:
        """Two pairs of one image; 48 votes on each."""

        def cells(*texts: Any) -> np.ndarray[Any, Any]:
            found = np.empty((1, 1), object)
            found[0, 0] = np.array(texts)
            return found

        pairs = np.empty((1, 2), [("image", object), ("first", object), ("second", object)])
        triplets = np.empty((1, 96), [(name, object) for name in "ABCD"])
        for n, texts in enumerate(captions):
            pairs[0, n] = ("x.jpg", *texts)
            for vote in range(48):
                winner = 1 if vote < winners[n] else -1
                shown, won = (texts[::-1], -winner) if vote % 2 else (texts, winner)  # either may come first
                triplets[0, 48 * n + vote] = (cells(f"Reference {n} {vote} ."), *map(cells, shown), won)
        savemat(folder / "pair_pascal.mat", {"new_input": pairs, "category": [[category, 1]]})
        savemat(folder / "consensus_pascal.mat", {"triplets": triplets})

    def test_majorities_by_category(self, tmp_path: Path) -> None:
        self.write(tmp_path, [30, 24])
        for source in (tmp_path, tmp_path / "pair_pascal.mat"):
            labels = read_labels(source)
            assert labels.layout == "pascal-50s"
            assert said(labels) == {
                "HM": [("choice", "A cup .", "A dog .", "1")],
                "HC": [("choice", "A cat .", "A cow .", "0")],
            }
            assert list(labels.images) == ["x.jpg"] * 4
            assert labels.rollouts[0].item.references[:2] == ("Reference 0 0 .", "Reference 0 1 .")
            assert len(labels.rollouts[3].item.references) == 48

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"triplets": np.zeros((1, 95))}, "got 95 triplets for 2 pairs, expected 48 for each"),
            ({"others": [1]}, "no 'triplets', expected pair_pascal.mat and consensus_pascal.mat"),
        ],
    )
    def test_votes_that_are_not_of_the_pairs(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        self.write(tmp_path, [0, 48])
        savemat(tmp_path / "consensus_pascal.mat", change)
        with pytest.raises(InputError, match=message):
            read_labels(tmp_path)

    def test_votes_about_another_caption(self, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        self.write(tmp_path / "other", [0, 48])
        self.write(tmp_path, [0, 48], captions=[("A cup . ", "A horse ."), ("A cat .", "A cow .")])
        (tmp_path / "other" / "consensus_pascal.mat").replace(tmp_path / "consensus_pascal.mat")
        with pytest.raises(InputError, match=r"pair 1: the votes are about another caption: 'A dog \.'"):
            read_labels(tmp_path)

    def test_an_unknown_category(self, tmp_path: Path) -> None:
        self.write(tmp_path, [0, 48], category=5)
        with pytest.raises(InputError, match=r"pair_pascal.mat, pair 1: got category 5, expected 1, 2, 3 or 4"):
            read_labels(tmp_path)

    def test_one_of_the_files_is_lacking(self, tmp_path: Path) -> None:
        self.write(tmp_path, [0, 48])
        (tmp_path / "consensus_pascal.mat").unlink()
        with pytest.raises(InputError, match=r"consensus_pascal.mat: cannot be read"):
            read_labels(tmp_path)


class TestCapArena:
    ROW = {"img": "x.jpg", "caption1": "A cup.", "caption2": "A dog.", "source1": "a", "source2": "b"}  # noqa: RUF012
    ROW |= {"winner": "a", "ref": "A white cup.", "cluster": "level 1", "in-400": True}

    def test_winners_and_ties(self, write: Write) -> None:
        rows = [self.ROW, self.ROW | {"winner": "b"}, self.ROW | {"winner": "equal"}, self.ROW | {"source2": "human"}]
        labels = read_labels(write("battles.json", json.dumps(rows)))
        assert labels.layout == "caparena"
        assert said(labels) == {"preference": [("choice", "A cup.", "A dog.", label) for label in ("1", "-1", "0")]}
        assert labels.rollouts[0].item.references == ("A white cup.",)
        assert labels.left_out == {"battles with the human caption, which is the reference": 1}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('[{"img": 3}]', "entry 1: img: got 3, expected a text"),
            ("[3]", "entry 1: got int, expected an object"),
            (json.dumps([ROW | {"winner": "A"}]), "entry 1: winner: got 'A', expected 'a', 'b' or 'equal'"),
            ("{}", "got dict, expected a list of battles"),
            ("[", "not JSON"),
        ],
    )
    def test_unusable(self, write: Write, text: str, message: str) -> None:
        with pytest.raises(InputError, match=rf"battles.json.*{message}"):
            read_labels(write("battles.json", text))


class TestImages:
    def test_of_rows_are_relative_to_the_file(self, write: Write, tmp_path: Path) -> None:
        row = {"item": {"id": "a", "image": "cup.jpg"}, "caption": "A cup.", "labels": {"quality": 1}}
        assert read_labels(write("labels.jsonl", row)).rollouts[0].item.image == tmp_path / "cup.jpg"

    def test_by_name(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "cup.jpg").touch()
        row = TestThumb.ROW
        assert read_labels(write("thumb.jsonl", row), images=tmp_path).rollouts[0].item.image == tmp_path / "cup.jpg"
        with pytest.raises(InputError, match=r"line 1: no image 'dog' in .*, with or without .jpg or .png"):
            read_labels(write("thumb.jsonl", row | {"image": "dog"}), images=tmp_path)

    def test_of_rows_by_item_id_where_they_have_none(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "cup.png").touch()
        rows = [
            {"item": {"id": "cup", "references": ["A cup."]}, "caption": text, "labels": {"quality": 1}}
            for text in ("A cup.", "A dog.")
        ]
        labels = read_labels(write("labels.jsonl", *rows), images=tmp_path)
        assert [rollout.item.image for rollout in labels.rollouts] == [tmp_path / "cup.png"] * 2

    def test_of_given_items_where_they_have_none(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "cup.jpg").touch()
        row, other = TestThumb.ROW, tmp_path / "other.jpg"
        for item, image in ((Item(id=row["image"]), tmp_path / "cup.jpg"), (Item(id=row["image"], image=other), other)):
            labels = read_labels(write("thumb.jsonl", row), images=tmp_path, items=[item])
            assert labels.rollouts[0].item.image == image


class TestFirst:
    def test_some_images(self) -> None:
        whole = read_labels(samples.IIW)
        part = whole.first(3)
        assert part.rollouts == whole.rollouts[:6]
        for axis, of_all in zip(part.axes, whole.axes, strict=True):
            assert axis.label.tolist() == of_all.label[:3].tolist()
            assert axis.second is not None
            assert axis.second.tolist() == [1, 3, 5]

    def test_an_axis_without_a_label_is_gone(self, write: Write) -> None:
        rows = [{"item": {"id": axis}, "caption": "A cup.", "labels": {axis: 1}} for axis in ("detail", "style")]
        assert [axis.name for axis in read_labels(write("labels.jsonl", *rows)).first(1).axes] == ["detail"]


class TestErrors:
    def test_layouts(self, write: Write, tmp_path: Path) -> None:
        path = write("labels.jsonl", {"text": "A cup."})
        with pytest.raises(InputError, match="its layout cannot be told; name it: --layout rows, iiw"):
            read_labels(path)
        with pytest.raises(InputError, match="layout: got 'coco', expected one of rows, iiw"):
            read_labels(path, layout="coco")
        with pytest.raises(InputError, match="no such file or folder"):
            read_labels(tmp_path / "none.jsonl")
        with pytest.raises(InputError, match=r"holds no labels of captions, as layout 'rows'"):
            read_labels(write("empty.jsonl"), layout="rows")
