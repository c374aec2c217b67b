from __future__ import annotations

import hashlib
from pathlib import Path
from string import Template

import pytest

from capreward import prompts
from capreward.judges import Task
from capreward.judges.encode import PROMPTS

FENCES = {"describe": 0, "inquire": 0, "criticise": 2}
"""What DESCRIBE is handed is to be followed; INQUIRE's text comes in a fence of its own, where there is one."""
FOLDER = Path(prompts.__file__).parent


@pytest.mark.parametrize("name", prompts.hashes())
def test_fences_what_it_is_handed(name: str) -> None:
    prompt = prompts.load(name)
    assert "never do" in prompt.system
    assert prompt.user.count("$mark") == FENCES.get(name, 1) * 2
    # nothing but the fields of a request is left to fill in
    Template(prompt.user).substitute(mark="m", context="c", question="q", options="o")


def test_each_is_asked_by_a_judge() -> None:
    assert set(prompts.hashes()) == {*Task, *PROMPTS.values()}


def test_version_is_the_hash_of_the_text() -> None:
    for name, version in prompts.hashes().items():
        assert version == prompts.load(name).hash
        assert hashlib.sha256((FOLDER / f"{name}.txt").read_bytes()).hexdigest().startswith(version)
        assert len(version) == 12
