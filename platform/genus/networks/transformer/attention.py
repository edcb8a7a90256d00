"""Self-attention and cross-attention with grouped heads, cached or not.

Shapes: B rows, T queries, S keys, D width, H heads, K heads of keys and values, C channels a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from genus.networks.transformer.cache import Cache
from genus.networks.transformer.config import BlockConfig
from genus.networks.transformer.documents import flex_attention
from genus.networks.transformer.rope import Rotation

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, kw_only=True)
class View:
    """What the queries of one pass see; worked out once and given to every block."""

    causal: bool = False
    """Queries see the keys up to their own, and queries and keys are the same tokens."""
    mask: Tensor | None = None
    """(B or 1, 1, T or 1, S) bool, True where there is something to see; None: everything."""
    blocks: BlockMask | None = None
    """FlexAttention's mask, in place of ``mask``."""
    rotation: Rotation | None = None
    """Of the queries' positions; None without rotary positions."""
    cache: Cache | None = None
    at: Tensor | None = None
    """(B, T) where to write in the cache; None: behind what all rows hold."""
    memory: Tensor | None = None
    """(B, S, D) of an encoder, for cross-attention; None where the cache has its keys."""
    memory_mask: Tensor | None = None
    """(B, 1, 1, S) bool."""


def attend(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(C)) v, as (B, T, H C)."""
    B, H, T, C = q_BHTC.shape
    K = k_BKSC.shape[1]
    one = T == 1
    if K != H and one:
        # The queries of a group stand in a column as if they were T: no key is repeated.
        q_BHTC = q_BHTC.reshape(B, K, H // K, C)
    grouped = q_BHTC.shape[1] != K
    if grouped and q_BHTC.device.type == "cpu":
        # The CPU's fused kernel wants as many keys as queries.
        k_BKSC = k_BKSC.repeat_interleave(H // K, 1)
        v_BKSC = v_BKSC.repeat_interleave(H // K, 1)
        grouped = False
    out = F.scaled_dot_product_attention(
        q_BHTC,
        k_BKSC,
        v_BKSC,
        attn_mask=mask,
        is_causal=causal and not one,
        enable_gqa=grouped,
    )
    return out.reshape(B, 1, H * C) if one else out.transpose(1, 2).flatten(2)


class HeadNorm(nn.RMSNorm):
    """RMSNorm of each head's channels in the input's precision: under autocast its gain has
    another, which the fused kernel does not take."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
        return y.to(x.dtype)


class SelfAttention(nn.Module):
    """(B, T, D) -> (B, T, D), without residual; ``block`` is the number of its block, from 0."""

    def __init__(self, config: BlockConfig, block: int) -> None:
        super().__init__()
        self.block = block
        self.heads, self.groups, self.channels = config.heads, config.groups, config.head_width
        out = (config.heads + 2 * config.groups) * config.head_width
        self.qkv = nn.Linear(config.width, out, config.bias)
        self.q_norm = HeadNorm(config.head_width, config.eps) if config.qk_norm else None
        self.k_norm = HeadNorm(config.head_width, config.eps) if config.qk_norm else None
        self.out = nn.Linear(config.width, config.width, config.bias)

    def forward(self, x_BTD: Tensor, view: View) -> Tensor:
        H, K = self.heads, self.groups
        # One product and views of it; split, not slices: its gradient is one concatenation.
        qkv = self.qkv(x_BTD).view(*x_BTD.shape[:2], H + 2 * K, self.channels)
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.split_with_sizes([H, K, K], 2)
            q, k = self.q_norm(q), self.k_norm(k)
            if view.rotation is not None:
                q, k = view.rotation(q), view.rotation(k)
        elif view.rotation is not None:
            qk, v = qkv.split_with_sizes([H + K, K], 2)
            q, k = view.rotation(qk).split_with_sizes([H, K], 2)
        else:
            q, k, v = qkv.split_with_sizes([H, K, K], 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if view.cache is not None:
            view.cache.write(self.block, k, v, view.at)
            if not view.causal:
                k, v = view.cache.read(self.block, k.shape[2])
        if view.blocks is not None:
            mixed = flex_attention(q, k, v, view.blocks).transpose(1, 2).flatten(2)
        else:
            mixed = attend(q, k, v, causal=view.causal, mask=view.mask)
        y: Tensor = self.out(mixed)
        return y


class CrossAttention(nn.Module):
    """Queries of (B, T, D), keys and values of the view's memory (B, S, D); without positions."""

    def __init__(self, config: BlockConfig, block: int) -> None:
        super().__init__()
        self.block = block
        self.heads, self.groups, self.channels = config.heads, config.groups, config.head_width
        self.q = nn.Linear(config.width, config.width, config.bias)
        self.kv = nn.Linear(config.width, 2 * config.groups * config.head_width, config.bias)
        self.q_norm = HeadNorm(config.head_width, config.eps) if config.qk_norm else None
        self.k_norm = HeadNorm(config.head_width, config.eps) if config.qk_norm else None
        self.out = nn.Linear(config.width, config.width, config.bias)

    def forward(self, x_BTD: Tensor, view: View) -> Tensor:
        q = self.q(x_BTD).view(*x_BTD.shape[:2], self.heads, self.channels)
        if self.q_norm is not None:
            q = self.q_norm(q)
        k, v = self.keys(view)
        y: Tensor = self.out(attend(q.transpose(1, 2), k, v, mask=view.memory_mask))
        return y

    def keys(self, view: View) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, S, C): of the memory, or those that the cache kept of it."""
        if view.memory is None:
            assert view.cache is not None
            return view.cache.memory[self.block]
        kv = self.kv(view.memory).unflatten(-1, (2 * self.groups, self.channels))
        k, v = kv.chunk(2, 2)
        if self.k_norm is not None:
            k = self.k_norm(k)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if view.cache is not None:
            view.cache.memory.append((k.detach(), v.detach()))
        return k, v
