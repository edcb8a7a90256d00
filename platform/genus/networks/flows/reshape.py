"""Bijections that only move numbers about."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.networks.flows.bijection import Bijection, Transformed, zeros


class Squeeze(Bijection):
    """(B, C, H, W) -> (B, 4 C, H / 2, W / 2): each 2 x 2 block becomes four channels."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        x = x.contiguous(memory_format=torch.channels_last)
        return F.pixel_unshuffle(x, 2), zeros(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return F.pixel_shuffle(y, 2)


class Shape(Bijection):
    """(B, D) <- (B, *shape): flat at the end of a flow, as its base distribution is."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        return x.flatten(1), zeros(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return y.reshape(len(y), *self.shape)
