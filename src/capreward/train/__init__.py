"""The bundled GRPO trainer: a group's image and prompt run once in the rollout, the policy's passes and the reference's.

`config` says what a run does, `policy` holds the model, `rollout` samples captions, `loss` turns advantages into gradients,
`loop` is the trainer, `metrics` what it writes down, `checkpoint` what survives a kill.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capreward.train.config import TrainConfig as TrainConfig
    from capreward.train.loop import Trainer as Trainer
    from capreward.train.policy import Policy as Policy

# Settings can be read without loading torch.
_HOME = {"Policy": "policy", "TrainConfig": "config", "Trainer": "loop"}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'capreward.train' has no attribute {name!r}")
    return getattr(import_module(f"capreward.train.{_HOME[name]}"), name)
