"""The one interface between trained diffusion-type models and samplers.

Every Gaussian path x_t = alpha_t x_0 + sigma_t eps becomes, divided by alpha_t, the
variance-exploding path x = x_0 + sigma eps with sigma = sigma_t / alpha_t (Karras et al. 2022,
section 2). Objectives therefore wrap their network as a Denoiser in these coordinates, and every
sampler and likelihood is written once.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """D(x; sigma) = E[x_0 | x_0 + sigma eps = x]."""

    @property
    def sigma_min(self) -> float:
        """Smallest noise level that the network was trained for."""

    @property
    def sigma_max(self) -> float:
        """Largest; the prior at the start of sampling is N(0, sigma_max^2 I)."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, ...) noisy data, sigma () or (B,), label (B,) int64 or None; returns (B, ...)."""

    def noise_levels(self, steps: int) -> Tensor:
        """The family's own descending grid, float64 (steps + 1,), from sigma_max to a final 0."""


def per_row(value: Tensor, x: Tensor) -> Tensor:
    """``value`` () or (B,) as (B, 1, ..., 1) in x's dtype, to multiply x (B, ...)."""
    return value.to(x.dtype).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))
