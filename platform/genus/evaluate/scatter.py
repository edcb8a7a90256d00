"""Vectors as a picture of points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from genus.atomic import replacing
from genus.errors import EvaluationError

DENSE = 20_000
"""More points than this are drawn as counts in bins: single ones would hide each other."""
BINS = 200
TAIL = 0.005
"""Share of the points at each end of an axis that may lie far outside the picture: early in a run a
few far ones would leave nothing to see. The title counts those."""


def save_scatter(vectors: Tensor, path: Path) -> None:
    """Write the first two dimensions of ``vectors`` (N, D) as PNG, atomically; D = 1: a histogram.

    Rows that aren't finite or lie far outside are not drawn; the title says how many. The folder is
    made. EvaluationError where there is nothing to draw.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise EvaluationError(f"a scatter plot needs vectors (N, D), not {tuple(vectors.shape)}")
    points: NDArray[np.float64] = vectors[:, :2].detach().double().cpu().numpy()
    finite = points[np.isfinite(points).all(1)]
    if not len(finite):
        raise EvaluationError(f"none of {len(points)} vectors is finite: there is nothing to draw")
    low, high = _box(finite)
    inside = ((low <= finite) & (finite <= high)).all(1)
    lost = {"not finite": len(points) - len(finite), "outside": len(finite) - int(inside.sum())}
    title = [f"{len(points):,} samples", *(f"{n:,} {why}" for why, n in lost.items() if n)]
    _draw(finite[inside], ", ".join(title), vectors.shape[1], path)


def _box(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends (D,) of each axis: what is drawn without the tails, and as much again on each side."""
    low, high = np.quantile(points, [TAIL, 1 - TAIL], axis=0)
    margin = np.maximum(high - low, 1e-6 * (1 + abs(low)))
    return low - margin, high + margin


def _draw(points: NDArray[np.float64], title: str, dims: int, path: Path) -> None:
    # without pyplot: no global state, no display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panel = figure.subplots()
    if dims == 1:
        panel.hist(points[:, 0], bins=min(BINS, 10 + len(points) // 20))
    elif len(points) > DENSE:
        panel.hist2d(points[:, 0], points[:, 1], bins=BINS)
    else:
        panel.scatter(points[:, 0], points[:, 1], s=3, alpha=0.4, linewidths=0)
    panel.set_title(title)
    panel.set_xlabel("number 0")
    panel.set_ylabel("samples" if dims == 1 else "number 1")
    if dims == 2:  # else the numbers may be of different units
        panel.set_aspect("equal", adjustable="datalim")
    with replacing(path) as temporary:
        canvas.print_png(temporary)
