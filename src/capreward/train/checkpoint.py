"""Checkpoints that are there as a whole or not at all, and from which a run goes on to the same bits."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capreward.errors import InputError

KEEP = 2
"""Checkpoints that are kept: one more than needed, should the disk lose the newest."""


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a checkpoint, then remove all but the last `KEEP`.

    A kill at any moment leaves the older checkpoints, or the new one too: it gets its name only when it lies on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*"):  # of a kill while writing or removing
        shutil.rmtree(leftover)
    path = folder / f"step-{step:08d}"
    if not path.exists():  # else a resumed run could not go on, and has nothing new to save
        partial = folder / f".{path.name}"
        partial.mkdir()
        with (partial / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        _sync(partial)
        partial.rename(path)
        _sync(folder)
    for old in _all(folder)[:-KEEP]:
        _remove(old)
    return path


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a folder."""
    found = _all(folder)
    return found[-1] if found else None


def to_resume(out: Path, resume: bool) -> Path | None:
    """The newest checkpoint of the run in `out`, None if there is none.

    Raises:
        InputError: there is one, and it is not to be resumed.
    """
    found = latest(out / "checkpoints")
    if found and not resume:
        raise InputError(f"out: {out} holds the checkpoint {found.name}; resume (--resume), or choose another folder")
    return found


def load(path: Path) -> dict[str, Any]:
    """What was saved, on the CPU. Nothing in it is run.

    Raises:
        InputError: it cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own words advise to load it without protection
        reason = error if isinstance(error, OSError) else "damaged, or no checkpoint"
        raise InputError(
            f"{path}: cannot be read as a checkpoint ({reason}); remove it to resume from an older one"
        ) from error
    return state


def random_states() -> dict[str, Any]:
    """Of Python, numpy and torch, in types that `load` takes."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  # the global one is what libraries draw from
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set them to what `random_states` gave."""
    random.setstate(states["python"])
    numpy_state = states["numpy"]
    key = numpy_state["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def _remove(path: Path) -> None:
    """First out of sight, so that a kill on the way leaves no half of a checkpoint behind."""
    hidden = path.with_name(f".{path.name}.old")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _sync(folder: Path) -> None:
    """The folder's entries, too, have to be on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
