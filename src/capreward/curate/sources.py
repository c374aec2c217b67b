"""Where items come from when they are too many to be held at once: files, folders of images and webdatasets, in shards.

A source is indexed once, when it is opened: ids that occur twice are found by 16 bytes of hash for each, sorted when all are
there, and dropped then. What stays is 16 bytes a row where a file has lines. Items themselves are read a shard at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tarfile
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from capreward.data import ENDINGS, digest, item_of, parse_line
from capreward.errors import InputError, missing_extra, require_positive
from capreward.records import Item

UNUSABLE = "unusable"
"""Reason of a dead letter: the row is no item, or its image is missing or no image."""
DUPLICATE = "duplicate id"
"""Reason of a dead letter: an earlier row has the same id."""
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
"""Endings of the files that count as images, in small or capital letters."""
SHOWN = 3
"""Of several files, those that a datasheet names: of a run of many shards there are thousands."""
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM")


@dataclass(frozen=True, slots=True)
class Fault:
    """What stands in a source where an item was expected."""

    reason: str
    """`unusable` or `duplicate id`."""
    detail: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A slice of a source, small enough to be sent to another process."""

    number: int
    count: int
    """Its entries, those that will turn out to be faults included."""
    where: Any
    """What the source needs to find it."""
    again: frozenset[int] = frozenset()
    """Places in the shard, from 0, of ids that an earlier row has."""


Entry = tuple[str, Item | Fault]
"""The place of a row, as an error would name it, unique in its source; and what stands there."""


class Source(Protocol):
    """Items in shards. Pickled, it need not keep more than `read` uses."""

    def __len__(self) -> int:
        """How many entries there are."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """JSON-ready; changes when the ids or their order do, so that a run does not go on with another source."""
        ...

    def shards(self, size: int) -> Iterator[Shard]:
        """Slices of at most `size` entries, numbered from 0; the same ones every time."""
        ...

    def read(self, shard: Shard) -> Iterator[Entry]:
        """The entries of a shard, `shard.count` of them. May be called from several threads."""
        ...


def open_source(path: str | Path | Sequence[str | Path], *, columns: Mapping[str, str] | None = None) -> Source:
    """The source at a path: .jsonl, .ndjson and .parquet files, .tar files, or a folder of images.

    Of files there may be several of either kind, as a list or in a folder. In a folder of images tables are not read.

    Args:
        columns: field -> column, as in `data.read_items`; for .jsonl, .ndjson and .parquet.

    Raises:
        InputError: none of these, or a folder of .tar files with others beside them that would not be read.
        MissingExtraError: a parquet file without the extra `data`.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(each) for each in path]
    if len(paths) == 1 and paths[0].is_dir():
        paths = _files_of(paths[0]) or paths
    if paths and all(each.suffix == ".tar" for each in paths):
        if columns is not None:
            raise InputError("columns: got them for a webdataset, which has none")
        return Webdataset(paths)
    if len(paths) > 1 and all(each.suffix.lower() in ENDINGS and each.is_file() for each in paths):
        return Tables(paths, columns)
    if len(paths) != 1:
        raise InputError(
            f"source: got {[str(each) for each in paths]}, expected one path, .tar files alone, or {', '.join(ENDINGS)} alone"
        )
    if paths[0].is_dir():
        if columns is not None:
            raise InputError("columns: got them for a folder of images, which has none")
        return Folder(paths[0])
    if not paths[0].is_file():
        raise InputError(f"{paths[0]}: no such file or folder")
    if paths[0].suffix.lower() not in ENDINGS:
        raise InputError(
            f"{paths[0]}: got a {paths[0].suffix or 'nameless'} file, expected {', '.join(ENDINGS)}, a .tar or a folder of images"
        )
    return _table(paths[0], columns)


def _files_of(folder: Path) -> list[Path]:
    """The .tar files of a folder, or its tables; none where it is one of images."""
    files = sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_file())
    tars = [path for path in files if path.suffix == ".tar"]
    tables = [path for path in files if path.suffix.lower() in ENDINGS]
    images = [path for path in files if path.suffix.lower() in IMAGES]
    if tars and (others := tables + images):
        raise InputError(
            f"{folder}: {others[0].name} would not be read beside {tars[0].name}; put them into folders of their own"
        )
    return tars or ([] if images else tables)


