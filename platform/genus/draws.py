"""Random numbers that belong to samples, not to processes.

Every random number of a training step is drawn from a generator whose seed is a hash of
(run seed, position in the stream, lane, name of the draw). A run therefore sees the same noise
whatever the number of processes, the micro-batch or the moment of a restart, and there is no
generator state to save. Sampling uses the same class with one seed a sample, so that sample i
is the same whatever the batch size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from integers and names; any change of any part changes all of it."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


@dataclass(frozen=True)
class Draws:
    """Named random tensors for the rows of a batch.

    The rows fall into groups of ``group_size`` consecutive rows (the samples that one lane gave to
    this step; or single samples), and each group has its own seed. ``start:stop`` is the window of
    rows that this object serves: a micro-batch is a window of its batch and draws the same numbers.
    """

    seeds: Sequence[int]
    group_size: int
    device: torch.device
    start: int
    stop: int
    scope: str = ""

    @staticmethod
    def of(seeds: Sequence[int], group_size: int = 1, device: torch.device | str = "cpu") -> Draws:
        """Draws for ``len(seeds) * group_size`` rows."""
        rows = len(seeds) * group_size
        return Draws(seeds, group_size, torch.device(device), 0, rows)

    def __len__(self) -> int:
        return self.stop - self.start

    def window(self, start: int, stop: int) -> Draws:
        """The rows ``start:stop`` of this window."""
        assert 0 <= start <= stop <= len(self)
        return replace(self, start=self.start + start, stop=self.start + stop)

    def scoped(self, name: str) -> Draws:
        """The same rows with other, independent numbers: one scope a phase, say."""
        return replace(self, scope=f"{self.scope}/{name}")

    def normal(
        self, name: str, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normal, shape (rows, *shape)."""
        return self._fill("normal", name, shape, dtype)

    def uniform(
        self, name: str, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Uniform on [0, 1), shape (rows, *shape)."""
        return self._fill("uniform", name, shape, dtype)

    def integers(self, name: str, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Uniform integers in [0, high), int64, shape (rows, *shape)."""
        u = self._fill("uniform", name, shape, torch.float64)
        return (u * high).long().clamp_(max=high - 1)

    def _fill(self, kind: str, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        first, last = self.start // self.group_size, -(-self.stop // self.group_size)
        size = self.group_size
        out = torch.empty((last - first) * size, *shape, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device)
        for row, seed in enumerate(self.seeds[first:last]):
            generator.manual_seed(seed_of(seed, self.scope, name))
            group = out[row * size : (row + 1) * size]
            if kind == "normal":
                group.normal_(generator=generator)
            else:
                group.uniform_(generator=generator)
        return out[self.start - first * size : self.stop - first * size]
