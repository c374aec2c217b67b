"""Tables, frames and figures of a score table; agreement and the arena."""

import numpy as np

from capreward import Item, RewardSuite, Rollout, Score, report
from capreward.evaluate.agreement import Axis, agreement
from capreward.evaluate.arena import Battle, Outcome, bradley_terry


class Length:
    name = "length"

    async def score(self, rollouts):
        return [Score(min(1.0, len(rollout.caption) / 20)) for rollout in rollouts]


rollouts = [
    Rollout(item=Item(id="cup"), caption=caption, metadata={"by": caption[0]}) for caption in ("A cup.", "The cup.")
]
table = RewardSuite({"length": Length()}).score(rollouts)
report.print_scores(table)
report.print_means(table, rollouts, "by")
report.figure(table).savefig("scores.png")
assert table.to_pandas()["value.length"].tolist() == [0.3, 0.4]
labels = Axis("axis", "rating", np.arange(4), None, np.array([1.0, 2.0, 3.0, 5.0]))
found = agreement(labels, np.array([0.1, 0.2, 0.3, 0.4]), np.ones(4), np.arange(4), resamples=3)
assert found.score["tau_b"].value == 1
battles = [Battle(f"{n}", "a", "b", Outcome.SECOND if n else Outcome.FIRST) for n in range(4)]
assert bradley_terry(battles, draws=0)
