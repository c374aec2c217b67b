"""`capreward curate` and `capreward annotate`: models by name into stages, a run or its bill, and what is printed of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capreward.curate.captions import Captions, CheckpointDescriber
from capreward.curate.folder import First, open_any
from capreward.curate.pipeline import MAY_PASS, Bill, Summary, estimate, reasons, run, total
from capreward.curate.questions import Questions
from capreward.curate.references import References
from capreward.curate.rubrics import Rubrics
from capreward.curate.sources import Source
from capreward.curate.stage import Stage
from capreward.data import parse_line
from capreward.errors import CaprewardError, InputError, missing_extra
from capreward.judges.base import Judge, Sampling
from capreward.judges.cache import Cached
from capreward.judges.named import make_judge
from capreward.records import Item
from capreward.report import make_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Prices = tuple[float, float]
"""Of a million tokens in and out."""


@dataclass(frozen=True, slots=True)
class Role:
    """Whom an option names."""

    option: str
    """Such as ``--writer``."""
    model: str
    """As `make_judge` takes it; ``openai:MODEL@URL`` for a server of its own."""
    sees: bool | None
    """Whether it is shown images; None where no request has any, so that it may be the same judge as one that sees."""


@dataclass(frozen=True, slots=True)
class Servers:
    """How the models are reached."""

    base_url: str | None = None
    """Of those that name no server of their own."""
    concurrency: int | None = None
    """Requests at once, of each model."""
    prices: Prices | None = None
    own_prices: Mapping[str, Prices] | None = None
    """By model as its server calls it, in place of `prices`."""
    timeout: float | None = None
    """Seconds for one reply."""
    max_tokens: int | None = None
    """Of a reply, or of a caption; also of models that are on no server."""
    cache: Path | None = None


def make_judges(roles: Sequence[Role], servers: Servers) -> list[Judge]:
    """A judge for each role; roles of the same model share one.

    Raises:
        InputError: no such judge, or a URL with a user or a query (the message names the option); an option for servers
            without a model on one.
    """
    split = [_split(role.model, role.option) for role in roles]
    on_servers = {name.removeprefix("openai:") for name, _ in split if name.startswith("openai:")}
    given = {
        "--base-url": servers.base_url and "a URL",  # it may hold a secret
        "--concurrency": servers.concurrency,
        "--prices": servers.prices,
        "--timeout": servers.timeout,
    }
    for option, value in given.items():
        if value is not None and all(name.partition(":")[0] in ("lite", "local", "vllm") for name, _ in split):
            raise InputError(f"{option}: got {value}, but no model is on a server (openai:MODEL)")
    for model in servers.own_prices or ():
        if model not in on_servers:
            raise InputError(f"--price: got {model!r}, expected one of {sorted(on_servers)}")
    made: dict[tuple[str, str | None, bool], Judge] = {}
    judges = []
    for role, (name, url) in zip(roles, split, strict=True):
        sees = role.sees
        if sees is None:
            sees = any(other.sees for other, its in zip(roles, split, strict=True) if its == (name, url))
        key = (name, url, sees)
        if key not in made:
            try:
                made[key] = _judge(name, url, sees, servers)
            except InputError as error:
                raise InputError(f"{role.option}: {error}") from None
        judges.append(made[key])
    return judges


def _split(model: str, option: str = "model") -> tuple[str, str | None]:
    parts = re.fullmatch(r"(.*?)@(https?://.+)", model, re.DOTALL | re.IGNORECASE)
    if parts is None:
        return model, None
    name, url = parts.groups()
    if "@" in url or "?" in url:  # what may be a secret is not repeated, and goes into no name, setting or datasheet
        raise InputError(
            f"{option}: got a URL with a user or a query after {name!r}, expected one without, such as "
            "http://127.0.0.1:8000/v1; the key is read from OPENAI_API_KEY"
        )
    return name, url


def _judge(name: str, url: str | None, sees: bool, servers: Servers) -> Judge:
    kind, _, model = name.partition(":")
    server = kind == "openai"
    return make_judge(
        name,
        base_url=url or (servers.base_url if server else None),
        images=sees and kind in ("openai", "vllm"),
        concurrency=servers.concurrency if server else None,
        prices=(servers.own_prices or {}).get(model, servers.prices) if server else None,
        timeout=servers.timeout if server else None,
        max_tokens=None if kind == "lite" else servers.max_tokens,
        cache=None if kind == "lite" else servers.cache,
    )


def questions(
    servers: Servers,
    *,
    writer: str,
    sight: str | None = None,
    blind: str | None = None,
    from_references: bool = False,
    **settings: Any,
) -> Stage:
    """The stage of `capreward curate questions`.

    Args:
        sight, blind: the writer when left out; as `blind` it is shown nothing.
        from_references: writer and sight are shown no images.
        settings: of `Questions`.
    """
    sees = not from_references
    roles = [
        Role("--writer", writer, sees),
        Role("--sight", sight or writer, sees),
        Role("--blind", blind or writer, None),
    ]
    return Questions(*make_judges(roles, servers), **settings)


def rubrics(
    servers: Servers,
    *,
    writer: str,
    judge: str,
    teachers: Sequence[str] = (),
    teacher_captions: Path | None = None,
    student: str | None = None,
    student_captions: Path | None = None,
    from_captions: bool = False,
    **settings: Any,
) -> Stage:
    """The stage of `capreward curate rubrics`.

    Args:
        teachers, student: models; in their place `teacher_captions`, `student_captions`.
        from_captions: the writer is shown no images.
        settings: of `Rubrics`.
    """
    of_teachers = None if teacher_captions is None else GivenCaptions("--teacher-captions", teacher_captions)
    of_student = None if student_captions is None else GivenCaption("--student-captions", student_captions)
    roles = [Role("--writer", writer, not from_captions), Role("--judge", judge, None)]
    roles += [Role("--student", student, True)] if student else []
    roles += [Role("--teachers", teacher, True) for teacher in teachers]
    critic, grader, *others = make_judges(roles, servers)
    policy = of_student or (others.pop(0) if student else None)
    if policy is None or (of_teachers is None and not teachers):
        raise InputError("rubrics: expected teachers and a student, as models or as captions")
    return Rubrics(of_teachers or others, critic, grader, student=policy, **settings)


def references(
    servers: Servers, *, describer: str, extractor: str, verifier: str | None = None, **settings: Any
) -> Stage:
    """The stage of `capreward curate references`; settings of `References`."""
    roles = [Role("--describer", describer, True), Role("--extractor", extractor, None)]
    roles += [Role("--verifier", verifier, True)] if verifier else []
    seeing, extracting, *verifying = make_judges(roles, servers)
    return References(seeing, extracting, verifier=verifying[0] if verifying else None, **settings)


def captions(
    servers: Servers,
    *,
    captioner: str | None = None,
    checkpoint: Path | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    **settings: Any,
) -> Stage:
    """The stage of `capreward annotate`.

    Args:
        captioner, checkpoint: one of them.
        settings: of `Captions`.
    """
    if not temperature >= 0:
        raise InputError(f"--temperature: got {temperature}, expected a number >= 0")
    roles = [Role("--captioner", captioner, True)] if captioner else []
    judges = make_judges(roles, servers)
    if checkpoint is not None:
        length = {} if servers.max_tokens is None else {"max_tokens": servers.max_tokens}
        describer = CheckpointDescriber(checkpoint, **length)
        judges.append(describer if servers.cache is None else Cached(describer, servers.cache))
    return Captions(judges[0], sampling=Sampling(temperature, seed), **settings)


class GivenCaptions:
    """Captions of items by id, all in memory.

    Args:
        option: for errors.
        path: .jsonl file or folder of them, such as a run of `capreward annotate`. A row has `id`, or `item`, and `captions`,
            a list, or `caption`. Rows of one id add up.

    Raises:
        InputError: no such file, a row that is none.
    """

    def __init__(self, option: str, path: Path) -> None:
        self.captions: dict[str, tuple[str, ...]] = {}
        content = hashlib.blake2b(digest_size=6)
        if (path / "records").is_dir():
            path = path / "records"
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise InputError(f"{option}: got {str(path)!r}, expected a .jsonl file, or a folder of them")
        for file in files:
            with file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        place = f"{option}: {file}, line {number}"
                        self._add(place, parse_line(line, place))
                        content.update(line)
        self.name = f"given captions {content.hexdigest()}"

    def _add(self, place: str, row: Any) -> None:
        row = row if isinstance(row, dict) else {}
        id, texts = row.get("item", row.get("id")), row.get("captions", [row.get("caption")])
        fits = type(id) in (str, int) and isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        if not fits:
            raise InputError(f"{place}: expected an object with id and captions, a list of texts, or caption, a text")
        self.captions[str(id)] = self.captions.get(str(id), ()) + tuple(texts)

    def __call__(self, item: Item) -> tuple[str, ...]:
        return self.captions.get(item.id, ())


class GivenCaption:
    """The one caption of each item; args as of `GivenCaptions`.

    Raises:
        InputError: as of `GivenCaptions`; two captions of one id.
    """

    def __init__(self, option: str, path: Path) -> None:
        self.given = GivenCaptions(option, path)
        self.name = self.given.name
        for id, texts in self.given.captions.items():
            if len(texts) != 1:
                raise InputError(f"{option}: {path}: got {len(texts)} captions of item {id!r}, expected one")

    def __call__(self, item: Item) -> str | None:
        texts = self.given(item)
        return texts[0] if texts else None


def curate(
    make_stage: Callable[[], Stage],
    sources: Sequence[Path],
    out: Path,
    *,
    limit: int | None = None,
    shard_size: int = 256,
    again: bool = False,
    workers: int | None = None,
    worker_gpus: float = 0.0,
) -> None:
    """Puts a source through a stage and prints what came of it.

    Args:
        make_stage: pickled where there are workers.
        workers: processes of Ray; this one alone when left out.

    Raises:
        InputError: what `open_any`, `make_stage` or `pipeline.run` refuse.
        CaprewardError: of a source that has entries, none became an item.
        MissingExtraError: workers without the extra `ray`.
    """
    console = make_console()  # a missing extra should show before anything is asked
    source = _source(sources, limit)
    if workers is None:
        with console.status("loading the models"):
            stage = make_stage()
        summary = run(stage, source, out, shard_size=shard_size, again=again)
    else:
        summary = _on_ray(make_stage, source, out, shard_size, again, workers, worker_gpus)
    print_summary(summary, out, console)
    if not summary.items:
        raise CaprewardError(f"none of {len(source):,} items was made, such as {_first_dead(out)}")


def _on_ray(
    make_stage: Callable[[], Stage],
    source: Source,
    out: Path,
    shard_size: int,
    again: bool,
    workers: int,
    gpus: float,
) -> Summary:
    from capreward.curate.ray import run_on_ray

    remote: dict[str, Any] = {"num_gpus": gpus} if gpus else {}
    try:
        return run_on_ray(make_stage, source, out, shard_size=shard_size, again=again, workers=workers, **remote)
    except CaprewardError as error:  # from a worker it comes with the worker's traceback as its text
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, CaprewardError) else error from None


def price(
    make_stage: Callable[[], Stage], sources: Sequence[Path], *, limit: int | None = None, sample: int = 16
) -> None:
    """Prints what `curate` would cost, from a sample; nothing is written but the judges' cache.

    Raises:
        InputError: what `open_any`, `make_stage` or `pipeline.estimate` refuse.
        CaprewardError: of the sample, none became an item.
    """
    console = make_console()
    source = _source(sources, limit)
    with console.status("trying some items"):
        bill = estimate(make_stage(), source, sample)
    print_bill(bill, console)
    if bill.sampled and sum(bill.dead.values()) == bill.sampled:
        raise CaprewardError(f"none of the {bill.sampled} items tried was made: {reasons(bill.dead)}")


def _source(paths: Sequence[Path], limit: int | None) -> Source:
    source = open_any(paths)
    if limit is not None:
        source = First(source, limit)
    if not len(source):
        raise InputError(f"{', '.join(map(str, paths))}: holds no items")
    return source


def print_bill(bill: Bill, console: Console) -> None:
    """What a run would cost, with its range."""
    table = _table(
        f"{bill.entries:,} {'item' if bill.entries == 1 else 'items'}, {bill.sampled} tried", "expected", "from", "to"
    )
    for name, (low, expected, high) in bill.total.items():
        if expected:
            digits = 2 if name == "money" else 0
            cells = (f"{number:,.{digits}f}" for number in (expected, low, high))
            table.add_row(LABELS.get(name, name.replace("_", " ")), *cells)
    console.print(table)
    hits, requests = (bill.total.get(name, (0.0,) * 3)[1] for name in ("hits", "requests"))
    if hits:
        print(
            f"{hits / requests:.0%} of what the sample asks was known already, from an earlier dry run or run: the bill is too "
            "low for items that were not asked about before; another --cache has none"
        )
    if bill.total.get("calls", (0.0,) * 3)[1] and not bill.total["money"][1]:
        print("no money is counted: --prices says what the tokens of a server cost")
    if bill.dead:
        print(f"failed: {reasons(bill.dead)}")


def print_summary(summary: Summary, out: Path, console: Console) -> None:
    """What lies in a folder: items, dead letters, counts of the stage, judges and what they cost."""
    table = _table("outcome", "items")
    table.add_row("made", f"{summary.items:,}")
    for reason, count in sorted(summary.dead.items()):
        table.add_row(f"dead: {reason}", f"{count:,}")
    console.print(table)
    if summary.counts:
        table = _table("count", "sum")
        for name, count in summary.counts.items():
            table.add_row(name.replace("_", " "), f"{count:,}")
        console.print(table)
    for name, usage in sorted(summary.usage.items()):
        print(f"{name}: {usage.summary()}")
    if len(summary.usage) > 1:
        print(f"together: {total(summary.usage.values()).summary()}")
    if passing := sum(count for reason, count in summary.dead.items() if reason in MAY_PASS):
        print(f"{passing:,} dead letters may pass another time: --again tries them")
    print(f"wrote {', '.join(str(out / name) for name in ('items', 'records', 'dead', 'datasheet.json'))}")


LABELS = {
    "hits": "cached",
    "seconds": "seconds waited, added up",
    "input_tokens": "tokens in",
    "output_tokens": "tokens out",
}
"""Of fields of `Usage`."""


def _first_dead(out: Path) -> str:
    def rows() -> Iterator[Any]:
        for path in sorted((out / "dead").glob("[0-9]*.jsonl")):
            with path.open("rb") as lines:
                yield from (parse_line(line, str(path)) for line in lines)

    row = next(rows(), None)
    return f"{row['place']}: {row['reason']}: {' '.join(row['detail'].split())}" if row else "nothing"


def _table(first: str, *others: str) -> Table:
    try:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
    except ImportError as error:
        raise missing_extra("Printing tables", "report", error) from error
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table
