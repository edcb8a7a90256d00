"""Stochastic and deterministic sampling along a DDPM's chain, in sigma coordinates.

With x = x_t / sqrt(abar_t) the posterior of Ho et al. 2020, eq. 6-7 between two levels s < sigma is
    q(x_s | x, x_0) = N(x_0 + s^2 / sigma^2 (x - x_0), s^2 (sigma^2 - s^2) / sigma^2 I),
whether the levels are neighbours in the chain or a subset of it.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from genus.draws import Draws
from genus.samplers.denoiser import Denoiser


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    *,
    draws: Draws,
    eta: float = 0.0,
) -> Tensor:
    """Song et al. 2021a, eq. 12 and 16: eta 0 is deterministic, eta 1 ancestral. One call a step.

    ``x`` (B, ...) at noise level ``sigmas[0]``; ``sigmas`` descending, (steps + 1,).
    """
    levels = sigmas.tolist()
    for i, (sigma, s) in enumerate(pairwise(levels)):
        denoised = denoiser(x, x.new_full((), sigma), label)
        up = eta * s * math.sqrt(1 - (s / sigma) ** 2)  # sigma_tau(eta) / sqrt(abar), eq. 16
        down = math.sqrt(s**2 - up**2)
        x = denoised + down / sigma * (x - denoised)
        if up > 0:
            x = x + up * draws.normal(f"ancestral{i}", x.shape[1:], x.dtype)
    return x


def ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, label: Tensor | None = None, *, draws: Draws
) -> Tensor:
    """Ho et al. 2020, Algorithm 2, with the posterior's variance (their beta-tilde)."""
    return ddim(denoiser, x, sigmas, label, draws=draws, eta=1.0)
