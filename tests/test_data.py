from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capreward import Criterion, Item, read_items, read_rollouts
from capreward.data import items_of, replacing, write_rows
from capreward.errors import InputError

Write = Callable[..., Path]

CUP = {"id": "cup", "references": ["A cup."]}
THREE_FORMS = [
    {**CUP, "rollouts": ["A cup.", {"caption": "A dog.", "id": "r2", "group": "g", "metadata": {"step": 3}}]},
    {"id": "dog", "caption": "A dog."},
    {"item": {"id": "cat"}, "caption": "A cat.", "id": "r4"},
    {"item": "cup", "caption": "The cup."},
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes lines to a file: objects as JSON, text and bytes as they are."""

    def write(*lines: Any, name: str = "captions.jsonl") -> Path:
        encoded = [
            line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
            for line in lines
        ]
        path = tmp_path / name
        path.write_bytes(b"\n".join(encoded) + b"\n")
        return path

    return write


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), color).save(buffer, "PNG")
    return buffer.getvalue()


def summary(rollouts: list[Any]) -> list[tuple[Any, ...]]:
    return [(r.item.id, r.caption, r.id, r.group) for r in rollouts]


class TestForms:
    EXPECTED = (
        ("cup", "A cup.", None, "cup"),
        ("cup", "A dog.", "r2", "g"),
        ("dog", "A dog.", None, "dog"),
        ("cat", "A cat.", "r4", "cat"),
        ("cup", "The cup.", None, "cup"),
    )

    def test_of_rows_in_jsonl(self, write: Write) -> None:
        rollouts = read_rollouts(write(*THREE_FORMS))
        assert summary(rollouts) == list(self.EXPECTED)
        assert rollouts[1].metadata == {"step": 3}
        assert rollouts[0].item.references == ("A cup.",)

    def test_of_rows_in_an_iterable(self) -> None:
        assert summary(read_rollouts(row for row in THREE_FORMS)) == list(self.EXPECTED)

    def test_rollouts_of_one_item_share_it(self, write: Write) -> None:
        first, second, *_, last = read_rollouts(write(*THREE_FORMS))
        assert first.item is second.item is last.item

    def test_rows_are_not_changed(self) -> None:
        row = {**CUP, "rollouts": ["A cup."]}
        read_rollouts([row])
        assert row == {**CUP, "rollouts": ["A cup."]}

    def test_one_caption_a_row_several_rows_an_item(self, write: Write) -> None:
        first, second = read_rollouts(write({**CUP, "caption": "one"}, {**CUP, "caption": "two"}))
        assert summary([first, second]) == [("cup", "one", None, "cup"), ("cup", "two", None, "cup")]
        assert first.item is second.item

    def test_blank_lines_are_skipped(self, write: Write) -> None:
        path = write("", {"id": "a", "caption": "one"}, "  \t", "", {"id": "b", "caption": "two"}, "")
        assert [r.caption for r in read_rollouts(path)] == ["one", "two"]

    def test_ndjson_and_a_byte_order_mark(self, write: Write) -> None:
        path = write(b'\xef\xbb\xbf{"id": "a", "caption": "one"}', name="captions.ndjson")
        assert [r.caption for r in read_rollouts(path)] == ["one"]

    def test_path_as_text(self, write: Write) -> None:
        assert len(read_rollouts(str(write(*THREE_FORMS)))) == 5

    def test_a_folder_stands_for_its_files(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "b.png").write_bytes(png("white"))
        write({"id": "b", "caption": "two", "image": "b.png"}, name="00001.jsonl")
        write({"id": "a", "caption": "one"}, name="00000.jsonl")
        write("{torn", name=".00002.jsonl")
        assert [r.caption for r in read_rollouts(tmp_path)] == ["one", "two"]
        assert [item.image for item in read_items(str(tmp_path))] == [None, tmp_path / "b.png"]

    def test_a_folder_without_files(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"a folder without \.jsonl or \.ndjson or \.parquet files"):
            read_items(tmp_path)


class TestItems:
    def test_leave_rollouts_alone(self, write: Write) -> None:
        assert read_items(write({**CUP, "rollouts": ["A cup."]}, {"id": "dog", "caption": "A dog."})) == [
            Item(**CUP),
            Item(id="dog"),
        ]

    def test_rollouts_name_items_by_id(self, write: Write) -> None:
        items = read_items(write(CUP, {"id": 7}, name="items.jsonl"))
        captions = write({"item": "cup", "caption": "A cup."}, {"item": 7, "caption": "Seven."})
        rollouts = read_rollouts(captions, items=items)
        assert [r.item for r in rollouts] == items
        assert rollouts[0].item is items[0]

    @pytest.mark.parametrize(
        "rows",
        [
            [{**CUP, "caption": "one"}, {**CUP, "caption": "two"}],
            [{"item": CUP, "caption": "one"}],
        ],
    )
    def test_are_read_from_every_form_of_row(self, write: Write, rows: list[Any]) -> None:
        assert read_items(write(*rows)) == [Item(**CUP)]


class TestColumns:
    ROWS = ({"image_id": 1, "text": "one", "split": "train"}, {"image_id": 2, "text": "two", "split": "train"})
    COLUMNS = {"id": "image_id", "caption": "text"}  # noqa: RUF012

    def test_are_renamed_and_others_left_out(self, write: Write) -> None:
        expected = [("1", "one", None, "1"), ("2", "two", None, "2")]
        assert summary(read_rollouts(write(*self.ROWS), columns=self.COLUMNS)) == expected
        assert summary(read_rollouts(self.ROWS, columns=self.COLUMNS)) == expected
        assert [item.id for item in read_items(self.ROWS, columns={"id": "image_id"})] == ["1", "2"]

    def test_that_are_absent(self, write: Write) -> None:
        path = write(*self.ROWS)
        with pytest.raises(InputError) as error:
            read_rollouts(path, columns={"id": "image_id", "caption": "alt"})
        assert str(error.value) == f"{path}, line 1: no column 'alt'; there are ['image_id', 'split', 'text']"


class TestImages:
    def test_paths_are_relative_to_the_file(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "pictures").mkdir()
        (tmp_path / "pictures" / "cup.png").write_bytes(png("white"))
        path = write(
            {"id": "a", "image": "pictures/cup.png", "caption": "one"},
            {"item": {"id": "b", "image": "pictures/cup.png"}, "caption": "two"},
            {"id": "c", "image": str(tmp_path / "pictures" / "cup.png"), "caption": "three"},
        )
        assert [r.item.image for r in read_rollouts(path)] == [tmp_path / "pictures" / "cup.png"] * 3

    def test_data_url(self, write: Write) -> None:
        (rollout,) = read_rollouts(write({"id": "a", "image": "data:image/png;base64,AAH/", "caption": "one"}))
        assert rollout.item.image == b"\x00\x01\xff"

    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
    def test_decoded_ones_become_png(self, mode: str) -> None:
        (rollout,) = read_rollouts([{"id": "a", "image": Image.new(mode, (3, 2)), "caption": "one"}])
        with Image.open(io.BytesIO(rollout.item.image)) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (3, 2), mode)

    def test_decoded_cmyk(self) -> None:
        (rollout,) = read_rollouts([{"id": "a", "image": Image.new("CMYK", (3, 2)), "caption": "one"}])
        with Image.open(io.BytesIO(rollout.item.image)) as image:
            assert image.size == (3, 2)

    @pytest.mark.parametrize("image", [{"bytes": b"\x00\xff", "path": None}, {"bytes": b"\x00\xff", "path": "cup.png"}])
    def test_undecoded_ones_of_a_dataset(self, image: dict[str, Any]) -> None:
        assert read_rollouts([{"id": "a", "image": image, "caption": "one"}])[0].item.image == b"\x00\xff"


class TestItemsOf:
    """A trainer's batch: rows that repeat their item and hold other things besides."""

    def test_rows_that_say_the_same_share_an_item(self) -> None:
        rows = [{"id": "a", "references": ["A cup."], "prompt": n} for n in range(3)]
        first, *others = items_of([*rows, {"id": "b"}])
        assert first == Item(id="a", references=("A cup.",))
        assert others[0] is others[1] is first
        assert others[2] == Item(id="b")

    def test_an_id_is_made_of_the_fields(self) -> None:
        a, again, b = items_of([{"references": ["A cup."]}, {"references": ["A cup."]}, {"references": ["A dog."]}])
        assert a is again
        assert a.id != b.id
        assert items_of([{"references": ["A dog."]}])[0].id == b.id  # in every batch the same

    def test_columns_of_other_names(self) -> None:
        (item,) = items_of([{"file": "x", "text": ["A cup."]}], columns={"id": "file", "references": "text"})
        assert item == Item(id="x", references=("A cup.",))
        with pytest.raises(InputError, match=r"row 0: no column 'txt'; there are \['text'\]"):
            items_of([{"text": ["A cup."]}], columns={"references": "txt"})

    @pytest.mark.parametrize("columns", [{}, {"images": None}, {"images": []}, {"image": ""}])
    def test_no_image(self, columns: dict[str, Any]) -> None:
        assert items_of([{"id": "a", **columns}])[0].image is None

    def test_images_decoded_by_the_dataset(self) -> None:
        first, second, third = (Image.new("RGB", (2, 2), colour) for colour in ("red", "red", "blue"))
        red, also_red, blue = items_of([{"images": [first]}, {"images": second}, {"image": third}])
        assert red is also_red
        assert red.id != blue.id
        with Image.open(io.BytesIO(red.image)) as image:
            assert image.getpixel((0, 0)) == (255, 0, 0)

    def test_images_that_differ_in_their_palette_alone(self) -> None:
        red, blue = Image.new("P", (2, 2)), Image.new("P", (2, 2))
        red.putpalette([255, 0, 0])
        blue.putpalette([0, 0, 255])
        one, other = items_of([{"image": red}, {"image": blue}])
        assert one.id != other.id

    def test_two_images_are_one_too_many(self) -> None:
        with pytest.raises(InputError, match=r"row 1: images: got 2, expected one; name its column with columns="):
            items_of([{"images": [b"1"]}, {"images": [b"1", b"2"]}])

    def test_what_arrow_and_numpy_make_of_a_row(self) -> None:
        row = {"id": "a", "rubric": np.array([{"text": "Names the cup.", "weight": None}], object), "facts": None}
        (item,) = items_of([{**row, "references": np.array(["A cup."], object)}])
        assert item == Item(id="a", references=("A cup.",), rubric=(Criterion(text="Names the cup."),))

    def test_an_unusable_field_names_the_row(self) -> None:
        with pytest.raises(InputError, match=r"row 1: Item 'b': references"):
            items_of([{"id": "a"}, {"id": "b", "references": [3]}])


class TestTables:
    def test_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "cup.png").write_bytes(png("white"))
        rows = [
            {
                "id": "a",
                "image": {"bytes": png("red"), "path": None},
                "questions": [{"text": "Colour?", "options": ["red", "blue"], "answer": 0}],
                "rollouts": [{"caption": "one", "id": "r1"}, {"caption": "two", "id": None}],
            },
            {"id": "b", "image": {"bytes": None, "path": "cup.png"}, "rollouts": [{"caption": "three"}]},
            {"id": "c", "image": None, "questions": None, "rollouts": []},
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "captions.parquet")
        first, second, third = read_rollouts(tmp_path / "captions.parquet")
        assert summary([first, second, third]) == [
            ("a", "one", "r1", "a"),
            ("a", "two", None, "a"),
            ("b", "three", None, "b"),
        ]
        assert first.item.image == png("red")
        assert first.item.questions[0].options == ("red", "blue")
        assert third.item.image == tmp_path / "cup.png"

    def test_hugging_face_dataset(self) -> None:
        import datasets  # slow, and only needed here

        dataset = datasets.Dataset.from_dict(
            {
                "id": ["a", "b"],
                "image": [Image.new("RGB", (2, 2), "red"), None],
                "references": [["A red square."], None],
                "facts": [[{"text": "It is red.", "true": None}], []],
                "caption": ["one", "two"],
            },
            features=datasets.Features(
                {
                    "id": datasets.Value("string"),
                    "image": datasets.Image(),
                    "references": datasets.List(datasets.Value("string")),
                    "facts": datasets.List({"text": datasets.Value("string"), "true": datasets.Value("bool")}),
                    "caption": datasets.Value("string"),
                }
            ),
        )
        first, second = read_rollouts(dataset)
        with Image.open(io.BytesIO(first.item.image)) as image:
            assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
        assert first.item.facts[0].true is True  # a null leaves the default
        assert (second.item.image, second.item.references, second.caption) == (None, (), "two")


