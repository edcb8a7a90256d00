"""Distributions of a pixel's levels, with parameters that a network gives.

Levels are the integers 0 ... levels - 1, of ``channels`` numbers a pixel; they stand for the
numbers 2 level / (levels - 1) - 1 in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.samplers.categorical import choose

LEAST_LOG_SCALE, MOST_LOG_SCALE = -7.0, 7.0


class PixelLaw(Protocol):
    """What the likelihood and the sampler need; O is ``outputs``, C ``channels``, L ``levels``.

    All is computed in float32 at least.
    """

    @property
    def channels(self) -> int: ...

    @property
    def levels(self) -> int: ...

    @property
    def outputs(self) -> int:
        """Parameters of a pixel's distribution."""

    def log_probability(self, parameters: Tensor, levels: Tensor) -> Tensor:
        """ln P of pixels: (B, O, ...) and int64 levels (B, C, ...) -> (B, ...)."""

    def channel(self, parameters: Tensor, earlier: Tensor) -> Tensor:
        """ln P of all levels of one pixel's next channel given the c earlier ones:
        (B, O) and int64 (B, c) -> (B, L)."""

    def draw(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """One pixel: (B, O) and uniforms in [0, 1) (B, 1 + C) -> int64 levels (B, C)."""


def unit_of(levels: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Levels 0 ... count - 1 to [-1, 1]."""
    return levels.to(dtype) * 2 / (count - 1) - 1


@dataclass(frozen=True)
class LogisticMixture:
    """PixelCNN++'s discretised mixture of logistics (Salimans et al. 2017, eq. 1-3).

    Each of ``mixtures`` components is a logistic distribution a channel, rounded to levels; what
    lies beyond the ends belongs to the first and last level. Given the component, a channel's mean
    depends linearly on the pixel's channels before it, with coefficients in (-1, 1); the component
    is one for all channels. Parameters in order: K weights; then means, log scales (C x K each) and
    the C (C - 1) / 2 x K coefficients.
    """

    channels: int
    levels: int = 256
    mixtures: int = 10

    @property
    def outputs(self) -> int:
        C = self.channels
        return self.mixtures * (1 + 2 * C + C * (C - 1) // 2)

    def log_probability(self, parameters: Tensor, levels: Tensor) -> Tensor:
        log_weights, means, log_scales, coefficients = self._split(parameters)
        x = unit_of(levels, self.levels, means.dtype)[:, :, None]  # (B, C, 1, ...)
        means = self._shifted(means, coefficients, x)
        log_p = self._log_bin(levels[:, :, None], x, means, log_scales).sum(1)
        return torch.logsumexp(log_weights + log_p, dim=1)

    def channel(self, parameters: Tensor, earlier: Tensor) -> Tensor:
        log_weights, means, log_scales, coefficients = self._split(parameters)
        c = earlier.shape[1]
        if c:  # how likely each component is, given the earlier channels
            x = unit_of(earlier, self.levels, means.dtype)[:, :, None]
            means = self._shifted(means[:, : c + 1], coefficients, x)
            log_p = self._log_bin(earlier[:, :, None], x, means[:, :c], log_scales[:, :c])
            log_weights = torch.log_softmax(log_weights + log_p.sum(1), dim=1)
        every = torch.arange(self.levels, device=parameters.device)
        log_p = self._log_bin(
            every, unit_of(every, self.levels, means.dtype),
            means[:, c, :, None], log_scales[:, c, :, None],
        )  # fmt: skip
        return torch.logsumexp(log_weights[:, :, None] + log_p, dim=1)

    def draw(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        log_weights, means, log_scales, coefficients = self._split(parameters)
        component = choose(log_weights, uniforms[:, 0])
        at = component[:, None, None].expand(-1, self.channels, 1)
        means, scales = means.gather(2, at)[:, :, 0], log_scales.gather(2, at)[:, :, 0].exp()
        noise = scales * torch.logit(uniforms[:, 1:].to(scales.dtype))
        drawn: list[Tensor] = []
        numbers: list[Tensor] = []
        for c in range(self.channels):
            mean = means[:, c]
            for d in range(c):
                row = coefficients[:, _pair(c, d)].gather(1, component[:, None])[:, 0]
                mean = mean + row * numbers[d]
            half = (self.levels - 1) / 2
            level = ((mean + noise[:, c] + 1) * half).round().clamp(0, self.levels - 1).long()
            drawn.append(level)
            numbers.append(unit_of(level, self.levels, mean.dtype))
        return torch.stack(drawn, dim=1)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log weights (B, K, ...), means and log scales (B, C, K, ...), coefficients (B, P, K, ...)
        of the P pairs of channels."""
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        K, C = self.mixtures, self.channels
        weights, rest = parameters[:, :K], parameters[:, K:]
        rest = rest.reshape(len(rest), -1, K, *rest.shape[2:])
        return (
            torch.log_softmax(weights, dim=1),
            rest[:, :C],
            rest[:, C : 2 * C].clamp(LEAST_LOG_SCALE, MOST_LOG_SCALE),
            rest[:, 2 * C :].tanh(),
        )

    def _shifted(self, means: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
        """The means given the earlier channels: x (B, C, 1, ...) in [-1, 1]."""
        shifted = [means[:, 0]]
        for c in range(1, means.shape[1]):
            terms = (coefficients[:, _pair(c, d)] * x[:, d] for d in range(c))
            shifted.append(sum(terms, means[:, c]))
        return torch.stack(shifted, dim=1)

    def _log_bin(self, levels: Tensor, x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        """ln of the logistic's probability between the level's upper end a and lower end b.

        sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)), of which nothing cancels:
        a - b is the bin's width over the scale, whatever the mean. a is infinite at the last level,
        b at the first.
        """
        half = 1 / (self.levels - 1)
        to_scale = torch.exp(-log_scales)
        centred = x - means
        above = F.logsigmoid((centred + half) * to_scale)
        below = F.logsigmoid((half - centred) * to_scale)
        between = torch.log(-torch.expm1(-2 * half * to_scale))
        first, last = levels == 0, levels == self.levels - 1
        upper = torch.where(last, 0.0, above)
        lower = torch.where(first, 0.0, below)
        return upper + lower + torch.where(first | last, 0.0, between)


@dataclass(frozen=True)
class Categorical:
    """A softmax over the levels of every channel, independent of the pixel's other channels.

    Of images of one channel it can be any distribution; with more it leaves out what the channels
    of one pixel say of one another, which the mixture of logistics has.
    """

    channels: int
    levels: int = 256

    @property
    def outputs(self) -> int:
        return self.channels * self.levels

    def log_probability(self, parameters: Tensor, levels: Tensor) -> Tensor:
        log_p = self._log_p(parameters)
        return log_p.gather(2, levels[:, :, None])[:, :, 0].sum(1)

    def channel(self, parameters: Tensor, earlier: Tensor) -> Tensor:
        return self._log_p(parameters)[:, earlier.shape[1]]

    def draw(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        log_p = self._log_p(parameters)
        drawn = [choose(log_p[:, c], uniforms[:, 1 + c]) for c in range(self.channels)]
        return torch.stack(drawn, dim=1)

    def _log_p(self, parameters: Tensor) -> Tensor:
        """(B, C, L, ...)."""
        logits = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        logits = logits.reshape(len(logits), self.channels, self.levels, *logits.shape[2:])
        return torch.log_softmax(logits, dim=2)


def _pair(c: int, d: int) -> int:
    """The number of the pair of channels d < c."""
    return c * (c - 1) // 2 + d
