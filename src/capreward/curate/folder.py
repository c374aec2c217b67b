"""What a run has written as the source of the next one, and the beginning of any source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from capreward.curate.sources import Entry, Shard, Source, Tables, open_source
from capreward.errors import InputError


def open_any(paths: Sequence[Path]) -> Source:
    """The source at these paths: the items of a finished run, by its folder, or what `open_source` opens.

    Raises:
        InputError: as `open_source`; a run that has not come to its end.
    """
    if len(paths) != 1 or not (paths[0] / "settings.json").is_file() or not (paths[0] / "items").is_dir():
        return open_source(paths)
    [folder] = paths
    if not _finished(folder / "datasheet.json"):
        raise InputError(
            f"{folder}: holds a run that has not come to its end; finish it, or name {folder / 'items'}: what is there"
        )
    return Tables(sorted((folder / "items").glob("[!.]*.jsonl")))


def _finished(datasheet: Path) -> bool:
    try:
        return bool(json.loads(datasheet.read_bytes())["finished"])
    except OSError:
        return False


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
