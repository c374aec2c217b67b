"""A run that is killed ten times beside one that never is: `python killed.py FOLDER` writes both and tells what it killed.

Everything is imported once; each life of the run is a fork of this process.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import runs
from tqdm.auto import tqdm

from capreward.train import checkpoint
from capreward.train.loop import Trainer

KILLS = 10
AHEAD = 3
"""Checkpoints that a life may write more than were asked of it: a machine that stalls must not let it finish."""
SETTINGS: dict[str, Any] = {"steps": KILLS + AHEAD + 1, "save_every": 1, "max_tokens": 6, "updates": 2, "kl": 0.05}


def trainer(out: Path, **changes: Any) -> Trainer:
    made = runs.trainer(out, held_out=runs.items(2), **{**SETTINGS, **changes})
    for module in made.policy.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1  # the bits depend on the state of the random numbers
    return made


def fork(work: Callable[[], Any]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001  a child never returns into the parent's code
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def wait(child: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def at_step(folder: Path) -> int:
    found = checkpoint.latest(folder)
    return int(found.name.removeprefix("step-")) if found else 0


def disk(folder: Path, *, last: int, delay: float) -> None:
    """Every sync takes delay seconds; past checkpoint last it never ends, so that no life finishes before it is killed."""
    sync = os.fsync

    def slow(handle: int) -> None:
        while at_step(folder) >= last:
            time.sleep(1)
        time.sleep(delay)
        sync(handle)

    os.fsync = slow


def main(folder: Path) -> None:
    tqdm.monitor_interval = 0  # no thread but this one
    trainer(folder / "warm", steps=1).train()  # imports what is imported late
    begin = time.monotonic()
    wait(fork(lambda: trainer(folder / "alive").train()))
    a_step = (time.monotonic() - begin) / SETTINGS["steps"]
    chance = random.Random(0)
    killed = folder / "killed" / "checkpoints"

    def live(life: int, *, delay: float) -> None:
        disk(killed, last=life + AHEAD, delay=delay)
        trainer(killed.parent).train(resume=True)

    for life in range(KILLS):
        while_writing = life % 2 == 1
        child = fork(lambda: live(life, delay=0.1 if while_writing else 0))  # noqa: B023  runs at once

        def until(reached: Callable[[], Any]) -> None:
            while not reached():
                assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"  # noqa: B023
                time.sleep(0.002)

        # every life gets at least as far as to repeat what the one before it did not save
        until(lambda: at_step(killed) >= life)  # noqa: B023
        if while_writing:
            until(lambda: list(killed.glob(".*")))
            time.sleep(chance.uniform(0, 0.25))
        else:
            time.sleep(chance.uniform(0, 1.5 * a_step))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        print(at_step(killed), "writing" if list(killed.glob(".*")) else "", flush=True)
    wait(fork(lambda: trainer(killed.parent).train(resume=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
