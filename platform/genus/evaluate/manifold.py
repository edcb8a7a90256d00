"""Fidelity and diversity by nearest neighbours in feature space.

Precision and recall: Kynkäänniemi et al. 2019 (k = 3). Density and coverage: Naeem et al. 2020
(k = 5). A set's manifold is the union of balls around its points, each reaching to the point's k-th
nearest neighbour in the set; as in Naeem's code (``prdc``) the balls are open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genus.errors import EvaluationError


@dataclass(frozen=True)
class Manifold:
    """All but ``density`` lie in [0, 1]; density is near 1 for equal distributions."""

    precision: float
    """Share of the generated samples inside the real manifold."""
    recall: float
    """Share of the real samples inside the generated manifold."""
    density: float
    """Number of real balls that hold a generated sample, over k, on average."""
    coverage: float
    """Share of the real balls that hold a generated sample."""


def manifold(
    real: Tensor,
    fake: Tensor,
    *,
    k_precision: int = 3,
    k_coverage: int = 5,
    chunk: int = 1024,
) -> Manifold:
    """Compare features (N, D) and (M, D). Distances in float64; memory is ``chunk`` x max(N, M).

    Raises EvaluationError when a side has too few samples for k neighbours.
    """
    for side, features in (("real", real), ("generated", fake)):
        if len(features) <= max(k_precision, k_coverage):
            raise EvaluationError(
                f"{max(k_precision, k_coverage)} neighbours need more than {len(features)} "
                f"{side} samples"
            )
    real, fake = real.double(), fake.double()
    real_radius, real_radius_coverage = _radii(real, (k_precision, k_coverage), chunk)
    (fake_radius,) = _radii(fake, (k_precision,), chunk)

    in_real = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    balls = recalled = covered = 0
    for start in range(0, len(real), chunk):
        rows = slice(start, start + chunk)
        distance = torch.cdist(real[rows], fake)
        in_real |= (distance < real_radius[rows, None]).any(dim=0)
        recalled += int((distance < fake_radius).any(dim=1).sum())
        held = distance < real_radius_coverage[rows, None]
        balls += int(held.sum())
        covered += int(held.any(dim=1).sum())
    return Manifold(
        precision=int(in_real.sum()) / len(fake),
        recall=recalled / len(real),
        density=balls / (k_coverage * len(fake)),
        coverage=covered / len(real),
    )


def _radii(features: Tensor, ks: Sequence[int], chunk: int) -> list[Tensor]:
    """For each k, the distance (N,) from every point to its k-th nearest neighbour."""
    radii: list[list[Tensor]] = [[] for _ in ks]
    for rows in torch.split(features, chunk):
        distance = torch.cdist(rows, features)
        for k, parts in zip(ks, radii, strict=True):
            parts.append(distance.kthvalue(k + 1, dim=1).values)  # the nearest is the point itself
    return [torch.cat(parts) for parts in radii]
