"""What a run has written as the source of the next one, and the beginning of any source."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from capreward.curate.sources import (
    IMAGES,
    UNUSABLE,
    Entry,
    Fault,
    Shard,
    Source,
    _id_of,
    _Ids,
    _Indexed,
    _made,
    open_source,
)
from capreward.data import ENDINGS, parse_line
from capreward.errors import InputError


def open_any(paths: Sequence[Path]) -> Source:
    """The source at these paths: what `open_source` opens, the folder of a finished run, or a folder of .jsonl files.

    Raises:
        InputError: as `open_source`; a run that has not come to its end.
    """
    if len(paths) != 1 or not paths[0].is_dir():
        return open_source(paths)
    [folder] = paths
    if (folder / "settings.json").is_file() and (folder / "items").is_dir():
        if not _finished(folder / "datasheet.json"):
            raise InputError(
                f"{folder}: holds a run that has not come to its end; finish it, or name {folder / 'items'}: what is there"
            )
        return Files(folder / "items")
    files = [path for path in folder.iterdir() if path.name[0] != "."]
    read = {path.suffix for path in files if path.suffix.lower() in (*ENDINGS, *IMAGES, ".tar")}
    if read == {".jsonl"}:
        return Files(folder)
    return open_source(folder)


def _finished(datasheet: Path) -> bool:
    try:
        return bool(json.loads(datasheet.read_bytes())["finished"])
    except OSError:
        return False


class Files(_Indexed):
    """The .jsonl files of a folder as one, in the order of their names; rows as `data.read_items` takes them.

    Args:
        folder: of the files. Image paths are relative to it.
    """

    kind = "files"

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.paths = sorted(path for path in folder.glob("*.jsonl") if path.name[0] != ".")
        ids, starts = _Ids(), array("Q")
        content = hashlib.blake2b(digest_size=16)
        for place, path in enumerate(self.paths):
            with path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        starts.extend((place, lines.tell() - len(line), number))
                        ids.add(_id_of(line, None))
                        content.update(line)
        self._starts = starts
        self._count, (self._twice, _) = len(ids), ids.found()
        self._fingerprint = content.hexdigest()

    def _slices(self, size: int) -> Iterator[Any]:
        for n in range(0, self._count, size):
            yield tuple(self._starts[3 * n : 3 * n + 3])

    def _entries(self, shard: Shard) -> Iterator[Entry]:
        first, start, number = shard.where
        for path in self.paths[first:]:
            with path.open("rb") as lines:
                lines.seek(start)
                for n, line in enumerate(lines, number):
                    if line.strip():
                        yield _entry(f"{path}, line {n}", line, path.parent)
            start, number = 0, 1


def _entry(place: str, line: bytes, base: Path) -> Entry:
    try:
        return place, _made(place, parse_line(line, place), base)
    except InputError as error:
        return place, Fault(UNUSABLE, str(error))


class First:
    """The first entries of a source.

    Args:
        source: of all.
        limit: how many.

    Raises:
        InputError: a limit below 1.
    """

    def __init__(self, source: Source, limit: int) -> None:
        if limit < 1:
            raise InputError(f"--limit: got {limit}, expected a number >= 1")
        self.source, self.limit = source, limit

    def __len__(self) -> int:
        return min(self.limit, len(self.source))

    def describe(self) -> Mapping[str, Any]:
        """That of the source, and the limit: with another one, the last shard would be another."""
        return {**self.source.describe(), "limit": self.limit}

    def shards(self, size: int) -> Iterator[Shard]:
        """Slices of `size` entries, up to the limit."""
        left = len(self)
        for shard in self.source.shards(size):
            if left <= 0:
                return
            yield replace(shard, count=min(shard.count, left))
            left -= shard.count

    def read(self, shard: Shard) -> Iterator[Entry]:
        """The entries of a shard."""
        return self.source.read(shard)
