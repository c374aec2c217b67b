from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capreward.errors import InputError
from capreward.train import checkpoint


class Killed(BaseException):
    """Instead of a kill."""


class Killer:
    """Raises `Killed` in place of the file operation after the next `survives`: Python tells of each before it does it."""

    OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")

    def __init__(self) -> None:
        self.survives: int | None = None
        sys.addaudithook(self._hook)  # for good: there is no way to take one away

    def _hook(self, event: str, _: Any) -> None:
        if self.survives is None or event not in self.OPERATIONS:
            return
        if not self.survives:
            self.survives = None
            raise Killed
        self.survives -= 1

    @contextmanager
    def after(self, operations: int) -> Iterator[None]:
        self.survives = operations
        try:
            yield
        finally:
            self.survives = None


@pytest.fixture(scope="module")
def killer() -> Killer:
    return Killer()


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((5,), float(step))}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_whole(path: Path) -> bool:
    step = int(path.name.removeprefix("step-"))
    found = checkpoint.load(path)
    return found["step"] == step and found["weights"].tolist() == [step] * 5


def test_round_trip(tmp_path: Path) -> None:
    nested = {"model": {"a.weight": torch.randn(3, 2)}, "optimizer": {}, "numbers": [1, 2.5, None, "x"], "flag": True}
    path = checkpoint.save(tmp_path / "new" / "checkpoints", 7, nested)
    assert path == checkpoint.latest(tmp_path / "new" / "checkpoints")
    assert path.name == "step-00000007"
    found = checkpoint.load(path)
    assert torch.equal(found["model"].pop("a.weight"), nested["model"].pop("a.weight"))
    assert found == nested


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    assert checkpoint.KEEP == 2
    for step in (1, 5, 10, 200_000_000, 3_000_000_000):
        checkpoint.save(tmp_path, step, state(step))
    assert names(tmp_path) == ["step-200000000", "step-3000000000"]
    latest = checkpoint.latest(tmp_path)
    assert latest is not None
    assert latest.name == "step-3000000000"


def test_latest_of_nothing(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "nowhere") is None
    (tmp_path / ".step-00000003").mkdir()
    (tmp_path / "step-best").mkdir()
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize(("before", "step"), [([], 3), ([1], 3), ([1, 2], 3), ([3], 3), ([2, 3], 3), ([1, 2, 3], 4)])
def test_killed_before_any_file_operation(tmp_path: Path, killer: Killer, before: list[int], step: int) -> None:
    operations = 0
    finished = False
    while not finished:
        folder = tmp_path / str(operations)
        folder.mkdir()
        for old in before:
            checkpoint.save(folder, old, state(old))
        try:
            with killer.after(operations):
                checkpoint.save(folder, step, state(step))
            finished = True
        except Killed:
            latest = checkpoint.latest(folder)
            if before:
                assert latest is not None
                assert latest.name in (f"step-{before[-1]:08d}", f"step-{step:08d}")
            assert all(map(is_whole, folder.glob("step-*")))
        checkpoint.save(folder, step, state(step))  # as the resumed run does
        kept = sorted({*before, step})[-2:]
        assert names(folder) == [f"step-{each:08d}" for each in kept]
        assert all(map(is_whole, folder.iterdir()))
        operations += 1
    assert operations > (5 if step not in before else 0)


def test_killed_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, state(1))

    def half(_: Any, file: Any) -> None:
        file.write(b"PK half of a file")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(Killed):
            checkpoint.save(tmp_path, 2, state(2))
    latest = checkpoint.latest(tmp_path)
    assert latest is not None
    assert latest.name == "step-00000001"
    checkpoint.save(tmp_path, 2, state(2))
    assert all(map(is_whole, tmp_path.iterdir()))


def test_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        done.append(f"rename {target.name}")
        return rename(self, target)

    monkeypatch.setattr("os.fsync", lambda _: done.append("fsync"))
    monkeypatch.setattr(Path, "rename", renamed)
    checkpoint.save(tmp_path, 1, state(1))
    assert done == ["fsync", "fsync", "rename step-00000001", "fsync"]


@pytest.mark.parametrize("broken", [b"", b"not a checkpoint", None])
def test_what_cannot_be_read(tmp_path: Path, broken: bytes | None) -> None:
    path = checkpoint.save(tmp_path, 1, state(1))
    (path / "state.pt").write_bytes(broken) if broken is not None else (path / "state.pt").unlink()
    with pytest.raises(InputError, match=r"step-00000001: cannot be read as a checkpoint .*remove it to resume"):
        checkpoint.load(path)


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("run!",)


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint.save(tmp_path, 1, {"harm": Harmful()})
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(path)
    assert capsys.readouterr().out == ""


def test_random_states(tmp_path: Path) -> None:
    def draw() -> list[float]:
        # more than one word of numpy's, and a normal, of which it keeps a second one
        return [random.random(), *np.random.random(3), np.random.normal(), random.gauss(0, 1), torch.rand(1).item()]  # noqa: NPY002

    draw()
    path = checkpoint.save(tmp_path, 1, checkpoint.random_states())
    expected = draw() + draw()
    draw()
    checkpoint.restore_random_states(checkpoint.load(path))
    assert draw() + draw() == expected
