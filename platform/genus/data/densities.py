"""2-D densities that flows and GANs are shown on: exact samplers, true log densities, modes.

All fill about [-4, 4]^2; figures of other definitions are not comparable. ``25-gaussians`` is the
grid by which GANs are tested for lost modes (Srivastava et al. 2017, VEEGAN; Lin et al. 2018,
PacGAN). The others have the shapes and scales of FFJORD's toy data (Grathwohl et al. 2019), by
which most papers draw them.

``8-gaussians``    equal parts of 8 round Gaussians, standard deviation 0.5 / sqrt(2), whose means
                   lie every 45 degrees on a circle of radius 4 / sqrt(2), from angle 0 on.
``25-gaussians``   equal parts of 25 round Gaussians, standard deviation 0.05, whose means are the
                   grid {-4, -2, 0, 2, 4}^2.
``checkerboard``   uniform on 8 of the 4 x 4 squares of side 2 that tile [-4, 4)^2: on those whose
                   column and row, counted from -4, are both even or both odd.
``two-moons``      scikit-learn's ``make_moons``, times 2 and moved by (-1, -0.2): equal parts of
                   two half circles of radius 1, (cos t, sin t) and (1 - cos t, 1/2 - sin t), t
                   uniform in [0, pi], with Gaussian noise of standard deviation 0.1 added before
                   scaling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.draws import seed_of
from genus.errors import DataError

Points = NDArray[np.float64]
"""(N, 2)"""

RADIUS, SPREAD = 4 / math.sqrt(2), 0.5 / math.sqrt(2)
GRID, GRID_SPREAD = np.arange(-4.0, 5.0, 2.0), 0.05
SQUARE = 2.0
SCALE, SHIFT, NOISE = 2.0, np.array([-1.0, -0.2]), 0.1
NODES = 128
"""Of the quadrature along a moon: log densities in [-6, 6]^2 are off by 1e-11 at most."""


@dataclass(frozen=True, eq=False)
class Modes:
    """Equal parts of round Gaussians."""

    centres: Points
    """(K, 2)"""
    spread: float
    """Standard deviation of each."""


def draw(name: str, count: int, seed: int) -> NDArray[np.float32]:
    """``count`` independent points (count, 2) of the density ``name``. DataError for other names.

    A function of its arguments alone, whatever numpy's version: it uses raw Philox words.
    """
    sampler, _ = _density(name)
    points: NDArray[np.float32] = sampler(_Numbers(seed_of(seed, name), count)).astype(np.float32)
    return points


def log_density(name: str, x: NDArray[Any]) -> NDArray[np.float64]:
    """Natural-log density (N,) at the points ``x`` (N, 2); -inf where there is none.

    The mean of -log_density over samples estimates the entropy, which no model's test NLL can beat.
    ``two-moons`` is by Gauss-Legendre quadrature, the others are in closed form. DataError for
    other names.
    """
    points = np.asarray(x, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise DataError(f"expected points (N, 2), found an array {points.shape}")
    return _density(name)[1](points)


def modes(name: str) -> Modes | None:
    """The modes of the density ``name``; None where it has no separate ones. DataError for other
    names."""
    _density(name)
    return _MODES.get(name)


class _Numbers:
    """Random numbers of N points by a key."""

    def __init__(self, key: int, count: int) -> None:
        self._words = np.random.Philox(key=key)
        self._count = count

    def uniform(self) -> NDArray[np.float64]:
        """(N,) in [0, 1)"""
        words: NDArray[np.uint64] = self._words.random_raw(self._count)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def choice(self, options: int) -> NDArray[np.int64]:
        """(N,) of 0..options-1"""
        return (self.uniform() * options).astype(np.int64)

    def normal(self) -> Points:
        """(N, 2) standard normal, by Box and Muller."""
        radius = np.sqrt(-2 * np.log1p(-self.uniform()))  # 1 - u is never 0
        points: Points = radius[:, None] * _on_circle(2 * np.pi * self.uniform())
        return points


def _draw_mixture(mixture: Modes, numbers: _Numbers) -> Points:
    chosen = mixture.centres[numbers.choice(len(mixture.centres))]
    points: Points = chosen + mixture.spread * numbers.normal()
    return points


def _log_equal_parts(mixture: Modes, x: Points) -> NDArray[np.float64]:
    parts = len(mixture.centres)
    return _log_mixture(x, mixture.centres, mixture.spread, np.full(parts, 1 / parts))


def _draw_checkerboard(numbers: _Numbers) -> Points:
    column, pair = numbers.choice(4), numbers.choice(2)
    corner = np.stack([column, 2 * pair + column % 2], axis=1)
    inside = np.stack([numbers.uniform(), numbers.uniform()], axis=1)
    return np.asarray(SQUARE * (corner - 2 + inside))


def _log_checkerboard(x: Points) -> NDArray[np.float64]:
    square = np.floor(x / SQUARE)
    inside = ((square >= -2) & (square < 2)).all(1) & (square.sum(1) % 2 == 0)
    return np.where(inside, -math.log(8 * SQUARE**2), -np.inf)


def _moons(angle: NDArray[np.float64]) -> tuple[Points, Points]:
    """Points of the two half circles at ``angle`` (N,), before scaling."""
    upper = _on_circle(angle)
    return upper, np.array([1.0, 0.5]) - upper


def _draw_moons(numbers: _Numbers) -> Points:
    upper, lower = _moons(np.pi * numbers.uniform())
    clean = np.where(numbers.choice(2)[:, None] == 0, upper, lower)
    points: Points = SCALE * (clean + NOISE * numbers.normal()) + SHIFT
    return points


def _log_moons(x: Points) -> NDArray[np.float64]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)  # on [-1, 1]; weights sum to 2
    means = np.concatenate(_moons((nodes + 1) * np.pi / 2))
    return _log_mixture(x, SCALE * means + SHIFT, SCALE * NOISE, np.tile(weights / 4, 2))


def _log_mixture(
    x: Points, means: Points, spread: float, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log density (N,) of round Gaussians with ``means`` (K, 2) and ``weights`` (K,)."""
    out = np.empty(len(x))
    for start in range(0, len(x), 4096):  # bounds the memory of (N, K)
        part = x[start : start + 4096, None]
        exponent = np.log(weights) - ((part - means) ** 2).sum(2) / (2 * spread**2)
        most = exponent.max(1)
        out[start : start + 4096] = most + np.log(np.exp(exponent - most[:, None]).sum(1))
    return out - math.log(2 * math.pi * spread**2)


def _on_circle(angle: NDArray[np.float64]) -> Points:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


_MODES = {
    "8-gaussians": Modes(RADIUS * _on_circle(np.arange(8) * np.pi / 4), SPREAD),
    "25-gaussians": Modes(np.stack(np.meshgrid(GRID, GRID), axis=-1).reshape(-1, 2), GRID_SPREAD),
}
_Density = tuple[Callable[[_Numbers], Points], Callable[[Points], NDArray[np.float64]]]
_DENSITIES: dict[str, _Density] = {
    name: (partial(_draw_mixture, mixture), partial(_log_equal_parts, mixture))
    for name, mixture in _MODES.items()
}
_DENSITIES |= {
    "checkerboard": (_draw_checkerboard, _log_checkerboard),
    "two-moons": (_draw_moons, _log_moons),
}
NAMES = tuple(_DENSITIES)


def _density(name: str) -> _Density:
    if name not in _DENSITIES:
        raise DataError(f"no density '{name}'; there are: {', '.join(NAMES)}")
    return _DENSITIES[name]
