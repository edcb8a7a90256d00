"""DDPM: discrete diffusion with epsilon- or v-prediction.

Ho et al. 2020; the cosine schedule of Nichol & Dhariwal 2021; v of Salimans & Ho 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.draws import Draws
from genus.errors import ConfigError
from genus.objectives.conditioning import image_of, label_of, mean_and_bins
from genus.objectives.phase import (
    LogDensity,
    Networks,
    Phase,
    SampleOptions,
    SamplingPlan,
    Stateless,
    Traits,
)
from genus.samplers.bound import EvidenceBound, evidence_bound
from genus.samplers.denoiser import per_row
from genus.samplers.draw import SamplingConfig, draw_samples, plan_of
from genus.samplers.likelihood import ODELikelihood, ode_log_density
from genus.samplers.schedules import ddpm_levels, subset_levels

SIGMA_START = 160.0
"""Sampling starts at the last timestep up to this level. The linear schedule ends at 157; the
cosine one goes on to 2e4 in its last four steps, where an error of epsilon counts as many times."""

NOISE_SCALE = 1000.0
"""The network sees t (from 0) times 1000 / timesteps, whatever the chain's length."""


@dataclass(frozen=True, kw_only=True)
class DDPMConfig:
    """The chain and what the network predicts."""

    prediction: Literal["epsilon", "v"] = "epsilon"
    """epsilon, the noise; or v = sqrt(abar) epsilon - sqrt(1 - abar) x_0."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Of the noise over the chain."""
    timesteps: int = 1000
    """Length T of the chain."""
    label_dropout: float = 0.1
    """Probability that a row trains without its class."""

    def __post_init__(self) -> None:
        if self.timesteps < 1:
            raise ConfigError(f"objective.timesteps={self.timesteps}: at least 1")

    def build(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        sampling: SamplingConfig | None = None,
        likelihood: EvidenceBound | ODELikelihood | None = None,
    ) -> DDPM:
        """The objective for images (C, H, W); ``classes`` 0 is unconditional."""
        steps = min(250, self.timesteps // 2)
        sampling = sampling or SamplingConfig(method="ancestral", steps=steps)
        return DDPM(self, shape, classes, sampling, likelihood or EvidenceBound())


@cache
def chain(config: DDPMConfig, device: torch.device) -> Tensor:
    """sigma_t ascending, (T,) float64 on ``device``; kept there, for a copy a step would stall."""
    return ddpm_levels(config.schedule, config.timesteps).to(device)


@dataclass(frozen=True)
class DDPMDenoiser:
    """D of a network that knows timesteps; between them t is interpolated in ln sigma."""

    network: nn.Module
    config: DDPMConfig

    @property
    def sigma_min(self) -> float:
        return self._levels()[0].item()

    @property
    def sigma_max(self) -> float:
        return self._levels()[-1].item()

    def noise_levels(self, steps: int) -> Tensor:
        return subset_levels(self._levels(), steps)

    def _levels(self) -> Tensor:
        levels = chain(self.config, torch.device("cpu"))
        return levels[levels <= SIGMA_START]

    def timestep(self, sigma: Tensor) -> Tensor:
        """Fractional t in [0, T - 1], float64, of noise levels (B,): piecewise linear in ln sigma,
        which is minus half the log-SNR."""
        grid = chain(self.config, sigma.device).log()
        log_sigma = sigma.double().log()
        upper = torch.searchsorted(grid, log_sigma).clamp(1, len(grid) - 1)
        left, right = grid[upper - 1], grid[upper]
        t = upper - 1 + (log_sigma - left) / (right - left)
        return t.clamp(0, len(grid) - 1)

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        s = per_row(sigma, x)
        alpha = (1 + s**2).rsqrt()  # sqrt(abar)
        t = self.timestep(s.flatten()) * (NOISE_SCALE / self.config.timesteps)
        F: Tensor = self.network(alpha * x, t.to(x.dtype), label)
        F = F.to(x.dtype)
        if self.config.prediction == "epsilon":
            return x - s * F  # Ho et al. 2020, eq. 15
        return alpha * (alpha * x - s * F)  # Salimans & Ho 2022, appendix D, with x_t = alpha x


class DDPM(Stateless):
    """The objective; networks: ``denoiser``."""

    traits = Traits(
        density="lower bound",
        sampling_cost="one network call a step, 50 to 1000 steps",
        principle="variational (reweighted evidence lower bound)",
        latent="a chain of noisy images of the data's shape",
        architecture="any image-to-image network",
    )

    def __init__(
        self,
        config: DDPMConfig,
        shape: tuple[int, int, int],
        classes: int,
        sampling: SamplingConfig,
        likelihood: EvidenceBound | ODELikelihood,
    ) -> None:
        self.config, self.shape, self.classes = config, shape, classes
        self.sampling, self.likelihood = sampling, likelihood
        self.phases = (Phase("denoise", ("denoiser",), self.loss),)

    def denoiser(self, network: nn.Module) -> DDPMDenoiser:
        return DDPMDenoiser(network, self.config)

    def loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L_simple: Ho et al. 2020, eq. 14; for v, Salimans & Ho 2022, section 4 (SNR + 1)."""
        cfg, x_0 = self.config, image_of(batch)
        label = label_of(batch, self.classes, cfg.label_dropout)
        t = batch.draws.integers("t", cfg.timesteps)
        sigma = chain(cfg, x_0.device)[t]
        alpha = per_row((1 + sigma**2).rsqrt(), x_0)  # sqrt(abar)
        spread = per_row(sigma * (1 + sigma**2).rsqrt(), x_0)  # sqrt(1 - abar)
        eps = batch.draws.normal("eps", x_0.shape[1:], x_0.dtype)
        target = eps if cfg.prediction == "epsilon" else alpha * eps - spread * x_0
        noise = t.to(x_0.dtype) * (NOISE_SCALE / cfg.timesteps)
        F: Tensor = networks["denoiser"](alpha * x_0 + spread * eps, noise, label)
        loss = (F.to(x_0.dtype) - target).square().flatten(1).mean(1)
        return mean_and_bins(loss, t / cfg.timesteps)

    def plan(self, options: SampleOptions) -> SamplingPlan:
        """ConfigError where there are more steps than the chain has."""
        self.denoiser(nn.Identity()).noise_levels(options.steps or self.sampling.steps)
        return plan_of(options, self.sampling)

    def sample(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Tensor:
        """(B, C, H, W) images, nominally in [-1, 1]."""
        return draw_samples(
            self.denoiser,
            networks,
            draws,
            label,
            options,
            defaults=self.sampling,
            shape=self.shape,
            classes=self.classes,
        )

    def log_density(self, networks: Networks, batch: Batch) -> LogDensity:
        """The evidence lower bound, or the probability-flow ODE if ``build`` was told so."""
        denoiser, label = self.denoiser(networks["denoiser"]), label_of(batch, self.classes)
        image, draws, how = batch["image"], batch.draws, self.likelihood
        if isinstance(how, ODELikelihood):
            return ode_log_density(denoiser, image, label, draws, how, sigma_data=1.0)
        levels = chain(self.config, image.device)
        return evidence_bound(denoiser, levels, image, label, draws, how)
