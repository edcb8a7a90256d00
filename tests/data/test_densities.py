"""The toy densities: samples and log densities are of the same distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import make_moons

from genus.data.densities import NAMES, draw, log_density, modes
from genus.errors import DataError

EDGE, STEP = 6.0, 0.04
"""Half the side of the square that is integrated over, and the grid's step; a multiple of it is the
side of the checkerboard's squares."""


def on_grid(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Centres of small squares (n, n, 2), and the probability of each (n, n)."""
    centres = np.arange(-EDGE + STEP / 2, EDGE, STEP)
    points = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1)
    flat = points.reshape(-1, 2)
    return points, np.exp(log_density(name, flat)).reshape(points.shape[:2]) * STEP**2


@pytest.mark.parametrize("name", NAMES)
def test_densities_integrate_to_one(name: str) -> None:
    assert on_grid(name)[1].sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_density(name: str) -> None:
    """Chi-square over 30 x 30 squares, moments, and the entropy."""
    points, mass = on_grid(name)
    count = 200_000
    drawn = draw(name, count, 3)
    assert drawn.shape == (count, 2)
    assert drawn.dtype == np.float32
    edges = np.linspace(-EDGE, EDGE, 31)
    seen = np.histogram2d(drawn[:, 0], drawn[:, 1], bins=(edges, edges))[0].ravel()
    expected = count * mass.reshape(30, 10, 30, 10).sum((1, 3)).ravel()
    rare = expected < 10
    seen = np.append(seen[~rare], seen[rare].sum())
    expected = np.append(expected[~rare], count - expected[~rare].sum())
    if expected[-1] < 10:
        assert seen[-1] <= 40
        seen, expected = seen[:-1], expected[:-1]
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, len(seen) - 1) > 1e-3
    mean = (mass[..., None] * points).sum((0, 1))
    assert drawn.mean(0) == pytest.approx(mean, abs=5 * 2.5 / math.sqrt(count))
    logs = log_density(name, drawn)
    entropy = -(mass[mass > 0] * np.log(mass[mass > 0] / STEP**2)).sum()
    assert -logs.mean() == pytest.approx(entropy, abs=5 * logs.std() / math.sqrt(count) + 1e-6)


def test_closed_forms() -> None:
    assert log_density("checkerboard", np.array([[0.5, 0.5], [0.5, 2.5], [5, 5]])).tolist() == [
        pytest.approx(-math.log(32)),
        -np.inf,
        -np.inf,
    ]
    radius, variance = 4 / math.sqrt(2), 1 / 8
    at_mean = log_density("8-gaussians", np.array([[radius, 0], [0, -radius]]))
    alone = -math.log(8 * 2 * math.pi * variance)
    neighbours = 2 * math.exp(-(2 * radius**2 * (1 - math.sqrt(0.5))) / (2 * variance))
    assert at_mean == pytest.approx(alone + math.log1p(neighbours), abs=1e-9)


@pytest.mark.parametrize(("name", "count"), [("8-gaussians", 8), ("25-gaussians", 25)])
def test_modes_are_the_centres_and_spread_of_the_samples(name: str, count: int) -> None:
    """Samples scatter about the nearest centre as the spread says, as many about each."""
    known = modes(name)
    assert known is not None
    assert known.centres.shape == (count, 2)
    drawn = draw(name, 100_000, 5).astype(np.float64)
    away = drawn[:, None] - known.centres
    nearest = (away**2).sum(2).argmin(1)
    own = away[np.arange(len(drawn)), nearest]
    assert (own / known.spread).std() == pytest.approx(1, abs=0.02)
    within = ((own**2).sum(1) <= (3 * known.spread) ** 2).mean()
    assert within == pytest.approx(1 - math.exp(-4.5), abs=5 * math.sqrt(0.011 / 100_000))
    counts = np.bincount(nearest, minlength=count)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_which_densities_have_modes() -> None:
    assert [name for name in NAMES if modes(name) is not None] == ["8-gaussians", "25-gaussians"]
    grid = modes("25-gaussians")
    assert grid is not None
    assert grid.spread == 0.05
    expected = {(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)}
    assert {(x, y) for x, y in grid.centres.tolist()} == expected


def test_two_moons_are_those_of_scikit_learn() -> None:
    """Their samples and ours are of one distribution: two-sample tests on both axes."""
    theirs = make_moons(20_000, noise=0.1, random_state=0)[0] * 2 + np.array([-1, -0.2])
    ours = draw("two-moons", 20_000, 0)
    for axis in (0, 1):
        assert stats.ks_2samp(ours[:, axis], theirs[:, axis]).pvalue > 1e-3
    assert stats.ks_2samp(ours.sum(1), theirs.sum(1)).pvalue > 1e-3


FIRST = {
    "8-gaussians": [1.7497671, 1.8411664],
    "25-gaussians": [-4.0276656, -0.0397537],
    "checkerboard": [1.1125216, 1.0999686],
    "two-moons": [-2.9049780, -0.1943617],
}
"""The first of three points with seed 0: they are the same for ever."""


def test_draws_depend_on_their_arguments_alone() -> None:
    for name in NAMES:
        assert np.array_equal(draw(name, 100, 1), draw(name, 100, 1))
        assert not np.array_equal(draw(name, 100, 1), draw(name, 100, 2))
    first = {name: draw(name, 3, 0)[0].tolist() for name in NAMES}
    assert first == {name: pytest.approx(point, abs=1e-6) for name, point in FIRST.items()}


def test_unknown_names_and_shapes() -> None:
    for function in (lambda name: draw(name, 3, 0), modes):
        with pytest.raises(DataError, match="8-gaussians, 25-gaussians, checkerboard, two-moons"):
            function("spiral")
    with pytest.raises(DataError, match=r"\(N, 2\)"):
        log_density("two-moons", np.zeros((3, 3)))
