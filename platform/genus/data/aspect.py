"""Batches of images of one shape each, for images of many shapes.

The order's samples are planned in blocks of K global batches. Within a block each image belongs to
the bucket whose aspect ratio is nearest to its own; what doesn't fill a bucket's last batch moves
to the next bucket towards the square. So every global batch has one shape on all ranks, every
sample comes exactly as often as the order has it, and a block follows from order and index alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genus.data.order import Ids, Lanes, permutation
from genus.data.source import Size
from genus.errors import DataError

MAX_RATIO = 2.0
"""Of the longer side to the shorter one, in the most extreme buckets."""
BATCHES_A_BUCKET = 16
"""Batches of a block a bucket: about one image in 32 has to move, at most one in 16."""


class AspectBuckets:
    """The plan of global batches of ``batch`` samples."""

    def __init__(
        self,
        order: Lanes,
        shapes: Callable[[Ids], NDArray[np.int32]],
        *,
        batch: int,
        sizes: list[Size],
        seed: int,
    ) -> None:
        """``shapes`` gives (n, 2) height and width of the samples (n,), 0 where unknown;
        ``sizes`` come from ``bucket_sizes``."""
        self.order, self.shapes, self.batch, self.seed = order, shapes, batch, seed
        self.sizes = sizes
        self.block = BATCHES_A_BUCKET * len(sizes)
        """K, global batches of a block."""
        self._block = lru_cache(maxsize=1)(self._planned)

    def rest(self, number: int) -> list[tuple[Ids, Size]]:
        """The global batches from ``number`` to the end of its block: their ids (batch,), in the
        order of lanes, and the shape of their images."""
        block, inside = divmod(number, self.block)
        ids, buckets = self._block(block)
        return [
            (row, self.sizes[bucket])
            for row, bucket in zip(ids[inside:], buckets[inside:].tolist(), strict=True)
        ]

    def _planned(self, block: int) -> tuple[Ids, Ids]:
        """(K, batch) ids and (K,) buckets of a block's batches."""
        lanes, per_lane = self.order.lanes, self.block * self.batch // self.order.lanes
        start = block * per_lane
        ids = np.concatenate(
            [self.order.ids(lane, start, start + per_lane) for lane in range(lanes)]
        )
        ratio = log_ratio(self.shapes(ids))
        bucket = moved(nearest(ratio, self.sizes), ratio, self.sizes, self.batch)
        batches, numbers = [], []
        for number in np.unique(bucket).tolist():
            # Rows go by lane, so a rank mostly gets what its own lanes' shards hold.
            members = ids[bucket == number]
            batches.append(members.reshape(self.batch, -1).T)
            numbers += [number] * len(batches[-1])
        shuffle = permutation(self.block, self.seed, "buckets", block)
        return np.concatenate(batches)[shuffle], np.array(numbers, np.int64)[shuffle]


def bucket_sizes(size: int, step: int) -> list[Size]:
    """(height, width) of the buckets, tall to wide: multiples of ``step`` pixels with at most
    size^2 pixels and a ratio of at most MAX_RATIO. DataError where ``step`` doesn't divide."""
    if step < 1 or size < step or size % step:
        raise DataError(
            f"data.bucket_step={step} must divide data.size={size}: the square is a bucket too"
        )
    found: list[Size] = []
    for width in range(step, int(size * MAX_RATIO) + 1, step):
        height = size * size // width // step * step
        if height and max(height / width, width / height) <= MAX_RATIO:
            found.append((height, width))
    return found


def log_ratio(shapes: NDArray[np.int32]) -> NDArray[np.float64]:
    """(n,) log of width / height of shapes (n, 2); 0, a square's, where unknown."""
    height, width = np.maximum(shapes, 1).T.astype(np.float64)
    return np.where((shapes > 0).all(1), np.log(width / height), 0.0)


def nearest(ratio: NDArray[np.float64], sizes: list[Size]) -> NDArray[np.intp]:
    """(n,) the bucket whose log ratio is nearest to each of ``ratio`` (n,)."""
    own = log_ratio(np.array(sizes, np.int32))
    return np.searchsorted((own[1:] + own[:-1]) / 2, ratio)


def moved(
    bucket: NDArray[np.intp], ratio: NDArray[np.float64], sizes: list[Size], batch: int
) -> NDArray[np.intp]:
    """The buckets with members (n,) moved towards the square, so that each holds whole batches.

    From a bucket those move whose ratios are nearest to the next one's. n must be a multiple of
    ``batch``: then the rest of both sides fills the square's bucket.
    """
    bucket = bucket.copy()
    middle = int(np.argmin(np.abs(log_ratio(np.array(sizes, np.int32)))))
    tall = [(number, 1) for number in range(middle)]
    wide = [(number, -1) for number in range(len(sizes) - 1, middle, -1)]
    for number, towards in tall + wide:
        members = np.flatnonzero(bucket == number)
        rest = len(members) % batch
        if rest:
            by_ratio = members[np.argsort(-towards * ratio[members], kind="stable")]
            bucket[by_ratio[:rest]] = number + towards
    return bucket
