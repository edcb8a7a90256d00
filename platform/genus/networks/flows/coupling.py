"""Couplings: a part of x decides how the rest is transformed, and passes unchanged itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from genus.networks.flows.bijection import Bijection, Transformed, row_sum
from genus.networks.flows.elementwise import Elementwise

Conditioner = nn.Module
"""(a (B, C, ...), context) -> parameters (B, C' * size, ...) for the C' channels of the rest, the
parameters of a channel side by side."""
MakeConditioner = Callable[[int, int], Conditioner]
"""(channels in, channels out) -> a conditioner."""


class Coupling(Bijection):
    """Half of the channels transforms the other half; which one is ``second``'s choice."""

    def __init__(
        self,
        channels: int,
        transform: Elementwise,
        make: MakeConditioner,
        second: bool = True,
        both: bool = False,
    ) -> None:
        """``second``: the second half is transformed (with an odd number of channels the first has
        one more), else the first. ``both``: the half that decides is transformed too, by trained
        parameters that depend on nothing (Durkan et al. 2019, section 3)."""
        super().__init__()
        self.sizes = [channels - channels // 2, channels // 2]
        self.second, self.transform = second, transform
        fan_in, changed = self.sizes if second else self.sizes[::-1]
        self.conditioner = make(fan_in, changed * transform.size)
        self.own = nn.Parameter(torch.zeros(fan_in, transform.size)) if both else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        kept, changed = self._halves(x)
        given = self._given(kept, context)
        if self.own is None:
            y, log_derivative = self.transform.transform(changed, given)
            return self._joined(kept, y), row_sum(log_derivative)
        parameters = self._joined(_everywhere(self.own, kept), given)
        y, log_derivative = self.transform.transform(x, parameters)
        return y, row_sum(log_derivative)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        kept, changed = self._halves(y)
        if self.own is not None:
            kept = self.transform.inverse(kept, _everywhere(self.own, kept))
        x = self.transform.inverse(changed, self._given(kept, context))
        return self._joined(kept, x)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = torch.split(x, self.sizes, dim=1)
        return (a, b) if self.second else (b, a)

    def _joined(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([kept, changed] if self.second else [changed, kept], dim=1)

    def _given(self, kept: Tensor, context: Tensor | None) -> Tensor:
        return parameters_last(self.conditioner(kept, context), self.transform.size, kept.dtype)


class MaskedCoupling(Bijection):
    """Where the mask is 1, x is kept and decides; where it is 0, x is transformed."""

    mask: Tensor

    def __init__(self, mask: Tensor, transform: Elementwise, make: MakeConditioner) -> None:
        """``mask`` (C, ...) of 0 and 1, broadcastable to a row."""
        super().__init__()
        self.register_buffer("mask", mask.to(torch.get_default_dtype()), persistent=False)
        self.transform = transform
        channels = mask.shape[0]
        self.conditioner = make(channels, channels * transform.size)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        y, log_derivative = self.transform.transform(x, self._given(x, context))
        free = 1 - self.mask
        return torch.where(self.mask > 0, x, y), row_sum(log_derivative * free)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.where(self.mask > 0, y, self.transform.inverse(y, self._given(y, context)))

    def _given(self, x: Tensor, context: Tensor | None) -> Tensor:
        raw = self.conditioner(x * self.mask, context)
        return parameters_last(raw, self.transform.size, x.dtype)


def checkerboard(channels: int, height: int, width: int, even: bool) -> Tensor:
    """(C, H, W) ones where row + column is even (or odd): Dinh et al. 2017, figure 3."""
    parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    return (parity == (0 if even else 1)).float().expand(channels, height, width).contiguous()


def parameters_last(raw: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(B, C * size, ...) -> (B, C, ..., size), in the precision of the flow: under autocast the
    conditioner's products may be in bfloat16, but not what x is scaled by."""
    return rearrange(
        raw.to(torch.promote_types(dtype, torch.float32)), "b (c p) ... -> b c ... p", p=size
    )


def _everywhere(own: Tensor, x: Tensor) -> Tensor:
    """Parameters of channels (C, size) -> (B, C, ..., size), the same at every place of x."""
    places = x.shape[2:]
    return own.reshape(len(own), *[1] * len(places), -1).expand(*x.shape, -1)
