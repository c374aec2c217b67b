"""A progress bar for what takes longer than two seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, what: str, unit: str, *, shown: bool = True) -> Iterator[Callable[[int], object] | None]:
    """A bar that appears after two seconds; its `update`, or None if none is to be shown or tqdm is not installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:  # a convenience of the extras: everything works without it
        shown = False
    if not shown:
        yield None
        return
    with tqdm(total=total, desc=what, unit=unit, delay=2) as bar:
        yield bar.update
