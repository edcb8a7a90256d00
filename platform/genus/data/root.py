"""The folder where what Genus fetches lives, and one process at a time that writes there."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def data_root() -> Path:
    """Where built-in data sets live: $GENUS_DATA, or data/ in the current folder."""
    return Path(os.environ.get("GENUS_DATA") or "data")


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Held by one process at a time; the system frees it when its holder dies.

    BlockingIOError where another holds it and ``wait`` is False.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
