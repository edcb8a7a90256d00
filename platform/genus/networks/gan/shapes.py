"""Which shapes of data the networks of images can make, and their labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.errors import ConfigError


def square_image(family: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, resolution, n) of a square image of 4 * 2^n pixels a side, n at least 1;
    ConfigError for every other shape."""
    if len(shape) != 3:
        raise ConfigError(f"{family} makes images (C, H, W), and the data is {shape}")
    channels, height, width = shape
    doublings = (height // 4).bit_length() - 1
    if height != width or doublings < 1 or height != 4 << doublings:
        raise ConfigError(
            f"{family} makes square images of 8, 16, 32, ... pixels a side, and the data's are "
            f"{height} x {width}: fit them to one of these sizes"
        )
    return channels, height, doublings


def one_hot(label: Tensor | None, classes: int, like: Tensor) -> Tensor:
    """(B, classes) in the number format of ``like``; ValueError without labels."""
    if label is None:
        raise ValueError(f"a network of {classes} classes needs a label for each row")
    return F.one_hot(label, classes).to(like.dtype)


def with_label(z: Tensor, vector: Tensor | None) -> Tensor:
    """``z`` (B, Z), or with the label's vector (B, E) beside it (B, Z + E)."""
    return z if vector is None else torch.cat([z, vector], dim=1)
