"""Shared by the tests that run inside the environment that holds verl: `make test-verl`. Elsewhere they are not collected."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("verl") is None or find_spec("transfer_queue") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",  # else it keeps a token in the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "VERL_USE_EXTERNAL_MODULES": "capreward.adapters.verl_plugin",  # what the runtime_env of our settings does to a run
    }

SUITE = '''
"""What a user writes: a suite, and the function that verl calls."""

from capreward import LengthMask, Missing, RewardSuite, Score
from capreward.adapters.verl import score_function
from capreward.missing import Reason


class Colours:
    name = "colours"

    async def score(self, rollouts):
        if any("crash" in rollout.caption for rollout in rollouts):
            raise ConnectionError("the judge is gone")
        return [
            Missing(Reason.TIMEOUT, "slept") if "asleep" in r.caption else Score(min(1, r.caption.count("white") / 2))
            for r in rollouts
        ]


class Short:
    name = "short"

    async def score(self, rollouts):
        return [Score(1 / len(r.caption.split())) for r in rollouts]


def make_suite():
    return RewardSuite(
        {"colours": Colours(), "short": Short()},
        weights={"short": 0.5},
        gates=[LengthMask("short", low=0.5, high=2.0)],
    )


compute_score = score_function(make_suite)
'''


@pytest.fixture(scope="session")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user's files") / "caption_reward.py"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of whole words, assembled in code."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        word: number for number, word in enumerate("<pad> <eos> <unk> a white cup on table asleep crash".split())
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder
