"""StyleGAN2 as StyleGAN2-ADA configures it (Karras et al. 2020a, 2020b)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from genus.errors import ConfigError
from genus.networks.gan.discriminator import Discriminator, Form
from genus.networks.gan.mapping import Mapping
from genus.networks.gan.shapes import square_image
from genus.networks.gan.synthesis import Synthesis


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config:
    """Sizes and forms. The defaults are config F of 1024 pixels; at 256 pixels the published one
    halves ``channels_base``, and CIFAR-10's has 2 mapping layers, the "orig" discriminator and
    group 32."""

    latent: int = 512
    """Numbers of z."""
    width: int = 512
    """Numbers of w."""
    mapping_layers: int = 8
    """Layers from z to w."""
    mapping_rate: float = 0.01
    """Factor on the mapping's learning rate."""
    channels_base: int = 32768
    """Features at a resolution of r pixels are channels_base / r ..."""
    channels_max: int = 512
    """... but at most these."""
    generator: Literal["skip", "resnet"] = "skip"
    """Whether images of all resolutions are summed, or the blocks are residual."""
    discriminator: Form = "resnet"
    """Whether its blocks are residual, plain ("orig"), or each read the image ("skip")."""
    group: int = 4
    """Consecutive rows that the discriminator compares; 1 looks at each row alone."""
    label_layers: int = 8
    """Layers that map the label in a conditional discriminator."""
    clamp: float | None = None
    """Bound of the activations; 256 for float16."""
    filtered: bool = False
    """Nonlinearities of the generator between up- and downsampling, and no noise (StyleGAN3)."""
    grouped: bool = False
    """Modulated convolution with each sample's own weights: the same numbers another way."""

    def build(self, shape: tuple[int, ...], classes: int) -> dict[str, nn.Module]:
        """mapping, synthesis and discriminator of images ``shape`` (C, R, R); ``classes`` 0 is
        unconditional. ConfigError for impossible sizes."""
        channels, resolution, doublings = square_image("stylegan2", shape)
        if min(self.latent, self.width, self.mapping_layers, self.label_layers, self.group) < 1:
            raise ConfigError(
                "stylegan2: latent, width, mapping_layers, label_layers and group are at least 1"
            )
        if self.channels_max < 1 or self.channels_base < resolution:
            raise ConfigError(
                f"stylegan2: channels_base {self.channels_base} leaves no features at "
                f"{resolution} pixels: make it at least {resolution}, and channels_max at least 1"
            )
        sizes = [4 << number for number in range(doublings + 1)]
        widths = [min(self.channels_base // size, self.channels_max) for size in sizes]
        return {
            "mapping": Mapping(
                self.latent,
                self.width,
                classes=classes,
                layers=self.mapping_layers,
                rate=self.mapping_rate,
            ),
            "synthesis": Synthesis(
                widths,
                channels,
                self.width,
                form=self.generator,
                clamp=self.clamp,
                filtered=self.filtered,
                grouped=self.grouped,
            ),
            "discriminator": Discriminator(
                widths[::-1],
                channels,
                classes=classes,
                form=self.discriminator,
                group=self.group,
                label_layers=self.label_layers,
                clamp=self.clamp,
            ),
        }
