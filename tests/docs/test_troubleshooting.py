"""docs/troubleshooting.md quotes messages that the code has, and that come when they are provoked."""

from __future__ import annotations

import ast
import asyncio
import logging
import re
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from fakes import FakeComponent, FakeJudge, rollouts

from capreward import (
    Cached,
    Component,
    Condition,
    Coverage,
    Fluency,
    Item,
    LengthMask,
    Limited,
    LiteJudge,
    Missing,
    OpenAIJudge,
    Precision,
    QAUtility,
    Question,
    Reason,
    RewardSuite,
    RubricJudge,
    Score,
    ScoreTable,
    advantage,
    errors,
    read_items,
    read_rollouts,
)
from capreward.ablation import Ablation, Variant
from capreward.adapters.client import Client
from capreward.adapters.server import check_address, make_app
from capreward.adapters.trl import reward_funcs
from capreward.adapters.verl import score_function, suite_in, verl_overrides
from capreward.cli import main
from capreward.curate.questions import Questions
from capreward.curate.references import References
from capreward.curate.rubrics import Rubrics
from capreward.evaluate import evaluate_captions
from capreward.judges.base import Request, Task
from capreward.judges.named import make_judge
from capreward.ledger import Ledger, LedgerWriter
from capreward.probe import Probe
from capreward.recipe import make_items, make_policy
from capreward.scoring import concatenated
from capreward.train import checkpoint
from capreward.train.config import TrainConfig, parse_setting

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
VARIABLE = "\0"
"""Stands for what differs in a message of the code."""