class TestErrors:
    """Each names the file and the line at fault, which here always stands after a good one."""

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ('{"id": "b", "caption": }', "column 24: not JSON (Expecting value); expected one object a line"),
            (b'{"id": "b", "caption": "\xff"}', "not JSON ('utf-8' codec can't decode byte 0xff"),
            ("[1, 2]", "got list, expected an object with named fields"),
            ("null", "got NoneType, expected an object with named fields"),
            ({"id": "b"}, "got ['id'], expected 'rollouts', 'caption' or 'item' among the fields"),
            ({"id": "b", "caption": "two", "colour": 1}, "Item 'b': colour: unknown field; expected one of id, image"),
            ({"id": "b", "rollouts": [{"text": "two"}]}, "Rollout 'b': caption: required, but not given; text: unknown"),
            ({"item": {"id": "b"}, "caption": "two", "image": "x"}, "Rollout 'b': image: unknown field"),
            ({"caption": "two"}, "Item: id: required, but not given"),
            ({"id": "b", "rollouts": "two"}, "item 'b': rollouts: got 'two', expected a list"),
            ({"id": "b", "rollouts": {"caption": "two"}}, "item 'b': rollouts: got {'caption': 'two'}, expected a list"),
            ({"id": "b", "rollouts": [{"item": "a", "caption": "two"}]}, "got a rollout with an item of its own"),
            ({"item": "z", "caption": "two"}, "item: got 'z', expected the id of an item given or the fields of one"),
            ({"id": "a", "references": ["A cup."], "caption": "two"}, "item id 'a' is taken by {path}, line 1"),
            ({"id": "a", "rollouts": ["two"]}, "item id 'a' is taken by {path}, line 1"),
            ({"item": "a", "caption": "two", "id": "r1"}, "rollout id 'r1' is taken by {path}, line 1"),
            ({"id": "b", "image": "no.png", "caption": "two"}, "item 'b': image: got '{folder}/no.png', expected the path"),
            ({"id": "b", "questions": [{"text": "?", "options": ["x"], "answer": 0}], "caption": "two"}, "questions[0]: "),
        ],
    )  # fmt: skip
    def test_name_the_line(self, write: Write, line: Any, said: str) -> None:
        path = write({"id": "a", "rollouts": [{"caption": "one", "id": "r1"}]}, "", line)
        with pytest.raises(InputError) as error:
            read_rollouts(path)
        assert str(error.value).startswith(f"{path}, line 3")
        assert said.replace("{path}", str(path)).replace("{folder}", str(path.parent)) in str(error.value)
        assert "\n" not in str(error.value)

    def test_name_the_row_of_an_iterable(self) -> None:
        with pytest.raises(InputError, match=r"^row 1: Item 'b': colour: unknown field"):
            read_rollouts([{"id": "a", "caption": "one"}, {"id": "b", "colour": 1, "caption": "two"}])

    def test_name_the_row_of_a_parquet_file(self, tmp_path: Path) -> None:
        path = tmp_path / "captions.parquet"
        pq.write_table(pa.Table.from_pylist([{"id": "a", "caption": "one"}, {"id": "", "caption": "two"}]), path)
        with pytest.raises(InputError) as error:
            read_rollouts(path)
        assert str(error.value).startswith(f"{path}, row 2: Item '': id: got ''")

    def test_two_different_items_given_and_read(self) -> None:
        with pytest.raises(
            InputError, match=r"^row 0: item id 'cup' is taken by the items given; ids have to be unique"
        ):
            read_rollouts([{"id": "cup", "caption": "one"}], items=[Item(**CUP)])

    def test_item_twice_among_items(self, write: Write) -> None:
        with pytest.raises(InputError, match=r"line 2: item id 'cup' is taken by .*, line 1"):
            read_items(write(CUP, {"id": "cup"}))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as error:
            read_rollouts(tmp_path / "none.jsonl")
        assert str(error.value) == f"{tmp_path / 'none.jsonl'}: no such file"

    @pytest.mark.parametrize("name", ["captions.json", "captions.csv", "captions"])
    def test_unknown_kind_of_file(self, write: Write, name: str) -> None:
        with pytest.raises(InputError, match=r"captions.*: got a \S+ file, expected \.jsonl or \.parquet"):
            read_rollouts(write("[]", name=name))

    def test_no_parquet(self, write: Write) -> None:
        path = write("not parquet", name="captions.parquet")
        with pytest.raises(InputError) as error:
            read_rollouts(path)
        assert str(error.value).startswith(f"{path}: not a parquet file (")

    def test_damaged_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "captions.parquet"
        pq.write_table(pa.Table.from_pylist([{"id": str(n), "caption": f"cup {n}"} for n in range(1000)]), path)
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + bytes(500) + whole[600:])
        with pytest.raises(InputError) as error:
            read_rollouts(path)
        assert str(error.value).startswith(f"{path}: ")

    def test_number_too_long_for_python(self, write: Write) -> None:
        with pytest.raises(InputError, match=r"line 1: not JSON \(Exceeds the limit"):
            read_rollouts(write('{"id": ' + "1" * 5000 + ', "caption": "one"}'))

    def test_nested_too_deep_for_python(self, write: Write) -> None:
        with pytest.raises(InputError, match=r"line 1: not JSON \(maximum recursion"):
            read_rollouts(write("[" * 100_000))


