"""What damages images: amplified frequency bands, noise, and a blanked rectangle.

Karras et al. 2020, appendix B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genus.draws import Draws
from genus.objectives.augmentation.chances import BANDS, Chances
from genus.objectives.augmentation.wavelets import bands, constant

FILTER_OCTAVES = 1.0
"""Standard deviation of log2 of a band's gain."""
NOISE = 0.1
"""Scale of the half-normal standard deviation of the noise."""
CUTOUT = 0.5
"""Side of the blanked rectangle, as a share of the image's."""


class BandFilter:
    """Amplifies or damps the frequency bands of images of one size."""

    def __init__(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self._rows, self._columns = (
            constant(bands(size), device, dtype) for size in (width, height)
        )

    def __call__(self, images: Tensor, chances: Chances) -> Tensor:
        happens, normal = chances.bands()
        chosen = torch.where(happens, torch.exp2(normal * FILTER_OCTAVES), torch.ones_like(normal))
        gain = band_gains(chosen)
        return torch.where(
            happens.any(1)[:, None, None, None], self.amplified(images, gain), images
        )

    def amplified(self, images: Tensor, gain: Tensor) -> Tensor:
        """``images`` (B, C, H, W) with the gain (B, BANDS) of each band, along both axes."""
        rows = torch.einsum("bk,kij->bij", gain, self._rows)
        columns = torch.einsum("bk,kij->bij", gain, self._columns)
        images = torch.einsum("bchw,bvw->bchv", images, rows)
        return torch.einsum("bchv,buh->bcuv", images, columns)


def band_gains(chosen: Tensor) -> Tensor:
    """(B, BANDS) gains: each band's ``chosen`` one, each time with all of them rescaled to keep
    the power of an image with the expected spectrum 10 : 1 : 1 : 1."""
    power = torch.full_like(chosen, 1 / 13)
    power[:, 0] = 10 / 13
    gain = torch.ones_like(chosen)
    for band in range(BANDS):
        one_band = torch.ones_like(chosen)
        one_band[:, band] = chosen[:, band]
        gain = gain * one_band / (power * one_band.square()).sum(1, keepdim=True).sqrt()
    return gain


def noisy(images: Tensor, chances: Chances, draws: Draws) -> Tensor:
    """Adds white noise of a standard deviation |n| NOISE, n standard normal."""
    sigma = chances.normal("noise").abs() * NOISE * chances.happens("noise")
    noise = draws.normal("noise", images.shape[1:], images.dtype)
    return images + noise * sigma[:, None, None, None]


def cut_out(images: Tensor, chances: Chances) -> Tensor:
    """Zeroes (mid-grey) a rectangle around a place anywhere in the image."""
    outside = []
    for axis, name in ((2, "cutout y"), (3, "cutout x")):
        size = images.shape[axis]
        place = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size
        outside.append((place - chances.uniform(name)[:, None]).abs() >= CUTOUT / 2)
    kept = outside[0][:, :, None] | outside[1][:, None, :]
    return images * (kept | ~chances.happens("cutout")[:, None, None])[:, None]
