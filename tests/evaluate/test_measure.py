"""Figures from images and log densities; reference features from the cache."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genus.errors import EvaluationError
from genus.evaluate.features import Extractor
from genus.evaluate.frechet import frechet_distance
from genus.evaluate.measure import likelihood_figure, sample_quality
from genus.evaluate.passport import Figure, Passport
from genus.evaluate.reference import reference_features
from genus.objectives.phase import LogDensity

PASSPORT = Passport(progress=7, sampler="heun", reference="toy", reference_fingerprint="abc")


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, ::7]


EXTRACTOR = Extractor("Pixels", "0" * 64, Pixels(), resolution=0, std=255.0)


def images(seed: int, count: int = 60, low: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=generator)


def quality(fake: Tensor, real: Tensor, **options: object) -> dict[str, Figure]:
    settings = {"count": 50, "kid_subsets": 4, "kid_subset_size": 20, **options}
    return sample_quality([fake[:33], fake[33:]], [real], EXTRACTOR, PASSPORT, **settings)  # type: ignore[arg-type]


def test_figures_and_their_passport() -> None:
    figures = quality(images(0), images(1), reference_count=55)
    assert list(figures) == [
        "FD-Pixels", "KID-Pixels", "precision", "recall", "density", "coverage"
    ]  # fmt: skip
    passport = figures["FD-Pixels"].passport
    assert all(figure.passport == passport for figure in figures.values())
    assert (passport.progress, passport.sampler, passport.reference) == (7, "heun", "toy")
    assert (passport.samples, passport.reference_samples) == (50, 55)
    assert (passport.extractor, passport.extractor_sha256) == ("Pixels", "0" * 64)
    assert passport.image_format == "uint8 1x4x4"
    assert passport.preprocessing == EXTRACTOR.preprocessing
    real, fake = EXTRACTOR(images(1)[:55]), EXTRACTOR(images(0)[:50])
    assert figures["FD-Pixels"].value == frechet_distance(real, fake)
    assert "4 subsets of 20" in figures["KID-Pixels"].spread_kind


def test_images_of_another_format_are_not_compared() -> None:
    with pytest.raises(EvaluationError, match="real images are uint8 1x8x8 and generated"):
        quality(images(0), images(1).repeat(1, 1, 2, 2))


def test_too_few_images() -> None:
    with pytest.raises(EvaluationError, match="only 40 images where 50"):
        quality(images(0, 40), images(1))
    with pytest.raises(EvaluationError, match="only 45 images where 50"):
        quality(images(0), images(1, 45))


def test_too_few_for_the_kernel_distance_is_said_before_a_sample_is_drawn() -> None:
    def undrawn() -> Iterator[Tensor]:
        raise AssertionError("a sample was drawn")
        yield

    with pytest.raises(EvaluationError, match=r"subsets of 500 needs .* 499 generated"):
        sample_quality(undrawn(), undrawn(), EXTRACTOR, PASSPORT, count=499)


def test_the_cache_spares_the_reference_and_gives_the_same_figures(tmp_path: Path) -> None:
    first = quality(images(0), images(1), cache=tmp_path)

    def unread() -> Iterator[Tensor]:
        raise AssertionError("the reference was read again")
        yield

    settings = {"count": 50, "kid_subsets": 4, "kid_subset_size": 20}
    again = sample_quality([images(0)], unread(), EXTRACTOR, PASSPORT, cache=tmp_path, **settings)  # type: ignore[arg-type]
    assert again == first == quality(images(0), images(1))


def test_another_reference_extractor_or_count_has_other_cached_features(tmp_path: Path) -> None:
    def features(fingerprint: str, extractor: Extractor, count: int) -> Tensor:
        return reference_features(
            [images(len(fingerprint))], count, extractor, fingerprint=fingerprint, cache=tmp_path
        )

    other = Extractor("Pixels", "0" * 64, Pixels(), resolution=3, std=255.0)
    keys = (("a", EXTRACTOR, 20), ("bb", EXTRACTOR, 20), ("a", other, 20), ("a", EXTRACTOR, 10))
    for key in keys * 2:
        expected = key[1](images(len(key[0])))[: key[2]]
        assert torch.equal(features(*key), expected)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_cache_file_is_made_anew(tmp_path: Path) -> None:
    def features() -> Tensor:
        return reference_features([images(1)], 50, EXTRACTOR, fingerprint="abc", cache=tmp_path)

    expected = features()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for damaged in (bytes(flipped), whole[:-10], b"", b"not safetensors at all"):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="made anew"):
            assert torch.equal(features(), expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(features(), expected)


def test_a_cache_needs_a_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="reference_fingerprint"):
        sample_quality([], [], EXTRACTOR, Passport(), count=500, cache=tmp_path)


def log_density(
    nats: list[float], kind: str = "exact", dims: int = 4, unit: str = "bits/dim"
) -> LogDensity:
    return LogDensity(
        torch.tensor(nats, dtype=torch.float64),
        kind,  # type: ignore[arg-type]
        "uniform",
        dims,
        unit=unit,  # type: ignore[arg-type]
    )


def test_bits_per_dim_of_images() -> None:
    log2 = math.log(2)
    parts = [log_density([-8 * log2, -16 * log2]), log_density([-12 * log2])]
    name, figure = likelihood_figure(parts, PASSPORT)
    assert figure.value == pytest.approx(3.0, abs=1e-12)  # of 2, 4 and 3 bits a dimension
    assert figure.spread == pytest.approx(1 / math.sqrt(3), abs=1e-12)
    assert (name, figure.unit, figure.spread_kind) == ("bits/dim", "bits/dim", "standard error")
    assert (figure.passport.likelihood, figure.passport.dequantisation) == ("exact", "uniform")
    assert (figure.passport.samples, figure.passport.progress) == (3, 7)


def test_nats_a_row_of_vectors() -> None:
    parts = [log_density([-8.0, -16.0], unit="nats"), log_density([3.0], unit="nats")]
    name, figure = likelihood_figure(parts, PASSPORT)
    assert (name, figure.unit) == ("nll", "nats")
    assert figure.value == pytest.approx(7.0, abs=1e-12)


def test_rows_of_different_lengths_count_by_their_tokens() -> None:
    nats = torch.tensor([-8.0, -1.0, -6.0])
    counts = torch.tensor([4, 1, 3])
    parts = [
        LogDensity(nats[rows], "exact", "none", 9, unit="nats/token", counts=counts[rows])
        for rows in (slice(0, 2), slice(2, 3))
    ]
    name, figure = likelihood_figure(parts, PASSPORT)
    assert (name, figure.unit, figure.passport.samples) == ("nll", "nats/token", 3)
    assert figure.value == pytest.approx(15 / 8)
    residuals = -nats.double() - 15 / 8 * counts
    assert figure.spread == pytest.approx(math.sqrt(1.5 * float(residuals.square().sum())) / 8)
    characters = [dataclasses.replace(part, unit="bits/char") for part in parts]
    name, figure = likelihood_figure(characters, PASSPORT)
    assert (name, figure.value) == ("bits/char", pytest.approx(15 / 8 / math.log(2)))


def test_a_likelihood_mixes_no_kinds_and_needs_two() -> None:
    others = (
        log_density([0.0], "estimate"), log_density([0.0], dims=5), log_density([0.0], unit="nats")
    )  # fmt: skip
    for other in others:
        with pytest.raises(EvaluationError, match="different kinds"):
            likelihood_figure([log_density([0.0]), other], PASSPORT)
    for few in ([], [log_density([1.0])]):
        with pytest.raises(EvaluationError, match="at least 2 samples"):
            likelihood_figure(few, PASSPORT)
