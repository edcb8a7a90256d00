"""A whole flow as a network: a bijection to a flat latent vector, conditioned on classes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.flows.bijection import Bijection, Chain, Transformed
from genus.networks.flows.linear import ActNorm
from genus.networks.flows.pixels import Logit
from genus.networks.flows.tarflow import guided_inverse
from genus.networks.flows.vector import VectorFlowConfig

FEATURES = 64
"""Width of a class's embedding."""


class ImageFlow(Protocol):
    """The config of a flow of images."""

    def build(self, *, channels: int, resolution: int, features: int = 0) -> Bijection: ...


class Flow(nn.Module):
    """x -> (z, log |det dz/dx|) and back, both through ``__call__``.

    ``label`` (B,) holds classes 0 .. classes - 1, or ``classes`` for none; None where there are no
    classes.
    """

    def __init__(self, bijection: Bijection, classes: int = 0) -> None:
        """``bijection`` takes a context of FEATURES numbers where there are classes."""
        super().__init__()
        self.bijection, self.classes = bijection, classes
        self.embedding = nn.Embedding(classes + 1, FEATURES) if classes else None

    def forward(
        self, x: Tensor, label: Tensor | None = None, inverse: bool = False, guidance: float = 1.0
    ) -> Transformed | Tensor:
        """x (B, ...) -> z (B, D) and log |det| (B,); with ``inverse``, z -> x.

        ``guidance`` other than 1 is the weight of a class against none, where the maps have it.
        """
        if self.embedding is None or label is None:
            return self.bijection.inverse(x) if inverse else self._forward(x, None)
        context = self.embedding(label)
        if not inverse:
            return self._forward(x, context)
        if guidance == 1:
            return self.bijection.inverse(x, context)
        nothing = self.embedding(label.new_full((len(x),), self.classes))
        return guided_inverse(self.bijection, x, context, nothing, guidance)

    def _forward(self, x: Tensor, context: Tensor | None) -> Transformed:
        z, log_det = self.bijection(x, context)
        return z, log_det


def build_flow(
    config: ImageFlow | VectorFlowConfig,
    shape: tuple[int, ...],
    classes: int = 0,
    logit: float = 0.0,
) -> Flow:
    """A flow of images (C, H, W) in [-1, 1], which pass ``Logit`` first where ``logit`` > 0; or of
    vectors (D,) in any unit, which an ``ActNorm``, to be initialised, standardises. ConfigError
    where config and data don't go together."""
    features, name = FEATURES if classes else 0, type(config).__name__
    if not 0 <= logit < 0.5:
        raise ConfigError(f"logit={logit}: take 0 (off) to below 0.5")
    if isinstance(config, VectorFlowConfig):
        if len(shape) != 1 or logit:
            raise ConfigError(f"network={name} takes vectors, not images, and no logit")
        maps = config.build(dims=shape[0], features=features)
        return Flow(Chain([ActNorm(*shape), maps]), classes)
    if len(shape) != 3:
        raise ConfigError(f"network={name} takes images: for vectors take VectorFlowConfig")
    maps = config.build(channels=shape[0], resolution=shape[1], features=features)
    return Flow(Chain([Logit(logit), maps]) if logit else maps, classes)
