"""Norms, the MLP, and the pre-norm block that all stacks are made of."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from genus.networks.transformer.attention import CrossAttention, SelfAttention, View
from genus.networks.transformer.config import BlockConfig


def make_norm(config: BlockConfig) -> nn.Module:
    """LayerNorm or RMSNorm over the width."""
    if config.norm == "rms":
        return nn.RMSNorm(config.width, config.eps)
    return nn.LayerNorm(config.width, config.eps, bias=config.bias)


class MLP(nn.Module):
    """down(gelu(up(x))), or down(silu(gate) * up) with gate and up made by one product."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        hidden = config.hidden
        self.up = nn.Linear(config.width, 2 * hidden if self.gated else hidden, config.bias)
        self.down = nn.Linear(hidden, config.width, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.gated:
            gate, h = h.chunk(2, -1)
            h = F.silu(gate) * h
        else:
            h = F.gelu(h, approximate="tanh")
        y: Tensor = self.down(h)
        return y


class Block(nn.Module):
    """x + attention(norm(x)), with ``cross`` x + cross(norm(x)), x + mlp(norm(x)); (B, T, D)."""

    def __init__(self, config: BlockConfig, block: int, *, cross: bool = False) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm0 = make_norm(config)
        self.attention = SelfAttention(config, block)
        self.cross_norm = make_norm(config) if cross else None
        self.cross = CrossAttention(config, block) if cross else None
        self.norm1 = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, view: View) -> Tensor:
        x = x + self.drop(self.attention(self.norm0(x), view))
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.drop(self.cross(self.cross_norm(x), view))
        return x + self.drop(self.mlp(self.norm1(x)))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def initialise(network: nn.Module, depth: int, *, cross: bool = False) -> None:
    """As GPT-2: weights N(0, 0.02^2), biases 0; what is added to the residual stream is divided by
    the root of the number of additions, 2 a block or 3 with cross-attention."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    std = 0.02 / math.sqrt((3 if cross else 2) * depth)
    for module in network.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            nn.init.normal_(module.out.weight, std=std)
        elif isinstance(module, MLP):
            nn.init.normal_(module.down.weight, std=std)
