"""From a table of numbers to shards with a vector a sample."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.data.manifest import Manifest
from genus.data.pack import Source, checked_labels, pack_source
from genus.data.vectors import EXTENSION, REAL, to_bytes
from genus.errors import DataError

TABLES = (".npy", ".csv")
"""Files that ``read_table`` reads."""
SHARD_SIZE = 10_000
"""Samples a shard: 10 MB, where a tar takes 1 KB for a vector of up to 96 numbers."""


def pack_vectors(
    vectors: NDArray[Any],
    out: str | Path,
    *,
    labels: NDArray[np.generic] | None = None,
    classes: Sequence[str] = (),
    modes: str = "",
    shard_size: int = SHARD_SIZE,
    name: str = "",
    place: str = "the array",
) -> Manifest:
    """Pack the rows of ``vectors`` (N, D), in their order, into the new folder ``out``.

    They are stored as float32; a row's number is its key. ``labels`` (N,) are class numbers, which
    ``classes`` names; ``modes`` names their density where that has modes. ``out`` appears whole or
    not at all, and is never overwritten: DataError, as for rows with numbers that are not finite in
    float32. ``place`` names the array in messages.
    """
    rows = _checked(np.asarray(vectors), place)
    source = Source(
        count=len(rows),
        members=lambda number: {EXTENSION: to_bytes(rows[number])},
        labels=checked_labels(labels, len(rows), place),
        classes=tuple(classes),
        modes=modes,
    )
    return pack_source(source, Path(out), shard_size=shard_size, shuffle_seed=None, name=name)


def read_table(path: Path) -> NDArray[Any]:
    """The table (N, D) in an .npy file, or in a .csv file of plain numbers without a header line.

    DataError where it can't be read.
    """
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty file: no rows, which packing refuses
            return np.loadtxt(path, delimiter=",", comments=None, ndmin=2, encoding="utf-8")
    except (OSError, ValueError, EOFError) as error:
        hint = " (a .csv file holds plain numbers only, no header line)" * (path.suffix == ".csv")
        raise DataError(f"can't read the table {path}: {error}{hint}") from None


def _checked(table: NDArray[Any], place: str) -> NDArray[np.float32]:
    if table.ndim != 2 or 0 in table.shape or table.dtype.kind not in REAL:
        raise DataError(
            f"{place}: expected a table of real numbers (N, D), a row a sample, found "
            f"{table.dtype} {table.shape}"
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        rows: NDArray[np.float32] = table.astype(np.float32)
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[0].tolist()
        raise DataError(
            f"{place}, row {row} (the first is 0): {table[row, column]} in column {column} is not "
            f"finite in float32; {len(np.unique(bad[:, 0])):,} such rows: mend them or leave them "
            "out"
        )
    return rows
