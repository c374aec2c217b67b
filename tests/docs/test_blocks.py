"""Every code block of the README, of the guides and of the benchmarks' pages, in the order of its page.

The blocks of a page share one folder (`workshop.prepare`) and one Python namespace (`workshop.names`). What is replaced in their
text stands in `workshop.REPLACED`, what the commands do that cannot run here in `commands.COMMANDS`.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs.commands import COMMANDS
from docs.pages import LANGUAGES, NOT_GUIDES, ROOT, Block, blocks, pages
from judges.chat_server import serving

from capreward import Item, read_rollouts
from capreward.evaluate.labels import read_labels
from docs import model_server, warm, workshop

DONE: dict[str, dict[int, str]] = {}
"""How each block was dealt with, by page and line: executed, parsed, shown, or what was checked in the place of commands."""
LIMIT = 900
"""Seconds for a bash block, and for the imports of the process that runs its commands."""
VARIABLES = re.compile(r"^(?:export )?(?:[A-Z_]+=\S+(?: |$))+", re.MULTILINE)
USED: set[int] = set()
"""Numbers of the replacements that were made."""


@pytest.fixture(scope="module")
def socket_of_commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("warm") / "socket"
    paths = {"PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen([sys.executable, "-m", "docs.warm", path], env={**os.environ, **paths}) as process:
        try:
            deadline = time.monotonic() + LIMIT
            while not path.exists():
                assert process.poll() is None, f"docs.warm ended with status {process.returncode} before it served"
                assert time.monotonic() < deadline, f"docs.warm does not serve after {LIMIT} s"
                time.sleep(0.1)
            yield str(path)
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Of the model server, which runs, and of the reward server, which a page may start."""
    with serving(model_server.answer) as chat:
        port = str(workshop.free_port())
        yield {"CHAT": chat.url.split("/")[2], "SERVED": f"127.0.0.1:{port}", "SERVED_PORT": port}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, addresses: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    workshop.prepare(folder, addresses)
    warm.install(folder / ".venv/bin", list(COMMANDS))
    return folder


@pytest.fixture
def page(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    socket_of_commands: str,
    addresses: dict[str, str],
    prepared: Path,
) -> Iterator[Page]:
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    monkeypatch.setenv("CHECKED", str(folder / ".checked"))
    monkeypatch.setenv("SKIPPED", str(folder / ".skipped"))
    monkeypatch.chdir(folder)
    with workshop.stand_ins(monkeypatch), asyncio.Runner() as runner:
        yield Page(request.param, folder, addresses, runner, socket_of_commands)


