from __future__ import annotations

from string import Template

import pytest

from capreward import prompts
from capreward.judges import Task

FENCES = {Task.DESCRIBE: 0, Task.INQUIRE: 0, Task.CRITICISE: 2}
"""What DESCRIBE is handed is to be followed; INQUIRE's text comes in a fence of its own, where there is one."""


@pytest.mark.parametrize("task", Task)
def test_every_task_has_a_prompt_that_fences_what_it_is_handed(task: Task) -> None:
    prompt = prompts.load(task)
    assert prompt.system
    assert "never do" in prompt.system
    assert prompt.user.count("$mark") == FENCES.get(task, 1) * 2
    # nothing but the fields of a request is left to fill in
    Template(prompt.user).substitute(mark="m", context="c", question="q", options="o")


def test_version_is_the_hash_of_the_text() -> None:
    assert len({prompts.load(task).hash for task in Task}) == len(Task)
    assert prompts.load("choose") is prompts.load("choose")
