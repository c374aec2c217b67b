"""Multi-objective rewards for training image captioners with reinforcement learning.

Importing this package loads numpy and pydantic and nothing heavier; every name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives; __init__.pyi says the same to type checkers, and a test holds the two together.
_HOME = {
    "capreward.advantage": ("dr_grpo", "gdpo", "grpo"),
    "capreward.components": (
        "Condition",
        "Coverage",
        "Fluency",
        "LengthMask",
        "Lexical",
        "LikertJudge",
        "LinearLengthPenalty",
        "Precision",
        "QAUtility",
        "RubricJudge",
    ),
    "capreward.data": ("read_items", "read_rollouts"),
    "capreward.judges.base": ("Judge", "Reply", "Request", "Task", "Usage"),
    "capreward.judges.cache": ("Cached",),
    "capreward.judges.lite": ("LiteJudge",),
    "capreward.judges.local": ("LocalJudge",),
    "capreward.judges.openai": ("OpenAIJudge",),
    "capreward.judges.vllm": ("VLLMJudge",),
    "capreward.judges.wrap": ("Limited", "Retried"),
    "capreward.missing": ("Missing", "Reason"),
    "capreward.records": ("Criterion", "Fact", "Item", "Question", "Rollout"),
    "capreward.scoring": ("Component", "Gate", "Score", "ScoreTable"),
    "capreward.suite": ("RewardSuite",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'capreward' has no attribute {name!r}")
    value = getattr(import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
