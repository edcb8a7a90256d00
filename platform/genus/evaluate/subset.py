"""A random part of a data set, without repeats: first samples may all be of one class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from genus.data.batch import Batch
from genus.data.stream import DataConfig, open_stream
from genus.draws import Draws, seed_of
from genus.errors import DataError


def shuffled(
    config: DataConfig,
    count: int | None = None,
    *,
    batch: int,
    device: torch.device | str,
    seed: int,
) -> Iterator[Batch]:
    """``count`` samples (None: all) in an order that depends on the seed alone.

    Draws belong to the samples, as in ``iterate_once``. DataError where there are fewer.
    """
    alone = dataclasses.replace(config, lanes=1, bad_samples=0)
    # one lane: nothing comes again before all have come
    stream = open_stream(alone, batch=batch, seed=seed, device=device)
    total = stream.info.samples
    count = total if count is None else count
    if count > total:
        raise DataError(
            f"{config.url} has {total} samples, and {count} are asked for: ask for less"
        )
    have = 0
    for one in stream:
        rows = min(len(one), count - have)
        yield rebatch(
            {name: value[:rows] for name, value in one.fields.items()}, one.ids[:rows], seed
        )
        have += rows
        if have == count:
            return


def rebatch(fields: Mapping[str, Tensor], ids: Tensor, seed: int) -> Batch:
    """Samples with the draws that belong to each."""
    device = next(iter(fields.values())).device
    draws = Draws.of([seed_of(seed, "once", number) for number in ids.tolist()], 1, device)
    return Batch(fields, ids, int(ids[0]), draws)