def _table(path: Path, columns: Mapping[str, str] | None, ids: _Ids | None = None) -> Lines | Parquet:
    return (Parquet if path.suffix.lower() == ".parquet" else Lines)(path, columns, ids)


class _Indexed(ABC):
    """What the sources share: what they found out when they were opened, and slices of it."""

    kind: str

    def __init__(self, *paths: str | Path) -> None:
        some, more = [str(path) for path in paths[:SHOWN]], len(paths) - SHOWN
        self.name = ", ".join(some) + (f" and {more} more" if more > 0 else "")
        self._count = 0
        self._twice = np.empty(0, np.int64)
        self._fingerprint = ""

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        """Without what only `shards` uses."""
        return {name: value for name, value in vars(self).items() if name not in ("_twice", "_starts")}

    def describe(self) -> Mapping[str, Any]:
        """JSON-ready."""
        return {"kind": self.kind, "name": self.name, "entries": self._count, "digest": self._fingerprint}

    def shards(self, size: int) -> Iterator[Shard]:
        """Slices of `size` entries; a shorter one at the end, of each file where there are several tables."""
        require_positive("shards", size=size)
        start = 0
        for number, (where, count) in enumerate(self._slices(size)):
            low, high = np.searchsorted(self._twice, [start, start + count])
            yield Shard(number, count, where, frozenset((self._twice[low:high] - start).tolist()))
            start += count

    def read(self, shard: Shard) -> Iterator[Entry]:
        """The entries of a shard."""
        for n, (place, made) in enumerate(itertools.islice(self._entries(shard), shard.count)):
            if n in shard.again and isinstance(made, Item):
                made = Fault(DUPLICATE, "an earlier row has this id", made.id)
            elif isinstance(made, Item) and (fault := _fault_of(made.image)):
                made = Fault(UNUSABLE, f"{place}: {fault}", made.id)
            yield place, made

    @abstractmethod
    def _slices(self, size: int) -> Iterator[tuple[Any, int]]:
        """`where` and `count` of each shard."""

    @abstractmethod
    def _entries(self, shard: Shard) -> Iterator[Entry]:
        """At least as many as the shard has."""


class Listed(_Indexed):
    """Items that are in memory."""

    kind = "list"

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__("items")
        ids = _Ids()
        for item in items:
            ids.add(item.id)
        self.items = list(items)
        self._count, self._twice, self._fingerprint = len(self.items), *ids.found()

    def _slices(self, size: int) -> Iterator[tuple[Any, int]]:
        for n in range(0, self._count, size):
            yield n, min(size, self._count - n)

    def _entries(self, shard: Shard) -> Iterator[Entry]:
        for n in range(shard.where, shard.where + shard.count):
            yield f"item {n}", self.items[n]


class Lines(_Indexed):
    """A .jsonl file, rows as `data.read_items` takes them; a shard is a stretch of bytes.

    Args:
        path: of the file. Image paths are relative to it.
        columns: field -> column.
        ids: of the files before it, to which its own are added.
    """

    kind = "jsonl"

    def __init__(self, path: str | Path, columns: Mapping[str, str] | None = None, ids: _Ids | None = None) -> None:
        super().__init__(path)
        self.path, self.columns = Path(path), columns
        ids, starts = _Ids() if ids is None else ids, array("Q")
        before = len(ids)
        content = hashlib.blake2b(digest_size=16)
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    starts.extend((lines.tell() - len(line), number))
                    ids.add(_id_of(line, columns))
                    content.update(line)
        self._starts = starts
        self._count, self._twice, _ = len(starts) // 2, *ids.found(before)
        self._fingerprint = content.hexdigest()

    def _slices(self, size: int) -> Iterator[tuple[Any, int]]:
        for n in range(0, self._count, size):
            yield (self._starts[2 * n], self._starts[2 * n + 1]), min(size, self._count - n)

    def _entries(self, shard: Shard) -> Iterator[Entry]:
        start, first = shard.where
        with self.path.open("rb") as lines:
            lines.seek(start)
            for number, line in enumerate(lines, first):
                if line.strip():
                    place = f"{self.path}, line {number}"
                    try:
                        row = parse_line(line, place)
                    except InputError as error:
                        yield place, Fault(UNUSABLE, str(error))
                    else:
                        yield place, _made(place, row, self.path.parent, self.columns)


