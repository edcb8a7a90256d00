"""Checkpoints written and read by different numbers of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from genus.checkpoint import Checkpoints
from genus.checkpoint_reader import digest, published
from genus.parallel import World
from ranks import run_ranks
from test_checkpoint import flat, same, saved, trained

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_one_process_two_processes_one_process(tmp_path: Path) -> None:
    world = World()
    one, two = tmp_path / "one", tmp_path / "two"
    saved(one, world, trained(0), 64)
    run_ranks(Path(__file__).with_name("two_saves.py"), str(one), str(two))

    (by_one,), (by_two,) = published(one), published(two)
    assert digest(by_two) == digest(by_one)  # whatever the number of shards
    states = trained(1)
    assert Checkpoints(two, world).load(states, by_two) == 64
    assert same(flat(states), flat(trained(0)))
