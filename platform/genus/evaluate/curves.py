"""A run's curves as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from genus.atomic import replacing
from genus.errors import EvaluationError


def save_curves(rows: Sequence[Mapping[str, object]], path: Path, keys: Sequence[str]) -> None:
    """Write one panel a key over ``samples`` (as PNG, atomically): raw points pale, smoothed dark.

    ``rows`` are the run's metrics (``genus.tracking.read_metrics``); a row without the key, or with
    a value that is no finite number, is passed over. Raises EvaluationError when nothing is left.
    """
    curves = {key: points for key in keys if (points := _points(rows, key))}
    if not curves:
        raise EvaluationError(f"no row has any of {', '.join(keys)}: there are no curves to draw")
    # without pyplot: no global state, no display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3 * len(curves)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(curves), squeeze=False, sharex=True)[:, 0]
    for panel, (key, points) in zip(panels, curves.items(), strict=True):
        samples = [x for x, _ in points]
        values = [y for _, y in points]
        panel.plot(samples, values, color="tab:blue", alpha=0.3, linewidth=1)
        panel.plot(samples, smooth(values), color="tab:blue", linewidth=1.5)
        panel.set_ylabel(key)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("samples")
    with replacing(path) as temporary:
        canvas.print_png(temporary)


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential average over about a thirtieth of the curve, unbiased at its beginning."""
    keep = 1 - 1 / max(1, len(values) / 30)
    total = weight = 0.0
    out = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight)
    return out


def _points(rows: Sequence[Mapping[str, object]], key: str) -> list[tuple[float, float]]:
    points = [(row.get("samples"), row.get(key)) for row in rows]
    return [
        (x, y)
        for x, y in points
        if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(y)
    ]
