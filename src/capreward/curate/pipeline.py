"""Runs a stage over a source of any size: in shards, each done once, whatever is killed meanwhile (docs/annotation.md).

What a run leaves in its folder:

- `items/00012.jsonl`: the items of a shard with what was made for them, for `read_items`. The file is written last, so it
  also says that the shard is done.
- `records/00012.jsonl`: all that was made for each of them, kept and rejected, with the verdicts.
- `dead/00012.jsonl`: what did not become an item: id, position in the shard, place in the source, reason, detail.
- `counts/00012.json`: what is to be added up.
- `runs/*.json`: what each process has cost, as of its last five seconds.
- `settings.json`: of the stage and the source; another one is refused.
- `datasheet.json`: what was made, by whom, how much of it, and what it cost.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, astuple, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from capreward import __version__
from capreward.coroutines import run as run_now, side_by_side
from capreward.curate.sources import UNUSABLE, Fault, Shard, Source
from capreward.curate.stage import Curated, Outcome, Stage
from capreward.curate.writing import distinct
from capreward.data import replacing, write_rows
from capreward.errors import ComponentError, InputError, require_positive
from capreward.judges.base import Usage
from capreward.judges.wrap import RETRIED
from capreward.missing import Missing, Reason
from capreward.progress import progress_bar
from capreward.records import Item

MAY_PASS = frozenset({*RETRIED, Reason.NO_IMAGE, UNUSABLE})
"""Reasons of dead letters that another try may not have: an image may be there by then."""
HEARTBEAT = 5.0
"""Seconds after which a run writes down again what it has cost: no more than that is left out if it is killed."""

Advance = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Summary:
    """What lies in a folder, over all runs that wrote there."""

    items: int
    """With something made for them."""
    dead: Mapping[str, int]
    """Dead letters, by reason."""
    counts: Mapping[str, int]
    """The stage's own, added up."""
    usage: Mapping[str, Usage]
    """By name of the judge."""
    seconds: float
    """Of all processes, added up."""
    finished: bool
    """Whether every shard is done."""

    def text(self) -> str:
        """Some lines for a terminal."""
        dead = sum(self.dead.values())
        lines = [f"{self.items:,} items; {dead:,} dead letters{f' ({reasons(self.dead)})' if dead else ''}"]
        if self.counts:
            lines.append(", ".join(f"{count:,} {name}" for name, count in self.counts.items()))
        lines += [f"{name}: {usage.summary()}" for name, usage in self.usage.items()]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a run would cost, from a sample of its items."""

    entries: int
    """Of the source."""
    sampled: int
    total: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Fields of `Usage` -> (low, expected, high) for all entries; low and high two standard errors away."""
    dead: Mapping[str, int] = field(default_factory=dict)
    """Dead letters of the sample, by reason."""

    def text(self) -> str:
        """Some lines for a terminal."""
        lines = [f"{self.entries:,} items, {self.sampled} of them tried"]
        for name, (low, expected, high) in self.total.items():
            if expected:
                digits = 2 if name == "money" else 0
                wide = f"{low:,.{digits}f} to {high:,.{digits}f}"
                lines.append(f"{name.replace('_', ' ')}: {expected:,.{digits}f} ({wide})")
        if self.dead:
            lines.append(f"failed: {reasons(self.dead)}")
        return "\n".join(lines)