class Parquet(_Indexed):
    """A .parquet file, rows as `data.read_items` takes them; a shard is a range of rows.

    Of the row groups that a shard touches all is read up to its last row, so many small groups serve better than a large one.

    Args:
        path: of the file. Image paths are relative to it.
        columns: field -> column.
        ids: of the files before it, to which its own are added.

    Raises:
        InputError: it cannot be read as parquet.
        MissingExtraError: without the extra `data`.
    """

    kind = "parquet"
    _broken: type[Exception] = OSError
    """What pyarrow raises."""

    def __init__(self, path: str | Path, columns: Mapping[str, str] | None = None, ids: _Ids | None = None) -> None:
        super().__init__(path)
        self.path, self.columns = Path(path), columns
        ids = _Ids() if ids is None else ids
        before = len(ids)
        try:
            with self._open() as file:
                names = set(file.schema_arrow.names)
                column = columns["id"] if columns and "id" in columns else "item" if "item" in names else "id"
                for batch in file.iter_batches(columns=["item.id" if column == "item" else column]):
                    for row in batch.to_pylist():
                        value = row.get(column)
                        ids.add(_id(value.get("id") if isinstance(value, Mapping) else value))
                self._count = file.metadata.num_rows
        except (self._broken, OSError) as error:
            raise InputError(f"{path}: not a parquet file ({error})") from None
        while len(ids) < before + self._count:  # no column of ids: every row is a fault
            ids.add(None)
        self._twice, found = ids.found(before)
        self._fingerprint = digest([found, self.path.stat().st_size])

    def _open(self) -> Any:
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise missing_extra("Reading parquet", "data", error) from error
        self._broken = ArrowException
        return ParquetFile(self.path)

    def _slices(self, size: int) -> Iterator[tuple[Any, int]]:
        for n in range(0, self._count, size):
            yield n, min(size, self._count - n)

    def _entries(self, shard: Shard) -> Iterator[Entry]:
        done, end = shard.where, shard.where + shard.count
        try:
            with self._open() as file:
                for row in _rows_between(file, done, end):
                    place = f"{self.path}, row {done + 1}"
                    done += 1
                    yield place, _made(place, row, self.path.parent, self.columns)
        except (self._broken, OSError) as error:
            for n in range(done, end):
                yield f"{self.path}, row {n + 1}", Fault(UNUSABLE, f"{self.path}: cannot be read: {error}")


def _rows_between(file: Any, start: int, end: int) -> Iterator[Any]:
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first + rows > start and first < end:
            at = first
            for batch in file.iter_batches(batch_size=1024, row_groups=[group]):
                low, high = max(start - at, 0), min(end - at, len(batch))
                if low < high:
                    yield from batch.slice(low, high - low).to_pylist()
                at += len(batch)
                if at >= end:
                    return
        first += rows


class Tables(_Indexed):
    """Several .jsonl, .ndjson and .parquet files as one, in the order given; each begins a shard of its own.

    Args:
        paths: of the files. Image paths are relative to the file that names them.
        columns: field -> column, in all of them.

    Raises:
        InputError, MissingExtraError: as `Parquet`.
    """

    kind = "tables"

    def __init__(self, paths: Sequence[str | Path], columns: Mapping[str, str] | None = None) -> None:
        super().__init__(*paths)
        ids = _Ids()
        self.parts = [_table(Path(path), columns, ids) for path in paths]
        self._count, (self._twice, _) = len(ids), ids.found()
        self._fingerprint = digest([part.describe()["digest"] for part in self.parts])

    def _slices(self, size: int) -> Iterator[tuple[Any, int]]:
        for n, part in enumerate(self.parts):
            for where, count in part._slices(size):
                yield (n, where), count

    def _entries(self, shard: Shard) -> Iterator[Entry]:
        part, where = shard.where
        yield from self.parts[part]._entries(replace(shard, where=where))


