"""Modes covered, quality and evenness of constructed samples, in closed form."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genus.data.densities import draw, modes
from genus.errors import EvaluationError
from genus.evaluate.modes import GaussianModes, ModeCounts, mode_figures
from genus.evaluate.passport import Passport, describe
from genus.evaluate.stacked_modes import StackedDigitModes, mode_counter

PASSPORT = Passport(progress=7, sampler="by hand")


def grid() -> GaussianModes:
    known = modes("25-gaussians")
    assert known is not None
    return GaussianModes(known)


def test_coverage_and_quality_of_constructed_samples() -> None:
    """Beside three centres at 2.9, 3.1 and 0 standard deviations, and where no centre is."""
    sigma = 0.05
    beside = torch.tensor(
        [
            [-4 + 2.9 * sigma, -4.0],  # near
            [2.0, 4.0 - 3.1 * sigma],  # of no high quality: this mode is not covered
            [0.0, 0.0],
            [0.0, 0.0],
            [1.0, 1.0],  # between four centres
            [math.nan, 0.0],
            [math.inf, 0.0],
            [1e30, -1e30],
        ]
    )
    found = grid()(beside)
    assert (found.covered, found.high_quality, found.samples) == (2, 3, 8)
    figures = mode_figures(found, grid(), PASSPORT)
    assert list(figures) == ["modes covered", "high-quality share", "mode KL"]
    assert figures["modes covered"].value == 2
    assert figures["modes covered"].unit == "of 25"
    assert figures["high-quality share"].value == 3 / 8
    assert figures["high-quality share"].spread == pytest.approx(math.sqrt(15 / 64 / 8))
    share = np.array([1 / 3, 2 / 3])
    expected = (share * np.log(25 * share)).sum()
    assert figures["mode KL"].value == pytest.approx(expected, abs=1e-12)
    passport = figures["mode KL"].passport
    assert (passport.progress, passport.sampler, passport.samples) == (7, "by hand", 8)
    assert "25 Gaussians of standard deviation 0.05" in str(passport.modes)
    assert "within 3 of them" in describe(figures)


@pytest.mark.parametrize("covered", [1, 5, 25])
def test_equal_parts_of_some_modes(covered: int) -> None:
    """KL is ln(K / covered) where the covered ones have equal parts."""
    known = modes("25-gaussians")
    assert known is not None
    samples = torch.from_numpy(known.centres[:covered]).repeat(4, 1)
    found = GaussianModes(known)(samples)
    assert found.covered == covered
    assert found.counts.tolist() == [4] * covered + [0] * (25 - covered)
    assert found.kl == pytest.approx(math.log(25 / covered), abs=1e-12)


def test_exact_samples_are_as_good_as_theory_has_it() -> None:
    """All modes, 1 - exp(-9/2) of high quality, and KL of about (K - 1) / 2N by chance alone."""
    for name, count in (("25-gaussians", 25), ("8-gaussians", 8)):
        counter = mode_counter(name, border=0, device="cpu")
        total = ModeCounts(torch.zeros(count, dtype=torch.int64), 0)
        for seed in range(20):
            total += counter(torch.from_numpy(draw(name, 5000, seed)))
        assert total.samples == 100_000
        share = total.high_quality / total.samples
        error = math.sqrt(0.011 / total.samples)
        assert share == pytest.approx(1 - math.exp(-4.5), abs=4 * error)
        excess = 2 * total.high_quality * total.kl  # chi-square of K - 1 degrees of freedom
        assert abs(excess - (count - 1)) < 5 * math.sqrt(2 * (count - 1))


def test_nothing_of_high_quality_has_no_kl() -> None:
    figures = mode_figures(grid()(torch.ones(5, 2)), grid(), PASSPORT, of="of the data")
    assert {name: figure.value for name, figure in figures.items()} == {
        "modes covered of the data": 0,
        "high-quality share of the data": 0,
    }


def test_what_can_not_be_counted() -> None:
    with pytest.raises(EvaluationError, match=r"modes of \(N, 2\) were asked of \(5, 3\)"):
        grid()(torch.zeros(5, 3))
    with pytest.raises(EvaluationError, match="at least one"):
        mode_figures(ModeCounts(torch.zeros(3), 0), grid(), PASSPORT)
    for name in ("checkerboard", "galaxies"):
        with pytest.raises(EvaluationError, match=f"modes by '{name}', not known"):
            mode_counter(name, border=0, device="cpu")


# ---- stacked digits ------------------------------------------------------------------------------


@dataclasses.dataclass
class BySum:
    """A classifier of whole images: the digit is the level of its middle, in steps of 25."""

    sha256: str = "0" * 64
    tested: int = 1000
    accuracy: tuple[float, float] = (0.986, 0.004)

    def __call__(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (1, 28, 28)
        assert images.dtype == torch.uint8
        digits = (images[:, 0, 14, 14].long() + 12) // 25
        return torch.nn.functional.one_hot(digits, 10).float()


def stacked(*triples: tuple[int, int, int], side: int = 28, border: int = 0) -> Tensor:
    levels = 25 * torch.tensor(triples, dtype=torch.uint8)[:, :, None, None]
    inside = levels.expand(-1, -1, side, side)
    return torch.nn.functional.pad(inside, (border,) * 4, value=255)


def counter(border: int = 0) -> StackedDigitModes:
    classifier: Any = BySum()
    return StackedDigitModes(classifier, border)


def test_the_mode_is_the_three_digits_in_their_order() -> None:
    found = counter()(stacked((3, 1, 4), (0, 0, 0), (9, 9, 9), (3, 1, 4)))
    assert found.counts.nonzero().flatten().tolist() == [0, 314, 999]
    assert found.counts[314] == 2
    assert (found.covered, found.samples, found.high_quality) == (3, 4, 4)
    assert found.kl == pytest.approx(0.5 * math.log(500) + 0.5 * math.log(250), abs=1e-12)
    figures = mode_figures(found, counter(), PASSPORT)
    assert list(figures) == ["modes covered", "mode KL"]  # every image is some mode's
    passport = figures["mode KL"].passport
    assert passport.extractor_sha256 == "0" * 64
    assert "98.6 % of 1000 test digits" in str(passport.extractor)


@pytest.mark.parametrize(("side", "border"), [(28, 2), (56, 0), (14, 1)])
def test_borders_are_cut_and_other_sizes_resized(side: int, border: int) -> None:
    images = stacked((7, 0, 2), side=side, border=border)
    found = counter(border)(images)
    assert found.counts.nonzero().flatten().tolist() == [702]
    assert ("border" in counter(border).passport()["preprocessing"]) == bool(border)


def test_what_are_no_stacked_digits() -> None:
    for bad in (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2, 3, 28, 28)):
        with pytest.raises(EvaluationError, match=r"uint8 images \(B, 3, H, W\)"):
            counter()(bad)
