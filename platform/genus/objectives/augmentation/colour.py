"""Brightness, contrast, luma flip, hue and saturation, as one affine map of each image's colours.

Karras et al. 2020, appendix B. Images are in [-1, 1]; the luma axis is v = (1, 1, 1) / sqrt(3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genus.objectives.augmentation.chances import Chances

BRIGHTNESS = 0.2
"""Standard deviation of the brightness added."""
CONTRAST_OCTAVES, SATURATION_OCTAVES = 0.5, 1.0
"""Standard deviations of log2 of contrast and saturation."""


def recoloured(images: Tensor, chances: Chances) -> Tensor:
    """``images`` (B, 3, H, W), or (B, 1, H, W): grey images, whose hue and saturation are none."""
    matrix, offset = colour_map(chances)
    if images.shape[1] == 1:
        # What the map makes of r = g = b, averaged; sums first, so that 3/3 is exactly 1.
        scale = matrix.sum((1, 2)) / 3
        return images * scale[:, None, None, None] + (offset.sum(1) / 3)[:, None, None, None]
    colours = torch.baddbmm(offset[:, :, None], matrix, images.flatten(2))
    return colours.view(images.shape)


def colour_map(chances: Chances) -> tuple[Tensor, Tensor]:
    """(matrix (B, 3, 3), offset (B, 3)) of out = matrix colour + offset."""
    one = torch.ones_like(chances.gates[:, :1, None])
    luma = torch.full((3, 3), 1 / 3, dtype=one.dtype, device=one.device)  # v v^T
    identity = torch.eye(3, dtype=one.dtype, device=one.device)
    matrix, offset = identity * one, torch.zeros_like(chances.gates[:, :3])
    if "brightness" in chances.on:
        added = chances.normal("brightness") * BRIGHTNESS * chances.happens("brightness")
        offset = offset + added[:, None]
    if "contrast" in chances.on:
        gain = torch.exp2(chances.normal("contrast") * CONTRAST_OCTAVES)
        gain = torch.where(chances.happens("contrast"), gain, one[:, 0, 0])
        matrix, offset = matrix * gain[:, None, None], offset * gain[:, None]
    maps = []
    if "lumaflip" in chances.on:
        flips = chances.happens("lumaflip") & (chances.uniform("lumaflip") >= 0.5)
        maps.append((flips, (identity - 2 * luma) * one))  # Householder reflection along v
    if "hue" in chances.on:
        angle = (chances.uniform("hue") * 2 - 1) * math.pi
        maps.append((chances.happens("hue"), _rotation_about_luma(angle, identity, luma)))
    if "saturation" in chances.on:
        gain = torch.exp2(chances.normal("saturation") * SATURATION_OCTAVES)[:, None, None]
        maps.append((chances.happens("saturation"), luma + (identity - luma) * gain))
    for happens, step in maps:
        step = torch.where(happens[:, None, None], step, identity)
        matrix, offset = step @ matrix, (step @ offset[:, :, None])[:, :, 0]
    return matrix, offset


def _rotation_about_luma(angle: Tensor, identity: Tensor, luma: Tensor) -> Tensor:
    """Rodrigues' formula about v: cos I + sin [v]x + (1 - cos) v v^T; (B,) radians -> (B, 3, 3)."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    cross = (identity.roll(1, 0) - identity.roll(-1, 0)) / math.sqrt(3)
    return cos * identity + sin * cross + (1 - cos) * luma
