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

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from genus.draws import seed_of
from genus.errors import DataError

Ids = NDArray[np.int64]

MAX_LANES = 64
"""Lanes where the config leaves their number open: enough for 64 processes."""


FORWARD = 16
"""Epochs in which a lane looks for readable samples; where it finds none, little is left."""


class Lanes(Protocol):
    """What comes when, in each of several lanes: one data set's ``Order``, or a ``Mixture``."""

    lanes: int
    samples: int

    def ids(self, lane: int, start: int, stop: int) -> Ids:
        """(stop - start,) sample ids at the positions start:stop of a lane."""

    def shards(self, lane: int, start: int, stop: int) -> Ids:
        """Numbers of the shards that the windows around the positions start:stop touch, sorted."""

    def alternatives(self, lane: int, position: int) -> Iterator[int]:
        """Ids that may stand in for the sample at a position, nearest first; ends."""


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
        self._row = lru_cache(maxsize=4)(
            self._row_of_shards
        )  # lanes straddle epochs, and look ahead
        self._permuted = lru_cache(maxsize=lanes + 1)(self._permuted_window)

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
            part = self._permuted(lane, epoch, number)[inside : inside + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def shards(self, lane: int, start: int, stop: int) -> Ids:
        """Numbers of the shards that the windows around the positions start:stop touch, sorted; of
        an epoch at most."""
        found = []
        length = self.length(lane)
        stop = min(stop, start + length)
        while start < stop:
            epoch, offset = divmod(start, length)
            number = offset // self.window
            first, last = self._bounds(lane, number)
            shards, starts = self._row(epoch)
            found.append(shards[_nth(starts, first) : _nth(starts, last - 1) + 1])
            start = epoch * length + last - self._cut(lane)
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def alternatives(self, lane: int, position: int) -> Iterator[int]:
        """Ids that may stand in for the sample at a position: the rest of its window, from half a
        window on (so that it seldom meets itself in one batch), then the lane's later windows."""
        epoch, offset = divmod(position, self.length(lane))
        number, inside = divmod(offset, self.window)
        own = self._permuted(lane, epoch, number)
        yield from np.roll(own, -inside - len(own) // 2).tolist()
        windows = -(-self.length(lane) // self.window)
        for later in range(number + 1, number + 1 + FORWARD * windows):
            yield from self._permuted(lane, epoch + later // windows, later % windows).tolist()

    def _cut(self, lane: int) -> int:
        return lane * self.samples // self.lanes

    def _bounds(self, lane: int, number: int) -> tuple[int, int]:
        """First place of a window in the row of samples, and the place after its last."""
        start = self._cut(lane) + number * self.window
        return start, min(start + self.window, self._cut(lane + 1))

    def _permuted_window(self, lane: int, epoch: int, number: int) -> Ids:
        """The ids of a whole window, permuted."""
        start, stop = self._bounds(lane, number)
        shards, starts = self._row(epoch)
        own = slice(_nth(starts, start), _nth(starts, stop - 1) + 1)
        shift = self.first_ids[shards[own]] - starts[own]
        edges = np.append(np.maximum(starts[own], start), stop)
        ids = np.arange(start, stop) + np.repeat(shift, np.diff(edges))
        return ids[permutation(stop - start, self.seed, "window", epoch, lane, number)]

    def _row_of_shards(self, epoch: int) -> tuple[Ids, Ids]:
        """An epoch's shards in their order, and the place in the row where each of them starts."""
        filled = np.flatnonzero(self.sizes)
        shards = filled[permutation(len(filled), self.seed, "shards", epoch)]
        sizes = self.sizes[shards]
        return shards, np.cumsum(sizes) - sizes


def _nth(starts: Ids, place: int) -> int:
    return int(np.searchsorted(starts, place, side="right")) - 1


def permutation(n: int, *key: int | str) -> Ids:
    """A permutation (n,) of 0..n-1 that belongs to ``key``."""
    words = np.random.Philox(key=seed_of(*key)).random_raw(n)
    # A stable argsort, twice as fast: numpy sorts 16-bit integers by radix, and two such sorts put
    # the upper halves of the words in order. That is all of it unless two upper halves are equal.
    high = (words >> np.uint64(32)).astype(np.uint32)
    order = np.argsort(high.astype(np.uint16), kind="stable")
    order = order[np.argsort((high >> np.uint32(16)).astype(np.uint16)[order], kind="stable")]
    high = high[order]
    if (high[1:] == high[:-1]).any():
        order = np.argsort(words, kind="stable")
    return order


def lanes_for(batch: int, lanes: int = 0) -> int:
    """``lanes``, or where 0 the largest divisor of ``batch`` up to 64. DataError if they disagree.

    ``batch`` is global, in samples.
    """
    if batch < 1:
        raise DataError(f"a batch of {batch} samples: train.batch must be positive")
    if lanes == 0:
        return max(d for d in range(1, min(batch, MAX_LANES) + 1) if batch % d == 0)
    if lanes < 0:
        raise DataError(f"data.lanes={lanes}: take 0 (derived) or more")
    if batch % lanes:
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
