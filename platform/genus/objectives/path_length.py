"""Path-length regularisation of a style-based generator.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 3.2: a step in
w of fixed size should change the image by a fixed amount, whatever w and the direction,

    E_w,y (|J_w^T y|_2 - a)^2,   J_w = d g(w) / d w,   y ~ N(0, I)                          (eq. 4)

with ``a`` the moving average of the lengths |J_w^T y|_2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genus.objectives.gradient_penalty import input_gradient
from genus.over_ranks import mean_over_ranks
from genus.state import State, take


def path_lengths(image: Tensor, styles: Tensor, y: Tensor, synthesis: nn.Module) -> Tensor:
    """(B,) of images (B, C, H, W) made of ``styles`` (B, L, W), with noise ``y`` of the images'
    shape.

    As in the authors' code y is divided by the root of the number of pixels, so that lengths of
    several resolutions compare, and the squares are averaged over the L layers' own copies of w.
    """
    pixels = math.sqrt(image.shape[2] * image.shape[3])
    gradient = input_gradient(image * (y / pixels), styles, synthesis)
    return gradient.square().sum(2).mean(1).sqrt()


class PathLength:
    """The average length ``a``, over all ranks and micro-batches of a step.

    The penalty compares with the average before the step (the authors' code: with one that the
    same batch has moved), so that it does not depend on how a batch is cut.
    """

    def __init__(self, decay: float) -> None:
        """``decay``: the share of a step's mean in the new average."""
        self.decay = decay
        self.mean = torch.zeros(1)
        self._sums = torch.zeros(2)  # of lengths, of rows
        self._has_news = False

    def penalty(self, lengths: Tensor) -> Tensor:
        """(B,) (length - a)^2; the lengths are remembered for ``update``."""
        found = lengths.detach()
        self._to(found.device)
        sound = found.isfinite()  # of a step that will be skipped nothing must stay
        self._sums += torch.stack([found.where(sound, 0).sum(), sound.sum()])
        self._has_news = True
        return (lengths - self.mean.to(lengths.dtype)).square()

    def update(self) -> None:
        """a <- a + decay (mean length - a), if there were lengths; all ranks call it."""
        if not self._has_news:
            return
        total, rows = mean_over_ranks(self._sums)
        step = self.decay * (total / rows.clamp(min=1e-9) - self.mean)
        self.mean = self.mean + step * (rows > 0)
        self._sums, self._has_news = torch.zeros_like(self._sums), False

    def _to(self, device: torch.device) -> None:
        if self.mean.device != device:
            self.mean, self._sums = self.mean.to(device), self._sums.to(device)

    def state_dict(self) -> State:
        return {"path_length": self.mean}

    def load_state_dict(self, state: State) -> None:
        take(self.mean, state["path_length"])
