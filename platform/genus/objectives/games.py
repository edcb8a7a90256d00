"""The losses of the two players of a generative adversarial network."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Game = Literal["non-saturating", "hinge", "relativistic"]


def discriminator_losses(game: Game, real: Tensor, fake: Tensor) -> Tensor:
    """(B,) of logits (B,); row i of the fakes is paired with row i of the reals where it matters.

    non-saturating: softplus(-D(x)) + softplus(D(x^)), Goodfellow et al. 2014. hinge:
    max(0, 1 - D(x)) + max(0, 1 + D(x^)), Lim & Ye 2017. relativistic: softplus(D(x^) - D(x)),
    RpGAN, Jolicoeur-Martineau 2018.
    """
    match game:
        case "non-saturating":
            return F.softplus(-real) + F.softplus(fake)
        case "hinge":
            return F.relu(1 - real) + F.relu(1 + fake)
        case "relativistic":
            return F.softplus(fake - real)


def generator_losses(game: Game, real: Tensor, fake: Tensor) -> Tensor:
    """(B,) of logits (B,); the reals matter to the relativistic game only."""
    match game:
        case "non-saturating":
            return F.softplus(-fake)
        case "hinge":
            return -fake
        case "relativistic":
            return F.softplus(real - fake)
