"""The 1,000 modes of images whose three channels are digits, counted by a classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genus.data import densities
from genus.data.built_in_stacked import MODES
from genus.errors import EvaluationError
from genus.evaluate.digits import SIDE, DigitClassifier, digit_classifier
from genus.evaluate.modes import GaussianModes, ModeCounter, ModeCounts


class StackedDigitModes:
    """Of uint8 images (B, 3, H, W): the mode is the digits that the classifier sees in red, green
    and blue. Every image is some mode's, however bad it is."""

    samples = 25_600
    judges_quality = False

    def __init__(self, classifier: DigitClassifier, border: int = 0) -> None:
        """``border`` pixels around the digits are cut; what is left is resized to 28 pixels."""
        self._classifier, self._border = classifier, border

    def __call__(self, samples: Tensor) -> ModeCounts:
        if samples.dtype != torch.uint8 or samples.ndim != 4 or samples.shape[1] != 3:
            raise EvaluationError(
                f"stacked digits are uint8 images (B, 3, H, W), not {samples.dtype} "
                f"{tuple(samples.shape)}"
            )
        b = self._border
        x = samples[:, :, b : samples.shape[2] - b, b : samples.shape[3] - b]
        if x.shape[2:] != (SIDE, SIDE):
            x = F.interpolate(x.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
            x = x.round().clamp(0, 255).to(torch.uint8)
        digits = self._classifier(x.reshape(-1, 1, SIDE, SIDE)).argmax(1).reshape(-1, 3)
        modes = digits @ torch.tensor([100, 10, 1])
        return ModeCounts(torch.bincount(modes, minlength=1000), len(samples))

    def passport(self) -> dict[str, Any]:
        share, _ = self._classifier.accuracy
        cut = f"border of {self._border} px cut; " if self._border else ""
        return {
            "modes": "1000 triples of digits in red, green and blue; every sample is one's",
            "extractor": f"digit classifier, {100 * share:.1f} % of "
            f"{self._classifier.tested} test digits right",
            "extractor_sha256": self._classifier.sha256,
            "preprocessing": f"{cut}each channel at {SIDE}x{SIDE}",
        }


def mode_counter(modes: str, *, border: int, device: torch.device | str) -> ModeCounter:
    """What counts the modes of a data set that says ``modes`` of them in its manifest.

    EvaluationError where that is not known here; DataError where the classifier can't be trained.
    """
    if modes == MODES:
        return StackedDigitModes(digit_classifier(device), border)
    known = densities.modes(modes) if modes in densities.NAMES else None
    if known is None:
        raise EvaluationError(f"the data set's manifest has modes by '{modes}', not known here")
    return GaussianModes(known)
