"""How far images are from each other to the eye: pixels at several scales, and features.

Each distance is the square of the Euclidean one between two embeddings, so that the nearest of many
images is found from embeddings that are made once.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["features", "pixels"]
STAGES = (0, 2, 4, 10)
"""Blocks of EfficientNet-Lite0 whose outputs are compared: the last ones at 1/2, 1/4, 1/8 and 1/16
of its input's resolution."""
SMALLEST = 4
"""Pixels of the coarsest scale."""


class ImageDistance:
    """Between images (B, C, R, R) nominally in [-1, 1], C = 1 or 3; differentiable.

    "pixels": the squared difference, averaged over pixels and channels and then over the scales R,
    R/2, ..., 4 (means of 2x2 pixels). "features": that, plus the same of EfficientNet-Lite0's
    features at four depths, as LPIPS has it (Zhang et al. 2018) but without its trained weights:
    the vector at each position divided by its length, squared differences summed over channels,
    averaged over positions and then over depths. Both parts are between 0 and 4.
    """

    def __init__(self, kind: Kind, resolution: int, device: torch.device | str = "cpu") -> None:
        """``resolution``: R. Features see the image at R pixels, but at 64 at least and 256 at
        most."""
        self.kind = kind
        self._size = min(max(resolution, 64), 256)
        self._network = _network(device) if kind == "features" else None

    @property
    def description(self) -> str:
        """For a person."""
        pixels = "squared difference of pixels over scales"
        if self._network is None:
            return pixels
        return f"{pixels} + EfficientNet-Lite0 features at {self._size} px"

    def embed(self, images: Tensor) -> Tensor:
        """(B, D): the distance of two images is the square of that of their rows."""
        parts = _scales(images)
        if self._network is not None:
            parts += self._features(images)
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def between(self, one: Tensor, two: Tensor) -> Tensor:
        """(B,) of embeddings (B, D)."""
        return (one - two).square().sum(1)

    def _features(self, images: Tensor) -> list[Tensor]:
        assert self._network is not None
        x = images.float().expand(-1, 3, -1, -1)
        if x.shape[2] != self._size:
            x = F.interpolate(x, (self._size, self._size), mode="bilinear", antialias=False)
        x = ((x + 1) * 127.5 - 127.0) / 128.0  # of levels, as the weights were trained
        network, found = self._network, []
        x = network._swish(network._bn0(network._conv_stem(x)))  # type: ignore[operator]
        for number, block in enumerate(network._blocks):  # type: ignore[arg-type]
            x = block(x)
            if number in STAGES:
                unit = x * (x.square().sum(1, keepdim=True) + 1e-8).rsqrt()
                found.append(unit / math.sqrt(len(STAGES) * x.shape[2] * x.shape[3]))
            if number == STAGES[-1]:
                break
        return found


def _scales(images: Tensor) -> list[Tensor]:
    scales = [images]
    while scales[-1].shape[2] % 2 == 0 and scales[-1].shape[2] > SMALLEST:
        scales.append(F.avg_pool2d(scales[-1], 2))
    return [x / math.sqrt(len(scales) * x[0].numel()) for x in scales]


def _network(device: torch.device | str) -> nn.Module:
    from genus.evaluate.features import efficientnet_lite0

    network = efficientnet_lite0(device=device).module.network
    assert isinstance(network, nn.Module)
    return network.requires_grad_(False)
