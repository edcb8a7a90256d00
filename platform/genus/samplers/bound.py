"""The evidence lower bound of discrete diffusion (Ho et al. 2020, eq. 5), in sigma coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genus.data.pixels import to_unit
from genus.draws import Draws
from genus.objectives.phase import LogDensity
from genus.samplers.denoiser import Denoiser, per_row


@dataclass(frozen=True, kw_only=True)
class EvidenceBound:
    """How to evaluate the evidence lower bound."""

    terms: int = 100
    """Random terms L_t a row (one network call each), with a standard error; 0 sums them all."""
    variance: Literal["small", "large"] = "large"
    """Of the reverse process: beta-tilde_t (small) or beta_t (large), the tighter for images."""


@torch.no_grad()
def evidence_bound(
    denoiser: Denoiser,
    sigma: Tensor,
    image: Tensor,
    label: Tensor | None,
    draws: Draws,
    config: EvidenceBound,
) -> LogDensity:
    """-(L_T + sum of L_{t-1} + L_0) of images (B, C, H, W), uint8 (log mass) or float (density).

    ``sigma`` (T,) float64 is the chain's ascending noise levels. The reverse process has one of Ho
    et al.'s fixed variances and the prior N(0, I), which is N(0, (1 + sigma_T^2) I) here. Of
        L_{t-1} = dims / 2 (r - 1 - ln r) + r (snr_{t-1} - snr_t) / 2 |x_0 - D|^2
    with r = beta-tilde_t / variance_t, the first part is exact and the second estimated. (Small
    variances have r = 1: Kingma et al. 2021, eq. 13.)
    """
    draws = draws.scoped("likelihood")
    x0 = to_unit(image)
    x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
    sigma = sigma.to(x0.device)
    snr, dims = sigma**-2, x0[0].numel()
    r = torch.ones_like(snr[1:])
    if config.variance == "large":
        r = (snr[1:] + 1) / (snr[:-1] + 1)  # beta-tilde_t / beta_t = (1-abar_{t-1}) / (1-abar_t)
    weight = r * (snr[:-1] - snr[1:]) / 2
    exact = dims / 2 * (r - 1 - r.log()).sum().item() + _prior_kl(x0, sigma[-1].item())

    def denoised(i: Tensor, name: str) -> Tensor:
        level = sigma[i]
        x = x0 + per_row(level, x0) * draws.normal(name, x0.shape[1:], x0.dtype)
        return denoiser(x, level.to(x0.dtype), label)

    def term(i: Tensor, name: str) -> Tensor:
        """The second part of L_{t-1}, (B,), at index i = t - 1 > 0 of the chain."""
        error = (x0 - denoised(i, name)).flatten(1).square().sum(1)
        return weight[i - 1].to(x0.dtype) * error

    first = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
    decoder = _log_decoder(image, x0, denoised(first, "eps0"), _decoder_std(sigma, config))
    if config.terms == 0:
        middle, error = x0.new_zeros(len(x0)), None
        for i in range(1, len(sigma)):
            middle = middle + term(first + i, f"eps{i}")
    else:
        # Any positive probabilities leave the mean unchanged. These make all terms alike for
        # Gaussian data of standard deviation 1/2, whose least error is 1 / (snr + 4).
        p = weight / (snr[1:] + 4)
        p = p / p.sum()
        estimates = torch.empty(config.terms, len(x0), dtype=x0.dtype, device=x0.device)
        for k in range(config.terms):
            u = draws.uniform(f"term{k}", (), torch.float64)
            j = torch.searchsorted(p.cumsum(0), u).clamp(max=len(p) - 1)
            estimates[k] = term(j + 1, f"eps_term{k}") / p[j]
        middle = estimates.mean(0)
        error = estimates.std(0) / math.sqrt(config.terms) if config.terms > 1 else None
    how = f"{config.terms} random terms" if config.terms else f"all {len(sigma)} terms"
    form = "discretised Gaussian" if image.dtype == torch.uint8 else "Gaussian"
    return LogDensity(
        nats=decoder - middle - exact,
        kind="lower bound",
        dequantisation=f"none; {form} decoder, {config.variance} variance, {how}",
        dims=dims,
        standard_error=error,
    )


def _prior_kl(x0: Tensor, sigma: float) -> Tensor:
    """L_T = KL(N(x0, sigma^2 I) || N(0, (1 + sigma^2) I)), (B,)."""
    dims, variance = x0[0].numel(), 1 + sigma**2
    constant = dims / 2 * (math.log1p(sigma**-2) - 1 / variance)
    return constant + x0.flatten(1).square().sum(1) / (2 * variance)


def _decoder_std(sigma: Tensor, config: EvidenceBound) -> float:
    """Of p(x_0 | x_1): sqrt(beta_1), or for small variances sqrt(beta-tilde_2) as in Ho et al.'s
    code, for beta-tilde_1 is 0."""
    first, second = sigma[0].item() ** 2, sigma[1].item() ** 2
    beta_1 = first / (1 + first)
    return math.sqrt(beta_1 if config.variance == "large" else beta_1 * (1 - first / second))


def _log_decoder(image: Tensor, x0: Tensor, mean: Tensor, std: float) -> Tensor:
    """-L_0, (B,): Ho et al. 2020, eq. 13 for uint8 levels, a plain Gaussian for floats."""
    if image.dtype != torch.uint8:
        log_p = -(((x0 - mean) / std) ** 2) / 2 - math.log(std * math.sqrt(2 * math.pi))
        return log_p.flatten(1).sum(1)
    half_bin = 1 / 255
    z = (x0.double() - mean.double()) / std
    low = (z - half_bin / std).masked_fill(image == 0, -math.inf)
    high = (z + half_bin / std).masked_fill(image == 255, math.inf)
    # ln(Phi(high) - Phi(low)) without cancellation: by symmetry always in the left tail.
    low, high = torch.where(z > 0, -high, low), torch.where(z > 0, -low, high)
    log_high = torch.special.log_ndtr(high)
    log_p = log_high + torch.log1p(-torch.exp(torch.special.log_ndtr(low) - log_high))
    nats: Tensor = log_p.flatten(1).sum(1)
    return nats.to(x0.dtype)
