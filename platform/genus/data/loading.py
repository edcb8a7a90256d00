"""Batches of samples by their ids, read and decoded here or in worker processes.

Workers hold no state: they get requests and give batches, so how many there are changes nothing.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genus.data.canvas import PIECES, PIPED, PREFETCH
from genus.data.decode import Array
from genus.data.source import Loaded, Request, Source
from genus.errors import DataError, GenusError
from genus.nodes import cores_here, processes_here

MOST_PIPED = 8
"""Batches that a worker sends at once, if they are small: a message a batch costs more."""


def load(
    source: Source, requests: Iterable[Request], workers: int, device: torch.device
) -> Iterator[Loaded]:
    """The batches in the order of ``requests``; ends with them. Pinned where ``device`` is CUDA."""
    if workers == 0:
        for request in requests:
            yield source.load(request)
        return
    on_cuda = device.type == "cuda"
    loader = DataLoader(
        _Groups(source),
        batch_sampler=_Lists(_grouped(requests, source.row_bytes, 1 if on_cuda else MOST_PIPED)),
        num_workers=workers,
        prefetch_factor=PREFETCH,
        collate_fn=_as_it_is,
        pin_memory=on_cuda,
        worker_init_fn=_start_worker,
        # connections don't survive a fork
        multiprocessing_context="spawn" if source.is_remote else None,
        generator=torch.Generator(),  # else every iterator draws from the global one
    )
    mapped: deque[object] = deque(maxlen=PIECES * workers)  # so that torch maps each piece once
    for group in loader:
        for loaded in group:
            if isinstance(loaded, GenusError):
                raise loaded
            mapped.append(loaded.fields)
            yield loaded if on_cuda else _copied(loaded)  # pinning has copied


def _copied(loaded: Loaded) -> Loaded:
    """Out of the memory that a worker will use again."""
    fields = {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in loaded.fields.items()
    }
    return replace(loaded, fields=fields)


class ToDevice:
    """Turns loaded batches into tensors on a device.

    On CUDA they travel on a stream of their own while the device computes: the host is ahead of
    it, so nothing has to be fetched early.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: Any = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, loaded: Loaded) -> dict[str, Tensor]:
        fields = {name: torch.as_tensor(value) for name, value in loaded.fields.items()}
        if self._copies is None:
            return fields
        with torch.cuda.stream(self._copies):
            pinned = [
                value if value.is_pinned() else value.pin_memory() for value in fields.values()
            ]
            moved = [v.to(self._device, non_blocking=True).contiguous() for v in pinned]
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._copies)
        for value in moved:
            value.record_stream(current)  # else the copies' stream could reuse its memory too early
        return dict(zip(fields, moved, strict=True))


def worker_count(workers: int, device: torch.device) -> int:
    """``workers``, or where -1: none on a CPU, else a core each, at most 8 a rank."""
    if workers < -1:
        raise DataError(f"data.workers={workers}: take -1 (derived), 0 or more")
    if workers >= 0:
        return workers
    if device.type == "cpu":
        return 0
    return max(1, min(8, cores_here() // (processes_here() or 1)))


def _grouped(requests: Iterable[Request], row_bytes: int, most: int) -> Iterator[Sequence[Request]]:
    """As many requests together as may be sent at once."""
    requests = iter(requests)
    for first in requests:
        size = max(1, row_bytes * len(first.ids))
        yield [
            first,
            *itertools.islice(requests, min(most, PIPED // size) - 1 if size < PIPED else 0),
        ]


@dataclass(frozen=True)
class _Groups(Dataset[Any]):
    """A map-style data set for torch's DataLoader, whose unit is a group of batches."""

    source: Source

    def __getitems__(self, requests: Sequence[Request]) -> list[Loaded | GenusError]:
        return [self._load(request) for request in requests]

    def _load(self, request: Request) -> Loaded | GenusError:
        """An error is returned, not raised: DataLoader would wrap it in a worker's traceback."""
        try:
            loaded = self.source.load(request)
        except GenusError as error:
            return error
        fields = {
            name: value if _is_shared(value) else np.asarray(value)
            for name, value in loaded.fields.items()
        }
        return replace(loaded, fields=fields)


def _is_shared(value: Tensor | Array) -> bool:
    return isinstance(value, Tensor) and bool(value.is_shared())  # type: ignore[no-untyped-call]


class _Lists(torch.utils.data.Sampler[list[int]]):
    """DataLoader's batch sampler over what it takes for lists."""

    def __init__(self, groups: Iterable[Sequence[Request]]) -> None:
        self.groups = groups

    def __iter__(self) -> Iterator[Sequence[int]]:  # type: ignore[override]
        return iter(self.groups)  # type: ignore[arg-type]


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _start_worker(number: int) -> None:
    """Signals that ask a run to save and stop reach every process of a job step; the workers must
    live on until their own rank has saved. Only their rank may terminate them."""
    torch.set_num_threads(1)
    gc.freeze()  # what is there stays: the collector need not look at it again and again
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_end, daemon=True).start()

    # Threads of other languages (obstore's) may wake in an interpreter that is being taken down,
    # and abort: leave before that.
    Finalize(None, _leave, exitpriority=-100)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _await_end() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
