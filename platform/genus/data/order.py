"""Which sample comes when: a pure function of (seed, lane, position in the lane).

In epoch e the shards are shuffled by (seed, e) and laid end to end; the N samples of that row are
cut into L consecutive lanes; within a lane, positions are permuted inside windows of several
shards' worth. A global batch takes an equal share of every lane, and rank r of W serves the lanes l
with l W // L == r. So every sample comes exactly once an epoch, nothing depends on the number of
processes or workers, and any position is found without walking to it.

Permutations are argsorts of raw Philox words: numpy guarantees those for ever, but not the stream
of ``Generator.permutation``, and a run may be resumed under another numpy.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genus.draws import seed_of
from genus.errors import DataError

Ids = NDArray[np.int64]

MAX_LANES = 64
"""Lanes where the config leaves their number open: enough for 64 processes."""


class Order:
    """The order of samples 0..N-1, which lie in shards of the given sizes, in ``lanes`` lanes."""

    def __init__(self, shard_sizes: Ids, *, lanes: int, window: int, seed: int) -> None:
        """``shard_sizes`` (S,) samples a shard; ``window`` in samples; DataError if N < lanes."""
        self.lanes, self.window, self.seed = lanes, window, seed
        self.sizes = np.asarray(shard_sizes, np.int64)
        self.first_ids = np.cumsum(self.sizes) - self.sizes  # (S,) id of each shard's first sample
        self.samples = int(self.sizes.sum())
        if window < 1:
            raise DataError(f"data.window={window}: a window holds at least 1 sample")
        if not 1 <= lanes <= self.samples:
            raise DataError(f"{lanes} lanes for {self.samples} samples: set data.lanes to fewer")
        self._row = lru_cache(maxsize=2)(self._row_of_shards)  # lanes straddle two epochs at most
        self._windows: dict[int, tuple[tuple[int, int], Ids]] = {}

    def length(self, lane: int) -> int:
        """Samples of a lane in an epoch; lanes differ by at most one."""
        return self._cut(lane + 1) - self._cut(lane)

    def ids(self, lane: int, start: int, stop: int) -> Ids:
        """(stop - start,) sample ids at the positions start:stop of a lane, counted from the run's
        beginning and across epochs."""
        parts = []
        length = self.length(lane)
        while start < stop:
            epoch, offset = divmod(start, length)
            number, inside = divmod(offset, self.window)
            part = self._window(lane, epoch, number)[inside : inside + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _cut(self, lane: int) -> int:
        return lane * self.samples // self.lanes

    def _window(self, lane: int, epoch: int, number: int) -> Ids:
        """The ids of a whole window, permuted; the last one of each lane is kept."""
        known = self._windows.get(lane)
        if known is not None and known[0] == (epoch, number):
            return known[1]
        start = self._cut(lane) + number * self.window
        stop = min(start + self.window, self._cut(lane + 1))
        shards, starts = self._row(epoch)
        place = start + permutation(stop - start, self.seed, "window", epoch, lane, number)
        nth = np.searchsorted(starts, place, side="right") - 1
        ids = self.first_ids[shards[nth]] + place - starts[nth]
        self._windows[lane] = (epoch, number), ids
        return ids

    def _row_of_shards(self, epoch: int) -> tuple[Ids, Ids]:
        """An epoch's shards in their order, and the place in the row where each of them starts."""
        filled = np.flatnonzero(self.sizes)
        shards = filled[permutation(len(filled), self.seed, "shards", epoch)]
        sizes = self.sizes[shards]
        return shards, np.cumsum(sizes) - sizes


def permutation(n: int, *key: int | str) -> Ids:
    """A permutation (n,) of 0..n-1 that belongs to ``key``."""
    return np.argsort(np.random.Philox(key=seed_of(*key)).random_raw(n), kind="stable")


def lanes_for(batch: int, lanes: int = 0) -> int:
    """``lanes``, or where 0 the largest divisor of ``batch`` up to 64. DataError if they disagree.

    ``batch`` is global, in samples.
    """
    if batch < 1:
        raise DataError(f"a batch of {batch} samples: train.batch must be positive")
    if lanes == 0:
        return max(d for d in range(1, min(batch, MAX_LANES) + 1) if batch % d == 0)
    if lanes < 0 or batch % lanes:
        near = " or ".join(
            map(str, sorted({batch // lanes * lanes, -(-batch // lanes) * lanes} - {0}))
        )
        raise DataError(
            f"train.batch={batch} can't be shared by data.lanes={lanes}: take a batch of {near}"
        )
    return lanes


def own_lanes(lanes: int, rank: int, world: int) -> range:
    """The lanes that a rank serves. DataError names the nearest world sizes that would do."""
    if world < 1 or lanes % world:
        divisors = [d for d in range(1, lanes + 1) if lanes % d == 0]
        below = [d for d in divisors if d < world][-1:]
        above = [d for d in divisors if d > world][:1]
        near = " or ".join(map(str, below + above))
        raise DataError(
            f"{world} processes can't share {lanes} lanes: start {near}, or begin a new run with a "
            f"train.batch and data.lanes that are multiples of {world}"
        )
    if not 0 <= rank < world:
        raise DataError(f"rank {rank} of a world of {world}")
    return range(rank * lanes // world, (rank + 1) * lanes // world)
