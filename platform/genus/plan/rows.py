"""Batches to plan with: the run's first ones where the data are here, made-up ones elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from genus.data.batch import Batch
from genus.data.manifest import DataInfo
from genus.data.stream import open_stream
from genus.draws import Draws
from genus.plan.job import Job

LOOKED_AT, TRACED = 100, 3
_LARGE = ("image", "frames", "vector", "array")
"""Fields whose values decide nothing about shapes."""


def batches(job: Job, rows: int) -> Iterator[Batch]:
    """The batches that rank 0 would see, real tensors, of ``rows`` or more; endless."""
    if not job.has_data or rows > job.share:
        yield from itertools.repeat(_made_up(job.info, rows))
    data = replace(job.config.data, workers=0)
    yield from open_stream(
        data, batch=job.config.train.batch, seed=job.config.run.seed, world=job.processes
    )


def samples_of(job: Job, rows: int) -> list[Batch]:
    """Batches to trace: one where all are of one shape; else the first one, and of the first
    hundred the ones with the most to read, which decide the memory."""
    found = batches(job, rows)
    first = next(found)
    if not job.info.target_length:
        return [first]
    seen = sorted(itertools.islice(found, LOOKED_AT - 1), key=lambda b: _elements(b, rows))
    return [first, *seen[-TRACED:]]


def _elements(batch: Batch, rows: int) -> int:
    """Tokens and frames that are no padding, in the first micro-batch."""
    total = 0
    for name, value in first_rows(batch, rows).fields.items():
        if name.endswith("_length"):
            total += int(value.sum())
        elif name in ("source", "target"):
            total += int((value >= 0).sum())
    return total


def first_rows(batch: Batch, count: int) -> Batch:
    """The first micro-batch of ``count`` rows."""
    return next(batch.micro_batches(count))


@dataclass(frozen=True)
class FakeDraws(Draws):
    """Random numbers without memory."""

    mode: FakeTensorMode | None = None

    def _fill(self, kind: str, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        assert self.mode is not None
        with self.mode:
            return torch.empty(len(self), *shape, dtype=dtype)


def faked(batch: Batch, mode: FakeTensorMode) -> Batch:
    """The batch with large fields and random numbers fake, what tells lengths and classes real."""
    untyped: Any = mode
    fields = {
        name: untyped.from_tensor(value) if name in _LARGE else value
        for name, value in batch.fields.items()
    }
    draws = FakeDraws(
        (0,), len(batch), torch.device("cpu"), 0, len(batch), batch.draws.scope, mode=mode
    )
    return replace(batch, fields=fields, draws=draws)


def _made_up(info: DataInfo, rows: int) -> Batch:
    """A batch of the longest possible rows."""
    makers: Mapping[str, Callable[[], Tensor]] = {
        "image": lambda: torch.zeros(rows, *info.shape, dtype=torch.uint8),
        "label": lambda: torch.zeros(rows, dtype=torch.int64),
        "vector": lambda: torch.randn(rows, info.dims),
        "tokens": lambda: torch.zeros(rows, info.length + 1, dtype=torch.int32),
        "document": lambda: torch.zeros(rows, info.length + 1, dtype=torch.int32),
    }
    fields = {name: make() for name, make in makers.items() if name in info.fields}
    return Batch(fields, torch.arange(rows), 0, Draws.of(range(rows)))
