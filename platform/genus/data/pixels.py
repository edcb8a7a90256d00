"""Between pixel levels and the range that networks see."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(image: Tensor) -> Tensor:
    """uint8 levels (B, C, H, W) to float32 in [-1, 1], contiguous; floats (latents, say) pass
    unchanged."""
    if image.dtype != torch.uint8:
        return image
    # the stream's images have their channels innermost in memory: one pass turns and converts
    levels = image.to(torch.float32, memory_format=torch.contiguous_format)
    return levels.div_(127.5).sub_(1)


def to_levels(image: Tensor) -> Tensor:
    """[-1, 1] to the nearest uint8 level; what lies outside is clipped."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
