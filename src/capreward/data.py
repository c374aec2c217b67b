"""Read items and rollouts from JSONL, parquet, a Hugging Face dataset or any iterable of dicts; errors name file and line.

A folder stands for the .jsonl and .parquet files in it, in the order of their names.

A row is one of:

- an item with its rollouts: the fields of `Item`, and `rollouts`, a list of captions or of `Rollout`'s fields;
- an item with one caption: the fields of `Item`, and `caption`;
- a rollout: the fields of `Rollout`, with `item` the fields of an `Item` or the id of one that was read before.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from capreward.errors import CaprewardError, InputError, missing_extra
from capreward.records import Item, Rollout

R = TypeVar("R", Item, Rollout)
Source = str | Path | Iterable[Mapping[str, Any]]

ENDINGS = (".jsonl", ".ndjson", ".parquet")
"""Of the files that are read."""


def read_items(source: Source, *, columns: Mapping[str, str] | None = None) -> list[Item]:
    """The items of a file or dataset, each once; rows may be of any of the three kinds, rollouts are left alone.

    Args, Raises: as in `read_rollouts`.
    """
    reader = _Reader()
    for place, row in _rows(source, columns):
        if (fields := _item_fields(row)) is not None:
            reader.item(place, fields, new="caption" not in row and "item" not in row)
    return list(reader.items.values())


def item_of(place: str, row: Any, base: Path = Path(), *, columns: Mapping[str, str] | None = None) -> Item:
    """The item of one row of a file, for who reads a file in parts; image paths are relative to `base`.

    Raises:
        InputError: as in `read_rollouts`; the message begins with `place`.
    """
    fields = _item_fields(_fields(place, row, base, columns))
    if fields is None:
        raise InputError(f"{place}: item: got {row['item']!r}, expected the fields of an item")
    return _Reader().item(place, fields)


def read_rollouts(
    source: Source, *, items: Sequence[Item] = (), columns: Mapping[str, str] | None = None
) -> list[Rollout]:
    """The rollouts of a file or dataset, in order.

    Args:
        source: path of a .jsonl or .parquet file or of a folder of them, a Hugging Face dataset, or any iterable of dicts. Image
            paths are relative to the file; images that a dataset has decoded are kept as PNG bytes.
        items: what rows may name by id in `item`.
        columns: field -> column, for data whose columns have other names, such as ``{"caption": "text", "id": "image_id"}``.
            When given, exactly these columns are read; without it, every column has to be a field.

    Raises:
        InputError: broken JSON, an unknown or unusable field, a missing image, a rollout id twice, an item id with two
            different contents, a file of another kind. The message names file and line.
        MissingExtraError: a parquet file without the extra `data`.
    """
    reader = _Reader(items)
    rollouts: list[Rollout] = []
    places: dict[str, str] = {}
    for place, row in _rows(source, columns):
        for rollout in reader.rollouts(place, row):
            if rollout.id is not None and rollout.id in places:
                raise InputError(
                    f"{place}: rollout id {rollout.id!r} is taken by {places[rollout.id]}; ids have to be unique"
                )
            if rollout.id is not None:
                places[rollout.id] = place
            rollouts.append(rollout)
    return rollouts


def items_of(rows: Iterable[Mapping[str, Any]], *, columns: Mapping[str, str] | None = None) -> list[Item]:
    """The item that each row of a trainer's batch holds among its other columns; rows that say the same share one `Item`.

    Args:
        rows: dicts with the fields of `Item`; whatever else they hold is left alone. `images` with one image in it will do for
            `image`. A row without an id gets one that is made of its fields.
        columns: field -> column, for data whose columns have other names. When given, exactly these columns are read.

    Raises:
        InputError: a column that a row does not have, a field that `Item` refuses, more than one image; names the row.
    """
    items: dict[str, Item] = {}
    result = []
    for number, row in enumerate(rows):
        place = f"row {number}"
        fields = _renamed(place, row, columns) if columns is not None else _own_fields(place, row)
        key = digest(fields)
        if key not in items:
            fields = _without_nulls(fields)
            if "image" in fields:
                fields["image"] = _image(fields["image"], Path())
            items[key] = _build(Item, place, {"id": key, **fields})
        result.append(items[key])
    return result


def digest(value: Any) -> str:
    """32 hexadecimal digits that tell any JSON-ready value apart, images, bytes and arrays in it included."""
    text = json.dumps(value, default=_plain, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a .jsonl file, one object a line; it is there as a whole or not at all."""
    # half a surrogate pair, which UTF-8 cannot hold, becomes an escape of JSON
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` only when everything has been written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _Reader:
    """Builds records, one `Item` object for each item id."""

    def __init__(self, items: Sequence[Item] = ()) -> None:
        self.items = {item.id: item for item in items}
        self.places: dict[str, str] = {}

    def item(self, place: str, fields: Mapping[str, Any], *, new: bool = False) -> Item:
        item = _build(Item, place, fields)
        if isinstance(item.image, Path) and not item.image.is_file():
            raise InputError(
                f"{place}: item {item.id!r}: image: got {str(item.image)!r}, expected the path of a file that exists"
            )
        known = self.items.get(item.id)
        if known is not None and (new or not known.same_as(item)):
            taken = self.places.get(item.id, "the items given")
            raise InputError(f"{place}: item id {item.id!r} is taken by {taken}; ids have to be unique")
        self.places.setdefault(item.id, place)
        return self.items.setdefault(item.id, item)

    def rollouts(self, place: str, row: dict[str, Any]) -> Iterator[Rollout]:
        if "item" in row:
            given = row.pop("item")
            if isinstance(given, Mapping):
                item = self.item(place, given)
            elif str(given) in self.items:
                item = self.items[str(given)]
            else:
                raise InputError(f"{place}: item: got {given!r}, expected the id of an item given or the fields of one")
            captions: list[Any] = [row]
        elif "rollouts" in row:
            captions = row.pop("rollouts")
            item = self.item(place, row, new=True)
        elif "caption" in row:
            captions = [row.pop("caption")]
            item = self.item(place, row)
        else:
            raise InputError(f"{place}: got {sorted(row)}, expected 'rollouts', 'caption' or 'item' among the fields")
        if not isinstance(captions, Iterable) or isinstance(captions, str | Mapping):
            raise InputError(f"{place}: item {item.id!r}: rollouts: got {captions!r}, expected a list")
        for caption in captions:
            fields = caption if isinstance(caption, Mapping) else {"caption": caption}
            if "item" in fields:
                raise InputError(f"{place}: item {item.id!r}: rollouts: got a rollout with an item of its own")
            yield _build(Rollout, place, {**fields, "item": item})


def _build(kind: type[R], place: str, fields: Mapping[str, Any]) -> R:
    try:
        return kind(**fields)
    except CaprewardError as error:
        raise InputError(f"{place}: {error}") from None


def _item_fields(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a row of any kind says of its item; None if no more than its id."""
    if "item" not in row:
        return {key: value for key, value in row.items() if key not in ("rollouts", "caption")}
    return row["item"] if isinstance(row["item"], Mapping) else None


def _rows(source: Source, columns: Mapping[str, str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for errors, row) of each row, with columns renamed to fields, nulls dropped and images usable."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        files = sorted(path for path in Path(source).iterdir() if path.suffix in ENDINGS and path.name[0] != ".")
        if not files:
            raise InputError(f"{source}: a folder without {' or '.join(ENDINGS)} files")
        for path in files:
            yield from _rows(path, columns)
        return
    base = Path(source).parent if isinstance(source, str | Path) else Path()
    for place, row in _raw_rows(source):
        yield place, _fields(place, row, base, columns)


def _fields(place: str, row: Any, base: Path, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """A row with columns renamed to fields, nulls dropped and images usable."""
    if not isinstance(row, Mapping):
        raise InputError(f"{place}: got {type(row).__name__}, expected an object with named fields")
    if columns is not None:
        row = _renamed(place, row, columns)
    fields: dict[str, Any] = _without_nulls(row)
    for holder in (fields, fields.get("item")):
        if isinstance(holder, dict) and "image" in holder:
            holder["image"] = _image(holder["image"], base)
    return fields


def _renamed(place: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    if absent := [column for column in columns.values() if column not in row]:
        raise InputError(f"{place}: no column {absent[0]!r}; there are {sorted(row)}")
    return {field: row[column] for field, column in columns.items()}


def _own_fields(place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that are called as the fields of `Item` are."""
    fields = {field: row[field] for field in Item.model_fields if field in row}
    images = row.get("images")
    if "image" not in fields and hasattr(images, "save"):
        fields["image"] = images
    elif "image" not in fields and images is not None:
        if len(images) > 1:
            raise InputError(f"{place}: images: got {len(images)}, expected one; name its column with columns=")
        fields["image"] = images[0] if len(images) else None
    return fields


def _raw_rows(source: Source) -> Iterator[tuple[str, Any]]:
    if not isinstance(source, str | Path):
        yield from ((f"row {number}", row) for number, row in enumerate(source))
        return
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix in (".jsonl", ".ndjson"):
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}, line {number}", parse_line(line, f"{path}, line {number}")
    else:
        raise InputError(f"{path}: got a {path.suffix or 'nameless'} file, expected .jsonl or .parquet")


def parse_line(line: bytes, place: str) -> Any:
    """The value that a line of JSON holds.

    Raises:
        InputError: it holds none; the message begins with `place`.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, a number or nesting too long
        column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(
            f"{place}{column}: not JSON ({getattr(error, 'msg', error)}); expected one object a line"
        ) from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise missing_extra("Reading parquet", "data", error) from error
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file ({error})") from None


def _without_nulls(value: Any) -> Any:
    """Arrow fills the fields that a row does not have with nulls; pandas makes arrays of lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {
            key: inner if key == "metadata" else _without_nulls(inner)
            for key, inner in value.items()
            if inner is not None
        }
    return [_without_nulls(inner) for inner in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """JSON of what `json` does not know."""
    if isinstance(value, bytes):
        return hashlib.blake2b(value).hexdigest()
    if hasattr(value, "tobytes") and hasattr(value, "mode"):  # a PIL image
        value = value.convert("RGBA") if value.mode in ("P", "PA") else value  # else: places in a palette, without it
        return [value.mode, value.size, _plain(value.tobytes())]
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _image(image: Any, base: Path) -> Any:
    """What `Item` takes, from a path relative to the file, datasets' {bytes, path} or a decoded PIL image."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and not image.startswith("data:"):
        return base / image if image else None
    if hasattr(image, "save"):
        buffer = io.BytesIO()
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):  # what PNG holds
            image = image.convert("RGB")
        image.save(buffer, "PNG", compress_level=1)  # four times faster than the default, a few per cent larger
        return buffer.getvalue()
    return image
