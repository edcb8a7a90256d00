"""Networks inside couplings: from the kept part to the parameters of the changed part.

Each ends in a layer of zeros (the MLP: nearly), so that a coupling starts at what parameters of 0
mean.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

L = TypeVar("L", nn.Linear, nn.Conv2d)


class MLP(nn.Module):
    """(B, C) -> (B, C'), ``depth`` hidden layers of ``width``; context (B, F) joins the first."""

    def __init__(
        self, fan_in: int, fan_out: int, width: int, depth: int, features: int = 0
    ) -> None:
        super().__init__()
        self.first = nn.Linear(fan_in, width)
        self.context = nn.Linear(features, width) if features else None
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nearly_zero(nn.Linear(width, fan_out))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = self.first(x)
        if self.context is not None:
            x = x + self.context(context)
        for layer in self.hidden:
            x = layer(F.relu(x))
        out: Tensor = self.last(F.relu(x))
        return out


class ConvNet(nn.Module):
    """Glow's: 3x3, 1x1 and 3x3 convolutions with ReLU (Kingma & Dhariwal 2018, section 5);
    context (B, F) joins the first's output.

    Channels come last in memory: the convolutions are up to twice as fast then, and the 1x1 is a
    matrix product.
    """

    def __init__(self, fan_in: int, fan_out: int, width: int, features: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(fan_in, width, 3, padding=1)
        self.context = nn.Linear(features, width) if features else None
        self.middle = nn.Conv2d(width, width, 1)
        self.last = zero(nn.Conv2d(width, fan_out, 3, padding=1))
        for layer in (self.first, self.middle):
            zero(layer)
            nn.init.normal_(layer.weight, std=0.05)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        if self.context is not None:
            x = x + self.context(context)[:, :, None, None]
        B, _, H, W = x.shape
        rows = F.relu_(x).permute(0, 2, 3, 1).flatten(0, 2)
        rows = F.relu_(F.linear(rows, self.middle.weight.flatten(1), self.middle.bias))
        out: Tensor = self.last(rows.reshape(B, H, W, -1).permute(0, 3, 1, 2))
        return out


class ConvPrior(nn.Module):
    """One 3x3 convolution, from the half that goes on to the other's mean and scale."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.last = zero(nn.Conv2d(fan_in, fan_out, 3, padding=1))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        out: Tensor = self.last(x)
        return out


class ResNet(nn.Module):
    """RealNVP's: residual blocks of two 3x3 convolutions at full resolution (Dinh et al. 2017,
    section 4.1), with group normalisation in the place of batch normalisation, whose rows are not
    independent; context (B, F) joins every block."""

    def __init__(
        self, fan_in: int, fan_out: int, width: int, blocks: int, features: int = 0
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(fan_in, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width, features) for _ in range(blocks))
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.last = zero(nn.Conv2d(width, fan_out, 1))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x, context)
        out: Tensor = self.last(F.relu(self.norm(x)))
        return out


class ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x))))))."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm0 = nn.GroupNorm(math.gcd(8, width), width)
        self.conv0 = nn.Conv2d(width, width, 3, padding=1)
        self.context = nn.Linear(features, width) if features else None
        self.norm1 = nn.GroupNorm(math.gcd(8, width), width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = self.conv0(F.relu(self.norm0(x)))
        if self.context is not None:
            h = h + self.context(context)[:, :, None, None]
        out: Tensor = x + self.conv1(F.relu(self.norm1(h)))
        return out


def nearly_zero(layer: L) -> L:
    """The layer with small weights and no bias: spline flows learn faster than from zeros."""
    nn.init.normal_(zero(layer).weight, std=0.02)
    return layer


def zero(layer: L) -> L:
    """The layer with weights and bias of zero."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
