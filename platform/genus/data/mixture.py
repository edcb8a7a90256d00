"""Several data sets in one order, each with its share of every lane.

A lane is cut into blocks of ``BLOCK`` positions. In every block each data set has the same number
of places, and which ones is a permutation by (seed, lane, block). So any position is found without
walking to it, shares are exact in every block, and each data set goes through its own epochs, which
may be of any length: every sample still comes once an epoch of its own data set.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genus.data.order import Ids, Lanes, permutation
from genus.errors import DataError

BLOCK = 4096
"""Places of a block: shares are kept to 1/4096."""


class Mixture:
    """Data sets 0..S-1, whose samples and shards are numbered one data set after the other."""

    def __init__(
        self, orders: Sequence[Lanes], shards: Sequence[int], weights: Sequence[float], seed: int
    ) -> None:
        """``shards`` (S,): each data set's number of shards; ``weights`` (S,): shares, which need
        not sum to 1. DataError for weights that can't be kept."""
        self.orders, self.seed = orders, seed
        self.lanes = orders[0].lanes
        self.samples = sum(order.samples for order in orders)
        self.counts = places(weights)
        self._first_ids = list(itertools.accumulate((o.samples for o in orders), initial=0))
        self._first_shards = list(itertools.accumulate(shards, initial=0))
        self._block = lru_cache(maxsize=self.lanes + 1)(self._pattern)

    def ids(self, lane: int, start: int, stop: int) -> Ids:
        """(stop - start,) sample ids at the positions start:stop of a lane."""
        out = np.empty(stop - start, np.int64)
        for source, (positions, begin, end) in enumerate(self._parts(lane, start, stop)):
            out[positions] = self._first_ids[source] + self.orders[source].ids(lane, begin, end)
        return out

    def shards(self, lane: int, start: int, stop: int) -> Ids:
        """Numbers of the shards that the windows around the positions start:stop touch, sorted."""
        return np.concatenate(
            [
                self._first_shards[source] + self.orders[source].shards(lane, begin, end)
                for source, (_, begin, end) in enumerate(self._parts(lane, start, stop))
            ]
        )

    def alternatives(self, lane: int, position: int) -> Iterator[int]:
        """Ids of the same data set that may stand in for the sample at a position."""
        parts = self._parts(lane, position, position + 1)
        (source,) = (s for s, (positions, _, _) in enumerate(parts) if len(positions))
        first = self._first_ids[source]
        return (first + i for i in self.orders[source].alternatives(lane, parts[source][1]))

    def _parts(self, lane: int, start: int, stop: int) -> list[tuple[NDArray[np.intp], int, int]]:
        """For each data set: where in start:stop it has its places, and the positions in its own
        lane that lie there, as begin and end."""
        first = start // BLOCK
        blocks = [self._block(lane, block) for block in range(first, -(-stop // BLOCK))]
        pattern = np.concatenate(blocks) if blocks else np.empty(0, np.int64)
        before, here = np.split(pattern[: stop - first * BLOCK], [start - first * BLOCK])
        parts = []
        for source, count in enumerate(self.counts):
            positions = np.flatnonzero(here == source)
            begin = first * count + int((before == source).sum())
            parts.append((positions, begin, begin + len(positions)))
        return parts

    def _pattern(self, lane: int, block: int) -> Ids:
        """(BLOCK,) which data set serves each place of a block."""
        sources = np.repeat(np.arange(len(self.counts)), self.counts)
        return sources[permutation(BLOCK, self.seed, "mixture", lane, block)]


def places(weights: Sequence[float]) -> list[int]:
    """Places of each data set in a block, by largest remainder; they sum to BLOCK."""
    shares = np.asarray(weights, np.float64)
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise DataError(f"data.weights={tuple(weights)}: each weight must be positive")
    exact = shares / shares.sum() * BLOCK
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: BLOCK - counts.sum()]] += 1
    if (counts == 0).any():
        raise DataError(
            f"data.weights={tuple(weights)}: a share below 1/{2 * BLOCK} can't be kept; give the "
            "smallest data set more or leave it out"
        )
    return [int(count) for count in counts]
