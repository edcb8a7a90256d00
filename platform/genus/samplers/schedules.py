"""Noise levels: the grids on which samplers walk, and the schedules of discrete diffusion.

Everything is float64 on the CPU and in the coordinates of ``genus.samplers.denoiser``
(sigma = sigma_t / alpha_t): the grids are read as Python floats, step by step.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from genus.errors import ConfigError


def karras_levels(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Descending (steps + 1,) with a final 0: Karras et al. 2022, eq. 5."""
    ramp = torch.linspace(
        sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps, dtype=torch.float64
    )
    return torch.cat([ramp**rho, ramp.new_zeros(1)])


def flow_levels(steps: int, t_max: float) -> Tensor:
    """Descending (steps + 1,) with a final 0: t uniform from t_max to 0, sigma = t / (1 - t)."""
    t = torch.linspace(t_max, 0, steps + 1, dtype=torch.float64)
    return t / (1 - t)


def ddpm_levels(schedule: Literal["linear", "cosine"], timesteps: int) -> Tensor:
    """sigma_t = sqrt((1 - abar_t) / abar_t) of a DDPM's chain, ascending, (timesteps,).

    linear: Ho et al. 2020, section 4 (beta from 1e-4 to 0.02), for other lengths than 1000 scaled
    as in Nichol & Dhariwal 2021; cosine: their eq. 17, beta at most 0.999. Index 0 is the paper's
    t = 1.
    """
    if schedule == "linear":
        scale = 1000 / timesteps
        beta = torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64)
    else:
        t = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
        f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = 1 - f[1:] / f[:-1]
    log_abar = torch.log1p(-beta.clamp(max=0.999)).cumsum(0)
    return torch.expm1(-log_abar).sqrt()


def subset_levels(levels: Tensor, steps: int) -> Tensor:
    """Descending (steps + 1,) with a final 0: evenly spaced members of an ascending chain.

    Both ends belong to it (only the last with one step). ConfigError for more steps than levels.
    """
    if steps > len(levels):
        raise ConfigError(
            f"{steps} sampling steps, but the diffusion has only {len(levels)} timesteps to step "
            f"on: ask for at most {len(levels)}, or train with more timesteps"
        )
    index = torch.linspace(len(levels) - 1, 0, steps, dtype=torch.float64).round().long()
    return torch.cat([levels[index], levels.new_zeros(1)])
