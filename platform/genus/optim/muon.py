"""Muon (Jordan 2024): momentum whose matrix is replaced by its nearest orthogonal one.

torch.optim.Muon takes matrices only, one after the other, whole. Here kernels are matrices (C_out,
C_in k k), matrices of one shape are orthogonalised together, and the parameters may be this rank's
part of matrices that lie on several ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
TOGETHER = 2**26
"""Elements of matrices that are orthogonalised together."""


class MatrixMuon(torch.optim.Optimizer):
    """Nesterov momentum B <- m B + (1 - m) G, U = orthogonal(m B + (1 - m) G), decoupled decay,
    W <- W - lr sqrt(max(1, rows / columns)) U."""

    gather: Callable[[nn.Parameter, Tensor], Tensor]
    """(parameter, tensor that lies as it does) -> the whole tensor, of all ranks."""
    part: Callable[[nn.Parameter, Tensor], Tensor]
    """(parameter, whole tensor) -> what of it lies on this rank."""
    shape_of: Callable[[nn.Parameter], torch.Size]
    """parameter -> the shape of the whole."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
    ) -> None:
        groups = [{"params": list(parameters), "peak": lr}]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults)
        self.gather = self.part = lambda parameter, tensor: tensor
        self.shape_of = lambda parameter: parameter.shape

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(self.shape_of(p), []).append(p)
            for shape, members in alike.items():
                at_once = max(1, TOGETHER // shape.numel())
                for start in range(0, len(members), at_once):
                    self._update(members[start : start + at_once], shape, group)

    def _update(self, members: list[nn.Parameter], shape: torch.Size, group: Any) -> None:
        updates = [self.gather(p, self._momentum(p, group["momentum"])) for p in members]
        stack = torch.stack([update.reshape(len(update), -1) for update in updates])
        scale = max(1.0, stack.shape[1] / stack.shape[2]) ** 0.5
        for p, update in zip(members, orthogonal(stack), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(self.part(p, update.reshape(shape)).to(p.dtype), alpha=-group["lr"] * scale)

    def _momentum(self, p: nn.Parameter, momentum: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T, (N, R, C), by five steps of a Newton-Schulz iteration
    whose quintic brings all singular values into [0.7, 1.2] (Jordan 2024).

    In bfloat16 on GPUs, as the author does; in float32 elsewhere, where rounding to bfloat16 would
    only tell apart runs on different numbers of processes.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