def reasons(dead: Mapping[str, int]) -> str:
    """Dead letters by reason, such as "3 server, 1 timeout"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(dead.items()))


def total(usages: Iterable[Usage]) -> Usage:
    """What several judges, or runs, have cost together."""
    return Usage(*map(sum, zip(*map(astuple, usages), strict=True)))


def run(
    stage: Stage,
    source: Source,
    out: str | Path,
    *,
    shard_size: int = 256,
    at_once: int = 2,
    progress: bool = True,
    resume: bool = True,
    again: bool = False,
) -> Summary:
    """Puts all items of a source through a stage; each ends in `items` or in `dead`, once, however often the run is killed.

    Args:
        stage: makes something for items.
        source: of the items (`open_source`).
        out: folder to write to; see the top of this module.
        shard_size: entries that are done, and lost by a kill, together.
        at_once: shards that are under way together: while one waits for its last replies, the next keeps the judges busy.
        progress: show a bar from the third second on, if tqdm is installed.
        resume: go on where another run ended; without it, a folder that has been written to is refused.
        again: also try the dead letters of finished shards again, where the reason may pass. What is done is kept.

    Raises:
        InputError: the folder belongs to another stage, source or size of shards, or to a run that has not ended.
        ComponentError: the stage broke its contract.
        Exception: whatever the stage raises: a bug. Its shard stays undone.
    """
    require_positive("run", shard_size=shard_size, at_once=at_once)
    with opened(stage.name, stage.describe(), source, Path(out), shard_size, resume=resume) as work:
        todo = work.todo(again=again)
        with progress_bar(todo.entries, stage.name, "item", shown=progress) as advance:
            run_now(_all(work, stage, todo.shards, at_once, again, advance or (lambda _: None)))
    return work.summary()


def estimate(stage: Stage, source: Source, sample: int = 16) -> Bill:
    """Puts some items through a stage, one by one and evenly spread over the source, and multiplies what they cost.

    Nothing is written, but for replies that a judge's cache keeps, so that the run itself need not ask for them. What the
    cache answered here is taken for what it will answer there.

    Args:
        sample: items to try; with 0 no judge is asked, and the entries alone are counted.

    Raises:
        InputError: a sample below 0.
    """
    if sample < 0:
        raise InputError(f"estimate: got sample={sample}, expected a number >= 0")
    entries = len(source)
    sample = min(sample, entries)
    if not sample:
        return Bill(entries, 0)
    return run_now(_estimate(stage, source, entries, sample))


async def _estimate(stage: Stage, source: Source, entries: int, sample: int) -> Bill:
    places = {(2 * n + 1) * entries // (2 * sample) for n in range(sample)}
    costs: list[tuple[float, ...]] = []
    dead: Counter[str] = Counter()
    for shard in source.shards(1):
        if shard.number not in places:
            continue
        [(_, entry)] = source.read(shard)
        before = [judge.usage.snapshot() for judge in distinct(stage.judges)]
        [outcome] = await _curated(stage, [entry]) if isinstance(entry, Item) else [entry]
        if not isinstance(outcome, Curated):
            dead[str(outcome.reason)] += 1
        spent = [judge.usage.since(then) for judge, then in zip(distinct(stage.judges), before, strict=True)]
        costs.append(astuple(total(spent)))
    columns = zip(*costs, strict=True)
    ranges = {each.name: _range(column, entries) for each, column in zip(fields(Usage), columns, strict=True)}
    return Bill(entries, len(costs), ranges, dict(dead))


def _range(sampled: Sequence[float], entries: int) -> tuple[float, float, float]:
    """The sum over all entries, between two standard errors; infinite ones where a single item says nothing of others."""
    n = len(sampled)
    mean, known = sum(sampled) / n, sum(sampled)
    if n == entries:
        return known, known, known
    if n == 1:
        return known, mean * entries, math.inf
    variance = sum((each - mean) ** 2 for each in sampled) / (n - 1)
    wide = 2 * entries * math.sqrt(variance / n * (1 - n / entries))
    return max(mean * entries - wide, known), mean * entries, mean * entries + wide


@dataclass(frozen=True, slots=True)
class Todo:
    """What a run has before it."""

    shards: Iterator[Shard]
    entries: int


class Work:
    """The folder of a run: what is done in it, and how a shard is added. `opened` makes one."""

    def __init__(self, out: Path, source: Source, settings: Mapping[str, Any]) -> None:
        self.out, self.source, self.settings = out, source, settings
        self.size = int(settings["shard_size"])
        for name in ("items", "records", "dead", "counts", "runs"):
            (out / name).mkdir(exist_ok=True)

    def path(self, kind: str, number: int) -> Path:
        """Of one file of a shard."""
        return self.out / kind / f"{number:05d}.{'json' if kind == 'counts' else 'jsonl'}"

    def is_done(self, shard: Shard) -> bool:
        """Whether all of its files are written."""
        return self.path("items", shard.number).exists()

    def counts(self, shard: int) -> dict[str, Any]:
        """What is to be added up of a shard that is done."""
        counts: dict[str, Any] = json.loads(self.path("counts", shard).read_bytes())
        return counts

    def done(self) -> list[int]:
        """Numbers of the shards that are done."""
        return [int(path.stem) for path in sorted((self.out / "items").glob("[0-9]*.jsonl"))]

    def todo(self, *, again: bool = False) -> Todo:
        """The shards that are not done, and with `again` those whose dead letters may pass; and how many entries that makes."""
        done, entries, retried = self.done(), len(self.source), set()
        for number in done:
            counts = self.counts(number)
            dead = sum(count for reason, count in counts["dead"].items() if reason in MAY_PASS)
            entries -= counts["items"] + sum(counts["dead"].values())
            if again and dead:
                retried.add(number)
                entries += dead
        skipped = set(done) - retried
        return Todo((shard for shard in self.source.shards(self.size) if shard.number not in skipped), entries)

    async def do(self, stage: Stage, shard: Shard, *, again: bool = False) -> int:
        """Puts a shard through the stage and writes it; what is done is left alone. How many entries that were.

        Raises:
            ComponentError: the stage broke its contract.
        """
        old = await asyncio.to_thread(self._old, shard)
        if old is not None and not again:
            return 0
        entries = await asyncio.to_thread(lambda: list(self.source.read(shard)))
        tried = set(range(len(entries))) if old is None else old.tried
        asked = {n: entry for n, (_, entry) in enumerate(entries) if n in tried and isinstance(entry, Item)}
        made = await _curated(stage, list(asked.values()))
        outcomes: dict[int, Outcome | Fault] = {
            n: entry for n, (_, entry) in enumerate(entries) if n in tried and isinstance(entry, Fault)
        }
        outcomes |= zip(asked, made, strict=True)
        await asyncio.to_thread(self._write, stage, shard, entries, outcomes, old)
        return len(tried)

    def _old(self, shard: Shard) -> _Old | None:
        if not self.is_done(shard):
            return None
        old = _Old(*({row["id"]: row for row in _rows(self.path(kind, shard.number))} for kind in ("items", "records")))
        for row in _rows(self.path("dead", shard.number)):
            if "n" not in row:
                raise InputError(f"{self.out}: its dead letters are of an earlier version; name another folder")
            old.dead[row["n"]] = row
        return old

    def _write(
        self,
        stage: Stage,
        shard: Shard,
        entries: Iterable[tuple[str, Item | Fault]],
        outcomes: Mapping[int, Outcome | Fault],
        old: _Old | None,
    ) -> None:
        rows: dict[str, list[Mapping[str, Any]]] = {"items": [], "records": [], "dead": []}
        counts: Counter[str] = Counter()
        for n, (place, entry) in enumerate(entries):
            outcome = outcomes.get(n)
            if isinstance(outcome, Curated):
                rows["items"].append(self._item_row(outcome.item))
                rows["records"].append({"id": outcome.item.id, **outcome.record})
            elif outcome is not None:
                rows["dead"].append(
                    {"id": entry.id, "n": n, "place": place, "reason": str(outcome.reason), "detail": outcome.detail}
                )
            elif old is not None and n in old.dead:
                rows["dead"].append(old.dead[n])
            elif old is not None:
                rows["items"].append(old.items[str(entry.id)])
                rows["records"].append(old.records[str(entry.id)])
        for record in rows["records"]:
            counts.update(stage.count(record))
        dead = Counter(row["reason"] for row in rows["dead"])
        summed = {"items": len(rows["items"]), "dead": dict(dead), "counts": dict(counts)}
        # A process that a cluster has given up for dead may still be at it: who comes second to a shard leaves it as it is.
        with locked(self.out / ".writing"), ExitStack() as files:
            if old is None and self.is_done(shard):
                return
            # the last one entered takes its place first
            partial = {kind: files.enter_context(replacing(self.path(kind, shard.number))) for kind in KINDS}
            partial["counts"].write_text(json.dumps(summed, ensure_ascii=False), encoding="utf-8")
            for kind, lines in rows.items():
                try:
                    write_rows(partial[kind], lines)
                except TypeError as error:
                    raise ComponentError(f"stage {stage.name!r}: a record that is not JSON-ready: {error}") from None
            if old is not None:  # killed between two files of four, the shard is not done
                self.path("items", shard.number).unlink()

    def _item_row(self, item: Item) -> dict[str, Any]:
        row = item.model_dump(mode="json", exclude_defaults=True)
        if isinstance(item.image, Path):
            # relative to the file that names it, so that data and results can move together
            folder = os.path.relpath(os.path.realpath(item.image.parent), os.path.realpath(self.out / "items"))
            row["image"] = str(Path(folder) / item.image.name)
        return row

    def summary(self) -> Summary:
        """Of all runs so far."""
        dead: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        items = 0
        done = self.done()
        for number in done:
            part = self.counts(number)
            items += part["items"]
            dead.update(part["dead"])
            counts.update(part["counts"])
        runs = self._runs()
        usage: dict[str, Usage] = {}
        for name, spent in (each for run in runs for each in run["usage"].items()):
            usage[name] = total([usage.get(name, Usage()), Usage(**spent)])
        seconds = sum(run["seconds"] for run in runs)
        finished = items + sum(dead.values()) == len(self.source)
        return Summary(items, dict(dead), dict(counts), usage, seconds, finished)

    def _runs(self) -> list[dict[str, Any]]:
        """What each process wrote down."""
        return [json.loads(path.read_bytes()) for path in sorted((self.out / "runs").glob("[!.]*.json"))]

    def write_datasheet(self) -> None:
        """What was made, by whom, and what it cost."""
        summary = self.summary()
        entries = summary.items + sum(summary.dead.values())
        runs = self._runs()
        sheet = {
            **self.settings,
            "judges": sorted(summary.usage),
            "finished": summary.finished,
            "entries": len(self.source),
            "items": summary.items,
            "dead": summary.dead,
            "counts": summary.counts,
            "usage": {name: asdict(usage) for name, usage in summary.usage.items()},
            "process_seconds": round(summary.seconds, 1),
            "entries_per_process_second": round(entries / summary.seconds, 3) if summary.seconds else None,
            "versions": sorted({(each["capreward"], each["python"]) for each in runs}),
            "started": min((each["started"] for each in runs), default=None),
            "ended": max((each["ended"] for each in runs), default=None),
            "runs": len(runs),
        }
        _write_json(self.out / "datasheet.json", sheet)


KINDS = ("items", "counts", "dead", "records")
"""The files of a shard; the last one is written first."""


@dataclass(slots=True)
class _Old:
    """What a shard holds that is done."""

    items: dict[str, Any]
    records: dict[str, Any]
    dead: dict[int, Any] = field(default_factory=dict)
    """By position in the shard: a place holds the path of the source, which may be moved."""

    @property
    def tried(self) -> set[int]:
        """Positions of what is worth another try."""
        return {n for n, row in self.dead.items() if row["reason"] in MAY_PASS}


@contextmanager
def opened(
    stage: str, described: Mapping[str, Any], source: Source, out: Path, shard_size: int, *, resume: bool = True
) -> Iterator[Work]:
    """The folder of a run of a stage, held against others; the datasheet is written at the end, whatever it is.

    Raises:
        InputError: the folder belongs to others.
    """
    settings = {
        "stage": stage,
        "settings": described,
        "source": source.describe(),
        "shard_size": shard_size,
    }
    try:
        settings = json.loads(json.dumps(settings))
    except TypeError as error:
        raise ComponentError(f"stage {stage!r}: describe() is not JSON-ready: {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(out / ".lock", wait=False))
        except BlockingIOError:
            raise InputError(f"{out}: another run is writing to it; wait for its end, or name another folder") from None
        path = out / "settings.json"
        if path.exists():
            if not resume:
                raise InputError(f"{out}: holds a run; name another folder, or go on with resume=True")
            _compare(out, json.loads(path.read_bytes()), settings)
        else:
            _write_json(path, settings)
        work = Work(out, source, settings)
        try:
            yield work
        finally:
            work.write_datasheet()


def _compare(out: Path, had: Mapping[str, Any], has: Mapping[str, Any]) -> None:
    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {name: value}
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}".strip(".")).items()}

    before, now = flat(had), flat(has)
    differ = [
        f"{name}: was {before.get(name)!r}, is {now.get(name)!r}"
        for name in {**before, **now}
        if name != "source.name" and before.get(name) != now.get(name)  # a source may be moved
    ]
    if differ:
        raise InputError(f"{out}: was written with other settings ({'; '.join(differ)}); name another folder")


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Alone among all that lock this file, on file systems that can.

    Raises:
        BlockingIOError: it is locked, and `wait` is False.
    """
    import fcntl

    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


