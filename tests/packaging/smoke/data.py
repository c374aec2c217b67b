"""Items from parquet and from a Hugging Face dataset with pictures; a ledger's rows."""

import io

import pyarrow
import pyarrow.parquet
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from capreward import RewardSuite, Rollout, Score, read_items
from capreward.ablation import Ablation
from capreward.curate.sources import open_source
from capreward.ledger import Ledger, LedgerWriter

rows = [{"id": f"item-{n}", "references": [f"Cup number {n}."]} for n in range(5)]
pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "items.parquet")
assert [item.id for item in read_items("items.parquet")] == [row["id"] for row in rows]
assert len(open_source("items.parquet")) == 5

file = io.BytesIO()
Pictures.new("RGB", (4, 4), "red").save(file, "PNG")
features = Features({"id": Value("string"), "image": Image()})
dataset = Dataset.from_list([{"id": "red", "image": {"bytes": file.getvalue(), "path": None}}], features=features)
(item,) = read_items(dataset)
assert Pictures.open(io.BytesIO(item.image)).getpixel((0, 0)) == (255, 0, 0)


class Half:
    name = "half"

    async def score(self, rollouts):
        return [Score(len(rollout.caption) % 3 / 3) for rollout in rollouts]


suite = RewardSuite({"half": Half()}, ledger=LedgerWriter("ledger"))
suite.score([Rollout(item=item, caption=caption) for caption in ("a", "ab", "abc")])
ledger = Ledger("ledger")
assert len(ledger.rows()) == 3
ledger.to_parquet("ledger.parquet")
assert len(ledger.to_dataset("ledger.parquet")) == 3
Ablation(ledger, resamples=2)
