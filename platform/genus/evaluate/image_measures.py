"""What can be measured on an image without labels.

v is the luma (ITU-R 601) in [0, 1] of an image's pixels, x and y their places from 0 to 1. Width,
height and symmetry take v as mass, so they are of bright things on a dark ground; on photographs
they say how light is spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Measure = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) nominally in [-1, 1], C = 1 or 3, to (B,)."""


def brightness(images: Tensor) -> Tensor:
    """mean v"""
    return _luma(images).mean(dim=(1, 2))


def contrast(images: Tensor) -> Tensor:
    """standard deviation of v over the pixels"""
    return _luma(images).flatten(1).std(dim=1, correction=0)


def width(images: Tensor) -> Tensor:
    """sqrt(12 var(x)), x weighted by v: the width of an even bar, in widths of the image"""
    return _extent(_luma(images).sum(1))


def height(images: Tensor) -> Tensor:
    """sqrt(12 var(y)), y weighted by v: the height of an even bar, in heights of the image"""
    return _extent(_luma(images).sum(2))


def symmetry(images: Tensor) -> Tensor:
    """1 - sum |v - m| / sum (v + m), m the mirror image of v: 1 of equal halves, 0 where v and m
    have nothing in common"""
    v = _luma(images)
    m = v.flip(2)
    return 1 - (v - m).abs().sum((1, 2)) / (v + m).sum((1, 2)).clamp(min=1e-9)


MEASURES: dict[str, Measure] = {
    "brightness": brightness,
    "contrast": contrast,
    "width": width,
    "height": height,
    "symmetry": symmetry,
}


def nearness(start: Tensor, end: Tensor) -> Measure:
    """How much nearer an image is to ``end`` (C, H, W) than to ``start``: a / (a + b) of its mean
    squared distances a to ``start`` and b to ``end``."""

    def measure(images: Tensor) -> Tensor:
        a, b = ((images - one).square().mean(dim=(1, 2, 3)) for one in (start, end))
        return a / (a + b).clamp(min=1e-9)

    return measure


def _luma(images: Tensor) -> Tensor:
    """(B, H, W)"""
    v = ((images.float() + 1) / 2).clamp(0, 1)
    if v.shape[1] == 1:
        return v[:, 0]
    return torch.einsum("bchw,c->bhw", v, v.new_tensor([0.299, 0.587, 0.114]))


def _extent(mass: Tensor) -> Tensor:
    """Of mass (B, P) at P places."""
    places = (torch.arange(mass.shape[1], device=mass.device) + 0.5) / mass.shape[1]
    share = mass / mass.sum(1, keepdim=True).clamp(min=1e-9)
    mean = (share * places).sum(1, keepdim=True)
    return math.sqrt(12) * (share * (places - mean).square()).sum(1).sqrt()
