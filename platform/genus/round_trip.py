"""Whether an exact code still is one: decode(encode(x)) against x while a model trains.

In exact arithmetic every flow is invertible; in float32 a flow whose scales grow is not, and its
samples and likelihoods are then worth nothing (Behrmann et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.data.stream import DataConfig, iterate_once
from genus.objectives.phase import CanEncode
from genus.run import Run
from genus.sampling import evaluating

LARGEST = 0.5
"""Of an error that leaves every pixel level as it was."""


def round_trip(objective: CanEncode, networks: Mapping[str, nn.Module], batch: Batch) -> Tensor:
    """|decode(encode(x)) - x|, (B, ...): in pixel levels, not rounded, of uint8 images; of vectors
    in the data's unit."""
    label = batch.fields.get("label")
    with evaluating(networks), torch.no_grad():
        back = objective.decode(networks, objective.encode(networks, batch), label)
    if "image" not in batch:
        return (back - batch["vector"]).abs()
    return ((back.double() + 1) * 127.5 - batch["image"]).abs()


class RoundTrip:
    """An evaluation for the loop: the largest error over some rows of the data, and a warning."""

    name = "round trip"

    def __init__(
        self,
        run: Run,
        networks: Mapping[str, nn.Module],
        objective: CanEncode,
        *,
        every: int,
        data: DataConfig,
        rows: int = 32,
    ) -> None:
        self.every = every
        self._run, self._networks, self._objective = run, networks, objective
        self._data, self._rows = replace(data, workers=0), rows
        self._batch: Batch | None = None

    def run(self, samples: int) -> Mapping[str, Any]:
        """All ranks do the same: there is nothing to exchange."""
        if self._batch is None:
            device = self._run.world.device
            rows = iterate_once(self._data, self._rows, limit=self._rows, device=device)
            self._batch = next(iter(rows))
        errors = round_trip(self._objective, self._networks, self._batch)
        if "image" in self._batch:
            limit = errors.new_tensor(LARGEST)
        else:  # a column has its own scale: four digits are left of float32's seven
            limit = 1e-3 * self._batch["vector"].abs().amax(0)
        drifts = not bool((errors <= limit).all())  # NaN drifts too
        largest = float(errors.max())
        self._run.metrics.write({"samples": samples, "round_trip": largest})
        if drifts:
            self._run.say(
                "warning: the flow's inverse drifts: decode(encode(x)) is off by up to "
                f"{largest:.3g}; half a pixel level, or a thousandth of a column's range, is the "
                "most that is sound. Samples and likelihood lose their meaning: try a lower "
                "optim.lr"
            )
        return {"largest": largest, "drifts": drifts}
