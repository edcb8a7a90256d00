"""Maximum likelihood of autoregressive pixels: log P(x) = sum over pixels of log P(x_i | x_<i).

What is modelled are the levels themselves, so that the likelihood is exact and nothing is added to
the data (van den Oord et al. 2016a; Salimans et al. 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genus.data.batch import Batch
from genus.draws import Draws
from genus.errors import ConfigError
from genus.objectives.conditioning import label_of, precision_of
from genus.objectives.logistic_mixture import Categorical, LogisticMixture, PixelLaw, unit_of
from genus.objectives.phase import (
    LogDensity,
    Networks,
    Phase,
    SampleOptions,
    SamplingPlan,
    Stateless,
    Traits,
)
from genus.samplers.pixels import sample_pixels


@dataclass(frozen=True, kw_only=True)
class PixelLikelihoodConfig:
    """The distribution of a pixel given the earlier ones, and how to sample."""

    mixtures: int = 10
    """Components of the mixture of logistics; 0: a softmax over the levels instead, with the
    channels of one pixel independent."""
    bits: int = 8
    """Of a pixel level; fewer than 8 cut the data's levels down before all else."""
    label_dropout: float = 0.0
    """Probability that a row trains without its class; guidance needs some."""
    guidance: float = 1.0
    """Weight of the class against none in sampling; 1 is none."""
    temperature: float = 1.0
    """Divides the log-probabilities of the levels in sampling."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.mixtures < 0:
            raise ConfigError(
                f"objective.bits={self.bits}, mixtures={self.mixtures}: take bits from 1 to 8 and "
                "mixtures not negative"
            )
        if not 0 <= self.label_dropout <= 1 or self.temperature < 0:
            raise ConfigError(
                f"objective.label_dropout={self.label_dropout} is to be a probability, "
                f"temperature={self.temperature} not negative"
            )

    def law(self, channels: int) -> PixelLaw:
        """The distribution of a pixel; the network is to give its ``outputs``."""
        if self.mixtures:
            return LogisticMixture(channels, 1 << self.bits, self.mixtures)
        return Categorical(channels, 1 << self.bits)

    def build(self, shape: tuple[int, int, int], classes: int = 0) -> PixelLikelihood:
        """The objective for images (C, H, W)."""
        return PixelLikelihood(self, shape, classes)


class PixelLikelihood(Stateless):
    """The objective; its network, ``pixels``, maps images and labels to ``law.outputs`` numbers a
    pixel, strictly causally (see ``networks/pixelcnn``)."""

    def __init__(
        self, config: PixelLikelihoodConfig, shape: tuple[int, int, int], classes: int
    ) -> None:
        self.config, self.shape, self.classes = config, shape, classes
        self.law = config.law(shape[0])
        self.dims = math.prod(shape)
        self.phases = (Phase("likelihood", ("pixels",), self.loss),)

    @property
    def traits(self) -> Traits:
        return Traits(
            density="exact",
            sampling_cost="one network call a pixel, each of one pixel's work",
            principle="maximum likelihood",
            latent="none",
            architecture="causal convolutions in raster order",
        )

    def loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood in bits/dim."""
        label = label_of(batch, self.classes, self.config.label_dropout)
        loss = -self._log_p(networks, batch, label).mean() / (self.dims * math.log(2))
        return loss, {"loss": loss.detach()}

    def log_density(self, networks: Networks, batch: Batch) -> LogDensity:
        """ln P of the images' levels, given their classes where the model has some."""
        nats = self._log_p(networks, batch, label_of(batch, self.classes))
        bits = "" if self.config.bits == 8 else f", {self.config.bits} bits"
        return LogDensity(nats, "exact", f"none: probabilities of levels{bits}", self.dims)

    def plan(self, options: SampleOptions) -> SamplingPlan:
        """ConfigError for options that raster sampling does not have."""
        options.only("a model that draws pixel by pixel", "temperature", "guidance")
        guidance, temperature = self._settings(options)
        if temperature < 0:
            raise ConfigError(f"temperature {temperature}: take 0 or more")
        if guidance != 1 and self.classes == 0:
            raise ConfigError("guidance needs a model with classes: take guidance 1")
        if guidance != 1 and self.config.label_dropout == 0:
            raise ConfigError("guidance needs a model trained with objective.label_dropout > 0")
        calls = self.shape[1] * self.shape[2] * (1 if guidance == 1 else 2)
        return SamplingPlan(
            f"raster order, temperature {temperature:g}",
            calls,
            guidance if self.classes else None,
        )

    def sample(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Tensor:
        """(B, C, H, W) images in [-1, 1], at the levels."""
        self.plan(options)
        guidance, temperature = self._settings(options)
        dtype = precision_of(networks["pixels"])
        levels = sample_pixels(
            networks["pixels"],
            self.law,
            draws,
            label,
            size=self.shape[1:],
            dtype=dtype,
            classes=self.classes,
            guidance=guidance,
            temperature=temperature,
        )
        return unit_of(levels, self.law.levels, dtype)

    def _log_p(self, networks: Networks, batch: Batch, label: Tensor | None) -> Tensor:
        """(B,) nats."""
        image = batch["image"]
        if image.dtype != torch.uint8:
            raise ConfigError(f"pixel models take pixel levels (uint8), not {image.dtype}")
        # the stream's images have their channels innermost in memory; the sums here do not want it
        levels = image.to(torch.long, memory_format=torch.contiguous_format)
        levels = levels >> (8 - self.config.bits)
        # the network sees the modelled levels only: the bits that are cut off would tell of them
        x = unit_of(levels, self.law.levels, precision_of(networks["pixels"]))
        parameters = networks["pixels"](x, label)
        return self.law.log_probability(parameters, levels).flatten(1).sum(1)

    def _settings(self, options: SampleOptions) -> tuple[float, float]:
        """Guidance and temperature."""
        cfg = self.config
        return (
            cfg.guidance if options.guidance is None else options.guidance,
            cfg.temperature if options.temperature is None else options.temperature,
        )
