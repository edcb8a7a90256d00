"""Filters for images in plain torch operations: up and down by two, low-pass, and a nonlinearity
between the two that keeps it from aliasing (Karras et al. 2020, 2021).

All filters are separable: ``taps`` are those of one axis, normalised to sum 1 here. Pixels outside
of the image are 0. ``upsample`` and ``downsample`` with the same taps are adjoint up to the factor
4, and both keep the mean level; an even number of taps puts a pixel in the middle of its four, an
odd number on the first of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Taps = tuple[float, ...]
Pair = tuple[int, int]
BINOMIAL: Taps = (1.0, 3.0, 3.0, 1.0)
"""The filter of StyleGAN2."""
TRIANGLE: Taps = (1.0, 2.0, 1.0)
"""Linear interpolation: the filter of R3GAN."""


def low_pass(x: Tensor, taps: Taps = BINOMIAL, padding: Pair | None = None) -> Tensor:
    """x (B, C, H, W) convolved with the filter, (B, C, H, W).

    ``padding`` is the number of zeros (before, after) of each axis, for another size than x's: the
    output's is H + before + after + 1 - taps. By default that of the same size.
    """
    if padding is None:
        padding = (len(taps) // 2, (len(taps) - 1) // 2)
    return _convolve(x, taps, padding, stride=1)


def downsample(x: Tensor, taps: Taps = BINOMIAL) -> Tensor:
    """Low-pass, then every second pixel of each axis: (B, C, H, W) -> (B, C, H/2, W/2)."""
    return _convolve(x, taps, _border(taps), stride=2)


def upsample(x: Tensor, taps: Taps = BINOMIAL) -> Tensor:
    """Zeros between the pixels, then low-pass with gain 4: (B, C, H, W) -> (B, C, 2H, 2W)."""
    before, after = _border(taps)
    least = min(before, after)
    height, width = 2 * x.shape[2], 2 * x.shape[3]
    for kernel in _kernels(taps, x, gain=4.0):
        stride, cut = _sizes(kernel, 2, 1), _sizes(kernel, least, 0)
        x = _fixed(x, kernel, stride, cut, transposed=True)
    extra = before - least
    return x[:, :, extra : extra + height, extra : extra + width]


def kaiser_filter(taps: int, cutoff: float, width: float) -> Taps:
    """A low-pass filter: the ideal one of ``cutoff`` times a Kaiser window (Kaiser 1974).

    ``cutoff`` and the ``width`` of its transition are in cycles a sample of the signal that the
    filter is applied to, so at most 0.5. Upsampling by two to the whole old band has cutoff 0.25.
    """
    attenuation = 2.285 * (taps - 1) * math.pi * 2 * width + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    place = np.arange(taps) - (taps - 1) / 2
    response = 2 * cutoff * np.sinc(2 * cutoff * place) * np.kaiser(taps, beta)
    return tuple(float(value) for value in response / response.sum())


WHOLE_BAND = kaiser_filter(taps=12, cutoff=0.25, width=(math.sqrt(2) - 1) / 2)
"""Of StyleGAN3's layers at their full resolution, for up or down by two."""


def filtered_leaky_relu(x: Tensor, slope: float = 0.2, taps: Taps = WHOLE_BAND) -> Tensor:
    """Leaky ReLU at twice the resolution, (B, C, H, W) -> (B, C, H, W).

    A nonlinearity makes frequencies above the band of its input, which fold back as aliases tied
    to the pixel grid; at twice the resolution the filter removes most of them before they fold
    (Karras et al. 2021, section 3.2).
    """
    return downsample(F.leaky_relu(upsample(x, taps), slope), taps)


def _border(taps: Taps) -> Pair:
    """Zeros (before, after) that downsampling adds, and pixels that upsampling cuts off."""
    return (len(taps) - 1) // 2, (len(taps) - 2) // 2


def _convolve(x: Tensor, taps: Taps, padding: Pair, stride: int) -> Tensor:
    """The filter, from ``padding`` zeros before the first pixel on, at each ``stride``-th place."""
    before, after = padding
    least = min(before, after)
    if before != after:
        x = F.pad(x, (before - least, after - least) * 2)
    for kernel in _kernels(taps[::-1], x):  # torch's convolution is a correlation
        steps, pad = _sizes(kernel, stride, 1), _sizes(kernel, least, 0)
        x = _fixed(x, kernel, steps, pad, transposed=False)
    return x


def _kernels(taps: Taps, x: Tensor, gain: float = 1.0) -> list[Tensor]:
    """Depthwise kernels (C, 1, h, w) that make the filter one after the other: a square one of a
    few taps, where one pass over the image is faster than two, or a column and a row."""
    scale = math.sqrt(gain) / sum(taps)
    # Made on the host and copied without waiting for the device.
    row = torch.tensor([tap * scale for tap in taps], dtype=x.dtype, device="cpu")
    row = row.to(x.device, non_blocking=True)
    kernels = [row[:, None] * row] if len(taps) <= 4 else [row[:, None], row[None, :]]
    return [kernel.expand(x.shape[1], 1, -1, -1) for kernel in kernels]


def _sizes(kernel: Tensor, along: int, across: int) -> Pair:
    """``along`` for the axes that the kernel filters, ``across`` for those that it leaves."""
    height, width = kernel.shape[2:]
    return (along if height > 1 else across), (along if width > 1 else across)


def _fixed(x: Tensor, kernel: Tensor, stride: Pair, padding: Pair, transposed: bool) -> Tensor:
    y: Tensor = _FixedConvolution.apply(x, kernel, stride, padding, transposed, (0, 0))  # type: ignore[no-untyped-call]
    return y


class _FixedConvolution(torch.autograd.Function):
    """Depthwise convolution with a kernel that is not learned: its derivatives of all orders are
    itself and its transpose. torch's own second derivative, which gradient penalties take, would
    work out the kernel's gradient as well, one channel after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernel: Tensor,
        stride: Pair,
        padding: Pair,
        transposed: bool,
        extra: Pair,
    ) -> Tensor:
        """``extra`` rows and columns are added at the end of a transposed one."""
        ctx.save_for_backward(kernel)
        ctx.stride, ctx.padding, ctx.transposed, ctx.size = stride, padding, transposed, x.shape[2:]
        y: Tensor = torch.ops.aten.convolution(
            x, kernel, None, stride, padding, (1, 1), transposed, extra, x.shape[1]
        )
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (kernel,) = ctx.saved_tensors
        extra = (0, 0)
        if not ctx.transposed:
            # What the steps of the stride left over at the end of x.
            rows, columns = (
                size - (steps - 1) * stride + 2 * padding - taps
                for size, steps, stride, padding, taps in zip(
                    ctx.size,
                    gradient.shape[2:],
                    ctx.stride,
                    ctx.padding,
                    kernel.shape[2:],
                    strict=True,
                )
            )
            extra = (rows, columns)
        arguments = (kernel, ctx.stride, ctx.padding, not ctx.transposed, extra)
        own: Tensor = _FixedConvolution.apply(gradient, *arguments)  # type: ignore[no-untyped-call]
        return own, None, None, None, None, None
