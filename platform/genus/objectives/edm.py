"""EDM: denoising with a preconditioned network (Karras et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

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
from genus.samplers.schedules import karras_levels


@dataclass(frozen=True, kw_only=True)
class EDMConfig:
    """Noise in training and sampling; the defaults are Karras et al. 2022, Table 1."""

    P_mean: float = -1.2
    """Mean of ln sigma in training."""
    P_std: float = 1.2
    """Standard deviation of ln sigma in training."""
    sigma_data: float = 0.5
    """Standard deviation of the data in [-1, 1], or of the latents."""
    sigma_min: float = 0.002
    """Smallest noise level in sampling, in the data's unit."""
    sigma_max: float = 80.0
    """Largest noise level in sampling, in the data's unit."""
    rho: float = 7.0
    """Sampling steps concentrate at low noise as rho grows."""
    label_dropout: float = 0.1
    """Probability that a row trains without its class."""

    def build(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        sampling: SamplingConfig | None = None,
        likelihood: ODELikelihood | None = None,
    ) -> EDM:
        """The objective for images (C, H, W); ``classes`` 0 is unconditional."""
        return EDM(
            self, shape, classes, sampling or SamplingConfig(), likelihood or ODELikelihood()
        )


@dataclass(frozen=True)
class EDMDenoiser:
    """Preconditioning: D = c_skip x + c_out F(c_in x; c_noise), eq. 7 and Table 1."""

    network: nn.Module
    config: EDMConfig

    @property
    def sigma_min(self) -> float:
        return self.config.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.config.sigma_max

    def noise_levels(self, steps: int) -> Tensor:
        cfg = self.config
        return karras_levels(steps, cfg.sigma_min, cfg.sigma_max, cfg.rho)

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        s, sigma_data = per_row(sigma, x), self.config.sigma_data
        total = s**2 + sigma_data**2
        c_skip, c_out, c_in = sigma_data**2 / total, s * sigma_data / total.sqrt(), total.rsqrt()
        c_noise = s.flatten().log() / 4
        F: Tensor = self.network(c_in * x, c_noise, label)
        return c_skip * x + c_out * F.to(x.dtype)


class EDM(Stateless):
    """The objective; networks: ``denoiser``."""

    traits = Traits(
        density="estimate",
        sampling_cost="one or two network calls a step, 18 to 50 steps",
        principle="denoising score matching",
        latent="none (the data's own space)",
        architecture="any image-to-image network",
    )

    def __init__(
        self,
        config: EDMConfig,
        shape: tuple[int, int, int],
        classes: int,
        sampling: SamplingConfig,
        likelihood: ODELikelihood,
    ) -> None:
        self.config, self.shape, self.classes = config, shape, classes
        self.sampling, self.likelihood = sampling, likelihood
        self.phases = (Phase("denoise", ("denoiser",), self.loss),)

    def denoiser(self, network: nn.Module) -> EDMDenoiser:
        return EDMDenoiser(network, self.config)

    def loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 8; the optimal denoiser of Gaussian data of sigma_data has exactly 1."""
        cfg, y = self.config, image_of(batch)
        label = label_of(batch, self.classes, cfg.label_dropout)
        z = batch.draws.normal("sigma", (), y.dtype)
        sigma = (cfg.P_mean + cfg.P_std * z).exp()
        n = per_row(sigma, y) * batch.draws.normal("eps", y.shape[1:], y.dtype)
        D = self.denoiser(networks["denoiser"])(y + n, sigma, label)
        weight = (sigma**2 + cfg.sigma_data**2) / (sigma * cfg.sigma_data) ** 2  # 1 / c_out^2
        return mean_and_bins(weight * (D - y).square().flatten(1).mean(1), torch.special.ndtr(z))

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
            self.config.sigma_data,
        )
