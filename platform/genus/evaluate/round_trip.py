"""How exactly a model with an exact latent code gives its data back, as figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from genus.errors import EvaluationError
from genus.evaluate.passport import Figure, Passport


def round_trip_figures(
    errors: Iterable[Tensor], passport: Passport, *, levels: bool
) -> dict[str, Figure]:
    """From |decode(encode(x)) - x|, batches (B, ...), the largest one: ``round trip``.

    ``levels``: they are in pixel levels, not rounded, and ``pixels off`` is the share of pixels
    that are wrong after rounding, by more than half a level. Samples with an error that is not
    finite are left out of the largest one, and their share is a figure of its own, ``samples
    lost``. EvaluationError where all are lost or there are none.
    """
    largest, off, pixels, lost, count = 0.0, 0, 0, 0, 0
    for error in errors:
        error = error.flatten(1)
        off += int((~(error <= 0.5)).sum())  # NaN is off, too
        pixels += error.numel()
        sound = error.isfinite().all(1)
        lost, count = lost + int((~sound).sum()), count + len(error)
        if sound.any():
            largest = max(largest, float(error[sound].max()))
    if lost == count:
        remedy = ": --double may help" if count else ""
        raise EvaluationError(f"none of {count} samples survived decode(encode(x)){remedy}")
    passport = replace(passport, samples=count)
    figures = {"round trip": Figure(largest, None, "levels" if levels else "", passport)}
    if levels:
        figures["pixels off"] = Figure(off / pixels, None, "", passport)
    if lost:
        figures["samples lost"] = Figure(lost / count, None, "", passport)
    return figures
