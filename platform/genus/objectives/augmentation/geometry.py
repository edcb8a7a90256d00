"""Scalings, rotations and fractional shifts, as one resampling of each image.

The image's mirror continuation is upsampled twice with an orthogonal low-pass filter, read
bilinearly at the transformed positions, and downsampled with the adjoint filter (Karras et al.
2020, appendix B). The continuation is periodic, so one period of it, which has a fixed size, holds
all that a position outside of the image can ask for: shapes never depend on the numbers drawn.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genus.objectives.augmentation.chances import Chances
from genus.objectives.augmentation.wavelets import DELAY, Banded, downsampling, upsampling

SCALE_OCTAVES, ANISO_OCTAVES = 0.2, 0.2
"""Standard deviations of log2 of the scales."""
FRACTION = 0.125
"""Standard deviation of the fractional shift, as a share of the image's side."""


def inverse_transform(
    chances: Chances, whole_shift: Tensor | None, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """(matrices (B, 3, 3) from positions in the result to positions in the image, which of them
    aren't the identity (B,) bool). Positions are pixels (x, y, 1) from the image's centre.

    An image is shifted (``whole_shift`` (B, 2) pixels), scaled, rotated, scaled by (a, 1/a),
    rotated again and shifted again. Either rotation happens with probability 1 - sqrt(1 - p), so
    that some rotation happens with probability p.
    """
    zero = torch.zeros_like(chances.gates[:, 0])
    one = zero + 1

    def rotation(name: str) -> Tensor:
        angle = (chances.uniform(name) * 2 - 1) * math.pi
        cos, sin = angle.cos(), angle.sin()
        return _matrix(cos, -sin, zero, sin, cos, zero)

    def shift(x: Tensor, y: Tensor) -> Tensor:
        return _matrix(one, zero, -x, zero, one, -y)

    p_rotate = 1 - torch.sqrt((1 - chances.p).clamp(0, 1))
    steps: list[tuple[Tensor, Tensor]] = []
    if whole_shift is not None:
        steps.append(((whole_shift != 0).any(1), shift(whole_shift[:, 0], whole_shift[:, 1])))
    if "scale" in chances.on:
        s = torch.exp2(-SCALE_OCTAVES * chances.normal("scale"))
        steps.append((chances.happens("scale"), _matrix(s, zero, zero, zero, s, zero)))
    if "rotate" in chances.on:
        steps.append((chances.happens("rotate before", p_rotate), rotation("rotate before")))
    if "aniso" in chances.on:
        a = torch.exp2(ANISO_OCTAVES * chances.normal("aniso"))
        steps.append((chances.happens("aniso"), _matrix(1 / a, zero, zero, zero, a, zero)))
    if "rotate" in chances.on:
        steps.append((chances.happens("rotate after", p_rotate), rotation("rotate after")))
    if "xfrac" in chances.on:
        x = chances.normal("xfrac x") * FRACTION * width
        y = chances.normal("xfrac y") * FRACTION * height
        steps.append((chances.happens("xfrac"), shift(x, y)))

    inverse = identity = _matrix(one, zero, zero, zero, one, zero)
    active = zero > 0
    for happens, matrix in steps:
        inverse = inverse @ torch.where(happens[:, None, None], matrix, identity)
        active = active | happens
    return inverse, active


class Resampling:
    """Images of one size, seen through ``inverse`` matrices."""

    def __init__(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self._size = height, width
        up, down = (
            [Banded(matrix(size), device, dtype) for size in self._size]
            for matrix in (upsampling, downsampling)
        )
        self._up, self._down = up, down

    def __call__(self, images: Tensor, inverse: Tensor) -> Tensor:
        """``images`` (B, C, H, W), ``inverse`` (B, 3, 3) -> (B, C, H, W)."""
        fine = self._up[0].on_columns(self._up[1].on_rows(images))
        seen = sampled(fine, self._grid(inverse))
        return self._down[0].on_columns(self._down[1].on_rows(seen))

    def _grid(self, inverse: Tensor) -> Tensor:
        """(B, 2 H + 10, 2 W + 10, 2): where the fine image is read, in units of its half side."""
        y, x = (
            (torch.arange(2 * n + 10, device=inverse.device, dtype=inverse.dtype) - DELAY) / 2
            - (n - 1) / 2
            for n in self._size
        )
        m = inverse[:, :2, :, None, None]
        place = m[:, :, 0] * x + m[:, :, 1] * y[:, None] + m[:, :, 2]  # (B, 2, rows, columns)
        axes = []
        for axis, n in enumerate(reversed(self._size)):
            half = max(2 * (n - 1), 1)
            fine = 2 * (place[:, axis] + (n - 1) / 2) + DELAY
            axes.append(fine.remainder(2 * half) / half - 1)
        return torch.stack(axes, -1)


def sampled(images: Tensor, grid: Tensor) -> Tensor:
    """Bilinear ``grid_sample`` with aligned corners, differentiable any number of times in
    ``images`` (not in ``grid``) on every device and release of PyTorch that Genus runs on."""
    out: Tensor = _Sampled.apply(images, grid)  # type: ignore[no-untyped-call]
    return out


class _Sampled(torch.autograd.Function):
    """Sampling is linear in the image: its derivative is the adjoint, and the adjoint's derivative
    is sampling again."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = images.shape[2:]
        return F.grid_sample(images, grid, align_corners=True)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(grads[0], grid, *ctx.size), None  # type: ignore[no-untyped-call]


class _Spread(torch.autograd.Function):
    """The adjoint of sampling: each value goes to the pixels that it was read from."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
        ctx.save_for_backward(grid)
        # The kernel looks at the image's shape only, as long as no gradient of the grid is asked.
        image = values.new_zeros(1).expand(*values.shape[:2], height, width)
        out: Tensor = torch.ops.aten.grid_sampler_2d_backward(
            values.contiguous(), image, grid, 0, 0, True, (True, False)
        )[0]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grid,) = ctx.saved_tensors
        return _Sampled.apply(grads[0], grid), None, None, None  # type: ignore[no-untyped-call]


def _matrix(a: Tensor, b: Tensor, x: Tensor, c: Tensor, d: Tensor, y: Tensor) -> Tensor:
    """(B, 3, 3) with the rows (a, b, x), (c, d, y), (0, 0, 1)."""
    zero = torch.zeros_like(a)
    return torch.stack([a, b, x, c, d, y, zero, zero, zero + 1], 1).view(-1, 3, 3)
