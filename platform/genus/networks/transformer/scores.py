"""Cross-entropy of the output layer in chunks of rows: its logits never exist whole.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = {"cpu": 2**22}
"""Logits made at a time, by kind of device: on a CPU they should stay in its cache."""
CHUNK_ELSEWHERE = 2**27
KEEP_BYTES = 2**28
"""Logits up to this size, in the precision of their product, wait for the backward pass; those
beyond it are made a second time there."""


class TokenScores(NamedTuple):
    """Of each target, shaped as the targets; 0 where a target is -1."""

    nats: Tensor
    """-log p(target), float32 or more."""
    log_z: Tensor
    """The logits' log-sum-exp: what the z-loss (Chowdhery et al. 2022) holds near 0."""


def token_scores(
    hidden: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    *,
    chunk: int | None = None,
    keep_bytes: int = KEEP_BYTES,
) -> TokenScores:
    """Scores of ``targets`` (...) under logits hidden (..., D) @ weight^T.

    The product is made in autocast's precision where autocast is on, softmax and its gradient in
    float32 (float64 for float64). ``chunk`` is the number of logits made at a time, at least one
    row's; by default what suits the device.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        compute = torch.get_autocast_dtype(device)
    else:
        compute = torch.promote_types(hidden.dtype, weight_VD.dtype)
    rows = (chunk or CHUNK.get(device, CHUNK_ELSEWHERE)) // len(weight_VD)
    if not torch.is_grad_enabled():
        keep_bytes = 0
    nats, log_z = _ChunkedScores.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, -2), weight_VD, targets.flatten(), compute, max(1, rows), keep_bytes
    )
    return TokenScores(nats.view_as(targets), log_z.view_as(targets))


class _ChunkedScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        compute: torch.dtype,
        rows: int,
        keep_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        weight = weight_VD.to(compute)
        nats = torch.empty(len(hidden_ND), dtype=exact, device=hidden_ND.device)
        log_z = torch.empty_like(nats)
        kept: list[Tensor] = []
        budget = keep_bytes // (weight.element_size() * len(weight))
        for part in _parts(len(hidden_ND), rows):
            logits = hidden_ND[part].to(compute) @ weight.T
            budget -= len(logits)
            if budget >= 0:
                kept.append(logits)
            at = targets_N[part].clamp(min=0)[:, None]
            nats[part] = -torch.log_softmax(logits, 1, dtype=exact).gather(1, at)[:, 0]
            log_z[part] = logits.gather(1, at)[:, 0].to(exact) + nats[part]
        counted = targets_N >= 0
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, *kept)
        ctx.compute, ctx.rows = compute, rows
        return nats.where(counted, 0), log_z.where(counted, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, nats_grad_N: Tensor, log_z_grad_N: Tensor) -> tuple[Any, ...]:
        hidden_ND, weight_VD, targets_N, *kept = ctx.saved_tensors
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        exact, rows = nats_grad_N.dtype, ctx.rows
        weight = weight_VD.to(ctx.compute)
        hidden_grad = torch.empty_like(hidden_ND) if want_hidden else None
        weight_grad = torch.zeros_like(weight_VD, dtype=exact) if want_weight else None
        counted = targets_N >= 0
        # d nats = p - onehot(target), d log_z = p, where p is the softmax.
        on_target = -nats_grad_N.where(counted, 0)
        on_all = (nats_grad_N + log_z_grad_N).where(counted, 0)
        for index, part in enumerate(_parts(len(hidden_ND), rows)):
            hidden = hidden_ND[part].to(ctx.compute)
            logits = kept[index] if index < len(kept) else hidden @ weight.T
            grad = torch.softmax(logits, 1, dtype=exact).mul_(on_all[part, None])
            at = targets_N[part].clamp(min=0)[:, None]
            grad.scatter_add_(1, at, on_target[part, None])
            grad = grad.to(ctx.compute)
            if hidden_grad is not None:
                hidden_grad[part] = grad @ weight
            if weight_grad is not None and ctx.compute == exact:
                weight_grad.addmm_(grad.T, hidden)
            elif weight_grad is not None:
                weight_grad += grad.T @ hidden
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight_VD.dtype)
        return hidden_grad, weight_grad, None, None, None, None


def _parts(count: int, rows: int) -> list[slice]:
    """``count`` rows cut into parts of ``rows``. A single part is not counted off: compiled code
    would hold for that one number of rows only."""
    if count <= rows:
        return [slice(None)]
    return [slice(start, start + rows) for start in range(0, count, rows)]
