from __future__ import annotations

import sys

import pytest

from capreward.progress import progress_bar


def test_a_bar_counts_what_it_is_told() -> None:
    with progress_bar(3, "scoring", "score") as advance:
        assert advance is not None
        bar = advance.__self__  # type: ignore[attr-defined]
        advance(1)
        advance(2)
        assert (bar.n, bar.total, bar.desc, bar.unit, bar.delay) == (3, 3, "scoring", "score", 2)


def test_none_where_none_is_to_be_shown() -> None:
    with progress_bar(3, "scoring", "score", shown=False) as advance:
        assert advance is None


def test_none_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    with progress_bar(3, "scoring", "score") as advance:
        assert advance is None
