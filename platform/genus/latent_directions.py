"""Directions in the latent space W along which one attribute of the images changes.

Everything is fitted to codes that the generator drew itself; ``w`` (N, W) are those codes less the
mean of their class, and ``y`` (N,) what was measured on their images, less its mean likewise, so
that a direction is about what changes within a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genus.errors import ConfigError

RIDGE = 1e-2
"""Penalty on the squared slope, in units of the mean variance of w's numbers."""
NEWTON = 50


@dataclass(frozen=True)
class Direction:
    """A way through W."""

    name: str
    """What changes along it."""
    vector: Tensor
    """(W,) of length 1."""
    unit: float
    """Length in W of one unit of an edit."""
    unit_name: str

    def moved(self, styles: Tensor, amount: float, layers: slice = slice(None)) -> Tensor:
        """Styles (B, L, W) that are moved by ``amount`` units in some of the layers."""
        shift = torch.zeros_like(styles)
        shift[:, layers] = (amount * self.unit * self.vector).to(styles)
        return styles + shift


def within(values: Tensor, labels: Sequence[int] | None) -> Tensor:
    """(N, ...) less the mean of each class, or of all."""
    if labels is None:
        return values - values.mean(0)
    label = torch.tensor(list(labels), device=values.device)
    centred = values.clone()
    for kind in sorted(set(labels)):
        rows = label == kind
        centred[rows] = values[rows] - values[rows].mean(0)
    return centred


def slope(w: Tensor, y: Tensor, ridge: float = RIDGE) -> Tensor:
    """(W,) b of the least |w b - y|^2 + N ridge v |b|^2, v the mean variance of w's numbers."""
    w, y = w.double(), y.double()
    gram, strength = w.T @ w, ridge * w.square().sum() / w.shape[1]
    b: Tensor = torch.linalg.solve(gram + strength * _eye(w), w.T @ y)
    return b


def boundary(w: Tensor, is_more: Tensor, ridge: float = RIDGE / 10) -> Tensor:
    """(W,) normal of the plane by which logistic regression tells rows with ``is_more`` (N,) from
    those without (InterFaceGAN, Shen et al. 2020, with the logistic for the hinge loss); penalised
    as ``slope``, less since its curvature is less. Newton's method."""
    w, y = w.double(), is_more.double()
    x = torch.cat([w, torch.ones_like(w[:, :1])], dim=1)
    strength = ridge * w.square().sum() / w.shape[1] * _eye(x)
    strength[-1, -1] = 0  # the offset is free
    b = torch.zeros_like(x[0])
    for _ in range(NEWTON):
        p = (x @ b).sigmoid()
        gradient = x.T @ (p - y) + strength @ b
        curvature = (p * (1 - p)).clamp(min=1e-9)
        step = torch.linalg.solve((x * curvature[:, None]).T @ x + strength, gradient)
        b = b - step
        if step.norm() <= 1e-9 * b.norm():
            break
    return b[:-1]


def without(vector: Tensor, others: Sequence[Tensor]) -> Tensor:
    """``vector`` (W,) less its part in the span of ``others``: along what is left, linear measures
    with those slopes do not change (Shen et al. 2020, section 3.3). ConfigError where nothing is.
    """
    if not others:
        return vector
    basis = torch.linalg.qr(torch.stack(list(others), dim=1).double())[0]
    left: Tensor = vector.double() - basis @ (basis.T @ vector.double())
    if left.norm() < 1e-6 * vector.norm():
        raise ConfigError("--keep: nothing is left of the direction without those attributes")
    return left


def component(w: Tensor, number: int) -> tuple[Tensor, float]:
    """Principal component of w (N, W), counted from 1, and its share of the variance (GANSpace,
    Härkönen et al. 2020). Its largest number is positive. ConfigError for a number that isn't."""
    if not 1 <= number <= w.shape[1]:
        raise ConfigError(f"--component {number}: w has components 1 to {w.shape[1]}")
    w = w.double()
    values, vectors = torch.linalg.eigh(w.T @ w)
    vector = vectors[:, -number]
    sign = vector[vector.abs().argmax()].sign()
    return vector * sign, float(values[-number] / values.sum())


def in_deviations(name: str, vector: Tensor, w: Tensor) -> Direction:
    """A unit is the standard deviation of w (N, W), of mean 0, along the vector."""
    unit = vector.double() / vector.double().norm()
    deviation = float((w.double() @ unit).square().mean().sqrt())
    return Direction(name, unit, deviation, "standard deviations of w")


def between_classes(name: str, start: Tensor, end: Tensor) -> Direction:
    """From one class's centre (W,) to another's: a unit is the whole way."""
    way = (end - start).double()
    length = float(way.norm())
    return Direction(name, way / length, length, "of the way between the centres")


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, 0 where one of them does not vary."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else 0.0


def _eye(w: Tensor) -> Tensor:
    return torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
