"""Fréchet distance and kernel distance between two sets of features.

The formulas are those of Heusel et al. 2017 (FID) and Bińkowski et al. 2018 (KID), computed in
float64 by torchmetrics, the field's reference implementation, which sees our features through an
identity in the place of its Inception network. The features of a call are all there are: one rank
of a run may measure while the others wait, so nothing is exchanged (sync_on_compute=False).
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from genus.errors import EvaluationError

KID_SUBSETS = 50
KID_SUBSET_SIZE = 500
"""Fixed, so that figures of different runs are comparable; the mean's expectation does not depend
on them, its spread does."""


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """|mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) of features (N, D) and (M, D).

    The estimate is biased upwards, the more the fewer samples: compare only figures of equal
    counts. Raises EvaluationError for fewer than 2 samples a side, and where features or distance
    are not finite.
    """
    _check(real, fake, at_least=2, what="the Fréchet distance")
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Identity(real.shape[1]), sync_on_compute=False)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    try:
        distance = float(metric.compute())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # covariances that are not finite
        distance = math.nan
    return _finite(distance, "the Fréchet distance")


def kernel_distance(
    real: Tensor,
    fake: Tensor,
    *,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """Unbiased MMD^2 with the kernel (x.y / D + 1)^3: its mean and standard deviation over random
    subsets of features (N, D) and (M, D).

    Raises EvaluationError when a side has fewer samples than a subset, and where features or
    distance are not finite.
    """
    _check(real, fake, at_least=subset_size, what=f"KID with subsets of {subset_size}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")
        from torchmetrics.image.kid import KernelInceptionDistance

        metric = KernelInceptionDistance(
            feature=_Identity(real.shape[1]),
            subsets=subsets,
            subset_size=subset_size,
            sync_on_compute=False,
        )
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    # torchmetrics draws the subsets from the global generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return _finite(float(mean), "KID"), float(deviation)


class _Identity(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features  # the name by which torchmetrics asks

    def forward(self, x: Tensor) -> Tensor:
        return x


def _check(real: Tensor, fake: Tensor, *, at_least: int, what: str) -> None:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise EvaluationError(
            f"{what} needs features (N, D) and (M, D), not {tuple(real.shape)}, {tuple(fake.shape)}"
        )
    for side, features in (("real", real), ("generated", fake)):
        if len(features) < at_least:
            raise EvaluationError(
                f"{what} needs at least {at_least} {side} samples and got {len(features)}: "
                "evaluate with more (genus evaluate RUN --n 2000)"
            )
        bad = int((~features.isfinite()).any(dim=1).sum())
        if bad:
            raise EvaluationError(
                f"{what}: the features of {bad} of {len(features)} {side} samples are not finite: "
                "look at these samples, or extract their features in float32"
            )


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise EvaluationError(
            f"{what} of these features is {value} although they are finite: they are too large, or "
            "their covariance is degenerate. Look at the samples, or measure with more"
        )
    return value
