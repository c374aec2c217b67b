"""Public names for type checkers; see __init__.py."""

from capreward.advantage import dr_grpo as dr_grpo, gdpo as gdpo, grpo as grpo
from capreward.components import (
    Condition as Condition,
    Coverage as Coverage,
    Fluency as Fluency,
    LengthMask as LengthMask,
    Lexical as Lexical,
    LikertJudge as LikertJudge,
    LinearLengthPenalty as LinearLengthPenalty,
    Precision as Precision,
    QAUtility as QAUtility,
    RubricJudge as RubricJudge,
)
from capreward.data import read_items as read_items, read_rollouts as read_rollouts
from capreward.judges.base import Judge as Judge, Reply as Reply, Request as Request, Task as Task, Usage as Usage
from capreward.judges.cache import Cached as Cached
from capreward.judges.lite import LiteJudge as LiteJudge
from capreward.judges.local import LocalJudge as LocalJudge
from capreward.judges.openai import OpenAIJudge as OpenAIJudge
from capreward.judges.vllm import VLLMJudge as VLLMJudge
from capreward.judges.wrap import Limited as Limited, Retried as Retried
from capreward.missing import Missing as Missing, Reason as Reason
from capreward.records import (
    Criterion as Criterion,
    Fact as Fact,
    Item as Item,
    Question as Question,
    Rollout as Rollout,
)
from capreward.scoring import Component as Component, Gate as Gate, Score as Score, ScoreTable as ScoreTable
from capreward.suite import RewardSuite as RewardSuite

__version__: str
