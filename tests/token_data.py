"""Token data sets for tests: made, opened, and read back with numpy alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.data.manifest import Manifest
from genus.data.store import Folder
from genus.data.tokens import TokenWindows


def made(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """Documents of these lengths, of random tokens that are not the last of the vocabulary."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary - 1, length) for length in lengths]


def windows(folder: Path, length: int) -> TokenWindows:
    store = Folder(folder)
    return TokenWindows([(store, Manifest.load(store))], length)


def stored(folder: Path) -> list[tuple[NDArray[Any], NDArray[np.int64]]]:
    """(tokens, where documents begin) of each shard, read with numpy alone."""
    shards = []
    for path in sorted(folder.glob("*.npy")):
        with np.load(path.with_suffix(".index.npz")) as index:
            values, begins = np.load(path), index["documents"]
        assert (np.diff([-1, *begins, len(values)]) > 0).all()  # rising, and inside the shard
        shards.append((values, begins))
    return shards


def stored_documents(folder: Path) -> list[list[int]]:
    documents: list[list[int]] = []
    for values, begins in stored(folder):
        cuts = [0, *begins.tolist(), len(values)]
        if documents:
            documents[-1] += values[: cuts[1]].tolist()  # what goes on from the shard before
        else:
            assert cuts[1] == 0
        documents += [values[a:b].tolist() for a, b in itertools.pairwise(cuts[1:])]
    return documents


def load(data: TokenWindows, ids: Sequence[int] | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The windows as arrays; raises what is wrong with the first bad one."""
    fields, faults = data.read(np.asarray(ids, np.int64))
    if faults:
        raise faults[min(faults)]
    return {name: value.numpy() for name, value in fields.items()}
