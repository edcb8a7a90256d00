"""What chance decides for each image: which transforms happen to it, and how strongly.

All numbers of a call come from three draws of fixed width, one place a transform, so that a sample
meets the same numbers whatever the batch, and a transform keeps its numbers when others are
switched off.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from genus.draws import Draws

Transform = Literal[
    "xflip", "rotate90", "xint",
    "scale", "rotate", "aniso", "xfrac",
    "brightness", "contrast", "lumaflip", "hue", "saturation",
    "imgfilter", "noise", "cutout",
]  # fmt: skip
"""ADA's transforms, under the names of the published code, in the order of their application."""

TRANSFORMS: tuple[Transform, ...] = get_args(Transform)
COLOURS: frozenset[Transform] = frozenset(
    {"brightness", "contrast", "lumaflip", "hue", "saturation"}
)
BANDS = 4
"""Frequency bands of the image filter."""

_BANDS = tuple(f"band{i}" for i in range(BANDS))
_GATES = ("xflip", "rotate90", "xint", "scale", "rotate before", "aniso", "rotate after", "xfrac",
          "brightness", "contrast", "lumaflip", "hue", "saturation", *_BANDS, "noise",
          "cutout")  # fmt: skip
_UNIFORM = ("xflip", "rotate90", "xint x", "xint y", "rotate before", "rotate after", "lumaflip",
            "hue", "cutout x", "cutout y")  # fmt: skip
_NORMAL = ("scale", "aniso", "xfrac x", "xfrac y", "brightness", "contrast", "saturation", *_BANDS,
           "noise")  # fmt: skip


@dataclass(frozen=True)
class Chances:
    """The random decisions of one call, one row an image."""

    p: Tensor
    """(1,) the probability of each transform."""
    on: Collection[Transform]
    gates: Tensor
    """(B, len(_GATES)) uniform: below p, the transform happens."""
    uniforms: Tensor
    normals: Tensor
    colour_share: float = 1.0
    """Of p, for transforms of colour."""

    @staticmethod
    def of(
        draws: Draws,
        p: Tensor,
        on: Collection[Transform],
        dtype: torch.dtype,
        colour_share: float = 1.0,
    ) -> Chances:
        uniform = draws.uniform("transforms", (len(_GATES) + len(_UNIFORM),), dtype)
        normal = draws.normal("strengths", (len(_NORMAL),), dtype)
        gates, values = uniform[:, : len(_GATES)], uniform[:, len(_GATES) :]
        p = p.detach().reshape(1).to(dtype)
        return Chances(p, on, gates, values, normal, colour_share)

    def happens(self, name: str, p: Tensor | None = None) -> Tensor:
        """(B,) bool: true with probability p, never at p = 0, always at p = 1."""
        if p is None:
            p = self.p * self.colour_share if name in COLOURS else self.p
        return self.gates[:, _GATES.index(name)] < p

    def uniform(self, name: str) -> Tensor:
        """(B,) on [0, 1)."""
        return self.uniforms[:, _UNIFORM.index(name)]

    def normal(self, name: str) -> Tensor:
        """(B,) standard normal."""
        return self.normals[:, _NORMAL.index(name)]

    def bands(self) -> tuple[Tensor, Tensor]:
        """(happens (B, BANDS) bool, standard normal (B, BANDS)) of the image filter."""
        gate, normal = _GATES.index(_BANDS[0]), _NORMAL.index(_BANDS[0])
        return self.gates[:, gate : gate + BANDS] < self.p, self.normals[:, normal : normal + BANDS]
