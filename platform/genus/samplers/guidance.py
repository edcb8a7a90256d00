"""Guidance: a Denoiser made of two, which extrapolates from the weaker to the stronger."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genus.samplers.denoiser import Denoiser


@dataclass(frozen=True)
class ClassifierFree:
    """D_w = D(x) + w (D(x | label) - D(x)): Ho & Salimans 2022, eq. 6, with w one more than theirs.

    Weight 1 is the conditional model, 0 the unconditional one. ``classes`` is the index that means
    no class. Both halves go through the network in one call of twice the batch.
    """

    denoiser: Denoiser
    weight: float
    classes: int

    @property
    def sigma_min(self) -> float:
        return self.denoiser.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.denoiser.sigma_max

    def noise_levels(self, steps: int) -> Tensor:
        return self.denoiser.noise_levels(steps)

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        if label is None:  # both models are the same
            return self.denoiser(x, sigma)
        both = torch.cat([label, torch.full_like(label, self.classes)])
        sigma = sigma.expand(len(x)).repeat(2)
        conditional, unconditional = self.denoiser(torch.cat([x, x]), sigma, both).chunk(2)
        return unconditional + self.weight * (conditional - unconditional)


@dataclass(frozen=True)
class Autoguided:
    """D_w = D_guide + w (D - D_guide): Karras et al. 2024a, eq. 5. Weight 1 is D itself.

    The guide is a weaker version of the same model: smaller, or less trained. It sees the label.
    """

    denoiser: Denoiser
    guide: Denoiser
    weight: float

    @property
    def sigma_min(self) -> float:
        return self.denoiser.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.denoiser.sigma_max

    def noise_levels(self, steps: int) -> Tensor:
        return self.denoiser.noise_levels(steps)

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        weaker = self.guide(x, sigma, label)
        return weaker + self.weight * (self.denoiser(x, sigma, label) - weaker)
