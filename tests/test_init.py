from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import capreward

NAMES = [
    "Cached",
    "Component",
    "Condition",
    "Coverage",
    "Criterion",
    "Fact",
    "Fluency",
    "Gate",
    "Item",
    "Judge",
    "LengthMask",
    "Lexical",
    "LikertJudge",
    "Limited",
    "LinearLengthPenalty",
    "LiteJudge",
    "LocalJudge",
    "Missing",
    "OpenAIJudge",
    "Precision",
    "QAUtility",
    "Question",
    "Reason",
    "Reply",
    "Request",
    "Retried",
    "RewardSuite",
    "Rollout",
    "RubricJudge",
    "Score",
    "ScoreTable",
    "Task",
    "Usage",
    "VLLMJudge",
    "dr_grpo",
    "gdpo",
    "grpo",
    "read_items",
    "read_rollouts",
]


def test_public_names_are_pinned() -> None:
    assert capreward.__all__ == NAMES


def test_stub_lists_the_same_names_from_the_same_modules() -> None:
    stub = ast.parse(Path(capreward.__file__).with_suffix(".pyi").read_text())
    imported = {
        alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == {name: module for module, names in capreward._HOME.items() for name in names}
    assert sorted(imported) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_importable_and_documented(name: str) -> None:
    thing = getattr(capreward, name)
    assert thing.__name__ == name
    assert thing.__doc__
    assert name in dir(capreward)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'capreward' has no attribute 'Judgement'"):
        capreward.Judgement  # noqa: B018


def in_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    loaded = in_process("import capreward, sys; print(*sys.modules)").split()
    heavy = {
        "torch", "transformers", "sentence_transformers", "pandas", "matplotlib", "rich", "datasets", "evaluate",
        "pyarrow", "PIL", "tqdm",
    }  # fmt: skip
    assert "capreward" in loaded
    assert heavy & set(loaded) == set()


def test_core_needs_only_numpy_and_pydantic(tmp_path: Path) -> None:
    """Reads a file, scores it with a component and a gate, and takes advantages, with everything else blocked."""
    (tmp_path / "captions.jsonl").write_text('{"id": "cup", "references": ["A cup."], "rollouts": ["A cup.", "A"]}\n')
    code = f"""
import sys

allowed = {{"numpy", "capreward", *sys.stdlib_module_names}}
allowed |= {{"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}}


class Block:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package not in allowed and not package.startswith("_sysconfigdata"):  # the standard library's, by platform
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)


sys.meta_path.insert(0, Block())
import importlib
import pkgutil

import capreward

all_torch = {{f"capreward.train.{{name}}" for name in ("checkpoint", "loop", "loss", "policy", "rollout")}}
for module in pkgutil.walk_packages(capreward.__path__, "capreward."):
    if module.name not in {{"capreward.prefix", "capreward.adapters.verl_plugin", *all_torch}}:  # all torch
        importlib.import_module(module.name)
names = [getattr(capreward, name) for name in capreward.__all__]


class Half:
    name = "half"

    async def score(self, rollouts):
        return [capreward.Score(0.5) for _ in rollouts]


suite = capreward.RewardSuite({{"half": Half()}}, gates=[capreward.LengthMask("half", low=0.8)])
table = suite.score(capreward.read_rollouts({str(tmp_path / "captions.jsonl")!r}))
print(len(names), table.values.tolist(), table.advantages("dr_grpo").tolist())
"""
    assert in_process(code) == f"{len(NAMES)} [[0.5], [0.0]] [0.25, -0.25]\n"
