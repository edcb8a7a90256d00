"""Scores of outliers and their AUROC against closed forms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.draws import Draws
from genus.errors import EvaluationError
from genus.evaluate.anomaly import (
    Scored,
    auroc,
    auroc_error,
    class_mixture,
    png_bits,
    score_images,
    scores,
)
from genus.objectives.phase import LogDensity


def normals(count: int, mean: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(count, generator=generator, dtype=torch.float64)


def test_auroc_of_gaussian_scores() -> None:
    """P(N(d, 1) > N(0, 1)) = Phi(d / sqrt 2)."""
    for shift in (-1.0, 0.5, 2.0):
        expected = 0.5 * (1 + math.erf(shift / 2))
        # the scale of real nlls: beyond [0, 1], where they must not be taken for logits
        inside, outside = 1000 + normals(20_000, 0, 0), 1000 + normals(20_000, shift, 1)
        assert auroc(inside, outside) == pytest.approx(expected, abs=0.006)


def test_auroc_is_the_share_of_ordered_pairs_with_ties_as_half() -> None:
    inside, outside = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 3.0, 0.0, math.inf])
    pairs = (outside[:, None] > inside) + 0.5 * (outside[:, None] == inside)
    assert auroc(inside, outside) == pytest.approx(float(pairs.mean()), abs=1e-6)
    # closer than float32 can tell
    one = torch.ones(1, dtype=torch.float64)
    assert auroc(one, one + 1e-12) == 1


def test_the_standard_error_is_the_scatter_over_new_samples() -> None:
    areas = [auroc(normals(80, 0, 2 * i), normals(60, 1, 2 * i + 1)) for i in range(200)]
    scatter = float(torch.tensor(areas).std())
    errors = [auroc_error(normals(80, 0, i), normals(60, 1, i + 50), seed=i) for i in range(4)]
    assert sum(errors) / 4 == pytest.approx(scatter, rel=0.2)


def test_nothing_and_nan_have_no_auroc() -> None:
    for inside, outside, what in (
        (torch.ones(0), torch.ones(2), "0 inliers"),
        (torch.ones(2), torch.tensor([math.nan]), "1 scores of 3 are NaN"),
    ):
        with pytest.raises(EvaluationError, match=what):
            auroc(inside, outside)


def test_png_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, 3, 32, 32), generator=generator, dtype=torch.uint8)
    flat = torch.full((1, 3, 32, 32), 9, dtype=torch.uint8)
    ramp = torch.arange(64, dtype=torch.uint8).expand(1, 1, 64, 64)
    bits = png_bits(torch.cat([noise, flat]))
    assert bits.dtype == torch.float64
    assert 8 <= bits[0] < 8.5  # noise can't be compressed; a header comes on top
    assert bits[1] < 0.4
    # the filter "sub" makes it constant: libpng's own choice is among those that are tried
    assert png_bits(ramp)[0] < 0.3
    shuffled = ramp[..., torch.randperm(64, generator=generator)]
    assert png_bits(shuffled)[0] < 0.5


def test_the_three_scores() -> None:
    images = Scored(torch.tensor([1.0, 4.0]), torch.tensor([0.5, 5.0]), "exact", "uniform")
    found = scores(images, typical=3.0)
    assert {name: value.tolist() for name, value in found.items()} == {
        "nll": [1.0, 4.0], "typicality": [2.0, 1.0], "nll - PNG": [0.5, -1.0],
    }  # fmt: skip


class Labelled:
    """log p(x | class) = -class * (1 + mean level)."""

    def log_density(self, networks: Mapping[str, nn.Module], batch: Batch) -> LogDensity:
        level = batch["image"].double().flatten(1).mean(1)
        return LogDensity(-batch["label"] * (1 + level), "exact", "none", 4)


def a_batch() -> Batch:
    image = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2).contiguous()
    fields = {"image": image, "label": torch.tensor([0, 1, 2])}
    return Batch(fields, torch.arange(3), 0, Draws.of([0, 1, 2]))


def test_the_density_of_a_conditional_model_is_the_mean_over_its_classes() -> None:
    batch = a_batch()
    nats = class_mixture(Labelled(), {}, batch, 4).nats
    level = torch.arange(3).double()
    expected = sum((-c * (1 + level)).exp() for c in range(4)) / 4
    torch.testing.assert_close(nats, torch.as_tensor(expected).log())
    own = class_mixture(Labelled(), {}, batch, 0).nats  # an unconditional model's own
    torch.testing.assert_close(own, -torch.arange(3) * (1 + level))
    found = score_images(Labelled(), {}, [batch, batch], 4)
    torch.testing.assert_close(found.nll, -nats.repeat(2) / (4 * math.log(2)))
    assert (found.kind, found.dequantisation, len(found.png)) == ("exact", "none", 6)
    with pytest.raises(EvaluationError, match="no images"):
        score_images(Labelled(), {}, [], 4)