def quoted() -> list[str]:
    """The messages on the page: first cells of the tables whose header begins with "message"."""
    found = []
    for table in re.findall(r"^\| message \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        for row in table.splitlines():
            cell = row.split(" | ")[0].removeprefix("| ")
            assert re.fullmatch(r"`[^`]+`", cell), row
            found.append(cell.strip("`"))
    return found


def details() -> list[str]:
    """The details of missing scores that the page quotes: second cells of the table of reasons."""
    [table] = re.findall(r"^\| reason \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [row.split(" | ")[1].strip("`") for row in table.splitlines()]


QUOTED, DETAILS = quoted(), details()


@cache
def templates() -> tuple[str, ...]:
    """Every text in the code, with VARIABLE where something is put in."""
    found = set()
    for path in (ROOT / "src" / "capreward").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else VARIABLE for part in node.values]
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.sub(r"%(\.\d+)?[sdgr]|\{\}", VARIABLE, node.value))
    return tuple(found)


def holds(text: str, message: str) -> bool:
    """Whether a text has the fixed parts of a quoted message, in their order."""
    place = 0
    for part in message.split("..."):
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


class TestQuotes:
    @pytest.mark.parametrize("message", [*QUOTED, *DETAILS])
    def test_the_code_has_it(self, message: str) -> None:
        """All fixed parts of a message stand in one text of the code, in their order."""
        if message in OF_SEVERAL_TEXTS:
            parts = [part.strip(" :;,") for part in message.split("...") if re.search(r"\w", part)]
            assert all(any(part in template for template in templates()) for part in parts), message
        else:
            assert any(holds(template, message) for template in templates()), message

    def test_are_many_and_each_once_in_its_section(self) -> None:
        assert len(QUOTED) > 130
        for section in PAGE.split("\n## "):
            told = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
            assert len(set(told)) == len(told), section.partition("\n")[0]

    def test_a_quote_that_the_code_lacks_is_found(self) -> None:
        assert not any(holds(text, "rollouts: got none, expected at least two") for text in templates())

    def test_every_row_has_three_cells(self) -> None:
        for table in re.findall(r"^\| message \|.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
            for row in table.splitlines():
                assert row.count("|") == 4, row


OF_SEVERAL_TEXTS = {
    "component ...: ...: ...",
    "LocalJudge: ...",
    "...: got ...; there is no such setting; expected one of ...",
}
"""Messages whose words the code puts together from several texts, or that are nearly all variable."""


class TestCoverage:
    def test_every_error_class(self) -> None:
        classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
        [table] = re.findall(r"^\| error \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
        told = {row.split("`")[1]: row.split("`")[3] for row in table.splitlines()}
        assert set(told) == classes
        for name, builtin in told.items():
            bases = getattr(errors, name).__bases__
            assert bases[-1].__name__ == builtin
            assert len(bases) == 1 or bases[0] is errors.CaprewardError

    def test_every_reason(self) -> None:
        [table] = re.findall(r"^\| reason \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
        assert [row.split("`")[1] for row in table.splitlines()] == [str(reason) for reason in Reason]

    def test_every_extra(self) -> None:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        [table] = re.findall(r"^\| to \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
        told = {extra for row in table.splitlines() for extra in re.findall(r"`(\w+)`", row.split("|")[2])}
        assert told <= set(extras)
        named = {
            node.args[1].value
            for path in (ROOT / "src" / "capreward").rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "missing_extra"
            and isinstance(node.args[1], ast.Constant)
        }
        assert named <= told


BARE = Item(id="bare")
CUP = Item(
    id="cup", references=["A white cup."], questions=[{"text": "Colour?", "options": ["red", "white"], "answer": 1}]
)


def file(folder: Path, *lines: str, name: str = "captions.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def suite(**options: Any) -> RewardSuite:
    return RewardSuite({"a": FakeComponent(0.5)}, **options)


def scored(verdict: Any, **options: Any) -> ScoreTable:
    return RewardSuite({"a": FakeComponent(verdict)}, **options).score(rollouts("A cup."))


class ShortComponent(FakeComponent):
    async def score(self, rollouts: Any) -> list[Any]:
        return []


class ShortJudge(FakeJudge):
    async def ask(self, requests: Any) -> list[Any]:
        return []


class ScoresWithin(FakeComponent):
    async def score(self, rollouts: Any) -> list[Any]:
        return list(suite().score(rollouts).scores[0])


class OwnGate:
    """A gate of a user's own, which cannot be replayed."""

    target: str = "a"
    reads: tuple[str, ...] = ()

    def __init__(self, *, answers: bool = True) -> None:
        self.answers = answers

    def factors(self, rollouts: Any, values: Any) -> list[Any]:
        return [Score(1.0)] * len(rollouts) * self.answers


class SeeingJudge(FakeJudge):
    images = True

    def __init__(self, name: str = "seeing") -> None:
        super().__init__((0.5,))
        self.images, self.name = True, name


def ledger(folder: Path) -> Ablation:
    suite(ledger=LedgerWriter(folder / "ledger")).score(rollouts("A cup.", "A dog.", item=CUP))
    return Ablation(Ledger(folder / "ledger"))


def broken_ledger(folder: Path) -> Ablation:
    ledger(folder)
    file(folder / "ledger", "[{", name="suites.jsonl")
    return Ablation(Ledger(folder / "ledger"))


def checkpoint_in(folder: Path) -> Path:
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    return folder


def settings(**given: Any) -> TrainConfig:
    return TrainConfig(**{"model": "m", "data": "d", "out": "o", **given})


def verl_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "verl", sys.modules[__name__])
    monkeypatch.delitem(sys.modules, "capreward.adapters.verl_plugin", raising=False)
    return asyncio.run(score_function(suite)(solution_str="A cup.", extra_info={"id": "cup"}))


def without_pandas(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "pandas", None)
    return scored(0.5).to_pandas()


DOWN = Missing(Reason.SERVER, "HTTP 500: down")
Provoke = Callable[[Path], Any]
INPUT: dict[str, Provoke] = {
    # reading data
    "...: no such file": lambda tmp: read_items(tmp / "none.jsonl"),
    "...: got a ... file, expected .jsonl or .parquet": lambda tmp: read_items(file(tmp, "id", name="a.csv")),
    "...: a folder without ... files": lambda tmp: read_items(tmp),
    "...: not JSON (...); expected one object a line": lambda tmp: read_items(file(tmp, "[{")),
    "...: not a parquet file (...)": lambda tmp: read_items(file(tmp, "PAR", name="a.parquet")),
    "...: got ..., expected an object with named fields": lambda tmp: read_items(file(tmp, "[1]")),
    "...: unknown field; expected one of ...": lambda tmp: read_items(file(tmp, '{"id": "a", "refernces": []}')),
    "...: required, but not given": lambda tmp: read_items(file(tmp, '{"references": []}')),
    "...: no column ...; there are ...": lambda tmp: read_items(file(tmp, '{"key": "a"}'), columns={"id": "name"}),
    "...: got ..., expected 'rollouts', 'caption' or 'item' among the fields": lambda tmp: read_rollouts(
        file(tmp, '{"id": "a"}')
    ),
    "...: item: got ..., expected the id of an item given or the fields of one": lambda tmp: read_rollouts(
        file(tmp, '{"item": "b", "caption": "A cup."}')
    ),
    "...: item id ... is taken by ...; ids have to be unique": lambda tmp: read_items(
        file(tmp, '{"id": "a"}', '{"id": "a", "references": ["A cup."]}')
    ),
    "...: rollout id ... is taken by ...; ids have to be unique": lambda _: read_rollouts(
        [{"item": {"id": "a"}, "id": "r", "caption": text} for text in ("A cup.", "A dog.")]
    ),
    "...: item ...: image: got ..., expected the path of a file that exists": lambda tmp: read_items(
        file(tmp, '{"id": "a", "image": "none.png"}')
    ),
    "expected a path, encoded bytes or a data URL": lambda tmp: read_items(file(tmp, '{"id": "a", "image": 3}')),
    "answer: got ..., expected an index from 0 to ...": lambda _: Question(text="Which?", options=("a", "b"), answer=2),
    "expected options that all differ": lambda _: Question(text="Which?", options=("a", "a"), answer=0),
    # making a suite
    "components: got ..., expected at least one by its name: {name: component}": lambda _: RewardSuite({}),
    "component ...: got ..., expected an object with a name and an async method score(rollouts)": lambda _: RewardSuite(
        {"a": cast(Any, FakeComponent)}
    ),
    "weights: got component ..., expected one of ...": lambda _: suite(weights={"b": 1}),
    "weights[...]: got ..., expected a finite number >= 0": lambda _: suite(weights={"a": -1}),
    "weights: all are zero, so every advantage would be 0; give a component a weight": lambda _: suite(
        weights={"a": 0}
    ),
    "gates: got ..., expected a gate: LengthMask, LinearLengthPenalty, Condition or your own": lambda _: suite(
        gates=[LengthMask]
    ),
    "...: got component ..., expected one of ...": lambda _: suite(gates=[LengthMask("b")]),
    "...: got judge ..., expected a judge, such as LiteJudge()": lambda _: Fluency(cast(Any, "lite")),
    "...: judge ... cannot ..., only ...; give it a judge that can": lambda _: Coverage(FakeJudge(tasks=[Task.RATE])),
    "Precision: judge ... sees no image; use against='facts' or against='references'": lambda _: Precision(
        FakeJudge(), against="image"
    ),
    "LengthMask(...): got low=..., high=..., expected 0 <= low < high": lambda _: LengthMask("a", low=2, high=1),
    "Condition(..., on=...): got at_least=..., expected a number in (0, 1]": lambda _: Condition("a", "b", at_least=0),
    "max_missing: got ..., expected a share in [0, 1]": lambda _: suite(max_missing=20),
    "judge: got ..., expected one of ...": lambda _: make_judge("qwen2.5-vl-7b"),
    "judge ...: got ..., which this kind of judge does not have": lambda _: make_judge("lite", base_url="http://a/v1"),
    # scoring
    "rollouts: got none, expected at least one": lambda _: suite().score([]),
    "rollouts: got a single Rollout, expected a list of them": lambda _: suite().score(
        cast(Any, rollouts("A cup.")[0])
    ),
    "rollouts: got ..., expected capreward.Rollout objects (or read_rollouts for rows)": lambda _: suite().score(
        cast(Any, ["A cup."])
    ),
    "rollouts: two different items have the id ...; item ids have to be unique": lambda _: suite().score(
        [*rollouts("A cup.", item=CUP), *rollouts("A cup.", item=Item(id="cup"))]
    ),
    "rollouts[...]: id ... is taken by rollouts[...]; rollout ids have to be unique": lambda _: suite().score(
        rollouts("A cup.", "A dog.", id="r")
    ),
    "estimator: got ..., expected one of ...": lambda _: scored(0.5).advantages("ppo"),
    "tables: a rollout id occurs twice; give the rollouts ids of their own, or groups": lambda _: concatenated(
        [scored(0.5), scored(0.5)]
    ),
    # judging
    "Cached: cannot use ...: ...; expected a path to a file of its own, in a folder to write to": lambda tmp: Cached(
        FakeJudge(), tmp
    ),
    "OpenAIJudge: the API key holds characters that no HTTP header can; is it a key?": lambda _: OpenAIJudge(
        "m", base_url="http://127.0.0.1:1/v1", api_key="sk\u2014key"
    ),
    "Limited: got concurrency=..., expected a number >= 1": lambda _: Limited(FakeJudge(), concurrency=0),
    # training
    "...: got ...; there is no such setting; expected one of ...": lambda _: settings(batch_size=8),
    "...: has to be given": lambda _: TrainConfig(model="m", data="d"),
    "got setting ..., expected NAME=VALUE, such as steps=100": lambda _: parse_setting("steps"),
    "...: got ..., expected settings by name, such as 'steps: 500'": lambda tmp: TrainConfig.from_yaml(
        file(tmp, "- steps", name="a.yaml")
    ),
    "data: ... holds ... items, expected more than the ... held out": lambda tmp: make_items(
        settings(data=str(file(tmp, '{"id": "a"}')), held_out=2)
    ),
    "model: ... cannot be loaded as a vision-language model: ...": lambda tmp: make_policy(settings(model=str(tmp))),
    "...: ... is neither a path nor in ..., and HF_HUB_OFFLINE is set; give ..., or unset HF_HUB_OFFLINE to fetch it from ...": (
        lambda _: make_policy(settings(model="nobody/no-such-model"))
    ),
    "...: got ... ..., expected ..., or a name on the Hugging Face hub": lambda _: make_policy(
        settings(model="./no/such/folder")
    ),
    # checkpoints, resuming, ledgers
    "out: ... holds the checkpoint ...; resume (--resume), or choose another folder": lambda tmp: checkpoint.to_resume(
        checkpoint_in(tmp), resume=False
    ),
    "...: cannot be read as a checkpoint (...); remove it to resume from an older one": lambda tmp: checkpoint.load(
        file(tmp, "none", name="state.pt").parent
    ),
    "...: no ledger; expected a folder with rollouts.jsonl, as LedgerWriter makes it": lambda tmp: Ledger(tmp),
    "...: no record of a ledger (...)": broken_ledger,
    "...: has no method ..., so it cannot be replayed without captions; use LengthMask, LinearLengthPenalty, Condition, or "
    "give it one": lambda tmp: ledger(tmp).advantages(Variant(gates=[OwnGate()])),
    "...: counts lengths by ..., but the ledger holds those counted by ...": lambda tmp: ledger(tmp).advantages(
        Variant(gates=[LengthMask("a", count=len)])
    ),
    # TRL and verl
    "reward_funcs: got trainer='rloo' with exact=False, expected exact=True: RLOOTrainer adds up raw rewards, and reads a "
    "missing one as 0": lambda _: reward_funcs(suite(), trainer="rloo"),
    "estimator: got ..., expected one of ... with exact=True: TRL subtracts the group's mean, which has to be 0": (
        lambda _: reward_funcs(suite(), exact=True, estimator="rvpo")
    ),
    "score_function: got a suite with a ledger, expected one without: verl hands over a rollout a call, so that the ledger "
    "would know neither steps nor groups": lambda tmp: asyncio.run(
        score_function(lambda: suite(ledger=LedgerWriter(tmp)))(solution_str="A cup.", extra_info={"id": "cup"})
    ),
    "component ...: verl has that name already; expected none of ...": lambda _: verl_overrides(
        RewardSuite({"score": FakeComponent(0.5)}), path="reward.py"
    ),
    "...: no score function ...; expected ...": lambda tmp: suite_in(file(tmp, "x = 1", name="reward.py")),
    # serving
    "host: got ..., which others can reach, without a token; expected a loopback address such as 127.0.0.1, or set the "
    "environment variable CAPREWARD_TOKEN to a secret": lambda _: check_address("0.0.0.0", 8900, None),
    "url: expected an address such as http://127.0.0.1:8900, and the token as ... or in CAPREWARD_TOKEN": lambda _: (
        Client("http://user:secret@127.0.0.1:8900")
    ),
    # curation
    "...: judge ... sees no image; give it a judge that does": lambda _: References(FakeJudge(), FakeJudge()),
    "Questions: judge ... cannot be ...: it compares options with a text, and without one all tie; give a language model, "
    "such as openai:MODEL or local:MODEL": lambda _: Questions(SeeingJudge(), SeeingJudge(), SeeingJudge("lite-3")),
    "Rubrics: got teachers ..., expected different ones: one agrees with itself": lambda _: Rubrics(
        [SeeingJudge(), SeeingJudge()], FakeJudge(), FakeJudge(), student=SeeingJudge()
    ),
    "Rubrics: got agree=... with ... teachers, expected 1 up to their number": lambda _: Rubrics(
        [SeeingJudge()], FakeJudge(), FakeJudge(), student=SeeingJudge()
    ),
    # evaluating
    "metrics: got ..., expected some of ...": lambda _: evaluate_captions(
        {"a": rollouts("A cup.")}, FakeJudge(), metrics=["cider"]
    ),
    "metrics: got arena with one captioner, ...; expected two at least, named by a key of the captions' metadata or in files "
    "of their own": lambda _: evaluate_captions({"a": rollouts("A cup.")}, FakeJudge(), metrics=["arena"]),
}
COMPONENT: dict[str, Provoke] = {
    "component ...: ...: ...": lambda _: scored(ZeroDivisionError("division by zero")),
    "..., item ...: got score ..., expected a number in [0, 1], or Missing": lambda _: scored(1.5),
    "..., item ...: got ..., expected a capreward.Score or capreward.Missing": lambda _: scored(None),
    "got ... scores for ... rollouts, expected one for each, in their order": lambda _: RewardSuite(
        {"a": ShortComponent(0.5)}
    ).score(rollouts("A cup.")),
    "...: got ... factors for ... rollouts, expected one for each": lambda _: scored(
        0.5, gates=[OwnGate(answers=False)]
    ),
    "judge ...: got ... replies to ... requests, expected one for each": lambda _: RewardSuite(
        {"fluency": Fluency(ShortJudge())}
    ).score(rollouts("A cup.")),
}
OTHERS: list[tuple[str, type[Exception], Provoke]] = [
    (
        "a blocking call such as score() was made inside a component, a judge or a stage, and would wait for itself; "
        "await a coroutine there, such as ascore()",
        errors.InputError,
        lambda _: RewardSuite({"a": ScoresWithin(0.5)}).score(rollouts("A cup.")),
    ),
    ("values[..., ...]: got ..., expected ...", ValueError, lambda _: advantage.gdpo([[float("inf")]], ["a"])),
    (
        "groups: got shape ..., expected (...,): one id for each rollout",
        ValueError,
        lambda _: advantage.gdpo([[0.5]], ["a", "b"]),
    ),
    (
        "component ...: missing for ... of ... rollouts (...)",
        errors.TooManyMissingError,
        lambda _: scored(DOWN, max_missing=0.2),
    ),
    (
        "..., more than max_missing=... allows; repair the cause, drop the component, or raise max_missing",
        errors.TooManyMissingError,
        lambda _: scored(DOWN, max_missing=0.2),
    ),
    (
        "no honest caption has a score, such as ...",
        errors.TooManyMissingError,
        lambda _: Probe(RewardSuite({"a": FakeComponent(DOWN)}), rollouts("A cup.", item=CUP)).run(progress=False),
    ),
    (
        "...: no answer in ... attempts; the last: ...",
        errors.ServerError,
        lambda _: Client("http://127.0.0.1:1", attempts=1).score(rollouts("A cup.")),
    ),
]
PROVOKED = [
    *((message, errors.InputError, provoke) for message, provoke in INPUT.items()),
    *((message, errors.ComponentError, provoke) for message, provoke in COMPONENT.items()),
    *OTHERS,
]


class TestProvoked:
    @pytest.mark.parametrize(("message", "kind", "provoke"), PROVOKED, ids=[message for message, _, _ in PROVOKED])
    def test_is_what_the_page_quotes(
        self, message: str, kind: type[Exception], provoke: Provoke, tmp_path: Path
    ) -> None:
        assert message in QUOTED
        with pytest.raises(kind) as raised:
            provoke(tmp_path)
        assert type(raised.value) is kind
        assert holds(str(raised.value), message), str(raised.value)

    @pytest.mark.parametrize(
        ("message", "kind", "provoke"),
        [
            (
                "... needs ..., which is not installed; run: pip install 'capreward[...]'",
                errors.MissingExtraError,
                without_pandas,
            ),
            (
                "verl's own GDPO takes no missing scores: got a verl without ..., expected its name in the environment "
                "variable VERL_USE_EXTERNAL_MODULES; start verl with the settings that ... prints",
                errors.InputError,
                verl_without_the_plugin,
            ),
        ],
    )
    def test_of_what_is_installed(
        self, message: str, kind: type[Exception], provoke: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert message in QUOTED
        with pytest.raises(kind) as raised:
            provoke(monkeypatch)
        assert holds(str(raised.value), message), str(raised.value)

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("score FILE --out FILE", "--out: got ..., but ... is a file; expected a folder"),
            ("score FILE --weight fluency", "...: got ..., expected NAME=NUMBER, such as fluency=0.5"),
            ("score EMPTY", "...: holds no rollouts"),
            ("ablate ledger --length-mask fluency --out a.html", "--length-mask: got ..., expected ..."),
            ("evaluate EMPTY --out out", "...: holds no captions"),
            ("evaluate FILE --by captioner --out out", "...: a caption of item ... has no metadata ..., only ..."),
            (
                "evaluate FILE FILE --out out",
                "...: two files of this name; rename one, or name the captioners with --by",
            ),
            ("probe FILE --attacks nothing --out out", "attacks: got ..., expected some of ..."),
            (
                "curate references FILE --describer lite --extractor lite --base-url u --out out",
                "...: got ..., but no model is on a server (openai:MODEL)",
            ),
        ],
    )
    def test_on_the_command_line(
        self, command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        assert message in QUOTED
        monkeypatch.chdir(tmp_path)
        ledger(tmp_path)
        file(tmp_path, '{"id": "a", "caption": "A cup."}', name="FILE.jsonl")
        file(tmp_path, name="EMPTY.jsonl")
        assert main(re.sub(r"FILE|EMPTY", r"\g<0>.jsonl", command).split()) == 2
        said = capsys.readouterr().err
        assert re.search(r"^capreward: error: ", said, re.MULTILINE)
        assert holds(said, message), said

    def test_of_the_lite_judge(self, lite: LiteJudge) -> None:
        message = "LiteJudge cannot ..., only ..."
        assert message in QUOTED
        with pytest.raises(errors.InputError) as raised:
            asyncio.run(lite.ask([Request(Task.DESCRIBE, "")]))
        assert holds(str(raised.value), message)

    def test_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        message = "...; advantages rest on the other components there"
        assert message in QUOTED
        with caplog.at_level(logging.INFO, "capreward"):
            scored(DOWN)
        assert holds(caplog.text, message)

    def test_answers_of_the_server(self) -> None:
        from fastapi.testclient import TestClient

        client = TestClient(make_app(suite(), token="secret", max_body=300, max_rollouts=1))
        row: dict[str, Any] = {"item": {"id": "a"}, "caption": "A cup."}

        def sent(*rows: dict[str, Any], **more: Any) -> Any:
            return client.post("/score", json={"rollouts": rows, **more}, headers={"Authorization": "Bearer secret"})

        answers = {
            "wrong or no token; send it as 'Authorization: Bearer TOKEN'": (401, client.post("/score", json={})),
            "body: larger than the limit of ... bytes; send fewer rollouts a request": (413, sent(*[row] * 9)),
            "...: got ..., expected at most ... in a request": (422, sent(row, row)),
            "item: got id ..., expected the id of an item that the server or the request holds": (
                422,
                sent({**row, "item": "b"}),
            ),
            "expected the image itself as a data URL (data:image/png;base64,...): the server opens no file that a client "
            "names": (422, sent({**row, "item": {"id": "a", "image": "cup.png"}})),
            "estimator: got ..., expected 'gdpo' with group_size": (422, sent(row, estimator="grpo", group_size=2)),
        }
        for message, (status, answer) in answers.items():
            assert message in QUOTED
            assert answer.status_code == status, answer.text
            assert holds(answer.text, message), answer.text


class TestMissing:
    """The details that the page gives of a reason are what components, gates and judges say."""

    @pytest.mark.parametrize(
        ("reason", "component", "item"),
        [
            (Reason.NO_IMAGE, Precision(SeeingJudge()), BARE),
            (Reason.NO_REFERENCE, Precision(FakeJudge(), against="references"), BARE),
            (Reason.NO_FACTS, Precision(FakeJudge()), BARE),
            (Reason.NO_QUESTIONS, QAUtility(FakeJudge()), BARE),
            (Reason.NO_RUBRIC, RubricJudge(FakeJudge()), BARE),
            (Reason.NAN, FakeComponent(float("nan")), BARE),
            (Reason.UNPARSEABLE, QAUtility(FakeJudge((0.5, 0.1))), CUP),
        ],
    )
    def test_of_components(self, reason: Reason, component: Component, item: Item) -> None:
        table = RewardSuite({"a": component}).score(rollouts("A cup.", item=item))
        told(reason, table.missing[0, 0])

    def test_of_gates(self) -> None:
        depends = RewardSuite(
            {"a": FakeComponent(0.5), "b": FakeComponent(DOWN)}, gates=[Condition("a", on="b", at_least=0.5)]
        )
        table = depends.score(rollouts("A cup.", item=CUP))
        told(Reason.DEPENDS, table.missing[0, 0])
        spared = suite(gates=[LengthMask("a")]).score(rollouts("A white cup and " * 9, item=CUP))
        told(Reason.NOT_ASKED, spared.scores[0][0])


def told(reason: Reason, got: Score | Missing) -> None:
    assert isinstance(got, Missing)
    assert got.reason is reason
    assert holds(got.detail, DETAILS[list(Reason).index(reason)]), got


def test_every_provoked_message_is_another() -> None:
    assert len({message for message, _, _ in PROVOKED}) == len(PROVOKED) > 60
