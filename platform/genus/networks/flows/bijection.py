"""What every invertible map promises, and maps made of maps.

A bijection is a module whose ``forward`` gives y = f(x; context) and log |det df/dx|, and whose
``inverse`` gives x back. Rows are independent. Log-determinants are summed in float32 at least
(float64 where x is), whatever autocast does to the products inside.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

Transformed = tuple[Tensor, Tensor]
"""y, and the log |det| of each row, (B,)."""


class Bijection(nn.Module):
    """y = f(x; context), invertible in x. ``context`` (B, F) or None conditions the map."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        """x (B, ...) -> y (B, ...), log |det| (B,)."""
        raise NotImplementedError

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """The x with forward(x) = y."""
        raise NotImplementedError


class Chain(Bijection):
    """One map after the other."""

    def __init__(self, maps: Iterable[Bijection]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        total = zeros(x)
        for one in self.maps:
            x, log_det = one(x, context)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        for one in reversed(self.maps):
            assert isinstance(one, Bijection)
            y = one.inverse(y, context)
        return y


class Split(Bijection):
    """The first half of the channels goes on through ``deeper``, the second is done: factored out,
    after ``prior``, an optional coupling that standardises it given the first (Dinh et al. 2017,
    section 3.6; Kingma & Dhariwal 2018, section 3). (B, C, ...) -> (B, D) flat."""

    def __init__(self, deeper: Bijection, prior: Bijection | None = None) -> None:
        super().__init__()
        self.deeper, self.prior = deeper, prior

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        total = zeros(x)
        if self.prior is not None:
            x, total = self.prior(x, context)
        a, b = x.chunk(2, dim=1)
        a, log_det = self.deeper(a, context)
        return torch.cat([a.flatten(1), b.flatten(1)], dim=1), total + log_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        a, b = y.chunk(2, dim=1)
        a = self.deeper.inverse(a, context)
        x = torch.cat([a, b.reshape(a.shape)], dim=1)
        return x if self.prior is None else self.prior.inverse(x, context)


def zeros(x: Tensor) -> Tensor:
    """A log |det| of 0 for each row, in the precision that log-determinants have."""
    return x.new_zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32))


def row_sum(log_derivatives: Tensor) -> Tensor:
    """(B, ...) -> (B,), in float32 at least."""
    dtype = torch.promote_types(log_derivatives.dtype, torch.float32)
    return log_derivatives.sum(tuple(range(1, log_derivatives.ndim)), dtype=dtype)