class Folder(_Indexed):
    """The images below a folder, in the order of their names; the id of an item is its path from there, with slashes.

    Hidden files and folders are left out. The folder is listed anew by every call of `shards`.

    Raises:
        InputError: no folder, or one below it that cannot be listed; from `shards`, it changed since it was opened.
    """

    kind = "folder"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(f"{path}: no such folder")
        content = hashlib.blake2b(digest_size=16)
        for name in self._names():
            content.update(os.fsencode(name) + b"\0")
            self._count += 1
        self._fingerprint = content.hexdigest()

    def _names(self) -> Iterator[str]:
        def refuse(error: OSError) -> None:
            raise InputError(f"{error.filename}: cannot be listed: {error.strerror}") from error

        for folder, inner, files in os.walk(self.path, onerror=refuse):
            inner[:] = sorted(name for name in inner if name[0] != ".")
            below = Path(folder).relative_to(self.path)
            for name in sorted(files):
                if name[0] != "." and name.lower().endswith(IMAGES):
                    yield (below / name).as_posix()

    def _slices(self, size: int) -> Iterator[tuple[Any, int]]:
        names, left = self._names(), self._count
        content = hashlib.blake2b(digest_size=16)
        while left:
            expected = min(size, left)
            part = tuple(itertools.islice(names, expected))
            left -= expected
            for name in part:
                content.update(os.fsencode(name) + b"\0")
            same = bool(left) or (next(names, None) is None and content.hexdigest() == self._fingerprint)
            if len(part) < expected or not same:
                raise InputError(f"{self.path}: changed while it was read; start again when it is complete")
            yield part, len(part)

    def _entries(self, shard: Shard) -> Iterator[Entry]:
        for name in shard.where:
            place = str(self.path / name)
            yield place, _made(place, {"id": name, "image": name}, self.path)


