"""Draws from a finite distribution by given uniform numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def choose(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draws from logits (B, V) by uniforms (B,) in [0, 1), inverting the cumulative distribution:
    int64 (B,). A token of probability 0 is never drawn."""
    cdf = logits.double().softmax(-1).cumsum(-1)
    # Rounded, the sum is not quite 1; u < 1 of what it is lies strictly below its last increase.
    at = uniforms.double()[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, at, right=True)[:, 0]
