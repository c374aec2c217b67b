"""What the wheel and the source distribution hold, and how an index would show them."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from conftest import Distributions
from environments import LIMIT, ROOT

pytestmark = pytest.mark.package

CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def metadata(built: Distributions) -> str:
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return wheel.read(name).decode()


def test_wheel_holds_the_package_its_data_and_nothing_else(built: Distributions) -> None:
    source = ROOT / "src/capreward"
    ours = {
        f"capreward/{path.relative_to(source).as_posix()}"
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    ours |= {f"capreward/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == ours
    data = {
        "py.typed",
        "__init__.pyi",
        "evaluate/metrics/b_capscore/b_capscore.py",
        "prompts/rate.txt",
        "recipes/shapes.yaml",
        "samples/README.md",
        "samples/iiw.jsonl",
        "samples/photos.jsonl",
        "samples/photos/coffee.jpg",
    }
    assert {f"capreward/{name}" for name in data} <= names
    assert {Path(name).suffix for name in names} == {".jpg", ".jsonl", ".md", ".py", ".pyi", ".txt", ".typed", ".yaml"}


def test_source_distribution_is_the_repository(built: Distributions) -> None:
    done = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git repository")
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    tracked = {name for name in done.stdout.splitlines() if (ROOT / name).exists()}
    assert tracked <= names
    assert not [name for name in names if re.search(r"__pycache__|^\.venv|\.egg-info|^dist/|^site/", name)]


def test_source_distribution_builds_the_same_wheel_without_git(built: Distributions) -> None:
    assert built.wheel.name == built.from_sdist.name
    one, other = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (built.wheel, built.from_sdist))
    assert one == other


def test_source_distribution_passes_its_tests_of_what_lies_outside_the_package(unpacked: Path) -> None:
    own = {"PYTHONPATH": str(unpacked / "src"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    reading = ("test_readme.py", "test_layers.py", "test_recipe.py", "benchmarks", "components/test_lexical.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in reading)]
    done = subprocess.run(command, cwd=unpacked, env=own, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def test_twine_finds_nothing(built: Distributions) -> None:
    printed = built.tools.succeed("python", "-m", "twine", "check", "--strict", built.wheel, built.sdist)
    assert printed.count("PASSED") == 2


def test_licences_are_named_and_shipped(built: Distributions) -> None:
    message = HeaderParser().parsestr(metadata(built))
    of_samples = (ROOT / "src/capreward/samples/README.md").read_text(encoding="utf-8")
    named = set(message["License-Expression"].split(" AND "))
    said = {licence.replace(" ", "-") for licence in re.findall(r"CC BY [\d.]+", of_samples)}
    assert named == {"Apache-2.0", "CC0-1.0", *said}
    assert "| CC0 |" in of_samples
    with zipfile.ZipFile(built.wheel) as wheel:
        shipped = [name.partition("/licenses/")[2] for name in wheel.namelist() if "/licenses/" in name]
    assert sorted(shipped) == sorted(message.get_all("License-File")) == ["LICENSE", "src/capreward/samples/README.md"]


def test_readme_on_an_index_leads_nowhere_that_is_not_there(built: Distributions) -> None:
    """Rendered as an index renders it; it knows no relative path."""
    code = (
        "import email.parser, sys, readme_renderer.markdown as m;"
        "print(m.render(email.parser.HeaderParser().parsestr(sys.argv[1]).get_payload()))"
    )
    html = built.tools.succeed("python", "-c", code, metadata(built))
    assert re.search(r"<h1[^>]*>capreward<", html)
    assert "<table>" in html
    assert [url for url in re.findall(r'(?:href|src)="([^"]*)"', html) if not url.startswith(("https://", "#"))] == []


def test_readme_on_an_index_keeps_every_word_and_all_code(built: Distributions) -> None:
    described = HeaderParser().parsestr(metadata(built)).get_payload()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert CODE.findall(described) == CODE.findall(readme) != []

    def words(text: str) -> list[str]:
        text = re.sub(r"!\[.*?\]\(.*?\)", "", CODE.sub("", text))
        return re.findall(r"\w+", re.sub(r"\]\(.*?\)", "]", text))

    kept, all_words = words(described), words(readme)
    assert kept[: len(all_words)] == all_words
