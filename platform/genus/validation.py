"""Likelihood of held-out data while a model trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genus.data.batch import Batch
from genus.data.datasets import BUILT_IN
from genus.data.fitting import check_fits
from genus.data.manifest import DataInfo
from genus.data.opening import read_info
from genus.data.stream import DataConfig, iterate_once
from genus.evaluate.measure import total, weights
from genus.objectives.phase import CanLogDensity
from genus.parallel import World
from genus.run import Run
from genus.sampling import evaluating

BATCH = 100
"""Rows at once, on all ranks together."""


def held_out(data: DataConfig) -> DataConfig | None:
    """The test split beside a run's data, as evaluations read it; None where there is none."""
    test = f"{data.url}/test"
    if data.url not in BUILT_IN and not (Path(test) / "manifest.json").exists():
        return None
    return replace(data, url=test, also=(), weights=(), flip=False, bucket_step=0, workers=0)


def own_part(data: DataConfig, rows: int, world: World) -> Iterator[Batch]:
    """This rank's part of the first ``rows`` samples as they are stored."""
    return iterate_once(
        data,
        max(BATCH, world.size),
        limit=rows,
        rank=world.rank,
        world=world.size,
        device=world.device,
    )


class Validation:
    """An evaluation for the loop: the negative log density of the first ``rows`` held-out samples
    as they are stored, the same ones every time, in the unit of ``LogDensity``."""

    name = "validation"

    def __init__(
        self,
        run: Run,
        networks: Mapping[str, nn.Module],
        objective: CanLogDensity,
        *,
        every: int,
        data: DataConfig,
        info: DataInfo,
        rows: int = 500,
    ) -> None:
        """Never due where ``data`` has no test split, which the log says. DataError where it has
        one that the model, which is sized by ``info``, can't read."""
        self._run, self._networks, self._objective = run, networks, objective
        self._data, self._rows = held_out(data), rows
        self.every = every if self._data else 0
        if every and self._data is None:
            run.say(f"no validation: {data.url} has no test split beside it (or is remote)")
        elif every and self._data is not None:
            check_fits(info, read_info(self._data))

    def run(self, samples: int) -> Mapping[str, Any]:
        """Each rank scores its part."""
        assert self._data is not None
        world = self._run.world
        whole, weight, count, unit = 0.0, 0.0, 0, ""
        batches = own_part(self._data, self._rows, world)
        with evaluating(self._networks), torch.no_grad():
            for batch in batches:
                density = self._objective.log_density(self._networks, batch)
                sums, parts, unit = total(density), weights(density), density.unit
                whole, weight = whole + float(sums.sum()), weight + float(parts.sum())
                count += len(parts)
        ranks = world.gather((whole, weight, count))
        value = sum(rank[0] for rank in ranks) / sum(rank[1] for rank in ranks)
        self._run.metrics.write({"samples": samples, "validation": value})
        self._run.say(f"{samples:>10,}  validation {value:.4f} {unit}")
        return {"value": value, "unit": unit, "rows": sum(rank[2] for rank in ranks)}
