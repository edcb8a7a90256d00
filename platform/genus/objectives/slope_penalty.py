"""R1 and R2 as a run has them: how slopes are found, and what they weigh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genus.draws import Draws
from genus.objectives.gradient_penalty import finite_difference, input_gradient, square_norm
from genus.optim.schedule import half_cosine

Judge = Callable[[Tensor, Sequence[str]], Tensor]
"""(rows in equal parts, the parts' names) -> logits; parts of one name are shown alike."""


@dataclass(frozen=True)
class SlopePenalty:
    """gamma/2 E |grad_x D(x)|^2 on real and generated rows: Mescheder et al. 2018, eq. 9, 10."""

    r1: float
    """gamma on real rows."""
    r2: float
    """gamma on generated ones."""
    exact: bool
    """By second derivatives; else by finite differences of ``step``."""
    step: float
    anneal: int
    """Samples over which both fall along a cosine to the share ``anneal_to``; 0: they stay."""
    anneal_to: float

    def __bool__(self) -> bool:
        return max(self.r1, self.r2) > 0

    def slopes(
        self,
        judge: Judge,
        discriminator: nn.Module,
        x: Tensor,
        logits: Tensor,
        names: Sequence[str],
        draws: Draws,
    ) -> Tensor:
        """|grad_x D(x)|^2 of the first rows of ``x``, as many as there are ``logits``; they are of
        equal parts with these ``names``."""
        rows = len(logits)
        if self.exact:
            return square_norm(input_gradient(logits, x, discriminator)[:rows])
        x = x[:rows].detach()
        u = [draws.scoped(name).normal("direction", x.shape[1:], x.dtype) for name in names]
        twice = [*names, *names]  # both points of a difference are shown alike
        return finite_difference(lambda moved: judge(moved, twice), x, torch.cat(u), self.step)

    def weighted(
        self, slopes: Tensor, rows: int, position: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The penalty at ``position`` samples of ``rows`` real slopes and, with R2, as many of
        generated rows; and their means."""
        weight = 0.5
        if self.anneal:
            left = half_cosine(position, self.anneal)
            weight *= self.anneal_to + (1 - self.anneal_to) * left
        real, *fake = torch.split(slopes, rows)
        means = {"r1": real.mean()}
        loss: Tensor = self.r1 * means["r1"]
        if fake:
            means["r2"] = fake[0].mean()
            loss = loss + self.r2 * means["r2"]
        return weight * loss, means
