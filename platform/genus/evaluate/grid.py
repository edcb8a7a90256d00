"""A sample grid as a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genus.atomic import replacing
from genus.errors import EvaluationError

GAP = 2
"""White pixels between the tiles."""
SMALL = 64
"""Tiles up to this many pixels a side are drawn at twice their size, each pixel as 2x2 equal ones,
so that a person sees them."""


def tile(images: Tensor, columns: int) -> Tensor:
    """(N, C, H, W) uint8 to one picture (C, rows * H + gaps, columns * W + gaps), filled by rows;
    what is left over in the last row is white."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise EvaluationError(
            f"a grid needs uint8 images (N, 1 or 3, H, W), not {images.dtype} {tuple(images.shape)}"
        )
    if columns < 1 or len(images) < 1:
        raise EvaluationError(f"a grid of {len(images)} images in {columns} columns")
    if max(images.shape[2:]) <= SMALL:
        images = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    picture = images.new_full(
        (channels, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255
    )
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        picture[:, top : top + height, left : left + width] = image
    return picture


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write ``tile(images, columns)`` as PNG (grey or RGB), atomically; the folder is made."""
    from PIL import Image

    pixels = tile(images.cpu(), columns).permute(1, 2, 0).squeeze(2).contiguous().numpy()
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
