"""The pages on concepts, components and judges say what the code does: output, prompts, defaults, tasks, reasons."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import capreward
from capreward import Cached, Gate, Limited, LiteJudge, OpenAIJudge, Reason, Retried, Task, components
from capreward.judges.encode import PROMPTS
from capreward.judges.wrap import RETRIED
from capreward.missing import Missing
from capreward.shapes import ShapesJudge

ROOT = Path(__file__).parents[2]
PAGES = ("concepts", "components", "judges")
PUBLIC = {
    name: value for name, value in vars(components).items() if inspect.isclass(value) and name in capreward.__all__
}
WRAPPERS = {"Cached": Cached, "Retried": Retried, "Limited": Limited}
ASKED = {Task.CHOOSE, Task.SUPPORT, Task.EXTRACT, Task.VERIFY, Task.RATE, Task.LIKERT}
"""What components ask."""
NUMBER = re.compile(r"-?\d+\.\d*")


def read(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def sections(page: str, level: str = "##") -> dict[str, str]:
    """Text by heading."""
    parts = re.split(rf"^{level} (.+)$", read(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str, *head: str) -> list[list[str]]:
    """Cells of the table whose head begins with these."""
    _, found, table = text.partition("\n| " + " | ".join(head) + " |")
    assert found, f"no table with the head {head}"
    lines = table.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def shown(value: Any) -> str:
    """A default as the pages write it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(str, value))})"
    return value.__name__ if callable(value) else repr(value)


def options(of: Callable[..., Any]) -> dict[str, str]:
    """Every parameter of a class and its default, as the pages write them."""
    result = {}
    for name, parameter in inspect.signature(of).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            result[f"**{name}"] = "none"
        else:
            result[name] = "required" if parameter.default is parameter.empty else shown(parameter.default)
    return result


@pytest.mark.parametrize("page", PAGES)
def test_what_is_printed_is_what_the_page_shows(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    found = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", read(page), re.DOTALL)
    assert len(found) >= 3
    for code, expected in found:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        lines = [line.rstrip() for line in printed.getvalue().splitlines()]
        # embeddings round differently from machine to machine
        assert [NUMBER.sub("#", line) for line in lines] == [NUMBER.sub("#", line) for line in expected.splitlines()]
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in ("\n".join(lines), expected)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.021)


def test_every_component_and_gate_has_a_section_that_says_the_same_things() -> None:
    page = sections("components")
    assert set(page) == {*PUBLIC, "Presets"}
    for name, component in PUBLIC.items():
        wanted = ["Paper", "Item", "Cost"] if isinstance(component, Gate) or "target" in options(component) else None
        for field in wanted or ["Paper", "Item", "Judge", "Cost"]:
            assert f"\n- **{field}.** " in page[name], f"{name}: no {field}"
        assert "```python\n" in page[name], f"{name}: no example"
    listed = {cell[0] for cell in rows(read("components"), "component", "asks")}
    gates = {name for name in PUBLIC if "target" in options(PUBLIC[name])}
    assert {re.sub(r"\W*(\w+).*", r"\1", cell) for cell in listed} == set(PUBLIC) - gates


@pytest.mark.parametrize(
    ("text", "of"),
    [(sections("components")[name], PUBLIC[name]) for name in PUBLIC]
    + [(sections("judges", "###")[name], WRAPPERS[name]) for name in WRAPPERS],
    ids=[*PUBLIC, *WRAPPERS],
)
def test_stated_defaults_are_those_of_the_code(text: str, of: Callable[..., Any]) -> None:
    stated = {name.strip("`"): default.strip("`") for name, default, *_ in rows(text, "option", "default")}
    assert stated == options(of)


def test_quoted_prompts_are_the_prompts() -> None:
    text = read("components")
    quoted = [block for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "\n---\n" in block]
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "src/capreward/prompts").glob("*.txt")}
    assert sorted(quoted) == sorted(files[task] for task in ASKED)
    linked = set(re.findall(r"\(\.\./src/capreward/prompts/(\w+)\.txt\)", text))
    assert linked == {*ASKED, *PROMPTS.values()}


def test_tasks_are_those_that_judges_have() -> None:
    text = read("judges")
    assert [row[0].strip("`") for row in rows(text, "task", "asked by")] == list(Task)
    stated = {row[0].strip("`"): row[2] for row in rows(text, "judge", "command line")}

    def tasks(judge: str, *, sees: bool) -> set[str]:
        words = {str(task) for task in Task} & set(re.findall(r"\w+", stated[judge]))
        blind = {str(task) for task in Task} & set(re.findall(r"\w+", stated[judge].partition("; with")[0]))
        return words if sees else blind

    for judge in ("OpenAIJudge(model)", "VLLMJudge(model)"):
        for sees in (False, True):
            assert tasks(judge, sees=sees) == OpenAIJudge("m", images=sees).tasks
    assert tasks("LocalJudge(model)", sees=True) == set(PROMPTS)
    assert tasks("LocalJudge(model)", sees=False) == set(PROMPTS) - {Task.VERIFY}
    assert tasks("LiteJudge()", sees=False) == LiteJudge.tasks
    assert tasks("shapes.ShapesJudge()", sees=False) == ShapesJudge.tasks


def test_judges_that_do_a_component_are_those_that_are_stated(lite: LiteJudge) -> None:
    for name, _, _, *cells, _ in rows(read("components"), "component", "asks"):
        component = PUBLIC[re.sub(r"\W*(\w+).*", r"\1", name)]
        if component is components.Lexical:
            continue
        assert [cell == "no" for cell in cells] == [component is components.LikertJudge, False, False]
        if component is components.LikertJudge:
            with pytest.raises(ValueError, match="cannot likert"):
                component(lite)
        else:
            component(lite)


def test_every_reason_is_explained_and_those_that_are_asked_again_are_named() -> None:
    table = rows(read("concepts"), "`Reason`", "what causes it", "asked again by `Retried`")
    assert [row[0].strip("`") for row in table] == list(Reason)
    assert {row[0].strip("`") for row in table if row[2] == "yes"} == set(RETRIED)
    assert Missing(Reason.NOT_ASKED).reason in Reason  # it is the table's alone, and no judge's


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for path, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", read(page)):
        target = (ROOT / "docs" / path).resolve() if path else ROOT / "docs" / f"{page}.md"
        assert target.exists(), f"{path}: no such file"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{path}#{anchor}: no such heading"


@pytest.mark.parametrize("page", PAGES)
def test_figures_stand_in_the_pages_own_blocks_or_on_those_that_are_linked_for_them(page: str) -> None:
    blocks = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    own = "".join(blocks.findall(read(page)))
    prose = re.sub(r"^\|.*$", "", blocks.sub("", read(page)), flags=re.MULTILINE)
    found = 0
    for paragraph in re.split(r"\n\n|\n(?=- |\d\. )", prose):
        text = re.sub(r"`[^`]*`|arXiv [\d.]+|\]\([^)]*\)", "", paragraph)
        figures = re.findall(r"(?<![\w.])\d+\.\d+|\d+(?= %)", text)
        links = re.findall(r"\]\(([\w./-]+\.md)", paragraph)
        measured = own + "".join((ROOT / "docs" / link).read_text(encoding="utf-8") for link in links)
        for figure in figures:
            found += 1
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", measured), f"{figure}: in none of {links}: {text}"
    assert found >= {"concepts": 2, "components": 30, "judges": 8}[page]
