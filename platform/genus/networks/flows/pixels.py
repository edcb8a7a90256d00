"""Maps between bounded numbers and the whole line, for pixels at the ends of flows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.networks.flows.bijection import Bijection, Transformed, row_sum


class Logit(Bijection):
    """y = logit(alpha + (1 - 2 alpha) (x + 1) / 2), for x in [-1, 1] (Dinh et al. 2017, section
    4.1): near black and white, where pixels crowd, there is room again."""

    def __init__(self, alpha: float) -> None:
        """``alpha`` in (0, 1/2) keeps black and white finite."""
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        p = self.alpha + (1 - 2 * self.alpha) * (x + 1) / 2
        y = p.log() - (1 - p).log()
        # dy/dx = (1 - 2 alpha) / 2 / (p (1 - p)), and p (1 - p) = sigmoid(y) sigmoid(-y)
        slope = math.log((1 - 2 * self.alpha) / 2)
        return y, row_sum(slope + F.softplus(y) + F.softplus(-y))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        p = y.sigmoid()
        return (2 * p - 1) / (1 - 2 * self.alpha)


class NormalCDF(Bijection):
    """y = Phi(x), from the line to (0, 1): it makes a standard normal x uniform."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        log_slope = -x.square() / 2 - math.log(2 * math.pi) / 2
        return torch.special.ndtr(x), row_sum(log_slope)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        x: Tensor = torch.special.ndtri(y)
        return x
