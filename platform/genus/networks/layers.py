"""What the U-Net and the DiT share: the conditioning vector and self-attention over tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def sinusoids(noise: Tensor, features: int, frequency_shift: float = 0.0) -> Tensor:
    """cos and sin of ``noise`` times frequencies falling from 1 to 1/10000 (Vaswani et al. 2017).

    (B,) -> (B, features), computed in ``noise``'s own precision but at least float32: angles reach
    1000. ``frequency_shift`` 0 leaves the lowest frequency one step above 1/10000, as in ADM and
    DiT; 1 reaches it, as in DDPM++ (EDM's ``endpoint``) and diffusers' ``downscale_freq_shift``.
    """
    half = features // 2
    dtype = torch.promote_types(noise.dtype, torch.float32)
    step = torch.arange(half, dtype=dtype, device=noise.device)
    frequencies = torch.exp(-math.log(10_000) * step / (half - frequency_shift))
    angles = noise.to(dtype)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Conditioning(nn.Module):
    """The vector that tells every block the noise level and the class, (B, width).

    SiLU(MLP(sinusoids(noise)) + table[label]); with ``label_first`` the class joins the sinusoids
    before the MLP. The SiLU that precedes every block's own projection is applied here, once.
    ``classes`` > 0 adds a table with one more row, the null class: index ``classes``, or None.
    With ``classes`` 0 there is no table and ``label`` is ignored.
    """

    def __init__(
        self,
        features: int,
        width: int,
        classes: int,
        *,
        frequency_shift: float = 0.0,
        label_first: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.classes = classes
        self.frequency_shift = frequency_shift
        self.label_first = label_first
        self.linear0 = nn.Linear(features, width)
        self.linear1 = nn.Linear(width, width)
        rows = features if label_first else width
        self.table = nn.Embedding(classes + 1, rows) if classes else None

    def forward(self, noise: Tensor, label: Tensor | None) -> Tensor:
        vector = sinusoids(noise, self.features, self.frequency_shift)
        vector = vector.to(self.linear0.weight.dtype)
        class_vector = self.embed(label, len(noise), noise.device)
        if self.label_first and class_vector is not None:
            vector = vector + class_vector
        vector = self.linear1(F.silu(self.linear0(vector)))
        if not self.label_first and class_vector is not None:
            vector = vector + class_vector
        return F.silu(vector)

    def embed(self, label: Tensor | None, rows: int, device: torch.device) -> Tensor | None:
        """The classes' rows of the table (B, ...), or None for an unconditional network."""
        if self.table is None:
            return None
        if label is None:
            label = torch.full((rows,), self.classes, device=device)
        # Through the module's call, never .weight: FSDP2 and ZeRO-3 gather parameters in its hooks.
        vectors: Tensor = self.table(label)
        return vectors


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens, (B, N, D) -> (B, N, D), without residual or norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # One projection, and views only: a head's q, k and v are slices of its output.
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        a = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.out(rearrange(a, "b h n d -> b n (h d)"))
        return mixed


def zero_(module: nn.Conv2d | nn.Linear) -> None:
    """Start a layer at zero, so that its branch starts as nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
