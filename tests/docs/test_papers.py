"""The papers' pages say what the recipes, the presets, the code and the results of benchmarks/ablation hold."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import string
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs.pages import blocks

from capreward import components, gdpo, grpo
from capreward.curate.questions import Questions
from capreward.curate.references import References
from capreward.curate.rubrics import Rubrics
from capreward.judges.fake import FunctionJudge
from capreward.presets import PRESETS
from capreward.scoring import Gate
from capreward.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks" / "ablation"))
ablation_page = importlib.import_module("page")

RESULTS = json.loads((ROOT / "benchmarks" / "ablation" / "results" / "cpu.json").read_text(encoding="utf-8"))
PAPERS = {"balcaprl": "BalCapRL", "caprl": "CapRL", "rubicap": "RubiCap", "gdpo": "GDPO"}
SUITES = [name for name in PAPERS if name in PRESETS]
PLUMBING = {"data", "out", "judge.base_url", "judge.concurrency", "judge.cache", "save_every"}
"""Settings that are the user's machine's, which no table needs to hold."""
SETTINGS = {setting for setting in TrainConfig.model_fields if setting not in {*PLUMBING, "judge", "seed"}} | {
    "judge.name"
}
"""What every table of settings has to hold."""
CALLABLE: dict[str, Any] = {
    **{name: getattr(components, name) for name in components.__all__},
    **{each.__name__: each for each in (Questions, References, Rubrics, gdpo, grpo)},
}

Rows = list[list[str]]


def text_of(paper: str) -> str:
    return (ROOT / "docs" / "papers" / f"{paper}.md").read_text(encoding="utf-8")


def table_after(heading: str, text: str) -> Rows:
    """The first table under a heading: its cells, the line of dashes left out."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(r"(?:^\|.+\|\n)+", section, re.MULTILINE)
    assert found, heading
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in found[0].splitlines()]
    return [row for row in rows if not set("".join(row)) <= {"-"}]


def parts(paper: str) -> list[tuple[str, str]]:
    """Part and what it is in capreward, as the page has it."""
    header, *rows = table_after("Part by part", text_of(paper))
    assert header == ["part", "paper", "capreward", "the same?"]
    assert all(len(row) == 4 and all(row) for row in rows), rows
    return [(row[0], row[2]) for row in rows]


