"""Flow matching on straight paths, also called rectified flow.

Lipman et al. 2023 and Liu et al. 2023, with time as in Esser et al. 2024: t = 0 is data, t = 1
noise, x_t = (1 - t) x_0 + t eps; the network predicts the velocity eps - x_0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.draws import Draws
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
from genus.samplers.denoiser import per_row
from genus.samplers.draw import SamplingConfig, draw_samples, plan_of
from genus.samplers.likelihood import ODELikelihood, ode_log_density
from genus.samplers.schedules import flow_levels

T_MAX = 0.99
"""Start of sampling: sigma = 99, where N(0, sigma^2 I) misses the data as little as EDM's 80 does;
t = 1 itself is sigma = infinity, and a logit-normal density never trains there."""

NOISE_SCALE = 1000.0
"""The network sees 1000 t, on the scale of DDPM's timesteps, for which its sinusoids are made."""


@dataclass(frozen=True, kw_only=True)
class FlowMatchingConfig:
    """The density of t in training."""

    density: Literal["logit-normal", "uniform"] = "logit-normal"
    """Of t: sigmoid of a normal (Esser et al. 2024, eq. 19), or uniform."""
    logit_mean: float = 0.0
    """Mean of logit t, for logit-normal; positive puts more weight on noise."""
    logit_std: float = 1.0
    """Standard deviation of logit t, for logit-normal."""
    label_dropout: float = 0.1
    """Probability that a row trains without its class."""

    def build(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        sampling: SamplingConfig | None = None,
        likelihood: ODELikelihood | None = None,
    ) -> FlowMatching:
        """The objective for images (C, H, W); ``classes`` 0 is unconditional."""
        sampling = sampling or SamplingConfig(method="heun", steps=25)
        return FlowMatching(self, shape, classes, sampling, likelihood or ODELikelihood())


@dataclass(frozen=True)
class FlowDenoiser:
    """D = x_t - t F(x_t; t), with x_t = (1 - t) x and sigma = t / (1 - t)."""

    network: nn.Module
    sigma_min: float = 0.002
    sigma_max: float = T_MAX / (1 - T_MAX)

    def noise_levels(self, steps: int) -> Tensor:
        return flow_levels(steps, T_MAX)

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        s = per_row(sigma, x)
        t, x_t = s / (1 + s), x / (1 + s)
        F: Tensor = self.network(x_t, NOISE_SCALE * t.flatten(), label)
        return x_t - t * F.to(x.dtype)


class FlowMatching(Stateless):
    """The objective; networks: ``denoiser``."""

    traits = Traits(
        density="estimate",
        sampling_cost="one or two network calls a step, 10 to 50 steps",
        principle="flow matching (regression on velocities)",
        latent="none (the data's own space)",
        architecture="any image-to-image network",
    )

    def __init__(
        self,
        config: FlowMatchingConfig,
        shape: tuple[int, int, int],
        classes: int,
        sampling: SamplingConfig,
        likelihood: ODELikelihood,
    ) -> None:
        self.config, self.shape, self.classes = config, shape, classes
        self.sampling, self.likelihood = sampling, likelihood
        self.phases = (Phase("denoise", ("denoiser",), self.loss),)

    def denoiser(self, network: nn.Module) -> FlowDenoiser:
        return FlowDenoiser(network)

    def loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the velocity: Esser et al. 2024, eq. 8 with w_t = 1."""
        cfg, x_0 = self.config, image_of(batch)
        label = label_of(batch, self.classes, cfg.label_dropout)
        if cfg.density == "uniform":
            t = quantile = batch.draws.uniform("t", (), x_0.dtype)
        else:
            z = batch.draws.normal("t", (), x_0.dtype)
            t, quantile = torch.sigmoid(cfg.logit_mean + cfg.logit_std * z), torch.special.ndtr(z)
        eps = batch.draws.normal("eps", x_0.shape[1:], x_0.dtype)
        x_t = x_0 + per_row(t, x_0) * (eps - x_0)
        F: Tensor = networks["denoiser"](x_t, NOISE_SCALE * t, label)
        error = F.to(x_0.dtype) - (eps - x_0)
        return mean_and_bins(error.square().flatten(1).mean(1), quantile)

    def plan(self, options: SampleOptions) -> SamplingPlan:
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
        """By the probability-flow ODE."""
        return ode_log_density(
            self.denoiser(networks["denoiser"]),
            batch["image"],
            label_of(batch, self.classes),
            batch.draws,
            self.likelihood,
            sigma_data=1.0,
        )
