"""The diffusion transformer, DiT (Peebles & Xie 2023), with adaLN-Zero conditioning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.layers import Conditioning, SelfAttention, zero_


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a DiT; ``build`` adds what the data decides.

    Published (their table 1): S width 384, depth 12, heads 6; B 768, 12, 12; L 1024, 24, 16;
    XL 1152, 28, 16; each with patch 2, 4 or 8. With patch 2, latents 4 x 32 x 32, 1000 classes and
    8 output channels (mean and variance) they have 33, 130, 458 and 675 M parameters.
    """

    width: int = 384
    """Channels of a token, a multiple of 4 and of ``heads``."""
    depth: int = 12
    """Blocks."""
    heads: int = 6
    """Attention heads, of width / heads channels each."""
    patch: int = 2
    """Pixels a side of the square that makes one token."""

    def build(
        self, *, channels: int, resolution: int, classes: int = 0, out_channels: int | None = None
    ) -> DiT:
        """The network for ``channels`` x ``resolution`` x ``resolution`` data.

        ``classes`` 0 means unconditional; ``out_channels`` defaults to ``channels`` (DiT's learned
        sigma: twice as many). Raises ConfigError where the sizes do not fit one another.
        """
        return DiT(
            self,
            channels=channels,
            resolution=resolution,
            classes=classes,
            out_channels=out_channels,
        )

    def check(self, resolution: int) -> None:
        """ConfigError, saying what to change, where sizes do not fit one another."""
        if min(self.width, self.depth, self.heads, self.patch) < 1:
            raise ConfigError("dit: width, depth, heads and patch are at least 1")
        if resolution % self.patch:
            raise ConfigError(
                f"dit: resolution {resolution} is not divisible by patch {self.patch}; change the "
                "patch or pad the data"
            )
        if self.width % 4 or self.width % self.heads:
            raise ConfigError(
                f"dit: width {self.width} must be a multiple of 4 (sine and cosine of two "
                f"coordinates) and of heads {self.heads}"
            )


def grid_positions(width: int, side: int) -> Tensor:
    """Sine and cosine of the tokens' columns and rows, (side^2, width) float32, row by row.

    As in DiT and MAE: the first half of the channels encodes the column, the second the row, with
    frequencies from 1 down to 1/10000. Worked out in float64.
    """
    frequencies = 10_000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    column = line.expand(side, side, -1)
    row = column.transpose(0, 1)
    return torch.cat([column, row], dim=2).flatten(0, 1).float()


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, x (B, N, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class DiTBlock(nn.Module):
    """Attention and MLP on the tokens (B, N, D), each modulated and gated by the conditioning."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = SelfAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        shift0, scale0, gate0, shift1, scale1, gate1 = (
            self.modulation(conditioning)[:, None].chunk(6, dim=2)
        )  # fmt: skip
        x = torch.addcmul(x, gate0, self.attention(modulated_norm(x, shift0, scale0)))
        return torch.addcmul(x, gate1, self.mlp(modulated_norm(x, shift1, scale1)))


class DiT(nn.Module):
    """Patches -> tokens -> ``depth`` blocks -> patches; sizes as in ``DiTConfig.build``.

    ``frequency_shift`` 1 computes the noise level's sinusoids as diffusers' DiT does, for its
    weights; the published DiT has 0.
    """

    positions: Tensor

    def __init__(
        self,
        config: DiTConfig,
        *,
        channels: int,
        resolution: int,
        classes: int = 0,
        out_channels: int | None = None,
        frequency_shift: float = 0.0,
    ) -> None:
        super().__init__()
        config.check(resolution)
        self.patch = config.patch
        width = config.width
        self.conditioning = Conditioning(256, width, classes, frequency_shift=frequency_shift)
        self.embed = nn.Linear(channels * config.patch**2, width)
        # Persistent, so that a network made on the meta device gets it with its weights.
        self.register_buffer("positions", grid_positions(width, resolution // config.patch))
        self.blocks = nn.ModuleList(DiTBlock(width, config.heads) for _ in range(config.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, (out_channels or channels) * config.patch**2)
        self.initialise()

    def initialise(self) -> None:
        """As published: Xavier, small embeddings, zero modulations (every block the identity)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.conditioning.linear0.weight, std=0.02)
        nn.init.normal_(self.conditioning.linear1.weight, std=0.02)
        if self.conditioning.table is not None:
            nn.init.normal_(self.conditioning.table.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, DiTBlock):
                zero_(module.modulation)
        zero_(self.modulation)
        zero_(self.head)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), noise (B,), label (B,) int64 or None -> (B, C_out, H, W)."""
        conditioning = self.conditioning(noise, label)
        rows, p = x.shape[2] // self.patch, self.patch
        if x.shape[2] != x.shape[3] or rows**2 != self.positions.shape[-2]:
            raise ConfigError(
                f"dit: made for images of {round(self.positions.shape[-2] ** 0.5) * p} px, got "
                f"{x.shape[2]}x{x.shape[3]}: its positions are fixed; set data.bucket_step=0, or "
                "take network=UNetConfig"
            )
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        tokens = self.embed(patches) + self.positions
        for block in self.blocks:
            tokens = block(tokens, conditioning)
        shift, scale = self.modulation(conditioning)[:, None].chunk(2, dim=2)
        patches = self.head(modulated_norm(tokens, shift, scale))
        image: Tensor = rearrange(
            patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p
        ).contiguous()
        return image
