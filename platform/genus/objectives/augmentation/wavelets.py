"""The orthogonal low-pass filters of the augmentations, and the matrices that apply them.

Filters act as small matrices along one axis: on a CPU and for one channel at a time a matrix
product is several times faster than a convolution, and it is differentiable as often as one
likes. The images' mirror continuation is part of the matrix, so no image is padded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]

SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
SYM6 = (0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
        0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
        -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036,
        -0.007800708325034148)  # fmt: skip
"""Daubechies' symlets (unit norm, sum sqrt 2), as tabulated by PyWavelets."""

DELAY = sum(k * h for k, h in enumerate(SYM6)) / sum(SYM6)
"""Where the filter's centre of mass lies, in taps: what it moves an image by."""

_TILE, _TILES = 64, 16
"""Rows of a tile at least, and tiles of a matrix at most: each costs a call on the device."""


class Banded:
    """A constant matrix (M, N) whose nonzero elements lie near a (folded) diagonal.

    It is kept as tiles of rows with the columns that those need: the work then grows with M, not
    with M times N.
    """

    def __init__(self, matrix: Matrix, device: torch.device, dtype: torch.dtype) -> None:
        self.tiles: list[tuple[int, int, Tensor]] = []
        height = max(_TILE, -(-len(matrix) // _TILES))
        for start in range(0, len(matrix), height):
            rows = matrix[start : start + height]
            used = np.abs(rows).sum(0).nonzero()[0]
            first, last = int(used[0]), int(used[-1]) + 1
            self.tiles.append((first, last, constant(rows[:, first:last], device, dtype)))

    def on_rows(self, images: Tensor) -> Tensor:
        """(..., H, N) -> (..., H, M): along each row of pixels."""
        return torch.cat([images[..., a:z] @ tile.T for a, z, tile in self.tiles], -1)

    def on_columns(self, images: Tensor) -> Tensor:
        """(..., N, W) -> (..., M, W): along each column of pixels."""
        return torch.cat([tile @ images[..., a:z, :] for a, z, tile in self.tiles], -2)


def upsampling(size: int) -> Matrix:
    """(2 P + 1, size) float64: one period of the mirror continuation, twice as fine.

    The continuation has the period P = 2 (size - 1) pixels; the last row repeats the first, for
    the interpolation between the period's ends. Sample u lies at pixel (u - DELAY) / 2.
    """
    period = max(2 * (size - 1), 1)
    matrix = np.zeros((2 * period + 1, size))
    for tap, weight in enumerate(SYM6):
        u = np.arange(tap % 2, 2 * period + 1, 2)
        np.add.at(matrix, (u, mirrored((u - tap) // 2, size)), math.sqrt(2) * weight)
    return matrix


def downsampling(size: int) -> Matrix:
    """(size, 2 size + 10) float64: the adjoint filter; undoes ``upsampling`` exactly.

    Column v lies at pixel (v - DELAY) / 2.
    """
    matrix = np.zeros((size, 2 * (size - 1) + len(SYM6)))
    pixel = np.arange(size)
    for tap, weight in enumerate(SYM6):
        np.add.at(matrix, (pixel, 2 * pixel + tap), weight / math.sqrt(2))
    return matrix


def bands(size: int) -> Matrix:
    """(4, size, size) float64: band-pass filters of the frequencies (in units of the Nyquist
    frequency) 0-1/8, 1/8-1/4, 1/4-1/2 and 1/2-1. They sum to the identity.

    Karras et al. 2020, appendix B: band i has the filter H(z) H(1/z) / 2 at each coarser level
    than its own and H(-z) H(-1/z) / 2 at its own.
    """
    low = _autocorrelation([float(h) for h in SYM2])
    high = _autocorrelation([h * (-1) ** k for k, h in enumerate(SYM2)])
    filters = [[1.0]]
    for _ in range(3):
        filters = [_convolved(_spread(taps), low) for taps in filters]
        margin = (len(filters[0]) - len(high)) // 2
        filters.append([0.0] * margin + high + [0.0] * margin)
    matrix = np.zeros((len(filters), size, size))
    pixel = np.arange(size)
    for band, taps in enumerate(filters):
        for tap, weight in enumerate(taps):
            column = mirrored(pixel + tap - len(taps) // 2, size)
            np.add.at(matrix[band], (pixel, column), weight)
    return matrix


def mirrored(index: Any, size: int) -> Any:
    """Indices (numpy's or torch's) outside 0..size-1 reflected into it, the outermost not
    repeated."""
    half = size - 1
    return half - abs(index % max(2 * half, 1) - half)


def constant(values: Matrix, device: torch.device, dtype: torch.dtype) -> Tensor:
    """On a device, in a dtype."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)


def _autocorrelation(taps: list[float]) -> list[float]:
    return [x / 2 for x in _convolved(taps, taps[::-1])]


def _convolved(a: list[float], b: list[float]) -> list[float]:
    out = [0.0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return out


def _spread(taps: list[float]) -> list[float]:
    """A zero between every two taps: the same filter one octave lower."""
    return [x for tap in taps for x in (tap, 0.0)][:-1]
