"""An append-only record of what was scored, and why: a folder of JSON lines that ablations replay without a judge.

- `suites.jsonl`: each suite that wrote here: components, judges, prompts' hashes, weights, gates.
- `items.jsonl`: each item, once by each process that writes, and again if it changes; the hash of an image in the place of its
  bytes.
- `rollouts.jsonl`, `rollouts-WRITER.jsonl`: a line a rollout: caption, length, scores before and after the gates, reasons,
  evidence.

A line is written as a whole or, where a process dies, not to its end; a line without its end is not read. The folder can be read
while others write to it.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capreward import __version__, prompts
from capreward.components.gates import length_ratio
from capreward.data import digest, replacing
from capreward.errors import InputError, missing_extra
from capreward.groups import Float
from capreward.missing import Missing
from capreward.records import Item, Rollout, count_words
from capreward.scoring import Gate, ScoreTable
from capreward.suite import RewardSuite

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

log = logging.getLogger("capreward")

BLOCK = 1 << 21
"""Bytes that are read at once. No line is longer, so evidence that does not fit is left out, and endless text cut."""
FIELDS = ("id", "group", "batch", "step", "item", "suite", "caption", "length", "ratio", "decided", "metadata")
"""Of a rollout's line, beside those that hold something of each component: raw, value, missing, gated, why, unread, evidence."""


class LedgerWriter:
    """Writes what a suite scores to a folder, from any number of processes: `RewardSuite(..., ledger=LedgerWriter("ledger"))`.

    Args:
        folder: made with the first write; what it holds is added to.
        writer: name of a file of its own, for processes on several machines; those on one machine can share.
        positions: lengths in bytes that the files are cut to first, as `positions` gave them; those not named are emptied.

    Raises:
        InputError: a file in the place of the folder.
    """

    def __init__(self, folder: str | Path, *, writer: str = "", positions: Mapping[str, int] | None = None) -> None:
        self.folder = Path(folder)
        self.name = f"rollouts-{writer}.jsonl" if writer else "rollouts.jsonl"
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"ledger: got {str(self.folder)!r}, a file, expected a folder")
        if positions is not None:
            for path in self.folder.glob("*.jsonl"):
                os.truncate(path, min(positions.get(path.name, 0), path.stat().st_size))
        self._items: set[str] | None = None
        self._suites: set[str] | None = None

    def write(self, suite: RewardSuite, table: ScoreTable, rollouts: Sequence[Rollout]) -> None:
        """Add a table's rollouts.

        A number in their `metadata["step"]` is the training step whose policy wrote them. It makes those of one step one batch,
        however many calls scored them, unless `metadata["batch"]` names one.
        """
        batch = uuid.uuid4().hex
        described = describe(suite)
        suite_digest = digest(described)
        items = {rollout.item.id: _item_row(rollout.item) for rollout in rollouts}
        count = count_of(suite.gates)
        rows = []
        for row, rollout in enumerate(rollouts):
            step = _step(rollout.metadata.get("step"))
            ratio = length_ratio(rollout, count)
            cells = {name: table.cell(row, k) for k, name in enumerate(table.names)}
            rows.append(
                {
                    "id": table.ids[row],
                    "group": rollout.group,
                    "batch": str(rollout.metadata.get("batch", batch if step is None else f"step {step}")),
                    "step": step,
                    "item": rollout.item.id,
                    "suite": suite_digest,
                    "caption": rollout.caption,
                    "length": count(rollout.caption),
                    "ratio": None if isinstance(ratio, Missing) else ratio,
                    "decided": suite.decided(rollout) is not None,
                    "metadata": _text(rollout.metadata),
                    **{
                        key: {name: cell[key] for name, cell in cells.items()}
                        for key in ("raw", "value", "missing", "why")
                    },
                    "gated": {
                        name: table.gated[row, k] for k, name in enumerate(table.names) if (row, k) in table.gated
                    },
                    "unread": {name: cell["unread"] for name, cell in cells.items() if cell["unread"]},
                    "evidence": _text({name: cell["evidence"] for name, cell in cells.items()}),
                }
            )
        with self._locked():
            if self._items is None or self._suites is None:
                self._items, self._suites = (
                    {row["digest"] for row in _lines(self.folder / name)} for name in ("items.jsonl", "suites.jsonl")
                )
            self._append("suites.jsonl", [{"digest": suite_digest, **described}], self._suites)
            self._append("items.jsonl", items.values(), self._items)
            self._append(self.name, rows)

    def positions(self) -> dict[str, int]:
        """Lengths of this writer's files in bytes, once they are on the disk."""
        lengths = {}
        with self._locked():
            for name in ("suites.jsonl", "items.jsonl", self.name):
                with (self.folder / name).open("ab") as file:
                    os.fsync(file.fileno())
                    lengths[name] = file.tell()
        return lengths

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]], known: set[str] | None = None) -> None:
        new = [row for row in rows if known is None or row["digest"] not in known]
        lines = b"".join(_line(row) if known is None else _encoded(row) + b"\n" for row in new)
        if not lines:
            return
        with (self.folder / name).open("a+b") as file:
            end, complete = _end(file)
            if end < file.seek(0, os.SEEK_END):
                log.warning("%s: cut off a line without its end, of a process that died", self.folder / name)
                file.truncate(end)
            file.write((b"" if complete else b"\n") + lines)
        if known is not None:  # not before: what a full disk kept out is written the next time
            known.update(row["digest"] for row in new)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the processes of this machine."""
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True)
class Rows:
    """The numbers of N rollouts on K components."""

    names: tuple[str, ...]
    """Components, [K]."""
    raw: Float
    """Scores before the gates, [N, K]; NaN = missing, or not asked since a gate had decided."""
    values: Float
    """Scores after the gates that they were written with, [N, K]; NaN = missing."""
    decided: NDArray[np.bool_]
    """Captions that no component had to look at: empty, or too long, [N]."""
    ratio: Float
    """Length over the mean length of the references, [N]; NaN without."""
    length: NDArray[np.int64]
    """[N]"""
    batch: NDArray[np.int64]
    """Number of the batch that a rollout was scored in, [N]."""
    group: NDArray[np.int64]
    """Number of its group, [N]; a group lies in one batch."""
    item: NDArray[np.int64]
    """Number of its item, [N]."""
    suite: NDArray[np.int64]
    """Place of the suite that scored it in `Ledger.suites`, [N]; the last one's where the ledger does not hold it."""
    weights: Float
    """Of the components, as the last suite had them, [K]."""
    count: str
    """How lengths were counted."""

    def __len__(self) -> int:
        return len(self.batch)


