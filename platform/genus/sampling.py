"""Drawing many samples from a trained objective, and the picture of a run in progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genus.data.pixels import to_levels
from genus.draws import Draws, seed_of
from genus.errors import EvaluationError
from genus.objectives.phase import CanSample, SampleOptions
from genus.run import Run

POINTS = 4096
"""Of a scatter plot."""


def sample_batches(
    objective: CanSample,
    networks: Mapping[str, nn.Module],
    indices: Sequence[int],
    labels: Sequence[int] | None,
    *,
    seed: int,
    device: torch.device | str,
    options: SampleOptions | None = None,
    batch: int = 100,
) -> Iterator[Tensor]:
    """uint8 images (<= batch, C, H, W); float32 vectors (<= batch, D) or int64 tokens
    (<= batch, T) as they are drawn.

    Sample i depends on (seed, i) and its label only.
    """
    with evaluating(networks), torch.no_grad():
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            draws = Draws.of([seed_of(seed, "sample", i) for i in part], device=device)
            label = None
            if labels is not None:
                label = torch.tensor(labels[start : start + batch], device=device)
            drawn = objective.sample(networks, draws, label, options or SampleOptions())
            if drawn.ndim == 4:
                drawn = to_levels(drawn)
            yield drawn.float() if drawn.is_floating_point() else drawn


@contextmanager
def evaluating(networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Without dropout; afterwards each network is as it was."""
    modes = {name: network.training for name, network in networks.items()}
    for network in networks.values():
        network.eval()
    try:
        yield
    finally:
        for name, network in networks.items():
            network.train(modes[name])


def grid_labels(count: int, classes: int) -> list[int] | None:
    """Labels of a grid whose columns are the classes: 0, 1, ..., classes - 1, 0, 1, ..."""
    return [i % classes for i in range(count)] if classes else None


def grid_columns(classes: int) -> int:
    """Columns of a grid: one a class up to 16, eight without classes."""
    return min(classes, 16) or 8


class SampleGrid:
    """An evaluation for the loop: samples drawn with the averaged weights, shared by the ranks.

    Images become a grid, vectors a scatter plot of their first two dimensions.
    """

    name = "samples"

    def __init__(
        self,
        run: Run,
        networks: Mapping[str, nn.Module],
        objective: CanSample,
        *,
        every: int,
        classes: int,
        rows: int = 8,
        dims: int = 0,
    ) -> None:
        """``rows`` rows of one column a class (of eight columns without classes). ``dims`` of
        vectors (0: images): then there are at least POINTS samples."""
        self.every = every
        self._run, self._networks, self._objective = run, networks, objective
        self._classes, self._dims = classes, dims
        self._columns = grid_columns(classes)
        least = max(run.world.size, POINTS if dims else 1)  # every rank draws at least one
        rows = max(rows, -(-least // self._columns))
        self._count = rows * self._columns
        objective.plan(SampleOptions())  # a bad setting is found now, not at the first grid

    def run(self, samples: int) -> Mapping[str, Any]:
        """Draw samples with the same seeds every time; returns the picture's path."""
        from genus.evaluate.grid import save_grid
        from genus.evaluate.scatter import save_scatter

        world = self._run.world
        mine = range(world.rank, self._count, world.size)
        labels = grid_labels(self._count, self._columns) if self._classes else None
        mine_labels = [labels[i] for i in mine] if labels is not None else None
        parts = sample_batches(
            self._objective,
            self._networks,
            list(mine),
            mine_labels,
            seed=self._run.seed,
            device=world.device,
            batch=1000 if self._dims else 100,
        )
        drawn = torch.cat(list(parts))
        everybody = world.gather_rows(drawn)
        path = f"samples/{samples:012d}.png"
        if everybody is not None:
            order = [i for rank in range(world.size) for i in range(rank, self._count, world.size)]
            ordered = torch.empty_like(everybody)
            ordered[torch.tensor(order)] = everybody
            try:
                if everybody.ndim == 4:
                    save_grid(ordered, self._run.folder / path, self._columns)
                else:
                    save_scatter(ordered, self._run.folder / path)
            except (OSError, EvaluationError) as error:  # a picture is no reason to end a run
                self._run.say(f"no picture of samples: {error}")
                return {"error": str(error)}
        return {"image": path}
