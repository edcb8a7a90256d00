"""The stream of batches: endless, exact and elastic.

What comes next follows from (seed, position) alone, so the state is a few integers, the same on all
ranks, and a run resumed with another number of processes, workers or micro-batches sees exactly the
samples and random numbers that it would have seen.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from genus.data.aspect import AspectBuckets
from genus.data.batch import Batch
from genus.data.loading import ToDevice, load, worker_count
from genus.data.opening import DataConfig, Opened, opened, read_info
from genus.data.order import Ids, lanes_for, own_lanes
from genus.data.quarantine import Entry, Quarantine
from genus.data.source import Loaded, Request
from genus.draws import Draws, seed_of
from genus.errors import DataError
from genus.state import State, scalar

__all__ = ["DataConfig", "Stream", "first_batch", "iterate_once", "open_stream", "read_info"]

PLANNED = 64
"""Batches whose ids are worked out at once."""


class Stream:
    """Endless batches of one rank; ``open_stream`` makes it."""

    def __init__(
        self, data: Opened, config: DataConfig, batch: int, lanes: range, device: torch.device
    ) -> None:
        self.info = data.info
        self.position = 0
        """Samples that the run has consumed, on all ranks together."""
        self.batch = batch
        """Samples of a global batch."""
        self.ledger: Callable[[Entry], object] = lambda entry: None
        """Told of each bad sample that this rank meets."""
        self.quarantine = Quarantine(data.source, config.bad_samples)
        self._source, self._order, self._seed = data.source, data.order, data.seed
        self._config, self._lanes, self._device = config, lanes, device
        self._share = batch // data.order.lanes  # samples of a lane in a batch
        self._whole: Loaded | None = None  # the last batch without a fault
        self._buckets: AspectBuckets | None = None
        if data.buckets:
            self._buckets = AspectBuckets(
                data.order, data.shapes, batch=batch, sizes=data.buckets, seed=data.seed
            )

    def __iter__(self) -> Iterator[Batch]:
        """Batches from ``position`` on, which moves by a global batch as each is handed out."""
        expected = self.position
        workers = worker_count(self._config.workers, self._device)
        to_device = ToDevice(self._device)
        planned: deque[Ids] = deque()  # workers run ahead: ids before any substitution
        for loaded in load(self._source, self._requests(planned), workers, self._device):
            if self.position != expected:
                raise RuntimeError("the stream was moved while it ran: call iter(stream) again")
            loaded = self._mended(loaded, planned.popleft())
            fields = to_device(loaded)
            seeds = _LaneSeeds(self._seed, expected, self._lanes)
            ids = torch.from_numpy(loaded.request.ids)
            batch = Batch(fields, ids, expected, Draws.of(seeds, self._share, self._device))
            expected += self.batch
            self.position = expected
            yield _flipped(batch) if self._config.flip else batch

    # ---- what comes next -------------------------------------------------------------------------

    def _requests(self, planned: deque[Ids]) -> Iterator[Request]:
        position = self.position
        while True:
            for ids, size in self._plan(position):
                planned.append(ids)
                ids = self.quarantine.replaced(ids, self._order, self._where(position))
                yield Request(ids, size)
                position += self.batch

    def _plan(self, position: int) -> Iterator[tuple[Ids, tuple[int, int] | None]]:
        """Ids of this rank's rows, and their shape, for some batches from ``position`` on."""
        if self._buckets is not None:
            rows = slice(self._lanes.start * self._share, self._lanes.stop * self._share)
            steps = [(ids[rows], size) for ids, size in self._buckets.rest(position // self.batch)]
            if self._source.is_remote:
                near = np.concatenate([ids for ids, _ in steps])
                self._source.ahead(np.unique(self.quarantine.shards_of(near)).tolist())
            yield from steps
            return
        start = position // self._order.lanes
        stop = start + PLANNED * self._share
        if self._source.is_remote:
            ahead = (start, stop), (stop, stop + self._config.window)
            wanted = [self._order.shards(lane, *part) for part in ahead for lane in self._lanes]
            self._source.ahead(dict.fromkeys(np.concatenate(wanted).tolist()))
        lanes = np.stack([self._order.ids(lane, start, stop) for lane in self._lanes])
        for ids in lanes.reshape(len(lanes), PLANNED, self._share).transpose(1, 0, 2):
            yield ids.reshape(-1), None

    def _where(self, position: int) -> Callable[[int], tuple[int, int]]:
        """Row of the batch at ``position`` -> its lane and position in the lane."""
        start = position // self._order.lanes
        return lambda row: (self._lanes[row // self._share], start + row % self._share)

    # ---- bad data --------------------------------------------------------------------------------

    def _mended(self, loaded: Loaded, planned: Ids) -> Loaded:
        """The batch with others in the place of bad samples."""
        while True:
            for row, error in loaded.faults.items():
                bad = int(loaded.request.ids[row])
                entry = self.quarantine.find(bad, error, self.position)
                if entry is not None:
                    self.ledger(entry)
            if self.quarantine.exhausted:
                return self._borrowed(loaded)
            ids = self.quarantine.replaced(planned, self._order, self._where(self.position))
            read = loaded.request.ids
            if not loaded.faults and (ids is read or np.array_equal(ids, read)):
                self._whole = loaded
                return loaded
            loaded = self._source.load(replace(loaded.request, ids=ids))

    def _borrowed(self, loaded: Loaded) -> Loaded:
        """The run has to end. Alone it does at once; among others this rank must not leave them
        waiting, so it goes on with what it has until all have agreed to end."""
        if len(self._lanes) == self._order.lanes:
            self.quarantine.check()
        while loaded.faults:
            good = [row for row in range(len(loaded.request.ids)) if row not in loaded.faults]
            if not good and self._whole is not None:
                return self._whole
            if not good:  # at the very first batch
                self.quarantine.check()
            ids = loaded.request.ids.copy()
            ids[list(loaded.faults)] = ids[good[0]]
            loaded = self._source.load(replace(loaded.request, ids=ids))
        return loaded

    def settle(self, gather: Callable[[Any], list[Any]]) -> Sequence[Entry]:
        """Agree with all ranks on the bad samples; a collective call. Returns the new ones.

        ``gather`` gives every rank's value to all. DataError where they are too many.
        """
        return self.quarantine.settle(gather)

    # ---- state -----------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """A few integers and the bad samples; all ranks have the same (after ``settle``)."""
        return {"position": self.position, **self._identity(), "bad": self.quarantine.to_text()}

    def _identity(self) -> State:
        same: State = {
            "seed": self._seed,
            "lanes": self._order.lanes,
            "window": self._config.window,
            "fingerprint": self.info.fingerprint,
        }
        if self._buckets is not None:
            same |= {"batch": self.batch, "buckets": str(self._buckets.sizes)}
        return same

    def load_state_dict(self, state: State) -> None:
        """Go to a saved position. DataError where another order or other data would follow."""
        remedies = {
            "buckets": "set data.bucket_step and data.size as they were",
            "fingerprint": f"data.url={self.info.url} is other data than the run began with",
            "lanes": f"set data.lanes={state['lanes']} and a train.batch that is a multiple of it",
            "window": f"set data.window={state['window']}",
            "seed": f"set run.seed={state['seed']}",
            "batch": f"set train.batch={state.get('batch')}: buckets are planned for one batch",
        }
        own = self._identity()
        for name, remedy in remedies.items():
            then, now = (side.get(name, "none") for side in (state, own))
            if then != now:
                raise DataError(
                    f"can't go on with this run's data: its {name} is {then}, here it is {now}; "
                    f"{remedy}, or begin a new run"
                )
        self.position = int(scalar(state["position"]))
        self.quarantine.from_text(str(state.get("bad", '{"samples": [], "shards": []}')))
        if self.quarantine.exhausted:
            raise DataError(
                f"this run has put up with {self.quarantine.count} bad samples: set "
                f"data.bad_samples to that or more, not {self.quarantine.budget}"
            )


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
    return Stream(opened(config, lanes, seed), config, batch, own, torch.device(device))


def first_batch(
    config: DataConfig, count: int, seed: int, device: torch.device | str = "cpu"
) -> Batch:
    """``count`` samples of the shuffled data, the same on every rank: for what begins from data."""
    config = replace(config, workers=0, lanes=0)
    return next(iter(open_stream(config, batch=count, seed=seed, device=device)))


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
    batch nor world. DataError at the first bad sample: a figure over other data would mislead.
    """
    where = torch.device(device)
    source = opened(config, 1, seed).source
    total = int(source.sizes.sum())
    count = total if limit is None else min(limit, total)
    if batch < world or count < world:
        raise DataError(f"{count} samples in batches of {batch} can't be shared by {world} ranks")
    start, stop = rank * count // world, (rank + 1) * count // world
    steps = math.ceil(count // world / (batch // world))
    cuts = [start + i * (stop - start) // steps for i in range(steps + 1)]
    parts = [Request(np.arange(a, b, dtype=np.int64)) for a, b in itertools.pairwise(cuts)]
    to_device = ToDevice(where)
    for loaded in load(source, parts, worker_count(config.workers, where), where):
        for error in loaded.faults.values():
            raise error
        ids = loaded.request.ids
        draws = Draws.of([seed_of(seed, "once", number) for number in ids.tolist()], 1, where)
        yield Batch(to_device(loaded), torch.from_numpy(ids), int(ids[0]), draws)


class _LaneSeeds(Sequence[int]):
    """Seeds of a batch's lanes, worked out when they are asked for."""

    def __init__(self, seed: int, position: int, lanes: range) -> None:
        self._key, self._lanes = (seed, position), lanes

    def __len__(self) -> int:
        return len(self._lanes)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...

    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return _LaneSeeds(*self._key, self._lanes[index])
        return seed_of(*self._key, self._lanes[index])


def _flipped(batch: Batch) -> Batch:
    """Each image mirrored or not, by the batch's own draws."""
    mirror = batch.draws.scoped("augment").uniform("flip") < 0.5
    fields = {name: _flip(value, mirror) for name, value in batch.fields.items()}
    return Batch(fields, batch.ids, batch.position, batch.draws)


def _flip(value: Tensor, mirror: Tensor) -> Tensor:
    is_image = value.ndim == 4 and value.dtype == torch.uint8
    return torch.where(mirror[:, None, None, None], value.flip(-1), value) if is_image else value
