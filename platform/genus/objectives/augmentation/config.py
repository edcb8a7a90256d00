"""What is done to the images that a discriminator sees, and how the probability of it is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from genus.draws import Draws
from genus.errors import ConfigError
from genus.objectives.augmentation.ada import ADATransforms
from genus.objectives.augmentation.chances import Transform
from genus.objectives.augmentation.diffaugment import DiffAugment, Policy

_BLIT: tuple[Transform, ...] = ("xflip", "rotate90", "xint")
_GEOM: tuple[Transform, ...] = ("scale", "rotate", "aniso", "xfrac")
_COLOR: tuple[Transform, ...] = ("brightness", "contrast", "lumaflip", "hue", "saturation")

PIPELINES: dict[str, tuple[Transform, ...]] = {
    "blit":   _BLIT,
    "geom":   _GEOM,
    "color":  _COLOR,
    "filter": ("imgfilter",),
    "noise":  ("noise",),
    "cutout": ("cutout",),
    "bg":     (*_BLIT, *_GEOM),
    "bgc":    (*_BLIT, *_GEOM, *_COLOR),
    "bgcf":   (*_BLIT, *_GEOM, *_COLOR, "imgfilter"),
    "bgcfn":  (*_BLIT, *_GEOM, *_COLOR, "imgfilter", "noise"),
    "bgcfnc": (*_BLIT, *_GEOM, *_COLOR, "imgfilter", "noise", "cutout"),
}  # fmt: skip
"""ADA's published sets of transforms."""


class Augmentation(Protocol):
    def __call__(self, images: Tensor, p: Tensor, draws: Draws) -> Tensor:
        """``images`` (B, C, H, W) in [-1, 1], ``p`` () or (1,) on their device; one row of
        ``draws`` an image -> (B, C, H, W), differentiable in the images any number of times."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of all that the discriminator sees: real and generated images alike."""

    kind: Literal["none", "ada", "fixed", "diffaugment"] = "none"
    """ada: the probability p follows the discriminator's overfitting; fixed: the same transforms
    at p as given; diffaugment: every transform of the policy on every image."""
    transforms: tuple[Transform, ...] = PIPELINES["bgc"]
    """Of ada and fixed."""
    colour_share: float = 1.0
    """Of p, for transforms of colour (R3GAN: a half)."""
    policy: tuple[Policy, ...] = ("color", "translation", "cutout")
    """Of diffaugment."""
    p: float = 0.0
    """The probability at the start (ada), or throughout (fixed)."""
    target: float = 0.6
    """Of r_t, the mean sign of D's logits of real images: above it p grows, below it p falls."""
    ramp: int = 500_000
    """Samples in which p goes from 0 to 1; published: 500,000, and 100,000 when fine-tuning."""
    interval: int = 4
    """Steps from one update of p to the next."""
    grows: int = 0
    """fixed: p grows from 0 along half a cosine over so many samples (0: there from the start)."""

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1 or not 0 <= self.colour_share <= 1:
            raise ConfigError(
                f"augment.p is {self.p} and colour_share {self.colour_share}: from 0 to 1"
            )
        if self.kind == "fixed" and self.p == 0:
            raise ConfigError("augment.kind=fixed does nothing with augment.p=0: say how often")
        if self.grows and self.kind != "fixed":
            raise ConfigError(f"augment.grows is for kind=fixed, and the kind is {self.kind}")
        if self.p and self.kind in ("none", "diffaugment"):
            raise ConfigError(f"augment.p={self.p} has no meaning for augment.kind={self.kind}")
        if not -1 < self.target < 1:
            raise ConfigError(f"augment.target is {self.target}: a mean sign is within -1 and 1")
        if self.grows < 0:
            raise ConfigError(f"augment.grows={self.grows}: samples can't be negative")
        if self.ramp < 1 or self.interval < 1:
            raise ConfigError(
                f"augment.ramp is {self.ramp} and augment.interval {self.interval}: both count "
                "from 1"
            )
        chosen = {"diffaugment": self.policy, "none": ("nothing",)}.get(self.kind, self.transforms)
        if not chosen:
            raise ConfigError(
                f"augment.kind is {self.kind} with no transforms: name some, or set it to none"
            )

    def build(self, shape: tuple[int, ...]) -> Augmentation:
        """For data of the ``shape`` (C, H, W); ConfigError where those can't be augmented so."""
        if self.kind == "none":
            return unchanged
        if self.kind == "diffaugment":
            return DiffAugment(self.policy, shape)
        return ADATransforms(self.transforms, shape, self.colour_share)


def unchanged(images: Tensor, p: Tensor, draws: Draws) -> Tensor:
    """No augmentation."""
    return images
