from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capreward import Item
from capreward.curate.folder import First, open_any
from capreward.curate.sources import Fault, Folder, Lines, Listed, Parquet, Source, Webdataset, open_source
from capreward.errors import InputError


def png(color: str = "white") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), color).save(buffer, "PNG")
    return buffer.getvalue()


def entries(source: Source, size: int = 2) -> list[tuple[str, Item | Fault]]:
    """Read as by another process, and the shards in any order."""
    far = pickle.loads(pickle.dumps(source))
    shards = [pickle.loads(pickle.dumps(shard)) for shard in source.shards(size)]
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert sum(shard.count for shard in shards) == len(source)
    read = {shard.number: list(far.read(shard)) for shard in reversed(shards)}
    assert [len(read[shard.number]) for shard in shards] == [shard.count for shard in shards]
    places = [place for n in sorted(read) for place, _ in read[n]]
    assert len(set(places)) == len(places)
    return [entry for n in sorted(read) for entry in read[n]]


def said(source: Source, size: int = 2) -> list[str]:
    """Ids of items, reasons of faults."""
    return [made.id if isinstance(made, Item) else made.reason for _, made in entries(source, size)]


def lines(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def tar(path: Path, *more: tuple[str, bytes], **files: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in [*more, *files.items()]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


class TestLines:
    def test_rows_of_every_kind(self, tmp_path: Path) -> None:
        (tmp_path / "cup.png").write_bytes(png())
        path = lines(
            tmp_path / "items.jsonl",
            {"id": "cup", "image": "cup.png", "references": ["A cup."]},
            b"  ",
            {"id": 7, "caption": "Seven."},
            {"item": {"id": "猫/ü"}, "caption": "A cat."},
        )
        [(place, cup), *rest] = entries(open_source(path))
        assert cup == Item(id="cup", image=tmp_path / "cup.png", references=("A cup.",))
        assert place == f"{path}, line 1"
        assert [(at, item.id) for at, item in rest] == [(f"{path}, line 3", "7"), (f"{path}, line 4", "猫/ü")]

    @pytest.mark.parametrize("size", [1, 2, 3, 100])
    def test_bad_rows_are_faults_in_their_places(self, tmp_path: Path, size: int) -> None:
        (tmp_path / "page.png").write_bytes(b"<html>404</html>")
        (tmp_path / "empty.jpg").write_bytes(b"")
        path = lines(
            tmp_path / "items.jsonl",
            b'{"id": "a"',
            {"id": "b"},
            {"id": "c", "image": "nowhere.png"},
            {"id": "d", "sauce": 1},
            {"id": "b", "references": ["again"]},
            {"id": "e", "image": "page.png"},
            {"id": "f", "image": "empty.jpg"},
            [1],
            b"\xff\xfe",
            {"id": "g", "image": "data:image/png;base64,####"},
            {"item": "b", "caption": "no more than an id"},
            {"id": "h"},
        )
        unusable = ["unusable"]
        expected = unusable + ["b"] + 2 * unusable + ["duplicate id"] + 6 * unusable + ["h"]
        assert said(Lines(path), size) == expected
        faults = {
            place.rpartition(" ")[2]: made for place, made in entries(Lines(path), size) if isinstance(made, Fault)
        }
        assert {place: fault.id for place, fault in faults.items() if fault.id} == {
            "3": "c", "4": "d", "5": "b", "6": "e", "7": "f", "10": "g",
        }  # fmt: skip
        assert "it begins with b'<html>404</html>'" in faults["6"].detail
        assert "unknown field" in faults["4"].detail

    def test_an_id_across_shards(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "items.jsonl", *({"id": f"{n % 7}"} for n in range(20)))
        assert said(Lines(path), 3) == [str(n) for n in range(7)] + ["duplicate id"] * 13

    def test_columns(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "items.jsonl", {"key": 1, "split": "a"}, {"key": 1, "split": "b"}, {"split": "c"})
        assert said(open_source(path, columns={"id": "key"})) == ["1", "duplicate id", "unusable"]

    def test_none(self, tmp_path: Path) -> None:
        source = Lines(lines(tmp_path / "items.jsonl"))
        assert (len(source), list(source.shards(4))) == (0, [])

    def test_other_content_is_described_otherwise(self, tmp_path: Path) -> None:
        first = Lines(lines(tmp_path / "a.jsonl", {"id": "a"})).describe()
        assert first == {**Lines(lines(tmp_path / "b.jsonl", {"id": "a"})).describe(), "name": first["name"]}
        assert first["digest"] != Lines(lines(tmp_path / "b.jsonl", {"id": "b"})).describe()["digest"]


class TestParquet:
    @pytest.mark.parametrize(("group", "size"), [(3, 2), (100, 4), (1, 5)])
    def test_ranges_of_rows(self, tmp_path: Path, group: int, size: int) -> None:
        rows = [{"id": f"{n % 9}", "image": {"bytes": png(), "path": None}} for n in range(11)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet", row_group_size=group)
        source = open_source(tmp_path / "items.parquet")
        assert said(source, size) == [str(n) for n in range(9)] + ["duplicate id"] * 2
        place, item = entries(source, size)[4]
        assert place == f"{tmp_path / 'items.parquet'}, row 5"
        assert isinstance(item, Item)
        assert item.image == png()

    def test_items_inside_rollouts(self, tmp_path: Path) -> None:
        rows = [{"item": {"id": "a", "references": None}, "caption": "x"}, {"item": {"id": "a"}, "caption": "y"}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
        assert said(Parquet(tmp_path / "items.parquet")) == ["a", "duplicate id"]

    def test_without_ids(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"text": ["a", "b", "c"]}), tmp_path / "items.parquet")
        assert said(Parquet(tmp_path / "items.parquet")) == ["unusable"] * 3

    def test_a_group_that_cannot_be_read(self, tmp_path: Path) -> None:
        path = tmp_path / "items.parquet"
        table = pa.table({"id": ["a", "b", "c", "d"], "references": [["word " * 500]] * 4})
        pq.write_table(table, path, row_group_size=2, compression="gzip", use_dictionary=False)
        source = Parquet(path)
        meta = pq.ParquetFile(path).metadata.row_group(1).column(1)
        content = bytearray(path.read_bytes())
        start = meta.data_page_offset
        content[start : start + meta.total_compressed_size] = b"\xff" * meta.total_compressed_size
        path.write_bytes(content)
        assert said(source, 4) == ["a", "b", "unusable", "unusable"]

    def test_what_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "items.parquet").write_bytes(b"PAR?")
        with pytest.raises(InputError, match="not a parquet file"):
            Parquet(tmp_path / "items.parquet")


class TestTables:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        lines(tmp_path / "a.jsonl", {"id": "a"}, {"id": "b"}, {"id": "a"})
        pq.write_table(pa.table({"id": ["c", "b", "d"]}), tmp_path / "b.parquet")
        lines(tmp_path / "c.ndjson")
        lines(tmp_path / "d.NDJSON", {"id": "d"}, b"{", {"id": "e"})
        (tmp_path / "notes.txt").write_text("no table")
        return tmp_path

    @pytest.mark.parametrize("size", [1, 2, 3, 100])
    def test_of_a_folder_are_one(self, folder: Path, size: int) -> None:
        expected = ["a", "b", "duplicate id", "c", "duplicate id", "d", "duplicate id", "unusable", "e"]
        source = open_any([folder])
        assert said(source, size) == said(open_source(folder), size) == expected
        assert said(open_source([folder / "a.jsonl", folder / "b.parquet"]), size) == expected[:6]
        for limit in (1, 4, 8):
            assert said(First(source, limit), size) == expected[:limit]

    def test_a_folder_of_parquet(self, folder: Path) -> None:
        (folder / "sub").mkdir()
        for n, part in enumerate((["a", "b"], ["b", "c"])):
            pq.write_table(pa.table({"key": part}), folder / "sub" / f"{n}.parquet")
        assert said(open_source(folder / "sub", columns={"id": "key"})) == ["a", "b", "duplicate id", "c"]

    def test_other_content_is_described_otherwise(self, folder: Path) -> None:
        before = open_source(folder).describe()
        assert open_source(folder).describe() == before
        lines(folder / "c.ndjson", {"id": "z"})
        assert open_source(folder).describe()["digest"] != before["digest"]

    def test_a_name_of_many(self, tmp_path: Path) -> None:
        paths = [lines(tmp_path / f"{n}.jsonl") for n in range(5)]
        assert open_source(paths[:3]).describe()["name"] == ", ".join(map(str, paths[:3]))
        assert open_source(paths).describe()["name"] == f"{', '.join(map(str, paths[:3]))} and 2 more"

    def test_beside_tars(self, folder: Path) -> None:
        tar(folder / "0.tar", **{"k.png": png()})
        with pytest.raises(InputError, match=r"a\.jsonl would not be read beside 0\.tar"):
            open_any([folder])


class TestFolder:
    def test_images_below_it_in_order(self, tmp_path: Path) -> None:
        for name in ("b.png", "a/z.PNG", "a/ü 猫.png", ".hidden.png", ".git/x.png", "a.b/c.png"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png())
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / "broken.jpg").write_bytes(b"GIF? no")
        source = open_source(tmp_path)
        assert said(source) == ["b.png", "unusable", "a/z.PNG", "a/ü 猫.png", "a.b/c.png"]
        assert [made.id for _, made in entries(source)][1] == "broken.jpg"
        assert entries(source)[2][1] == Item(id="a/z.PNG", image=tmp_path / "a/z.PNG")

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "\udcff.png").write_bytes(png())
        assert said(Folder(tmp_path)) == ["unusable"]

    def test_one_that_grew_is_described_otherwise(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(png())
        before = Folder(tmp_path).describe()
        (tmp_path / "0.png").write_bytes(png())
        assert Folder(tmp_path).describe() != before

    @pytest.mark.parametrize(("gone", "come"), [("", "0.png"), ("", "z.png"), ("b.png", ""), ("b.png", "0.png")])
    @pytest.mark.parametrize("size", [1, 2, 3, 100])
    def test_one_that_changes_while_it_is_read(self, tmp_path: Path, size: int, gone: str, come: str) -> None:
        for name in "abcde":
            (tmp_path / f"{name}.png").write_bytes(png())
        source = Folder(tmp_path)
        if gone:
            (tmp_path / gone).unlink()
        if come:
            (tmp_path / come).write_bytes(png())
        read = []
        with pytest.raises(InputError, match="changed while it was read"):
            read.extend(source.shards(size))
        assert sum(shard.count for shard in read) < 5

    def test_a_folder_below_it_that_cannot_be_listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a").mkdir()
        listed = os.scandir

        def scandir(path: Any) -> Any:
            if Path(path).name == "a":
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(InputError, match="a: cannot be listed: Permission denied"):
            Folder(tmp_path)


class TestWebdataset:
    def test_files_of_a_key_are_an_item(self, tmp_path: Path) -> None:
        first = tar(
            tmp_path / "0.tar",
            **{
                "0001.png": png("red"),
                "0001.json": b'{"width": 2, "references": ["Red."], "metadata": {"from": "web"}, "id": 5}',
                "0001.txt": b"alt",
                "0002.JPG": png("blue"),
                "0002.txt": b" Blue. ",
                "0002.cls": b"4",
                "readme": b"",
            },
        )
        second = tar(tmp_path / "1.tar", **{"x/猫.seg.png": png(), "x/猫.webp": png(), "0001.png": png()})
        [(_, red), (place, blue), (_, cat), (_, again)] = entries(open_source([first, second]))
        about = {"width": 2, "id": 5, "from": "web"}
        assert red == Item(id="0001", image=png("red"), references=("Red.",), metadata=about)
        assert blue == Item(id="0002", image=png("blue"), references=("Blue.",))
        assert place.startswith(f"{first}, 0002 at byte ")
        assert cat == Item(id="x/猫", image=png())
        assert again == Fault("duplicate id", "an earlier row has this id", "0001")
        assert len(open_source(tmp_path)) == 4

    def test_two_of_a_key_side_by_side(self, tmp_path: Path) -> None:
        files = [
            ("k.png", png("red")),
            ("k.txt", b"Red."),
            ("k.png", png("blue")),
            ("k.txt", b"Blue."),
            ("l.txt", b"L."),
        ]
        [(_, red), (_, blue), (_, other)] = entries(Webdataset([tar(tmp_path / "0.tar", *files)]))
        assert red == Item(id="k", image=png("red"), references=("Red.",))
        assert blue == Fault("duplicate id", "an earlier row has this id", "k")
        assert other == Item(id="l", references=("L.",))

    def test_a_torn_one(self, tmp_path: Path) -> None:
        files = {f"{n}.png": png() + bytes(2000) for n in range(5)}
        whole = tar(tmp_path / "whole.tar", **files)
        other = tar(tmp_path / "other.tar", **{"z.png": png()})
        torn = tmp_path / "torn.tar"
        for cut in range(700, whole.stat().st_size, 701):
            torn.write_bytes(whole.read_bytes()[:cut])
            *items, last, after = said(Webdataset([torn, other]), 2)
            assert items == [f"{n}" for n in range(len(items))]
            assert after == "z"
            assert last == "unusable" or cut >= 5 * 3072 + 512  # some of the zeros at its end may be lost
        torn.write_bytes(whole.read_bytes()[: 3 * 3072 + 900])
        *_, (place, fault), _ = entries(Webdataset([torn, other]), 2)
        assert (place, fault) == (f"{torn}, at its end", Fault("unusable", f"{torn}: breaks off: 3.png is not whole"))

    def test_bad_files(self, tmp_path: Path) -> None:
        path = tar(
            tmp_path / "0.tar",
            **{"a.json": b"{", "b.json": b"[]", "c.png": b"<html>", "d.png": png(), "d.jpg": png(), "e.json": b"{}"},
        )
        assert said(Webdataset([path])) == ["unusable"] * 4 + ["e"]
        assert [made.id for _, made in entries(Webdataset([path]))] == ["a", "b", "c", "d", "e"]

    def test_a_compressed_one(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "0.tar", "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("a.txt"))
        with pytest.raises(InputError, match="cannot be read as a tar without compression"):
            Webdataset([tmp_path / "0.tar"])


class TestOpening:
    def test_what_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file or folder"):
            open_source(tmp_path / "nowhere")
        (tmp_path / "a.csv").write_text("")
        with pytest.raises(InputError, match=r"got a \.csv file"):
            open_source(tmp_path / "a.csv")
        with pytest.raises(InputError, match="expected one path"):
            open_source([tmp_path / "a.csv", tmp_path / "b.jsonl"])
        with pytest.raises(InputError, match="columns"):
            open_source(tmp_path, columns={"id": "key"})

    def test_items_in_memory(self) -> None:
        assert said(Listed([Item(id="a"), Item(id="b"), Item(id="a")])) == ["a", "b", "duplicate id"]
