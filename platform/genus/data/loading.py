"""Batches of samples by their ids, read and decoded here or in worker processes.

Workers hold no state: they get ids and give tensors, so how many there are changes nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genus.data.decode import Array, Fit, Kind, decode_member, field_of, fields_of, stack
from genus.data.order import Ids
from genus.data.reader import Reader
from genus.errors import DataError

Loaded = tuple[dict[str, Tensor], Tensor]
"""Fields and ids (B,) of a batch, on the CPU."""


@dataclass(frozen=True)
class Samples(Dataset[Loaded]):
    """A map-style data set for torch's DataLoader, whose unit is the batch."""

    reader: Reader
    channels: int
    resolution: int
    """Side of the images, pixels."""
    fit: Fit

    def __getitems__(self, ids: Ids) -> Loaded | DataError:
        """The samples ``ids`` (B,). An error is returned, not raised: DataLoader would wrap it in
        a worker's traceback."""
        try:
            return self._load(ids)
        except DataError as error:
            return error

    def _load(self, ids: Ids) -> Loaded:
        fields = fields_of(self.reader.manifest.fields)
        samples = [self._decode(sample, fields) for sample in ids.tolist()]
        try:
            stacked = {
                name: stack(kind, [sample[name] for sample in samples])
                for name, kind in fields.items()
            }
        except DataError as error:
            raise DataError(f"{self.reader.folder}: {error}") from None
        return stacked, torch.from_numpy(ids)

    def _decode(self, sample: int, fields: Mapping[str, Kind]) -> dict[str, Array]:
        values: dict[str, Array] = {}
        for extension, data in self.reader.read(sample).items():
            name, kind = field_of(extension) or ("", None)
            if kind is None:
                continue
            try:
                values[name] = decode_member(kind, data, self.channels, self.resolution, self.fit)
            except DataError as error:
                raise DataError(
                    f"{self.reader.place(sample)}, member .{extension}: {error}; mend it and pack "
                    "the data again"
                ) from None
        if len(values) < len(fields):
            missing = ", ".join(name for name in fields if name not in values)
            raise DataError(
                f"{self.reader.place(sample)} has no {missing}, which other samples have: add it "
                "or leave the sample out, and pack the data again"
            )
        return values


def load(
    samples: Samples, batches: Iterable[Ids], workers: int, device: torch.device
) -> Iterator[Loaded]:
    """The batches of ids in their order, as tensors on ``device``; ends with ``batches``."""
    on_cuda = device.type == "cuda"
    loader = DataLoader(
        samples,
        batch_sampler=_Lists(batches),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=on_cuda,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else every iterator draws from the global one
    )
    for loaded in loader:
        if isinstance(loaded, DataError):
            raise loaded
        fields, ids = loaded
        if on_cuda:
            fields = {name: value.to(device, non_blocking=True) for name, value in fields.items()}
        yield fields, ids


def worker_count(workers: int, device: torch.device) -> int:
    """``workers``, or where -1: none on a CPU, else a core each, at most 8 a rank."""
    if workers < -1:
        raise DataError(f"data.workers={workers}: take -1 (derived), 0 or more")
    if workers >= 0:
        return workers
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(8, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


class _Lists(torch.utils.data.Sampler[list[int]]):
    """DataLoader's batch sampler over what it takes for lists."""

    def __init__(self, batches: Iterable[Ids]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Sequence[int]]:  # type: ignore[override]
        return iter(self.batches)  # type: ignore[arg-type]


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _start_worker(number: int) -> None:
    """Signals that ask a run to save and stop reach every process of a job step; the workers must
    live on until their own rank has saved. Only their rank may terminate them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_end, daemon=True).start()


def _await_end() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
