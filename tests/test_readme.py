"""The README's Python runs as it stands, its blocks in order in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    advantages = names["table"].advantages("gdpo")  # type: ignore[attr-defined]
    assert int(np.argmax(advantages)) == 0  # the caption that is right, complete and well written
