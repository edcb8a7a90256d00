"""Maximum likelihood of normalizing flows: log p(x) = log p(z) + log |det dz/dx|, z = f(x).

Pixel levels are integers, and a density of integers is unbounded: noise u in [0, 1) is added to
each level. With uniform u the density of the noisy image bounds the probability of the level
(Theis et al. 2016, eq. 5); with learnt u ~ q(u | x) so does log p(x + u) - log q(u | x), more
tightly (Ho et al. 2019, eq. 11). Vectors of real numbers are taken as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.data.batch import Batch
from genus.draws import Draws
from genus.errors import ConfigError
from genus.networks.flows.bijection import Transformed
from genus.networks.flows.linear import initialise
from genus.objectives.conditioning import label_of, precision_of
from genus.objectives.phase import (
    LogDensity,
    Networks,
    Phase,
    SampleOptions,
    SamplingPlan,
    Stateless,
    Traits,
)

SCORED = 8
"""Rows that are denoised at once."""


@dataclass(frozen=True, kw_only=True)
class FlowLikelihoodConfig:
    """Noise on the data in training, the base distribution, and how to sample."""

    dequantisation: Literal["uniform", "variational"] = "uniform"
    """Noise within a pixel level's bin: uniform, or learnt beside the flow."""
    bits: int = 8
    """Of a pixel level; fewer than 8 cut the data's levels down before all else."""
    noise: float = 0.0
    """Standard deviation of normal noise, on images in [-1, 1], in the place of dequantisation in
    training; samples are denoised by the score (Zhai et al. 2024). 0: off."""
    base: Literal["normal", "logistic"] = "normal"
    """Distribution of each of z's dimensions."""
    label_dropout: float = 0.0
    """Probability that a row trains without its class."""
    temperature: float = 1.0
    """z is scaled by this in sampling."""
    guidance: float = 1.0
    """Weight of the class against none in sampling (tarflow only); 1 is none."""
    initial_samples: int = 256
    """Samples from which the activation normalisations begin."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.noise < 0 or self.initial_samples < 2:
            raise ConfigError(
                f"objective.bits={self.bits}, noise={self.noise}, initial_samples="
                f"{self.initial_samples}: take bits from 1 to 8, noise not negative, 2 samples or "
                "more"
            )
        if self.noise and self.dequantisation != "uniform":
            raise ConfigError("objective.noise takes the place of dequantisation: set one of them")
        if not 0 <= self.label_dropout <= 1 or self.temperature < 0:
            raise ConfigError(
                f"objective.label_dropout={self.label_dropout} is to be a probability, "
                f"temperature={self.temperature} not negative"
            )

    def build(
        self, shape: tuple[int, ...], classes: int = 0, guides: bool = False
    ) -> FlowLikelihood:
        """The objective for images (C, H, W) or vectors (D,); ``guides``: the flow can do it."""
        return FlowLikelihood(self, shape, classes, guides)


class FlowLikelihood(Stateless):
    """The objective; networks: ``flow``, and ``dequantiser`` where dequantisation is learnt."""

    def __init__(
        self, config: FlowLikelihoodConfig, shape: tuple[int, ...], classes: int, guides: bool
    ) -> None:
        self.config, self.shape, self.classes, self.guides = config, shape, classes, guides
        self.dims = math.prod(shape)
        self.is_image = len(shape) == 3
        trains = ("flow", "dequantiser") if config.dequantisation == "variational" else ("flow",)
        if not self.is_image and (len(trains) > 1 or config.noise or config.bits < 8):
            raise ConfigError("vectors are not dequantised: leave objective.dequantisation, noise "
                              "and bits as they are")  # fmt: skip
        self.phases = (Phase("likelihood", trains, self.loss),)

    @property
    def traits(self) -> Traits:
        exact = "exact" if self.config.bits == 8 else f"quantised to {self.config.bits} bits"
        return Traits(
            density="exact",
            sampling_cost="one inverse pass (autoregressive flows: one a dimension or patch)",
            principle="maximum likelihood",
            latent=f"{exact}, of the data's dimension",
            architecture="invertible maps",
        )

    def loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood: bits/dim of images, nats a row of vectors."""
        label = label_of(batch, self.classes, self.config.label_dropout)
        if self.config.noise:
            x, log_q = self._noisy(batch), torch.zeros(())
        else:
            x, log_q = self._dequantised(networks, batch)
        nats = self._log_p(networks, x, label) - log_q
        loss = -nats.mean()
        if self.is_image:
            loss = loss / (self.dims * math.log(2))
        return loss, {"loss": loss.detach()}

    def log_density(self, networks: Networks, batch: Batch) -> LogDensity:
        """Exact for vectors and uniformly dequantised images, whose bits bound those of the levels
        from above; with learnt dequantisation a lower bound."""
        x, log_q = self._dequantised(networks, batch)
        nats = self._log_p(networks, x, label_of(batch, self.classes)) - log_q
        if not self.is_image:
            return LogDensity(nats, "exact", "none: real numbers", self.dims, unit="nats")
        if self.config.dequantisation == "variational":
            return LogDensity(nats, "lower bound", "variational", self.dims)
        return LogDensity(nats, "exact", f"uniform, {self.config.bits} bits", self.dims)

    def encode(self, networks: Networks, batch: Batch) -> Tensor:
        """z (B, D) of the middle of each level's bin, or of the vectors."""
        if self.is_image:
            x = self._to_unit(self._levels(batch).to(precision_of(networks["flow"])) + 0.5)
        else:
            x, _ = self._dequantised(networks, batch)
        return _forward(networks, x, label_of(batch, self.classes))[0]

    def decode(self, networks: Networks, code: Tensor, label: Tensor | None) -> Tensor:
        """(B, C, H, W) images in [-1, 1], on the encoded levels, or vectors (B, D)."""
        return self._shown(networks["flow"](code, label, inverse=True))

    def plan(self, options: SampleOptions) -> SamplingPlan:
        """ConfigError for options that a flow does not have."""
        options.only("a flow, which is inverted and not integrated,", "temperature", "guidance")
        temperature, guidance = self._settings(options)
        if temperature < 0:
            raise ConfigError(f"temperature {temperature}: take 0 or more")
        if guidance != 1 and not (self.guides and self.classes):
            raise ConfigError("guidance needs classes and the tarflow network: take guidance 1")
        if guidance != 1 and self.config.label_dropout == 0:
            raise ConfigError("guidance needs a model trained with objective.label_dropout > 0")
        denoised = ", denoised" if self.config.noise else ""
        sampler = f"inverse, temperature {temperature:g}{denoised}"
        nfe = (1 if guidance == 1 else 2) + (1 if denoised else 0)
        return SamplingPlan(sampler, nfe, guidance if self.guides else None)

    @torch.no_grad()
    def sample(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Tensor:
        """(B, C, H, W) images, nominally in [-1, 1], or vectors (B, D)."""
        self.plan(options)
        temperature, guidance = self._settings(options)
        z = temperature * self._base(draws).to(precision_of(networks["flow"]))
        flow = networks["flow"]
        x: Tensor = flow(z, label, inverse=True, guidance=guidance)
        return self._shown(self._denoised(networks, x, label) if self.config.noise else x)

    def initialise(self, networks: Networks, batch: Batch) -> None:
        """Set the flow's activation normalisations by the batch, a function of it alone; moves the
        flow to the batch's device."""
        if not self.is_image:
            x = batch["vector"]
        elif self.config.noise:
            x = self._noisy(batch)
        else:
            levels = self._levels(batch)
            x = self._to_unit(levels + batch.draws.uniform("dequantise", self.shape))
        flow = networks["flow"].to(x.device)
        initialise(flow, x.to(precision_of(networks["flow"])), label_of(batch, self.classes))

    # ---- data, as the flow sees them -------------------------------------------------------------

    def _dequantised(self, networks: Networks, batch: Batch) -> tuple[Tensor, Tensor]:
        """x, images in [-1, 1], and log q of its noise, whose bins have width 1."""
        if not self.is_image:
            return batch["vector"].to(precision_of(networks["flow"])), torch.zeros(
                (), device=batch.draws.device
            )
        levels = self._levels(batch).to(precision_of(networks["flow"]))
        if self.config.dequantisation == "variational":
            eps = batch.draws.normal("dequantise", self.shape).to(levels.dtype)
            u, log_q = networks["dequantiser"](self._to_unit(levels + 0.5), eps)
        else:
            u = batch.draws.uniform("dequantise", self.shape).to(levels.dtype)
            log_q = levels.new_zeros(len(levels))
        return self._to_unit(levels + u), log_q

    def _noisy(self, batch: Batch) -> Tensor:
        x = self._to_unit(self._levels(batch) + 0.5)
        return x + self.config.noise * batch.draws.normal("noise", self.shape, x.dtype)

    def _levels(self, batch: Batch) -> Tensor:
        image = batch["image"]
        if image.dtype != torch.uint8:
            raise ConfigError(f"flows of images take pixel levels (uint8), not {image.dtype}")
        levels = image.to(torch.float32, memory_format=torch.contiguous_format)
        return levels if self.config.bits == 8 else (levels / (1 << (8 - self.config.bits))).floor()

    def _to_unit(self, levels: Tensor) -> Tensor:
        """[0, 2^bits) -> [-1, 1)."""
        return levels / (1 << (self.config.bits - 1)) - 1

    def _shown(self, x: Tensor) -> Tensor:
        """From [-1, 1) to the [-1, 1] in which ``to_levels`` rounds to the level whose bin x lies
        in, with fewer than 8 bits the lowest that is cut to it; vectors as they are."""
        if not self.is_image:
            return x
        if self.config.bits == 8:
            return 256 / 255 * (x + 1) - 1 / 255 - 1
        step = 1 << (8 - self.config.bits)
        return ((x + 1) * 128 / step).floor() * step / 127.5 - 1

    # ---- densities -------------------------------------------------------------------------------

    def _log_p(self, networks: Networks, x: Tensor, label: Tensor | None) -> Tensor:
        """(B,) of the data in their own unit: levels where they are images."""
        z, log_det = _forward(networks, x, label)
        log_p = self._log_base(z).sum(1) + log_det
        if self.is_image:
            log_p = log_p - self.dims * (self.config.bits - 1) * math.log(2)
        return log_p

    def _log_base(self, z: Tensor) -> Tensor:
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.config.base == "logistic":
            return -F.softplus(z) - F.softplus(-z)
        return -(z.square() + math.log(2 * math.pi)) / 2

    def _base(self, draws: Draws) -> Tensor:
        if self.config.base == "logistic":
            u = draws.uniform("z", (self.dims,), torch.float64).clamp(min=1e-12)
            return u.log() - (-u).log1p()
        return draws.normal("z", (self.dims,))

    def _denoised(self, networks: Networks, x: Tensor, label: Tensor | None) -> Tensor:
        """E[clean | noisy] = x + noise^2 grad log p(x): Tweedie's formula (Zhai et al. 2024).

        A few rows at a time: a graph of the whole batch would be as large as training's.
        """
        parts = []
        for start in range(0, len(x), SCORED):
            rows = slice(start, start + SCORED)
            with torch.enable_grad():
                part = x[rows].detach().requires_grad_()
                own = None if label is None else label[rows]
                (score,) = torch.autograd.grad(self._log_p(networks, part, own).sum(), part)
            parts.append(part.detach() + self.config.noise**2 * score)
        return torch.cat(parts)

    def _settings(self, options: SampleOptions) -> tuple[float, float]:
        """Temperature and guidance."""
        cfg = self.config
        return (
            cfg.temperature if options.temperature is None else options.temperature,
            cfg.guidance if options.guidance is None else options.guidance,
        )


def _forward(networks: Networks, x: Tensor, label: Tensor | None) -> Transformed:
    z, log_det = networks["flow"](x, label)
    return z, log_det
