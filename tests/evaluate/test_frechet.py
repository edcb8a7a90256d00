"""Fréchet and kernel distance against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from genus.errors import EvaluationError
from genus.evaluate.frechet import frechet_distance, kernel_distance


def gaussian(count: int, dims: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dims, dims, dtype=torch.float64, generator=generator)
    white = torch.randn(count, dims, dtype=torch.float64, generator=generator)
    return white @ mix + shift


def test_frechet_distance_is_the_closed_form_of_the_sample_moments() -> None:
    x, y = gaussian(400, 8, seed=0), gaussian(300, 8, seed=1, shift=0.7)
    mu_1, mu_2 = x.mean(0).numpy(), y.mean(0).numpy()
    s_1, s_2 = np.cov(x.numpy().T), np.cov(y.numpy().T)
    # Dowson & Landau 1982, in its symmetric form: no root of a product that is not symmetric
    root = scipy.linalg.sqrtm(s_1).real
    cross = scipy.linalg.sqrtm(root @ s_2 @ root).real
    exact = ((mu_1 - mu_2) ** 2).sum() + np.trace(s_1 + s_2 - 2 * cross)
    assert exact > 1
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-8)
    assert frechet_distance(y, x) == pytest.approx(exact, rel=1e-8)


def test_frechet_distance_to_itself_is_zero_and_a_shift_is_its_square() -> None:
    x = gaussian(200, 16, seed=2)
    assert abs(frechet_distance(x, x)) < 1e-8
    shift = torch.linspace(-1, 1, 16, dtype=torch.float64)
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()), abs=1e-8)


def test_kernel_distance_of_whole_sets_is_the_unbiased_estimator() -> None:
    x, y = gaussian(60, 5, seed=3), gaussian(60, 5, seed=4, shift=0.5)
    kernel = lambda a, b: (a @ b.T / 5 + 1) ** 3  # noqa: E731
    off = ~torch.eye(60, dtype=torch.bool)
    exact = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    mean, deviation = kernel_distance(x, y, subsets=3, subset_size=60)
    assert mean == pytest.approx(float(exact), rel=1e-10)
    assert deviation == pytest.approx(0, abs=1e-9)


def test_kernel_distance_of_equal_distributions_scatters_around_zero() -> None:
    generator = torch.Generator().manual_seed(5)
    values = []
    for _ in range(200):
        x, y = torch.randn(2, 20, 4, dtype=torch.float64, generator=generator)
        values.append(kernel_distance(x, y, subsets=1, subset_size=20)[0])
    values = torch.tensor(values, dtype=torch.float64)
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean()) < 3 * error
    assert values.min() < 0 < values.max()
    # the biased estimator keeps the diagonal, which shifts it by far more than that
    assert 10 * error < 2 * ((1 + 1) ** 3 - 1) / 20


def test_the_seed_fixes_the_subsets_and_leaves_the_global_generator_alone() -> None:
    x, y = gaussian(50, 4, seed=6), gaussian(50, 4, seed=7)
    torch.manual_seed(1)
    first = kernel_distance(x, y, subsets=5, subset_size=20)
    untouched = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(untouched, torch.rand(3))
    assert kernel_distance(x, y, subsets=5, subset_size=20) == first
    assert kernel_distance(x, y, subsets=5, subset_size=20, seed=1) != first


def test_what_is_not_finite_is_no_figure() -> None:
    x = gaussian(40, 4, seed=9)
    spoilt = x.clone()
    spoilt[3, 1], spoilt[7, 0], spoilt[7, 2] = float("nan"), float("inf"), float("nan")
    words = "2 of 40 generated samples are not finite"
    with pytest.raises(EvaluationError, match=words):
        frechet_distance(x, spoilt)
    with pytest.raises(EvaluationError, match=words):
        kernel_distance(x, spoilt, subset_size=20)
    with pytest.raises(EvaluationError, match="2 of 40 real samples"):
        frechet_distance(spoilt, x)
    # finite ones whose squares are not
    with pytest.raises(EvaluationError, match=r"Fréchet distance of these features is (nan|inf)"):
        frechet_distance(x, 1e200 * x)
    with pytest.raises(EvaluationError, match=r"KID of these features is (nan|inf)"):
        kernel_distance(x, 1e200 * x, subset_size=20)


def test_too_few_samples() -> None:
    x = gaussian(10, 4, seed=8)
    with pytest.raises(EvaluationError, match="needs at least 2 generated samples and got 1"):
        frechet_distance(x, x[:1])
    with pytest.raises(EvaluationError, match="needs at least 500 real samples and got 10"):
        kernel_distance(x, x)
    with pytest.raises(EvaluationError, match=r"features \(N, D\)"):
        frechet_distance(x, x[:, :3])
