"""Rotary positions (Su et al. 2021): queries and keys turn by angles that grow with position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """Cosines and signed sines of positions, each (T, 1, C) or (B, T, 1, C), for all heads.

    Pairs are channels i and i + C/2, as in Llama: x cos + swap(x) sin, where swap exchanges the
    halves and the sine of the first half is negative.
    """

    cos: Tensor
    sin: Tensor

    def at(self, positions: Tensor) -> Rotation:
        """The rows of this table at integer ``positions`` (...), as (..., 1, C)."""
        return Rotation(self.cos[positions], self.sin[positions])

    def between(self, start: int, stop: int) -> Rotation:
        """The rows ``start:stop`` of this table."""
        return Rotation(self.cos[start:stop], self.sin[start:stop])

    def __call__(self, x_BTHC: Tensor) -> Tensor:
        """Turn queries or keys; computed in the table's precision, returned in their own."""
        swapped = x_BTHC.roll(x_BTHC.shape[-1] // 2, -1)
        return torch.addcmul(x_BTHC * self.cos, swapped, self.sin).to(x_BTHC.dtype)


def rotation_table(length: int, width: int, theta: float, like: Tensor) -> Rotation:
    """The rotation of positions 0 to ``length`` - 1 for heads of ``width`` channels.

    Angles are position * theta^(-2i / width), worked out in float64: at position 10,000 float32
    would be off by 1e-3. The table is float32, or float64 where ``like`` is, on its device. It is
    made anew for every pass and cache: it costs nothing beside a pass, and a buffer would be
    missing in a network that was made on the meta device.
    """
    f64 = {"dtype": torch.float64, "device": like.device}
    frequencies = theta ** (-torch.arange(0, width, 2, **f64) / width)  # type: ignore[call-overload]
    angles = torch.arange(length, **f64)[:, None, None] * frequencies  # type: ignore[call-overload]
    cos, sin = angles.cos(), angles.sin()
    dtype = torch.promote_types(like.dtype, torch.float32)
    return Rotation(torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype))
