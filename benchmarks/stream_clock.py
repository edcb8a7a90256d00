"""One pass over a data loader, timed: the same clock for Genus and for every peer.

Runs in the peers' environment too, so it imports torch and nothing of ours.
"""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

BATCH = 64
Task = dict[str, Any]
"""What a measured process gets as JSON: see ``stream.Cell.task``."""
Loader = Iterable[Any]
"""Batches; by default pairs of images (B, C, H, W) uint8 and labels (B,)."""


def clock(
    make: Callable[[], Loader], task: Task, fields: tuple[Any, Any] = (0, 1)
) -> dict[str, float]:
    """Samples/s of one pass, seconds to construct the loader, to the first batch and in all.

    In this process (0 workers) the clock runs from ``iter`` on. With workers it starts after the
    first batch, since starting processes says nothing of the stream; ``first_batch_s`` says how
    long that took. ``fields`` are what a batch calls its image and its label. AssertionError where
    the loader gives something else than was asked for, each sample once.
    """
    shape = (task["channels"], task["size"], task["size"])
    pixels, label = fields
    torch.set_num_threads(1)
    start = time.perf_counter()
    loader = make()
    made = time.perf_counter()
    batches = iter(loader)
    batch = next(batches)
    first = time.perf_counter()
    image = batch[pixels]
    assert image.dtype == torch.uint8, image.dtype
    image = image.reshape(len(image), *shape)  # webdataset's grey images have no channel
    assert image.float().std() > 1, "the images are blank"
    count = len(image)
    skipped = count if task["workers"] else 0
    labels = int(torch.as_tensor(batch[label]).sum())
    begin = time.perf_counter()  # the checks above are not the loader's
    while count <= task["samples"] - BATCH:  # whole batches only: some loaders never end
        batch = next(batches, None)
        if batch is None:
            break
        count += len(batch[pixels])
        labels += int(torch.as_tensor(batch[label]).sum())
    end = time.perf_counter()
    lacking = task["samples"] - count
    assert 0 <= lacking < BATCH, f"{count} of {task['samples']} samples came"
    most = (task["classes"] - 1) * lacking
    assert 0 <= task["label_sum"] - labels <= most, f"labels sum to {labels}: not every sample came"
    seconds = end - begin + (0 if task["workers"] else first - made)
    return {
        "rate": (count - skipped) / seconds,
        "construct_s": made - start,
        "first_batch_s": first - made,
        "all_s": end - begin + first - start,
    }


def example(task: Task) -> bytes:
    """One image file, to be decoded before the clock runs: decoders import their parts late."""
    with tarfile.open(task["shards"][0], "r:") as tar:
        while (member := tar.next()) is not None:
            file = tar.extractfile(member)
            if member.name.endswith(("png", "jpg")) and file is not None:
                return file.read()
    raise FileNotFoundError(f"{task['shards'][0]} holds no image")


def report(result: dict[str, float]) -> None:
    """The line that ``stream.py`` reads; libraries may print others."""
    print("RESULT " + json.dumps(result), flush=True)
