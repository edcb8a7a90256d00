"""A random part of a data set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genus.data.stream import DataConfig, iterate_once
from genus.errors import DataError
from genus.evaluate.subset import shuffled

DATA = DataConfig(url=str(Path(__file__).parents[1] / "data" / "fashion-1000"), workers=0)


def ids(count: int | None, batch: int, seed: int = 0) -> list[int]:
    batches = shuffled(DATA, count, batch=batch, device="cpu", seed=seed)
    return [int(number) for one in batches for number in one.ids]


def test_each_sample_once_in_an_order_of_the_seed_alone() -> None:
    first = ids(None, 300)
    assert sorted(first) == list(range(1000))
    assert first != list(range(1000))
    assert ids(250, 70) == first[:250]
    assert ids(250, 70, seed=1) != first[:250]


def test_images_labels_and_draws_belong_to_their_sample() -> None:
    stored = next(iterate_once(DATA, 1000))
    batch = next(shuffled(DATA, 40, batch=40, device="cpu", seed=0))
    assert torch.equal(batch["image"], stored["image"][batch.ids])
    assert torch.equal(batch["label"], stored["label"][batch.ids])
    assert torch.equal(batch.draws.normal("x", (3,)), stored.draws.normal("x", (3,))[batch.ids])


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(DataError, match="has 1000 samples, and 1001"):
        ids(1001, 100)
