"""Public names for type checkers; see __init__.py."""

from capreward.advantage import dr_grpo as dr_grpo
from capreward.advantage import gdpo as gdpo
from capreward.advantage import grpo as grpo
from capreward.components import (
    Condition as Condition,
)
from capreward.components import (
    Coverage as Coverage,
)
from capreward.components import (
    Fluency as Fluency,
)
from capreward.components import (
    LengthMask as LengthMask,
)
from capreward.components import (
    Lexical as Lexical,
)
from capreward.components import (
    LinearLengthPenalty as LinearLengthPenalty,
)
from capreward.components import (
    Precision as Precision,
)
from capreward.components import (
    QAUtility as QAUtility,
)
from capreward.components import (
    RubricJudge as RubricJudge,
)
from capreward.data import read_items as read_items
from capreward.data import read_rollouts as read_rollouts
from capreward.judges.base import Judge as Judge
from capreward.judges.base import Reply as Reply
from capreward.judges.base import Request as Request
from capreward.judges.base import Task as Task
from capreward.judges.base import Usage as Usage
from capreward.judges.lite import LiteJudge as LiteJudge
from capreward.missing import Missing as Missing
from capreward.missing import Reason as Reason
from capreward.records import (
    Criterion as Criterion,
)
from capreward.records import (
    Fact as Fact,
)
from capreward.records import (
    Item as Item,
)
from capreward.records import (
    Question as Question,
)
from capreward.records import (
    Rollout as Rollout,
)
from capreward.scoring import Component as Component
from capreward.scoring import Gate as Gate
from capreward.scoring import Score as Score
from capreward.scoring import ScoreTable as ScoreTable
from capreward.suite import RewardSuite as RewardSuite

__version__: str
