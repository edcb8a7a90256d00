"""From images and log densities to figures with their passports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from genus.errors import EvaluationError
from genus.evaluate.features import Extractor
from genus.evaluate.frechet import (
    KID_SUBSET_SIZE,
    KID_SUBSETS,
    frechet_distance,
    kernel_distance,
)
from genus.evaluate.manifold import manifold
from genus.evaluate.passport import Figure, Passport
from genus.evaluate.reference import reference_features
from genus.objectives.phase import LogDensity


def sample_quality(
    fake_images: Iterable[Tensor],
    reference_images: Iterable[Tensor],
    extractor: Extractor,
    passport: Passport,
    *,
    count: int,
    reference_count: int | None = None,
    cache: Path | None = None,
    kid_subsets: int = KID_SUBSETS,
    kid_subset_size: int = KID_SUBSET_SIZE,
) -> dict[str, Figure]:
    """FD, KID, precision, recall, density and coverage of ``count`` generated images.

    Both streams give uint8 batches (B, C, H, W) and are read no further than needed; of the
    reference the first ``reference_count`` (default: ``count``) images, or their cached features
    (``cache``: a folder; needs ``passport.reference_fingerprint``). ``passport`` says what only the
    caller knows (progress, ema, sampler, nfe, guidance, seeds, labels, reference); the rest is
    filled in here. Raises EvaluationError when there are too few images on a side.
    """
    reference_count = reference_count or count
    if cache is not None and not passport.reference_fingerprint:
        raise EvaluationError("cached reference features need the passport's reference_fingerprint")
    if min(count, reference_count) < kid_subset_size:
        # said before minutes go into drawing the samples
        raise EvaluationError(
            f"KID with subsets of {kid_subset_size} needs at least as many samples a side, and "
            f"{count} generated and {reference_count} real ones are asked for: evaluate more"
        )
    formats: set[str] = set()
    fake = extractor.all(_formats(fake_images, formats), count)
    if len(formats) > 1:
        raise EvaluationError(f"generated images of several formats: {', '.join(sorted(formats))}")
    real = reference_features(
        _same_format(reference_images, formats),
        reference_count,
        extractor,
        fingerprint=f"{passport.reference_fingerprint} {min(formats)}",
        cache=cache,
    )
    passport = replace(
        passport,
        samples=count,
        reference_samples=reference_count,
        extractor=extractor.name,
        extractor_sha256=extractor.weights_sha256,
        preprocessing=extractor.preprocessing,
        image_format=min(formats),
    )
    kid, deviation = kernel_distance(real, fake, subsets=kid_subsets, subset_size=kid_subset_size)
    kid_spread = f"standard deviation over {kid_subsets} subsets of {kid_subset_size}"
    neighbours = manifold(real, fake)
    return {
        f"FD-{extractor.name}": Figure(frechet_distance(real, fake), None, "", passport),
        f"KID-{extractor.name}": Figure(kid, deviation, "", passport, kid_spread),
        "precision": Figure(neighbours.precision, None, "", passport),
        "recall": Figure(neighbours.recall, None, "", passport),
        "density": Figure(neighbours.density, None, "", passport),
        "coverage": Figure(neighbours.coverage, None, "", passport),
    }


def likelihood_figure(
    log_densities: Iterable[LogDensity], passport: Passport
) -> tuple[str, Figure]:
    """The figure's name, and the mean negative log density of all rows with its standard error:
    ``bits/dim``, -log2 p / dims (``bits/char``, ``bits/byte``), or ``nll``, -ln p in nats a row or
    token, as ``LogDensity.unit`` says.

    The rows' own estimation errors are part of their scatter, hence of the standard error. The
    passport's ``likelihood`` says the kind: for "lower bound" the figure is an upper bound.
    Raises EvaluationError for fewer than 2 rows, or rows of different kinds.
    """
    parts = list(log_densities)
    kinds = {(part.kind, part.dequantisation, part.dims, part.unit) for part in parts}
    if len(kinds) > 1:
        raise EvaluationError(f"log densities of different kinds in one figure: {sorted(kinds)}")
    rows = sum(len(part.nats) for part in parts)
    if rows < 2:
        raise EvaluationError(f"a likelihood needs at least 2 samples and got {rows}")
    mean, standard_error = mean_surprise(parts)
    figure = Figure(
        value=mean,
        spread=standard_error,
        unit=parts[0].unit,
        passport=replace(
            passport,
            samples=rows,
            likelihood=parts[0].kind,
            dequantisation=parts[0].dequantisation,
        ),
        spread_kind="standard error",
    )
    return figure.unit if figure.unit.startswith("bits") else "nll", figure


def mean_surprise(densities: Iterable[LogDensity]) -> tuple[float, float]:
    """The negative log density of all rows together, in their unit, and its standard error (nan of
    a single row).

    Rows of different lengths count by their tokens: sum of nats over sum of tokens, with the usual
    error of a ratio, sqrt(N / (N - 1) sum_i (nats_i - mean tokens_i)^2) / sum of tokens.
    """
    pairs = [(total(density), weights(density)) for density in densities]
    sums, weight = (torch.cat(column) for column in zip(*pairs, strict=True))
    return ratio(sums, weight)


def ratio(sums: Tensor, weight: Tensor) -> tuple[float, float]:
    """sum of ``sums`` over sum of ``weight``, both (N,), and its standard error (nan at N = 1)."""
    mean, n = sums.sum() / weight.sum(), len(sums)
    scatter = (sums - mean * weight).square().sum() * (n / (n - 1) if n > 1 else math.nan)
    return float(mean), float(scatter.sqrt() / weight.sum())


def surprise(density: LogDensity) -> Tensor:
    """(B,) float64 on the host: each row's negative log density in ``density.unit``."""
    return total(density) / weights(density)


def total(density: LogDensity) -> Tensor:
    """(B,) float64 on the host: each row's negative log density, in bits or nats as its unit has
    it, not divided by what the row is made of."""
    nats = -density.nats.double().cpu()
    return nats / math.log(2) if density.unit.startswith("bits") else nats


def weights(density: LogDensity) -> Tensor:
    """(B,) float64 on the host: by how much each row counts in a mean."""
    if density.counts is None:
        shared = density.dims if "/" in density.unit else 1
        return torch.full((len(density.nats),), shared, dtype=torch.float64)
    return density.counts.double().cpu()


def _formats(images: Iterable[Tensor], seen: set[str]) -> Iterator[Tensor]:
    for batch in images:
        seen.add(_format(batch))
        yield batch


def _same_format(images: Iterable[Tensor], expected: set[str]) -> Iterator[Tensor]:
    for batch in images:
        if _format(batch) not in expected:
            raise EvaluationError(
                f"real images are {_format(batch)} and generated ones {', '.join(expected)}: "
                "read the reference at the size and channels of the model"
            )
        yield batch


def _format(batch: Tensor) -> str:
    return f"{str(batch.dtype).removeprefix('torch.')} {'x'.join(map(str, batch.shape[1:]))}"
