"""Flows of images: NICE, RealNVP (multi-scale) and Glow, as bijections to flat latents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from genus.errors import ConfigError
from genus.networks.flows.bijection import Bijection, Chain, Split
from genus.networks.flows.conditioners import MLP, ConvNet, ConvPrior, ResNet
from genus.networks.flows.coupling import Coupling, MaskedCoupling, checkerboard
from genus.networks.flows.elementwise import Additive, Affine
from genus.networks.flows.linear import ActNorm, InvertibleLinear, Permutation
from genus.networks.flows.reshape import Shape, Squeeze


@dataclass(frozen=True, kw_only=True)
class GlowConfig:
    """Glow (Kingma & Dhariwal 2018): ``levels`` of squeeze, ``steps`` of (actnorm, invertible 1x1
    convolution, coupling), split."""

    steps: int = 32
    """K, steps of flow a level."""
    levels: int = 3
    """L."""
    width: int = 512
    """Hidden channels of the couplings' networks."""
    coupling: Literal["affine", "additive"] = "affine"
    learned_prior: bool = True
    """Factored-out halves are standardised given what goes on."""

    def build(self, *, channels: int, resolution: int, features: int = 0) -> Bijection:
        """(B, C, H, W) -> (B, C H W). ConfigError where the sizes don't fit."""
        if min(self.steps, self.levels, self.width) < 1 or resolution % 2**self.levels:
            raise ConfigError(
                f"glow: {self.levels} levels halve the images {self.levels} times: "
                f"{resolution} px is no multiple of {2**self.levels}"
            )
        return self._level(self.levels, channels, resolution, features)

    def _level(self, levels: int, channels: int, resolution: int, features: int) -> Bijection:
        channels, resolution = 4 * channels, resolution // 2
        maps: list[Bijection] = [Squeeze()]
        for _ in range(self.steps):
            maps += [ActNorm(channels), InvertibleLinear(channels)]
            maps.append(self._coupling(channels, features))
        if levels == 1:
            maps.append(Shape(channels, resolution, resolution))
            return Chain(maps)
        deeper = self._level(levels - 1, channels // 2, resolution, features)
        maps.append(Split(deeper, self._prior(channels) if self.learned_prior else None))
        return Chain(maps)

    def _coupling(self, channels: int, features: int) -> Bijection:
        make = partial(ConvNet, width=self.width, features=features)
        transform = Affine("glow") if self.coupling == "affine" else Additive()
        return Coupling(channels, transform, make)

    def _prior(self, channels: int) -> Bijection:
        return Coupling(channels, Affine("tanh"), ConvPrior)


@dataclass(frozen=True, kw_only=True)
class RealNVPConfig:
    """RealNVP (Dinh et al. 2017, section 3.6): at each scale three checkerboard couplings, squeeze,
    three channel couplings, half of the channels factored out; four checkerboard couplings last."""

    levels: int = 2
    """Scales."""
    width: int = 64
    """Channels of the first scale's residual networks; doubled at each squeeze."""
    blocks: int = 8
    """Residual blocks of each network."""

    def build(self, *, channels: int, resolution: int, features: int = 0) -> Bijection:
        """(B, C, H, W) -> (B, C H W). ConfigError where the sizes don't fit."""
        if min(self.levels, self.width, self.blocks) < 1 or resolution % 2 ** (self.levels - 1):
            raise ConfigError(
                f"realnvp: {resolution} px can't be halved {self.levels - 1} times, or width or "
                "blocks are below 1"
            )
        return self._level(self.levels, channels, resolution, self.width, features)

    def _level(
        self, levels: int, channels: int, resolution: int, width: int, features: int
    ) -> Bijection:
        maps: list[Bijection] = []
        for number in range(4 if levels == 1 else 3):
            mask = checkerboard(channels, resolution, resolution, even=number % 2 == 0)
            make = partial(ResNet, width=width, blocks=self.blocks, features=features)
            maps += [MaskedCoupling(mask, Affine(), make), ActNorm(channels)]
        if levels == 1:
            return Chain([*maps, Shape(channels, resolution, resolution)])
        # the squeeze puts a colour's four places side by side: each half is to have every colour
        order = torch.arange(4 * channels).reshape(channels, 4)[:, [0, 3, 1, 2]].T.flatten()
        maps += [Squeeze(), Permutation(order)]
        channels, resolution = 4 * channels, resolution // 2
        for number in range(3):
            make = partial(ResNet, width=2 * width, blocks=self.blocks, features=features)
            maps += [Coupling(channels, Affine(), make, number % 2 == 0), ActNorm(channels)]
        deeper = self._level(levels - 1, channels // 2, resolution, 2 * width, features)
        return Chain([*maps, Split(deeper)])


@dataclass(frozen=True, kw_only=True)
class NICEConfig:
    """NICE (Dinh et al. 2015, section 5.1): additive couplings of pixels at even and odd places, by
    deep MLPs, and a scale a dimension."""

    layers: int = 4
    width: int = 1000
    depth: int = 5

    def build(self, *, channels: int, resolution: int, features: int = 0) -> Bijection:
        """(B, C, H, W) -> (B, C H W). ConfigError."""
        if min(self.layers, self.width, self.depth) < 1:
            raise ConfigError("nice: layers, width and depth are at least 1")
        dims = channels * resolution**2
        make = partial(MLP, width=self.width, depth=self.depth, features=features)
        places = torch.arange(dims)
        maps: list[Bijection] = [Shape(channels, resolution, resolution)]
        maps.append(Permutation(torch.cat([places[::2], places[1::2]])))
        maps += [Coupling(dims, Additive(), make, n % 2 == 0) for n in range(self.layers)]
        return Chain([*maps, ActNorm(dims)])
