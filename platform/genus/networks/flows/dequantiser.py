"""Variational dequantisation: noise inside each pixel level's bin, learnt (Ho et al. 2019).

q(u | x) on [0, 1)^D is itself a flow given the image: u = Phi(couplings(eps; image)) for normal
eps. The couplings start at the identity, hence q at the uniform distribution: training begins with
uniform dequantisation and leaves it as far as the bound gains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.networks.flows.bijection import Chain
from genus.networks.flows.conditioners import ConvNet
from genus.networks.flows.coupling import MaskedCoupling, checkerboard
from genus.networks.flows.elementwise import Affine
from genus.networks.flows.pixels import NormalCDF


@dataclass(frozen=True, kw_only=True)
class DequantiserConfig:
    """The flow of the noise."""

    layers: int = 4
    """Checkerboard couplings."""
    width: int = 32
    """Hidden channels, of their networks and of the image's features."""

    def build(self, shape: tuple[int, ...]) -> Dequantiser:
        """For images (C, H, W)."""
        return Dequantiser(self, shape)


class Dequantiser(nn.Module):
    """q(u | x)."""

    def __init__(self, config: DequantiserConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        width, (channels, height, length) = config.width, shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        masks = [checkerboard(channels, height, length, n % 2 == 0) for n in (0, 1)]
        make = partial(Beside, features=width, width=width)
        maps = [MaskedCoupling(masks[n % 2], Affine(), make) for n in range(config.layers)]
        self.flow = Chain([*maps, NormalCDF()])

    def forward(self, image: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, C, H, W) in [-1, 1] and normal eps -> u (B, C, H, W) and log q(u | x) (B,)."""
        u, log_det = self.flow(eps, self.features(image))
        log_normal = -(eps.square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2
        return u, log_normal - log_det


class Beside(nn.Module):
    """A ``ConvNet`` whose context (B, F, H, W) lies beside its input as further channels."""

    def __init__(self, fan_in: int, fan_out: int, features: int, width: int) -> None:
        super().__init__()
        self.net = ConvNet(fan_in + features, fan_out, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([x, F.relu(context)], dim=1), None)
        return out
