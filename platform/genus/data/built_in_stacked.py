"""Built-in colour images whose three channels are digits: data with 1,000 known modes.

Stacked MNIST is how GANs are tested for lost modes since Metz et al. 2017 (Unrolled GAN). Theirs
draws from all 60,000 training digits of MNIST, this one from the few of a packaged table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genus.data.built_in import PackagedTable
from genus.data.pack import from_arrays, pack_source
from genus.draws import seed_of

MODES = "stacked digits"
"""What the manifest says of them: a mode is (digit in red, in green, in blue)."""
SHARD_SIZE = 5000


@dataclass(frozen=True)
class StackedDigits:
    """Images of three channels, each an independent uniform choice among a table's digits of the
    same split. Without labels; the table has as many of each digit, so the modes are equally
    probable."""

    name: str
    """The table's, by which it is split."""
    digits: PackagedTable
    sizes: Mapping[str, int]
    """Split -> its number of images."""

    @property
    def splits(self) -> Sequence[str]:
        return tuple(self.sizes)

    def make(self, name: str, out: Mapping[str, Path], scratch: Path, source: Path | None) -> None:
        tables, side = self.digits.read(self.name, scratch, source), self.digits.side
        for split, target in out.items():
            pixels = tables[split][0].astype(np.uint8).reshape(-1, side, side)
            chosen = self.chosen(split, len(pixels))
            data = from_arrays(np.moveaxis(pixels[chosen], 1, -1), None)
            data = replace(data, modes=MODES)
            # they are in random order already
            pack_source(data, target, shard_size=SHARD_SIZE, shuffle_seed=None, name=name)

    def chosen(self, split: str, count: int) -> NDArray[np.int64]:
        """(N, 3) which of the split's ``count`` digits are the channels of each image.

        A function of its arguments alone, whatever numpy's version: it uses raw Philox words.
        """
        words = np.random.Philox(key=seed_of("stacked", split)).random_raw(3 * self.sizes[split])
        uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (uniform * count).astype(np.int64).reshape(-1, 3)
