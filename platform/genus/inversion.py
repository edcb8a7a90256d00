"""Projection of images into the latent space of a style-based generator.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 5 and appendix
D: w starts at the mean of W and, with the generator's noise, is moved by Adam until the image is as
near as can be. Each row is a problem of its own: its loss, random numbers and steps do not depend
on the rows beside it, but for the rounding of a batch of another size, which many steps enlarge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.draws import Draws
from genus.objectives.phase import Codes

SMALLEST_MAP = 8
"""Noise maps are compared with themselves at half the resolution down to so many pixels."""


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """The defaults are the published ones."""

    steps: int = 1000
    rate: float = 0.1
    """Largest learning rate."""
    rise: float = 0.05
    """Share of the steps in which it rises from 0, linearly ..."""
    fall: float = 0.25
    """... and in which it falls to 0, along a cosine."""
    noise: float = 0.05
    """Noise on w, in standard deviations of W ..."""
    noise_until: float = 0.75
    """... falls to 0 with the square of the share of steps that is left until here."""
    noise_weight: float = 1e5
    """Weight of the regulariser of the generator's noise."""
    each_layer: bool = False
    """A w for each layer (W+: Abdal et al. 2019) in the place of one for all."""

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        course = step / self.steps
        falling = min(1.0, (1 - course) / self.fall) if self.fall else 1.0
        rising = min(1.0, course / self.rise) if self.rise else 1.0
        return self.rate * rising * 0.5 * (1 - math.cos(math.pi * falling))

    def noise_at(self, step: int) -> float:
        """Noise of a step, in standard deviations of W."""
        left = 1 - step / self.steps / self.noise_until if self.noise_until else 0.0
        return self.noise * max(0.0, left) ** 2


@dataclass(frozen=True)
class Start:
    """Where the search begins, and the unit of its noise."""

    mean: Tensor
    """(B, W) mean of w."""
    deviation: Tensor
    """(B,) root of E |w - mean|^2."""


def start_of(w: Tensor) -> Start:
    """Of a sample (N, W): one row."""
    mean = w.mean(0, keepdim=True)
    return Start(mean, (w - mean).square().sum(1).mean(0, keepdim=True).sqrt())


def invert(
    image: Callable[[Codes], Tensor],
    distance: Callable[[Tensor], Tensor],
    start: Start,
    layers: int,
    noise_sizes: Sequence[int],
    draws: Draws,
    config: InversionConfig,
) -> Codes:
    """Codes, styles (B, L, W) and noise, whose images are near the target's.

    ``image`` makes images of codes; ``distance`` (B,) is that of images to each row's target;
    ``noise_sizes`` are the numbers of the square noise maps, none where there is no noise.
    """
    copies = layers if config.each_layer else 1
    styles = start.mean[:, None].repeat(1, copies, 1).requires_grad_()
    noise = None
    moved = [styles]
    if noise_sizes:
        drawn = draws.normal("noise", (sum(noise_sizes),), styles.dtype)
        noise = _standard(drawn, noise_sizes).requires_grad_()
        moved.append(noise)
    adam = torch.optim.Adam(moved, betas=(0.9, 0.999))
    for step in range(config.steps):
        adam.param_groups[0]["lr"] = config.rate_at(step)
        shaken, level = styles, config.noise_at(step)
        if level:
            shake = draws.normal(f"w {step}", styles.shape[1:], styles.dtype)
            shaken = styles + level * start.deviation[:, None, None] * shake
        found = image(Codes(shaken.expand(-1, layers, -1), noise))
        loss = distance(found).sum()
        if noise is not None:
            loss = loss + config.noise_weight * noise_penalty(noise, noise_sizes).sum()
        gradients = torch.autograd.grad(loss, moved)
        for tensor, gradient in zip(moved, gradients, strict=True):
            tensor.grad = gradient
        adam.step()
        if noise is not None:
            noise.data.copy_(_standard(noise.data, noise_sizes))
    return Codes(
        styles.detach().expand(-1, layers, -1).clone(), None if noise is None else noise.detach()
    )


def nearest(wanted: Tensor, made: Tensor) -> Tensor:
    """(N,) squared distance of each row of ``wanted`` (N, D) to the nearest one of ``made`` (M, D).
    Not by products of matrices, which lose the digits of near rows."""
    distance = torch.cdist(wanted, made, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square().min(dim=1).values


def noise_penalty(noise: Tensor, sizes: Sequence[int]) -> Tensor:
    """(B,) of noise (B, N): the squared mean products of neighbours along x and y, around the
    edges, in every map and in those of half its resolution, down to 8 pixels. It keeps the image
    out of the noise: white noise has no such products."""
    total = noise.new_zeros(len(noise))
    for part in torch.split(noise, list(sizes), dim=1):
        side = math.isqrt(part.shape[1])
        x = part.view(-1, 1, side, side)
        while True:
            for axis in (2, 3):
                total = total + (x * x.roll(1, axis)).mean(dim=(1, 2, 3)).square()
            if x.shape[2] <= SMALLEST_MAP:
                break
            x = 2 * F.avg_pool2d(x, 2)  # times 2 keeps the variance of white noise
    return total


def _standard(noise: Tensor, sizes: Sequence[int]) -> Tensor:
    """Every map at mean 0 and variance 1."""
    parts = []
    for part in torch.split(noise, list(sizes), dim=1):
        centred = part - part.mean(1, keepdim=True)
        parts.append(centred * (centred.square().mean(1, keepdim=True) + 1e-12).rsqrt())
    return torch.cat(parts, dim=1)
