"""What the U-Net is made of: its styles, residual block, attention and changes of resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genus.networks.layers import SelfAttention

Direction = Literal["down", "up"]


@dataclass(frozen=True, kw_only=True)
class Style:
    """Where the published U-Nets differ, sizes apart."""

    adaptive: bool
    """The conditioning scales and shifts the second norm (ADM); else it is added before it."""
    block_resampling: bool
    """Resolution changes inside a residual block, by a 2x2 box; else by a convolution alone."""
    skip_projection: bool
    """A resampling block's skip has a 1x1 convolution even where the width stays."""
    skip_scale: float
    """Factor on every residual sum; sqrt(1/2) keeps the variance."""
    attention_everywhere: bool
    """Decoder levels with attention have it in every block, else in their last block only."""
    label_first: bool
    """The class joins the noise level before the conditioning's MLP, else after it."""
    frequency_shift: float
    """See ``layers.sinusoids``."""
    eps: float
    """Of the group norms."""
    xavier: bool
    """Xavier-uniform weights, zero biases and qkv times sqrt(0.2); else torch's own (Kaiming)."""


# ddpm: Ho et al. 2020 as in diffusers' UNet2DModel. ddpm++: Song et al. 2021 as in EDM's SongUNet.
# adm: Dhariwal & Nichol 2021 as in EDM's DhariwalUNet.
STYLES = {
    "ddpm": Style(
        adaptive=False, block_resampling=False, skip_projection=False, skip_scale=1.0,
        attention_everywhere=True, label_first=False, frequency_shift=0.0, eps=1e-5, xavier=False,
    ),
    "ddpm++": Style(
        adaptive=False, block_resampling=True, skip_projection=True, skip_scale=math.sqrt(0.5),
        attention_everywhere=False, label_first=True, frequency_shift=1.0, eps=1e-6, xavier=True,
    ),
    "adm": Style(
        adaptive=True, block_resampling=True, skip_projection=False, skip_scale=1.0,
        attention_everywhere=True, label_first=False, frequency_shift=0.0, eps=1e-5, xavier=False,
    ),
}  # fmt: skip


class DoublingConv(nn.Conv2d):
    """Nearest-neighbour doubling of the resolution, then a 3x3 convolution, in one step.

    Every output point sees 2x2 input points only, so the pair equals a transposed convolution with
    stride 2 whose 4x4 kernel holds the sums of the 3x3 kernel's weights that meet at one input
    point: the same result for 4/9 of the multiplications and without the doubled tensor.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, 2H, 2W)."""
        sums = F.avg_pool2d(self.weight, 2, stride=1, padding=1, divisor_override=1)
        kernel = sums.flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(input, kernel, self.bias, stride=2, padding=1)


class GridAttention(nn.Module):
    """x + attention(norm(x)) over all points of the grid, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, heads: int, groups: int, style: Style) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, style.eps)
        self.attention = SelfAttention(channels, heads)
        self.skip_scale = style.skip_scale

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        grid = rearrange(self.attention(tokens), "b (h w) c -> b c h w", h=x.shape[2])
        return scaled_sum(x, grid, self.skip_scale)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution; conditioning, norm, SiLU, convolution; sum; attention where asked.

    x (B, in, H, W) and the conditioning (B, embedding), already through SiLU, give (B, out, H', W')
    with H' = 2H, H/2 or H as ``direction`` says. ``heads`` 0 means no attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        groups: int,
        heads: int,
        dropout: float,
        style: Style,
        direction: Direction | None = None,
    ) -> None:
        super().__init__()
        self.direction = direction
        self.adaptive = style.adaptive
        self.skip_scale = style.skip_scale
        self.norm0 = nn.GroupNorm(groups, in_channels, style.eps)
        self.conv0: nn.Conv2d
        if direction == "up":
            self.conv0 = DoublingConv(in_channels, out_channels)
        else:
            self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.project = nn.Linear(embedding, out_channels * (2 if style.adaptive else 1))
        self.norm1 = nn.GroupNorm(groups, out_channels, style.eps)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        project_skip = in_channels != out_channels or (direction and style.skip_projection)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if project_skip else nn.Identity()
        self.attend = GridAttention(out_channels, heads, groups, style) if heads else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm0(x))
        if self.direction == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.conv0(h)
        condition = self.project(embedding)[:, :, None, None]
        if self.adaptive:
            scale, shift = condition.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + condition)
        h = self.conv1(self.dropout(F.silu(h)))
        x = self.skip(x)
        if self.direction == "up":
            # After the 1x1 convolution, with which it commutes: fewer points to multiply.
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y: Tensor = self.attend(scaled_sum(x, h, self.skip_scale))
        return y


class ConvResample(nn.Module):
    """DDPM's change of resolution: 3x3 convolution of stride 2, or nearest neighbour and 3x3."""

    def __init__(self, channels: int, direction: Direction) -> None:
        super().__init__()
        if direction == "up":
            self.conv: nn.Conv2d = DoublingConv(channels, channels)
        else:
            self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``embedding`` is not used: it is taken so that all changes of resolution are one call."""
        y: Tensor = self.conv(x)
        return y


def scaled_sum(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """(x + y) * scale, without the multiplication where there is none to do."""
    return x + y if scale == 1.0 else (x + y) * scale
