"""Layers whose learning rate is equalised (Karras et al. 2018): parameters start at unit variance
and are scaled where they are used, so that Adam changes all of them at the same relative speed.

Leaky ReLU (slope 0.2) comes with the gain sqrt(2), which keeps the variance. It is positively
homogeneous, so the gain is put on the weights, where it costs nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.networks.filtering import downsample, low_pass

SLOPE = 0.2
GAIN = math.sqrt(2)
Clamp = float | None
"""Bound of the activations' size (conv_clamp of StyleGAN2-ADA); None leaves them free."""


def activate(x: Tensor, clamp: Clamp = None) -> Tensor:
    """Leaky ReLU, then the clamp; its gain is in the weights."""
    x = F.leaky_relu(x, SLOPE)
    return x if clamp is None else x.clamp(-clamp, clamp)


class Dense(nn.Module):
    """x (..., I) -> (..., O): a linear map, and leaky ReLU with its gain where ``active``.

    ``rate`` is the factor on the learning rate of its parameters.
    """

    def __init__(
        self, inputs: int, outputs: int, *, active: bool, rate: float = 1.0, bias: float = 0.0
    ) -> None:
        super().__init__()
        self.active = active
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.bias_scale = rate * (GAIN if active else 1.0)
        self.scale = self.bias_scale / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight * self.scale, self.bias * self.bias_scale)
        return F.leaky_relu(x, SLOPE) if self.active else x


class Conv(nn.Module):
    """x (B, I, H, W) -> (B, O, H, W), or (B, O, H/2, W/2) where ``down``: the filter, then every
    second pixel of the convolution. ``gain`` is on top of leaky ReLU's."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        down: bool = False,
        bias: bool = True,
        active: bool = True,
        gain: float = 1.0,
        clamp: Clamp = None,
    ) -> None:
        super().__init__()
        self.kernel, self.down, self.active = kernel, down, active
        self.clamp = None if clamp is None else clamp * gain
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.bias_scale = gain * (GAIN if active else 1.0)
        self.scale = self.bias_scale / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        bias = None if self.bias is None else self.bias * self.bias_scale
        if not self.down:
            x = F.conv2d(x, weight, bias, padding=self.kernel // 2)
        elif self.kernel == 1:
            x = F.conv2d(downsample(x), weight, bias)
        else:
            x = F.conv2d(low_pass(x, padding=(2, 2)), weight, bias, stride=2)
        return activate(x, self.clamp) if self.active else x


def channels_last(x: Tensor) -> Tensor:
    """The same numbers with the channels of a pixel side by side, as convolutions are faster with.
    Of the layers here each hands that order on, so a network asks for it once."""
    return x.contiguous(memory_format=torch.channels_last)


def unit_scale(x: Tensor) -> Tensor:
    """Each row (B, Z) divided by the root mean square of its numbers."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
