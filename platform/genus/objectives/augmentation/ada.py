"""The transforms of adaptive discriminator augmentation: Karras et al. 2020, "Training Generative
Adversarial Networks with Limited Data", section 3 and appendix B."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from genus.draws import Draws
from genus.errors import ConfigError
from genus.objectives.augmentation.blit import oriented, shifted, whole_shift
from genus.objectives.augmentation.chances import COLOURS, Chances, Transform
from genus.objectives.augmentation.colour import recoloured
from genus.objectives.augmentation.corruption import BandFilter, cut_out, noisy
from genus.objectives.augmentation.geometry import Resampling, inverse_transform

RESAMPLED: frozenset[Transform] = frozenset({"scale", "rotate", "aniso", "xfrac"})


_Constants = tuple[Resampling | None, BandFilter | None]


class ADATransforms:
    """Each of the transforms ``on`` happens to each image with probability p.

    The result is differentiable in the images any number of times. An image to which nothing
    happens comes out as it went in, to the bit: all of them at p = 0. Nothing waits for the device,
    and shapes and work don't depend on p.
    """

    def __init__(
        self, on: Collection[Transform], shape: tuple[int, ...], colour_share: float = 1.0
    ) -> None:
        """``shape`` (C, H, W) of the images; ConfigError where they can't be transformed so.
        Transforms of colour happen with probability p times ``colour_share``."""
        self._on, self._colour_share = frozenset(on), colour_share
        _, self._height, self._width = _checked(self._on, shape)
        self._made: dict[tuple[torch.device, torch.dtype], _Constants] = {}

    def __call__(self, images: Tensor, p: Tensor, draws: Draws) -> Tensor:
        """``images`` (B, C, H, W) in [-1, 1]; ``p`` () or (1,) on their device. (B, C, H, W)."""
        dtype = images.dtype
        # Half precision has too few digits for positions of pixels, and matrices are cheap here.
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(torch.promote_types(dtype, torch.float32))
            chances = Chances.of(draws, p, self._on, images.dtype, self._colour_share)
            resampling, band_filter = self._constants(images)
            images = self._moved(images, chances, resampling)
            if self._on & COLOURS:
                images = recoloured(images, chances)
            if band_filter is not None:
                images = band_filter(images, chances)
            if "noise" in self._on:
                images = noisy(images, chances, draws)
            if "cutout" in self._on:
                images = cut_out(images, chances)
        return images.to(dtype)

    def _constants(self, like: Tensor) -> _Constants:
        """The filters on the images' device, made once."""
        key = like.device, like.dtype
        if key not in self._made:
            what = self._height, self._width, *key
            with torch.inference_mode(False):  # else no later gradient could go through them
                self._made[key] = (
                    Resampling(*what) if self._on & RESAMPLED else None,
                    BandFilter(*what) if "imgfilter" in self._on else None,
                )
        return self._made[key]

    def _moved(self, images: Tensor, chances: Chances, resampling: Resampling | None) -> Tensor:
        height, width = images.shape[2:]
        images = oriented(images, chances)
        shift = whole_shift(chances, height, width) if "xint" in self._on else None
        if resampling is None:
            return images if shift is None else shifted(images, shift)
        # One resampling serves both kinds of shift; by whole pixels it is exact as well.
        inverse, active = inverse_transform(chances, shift, height, width)
        return torch.where(active[:, None, None, None], resampling(images, inverse), images)


def _checked(on: frozenset[Transform], shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < 2:
        raise ConfigError(
            f"ADA augments images (C, H, W) of at least 2 x 2 pixels, and the data are {shape}: "
            "set augment.kind to none"
        )
    channels, height, width = shape
    if on & COLOURS and channels not in (1, 3):
        raise ConfigError(
            f"ADA's colour transforms need 1 or 3 channels and the data have {channels}: leave "
            f"{', '.join(sorted(on & COLOURS))} out of augment.transforms"
        )
    if "rotate90" in on and height != width:
        raise ConfigError(
            f"quarter turns need square images and the data are {height} x {width}: leave rotate90 "
            "out of augment.transforms"
        )
    return channels, height, width
