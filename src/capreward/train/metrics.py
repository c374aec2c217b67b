"""What a run writes down: a line of numbers a step, sample captions with their verdicts, TensorBoard's files."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capreward.errors import missing_extra
from capreward.groups import Float
from capreward.records import Rollout
from capreward.scoring import ScoreTable

FILES = ("metrics.jsonl", "samples.jsonl")


class Log:
    """Appends to the files of a run; on resume, cut back to where the checkpoint was taken."""

    def __init__(self, folder: Path, positions: Mapping[str, int] | None = None, *, step: int = 0) -> None:
        """Open the files.

        Args:
            positions: lengths in bytes that the files are cut to; those of a new run are emptied.
            step: the last step that counts; TensorBoard forgets what an earlier process wrote of later ones.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise missing_extra("Training", "train", error) from error
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {}
        for name in FILES:
            file = (folder / name).open("ab")
            file.truncate(min((positions or {}).get(name, 0), file.tell()))
            file.seek(0, os.SEEK_END)
            self._files[name] = file
        self._board = SummaryWriter(str(folder / "tensorboard"), flush_secs=10, purge_step=step + 1)

    def step(self, step: int, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]]) -> None:
        """Write a step's numbers and samples. What is no finite number is null in the file and absent from TensorBoard."""
        numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._append("metrics.jsonl", {"step": step, **numbers})
        for name, value in numbers.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        for sample in samples:
            self._append("samples.jsonl", {"step": step, **sample})
            self._board.add_text("samples", _as_markdown(sample), step)

    def positions(self) -> dict[str, int]:
        """The files' lengths in bytes, once they are on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._board.close()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False) + "\n"
        self._files[name].write(line.encode("utf-8", "backslashreplace"))
        self._files[name].flush()


class Clock:
    """Seconds spent in each phase since the last `read`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Seconds by phase, which start from 0 again."""
        seconds, self._seconds = self._seconds, {}
        return seconds


def samples(table: ScoreTable, rollouts: Sequence[Rollout], advantages: Float) -> list[dict[str, Any]]:
    """The best and the worst of some rollouts by their advantages, as rows of `ScoreTable.to_rows`.

    Args:
        rollouts: with the ids that they have in the table.
        advantages: of all rollouts of the table, [B].
    """
    place = {id: row for row, id in enumerate(table.ids)}
    ranked = sorted(rollouts, key=lambda rollout: -advantages[place[str(rollout.id)]])
    ends = [ranked[0], ranked[-1]]
    return list(table.to_rows(ends, [place[str(rollout.id)] for rollout in ends]))


def _as_markdown(sample: Mapping[str, Any]) -> str:
    verdicts = "\n".join(f"- {name}: {cell['value']} ({cell['why']})" for name, cell in sample["scores"].items())
    text = f"{sample['id']}\n\n> {sample['caption']}\n\n{verdicts}"
    return text.encode("utf-8", "replace").decode()  # a judge may have said half a surrogate pair