class Page:
    """A page whose blocks are executed."""

    def __init__(self, path: str, folder: Path, addresses: dict[str, str], runner: asyncio.Runner, socket: str) -> None:
        self.path, self.folder, self.addresses, self.runner, self.socket = path, folder, addresses, runner, socket
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.variables: list[str] = []
        """Lines of earlier bash blocks that set some: the terminal is the same."""
        if path != "README.md":
            self.names |= workshop.names()

    def run(self, block: Block) -> str:
        """How it was dealt with.

        Raises:
            AssertionError: what went wrong in it.
        """
        text = workshop.replaced(self.path, block.text, self.addresses, USED)
        checked = Path(os.environ["CHECKED"])
        checked.unlink(missing_ok=True)
        how = self.deal_with(block, text)
        return "checked: " + "; ".join(sorted(set(checked.read_text().splitlines()))) if checked.exists() else how

    def deal_with(self, block: Block, text: str) -> str:
        match block.language:
            case "python":
                return self.python(block, text)
            case "bash":
                return self.bash(text)
            case "json":
                return self.json(text)
            case "yaml":
                yaml.safe_load(text)
                return "parsed"
            case "toml":
                tomllib.loads(text)
                return "parsed"
            case "text" | "":
                return "shown"
        raise AssertionError(f"got a block of {block.language!r}, expected one of {', '.join(LANGUAGES)}")

    def python(self, block: Block, text: str) -> str:
        code = compile("\n" * (block.line - 1) + text, self.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        try:
            result = eval(code, self.names)
            if inspect.iscoroutine(result):
                self.runner.run(result)
        except Exception:  # noqa: BLE001  a block may raise anything
            raise AssertionError(traceback.format_exc()) from None
        return "executed"

    def bash(self, text: str) -> str:
        environment = {**workshop.environment(self.folder), "WARM_SOCKET": self.socket}
        script = "\n".join((*self.variables, text))
        self.variables += VARIABLES.findall(text)
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        if ended.returncode:
            raise AssertionError(f"exit status {ended.returncode}\n{ended.stdout[-1000:]}\n{ended.stderr[-2000:]}")
        return "executed"

    def json(self, text: str) -> str:
        try:
            rows = [json.loads(text)]
        except ValueError:
            rows = [json.loads(line) for line in text.splitlines()]
        if self.path in READERS:
            READERS[self.path](rows)
            return "executed"
        return "parsed"


def _read_rollouts(rows: list[Any]) -> None:
    for row in rows:  # each shows another way to say the same
        Path("coffee.jpg").write_bytes(workshop.items()[0].image)
        Path("row.jsonl").write_text(json.dumps(row))
        known = [Item(id=row["item"])] if isinstance(row.get("item"), str) else ()
        assert read_rollouts("row.jsonl", items=known)


def _read_labels(rows: list[Any]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_labels("rows.jsonl").rollouts) > 1


READERS = {"docs/data.md": _read_rollouts, "docs/agreement.md": _read_labels}
"""Pages whose JSON shows a format, and what reads it."""


@pytest.mark.parametrize("page", pages(), indirect=True)
def test_blocks(page: Page) -> None:
    done = DONE.setdefault(page.path, {})
    faults = []
    for block in blocks(page.path):
        try:
            started = time.perf_counter()
            done[block.line] = page.run(block)
            print(f"{block.place}: {done[block.line]} ({time.perf_counter() - started:.1f} s)")
        except (AssertionError, ValueError, SyntaxError, subprocess.TimeoutExpired, yaml.YAMLError) as fault:
            faults.append(f"{block.place}: {fault}")
    if faults:
        pytest.fail("\n\n".join(faults), pytrace=False)
    workshop.call(page.path, page.names)
    skipped = Path(os.environ["SKIPPED"])
    if skipped.exists():
        pytest.skip(skipped.read_text())


def test_no_page_is_left_out() -> None:
    folders = ("src", "docs", "benchmarks", "notebooks", "recipes", "tests")
    found = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))]
    assert {str(path.relative_to(ROOT)) for path in found} == {*pages(), *NOT_GUIDES}


def test_every_block_was_dealt_with(request: pytest.FixtureRequest) -> None:
    """Counts the fences anew, without the parser; says how many blocks of each page were executed as they stand."""
    collected = {
        item.callspec.params["page"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_blocks
    }
    if collected < set(pages()):
        pytest.skip(f"only {len(collected)} pages of {len(pages())} were asked for")
    for path in pages():
        fences = re.findall(r"^ *```", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
        done = DONE[path]
        assert len(done) == len(fences) / 2, f"{path}: dealt with the blocks at lines {sorted(done)}"
        if done:
            print(
                f"{path}: {len(done)} blocks, {sum(how == 'executed' for how in done.values())} executed as they stand"
            )
    all_done = [how for done in DONE.values() for how in done.values()]
    assert all(how in ("executed", "parsed", "shown") or how.startswith("checked: ") for how in all_done)
    unused = [replacement for number, replacement in enumerate(workshop.REPLACED) if number not in USED]
    assert not unused, "replacements that nothing needs any more"
    assert {name for name in COMMANDS if name in "\n".join(all_done)} >= set(COMMANDS) - {"capreward"}
