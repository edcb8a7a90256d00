"""R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN!"), config E: residual blocks of
1x1, grouped 3x3 and 1x1 convolutions, no normalisation, no noise, no style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.filtering import TRIANGLE, downsample, upsample
from genus.networks.gan.layers import channels_last
from genus.networks.gan.shapes import one_hot, square_image, with_label

SLOPE = 0.2
GAIN = math.sqrt(2 / (1 + SLOPE**2))
"""Of leaky ReLU, in the standard deviation that the weights before it start from."""


def _started(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> nn.Conv2d | nn.Linear:
    """Normal weights of deviation gain / sqrt(inputs of an output), zero bias."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """x (B, C, H, W) + branch(x), a bottleneck that is wider in its middle.

    Fixup (Zhang et al. 2019) takes the place of normalisation: in a network of ``depth`` blocks the
    branch's first two layers start smaller by depth^(-1/4), and its last one at zero.
    """

    def __init__(self, width: int, expansion: int, group_width: int, depth: int) -> None:
        super().__init__()
        middle, gain = width * expansion, GAIN * depth**-0.25
        groups = middle // group_width
        self.widen = _started(nn.Conv2d(width, middle, 1), gain)
        self.mix = _started(nn.Conv2d(middle, middle, 3, padding=1, groups=groups), gain)
        self.narrow = _started(nn.Conv2d(middle, width, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.widen(x), SLOPE)
        y = F.leaky_relu(self.mix(y), SLOPE)
        mixed: Tensor = x + self.narrow(y)
        return mixed


def _adapter(inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution where the number of features changes."""
    if inputs == outputs:
        return nn.Identity()
    return _started(nn.Conv2d(inputs, outputs, 1, bias=False))


class Stage(nn.Module):
    """The residual blocks of one resolution and the way to (``up``) or from (down) it."""

    def __init__(self, adapter: nn.Module, blocks: Sequence[nn.Module], *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.adapter = adapter
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        # Features change at the lower resolution, where it is cheaper; the order is immaterial.
        if self.up:
            x = upsample(self.adapter(x), TRIANGLE)
        for block in self.blocks:
            x = block(x)
        return x if self.up else self.adapter(downsample(x, TRIANGLE))


class R3GANGenerator(nn.Module):
    """z (B, Z), label (B,) -> image (B, C, R, R). ``widths`` from 4 pixels upwards."""

    def __init__(self, config: R3GANConfig, channels: int, classes: int) -> None:
        super().__init__()
        self.latent, self.classes = config.latent, classes
        widths = config.widths
        self.embed = None
        if classes:
            self.embed = _started(nn.Linear(classes, config.latent, bias=False))
        inputs = config.latent * (2 if classes else 1)
        self.linear = _started(nn.Linear(inputs, widths[0], bias=False))
        self.basis = nn.Parameter(torch.randn(widths[0], 4, 4))
        self.first = nn.ModuleList(config.residual_blocks(widths[0]))
        self.stages = nn.ModuleList(
            Stage(_adapter(before, width), config.residual_blocks(width), up=True)
            for before, width in pairwise(widths)
        )
        self.out = _started(nn.Conv2d(widths[-1], channels, 1, bias=False))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        embedded = None
        if self.embed is not None:
            embedded = self.embed(one_hot(label, self.classes, z))
        x = channels_last(self.linear(with_label(z, embedded))[:, :, None, None] * self.basis)
        for block in self.first:
            x = block(x)
        for stage in self.stages:
            x = stage(x)
        image: Tensor = self.out(x)
        return image


class R3GANDiscriminator(nn.Module):
    """image (B, C, R, R), label (B,) -> logits (B,): the generator's mirror image.

    With classes the logit is the product of the image's features and the label's embedding.
    """

    group = 1

    def __init__(self, config: R3GANConfig, channels: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        widths = config.widths[::-1]
        last = widths[-1]
        self.read = _started(nn.Conv2d(channels, widths[0], 1, bias=False))
        self.stages = nn.ModuleList(
            Stage(_adapter(width, after), config.residual_blocks(width), up=False)
            for width, after in pairwise(widths)
        )
        self.last = nn.ModuleList(config.residual_blocks(last))
        self.basis = _started(nn.Conv2d(last, last, 4, groups=last, bias=False))
        self.linear = _started(nn.Linear(last, last if classes else 1, bias=False))
        self.embed = None
        if classes:
            self.embed = _started(nn.Linear(classes, last, bias=False), last**-0.5)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.read(channels_last(image))
        for stage in self.stages:
            x = stage(x)
        for block in self.last:
            x = block(x)
        features: Tensor = self.linear(self.basis(x).flatten(1))
        if self.embed is None:
            return features[:, 0]
        embedded: Tensor = self.embed(one_hot(label, self.classes, features))
        return (features * embedded).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class R3GANConfig:
    """Sizes. The defaults are the published ones of CIFAR-10 at 32 pixels; those of FFHQ at 256
    have ``widths`` (768, 768, 768, 768, 384, 192, 96)."""

    latent: int = 64
    """Numbers of z; as many of a class's embedding."""
    widths: tuple[int, ...] = (768, 768, 768, 768)
    """Features at 4, 8, 16, ... pixels, of both networks."""
    blocks: int = 2
    """Residual blocks of each resolution."""
    expansion: int = 2
    """How many times wider a block is in its middle."""
    group_width: int = 16
    """Features of each group of the 3x3 convolution."""

    def residual_blocks(self, width: int) -> list[nn.Module]:
        """Those of one resolution."""
        depth = self.blocks * len(self.widths)
        return [
            ResidualBlock(width, self.expansion, self.group_width, depth)
            for _ in range(self.blocks)
        ]

    def build(self, shape: tuple[int, ...], classes: int) -> dict[str, nn.Module]:
        """generator and discriminator of images ``shape`` (C, R, R); ``classes`` 0 is
        unconditional. ConfigError for impossible sizes."""
        channels, resolution, doublings = square_image("r3gan", shape)
        if len(self.widths) != doublings + 1:
            raise ConfigError(
                f"r3gan: {resolution} pixels take {doublings + 1} widths, one for each of 4, 8, "
                f"..., {resolution}, and widths has {len(self.widths)}"
            )
        if min(*self.widths, self.latent, self.blocks, self.expansion, self.group_width) < 1:
            raise ConfigError("r3gan: widths, latent, blocks and the others are at least 1")
        for width in self.widths:
            if width * self.expansion % self.group_width:
                raise ConfigError(
                    f"r3gan: width {width} times expansion {self.expansion} is not a multiple of "
                    f"group_width {self.group_width}"
                )
        return {
            "generator": R3GANGenerator(self, channels, classes),
            "discriminator": R3GANDiscriminator(self, channels, classes),
        }
