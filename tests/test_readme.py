"""The README's Python stands by itself: its blocks in order, with nothing prepared. All its blocks: tests/docs/test_blocks.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docs.pages import blocks


def test_best_caption_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    python = [block.text for block in blocks("README.md") if block.language == "python"]
    assert len(python) >= 4
    names: dict[str, Any] = {}
    for text in python:
        exec(text, names)
    advantages = names["table"].advantages("gdpo")
    assert int(np.argmax(advantages)) == 0  # the caption that is right, complete and well written
