"""Telling outliers from inliers by a model's likelihood: scores, and the area under the ROC curve.

The higher a score, the more an image looks like an outlier. Three of them, in bits/dim:

- ``nll``: the negative log-likelihood. It is known to fail: a model of Fashion-MNIST gives MNIST a
  higher likelihood than its own test images, since simple images have short codes under any model
  (Nalisnick et al. 2019a, arXiv:1810.09136).
- ``typicality``: how far the nll is from its mean over training images, whichever way (Nalisnick et
  al. 2019b, arXiv:1906.02994, for batches of one).
- ``nll - PNG``: the nll less the bits of the image as a PNG file, the log-likelihood ratio to a
  model that knows no data set (Serra et al. 2020, arXiv:1909.11480).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genus.data.batch import Batch
from genus.errors import EvaluationError
from genus.evaluate.measure import surprise
from genus.objectives.phase import CanLogDensity, LogDensity, Networks

_FILTERS = (0x08, 0x10, 0x20, 0x40, 0x80, 0xF8)
"""libpng's: none, sub, up, average, Paeth, and the one that looks best for each row."""


@dataclass(frozen=True)
class Scored:
    """What is known of each image of a set, (N,) float64 in bits/dim."""

    nll: Tensor
    png: Tensor
    kind: str
    """Of the log density."""
    dequantisation: str


def score_images(
    objective: CanLogDensity, networks: Networks, batches: Iterable[Batch], classes: int
) -> Scored:
    """The images' negative log-likelihood and size. With ``classes`` the density is the mixture of
    all classes with equal weights, so that labels, which outliers have not, give nothing away."""
    densities, png = [], []
    for batch in batches:
        densities.append(class_mixture(objective, networks, batch, classes))
        png.append(png_bits(batch["image"]))
    if not densities:
        raise EvaluationError("no images to score")
    return Scored(
        torch.cat([surprise(density) for density in densities]),
        torch.cat(png),
        densities[0].kind,
        densities[0].dequantisation,
    )


@torch.no_grad()
def class_mixture(
    objective: CanLogDensity, networks: Networks, batch: Batch, classes: int
) -> LogDensity:
    """log of the mean over classes of p(x | class); for ``classes`` 0 log p(x)."""
    if not classes:
        return objective.log_density(networks, batch)
    rows = []
    for number in range(classes):
        label = torch.full((len(batch),), number, device=batch["image"].device)
        one = dataclasses.replace(batch, fields={**batch.fields, "label": label})
        rows.append(objective.log_density(networks, one))
    nats = torch.stack([row.nats.double() for row in rows]).logsumexp(0) - math.log(classes)
    return dataclasses.replace(rows[0], nats=nats, standard_error=None)


def png_bits(images: Tensor) -> Tensor:
    """(B,) float64: bits a dimension of each uint8 image (B, 1 or 3, H, W) as a PNG file, the
    smallest that zlib's level 9 and libpng's filters make."""
    from imagecodecs import png_encode

    pixels = images.permute(0, 2, 3, 1).squeeze(3).cpu().numpy()
    sizes = [
        min(len(png_encode(image, level=9, filter=one)) for one in _FILTERS)
        for image in map(np.ascontiguousarray, pixels)
    ]
    return torch.tensor(sizes, dtype=torch.float64) * 8 / images[0].numel()


def scores(images: Scored, typical: float) -> dict[str, Tensor]:
    """Name -> (N,); ``typical`` is the mean nll of training images."""
    return {
        "nll": images.nll,
        "typicality": (images.nll - typical).abs(),
        "nll - PNG": images.nll - images.png,
    }


def auroc(inliers: Tensor, outliers: Tensor) -> float:
    """The probability that an outlier (M,) scores higher than an inlier (N,), ties counted half.

    EvaluationError for a side without samples, or scores that are NaN.
    """
    ranks, target = _ranks(inliers, outliers)
    return _area(ranks, target)


def auroc_error(inliers: Tensor, outliers: Tensor, resamples: int = 200, seed: int = 0) -> float:
    """Bootstrap standard error of ``auroc``: both sides are drawn again with replacement."""
    ranks, target = _ranks(inliers, outliers)
    n, m = len(inliers), len(outliers)
    generator = torch.Generator().manual_seed(seed)
    areas = []
    for _ in range(resamples):
        rows = torch.cat(
            [
                torch.randint(n, (n,), generator=generator),
                n + torch.randint(m, (m,), generator=generator),
            ]
        )
        areas.append(_area(ranks[rows], target))
    return float(np.std(areas, ddof=1))


def _ranks(inliers: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
    """All scores as ranks in [0, 1], equal ones alike, and which are outliers' (1)."""
    if not len(inliers) or not len(outliers):
        raise EvaluationError(f"AUROC of {len(inliers)} inliers and {len(outliers)} outliers")
    values = torch.cat([inliers, outliers]).double().cpu()
    if values.isnan().any():
        raise EvaluationError(f"{int(values.isnan().sum())} scores of {len(values)} are NaN")
    order = torch.unique(values, return_inverse=True)[1].double()
    target = (torch.arange(len(values)) >= len(inliers)).long()
    return order / len(values), target


def _area(ranks: Tensor, target: Tensor) -> float:
    from torchmetrics.functional.classification import binary_auroc

    # torchmetrics takes what lies outside [0, 1] for logits, and all large scores become 1: ranks
    return float(binary_auroc(ranks, target, validate_args=False))
