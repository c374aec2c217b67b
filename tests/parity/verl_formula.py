"""verl's own GDPO estimator, called in the environment that holds verl (it cannot share one with TRL)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
VERL_PYTHON = ROOT / ".venv-verl" / "bin" / "python"


@dataclass(frozen=True)
class VerlResults:
    advantages: dict[str, np.ndarray]
    """Of each case, [B, T]: one number a token, 0 after the response's end."""
    seconds: dict[str, float]
    """Of each case: the fastest call."""
    versions: dict[str, str]


def verl_gdpo(cases: Mapping[str, Mapping[str, np.ndarray]], folder: Path, timeout: float = 600) -> VerlResults:
    """Run all cases in one process. A case holds the arrays that `verl_side.py` names; `folder` takes the files."""
    given, returned = folder / "cases.npz", folder / "results.npz"
    np.savez(given, **{f"{name}/{key}": array for name, case in cases.items() for key, array in case.items()})
    command = [str(VERL_PYTHON), str(Path(__file__).with_name("verl_side.py")), str(given), str(returned)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"verl's side failed with exit status {done.returncode}:\n{done.stderr[-4000:]}")
    with np.load(returned) as results:
        return VerlResults(
            advantages={name: results[f"{name}/advantages"] for name in cases},
            seconds={name: float(results[f"{name}/seconds"]) for name in cases},
            versions=json.loads(str(results["versions"])),
        )
