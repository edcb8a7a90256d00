"""Flips, quarter turns and whole-pixel shifts: pixels are copied, none is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from genus.objectives.augmentation.chances import Chances
from genus.objectives.augmentation.wavelets import mirrored

SHIFT = 0.125
"""Largest whole-pixel shift, as a share of the image's side."""


def oriented(images: Tensor, chances: Chances) -> Tensor:
    """``images`` (B, C, H, W) after x-flips and then quarter turns, which need H = W.

    Each that happens draws its argument among all values, so a half of the flips and a quarter of
    the turns change nothing.
    """
    if "xflip" in chances.on:
        flip = chances.happens("xflip") & (chances.uniform("xflip") >= 0.5)
        images = torch.where(_of_images(flip), images.flip(3), images)
    if "rotate90" in chances.on:
        turns = torch.floor(chances.uniform("rotate90") * 4) * chances.happens("rotate90")
        odd, half = turns.remainder(2) == 1, turns >= 2
        images = torch.where(_of_images(odd), images.transpose(2, 3).flip(2), images)
        images = torch.where(_of_images(half), images.flip(2, 3), images)
    return images


def whole_shift(chances: Chances, height: int, width: int) -> Tensor:
    """(B, 2) pixels to the right and downwards; 0 where no shift happens."""
    x = torch.round((chances.uniform("xint x") * 2 - 1) * SHIFT * width)
    y = torch.round((chances.uniform("xint y") * 2 - 1) * SHIFT * height)
    return torch.stack([x, y], 1) * chances.happens("xint")[:, None]


def shifted(images: Tensor, shift: Tensor) -> Tensor:
    """``images`` moved by (B, 2) whole pixels; what comes in from outside is the mirror image."""
    height, width = images.shape[2:]
    columns = torch.arange(width, device=images.device) - shift[:, :1].long()
    rows = torch.arange(height, device=images.device) - shift[:, 1:].long()
    return picked(images, mirrored(rows, height), mirrored(columns, width))


def picked(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """out[b, c, i, j] = images[b, c, rows[b, i], columns[b, j]]; rows (B, H), columns (B, W)."""
    images = images.gather(2, rows[:, None, :, None].expand(images.shape))
    return images.gather(3, columns[:, None, None, :].expand(images.shape))


def _of_images(per_image: Tensor) -> Tensor:
    return per_image[:, None, None, None]
