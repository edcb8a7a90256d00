"""How many of a distribution's known modes a model's samples cover, and how evenly.

As GANs' tests for lost modes have it (Srivastava et al. 2017, VEEGAN; Lin et al. 2018, PacGAN), of
N samples and K modes:

``modes covered``       modes that at least one sample of high quality belongs to, 0..K
``high-quality share``  of all samples: of Gaussian modes those within 3 standard deviations of the
                        nearest centre. Exact samples of the plane have 1 - exp(-9/2) = 0.989.
``mode KL``             sum_k p_k ln(K p_k) in nats, p_k the share of mode k among the samples of
                        high quality: KL(generated || equal parts), 0..ln K

Sampling error is in the last: N exact samples have about (K - 1) / 2N. So compare figures of
equal N, with those of the data beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from genus.data import densities
from genus.errors import EvaluationError
from genus.evaluate.passport import Figure, Passport

REACH = 3.0
"""Standard deviations from a centre up to which a sample is of high quality."""


@dataclass(frozen=True)
class ModeCounts:
    """To which modes samples belong."""

    counts: Tensor
    """(K,) int64: samples of high quality of each mode."""
    samples: int
    """All of them."""

    def __add__(self, other: ModeCounts) -> ModeCounts:
        return ModeCounts(self.counts + other.counts, self.samples + other.samples)

    @property
    def covered(self) -> int:
        return int((self.counts > 0).sum())

    @property
    def high_quality(self) -> int:
        return int(self.counts.sum())

    @property
    def kl(self) -> float:
        """nats; nan where no sample is of high quality."""
        if not self.high_quality:
            return math.nan
        share = self.counts[self.counts > 0].double() / self.high_quality
        return float((share * (share * len(self.counts)).log()).sum())


class ModeCounter(Protocol):
    """Tells to which mode a sample belongs."""

    samples: int
    """How many are counted where nobody says how many."""
    judges_quality: bool
    """Whether samples can belong to no mode."""

    def __call__(self, samples: Tensor) -> ModeCounts:
        """Of a batch. EvaluationError where it is none of such samples."""

    def passport(self) -> dict[str, Any]:
        """What a figure's passport says of it."""


class GaussianModes:
    """Of vectors (B, D): a sample within REACH standard deviations of the nearest centre is that
    mode's."""

    samples = 10_000
    judges_quality = True

    def __init__(self, modes: densities.Modes) -> None:
        self._centres = torch.from_numpy(np.asarray(modes.centres, np.float64))
        self._spread = modes.spread

    def __call__(self, samples: Tensor) -> ModeCounts:
        if samples.ndim != 2 or samples.shape[1] != self._centres.shape[1]:
            dims = self._centres.shape[1]
            raise EvaluationError(f"modes of (N, {dims}) were asked of {tuple(samples.shape)}")
        x = samples.double().cpu()
        # not by products, as torch.cdist may: they lose digits where the points are far out
        squares = (x[:, None] - self._centres).square().sum(2)
        least, nearest = squares.nan_to_num(nan=math.inf).min(1)
        near = nearest[least <= (REACH * self._spread) ** 2]
        counts = torch.bincount(near, minlength=len(self._centres))
        return ModeCounts(counts, len(samples))

    def passport(self) -> dict[str, Any]:
        words = (
            f"{len(self._centres)} Gaussians of standard deviation {self._spread:.4g}; of high "
            f"quality are samples within {REACH:g} of them of the nearest centre"
        )
        return {"modes": words}


def mode_figures(
    found: ModeCounts, counter: ModeCounter, passport: Passport, of: str = ""
) -> dict[str, Figure]:
    """The figures; ``of`` ends their names ("of the data"). Without a sample of high quality there
    is no KL, which is then left out."""
    passport = replace(passport, samples=found.samples, **counter.passport())
    if not found.samples:
        raise EvaluationError("modes of no samples: ask for at least one")
    figures = {"modes covered": Figure(found.covered, None, f"of {len(found.counts)}", passport)}
    if counter.judges_quality:
        share = found.high_quality / found.samples
        error = math.sqrt(share * (1 - share) / found.samples)
        figures["high-quality share"] = Figure(share, error, "", passport, "standard error")
    if found.high_quality:
        figures["mode KL"] = Figure(found.kl, None, "nats", passport)
    return {f"{name} {of}".rstrip(): figure for name, figure in figures.items()}
