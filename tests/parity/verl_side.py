"""verl's half of the comparison, run by the Python of the environment that holds verl: verl_side.py CASES.npz RESULTS.npz

CASES.npz holds, for each case NAME: ``NAME/rewards`` [B, K], ``NAME/groups`` [B] and, if wanted, ``NAME/weights`` [K]
and ``NAME/lengths`` [B], tokens in each response (1 each when left out), and ``NAME/repeats``, how often to time the call.
``NAME/function`` names another function than verl's GDPO: "verl grpo", of the first column; "swift gdpo" and "swift grpo",
ms-swift's, of groups of one size in a row, which give [B, 1].
RESULTS.npz holds ``NAME/advantages`` [B, T], 0 after a response's end, and ``NAME/seconds``, the fastest call; besides
``versions``, a JSON object. One process serves all cases, since importing verl takes seconds.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from verl.trainer.ppo.core_algos import compute_gdpo_outcome_advantage, compute_grpo_outcome_advantage

PROMPT_LENGTH = 1


def advantages(
    rewards: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    repeats: int = 1,
) -> tuple[np.ndarray, float]:
    """What verl's trainer would hand its GDPO estimator, and what that returns; [B, T] and the fastest call's seconds."""
    b, k = rewards.shape
    lengths = torch.ones(b, dtype=torch.int64) if lengths is None else torch.from_numpy(lengths)
    t = int(lengths.max())
    response_mask = (torch.arange(t)[None, :] < lengths[:, None]).long()
    names = [f"reward_{i}" for i in range(k)]
    arguments = {
        "token_level_rewards": torch.zeros(b, t),  # read for its device only, once the components are there
        "response_mask": response_mask,
        "index": groups,
        "config": {"gdpo_reward_keys": names, "gdpo_reward_weights": None if weights is None else weights.tolist()},
        "non_tensor_batch": dict(zip(names, rewards.T, strict=True)),
        "batch": {
            "prompts": torch.zeros(b, PROMPT_LENGTH, dtype=torch.int64),
            "attention_mask": torch.cat([torch.ones(b, PROMPT_LENGTH, dtype=torch.int64), response_mask], dim=1),
        },
    }
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result, _returns = compute_gdpo_outcome_advantage(**arguments)
        seconds.append(time.perf_counter() - start)
    return result.numpy(), min(seconds)


def verl_grpo(rewards: np.ndarray, groups: np.ndarray, **_: np.ndarray) -> np.ndarray:
    given = torch.from_numpy(rewards[:, :1].astype(np.float32))
    return compute_grpo_outcome_advantage(given, torch.ones_like(given), groups)[0].numpy()


def swift(scale: str, rewards: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    from swift.rl_core.advantage import compute_advantages

    given = torch.from_numpy(rewards.astype(np.float32))
    w = torch.ones(rewards.shape[1]) if weights is None else torch.from_numpy(weights.astype(np.float32))
    size = int(np.count_nonzero(groups == groups[0]))
    return compute_advantages(given, w, size, scale_rewards=scale)[0].numpy()[:, None]


def main(cases_path: str, results_path: str) -> None:
    torch.set_num_threads(1)
    results = {"versions": np.array(json.dumps({name: version(name) for name in ("verl", "torch", "numpy")}))}
    with np.load(cases_path) as cases:
        for name in sorted({key.rsplit("/", 1)[0] for key in cases}):
            given = {key: cases[f"{name}/{key}"] for key in ("rewards", "groups")}
            optional = {key: cases[f"{name}/{key}"] for key in ("weights", "lengths") if f"{name}/{key}" in cases}
            repeats = int(cases[f"{name}/repeats"]) if f"{name}/repeats" in cases else 1
            function = str(cases[f"{name}/function"]) if f"{name}/function" in cases else "verl gdpo"
            seconds = 0.0
            if function == "verl gdpo":
                result, seconds = advantages(**given, **optional, repeats=repeats)
            elif function == "verl grpo":
                result = verl_grpo(**given)
            else:
                result = swift({"swift gdpo": "gdpo", "swift grpo": "group"}[function], **given, **optional)
            results[f"{name}/advantages"], results[f"{name}/seconds"] = result, seconds
    np.savez(results_path, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
