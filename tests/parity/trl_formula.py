"""TRL's own advantage arithmetic, lifted out of the installed package: TRL keeps it inline in a method of 700 lines.

Only the statements that turn the table of rewards into advantages are run, exactly as TRL ships them. If a new TRL
rewrites them beyond recognition, `trl_advantages` raises LookupError: there is no copy of the formula to fall back on.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from types import CodeType, SimpleNamespace
from typing import Any

import torch
import trl
from trl.trainer import grpo_trainer

AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
"""TRL's names for GRPO and GDPO."""


def trl_advantages(
    rewards_per_func: torch.Tensor, weights: torch.Tensor | None, num_generations: int, aggregation: str
) -> torch.Tensor:
    """Advantages [B] that TRL's GRPOTrainer computes from rewards [B, K] (NaN: no reward), in its float32.

    Rows are groups of `num_generations` in a row; TRL knows no group ids.
    """
    k = rewards_per_func.shape[1]
    trainer = SimpleNamespace(
        multi_objective_aggregation=aggregation,
        reward_weights=torch.ones(k) if weights is None else weights.float(),
        scale_rewards="group",
        reward_funcs=[None] * k,  # only counted
    )
    names: dict[str, Any] = {
        **vars(grpo_trainer),  # torch, nanstd and whatever else the method reads
        "self": trainer,
        "rewards_per_func": rewards_per_func.float(),
        "num_generations": num_generations,
        "device": rewards_per_func.device,
    }
    exec(advantage_block(), names)
    return names["advantages"]


@functools.cache
def advantage_block() -> CodeType:
    """The statements from ``unscorable_mask = ...`` to ``advantages = torch.nan_to_num(...)``, compiled."""
    method = grpo_trainer.GRPOTrainer._generate_and_score_completions
    return compile(
        ast.Module(find_block(inspect.getsource(method)), type_ignores=[]), method.__code__.co_filename, "exec"
    )


def find_block(source: str) -> list[ast.stmt]:
    """Statements of a method, given as source text, between the two assignments that enclose the arithmetic."""
    function = ast.parse(textwrap.dedent(source)).body[0]
    body = function.body if isinstance(function, ast.FunctionDef) else []
    first = [i for i, statement in enumerate(body) if _assigns(statement, "unscorable_mask")]
    last = [i for i, statement in enumerate(body) if _assigns(statement, "advantages", "torch.nan_to_num(")]
    if len(first) != 1 or len(last) != 1 or last[0] <= first[0]:
        raise LookupError(
            f"TRL {trl.__version__}: expected one `unscorable_mask = ...` and after it one "
            f"`advantages = torch.nan_to_num(...)` in GRPOTrainer._generate_and_score_completions, "
            f"found them at statements {first} and {last}; look where TRL computes advantages now"
        )
    return body[first[0] : last[0] + 1]


def _assigns(statement: ast.stmt, name: str, start: str = "") -> bool:
    return (
        isinstance(statement, ast.Assign)
        and [ast.unparse(target) for target in statement.targets] == [name]
        and ast.unparse(statement.value).startswith(start)
    )
