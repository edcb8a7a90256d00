"""Log densities by the probability-flow ODE (Song et al. 2021b, section 4.3 and appendix D.2).

The density of the ODE's samples obeys d ln p(x) / dsigma = -div dx/dsigma along a trajectory. We
integrate in ln sigma and in y = x / s, s^2 = sigma^2 + sigma_data^2, where
    dy / dln sigma       = -(D(x; sigma) - c_skip x) / s,    c_skip = sigma_data^2 / s^2,
    dln p(y) / dln sigma = div_x D - dims c_skip:
both vanish for Gaussian data of that variance and are smooth for any other, so that the ODE's
stiff linear part costs no accuracy and the prior at sigma_max is N(0, I) in y. (The choice of
sigma_data changes the discretisation error and, by (sigma_data / sigma_max)^2, the prior.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genus.data.pixels import to_unit
from genus.draws import Draws
from genus.objectives.phase import LogDensity
from genus.samplers.denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class ODELikelihood:
    """How to integrate the probability-flow ODE for a log density."""

    steps: int = 32
    """Runge-Kutta steps (fourth order, uniform in ln sigma); four network calls each."""
    trace: Literal["exact", "rademacher", "gaussian"] = "rademacher"
    """Divergence: exact (one backward a dimension) or Hutchinson's with probes of this law."""
    probes: int = 2
    """Hutchinson probes a row (one backward each); two or more give a standard error."""
    dequantisation: Literal["uniform", "truncated normal"] = "uniform"
    """Noise on uint8 levels: uniform over the bin, or sigma_min's Gaussian cut to the bin."""


def ode_log_density(
    denoiser: Denoiser,
    image: Tensor,
    label: Tensor | None,
    draws: Draws,
    config: ODELikelihood,
    sigma_data: float,
) -> LogDensity:
    """ln p of images (B, C, H, W), uint8 or float, under the model's density at ``sigma_min``.

    uint8 images are dequantised with one draw and the result is in units of pixel levels, so that
    its mean is at most the log mass of the levels (Theis et al. 2016, eq. 1-5).
    """
    draws = draws.scoped("likelihood")
    x, nats = _dequantise(image, draws, config.dequantisation, denoiser.sigma_min)
    probes = _probes(x, draws, config)
    s_min = math.hypot(denoiser.sigma_min, sigma_data)
    y, gained = _integrate(denoiser, x / s_min, label, probes, config, sigma_data)
    dims = x[0].numel()
    nats = nats - dims * math.log(s_min)  # from the density of y to that of x
    nats = nats - (y.flatten(1).square().sum(1) + dims * math.log(2 * math.pi)) / 2 - gained
    estimates, exact = len(nats), config.trace == "exact"
    how = f"model density at sigma {denoiser.sigma_min:.3g}, RK4 in {config.steps} steps"
    noise = f"{config.dequantisation}, 1 draw" if image.dtype == torch.uint8 else "none"
    return LogDensity(
        nats=nats.mean(0),
        kind="exact" if exact and image.dtype != torch.uint8 else "estimate",
        dequantisation=f"{noise}; {how}, {'exact' if exact else f'{estimates}-probe'} trace",
        dims=dims,
        standard_error=nats.std(0) / math.sqrt(estimates) if estimates > 1 else None,
    )


def _dequantise(image: Tensor, draws: Draws, law: str, sigma_min: float) -> tuple[Tensor, Tensor]:
    """(x, -ln q(x - image)): noise within each pixel level's bin and what its density gives back.

    truncated normal: Zheng et al. 2023, section 4.1; the noise has the law that the network was
    trained to see at sigma_min, as far as the bin reaches.
    """
    x = to_unit(image)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if image.dtype != torch.uint8:
        return x, x.new_zeros(len(x))
    half_bin, dims = 1 / 255, x[0].numel()
    u = draws.uniform("dequantise", x.shape[1:], torch.float64)
    if law == "uniform":
        noise = (2 * u - 1) * half_bin
        return x + noise.to(x.dtype), x.new_full((len(x),), dims * math.log(2 * half_bin))
    low = torch.special.ndtr(u.new_tensor(-half_bin / sigma_min))
    z = torch.special.ndtri(low + u * (1 - 2 * low))
    log_q = -(z**2) / 2 - math.log(sigma_min * math.sqrt(2 * math.pi)) - torch.log1p(-2 * low)
    return x + (sigma_min * z).to(x.dtype), -log_q.flatten(1).sum(1).to(x.dtype)


def _probes(x: Tensor, draws: Draws, config: ODELikelihood) -> Tensor:
    """(probes, B or 1, C, H, W), the same along the whole trajectory (Grathwohl et al. 2019)."""
    if config.trace == "exact":
        dims = x[0].numel()
        return torch.eye(dims, dtype=x.dtype, device=x.device).view(dims, 1, *x.shape[1:])
    probes = range(config.probes)
    if config.trace == "gaussian":
        return torch.stack([draws.normal(f"probe{i}", x.shape[1:], x.dtype) for i in probes])
    uniform = torch.stack([draws.uniform(f"probe{i}", x.shape[1:], x.dtype) for i in probes])
    return torch.where(uniform < 0.5, -1.0, 1.0).to(x.dtype)


def _integrate(
    denoiser: Denoiser,
    y: Tensor,
    label: Tensor | None,
    probes: Tensor,
    config: ODELikelihood,
    sigma_data: float,
) -> tuple[Tensor, Tensor]:
    """(y at sigma_max, increase of ln p(y) on the way (estimates, B)) by classical Runge-Kutta."""

    def slope(y: Tensor, log_sigma: float) -> tuple[Tensor, Tensor]:
        sigma = math.exp(log_sigma)
        s = math.hypot(sigma, sigma_data)
        c_skip = (sigma_data / s) ** 2
        D, divergence = _denoise_and_trace(denoiser, s * y, sigma, label, probes)
        if config.trace == "exact":
            divergence = divergence.sum(0, keepdim=True)
        return -(D - c_skip * s * y) / s, divergence - y[0].numel() * c_skip

    start, end = math.log(denoiser.sigma_min), math.log(denoiser.sigma_max)
    h = (end - start) / config.steps
    gained = y.new_zeros(())
    for i in range(config.steps):
        t = start + i * h
        k1, g1 = slope(y, t)
        k2, g2 = slope(y + h / 2 * k1, t + h / 2)
        k3, g3 = slope(y + h / 2 * k2, t + h / 2)
        k4, g4 = slope(y + h * k3, t + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        gained = gained + h / 6 * (g1 + 2 * g2 + 2 * g3 + g4)
    return y, gained


def _denoise_and_trace(
    denoiser: Denoiser, x: Tensor, sigma: float, label: Tensor | None, probes: Tensor
) -> tuple[Tensor, Tensor]:
    """(D (B, ...), v^T (dD/dx) v for each probe v (probes, B))."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        D = denoiser(x, x.new_full((), sigma), label)
        traces = []
        for v in probes:
            (product,) = torch.autograd.grad(D, x, v.expand_as(D), retain_graph=True)
            traces.append((product * v).flatten(1).sum(1))
    return D.detach(), torch.stack(traces)