class Webdataset(_Indexed):
    """.tar files in which the files of an item share a key: KEY.jpg (or .png, .webp, ...), and KEY.json or KEY.txt or both.

    The key, the path up to the first dot of the file's name, is the item's id. Keys of KEY.json that are fields of `Item` other
    than the id and the image are taken as those, the rest as metadata; KEY.txt is a reference caption, unless the .json gives
    references. Files that are none of these are left out. Images become part of the item, encoded as they are.

    A tar that breaks off gives what it holds, and one fault. Where an ending comes again, another item of the same key begins.

    Raises:
        InputError: no tar, or a compressed one, in which nothing can be found without unpacking all that comes before.
    """

    kind = "webdataset"

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [Path(path) for path in paths]
        super().__init__(*self.paths)
        ids = _Ids()
        for path, key, files in self._samples():
            ids.add(key)
            self._fold(path, key, files)
        self._count, (self._twice, _) = len(ids), ids.found()

    def _fold(self, path: Path, key: str | None, files: Mapping[str, Any]) -> None:
        self._fingerprint = digest([self._fingerprint, path.name, key, files])

    def _samples(self) -> Iterator[tuple[Path, str | None, dict[str, Any]]]:
        """(tar, key, {ending: (start, size)}) of each item; key None where a tar breaks off, and then what was wrong."""
        for path in self.paths:
            key, files = None, {}  # type: str | None, dict[str, Any]
            broken = ""
            for name, start, size in _members(path):
                if start < 0:
                    broken = name
                    continue
                folder, _, last = name.rpartition("/")
                stem, _, ending = last.partition(".")
                ending = "." + ending.lower()
                if not stem or ending not in (*IMAGES, ".json", ".txt"):
                    continue
                if f"{folder}/{stem}" != key or ending in files:  # in files: another item of the same key
                    if key is not None:
                        yield path, key.removeprefix("/"), files
                    key, files = f"{folder}/{stem}", {}
                files[ending] = (start, size)
            if key is not None:
                yield path, key.removeprefix("/"), files
            if broken:
                yield path, None, {"broken": broken}

    def _slices(self, size: int) -> Iterator[tuple[Any, int]]:
        samples = self._samples()
        while part := tuple(itertools.islice(samples, size)):
            yield part, len(part)

    def _entries(self, shard: Shard) -> Iterator[Entry]:
        for path, key, files in shard.where:
            if key is None:
                yield f"{path}, at its end", Fault(UNUSABLE, f"{path}: breaks off: {files['broken']}")
                continue
            # the position tells apart two of one key
            place = f"{path}, {key} at byte {min(start for start, _ in files.values())}"
            try:
                with path.open("rb") as tar:
                    yield place, _made(place, _sample(place, key, files, tar))
            except (InputError, OSError) as error:
                yield place, Fault(UNUSABLE, str(error), key)


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, start, size) of each whole file in a tar; (what is wrong, -1, 0) where it breaks off."""
    end = path.stat().st_size
    try:
        tar = tarfile.open(path, "r:")  # noqa: SIM115
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a tar without compression: {error}") from None
    with tar:
        try:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                if member.isreg() and member.offset_data + member.size > end:
                    yield f"{member.name} is not whole", -1, 0
                    return
                if member.isreg():
                    yield member.name, member.offset_data, member.size
            # tarfile takes a file that ends in the middle of a header, or before the zeros that end it, for one that is whole
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(512) != bytes(512):
                yield "it has no end", -1, 0
        except tarfile.TarError as error:
            yield str(error), -1, 0


def _sample(place: str, key: str, files: Mapping[str, tuple[int, int]], tar: Any) -> dict[str, Any]:
    """The fields of an item."""

    def content(ending: str) -> bytes:
        start, size = files[ending]
        tar.seek(start)
        data: bytes = tar.read(size)
        return data

    fields: dict[str, Any] = {"id": key}
    images = [ending for ending in files if ending in IMAGES]
    if len(images) > 1:
        raise InputError(f"{place}: got {' and '.join(images)}, expected one image")
    if images:
        fields["image"] = content(images[0])
        if fault := _fault_at_start(fields["image"]):
            raise InputError(f"{place}: {fault}")
    if ".txt" in files and (text := content(".txt").decode("utf-8", "replace").strip()):
        fields["references"] = [text]
    if ".json" in files:
        said = parse_line(content(".json"), f"{place}, {key}.json")
        if not isinstance(said, dict):
            raise InputError(f"{place}: {key}.json: got {type(said).__name__}, expected an object")
        metadata = said.pop("metadata", None)
        known = {name for name in Item.model_fields if name not in ("id", "image")}
        rest = {name: value for name, value in said.items() if name not in known}
        fields |= {name: value for name, value in said.items() if name in known and value is not None}
        fields["metadata"] = rest | (metadata if isinstance(metadata, dict) else {})
    return fields


class _Ids:
    """Finds ids that occur twice, in 16 bytes for each."""

    def __init__(self) -> None:
        self.hashes = bytearray()

    def __len__(self) -> int:
        return len(self.hashes) // 16

    def add(self, id: str | None) -> None:
        """The id of the next row; None where it has none, which is like no other."""
        own = f"id {id}" if id is not None else f"row {len(self)}"
        self.hashes += hashlib.blake2b(own.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def found(self, start: int = 0) -> tuple[NDArray[np.int64], str]:
        """Of the rows from `start` on, those whose id an earlier one of them has, in order; and a hash of their ids."""
        hashes = bytes(self.hashes[16 * start :])
        halves = np.frombuffer(hashes, dtype=np.uint64).reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of equal ones the earlier comes first
        same = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
        return np.sort(order[1:][same]), hashlib.blake2b(hashes, digest_size=16).hexdigest()


def _id(value: object) -> str | None:
    """As `Item` reads it."""
    return str(value) if isinstance(value, str | Integral) else None


def _id_of(line: bytes, columns: Mapping[str, str] | None) -> str | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(row, dict) and columns is None and isinstance(row.get("item"), dict):
        row = row["item"]
    return _id(row.get((columns or {}).get("id", "id"))) if isinstance(row, dict) else None


def _made(place: str, row: Any, base: Path = Path(), columns: Mapping[str, str] | None = None) -> Item | Fault:
    try:
        return item_of(place, row, base, columns=columns)
    except InputError as error:
        said = row.get("item", row) if isinstance(row, Mapping) else {}
        name = (columns or {}).get("id", "id")
        return Fault(UNUSABLE, str(error), _id(said.get(name)) if isinstance(said, Mapping) else None)


def _fault_of(image: Path | bytes | None) -> str:
    """What is wrong with an image, as far as its first bytes tell: pages of errors saved as .jpg are common."""
    if isinstance(image, Path) and image.suffix.lower() in IMAGES:
        try:
            with image.open("rb") as file:
                image = file.read(16)
        except OSError as error:
            return f"its image cannot be read: {error}"
        return _fault_at_start(image)
    return ""  # bytes may be of a kind that nobody has named


def _fault_at_start(image: bytes) -> str:
    known = image.startswith(_STARTS)
    return "" if known else f"its image is none of {', '.join(IMAGES)}: it begins with {image[:16]!r}"
