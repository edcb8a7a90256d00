"""Masked autoregressive flows of vectors: each number is transformed given those before it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.networks.flows.bijection import Bijection, Transformed, row_sum
from genus.networks.flows.conditioners import nearly_zero
from genus.networks.flows.coupling import parameters_last
from genus.networks.flows.elementwise import Elementwise


class MaskedLinear(nn.Linear):
    """A linear layer whose weights are multiplied by a fixed mask."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        """``mask`` (out, in) of 0 and 1."""
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """Parameters of dimension d from the dimensions before d alone (Germain et al. 2015, eq. 8-9).

    (B, D) and context (B, F) or None -> (B, D * size); context reaches every hidden unit. The last
    layer starts near zero: the flow starts near the identity.
    """

    def __init__(self, dims: int, size: int, hidden: Sequence[int], features: int = 0) -> None:
        super().__init__()
        degrees = [torch.arange(1, dims + 1)]
        # units of degree 0 see the context alone; without one they would be constant
        least = 0 if features else min(1, dims - 1)
        for width in hidden:
            degrees.append(torch.arange(width) % max(1, dims - least) + least)
        pairs = itertools.pairwise(degrees)
        masks = [(out[:, None] >= into).float() for into, out in pairs]
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        last = (degrees[0][:, None] > degrees[-1]).float().repeat_interleave(size, 0)
        self.last = nearly_zero(MaskedLinear(last))
        self.context = nn.Linear(features, hidden[0]) if features else None

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == 0 and self.context is not None:
                x = x + self.context(context)
            x = F.relu(x)
        out: Tensor = self.last(x)
        return out


class MaskedAutoregressive(Bijection):
    """x_d -> transform(x_d; MADE(x_1 .. x_(d-1))) (Papamakarios et al. 2017): one pass forward, D
    passes back."""

    def __init__(
        self, dims: int, transform: Elementwise, hidden: Sequence[int], features: int = 0
    ) -> None:
        super().__init__()
        self.transform = transform
        self.made = MADE(dims, transform.size, hidden, features)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        y, log_derivative = self.transform.transform(x, self._given(x, context))
        return y, row_sum(log_derivative)

    # a compiler would unroll the loop over dimensions
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        x = torch.zeros_like(y)
        for d in range(y.shape[1]):
            parameters = self._given(x, context)[:, d]
            x = torch.cat(
                [x[:, :d], self.transform.inverse(y[:, d], parameters)[:, None], x[:, d + 1 :]], 1
            )
        return x

    def _given(self, x: Tensor, context: Tensor | None) -> Tensor:
        return parameters_last(self.made(x, context), self.transform.size, x.dtype)
