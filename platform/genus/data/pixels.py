"""Between pixel levels and the range that networks see."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(image: Tensor) -> Tensor:
    """uint8 levels (B, C, H, W) to float32 in [-1, 1]; floats (latents, say) pass unchanged."""
    return image.float() / 127.5 - 1 if image.dtype == torch.uint8 else image


def to_levels(image: Tensor) -> Tensor:
    """[-1, 1] to the nearest uint8 level; what lies outside is clipped."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
