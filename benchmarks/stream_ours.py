"""Genus, and the ceiling that it is held against, for benchmarks/stream.py.

python stream_ours.py TASK                 one pass; TASK is JSON
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import numpy as np
import torch
from stream_clock import BATCH, Loader, Task, clock, example, report

from genus.data.decode import IMAGES, decode_into
from genus.data.stream import DataConfig, open_stream

Place = tuple[int, int, int]
"""File descriptor, offset, bytes."""


def genus(task: Task) -> Loader:
    """The stream as recipes use it, with its defaults."""
    url = f"{task['remote']}/tar" if task["remote"] else f"{task['folder']}/tar"
    return open_stream(DataConfig(url=url, workers=task["workers"]), batch=BATCH, seed=0)


def places(task: Task) -> Iterator[Place]:
    """Where the images lie in the tars, from the tars' own headers."""
    for shard in task["shards"]:
        file = os.open(shard, os.O_RDONLY)
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.name.rpartition(".")[2] in IMAGES:
                    yield file, member.offset_data, member.size


def read_and_decode(mine: list[Place], task: Task) -> float:
    """Images/s of pread and decoding into one batch's array, and nothing else."""
    channels, size = task["channels"], task["size"]
    batch = np.empty((BATCH, size, size, channels), np.uint8).transpose(0, 3, 1, 2)
    start = time.perf_counter()
    for i, (file, offset, length) in enumerate(mine):
        decode_into(os.pread(file, length, offset), batch[i % BATCH], channels, "pad")
    return len(mine) / (time.perf_counter() - start)


def ceiling(task: Task) -> float:
    """Images/s without any stream: in this process, or in as many as there are workers at once."""
    known = list(places(task))
    order = np.random.default_rng(0).permutation(len(known)).tolist()
    mine = [known[i] for i in order]
    if task["evict"]:  # reading the headers has put parts of the files into memory
        for file in {file for file, _, _ in known}:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    if not task["workers"]:
        return read_and_decode(mine, task)
    context = multiprocessing.get_context("fork")
    together = context.Barrier(task["workers"])
    readers = []
    for number in range(task["workers"]):
        reader, writer = context.Pipe(duplex=False)
        part = mine[number :: task["workers"]]
        context.Process(target=_part, args=(part, task, together, writer)).start()
        readers.append(reader)
    return float(sum(reader.recv() for reader in readers))


def _part(mine: list[Place], task: Task, together: Barrier, result: Connection) -> None:
    together.wait()
    result.send(read_and_decode(mine, task))


def main() -> None:
    task: Task = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    image = np.empty((task["channels"], task["size"], task["size"]), np.uint8)
    decode_into(example(task), image, task["channels"], "pad")
    if task["library"] == "ceiling":
        report({"rate": ceiling(task)})
    else:
        report(clock(lambda: genus(task), task, ("image", "label")))


if __name__ == "__main__":
    main()
