"""Linear maps over channels: per-channel scales, invertible matrices, fixed permutations."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from genus.networks.flows.bijection import Bijection, Transformed, zeros


class ActNorm(Bijection):
    """y = exp(s) (x + b) a channel (Kingma & Dhariwal 2018, section 3.1).

    ``initialise`` sets b and s from data, so that y has mean 0 and variance 1 a channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        y = (x + _as(self.bias, x)) * _as(self.log_scale.exp(), x)
        places = math.prod(x.shape[2:])
        return y, _in_each_row(places * self.log_scale.sum(), x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return y * _as((-self.log_scale).exp(), y) - _as(self.bias, y)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """By the data x (B, C, ...) that come here."""
        rows = x.transpose(0, 1).flatten(1).double()
        deviation = rows.std(1, correction=0).clamp(min=1e-6)
        self.bias.copy_(-rows.mean(1))
        self.log_scale.copy_(-deviation.log())


class InvertibleLinear(Bijection):
    """y = W x over channels at every place: the invertible 1x1 convolution, W = P L (U + diag(s))
    (Kingma & Dhariwal 2018, eq. 10).

    log |det W| is the sum of log |s|, so it costs nothing, and W^-1 is two triangular solves. P and
    the signs of s are fixed; W begins as a rotation, drawn from torch's default generator.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        Q = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q
        P, L, U = torch.linalg.lu(Q)
        s = U.diagonal()
        dtype = torch.get_default_dtype()
        self.register_buffer("permutation", P.to(dtype))
        self.register_buffer("sign", s.sign().to(dtype))
        self.lower = nn.Parameter(L.to(dtype))
        self.upper = nn.Parameter(U.to(dtype))
        self.log_s = nn.Parameter(s.abs().log().to(dtype))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        with exact(x):
            U = self._upper()
            LU = torch.addmm(U, self.lower.tril(-1), U)
            y = _mixed(self.permutation @ LU, x.to(U.dtype))
        return y, _in_each_row(math.prod(x.shape[2:]) * self.log_s.sum(), x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        inverse = torch.linalg.solve_triangular(
            self.lower, self.permutation.T, upper=False, unitriangular=True
        )
        inverse = torch.linalg.solve_triangular(self._upper(), inverse, upper=True)
        with exact(y):
            return _mixed(inverse, y.to(inverse.dtype))

    def _upper(self) -> Tensor:
        """U + diag(s)."""
        return self.upper.triu(1).diagonal_scatter(self.sign * self.log_s.exp())


class Permutation(Bijection):
    """y = x with its channels in another order."""

    order: Tensor
    back: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=True)
        self.register_buffer("back", order.argsort(), persistent=True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        return x[:, self.order], zeros(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return y[:, self.back]


def _as(vector: Tensor, x: Tensor) -> Tensor:
    """(C,) so that it broadcasts over the channels of x."""
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def _in_each_row(log_det: Tensor, x: Tensor) -> Tensor:
    """() -> (B,), the same for each row of x, in float32 at least."""
    return log_det.to(torch.promote_types(x.dtype, torch.float32)).expand(len(x))


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:
    """The matrix (C, C) times the channels of x (B, C, ...)."""
    if x.ndim == 2:
        return x @ matrix.T
    return (x.movedim(1, -1) @ matrix.T).movedim(-1, 1)


def exact(x: Tensor) -> AbstractContextManager[object]:
    """No autocast: a matrix rounded to bfloat16 has another determinant than its factors say, and
    another inverse. Its product is small beside the networks of couplings."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


@torch.no_grad()
def initialise(flow: nn.Module, x: Tensor, context: Tensor | None = None) -> None:
    """Set every ``ActNorm`` in ``flow`` by the data x (B, ...), in the order in which they pass.

    A function of the data alone: processes that give it the same rows get the same flow.
    """
    norms = [module for module in flow.modules() if isinstance(module, ActNorm)]
    if not norms:
        return
    hooks = [
        norm.register_forward_pre_hook(lambda module, inputs: module.initialise(inputs[0]))
        for norm in norms
    ]
    try:
        flow(x, context)
    finally:
        for hook in hooks:
            hook.remove()
