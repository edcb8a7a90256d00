"""Flows of vectors: NICE, RealNVP, RQ-NSF by coupling, and MAF."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from genus.errors import ConfigError
from genus.networks.flows.autoregressive import MaskedAutoregressive
from genus.networks.flows.bijection import Bijection, Chain
from genus.networks.flows.conditioners import MLP
from genus.networks.flows.coupling import Coupling
from genus.networks.flows.elementwise import Additive, Affine, Elementwise, RationalQuadratic
from genus.networks.flows.linear import ActNorm, InvertibleLinear, Permutation


@dataclass(frozen=True, kw_only=True)
class VectorFlowConfig:
    """A flow of vectors: ``layers`` maps, alternating with a mixing of the dimensions."""

    kind: Literal["nice", "realnvp", "nsf", "maf", "maf-nsf"] = "nsf"
    """Additive, affine or spline couplings, or masked autoregressive affine or spline maps."""
    layers: int = 8
    width: int = 128
    """Of the hidden layers."""
    depth: int = 2
    """Hidden layers."""
    bins: int = 8
    """Of a spline."""
    bound: float = 5.0
    """Splines act on [-bound, bound]; data should be standardised."""

    def build(self, *, dims: int, features: int = 0) -> Bijection:
        """(B, dims) -> (B, dims); ``features`` of a context. ConfigError."""
        if dims < 2 or min(self.layers, self.width, self.depth, self.bins) < 1:
            raise ConfigError("a vector flow needs 2 dimensions, 1 layer, width, depth and bin")
        if self.bound <= 0 or self.bins > 100:
            raise ConfigError(f"a vector flow takes bound above 0 and at most 100 bins, not "
                              f"bound={self.bound:g}, bins={self.bins}")  # fmt: skip
        maps: list[Bijection] = []
        for layer in range(self.layers):
            maps.append(self._map(dims, features, second=layer % 2 == 0))
            if layer < self.layers - 1:
                maps.append(self._mix(dims))
        if self.kind == "nice":
            maps.append(ActNorm(dims))  # NICE's diagonal scaling (Dinh et al. 2015, section 3.3)
        return Chain(maps)

    def _map(self, dims: int, features: int, second: bool) -> Bijection:
        if self.kind.startswith("maf"):
            hidden = [self.width] * self.depth
            return MaskedAutoregressive(dims, self._transform(), hidden, features)
        make = partial(MLP, width=self.width, depth=self.depth, features=features)
        return Coupling(dims, self._transform(), make, second, both=self.kind == "nsf")

    def _transform(self) -> Elementwise:
        if self.kind in ("nsf", "maf-nsf"):
            return RationalQuadratic(self.bins, self.bound)
        return Additive() if self.kind == "nice" else Affine()

    def _mix(self, dims: int) -> Bijection:
        if self.kind == "nice":  # the halves alternate
            return Chain([])
        if self.kind.startswith("maf"):
            return Permutation(torch.arange(dims).flip(0))
        return InvertibleLinear(dims)