class Meter:
    """Writes down what the judges of one process cost."""

    def __init__(self, out: Path, stage: Stage) -> None:
        self.judges = distinct(stage.judges)
        self.before = [judge.usage.snapshot() for judge in self.judges]
        self.start, self.started = time.monotonic(), _now()
        self.path = out / "runs" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.json"

    def write(self) -> None:
        """As of now."""
        usage: dict[str, Usage] = {}
        for judge, before in zip(self.judges, self.before, strict=True):
            usage[judge.name] = total([usage.get(judge.name, Usage()), judge.usage.since(before)])
        _write_json(
            self.path,
            {
                "started": self.started,
                "ended": _now(),
                "seconds": round(time.monotonic() - self.start, 3),
                "usage": {name: asdict(each) for name, each in usage.items()},
                "capreward": __version__,
                "python": platform.python_version(),
            },
        )

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Around work: written every few seconds, and at its end."""

        async def beat() -> None:
            while True:
                self.write()
                await asyncio.sleep(HEARTBEAT)

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()
            self.write()


async def _all(work: Work, stage: Stage, shards: Iterator[Shard], at_once: int, again: bool, advance: Advance) -> None:
    async with Meter(work.out, stage).beating():
        await do_each(work, stage, shards, at_once, again, advance)


async def do_each(
    work: Work, stage: Stage, shards: Iterator[Shard], at_once: int, again: bool, advance: Advance
) -> None:
    """Does the shards, `at_once` at any time, and tells `advance` of each how many entries that were."""

    async def some() -> None:
        for shard in shards:  # shared by all that run
            advance(await work.do(stage, shard, again=again))

    await side_by_side(some() for _ in range(at_once))


async def _curated(stage: Stage, items: list[Item]) -> list[Outcome]:
    if not items:
        return []
    outcomes = list(await stage.curate(items))
    if len(outcomes) != len(items):
        raise ComponentError(
            f"stage {stage.name!r}: got {len(outcomes)} outcomes for {len(items)} items, expected one for each"
        )
    for item, outcome in zip(items, outcomes, strict=True):
        if not isinstance(outcome, Curated | Missing):
            raise ComponentError(
                f"stage {stage.name!r}: item {item.id!r}: got {outcome!r}, expected Curated or Missing"
            )
        if isinstance(outcome, Curated) and outcome.item.id != item.id:
            raise ComponentError(f"stage {stage.name!r}: item {item.id!r}: its id became {outcome.item.id!r}; keep it")
    return outcomes


def _rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as lines:
        yield from map(json.loads, lines)


def _write_json(path: Path, value: object) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8", "backslashreplace")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
