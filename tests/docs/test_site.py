"""The documentation site: built strictly, whole, and with nothing that a browser would fetch from another host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from inspect import ismodule
from pathlib import Path

import pytest

import capreward

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*?(?:src|srcset|href)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
)
IMPORTED = re.compile(r"from (capreward[\w.]*) import (\([^)]*\)|[^\n#]*)")
IN_STYLES = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""")


def attribute(module: str, name: str) -> object:
    try:
        return getattr(import_module(module), name)
    except AttributeError:  # a module of the package that nothing has imported yet
        return import_module(f"{module}.{name}")


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site],
        cwd=project,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    made = build(ROOT, folder)
    assert made.returncode == 0, made.stderr
    return folder


def test_nothing_is_fetched_from_another_host(site):
    pages = {path: path.read_text() for path in site.rglob("*.html")}
    assert len(pages) > 50
    assert {str(path): found for path, text in pages.items() if (found := FETCHED.findall(text))} == {}
    styles = {path: path.read_text() for path in site.rglob("*.css")}
    assert {str(path): found for path, text in styles.items() if (found := IN_STYLES.findall(text))} == {}
    # The theme's script fetches its drawing library from another host for a page with a diagram.
    assert [str(path) for path, text in pages.items() if 'class="mermaid"' in text] == []


def test_public_names_and_what_the_pages_import_are_in_the_reference(site):
    pages = "".join(path.read_text() for path in (site / "docs/reference").glob("*.html"))
    named = {("capreward", name) for name in capreward.__all__}
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for module, names in IMPORTED.findall(page.read_text()):
            named |= {(module, name) for name in re.findall(r"\w+", re.sub(r" as \w+", "", names))}
    lacking = []
    for module, name in named:
        thing = attribute(module, name)
        homes = {module, getattr(thing, "__module__", module)}
        if not ismodule(thing) and not any(f'id="{home}.{name}"' in pages for home in homes):
            lacking.append(f"{module}.{name}")
    assert len(named) > len(capreward.__all__)
    assert lacking == []


def test_links_of_the_repository_lead_to_pages(site):
    home = (site / "index.html").read_text()
    for target in (
        "recipes/index.html",
        "tests/parity/index.html",
        "docs/claims.html",
        "notebooks/01_score_captions.html",
    ):
        assert f'href="{target}"' in home
        assert (site / target).exists()
    assert "<table" in (site / "notebooks/01_score_captions.html").read_text()
    assert "weights" in (site / "recipes/shapes.yaml.html").read_text()


def test_examples_are_code_and_sources_are_not_searched(site):
    page = (site / "docs/reference/suite.html").read_text()
    assert '<span class="gp">&gt;&gt;&gt; </span>' in page
    assert "# doctest" not in page.split("<details")[0]
    index = (site / "search/search_index.json").read_text()
    assert "Scores the rollouts; works in a script" in index
    assert "return self._score" not in index
    assert "from __future__" not in index


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[the list](#a-list), [a folder](recipes), [its file](recipes/a.yaml)", None),
        ("[a page](docs/none.md)", "target is not found"),
        ("[a file](recipes/none.yaml)", "target is not found"),
        ("[a folder](none)", "unrecognized relative link 'none'"),
        ("[a heading](#no-list)", "no such anchor"),
        ("words\n- a list", "no empty line above it"),
        ("<!-- docs/unlisted.md -->", 'not included in the "nav"'),
    ],
)
def test_what_stops_the_build(tmp_path, text, complaint):
    shutil.copytree(ROOT / "docs/mkdocs", tmp_path / "docs/mkdocs")
    settings, count = re.subn(r"(?ms)^nav:\n.*?(?=^\S)", "nav: [README.md]\n", (ROOT / "mkdocs.yml").read_text())
    assert count == 1
    (tmp_path / "mkdocs.yml").write_text(re.sub("(?m)^watch:.*", "", settings))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/a.yaml").write_text("a: 1\n")
    (tmp_path / "README.md").write_text(f"# Home\n\n## A list\n\n{text}\n")
    if "unlisted" in text:
        (tmp_path / "docs/unlisted.md").write_text("# Unlisted\n")
    made = build(tmp_path, tmp_path / "site")
    assert (made.returncode == 0) == (complaint is None), made.stderr
    assert complaint is None or complaint in made.stderr
