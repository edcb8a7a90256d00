"""Modulated convolution (Karras et al. 2020, section 2.2): each sample has its own weights, the
shared ones times its style for each input channel, and divided by their norm (demodulation)."""

from __future__ import annotations

import math
from contextlib import nullcontext

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
    if not demodulate:
        y = _convolve(x * style[:, :, None, None], weight, up, groups=1)
        return y if gain == 1.0 else y * gain
    # Sizes of weights and styles cancel, so both are made small where numbers end at 65504; in
    # other formats scaling the weights would only cost time, up to a sixth of a small layer's.
    equalised = 1 / math.sqrt(weight[0].numel()) if _in_float16(x) else 1.0
    style, norm = _normalised(weight, style, equalised)
    scaled = x * style.to(x.dtype)[:, :, None, None]
    y = _convolve(scaled, weight, up, groups=1, scale=equalised)
    # An output of weights 0 has norm 0, and 0 times infinity is not a number.
    by = (norm.rsqrt() * gain).clamp(max=torch.finfo(y.dtype).max)
    return y * by.to(y.dtype)[:, :, None, None]


def _in_float16(x: Tensor) -> bool:
    """Whether a convolution of x is."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) == torch.float16
    return x.dtype == torch.float16


def _normalised(weight: Tensor, style: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Styles (B, I) of size 1 at most, and with them |scale * w_o * s|^2 + epsilon (B, O), without
    the product's (B, O, I, k, k) numbers. In float32 at least: the sum overflows float16.

    The largest style is a constant of the derivatives: what is convolved and divided by this norm
    does not depend on it at all, since epsilon is divided by it, too.
    """
    wide = torch.promote_types(style.dtype, torch.float32)
    device = style.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        style = style.to(wide)
        largest = style.detach().abs().amax(dim=1, keepdim=True).clamp(min=EPSILON)
        style = style / largest
        energy = weight.to(wide).square().sum(dim=(2, 3))
        norm = F.linear(style.square() * scale**2, energy)
        return style, norm + EPSILON * (scale / largest).square()


def _grouped(
    x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool, gain: float
) -> Tensor:
    rows = len(x)
    wide = torch.promote_types(style.dtype, torch.float32)
    own = weight[None] * style.to(wide)[:, None, :, None, None]
    scale = torch.full((rows, len(weight)), gain, dtype=wide, device=x.device)
    if demodulate:
        scale = (own.square().sum(dim=(2, 3, 4)) + EPSILON).rsqrt() * gain
    own = (own * scale[:, :, None, None, None]).to(x.dtype)
    y = _convolve(x.flatten(0, 1)[None], own.flatten(0, 1), up, groups=rows)
    return y.view(rows, len(weight), *y.shape[2:])


def _convolve(x: Tensor, weight: Tensor, up: bool, groups: int, scale: float = 1.0) -> Tensor:
    """With ``scale`` times the weights."""
    if not up:
        weight = weight if scale == 1.0 else weight * scale
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)
    # The transposed convolution wants (inputs, outputs) within each group.
    split = weight.view(groups, -1, *weight.shape[1:])
    turned = split.transpose(1, 2).flatten(0, 1) * (4 * scale)  # 4 makes up for zeros
    # A row and a column more than twice the size, which the filter uses up.
    return low_pass(F.conv_transpose2d(x, turned, stride=2, groups=groups), padding=(1, 1))
