"""DiffAugment: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training".

Every transform of the policy happens to every image; only its strength is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from genus.draws import Draws
from genus.errors import ConfigError
from genus.objectives.augmentation.blit import picked

Policy = Literal["color", "translation", "cutout"]

_NUMBERS = ("brightness", "saturation", "contrast", "move y", "move x", "cut y", "cut x")


class DiffAugment:
    """Applies the ``policy`` in its order. Differentiable in the images any number of times."""

    def __init__(self, policy: Sequence[Policy], shape: tuple[int, ...]) -> None:
        """``shape`` (C, H, W) of the images, of any number of channels; ConfigError otherwise."""
        if len(shape) != 3:
            raise ConfigError(
                f"DiffAugment augments images (C, H, W) and the data are {shape}: "
                "set augment.kind to none"
            )
        self._steps: list[Callable[[Tensor, Tensor], Tensor]] = [_STEPS[name] for name in policy]

    def __call__(self, images: Tensor, p: Tensor, draws: Draws) -> Tensor:
        """``images`` (B, C, H, W) in [-1, 1] -> the same shape; ``p`` has no part in it."""
        dtype = torch.promote_types(images.dtype, torch.float32)
        numbers = draws.uniform("transforms", (len(_NUMBERS),), dtype)
        out = images.to(dtype)
        for step in self._steps:
            out = step(out, numbers)
        return out.to(images.dtype)


def recoloured(images: Tensor, numbers: Tensor) -> Tensor:
    """Adds brightness from [-1/2, 1/2); scales the distance from the pixel's grey by [0, 2) and
    from the image's mean by [1/2, 3/2)."""
    images = images + _number(numbers, "brightness") - 0.5
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * _number(numbers, "saturation") * 2
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (_number(numbers, "contrast") + 0.5)


def moved(images: Tensor, numbers: Tensor) -> Tensor:
    """Shifts by up to an eighth of each side, in whole pixels; what comes in is 0 (mid-grey)."""
    index, inside = [], []
    for axis, name in ((2, "move y"), (3, "move x")):
        size = images.shape[axis]
        by = _integer(numbers, name, 2 * (size // 8) + 1) - size // 8
        place = torch.arange(size, device=images.device) - by
        inside.append((place >= 0) & (place < size))
        index.append(place.clamp(0, size - 1))
    kept = inside[0][:, :, None] & inside[1][:, None, :]
    return picked(images, *index) * kept[:, None]


def cut_out(images: Tensor, numbers: Tensor) -> Tensor:
    """Zeroes a rectangle of half of each side, whose centre lies anywhere in the image."""
    cut = []
    for axis, name in ((2, "cut y"), (3, "cut x")):
        size = images.shape[axis]
        side = size // 2
        first = _integer(numbers, name, size + 1 - side % 2) - side // 2
        place = torch.arange(size, device=images.device)
        cut.append((place >= first) & (place < first + side))
    return images * ~(cut[0][:, :, None] & cut[1][:, None, :])[:, None]


_STEPS: dict[Policy, Callable[[Tensor, Tensor], Tensor]] = {
    "color": recoloured,
    "translation": moved,
    "cutout": cut_out,
}


def _number(numbers: Tensor, name: str) -> Tensor:
    return numbers[:, _NUMBERS.index(name), None, None, None]


def _integer(numbers: Tensor, name: str, count: int) -> Tensor:
    """(B, 1) int64, uniform on 0..count-1."""
    return (numbers[:, _NUMBERS.index(name), None] * count).long().clamp(max=count - 1)
