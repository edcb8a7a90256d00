"""Precision, recall, density and coverage against the authors' own code."""

from __future__ import annotations

import pytest
import torch
from prdc import compute_prdc
from torch import Tensor

from genus.errors import EvaluationError
from genus.evaluate.manifold import manifold


def clouds(real: int, fake: int, dims: int, spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(real + fake)
    x = torch.randn(real, dims, dtype=torch.float64, generator=generator)
    y = torch.randn(fake, dims, dtype=torch.float64, generator=generator)
    return x, spread * y + 0.3


@pytest.mark.parametrize(
    ("real", "fake", "dims", "spread"), [(200, 200, 8, 1.0), (150, 90, 4, 0.5), (70, 160, 16, 1.5)]
)
@pytest.mark.parametrize("chunk", [17, 1024])
def test_equal_to_prdc(real: int, fake: int, dims: int, spread: float, chunk: int) -> None:
    x, y = clouds(real, fake, dims, spread)
    ours = manifold(x, y, chunk=chunk)
    three = compute_prdc(x.numpy(), y.numpy(), nearest_k=3)
    five = compute_prdc(x.numpy(), y.numpy(), nearest_k=5)
    assert 0 < ours.precision < 1 or 0 < ours.recall < 1
    assert ours.precision == pytest.approx(float(three["precision"]), abs=1e-12)
    assert ours.recall == pytest.approx(float(three["recall"]), abs=1e-12)
    assert ours.density == pytest.approx(float(five["density"]), abs=1e-12)
    assert ours.coverage == pytest.approx(float(five["coverage"]), abs=1e-12)


def test_a_set_against_itself_and_against_one_far_away() -> None:
    x, _ = clouds(50, 50, 6, 1.0)
    same = manifold(x, x)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    # an open ball up to the 5th neighbour holds the point itself and 4 others: 5 / 5
    assert same.density == 1
    far = manifold(x, x + 1000)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_too_few_neighbours() -> None:
    x, y = clouds(5, 20, 3, 1.0)
    with pytest.raises(EvaluationError, match="5 neighbours need more than 5 real samples"):
        manifold(x, y)
