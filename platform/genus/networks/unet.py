"""The U-Net of DDPM, DDPM++ and ADM.

One network for the configurations that the diffusion papers have converged to: a stem, an encoder
that keeps every output, two middle blocks, a decoder that takes the kept outputs back in reverse
order, and a head. ``style`` picks among three published variants; their differences stand in
``blocks.STYLES``. The memory format inside follows the input's; the output is contiguous. On a CPU
leave it contiguous: channels_last convolutions gain what channels_last group norms lose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.blocks import STYLES, ConvResample, Direction, ResidualBlock, Style
from genus.networks.layers import Conditioning, SelfAttention, zero_


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes and style of a U-Net; ``build`` adds what the data decides.

    Published configurations: EDM's CIFAR-10 DDPM++ (55.7 M parameters) is ``channels=128,
    mults=(2, 2, 2), blocks=4, attention=(16,), head_channels=0, dropout=0.13, style="ddpm++"``;
    EDM's ImageNet-64 ADM (295.9 M) is ``channels=192, mults=(1, 2, 3, 4), blocks=3,
    attention=(32, 16, 8), head_channels=64, dropout=0.1, style="adm"``.
    """

    channels: int = 64
    """Base width: channels after the stem, a multiple of 4; four times as many condition."""
    mults: tuple[int, ...] = (1, 2, 2)
    """Width of each level over the base width; each further level halves the resolution."""
    blocks: int = 2
    """Residual blocks a level in the encoder; the decoder has one more."""
    attention: tuple[int, ...] = (8,)
    """Resolutions with self-attention, in points of the U-Net's own grid: pixels / patch / 2^level.
    The middle block always has it."""
    head_channels: int = 64
    """Channels of an attention head; 0 means one head over all channels."""
    dropout: float = 0.0
    """Probability, before the last convolution of a residual block."""
    patch: int = 1
    """Pixels a side folded into channels at the input and unfolded at the output."""
    style: Literal["ddpm", "ddpm++", "adm"] = "ddpm++"
    """Published variant: see ``blocks.STYLES``."""

    def build(
        self, *, channels: int, resolution: int, classes: int = 0, out_channels: int | None = None
    ) -> UNet:
        """The network for ``channels`` x ``resolution`` x ``resolution`` data.

        ``classes`` 0 means unconditional; ``out_channels`` defaults to ``channels``. Raises
        ConfigError where the sizes do not fit one another.
        """
        return UNet(
            self,
            channels=channels,
            resolution=resolution,
            classes=classes,
            out_channels=out_channels,
        )

    @property
    def factor(self) -> int:
        """The images' sides must be multiples of it."""
        return self.patch << (len(self.mults) - 1)

    def grids(self, resolution: int) -> tuple[int, ...]:
        """The levels' resolutions, finest first; ConfigError where the data's does not divide."""
        factor = self.factor
        if resolution % factor:
            raise ConfigError(
                f"unet: resolution {resolution} is not divisible by {factor} (patch {self.patch} x "
                f"2^{len(self.mults) - 1} for {len(self.mults)} levels); take fewer mults, a "
                "smaller patch, or pad the data"
            )
        return tuple(resolution // self.patch >> level for level in range(len(self.mults)))

    def check(self, resolution: int) -> None:
        """ConfigError, saying what to change, where sizes do not fit one another."""
        if not self.mults or min(self.mults) < 1 or self.blocks < 1 or self.patch < 1:
            raise ConfigError("unet: mults, blocks and patch are at least 1, and mults not empty")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"unet: dropout {self.dropout} is no probability below 1")
        grids = self.grids(resolution)
        if self.channels < 4 or self.channels % 4 or self.channels % groups_of(self.channels):
            raise ConfigError(
                f"unet: channels {self.channels} do not divide into the norms' groups; take a "
                "multiple of 4 up to 128, of 32 beyond"
            )
        if unknown := set(self.attention) - set(grids):
            raise ConfigError(
                f"unet: attention at {sorted(unknown)}, but the levels' resolutions are {grids} "
                f"(data {resolution}, patch {self.patch}); take some of these"
            )
        attending = {m for m, grid in zip(self.mults, grids, strict=True) if grid in self.attention}
        for mult in attending | {self.mults[-1]}:
            if self.head_channels and self.channels * mult % self.head_channels:
                raise ConfigError(
                    f"unet: head_channels {self.head_channels} does not divide the "
                    f"{self.channels * mult} channels of a level with attention"
                )


