"""The core alone: a file, a component, gates, advantages, a ledger; numpy and pydantic are all it has."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import capreward
from capreward import LengthMask, Missing, RewardSuite, Rollout, Score, dr_grpo, gdpo, grpo, read_rollouts
from capreward.ledger import Ledger, LedgerWriter
from capreward.recipe import find
from capreward.samples import PHOTOS, iiw, injections, photos
from capreward.testing import check_component

assert not any(find_spec(name) for name in ("torch", "rich", "pandas", "yaml", "tqdm", "PIL"))
assert "site-packages" in capreward.__file__

for name in capreward.__all__:
    assert getattr(capreward, name).__name__ == name

values = np.array([[1.0, 0.2], [0.0, 0.4], [1.0, np.nan], [1.0, 0.9]])
advantages = gdpo(values, groups=["a", "a", "b", "b"], weights=[1.0, 0.5])
assert advantages.shape == (4,)
assert advantages[0] > 0 > advantages[1]
assert advantages[2] == advantages[3] == 0  # b's first column does not vary, and its second has one score
assert dr_grpo([[1.0], [0.0]], groups=[0, 0]).tolist() == [0.5, -0.5]
assert np.allclose(grpo([[1.0], [0.0]], groups=[0, 0]), [1 / 2**0.5, -1 / 2**0.5], atol=1e-3)


class White:
    name = "white"

    async def score(self, rollouts: Sequence[Rollout]) -> list[Score | Missing]:
        return [Score(float("white" in rollout.caption)) for rollout in rollouts]


Path("captions.jsonl").write_text(
    '{"id": "cup", "references": ["A white cup."], "rollouts": ["A white cup.", "Cup."]}\n'
)
suite = RewardSuite({"white": White()}, gates=[LengthMask("white", low=0.8)], ledger=LedgerWriter("ledger"))
table = suite.score(read_rollouts("captions.jsonl"))
assert table.values.tolist() == [[1.0], [0.0]]
check_component(White(), read_rollouts("captions.jsonl"))
assert len(list(Ledger("ledger").records())) == 2

assert (len(photos()), len(iiw()), len(injections())) == (54, 200, 50)
assert all(isinstance(rollout.item.image, Path) and rollout.item.image.is_file() for rollout in photos())
assert (PHOTOS.parent / "README.md").is_file()
assert find("shapes").is_file()
