"""DCGAN (Radford et al. 2016) for small images: strided 4x4 convolutions and little else.

Batch normalisation is left out of both networks. In a critic a gradient penalty is of one sample's
logit, which batch statistics make depend on the others; and in either they would differ with the
number of processes and with the micro-batch. The generator normalises each pixel instead (Karras et
al. 2018), which needs no batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.gan.layers import unit_scale
from genus.networks.gan.shapes import one_hot, square_image, with_label


class Doubling(nn.Module):
    """x (B, I, H, W) -> (B, O, 2H, 2W), normalised and rectified."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Leaky rather than the paper's ReLU: its normalised zeros would stay zeros.
        return F.leaky_relu(unit_scale(self.conv(x)), 0.2)


class Halving(nn.Module):
    """x (B, I, H, W) -> (B, O, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), 0.2)


class DCGANGenerator(nn.Module):
    """z (B, Z), label (B,) -> image (B, C, R, R) in (-1, 1)."""

    def __init__(self, latent: int, widths: list[int], channels: int, classes: int) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        self.first = nn.Linear(latent + classes, widths[0] * 16)
        self.stages = nn.ModuleList(
            Doubling(inputs, outputs) for inputs, outputs in pairwise(widths)
        )
        self.out = nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        hot = one_hot(label, self.classes, z) if self.classes else None
        x = self.first(with_label(z, hot)).unflatten(1, (-1, 4, 4))
        x = F.leaky_relu(unit_scale(x), 0.2)
        for stage in self.stages:
            x = stage(x)
        return torch.tanh(self.out(x))


class DCGANDiscriminator(nn.Module):
    """image (B, C, R, R), label (B,) -> logits (B,).

    A class adds the product of its embedding and the features summed over pixels (Miyato & Koyama
    2018).
    """

    group = 1

    def __init__(self, widths: list[int], channels: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.stages = nn.ModuleList(
            Halving(inputs, outputs)
            for inputs, outputs in zip([channels, *widths], widths, strict=False)
        )
        self.out = nn.Linear(widths[-1] * 16, 1)
        self.embed = nn.Linear(classes, widths[-1], bias=False) if classes else None

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = image
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.out(x.flatten(1))[:, 0]
        if self.embed is None:
            return logits
        embedded: Tensor = self.embed(one_hot(label, self.classes, x))
        return logits + (x.sum(dim=(2, 3)) * embedded).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class DCGANConfig:
    """Sizes."""

    latent: int = 100
    """Numbers of z."""
    width: int = 64
    """Features at half the image's resolution; doubled with every halving."""

    def build(self, shape: tuple[int, ...], classes: int) -> dict[str, nn.Module]:
        """generator and discriminator of images ``shape`` (C, R, R); ``classes`` 0 is
        unconditional. ConfigError for impossible sizes."""
        channels, _, doublings = square_image("dcgan", shape)
        if min(self.latent, self.width) < 1:
            raise ConfigError("dcgan: latent and width are at least 1")
        widths = [self.width << number for number in range(doublings)]
        return {
            "generator": DCGANGenerator(self.latent, widths[::-1], channels, classes),
            "discriminator": DCGANDiscriminator(widths, channels, classes),
        }
