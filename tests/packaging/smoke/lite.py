"""The lite judge: every task that it has, on captions of the photographs."""

from capreward import Coverage, Fluency, LiteJudge, Precision, RewardSuite
from capreward.presets import everything
from capreward.samples import photos

judge = LiteJudge()
table = everything(judge).score(photos()[:6])
assert "rubric" in table.names
assert ((table.values >= 0) & (table.values <= 1)).all()
assert len(set(table.advantages("gdpo").tolist())) > 3

again = RewardSuite({"coverage": Coverage(judge), "fluency": Fluency(judge), "precision": Precision(judge)})
dense, short, *_ = again.score(photos()[:6]).values
assert dense[0] > short[0]
