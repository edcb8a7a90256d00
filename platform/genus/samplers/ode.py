"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma.

Karras et al. 2022, eq. 4 with sigma(t) = t. All take the noisy start ``x`` (B, ...) at noise level
``sigmas[0]``, a descending grid (steps + 1,) and labels (B,) or None, keep x's dtype, and return x
at noise level ``sigmas[-1]``.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from genus.draws import Draws
from genus.samplers.denoiser import Denoiser


def euler(denoiser: Denoiser, x: Tensor, sigmas: Tensor, label: Tensor | None = None) -> Tensor:
    """First order; the same steps as DDIM (Song et al. 2021a, eq. 12). One call a step."""
    levels = sigmas.tolist()
    for sigma, following in pairwise(levels):
        x = x + (following - sigma) * _slope(denoiser, x, sigma, label)
    return x


def heun(denoiser: Denoiser, x: Tensor, sigmas: Tensor, label: Tensor | None = None) -> Tensor:
    """Second order: Karras et al. 2022, Algorithm 1. Two calls a step, one in the step to 0."""
    levels = sigmas.tolist()
    for sigma, following in pairwise(levels):
        x = _heun_step(denoiser, x, sigma, following, label)
    return x


def heun_churn(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    *,
    draws: Draws,
    S_churn: float = 40.0,
    S_tmin: float = 0.05,
    S_tmax: float = 50.0,
    S_noise: float = 1.003,
) -> Tensor:
    """Stochastic: Karras et al. 2022, Algorithm 2; the defaults are Table 5's for ImageNet-64."""
    levels = sigmas.tolist()
    for i, (sigma, following) in enumerate(pairwise(levels)):
        if S_tmin <= sigma <= S_tmax and S_churn > 0:
            gamma = min(S_churn / (len(levels) - 1), math.sqrt(2) - 1)
            raised = sigma * (1 + gamma)
            noise = draws.normal(f"churn{i}", x.shape[1:], x.dtype)
            x = x + math.sqrt(raised**2 - sigma**2) * S_noise * noise
            sigma = raised
        x = _heun_step(denoiser, x, sigma, following, label)
    return x


def _heun_step(
    denoiser: Denoiser, x: Tensor, sigma: float, following: float, label: Tensor | None
) -> Tensor:
    d = _slope(denoiser, x, sigma, label)
    predicted = x + (following - sigma) * d
    if following == 0:
        return predicted
    corrected = _slope(denoiser, predicted, following, label)
    return x + (following - sigma) * (d + corrected) / 2


def _slope(denoiser: Denoiser, x: Tensor, sigma: float, label: Tensor | None) -> Tensor:
    return (x - denoiser(x, x.new_full((), sigma), label)) / sigma
