"""The stream of batches: endless, exact and elastic.

What comes next follows from (seed, position) alone, so the state is a few integers, the same on all
ranks, and a run resumed with another number of processes, workers or micro-batches sees exactly the
samples and random numbers that it would have seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genus.data import datasets
from genus.data.batch import Batch
from genus.data.decode import Fit
from genus.data.loading import Samples, load, worker_count
from genus.data.manifest import DataInfo, Manifest, info_of
from genus.data.order import Ids, Order, lanes_for, own_lanes
from genus.data.reader import Reader
from genus.draws import Draws, seed_of
from genus.errors import DataError
from genus.state import State


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, and how they are served."""

    url: str = "fashion-mnist"
    """Built-in data set (fashion-mnist, fashion-mnist/test) or a folder by genus data pack."""
    size: int = 0
    """Side of the images in pixels; 0: as stored."""
    fit: Fit = "pad"
    """pad: centred with 0 around, or cropped, exact pixels; resize: antialiased Lanczos, centre."""
    flip: bool = False
    """Mirror each image left to right with probability 1/2."""
    lanes: int = 0
    """Lanes of the order, a multiple of any number of processes; 0: train.batch's largest divisor
    up to 64."""
    window: int = 16384
    """Samples of a lane that are shuffled together."""
    workers: int = -1
    """Reading processes a rank; -1: none on a CPU, else a core each, at most 8."""


class Stream:
    """Endless batches of one rank; ``open_stream`` makes it."""

    def __init__(
        self,
        samples: Samples,
        info: DataInfo,
        order: Order,
        config: DataConfig,
        batch: int,
        lanes: range,
        device: torch.device,
    ) -> None:
        self.info = info
        self.position = 0
        """Samples that the run has consumed, on all ranks together."""
        self.batch = batch
        """Samples of a global batch."""
        self._samples, self._order, self._config = samples, order, config
        self._lanes, self._device = lanes, device

    def __iter__(self) -> Iterator[Batch]:
        """Batches from ``position`` on, which moves by a global batch as each is handed out."""
        share = self.batch // self._order.lanes
        expected = self.position
        workers = worker_count(self._config.workers, self._device)
        for fields, ids in load(self._samples, self._ids_from(expected), workers, self._device):
            if self.position != expected:
                raise RuntimeError("the stream was moved while it ran: call iter(stream) again")
            seeds = [seed_of(self._order.seed, expected, lane) for lane in self._lanes]
            batch = Batch(fields, ids, expected, Draws.of(seeds, share, self._device))
            expected += self.batch
            self.position = expected
            yield _flipped(batch) if self._config.flip else batch

    def _ids_from(self, position: int) -> Iterator[Ids]:
        share = self.batch // self._order.lanes
        start = position // self._order.lanes
        while True:
            rows = [self._order.ids(lane, start, start + share) for lane in self._lanes]
            yield np.concatenate(rows)
            start += share

    def state_dict(self) -> State:
        """Where the run is and by which order; the same on all ranks."""
        return {
            "position": self.position,
            "seed": self._order.seed,
            "lanes": self._order.lanes,
            "window": self._order.window,
            "fingerprint": self.info.fingerprint,
        }

    def load_state_dict(self, state: State) -> None:
        """Go to a saved position. DataError where another order or other data would follow."""
        own = self.state_dict()
        remedies = {
            "fingerprint": f"data.url={self.info.url} is another data set than the run began with",
            "lanes": f"set data.lanes={state['lanes']} and a train.batch that is a multiple of it",
            "window": f"set data.window={state['window']}",
            "seed": f"set run.seed={state['seed']}",
        }
        for name, remedy in remedies.items():
            if own[name] != state[name]:
                raise DataError(
                    f"can't go on with this run's data: its {name} is {state[name]}, here it is "
                    f"{own[name]}; {remedy}, or begin a new run"
                )
        self.position = int(str(state["position"]))


def open_stream(
    config: DataConfig,
    *,
    batch: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
) -> Stream:
    """The stream of rank ``rank`` of ``world``; ``batch`` is global, in samples.

    A built-in data set is fetched if it isn't there. DataError (a ValueError) says what to change
    where batch, lanes and world don't fit or the data can't be read.
    """
    lanes = lanes_for(batch, config.lanes)
    own = own_lanes(lanes, rank, world)
    samples, info = _open(config)
    order = Order(samples.reader.sizes, lanes=lanes, window=config.window, seed=seed)
    return Stream(samples, info, order, config, batch, own, torch.device(device))


def read_info(config: DataConfig, *, fetch: bool = True) -> DataInfo:
    """What a stream of this config will serve, from the manifest alone.

    DataError where the data can't be read, or are not here and ``fetch`` is False.
    """
    return info_of(Manifest.load(datasets.resolve(config.url, fetch)), config.url, config.size)


def iterate_once(
    config: DataConfig,
    batch: int,
    *,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Iterator[Batch]:
    """The first ``limit`` samples (None: all) once, in stored order, unflipped: for evaluation.

    Each rank takes a consecutive part. ``batch`` is global: batches have at most batch/world rows
    (one more where ``limit`` can't be shared evenly), and all ranks have the same number of
    batches, none of them empty. Draws are keyed by (seed, sample id), so they depend on neither
    batch nor world.
    """
    samples, _ = _open(config)
    total = samples.reader.manifest.total
    count = total if limit is None else min(limit, total)
    if batch < world or count < world:
        raise DataError(f"{count} samples in batches of {batch} can't be shared by {world} ranks")
    start, stop = rank * count // world, (rank + 1) * count // world
    steps = math.ceil(count // world / (batch // world))
    cuts = [start + i * (stop - start) // steps for i in range(steps + 1)]
    parts = [np.arange(a, b, dtype=np.int64) for a, b in itertools.pairwise(cuts)]
    where = torch.device(device)
    for fields, ids in load(samples, parts, worker_count(config.workers, where), where):
        numbers = ids.tolist()
        draws = Draws.of([seed_of(seed, "once", number) for number in numbers], 1, where)
        yield Batch(fields, ids, numbers[0], draws)


def _open(config: DataConfig) -> tuple[Samples, DataInfo]:
    folder: Path = datasets.resolve(config.url)
    manifest = Manifest.load(folder)
    info = info_of(manifest, config.url, config.size)
    samples = Samples(Reader(folder, manifest), info.channels, info.resolution, config.fit)
    return samples, info


def _flipped(batch: Batch) -> Batch:
    """Each image mirrored or not, by the batch's own draws."""
    mirror = batch.draws.scoped("augment").uniform("flip") < 0.5
    fields = {name: _flip(value, mirror) for name, value in batch.fields.items()}
    return Batch(fields, batch.ids, batch.position, batch.draws)


def _flip(value: Tensor, mirror: Tensor) -> Tensor:
    is_image = value.ndim == 4 and value.dtype == torch.uint8
    return torch.where(mirror[:, None, None, None], value.flip(-1), value) if is_image else value
