"""Monotone maps of single numbers, with parameters that another network gives.

Each has ``size`` parameters a number. ``transform`` maps x with parameters (..., size) to y and
log dy/dx of the same shape; ``inverse`` maps back. Parameters of 0 give the identity (affine with
``glow`` scales: nearly), so that a conditioner that starts at zero starts the flow there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Elementwise(Protocol):
    """A family of monotone maps."""

    @property
    def size(self) -> int:
        """Parameters a number."""

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x (...), parameters (..., size) -> y (...), log dy/dx (...)."""

    def inverse(self, y: Tensor, parameters: Tensor) -> Tensor:
        """The x that is mapped to y."""


@dataclass(frozen=True)
class Additive:
    """y = x + b: NICE (Dinh et al. 2015, section 3.2)."""

    size: int = 1

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + parameters[..., 0], torch.zeros_like(x)

    def inverse(self, y: Tensor, parameters: Tensor) -> Tensor:
        return y - parameters[..., 0]


@dataclass(frozen=True)
class Affine:
    """y = x exp(s) + b (Dinh et al. 2017, eq. 7), or Glow's y = (x + b) sigmoid(s + 2).

    "tanh" bounds s to (-``bound``, ``bound``) softly; "glow" is bounded above by 0 by itself.
    """

    scale: Literal["tanh", "glow"] = "tanh"
    bound: float = 3.0
    size: int = 2

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        s, b = self._log_scale_and_shift(parameters)
        if self.scale == "glow":
            return (x + b) * s.exp(), s
        return x * s.exp() + b, s

    def inverse(self, y: Tensor, parameters: Tensor) -> Tensor:
        s, b = self._log_scale_and_shift(parameters)
        if self.scale == "glow":
            return y * (-s).exp() - b
        return (y - b) * (-s).exp()

    def _log_scale_and_shift(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raw, b = parameters.unbind(-1)
        if self.scale == "glow":
            return F.logsigmoid(raw + 2), b
        return self.bound * torch.tanh(raw / self.bound), b


@dataclass(frozen=True)
class RationalQuadratic:
    """Monotone rational-quadratic spline on [-B, B], the identity outside (Durkan et al. 2019).

    K ``bins`` with K widths, K heights and K - 1 inner derivatives; the outer two are 1.
    """

    bins: int = 8
    bound: float = 3.0
    least: float = 1e-3
    """Of widths and heights (of the whole interval's 1) and derivatives."""

    @property
    def size(self) -> int:
        return 3 * self.bins - 1

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        knots, derivatives = self._knots(parameters)
        inside = (x > -self.bound) & (x < self.bound)
        k = _bin_of(x, knots[..., 0, :])
        x_k, w, y_k, h, d, d_next = _at(k, knots, derivatives)
        slope = h / w  # s_k
        xi = ((x - x_k) / w).clamp(0, 1)
        rest = xi * (1 - xi)
        bottom = slope + (d_next + d - 2 * slope) * rest
        y = y_k + h * (slope * xi.square() + d * rest) / bottom  # eq. 4
        top = d_next * xi.square() + 2 * slope * rest + d * (1 - xi).square()
        log_derivative = 2 * (slope / bottom).log() + top.log()  # eq. 5
        return torch.where(inside, y, x), torch.where(inside, log_derivative, 0.0)

    def inverse(self, y: Tensor, parameters: Tensor) -> Tensor:
        knots, derivatives = self._knots(parameters)
        inside = (y > -self.bound) & (y < self.bound)
        k = _bin_of(y, knots[..., 1, :])
        x_k, w, y_k, h, d, d_next = _at(k, knots, derivatives)
        slope = h / w
        up = (y - y_k).clamp(min=0)
        bend = d_next + d - 2 * slope
        a = h * (slope - d) + up * bend  # eq. 6-8
        b = h * d - up * bend
        c = -slope * up
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        xi = 2 * c / (-b - root)  # the form of the quadratic formula that does not cancel
        return torch.where(inside, x_k + xi.clamp(0, 1) * w, y)

    def _knots(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of the knots, rising, (..., 2, K + 1), and the derivatives (..., K + 1) there."""
        sizes, slopes = torch.split(parameters, [2 * self.bins, self.bins - 1], dim=-1)
        shares = sizes.reshape(*sizes.shape[:-1], 2, self.bins).softmax(-1)
        parts = self.least + (1 - self.least * self.bins) * shares
        inner = 2 * self.bound * parts.cumsum(-1)[..., :-1] - self.bound
        knots = F.pad(F.pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)
        # softplus(0 + shift) + least = 1: zero parameters are the identity
        shift = math.log(math.expm1(1 - self.least))
        return knots, F.pad(F.softplus(slopes + shift) + self.least, (1, 1), value=1.0)


def _bin_of(value: Tensor, knots: Tensor) -> Tensor:
    """(...) the bin of each value, by knots (..., K + 1); the outer bins for what lies outside."""
    return (value[..., None] >= knots[..., 1:-1]).sum(-1)


def _at(k: Tensor, knots: Tensor, derivatives: Tensor) -> tuple[Tensor, ...]:
    """x_k, width, y_k, height, and the derivatives at both ends, of the bins k (...)."""
    ends = torch.stack([k, k + 1], dim=-1)
    x, x_next, y, y_next = (
        knots.gather(-1, ends.unsqueeze(-2).expand(*k.shape, 2, 2)).flatten(-2).unbind(-1)
    )
    d, d_next = derivatives.gather(-1, ends).unbind(-1)
    return x, x_next - x, y, y_next - y, d, d_next
