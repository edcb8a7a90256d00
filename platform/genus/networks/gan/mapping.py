"""From a normal vector and a class to a style: StyleGAN's mapping network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genus.networks.gan.layers import Dense, unit_scale
from genus.networks.gan.shapes import one_hot


class Mapping(nn.Module):
    """z (B, Z), label (B,) -> w (B, W).

    ``latent`` 0 makes it a map of the label alone, which the discriminator compares with its
    features; then z is None. ``rate`` is the factor on its learning rate.
    """

    def __init__(
        self, latent: int, width: int, *, classes: int, layers: int, rate: float = 0.01
    ) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        self.embed = Dense(classes, width, active=False) if classes else None
        first = latent + (width if classes else 0)
        self.layers = nn.ModuleList(
            Dense(width if number else first, width, active=True, rate=rate)
            for number in range(layers)
        )

    def forward(self, z: Tensor | None, label: Tensor | None = None) -> Tensor:
        parts = [] if z is None else [unit_scale(z)]
        if self.embed is not None:
            parts.append(unit_scale(self.embed(one_hot(label, self.classes, self.embed.weight))))
        w = torch.cat(parts, dim=1)
        for layer in self.layers:
            w = layer(w)
        return w