def groups_of(channels: int) -> int:
    """Groups of every norm, from the base width: 32 as published, fewer in nets below 128."""
    return min(32, channels // 4)


class EncoderLevel(nn.Module):
    """An optional halving of the resolution, then residual blocks; returns every output."""

    def __init__(self, down: nn.Module | None, blocks: list[ResidualBlock]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        outputs = []
        for stage in ([self.down] if self.down is not None else []) + list(self.blocks):
            x = stage(x, embedding)
            outputs.append(x)
        return outputs


class DecoderLevel(nn.Module):
    """Residual blocks that take back an output of the encoder each; an optional doubling."""

    def __init__(self, blocks: list[ResidualBlock], up: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.up = up

    def forward(self, x: Tensor, kept: list[Tensor], embedding: Tensor) -> Tensor:
        for block, skip in zip(self.blocks, kept, strict=True):
            x = block(torch.cat([x, skip], dim=1), embedding)
        return x if self.up is None else self.up(x, embedding)


class UNet(nn.Module):
    """See the module's docstring; sizes as in ``UNetConfig.build``."""

    def __init__(
        self,
        config: UNetConfig,
        *,
        channels: int,
        resolution: int,
        classes: int = 0,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        config.check(resolution)
        style = STYLES[config.style]
        self.patch = config.patch
        self.factor = config.factor
        width, embedding = config.channels, 4 * config.channels
        groups = groups_of(width)

        def block(
            fan_in: int, fan_out: int, attends: bool = False, direction: Direction | None = None
        ) -> ResidualBlock:
            return ResidualBlock(
                fan_in,
                fan_out,
                embedding,
                groups=groups,
                heads=fan_out // (config.head_channels or fan_out) if attends else 0,
                dropout=config.dropout,
                style=style,
                direction=direction,
            )

        def change(channels: int, direction: Direction) -> nn.Module:
            if style.block_resampling:
                return block(channels, channels, direction=direction)
            return ConvResample(channels, direction)

        self.conditioning = Conditioning(
            width,
            embedding,
            classes,
            frequency_shift=style.frequency_shift,
            label_first=style.label_first,
        )
        self.stem = nn.Conv2d(channels * config.patch**2, width, 3, padding=1)

        levels = list(zip(config.mults, config.grids(resolution), strict=True))
        now, kept = width, [width]
        self.encoder = nn.ModuleList()
        for level, (mult, grid) in enumerate(levels):
            down = change(now, "down") if level else None
            kept += [now] if level else []
            blocks = []
            for _ in range(config.blocks):
                blocks.append(block(now, width * mult, grid in config.attention))
                now = width * mult
                kept.append(now)
            self.encoder.append(EncoderLevel(down, blocks))

        self.middle = nn.ModuleList([block(now, now, True), block(now, now)])

        self.decoder = nn.ModuleList()
        for level, (mult, grid) in reversed(list(enumerate(levels))):
            blocks = []
            for index in range(config.blocks + 1):
                last = index == config.blocks
                attends = grid in config.attention and (style.attention_everywhere or last)
                blocks.append(block(now + kept.pop(), width * mult, attends))
                now = width * mult
            self.decoder.append(DecoderLevel(blocks, change(now, "up") if level else None))

        self.norm = nn.GroupNorm(groups, now, style.eps)
        self.head = nn.Conv2d(now, (out_channels or channels) * config.patch**2, 3, padding=1)
        self.initialise(style)

    def initialise(self, style: Style) -> None:
        """Weights as published; the last layer of every branch and the head start at zero."""
        for module in self.modules():
            if style.xavier and isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                zero_(module.conv1)
            if isinstance(module, SelfAttention):
                zero_(module.out)
                if style.xavier:
                    module.qkv.weight.data.mul_(math.sqrt(0.2))
        zero_(self.head)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), noise (B,), label (B,) int64 or None -> (B, C_out, H, W), contiguous."""
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ConfigError(
                f"unet: images of {x.shape[2]}x{x.shape[3]} px do not divide by {self.factor}: "
                f"make data.bucket_step a multiple of {self.factor}"
            )
        embedding = self.conditioning(noise, label)
        x = self.stem(F.pixel_unshuffle(x, self.patch))
        kept = [x]
        for level in self.encoder:
            kept += level(x, embedding)
            x = kept[-1]
        for block in self.middle:
            x = block(x, embedding)
        for level in self.decoder:
            # a list of its own: hooks (ZeRO-3's) may hand a copy on, so a level takes from no other
            assert isinstance(level, DecoderLevel)
            x = level(x, [kept.pop() for _ in level.blocks], embedding)
        x = self.head(F.silu(self.norm(x)))
        return F.pixel_shuffle(x, self.patch).contiguous()