class Ledger:
    """What a folder holds.

    Raises:
        InputError: no ledger there.

    >>> Ledger("run/ledger").to_pandas()                                                   # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files = sorted(self.folder.glob("rollouts*.jsonl"))
        if not self.files:
            raise InputError(
                f"{self.folder}: no ledger; expected a folder with rollouts.jsonl, as LedgerWriter makes it"
            )
        self.suites = list(_lines(self.folder / "suites.jsonl"))
        """What `describe` said of each suite, in the order in which they came."""
        for number, suite in enumerate(self.suites, 1):
            if not isinstance(suite, dict) or "components" not in suite:
                raise InputError(
                    f"{self.folder / 'suites.jsonl'}, line {number}: no record of a ledger (no components); "
                    "remove the line, or write to another folder"
                )
        self.names = tuple(dict.fromkeys(name for suite in self.suites for name in suite["components"]))
        """All components."""

    def lost(self) -> dict[str, int]:
        """Bytes at the end of each file that are no whole record; only files that have any."""
        lost = {}
        for path in (self.folder / "suites.jsonl", self.folder / "items.jsonl", *self.files):
            if path.exists():
                with path.open("rb") as file:
                    lost[path.name] = path.stat().st_size - _end(file)[0]
        return {name: count for name, count in lost.items() if count > 0}

    def items(self) -> dict[str, Item]:
        """The items by id, as they were last, without images that had no path."""
        rows = (
            {key: value for key, value in row.items() if key in Item.model_fields}
            for row in _lines(self.folder / "items.jsonl")
        )
        return {row["id"]: Item(**row) for row in rows}

    def records(self) -> Iterator[dict[str, Any]]:
        """Each rollout's line, whole, in the order in which each file has them."""
        for path in self.files:
            for row in _lines(path):
                yield {**row, "metadata": json.loads(row["metadata"]), "evidence": json.loads(row["evidence"])}

    def rows(self) -> Rows:
        """The numbers of all rollouts; the files are read block by block.

        Raises:
            InputError: there are none, or no suite that scored them; a line that is no record.
            MissingExtraError: without the extra `data`.
        """
        pa = _arrow()
        import pyarrow.compute as pc

        if not self.suites and any(path.stat().st_size for path in self.files):
            raise InputError(f"{self.folder / 'suites.jsonl'}: holds no suite, expected those that scored the rollouts")
        strangers = 0

        columns: dict[str, list[Any]] = {}
        codes = {"batch": _Numbers(), "item": _Numbers(), "group": _Numbers()}
        suites = pa.array([suite["digest"] for suite in self.suites], pa.string())
        for batch in self.batches(["batch", "group", "item", "suite", "length", "ratio", "decided", "raw", "value"]):
            got: dict[str, Any] = {name: _floats(batch.column(name).flatten()) for name in ("raw", "value")}
            got["ratio"] = _floats([batch.column("ratio")])[:, 0]
            got["length"] = batch.column("length").to_numpy(zero_copy_only=False)
            got["decided"] = batch.column("decided").to_numpy(zero_copy_only=False)
            place = pc.index_in(batch.column("suite"), suites)
            strangers += place.null_count
            got["suite"] = pc.fill_null(place, len(suites) - 1).to_numpy().astype(np.int64)
            # a group's name may come again in another batch
            both = pc.binary_join_element_wise(batch.column("batch"), batch.column("group"), "\0")
            for name, column in (("batch", batch.column("batch")), ("item", batch.column("item")), ("group", both)):
                got[name] = codes[name].of(column)
            for name, values in got.items():
                columns.setdefault(name, []).append(values)
        if not columns:
            raise InputError(f"{self.folder}: holds no rollouts")
        if strangers:
            log.warning(
                "%s: %d rollouts are of a suite that suites.jsonl does not hold; they are read as the last one's",
                self.folder,
                strangers,
            )
        last = self.suites[-1]
        weights = np.array([last["weights"].get(name, 0.0) for name in self.names])
        arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
        return Rows(names=self.names, weights=weights, count=last["count"], values=arrays.pop("value"), **arrays)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Columns of the rollouts, some thousand rows at a time."""
        pa = _arrow()
        import pyarrow.json

        types = {
            **dict.fromkeys(FIELDS, pa.string()),
            "step": pa.int64(),
            "length": pa.int64(),
            "ratio": pa.float64(),
            "decided": pa.bool_(),
            **dict.fromkeys(("raw", "value"), pa.struct([(name, pa.float64()) for name in self.names])),
            **dict.fromkeys(
                ("missing", "gated", "why", "unread"), pa.struct([(name, pa.string()) for name in self.names])
            ),
            "evidence": pa.string(),
        }
        schema = pa.schema([(column, types[column]) for column in columns])
        parse = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        for path in self.files:
            with path.open("rb") as file:
                end, _ = _end(file)
            if not end:
                continue
            try:
                # Arrow's own file: a thread of its that lets go of a Python file while Python exits aborts the process.
                with pa.OSFile(str(path)) as file:
                    reader = pyarrow.json.open_json(
                        file.get_stream(0, end),
                        read_options=pyarrow.json.ReadOptions(block_size=BLOCK),
                        parse_options=parse,
                    )
                    for batch in reader:
                        yield batch.select(columns)
            except pa.ArrowInvalid as error:
                raise InputError(f"{path}: a line is no record of a ledger ({error})") from error

    def to_parquet(self, path: str | Path) -> None:
        """Write everything about the rollouts to a parquet file, components as raw.NAME, value.NAME and so on."""
        pa = _arrow()
        import pyarrow.parquet

        with replacing(Path(path)) as partial:
            writer = None
            for batch in self.batches([*FIELDS, "raw", "value", "missing", "gated", "why", "unread", "evidence"]):
                flat = pa.Table.from_batches([batch]).flatten()
                writer = writer or pyarrow.parquet.ParquetWriter(partial, flat.schema)
                writer.write_table(flat)
            if writer is None:
                raise InputError(f"{self.folder}: holds no rollouts")
            writer.close()

    def to_pandas(self, columns: Sequence[str] = (*FIELDS, "raw", "value", "missing", "gated", "why")) -> pd.DataFrame:
        """The rollouts, a row each, components as raw.NAME, value.NAME and so on."""
        pa = _arrow()
        return pa.Table.from_batches(list(self.batches(columns))).flatten().to_pandas()

    def to_dataset(self, parquet: str | Path) -> Any:
        """A Hugging Face dataset, from the parquet file that this writes."""
        try:
            import datasets
        except ImportError as error:
            raise missing_extra("to_dataset", "data", error) from error
        self.to_parquet(parquet)
        return datasets.Dataset.from_parquet(str(parquet))


def describe(suite: RewardSuite) -> dict[str, Any]:
    """What scored: what of a suite changes its scores, as JSON-ready data.

    Of a component's own options it says what the component itself names, in an attribute `recorded`: any other may hold a key.
    """
    return {
        "capreward": __version__,
        "components": {
            name: {
                "kind": type(component).__name__,
                "name": component.name,
                "judge": getattr(getattr(component, "judge", None), "name", None),
                "options": dict(getattr(component, "recorded", {})),
            }
            for name, component in suite.components.items()
        },
        "prompts": prompts.hashes(),
        "weights": dict(zip(suite.names, suite.weights.tolist(), strict=True)),
        "gates": [
            {"kind": type(gate).__name__, **{key: named(value) for key, value in vars(gate).items()}}
            for gate in suite.gates
        ],
        "max_length": suite.max_length,
        "count": named(count_of(suite.gates)),
    }


def count_of(gates: Sequence[Gate]) -> Any:
    """How the first gate that looks at lengths counts them; in words without one."""
    return next((gate.count for gate in gates if hasattr(gate, "count")), count_words)


def named(value: Any) -> Any:
    """A function's module and name, or those of a callable object's class, as `describe` writes it; anything else as it is."""
    if not callable(value):
        return value
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _item_row(item: Item) -> dict[str, Any]:
    fields = item.model_dump(mode="json", exclude={"image", "metadata"}, exclude_defaults=True)
    if item.metadata:  # may hold anything
        fields["metadata"] = json.loads(_text(item.metadata))
    if isinstance(item.image, bytes):
        fields["image_hash"] = digest(item.image)
    elif item.image is not None:
        fields["image"] = str(item.image)
    return {"digest": digest(fields), **fields}


def _step(step: object) -> int | None:
    """A training step that a file can hold."""
    if isinstance(step, bool) or not isinstance(step, Integral):
        return None
    number = int(step)
    return number if abs(number) < 1 << 63 else None


def _line(row: Mapping[str, Any]) -> bytes:
    """A rollout's line, shortened until it is no longer than a block."""
    line = _encoded(row) + b"\n"
    if len(line) > BLOCK:
        log.warning("ledger: %.200s: %d bytes; evidence is left out, and long text cut", row["id"], len(line))
        row = {**row, "metadata": "{}", "evidence": "{}", "unread": {}}
    limit = BLOCK // 32
    while len(line) > BLOCK and limit:
        line = _encoded({key: _cut(value, limit) for key, value in row.items()}) + b"\n"
        limit //= 2
    return line


