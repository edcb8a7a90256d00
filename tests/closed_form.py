"""Optimal networks and denoisers in closed form, and random draws that the test prescribes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.draws import Draws
from genus.objectives.ddpm import DDPMConfig
from genus.objectives.edm import EDMConfig
from genus.objectives.flow_matching import FlowMatchingConfig
from genus.samplers.schedules import ddpm_levels, karras_levels

Config = EDMConfig | DDPMConfig | FlowMatchingConfig

OBJECTIVES: dict[str, Config] = {
    "edm": EDMConfig(),
    "ddpm-epsilon-linear": DDPMConfig(),
    "ddpm-epsilon-cosine": DDPMConfig(schedule="cosine"),
    "ddpm-v-linear": DDPMConfig(prediction="v"),
    "ddpm-v-cosine": DDPMConfig(prediction="v", schedule="cosine"),
    "flow": FlowMatchingConfig(),
    "flow-uniform": FlowMatchingConfig(density="uniform"),
}

Path = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""noise label -> (a, b, p, q): the network sees a x_0 + b eps and predicts p eps + q x_0."""


def path_of(config: Config) -> Path:
    """The published parametrisation of each objective, written without its code."""

    def edm(noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert isinstance(config, EDMConfig)
        sigma, d = (4 * noise).exp(), config.sigma_data
        c_in, c_skip = (sigma**2 + d**2) ** -0.5, d**2 / (sigma**2 + d**2)
        c_out = sigma * d * c_in
        return c_in, c_in * sigma, -c_skip * sigma / c_out, (1 - c_skip) / c_out

    def ddpm(noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert isinstance(config, DDPMConfig)
        log_sigma = ddpm_levels(config.schedule, config.timesteps).log()
        t = noise.double() * config.timesteps / 1000
        left = t.floor().long().clamp(0, config.timesteps - 2)
        low, high = log_sigma[left], log_sigma[left + 1]
        sigma = (low + (t - left) * (high - low)).exp().to(noise.dtype)
        a = (1 + sigma**2) ** -0.5
        b = sigma * a
        one, zero = torch.ones_like(a), torch.zeros_like(a)
        return (a, b, one, zero) if config.prediction == "epsilon" else (a, b, a, -b)

    def flow(noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = noise / 1000
        return 1 - t, t, torch.ones_like(t), -torch.ones_like(t)

    if isinstance(config, EDMConfig):
        return edm
    return ddpm if isinstance(config, DDPMConfig) else flow


class GaussianNetwork(nn.Module):
    """The optimal network for data N(mean[label], std^2 I) on ``path``, times a trainable gain."""

    def __init__(self, path: Path, std: float, means: Sequence[float] = (0.0,)) -> None:
        super().__init__()
        self.path, self.std = path, std
        self.register_buffer("means", torch.tensor(means, dtype=torch.float64))
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.calls: list[tuple[int, Tensor | None]] = []

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        self.calls.append((len(x), label))
        rows = (-1, *[1] * (x.ndim - 1))
        a, b, p, q = (value.view(rows) for value in self.path(noise))
        index = torch.full((len(x),), len(self.means) - 1) if label is None else label
        m = self.means[index].view(rows).to(x.dtype)
        centred = (x - a * m) / (a**2 * self.std**2 + b**2)
        eps, x_0 = b * centred, m + a * self.std**2 * centred
        return self.gain.to(x.dtype) * (p * eps + q * x_0)


@dataclass(frozen=True)
class MixtureDenoiser:
    """Exact D of an equal mixture of N(means[k], std^2 I); a label picks a component, and
    ``len(means)`` or None the whole mixture. ``means`` (K, *shape) float64."""

    means: Tensor
    std: float = 0.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    calls: list[int] = field(default_factory=list)

    def noise_levels(self, steps: int) -> Tensor:
        return karras_levels(steps, self.sigma_min, self.sigma_max)

    def log_density(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """ln p(x; sigma), (B,)."""
        total = self._logits(x, sigma, label).logsumexp(1)
        variance = torch.as_tensor(self.std**2 + sigma**2, dtype=x.dtype)
        count = len(self.means) if label is None else 1
        return total - math.log(count) - x[0].numel() / 2 * (2 * math.pi * variance).log()

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls.append(len(x))
        r = self._logits(x, sigma, label).softmax(1)
        mean = torch.einsum("bk,k...->b...", r, self.means.to(x.dtype))
        shrink = self.std**2 / (self.std**2 + sigma**2)
        return mean + shrink.expand(len(x)).view(-1, *[1] * (x.ndim - 1)) * (x - mean)

    def _logits(self, x: Tensor, sigma: Tensor | float, label: Tensor | None) -> Tensor:
        variance = torch.as_tensor(self.std**2 + sigma**2, dtype=x.dtype).expand(len(x))
        square = (x[:, None] - self.means.to(x.dtype)).flatten(2).square().sum(2)
        logits = -square / (2 * variance[:, None])
        if label is None:
            return logits
        k = torch.arange(len(self.means))
        allowed = (label[:, None] == k) | (label[:, None] == len(self.means))
        return logits.masked_fill(~allowed, -math.inf)


@dataclass(frozen=True)
class Prescribed(Draws):
    """Draws whose tensors the test gives by name, (rows, *shape) or broadcast to it."""

    values: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def rows(rows: int, **values: Tensor) -> Prescribed:
        return Prescribed(tuple(range(rows)), 1, torch.device("cpu"), 0, rows, "", values)

    def _fill(self, kind: str, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        value = self.values[name].to(dtype)
        return value.view(-1, *[1] * len(shape)).expand(len(self), *shape)

    def integers(self, name: str, high: int, shape: Sequence[int] = ()) -> Tensor:
        return self.values[name]


def batch_of(
    image: Tensor, label: Tensor | None = None, draws: Draws | None = None, seed: int = 0
) -> Batch:
    """A batch whose rows each have their own seed, or the given draws."""
    rows = len(image)
    fields = {"image": image} if label is None else {"image": image, "label": label}
    draws = draws or Draws.of([1000 * seed + i for i in range(rows)])
    return Batch(fields, torch.arange(rows), 0, draws)


def second_moments(std: float, levels: int, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    """x_0 (4 levels, 1, 1, 1) and eps (4 levels,): a quadrature with the moments of
    N(mean, std^2) x N(0, 1) up to the second, exact for every quadratic loss."""
    x_0 = mean + std * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    eps = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    return x_0.repeat(levels).view(-1, 1, 1, 1), eps.repeat(levels)