def in_backticks(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def config_of(recipe: Path) -> dict[str, Any]:
    """The settings in force, those of the judge by their dotted names."""
    config = TrainConfig.from_yaml(recipe).model_dump(mode="json")
    return {**config, **{f"judge.{name}": value for name, value in config["judge"].items()}}


class TestSettings:
    @pytest.mark.parametrize("paper", SUITES)
    def test_are_those_of_the_recipes(self, paper: str) -> None:
        title = next(
            t for t in ("Settings of the recipes", "Settings of the recipe") if f"\n## {t}\n" in text_of(paper)
        )
        header, *rows = table_after(title, text_of(paper))
        linked = [re.fullmatch(r"\[.+\]\(../../recipes/(.+)\)", cell) for cell in header[1:-1]]
        recipes = [ROOT / "recipes" / found[1] for found in linked if found]
        assert sorted(recipes) == sorted((ROOT / "recipes").glob(f"{paper}-*.yaml"))
        for place, recipe in enumerate(recipes, start=1):
            config = config_of(recipe)
            told = {row[0].strip("`"): yaml.safe_load(row[place].strip("`")) for row in rows}
            assert told == {name: config[name] for name in told}, recipe.name
            assert set(told) >= SETTINGS
            own = yaml.safe_load(recipe.read_text(encoding="utf-8"))
            dotted = {*(own.keys() - {"judge"}), *(f"judge.{name}" for name in own["judge"])}
            assert dotted - PLUMBING <= set(told), recipe.name

    @pytest.mark.parametrize("paper", SUITES)
    def test_every_one_says_whose_it_is(self, paper: str) -> None:
        rows = re.findall(r"^\| `[^`]+` \|.*\| ([^|]+) \|$", text_of(paper), re.MULTILINE)
        assert len(rows) >= len(SETTINGS)
        assert all(re.match(r"the paper's|ours|one reward", whose) for whose in rows), rows


class TestParts:
    @pytest.mark.parametrize("paper", SUITES)
    def test_components_weights_and_gates_are_the_presets(self, paper: str) -> None:
        suite = PRESETS[paper](FunctionJudge(images=True))
        told = dict(parts(paper))
        assert tuple(in_backticks(told["components"])) == suite.names
        if "weights" in told:
            assert [float(weight) for weight in told["weights"].split(",")] == suite.weights.tolist()
        else:
            assert suite.weights.tolist() == [1.0]
        gates = [eval(gate, dict(CALLABLE)) for gate in in_backticks(told["gate"])]
        assert [described(gate) for gate in gates] == [described(gate) for gate in suite.gates]
        assert bool(gates) == (told["gate"] != "none")

    @pytest.mark.parametrize("paper", SUITES)
    def test_judge_and_estimator_are_the_recipes(self, paper: str) -> None:
        for recipe in (ROOT / "recipes").glob(f"{paper}-*.yaml"):
            config = config_of(recipe)
            told = dict(parts(paper))
            assert in_backticks(told["judge"]) == [config["judge.name"]]
            assert told["estimator"].startswith(f"`{config['estimator']}(")

    @pytest.mark.parametrize("paper", PAPERS)
    def test_arguments_are_the_defaults(self, paper: str) -> None:
        """What a call in the column `capreward` names is what the code does when it is not told otherwise."""
        checked = 0
        for part, cell in parts(paper):
            for code in in_backticks(cell):
                if (call := called(code)) is None or part == "baselines":
                    continue
                defaults = inspect.signature(CALLABLE[call.func.id]).parameters  # type: ignore[attr-defined]
                for keyword in call.keywords:
                    assert keyword.arg in defaults, code
                    assert defaults[keyword.arg].default == ast.literal_eval(keyword.value), code
                    checked += 1
        assert checked >= 2

    @pytest.mark.parametrize("paper", SUITES)
    def test_prompts_exist(self, paper: str) -> None:
        told = [code for code in in_backticks(dict(parts(paper))["prompts"]) if code.endswith(".txt")]
        assert len(told) >= 3
        assert all((ROOT / "src" / "capreward" / "prompts" / name).is_file() for name in told)


class TestCommands:
    @pytest.mark.parametrize("paper", SUITES)
    def test_a_server_has_one_model(self, paper: str) -> None:
        """As vLLM's have; the recipe's judge is one of the models."""
        models: dict[str, set[str]] = {}
        for words in commands(paper):
            if words[1] == "train":
                config = config_of(ROOT / words[2])
                named = [f"{config['judge.name']}@{config['judge.base_url']}"]
            else:
                named = [word for word in words if word.startswith("openai:")]
            for name in named:
                model, _, url = name.partition("@")
                models.setdefault(url or after("--base-url", words), set()).add(model)
        assert len(models) >= 3
        assert [each for each in models.values() if len(each) > 1] == []

    @pytest.mark.parametrize("paper", SUITES)
    def test_evaluation_is_of_images_that_were_not_trained_on(self, paper: str) -> None:
        images: dict[str, set[str]] = {}
        """Folders of images that went into what a command wrote, by the first folder of its path."""
        seen: dict[str, set[str]] = {}
        for words in commands(paper):
            sources = [word.split("/")[0] for word in words if re.fullmatch(r"[\w-]+/(records|items)?", word)]
            sources += [word[len("data=") :].split("/")[0] for word in words if word.startswith("data=")]
            out = after("--out", words).split("/")[0]
            roots = {root for source in sources if source != out for root in images.get(source, {source})}
            images[out] = seen[words[1]] = roots
        assert seen["train"] == {"photos"}
        assert seen["evaluate"] == {"held_out"}


class TestClaims:
    @pytest.mark.parametrize("paper", PAPERS)
    def test_verdicts_are_those_of_the_runs(self, paper: str) -> None:
        told = re.findall(r"<!-- claims -->\n(.*)\n<!-- /claims -->", text_of(paper), re.DOTALL)
        assert told == [claims_table(paper)]

    @pytest.mark.parametrize("paper", PAPERS)
    def test_counts(self, paper: str) -> None:
        found = Counter(row["verdict"] for row in RESULTS["claims"] if row["source"] == PAPERS[paper])
        section = text_of(paper).partition("\n## What the paper claims")[2].partition("<!--")[0]
        [(number, of, what)] = re.findall(r"(\d+)\s+of\s+(?:the\s+)?(\d+)\s+are\s+(shown|not\s+shown)", section)
        assert (int(number), int(of)) == (found[" ".join(what.split())], found.total())
        assert found["opposite"] == int((re.findall(r"(\d+)\s+are\s+opposite", section) or [0])[0])

    @pytest.mark.parametrize("paper", PAPERS)
    def test_says_what_was_not_run(self, paper: str) -> None:
        plain = " ".join(text_of(paper).replace("**", "").split())
        assert (
            "Nothing on this page has been run at the paper's size" in plain or "has been trained with it here" in plain
        )


def test_every_paper_of_the_results_has_a_page() -> None:
    assert {row["source"] for row in RESULTS["claims"]} - {"control"} == set(PAPERS.values())
    assert {path.stem for path in (ROOT / "docs" / "papers").glob("*.md")} == set(PAPERS)


def claims_table(paper: str) -> str:
    """The page's table of claims: that of docs/claims.md without the papers' names."""
    rows = [row for row in RESULTS["claims"] if row["source"] == PAPERS[paper]]
    return "\n".join(f"| {line.partition(' | ')[2]}" for line in ablation_page.claims_table(rows).splitlines())


def commands(paper: str) -> list[list[str]]:
    """The words of every command of a page's bash blocks, the variables of its block in them."""
    found = []
    for block in blocks(f"docs/papers/{paper}.md"):
        if block.language == "bash":
            lines = [shlex.split(line) for line in block.text.replace("\\\n", " ").splitlines()]
            variables = dict(word.split("=", 1) for word in lines[0])
            found += [[string.Template(word).substitute(variables) for word in words] for words in lines[1:]]
    return found


def after(option: str, words: list[str]) -> str:
    return words[words.index(option) + 1]


def called(code: str) -> ast.Call | None:
    """The call that a piece of code is, if it is one of a part of ours."""
    try:
        tree = ast.parse(code, mode="eval").body
    except SyntaxError:
        return None
    return tree if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in CALLABLE else None


def described(gate: Gate) -> dict[str, Any]:
    return {"kind": type(gate), **vars(gate)}
