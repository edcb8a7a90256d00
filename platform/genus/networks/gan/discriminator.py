"""From an image to a logit: StyleGAN2's discriminator (Karras et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from genus.networks.filtering import downsample
from genus.networks.gan.layers import Clamp, Conv, Dense, channels_last
from genus.networks.gan.mapping import Mapping

Form = Literal["resnet", "orig", "skip"]


def with_minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """x (B, C, H, W) and one plane more: how much the samples of a group differ (Karras et al.
    2018, section 3), the mean over channels and pixels of the standard deviation over the group.

    A group is ``group`` consecutive rows, so micro-batches and processes that hold whole groups see
    what one process sees. Fewer rows than that are one group, a single row's plane is almost 0.
    ValueError where more rows are not whole groups.
    """
    rows = len(x)
    size = min(group, rows)
    if rows % size:
        raise ValueError(
            f"minibatch standard deviation looks at {group} rows together, and {rows} rows are "
            f"not a multiple of that"
        )
    # At least float32: in bfloat16 the difference of alike samples is lost.
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).view(-1, size, *x.shape[1:])
    deviation = (grouped.var(dim=1, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    plane = (
        deviation.to(x.dtype)
        .repeat_interleave(size)
        .view(rows, 1, 1, 1)
        .expand(-1, -1, *x.shape[2:])
    )
    return torch.cat([x, plane], dim=1)


class DiscriminatorBlock(nn.Module):
    """One resolution: x (B, I, H, W), image (B, C, H, W) -> x (B, O, H/2, W/2), image.

    ``reads`` has it add what it reads from the image to x (which may be None).
    """

    def __init__(
        self, inputs: int, outputs: int, channels: int, *, reads: bool, form: Form, clamp: Clamp
    ) -> None:
        super().__init__()
        half = math.sqrt(0.5) if form == "resnet" else 1.0
        self.halves_image = form == "skip"
        self.from_image = Conv(channels, inputs, 1, clamp=clamp) if reads else None
        self.conv0 = Conv(inputs, inputs, 3, clamp=clamp)
        self.conv1 = Conv(inputs, outputs, 3, down=True, gain=half, clamp=clamp)
        self.skip = (
            Conv(inputs, outputs, 1, down=True, bias=False, active=False, gain=half)
            if form == "resnet"
            else None
        )

    def forward(self, x: Tensor | None, image: Tensor) -> tuple[Tensor, Tensor]:
        if self.from_image is not None:
            read = self.from_image(image)
            x = read if x is None else x + read
        assert x is not None
        y = self.conv1(self.conv0(x))
        if self.skip is not None:
            y = self.skip(x) + y
        return y, downsample(image) if self.halves_image else image


class Discriminator(nn.Module):
    """image (B, C, R, R), label (B,) -> logits (B,).

    ``widths`` are the features at R, R/2, ..., 4 pixels. With classes the logit is the product of
    the image's features and a mapped label (Miyato & Koyama 2018; Karras et al. 2020b).
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        *,
        classes: int = 0,
        form: Form = "resnet",
        group: int = 4,
        label_layers: int = 8,
        clamp: Clamp = None,
    ) -> None:
        super().__init__()
        self.group = group
        last = widths[-1]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(
                inputs,
                outputs,
                channels,
                reads=number == 0 or form == "skip",
                form=form,
                clamp=clamp,
            )
            for number, (inputs, outputs) in enumerate(pairwise(widths))
        )
        self.from_image = Conv(channels, last, 1, clamp=clamp) if form == "skip" else None
        self.conv = Conv(last + (group > 1), last, 3, clamp=clamp)
        self.dense = Dense(last * 16, last, active=True)
        self.out = Dense(last, last if classes else 1, active=False)
        self.label = Mapping(0, last, classes=classes, layers=label_layers) if classes else None

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """ValueError where the rows are more than one group and not whole groups."""
        x, image = None, channels_last(image)
        for block in self.blocks:
            x, image = block(x, image)
        assert x is not None
        if self.from_image is not None:
            x = x + self.from_image(image)
        if self.group > 1:
            x = with_minibatch_deviation(x, self.group)
        features: Tensor = self.out(self.dense(self.conv(x).flatten(1)))
        if self.label is None:
            return features[:, 0]
        mapped: Tensor = self.label(None, label)
        return (features * mapped).sum(dim=1) / math.sqrt(features.shape[1])
