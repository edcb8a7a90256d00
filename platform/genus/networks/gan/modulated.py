"""Modulated convolution (Karras et al. 2020, section 2.2): each sample has its own weights, the
shared ones times its style for each input channel, and divided by their norm (demodulation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.networks.filtering import low_pass

EPSILON = 1e-8


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    demodulate: bool = True,
    up: bool = False,
    grouped: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """x (B, I, H, W), weight (O, I, k, k), style (B, I) -> (B, O, H, W), or (B, O, 2H, 2W) where
    ``up``: convolved at twice the resolution, then filtered.

    Two ways to the same numbers. ``grouped`` makes each sample's weights and convolves in one group
    a sample. The other one scales the input's and the output's channels around one convolution with
    the shared weights: no weights of each sample, neither in memory nor in the backward passes.
    """
    way = _grouped if grouped else _scaled
    return way(x, weight, style, demodulate, up, gain)


def _scaled(
    x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool, gain: float
) -> Tensor:
    y = _convolve(x * style[:, :, None, None], weight, up, groups=1)
    if demodulate:
        # |w_o * s|^2 of sample b and output o, without the product's (B, O, I, k, k) numbers.
        norm = F.linear(style.square(), weight.square().sum(dim=(2, 3)))
        return y * ((norm + EPSILON).rsqrt() * gain)[:, :, None, None]
    return y if gain == 1.0 else y * gain


def _grouped(
    x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool, gain: float
) -> Tensor:
    rows = len(x)
    own = weight[None] * style[:, None, :, None, None]
    scale = torch.full((rows, len(weight)), gain, dtype=x.dtype, device=x.device)
    if demodulate:
        scale = (own.square().sum(dim=(2, 3, 4)) + EPSILON).rsqrt() * gain
    own = own * scale[:, :, None, None, None]
    y = _convolve(x.flatten(0, 1)[None], own.flatten(0, 1), up, groups=rows)
    return y.view(rows, len(weight), *y.shape[2:])


def _convolve(x: Tensor, weight: Tensor, up: bool, groups: int) -> Tensor:
    if not up:
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)
    # The transposed convolution wants (inputs, outputs) within each group.
    split = weight.view(groups, -1, *weight.shape[1:])
    turned = split.transpose(1, 2).flatten(0, 1)
    # A row and a column more than twice the size, which the filter uses up; 4 makes up for zeros.
    return low_pass(F.conv_transpose2d(x, turned * 4, stride=2, groups=groups), padding=(1, 1))
