"""A metric script of `evaluate`, by a path and with no network: ROUGE-L, and one of our own."""

import sys

import evaluate

from capreward import Item, Lexical, RewardSuite, Rollout
from capreward.evaluate.metrics import metric_script

item = Item(id="cup", references=("a white cup stands here", "one cup"))
rollouts = [Rollout(item=item, caption=caption) for caption in ("one cup", "no dogs")]
table = RewardSuite({"rouge": Lexical(f"{sys.argv[1]}/tests/metrics/rouge_l/rouge_l.py", "rougeL")}).score(rollouts)
assert table.values.tolist() == [[1.0], [0.0]], table.missing

statistics = evaluate.load(metric_script("caption_statistics"))
assert statistics.compute(predictions=["A cup. A cup."])
