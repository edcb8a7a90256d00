"""From styles to an image: StyleGAN2's synthesis network (Karras et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from genus.networks.filtering import filtered_leaky_relu, upsample
from genus.networks.gan.layers import GAIN, Clamp, Conv, Dense, activate, channels_last
from genus.networks.gan.modulated import modulated_conv


class StyledConv(nn.Module):
    """x (B, I, H, W), style (B, W), noise (B, H'*W') or None -> (B, O, H', W'), activated.

    ``filtered`` has the nonlinearity between up- and downsampling, and takes no noise.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        *,
        up: bool = False,
        gain: float = 1.0,
        clamp: Clamp = None,
        filtered: bool = False,
        grouped: bool = False,
    ) -> None:
        super().__init__()
        self.up, self.filtered, self.grouped = up, filtered, grouped
        self.gain = GAIN * gain
        self.clamp = None if clamp is None else clamp * gain
        self.affine = Dense(width, inputs, active=False, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = None if filtered else nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        s = self.affine(style)
        x = modulated_conv(x, self.weight, s, up=self.up, grouped=self.grouped, gain=self.gain)
        shift = (self.bias * self.gain)[:, None, None]
        if noise is not None and self.strength is not None:
            x = x + (noise * (self.strength * self.gain)).view(-1, 1, *x.shape[2:])
        x = x + shift
        if not self.filtered:
            return activate(x, self.clamp)
        x = filtered_leaky_relu(x)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToImage(nn.Module):
    """x (B, I, H, W), style (B, W) -> (B, C, H, W): a modulated 1x1 convolution, not demodulated,
    since the norm of what it writes matters."""

    def __init__(self, inputs: int, channels: int, width: int, clamp: Clamp, grouped: bool) -> None:
        super().__init__()
        self.clamp, self.grouped = clamp, grouped
        self.affine = Dense(width, inputs, active=False, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        s = self.affine(style) * self.scale
        x = modulated_conv(x, self.weight, s, demodulate=False, grouped=self.grouped)
        x = x + self.bias[:, None, None]
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """One resolution. The first one starts from a learned constant, the others double."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        channels: int,
        width: int,
        *,
        residual: bool,
        to_image: bool,
        clamp: Clamp,
        filtered: bool,
        grouped: bool,
    ) -> None:
        super().__init__()
        first = inputs == 0
        half = math.sqrt(0.5) if residual and not first else 1.0

        def conv(inputs: int, up: bool, gain: float) -> StyledConv:
            return StyledConv(
                inputs,
                outputs,
                width,
                up=up,
                gain=gain,
                clamp=clamp,
                filtered=filtered,
                grouped=grouped,
            )

        self.constant = nn.Parameter(torch.randn(outputs, 4, 4)) if first else None
        self.conv0 = None if first else conv(inputs, True, 1.0)
        self.conv1 = conv(outputs, False, half)
        self.skip = (
            Conv(inputs, outputs, 1, bias=False, active=False, gain=half)
            if residual and not first
            else None
        )
        self.to_image = ToImage(outputs, channels, width, clamp, grouped) if to_image else None

    def forward(
        self,
        x: Tensor | None,
        image: Tensor | None,
        styles: Tensor,
        noise0: Tensor | None,
        noise1: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Features and image so far (both None at first), styles (B, 1 to 3, W), noise of each
        convolution -> features and image of this resolution."""
        own = iter(styles.unbind(1))
        if self.constant is not None:
            x = channels_last(self.constant.expand(len(styles), -1, -1, -1))
        assert x is not None
        before = x
        if self.conv0 is not None:
            x = self.conv0(x, next(own), noise0)
        x = self.conv1(x, next(own), noise1)
        if self.skip is not None:
            x = upsample(self.skip(before)) + x
        if image is not None:
            image = upsample(image)
        if self.to_image is not None:
            added = self.to_image(x, next(own))
            image = added if image is None else image + added
        return x, image


class Synthesis(nn.Module):
    """styles (B, L, W), noise (B, N) or None -> image (B, C, R, R).

    ``widths`` are the features at 4, 8, ..., R pixels. A style belongs to each convolution in turn,
    the last one to the last image; an image of a lower resolution shares the next block's first
    style. ``noise`` holds one number a pixel of each convolution, in the same order.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        width: int,
        *,
        form: Literal["skip", "resnet"] = "skip",
        clamp: Clamp = None,
        filtered: bool = False,
        grouped: bool = False,
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        self.layers = 2 * len(widths)
        self.blocks = nn.ModuleList(
            SynthesisBlock(
                widths[number - 1] if number else 0,
                outputs,
                channels,
                width,
                residual=form == "resnet",
                to_image=form == "skip" or number == last,
                clamp=clamp,
                filtered=filtered,
                grouped=grouped,
            )
            for number, outputs in enumerate(widths)
        )
        pixels = [16 * 4**number for number in range(len(widths))]
        self.noise_sizes = [] if filtered else [16] + [n for n in pixels[1:] for _ in range(2)]
        self.noise_size = sum(self.noise_sizes)

    def forward(self, styles: Tensor, noise: Tensor | None = None) -> Tensor:
        """ValueError where styles or noise are not of this network's size."""
        if styles.dim() != 3 or styles.shape[1] != self.layers:
            raise ValueError(f"styles are (B, {self.layers}, W), not {tuple(styles.shape)}")
        parts: list[Tensor | None] = [None] * (self.layers - 1)
        if noise is not None and self.noise_size:
            if noise.shape[1:] != (self.noise_size,):
                raise ValueError(f"noise is (B, {self.noise_size}), not {tuple(noise.shape)}")
            parts = list(torch.split(noise, self.noise_sizes, dim=1))
        x, image = self.blocks[0](None, None, styles[:, :2], None, parts[0])
        for number, block in enumerate(self.blocks[1:]):
            at = 1 + 2 * number
            x, image = block(x, image, styles[:, at : at + 3], parts[at], parts[at + 1])
        drawn: Tensor = image
        return drawn
