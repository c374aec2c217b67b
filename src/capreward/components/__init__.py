"""The components and gates that come with capreward."""

from capreward.components.claims import Coverage, Precision
from capreward.components.fluency import Fluency
from capreward.components.gates import Condition, LengthMask, LinearLengthPenalty, tokens
from capreward.components.lexical import Lexical
from capreward.components.likert import LikertJudge
from capreward.components.qa import QAUtility
from capreward.components.rubric import RubricJudge

__all__ = [
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
    "tokens",
]