class TestWriteRows:
    ROWS = ({"caption": "Ein Häschen 🐇", "n": 1}, {"caption": "half a pair: \ud83d", "scores": [None, 0.5]})

    def test_comes_back(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        write_rows(path, iter(self.ROWS))
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == list(self.ROWS)
        assert "Häschen 🐇" in lines[0]  # for people to read

    def test_items_come_back(self, tmp_path: Path) -> None:
        item = Item(id="cup", image=png("red"), references=["A cup."], metadata={"n": 1})
        write_rows(tmp_path / "items.jsonl", [item.model_dump(mode="json")])
        assert read_items(tmp_path / "items.jsonl") == [item]

    def test_none(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "rows.jsonl", [])
        assert (tmp_path / "rows.jsonl").read_bytes() == b""

    def test_all_or_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        write_rows(path, [{"old": True}])

        def rows() -> Any:
            yield {"new": 1}
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            write_rows(path, rows())
        assert json.loads(path.read_text()) == {"old": True}
        assert list(tmp_path.iterdir()) == [path]

    def test_is_not_there_before_it_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        with replacing(path) as partial:
            partial.write_text("new")
            assert not path.exists()
            assert partial.parent == tmp_path  # a rename does not cross disks
        assert path.read_text() == "new"
        assert list(tmp_path.iterdir()) == [path]