def _cut(value: Any, limit: int) -> Any:
    """Text, and texts by component, no longer than the limit."""
    if isinstance(value, dict):
        return {name: _cut(inner, limit) for name, inner in value.items()}
    return value[:limit] if isinstance(value, str) else value


def _encoded(row: Mapping[str, Any]) -> bytes:
    # half a surrogate pair, which a reply may hold, is what no reader of JSON but Python's takes
    return _text(row).encode("utf-8", "replace")


def _text(value: Any) -> str:
    """JSON of anything: what it does not know becomes text."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except TypeError:  # keys of another kind
        return json.dumps(_with_text_keys(value), ensure_ascii=False, default=str)


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, list | tuple) else value


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end, _ = _end(file)
        file.seek(0)
        for number, line in enumerate(file, 1):
            if file.tell() > end:
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: no record of a ledger ({error})") from error


def _end(file: IO[bytes]) -> tuple[int, bool]:
    """Where the last whole record of an open file ends, and whether with the end of its line."""
    size = file.seek(0, os.SEEK_END)
    start, tail = size, b""
    while start and b"\n" not in tail:
        start = max(start - BLOCK, 0)
        file.seek(start)
        tail = file.read(size - start)
    last = tail.rpartition(b"\n")[2]
    try:
        json.loads(last)
    except ValueError:
        return size - len(last), True
    return size, False


class _Numbers:
    """Numbers texts in the order in which they first come."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def of(self, column: pa.Array) -> NDArray[np.int64]:
        encoded = column.dictionary_encode()
        numbers = [self.known.setdefault(text, len(self.known)) for text in encoded.dictionary.to_pylist()]
        return np.asarray(np.array(numbers, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)])


def _floats(columns: Sequence[pa.Array]) -> Float:
    """[N, K], null as NaN."""
    return np.stack([column.to_numpy(zero_copy_only=False).astype(np.float64) for column in columns], axis=1)


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise missing_extra("Reading a ledger", "data", error) from error
    return pyarrow
