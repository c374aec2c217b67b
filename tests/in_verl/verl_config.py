"""verl's own configuration with our settings, composed as its command line does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import verl.trainer
from hydra import compose, initialize_config_dir

from capreward.adapters.verl import verl_overrides


def composed(suite_file: Path, *more: str, **options: Any) -> Any:
    """verl's `ppo_trainer` with the settings of the suite in a file, and `more` settings."""
    spec = importlib.util.spec_from_file_location("user_suite", suite_file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours = verl_overrides(module.make_suite(), path=suite_file, **options)
    with initialize_config_dir(str(Path(verl.trainer.__file__).parent / "config"), version_base=None):
        return compose("ppo_trainer", overrides=[*ours, *more])
