from __future__ import annotations

import subprocess
import sys

import pytest

import capreward.train
from capreward.train import Policy, TrainConfig, Trainer, config, loop, policy


def test_public_names_are_those_of_their_modules() -> None:
    assert (Policy, TrainConfig, Trainer) == (policy.Policy, config.TrainConfig, loop.Trainer)
    assert capreward.train.__all__ == ["Policy", "TrainConfig", "Trainer"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trainor'"):
        capreward.train.Trainor  # noqa: B018


def test_settings_are_read_without_torch() -> None:
    code = "import sys; from capreward.train import TrainConfig; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
