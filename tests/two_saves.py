"""Run by test_checkpoint_two.py on each of two ranks: load one's checkpoint, save, fail, agree.

two_saves.py ONE TWO      folders: with a checkpoint by one process; for one by two
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from genus import checkpoint
from genus.checkpoint import Checkpoints
from genus.errors import CheckpointError
from genus.parallel import World
from test_checkpoint import Box, flat, same, trained


def main() -> None:
    one, two = Path(sys.argv[1]), Path(sys.argv[2])
    world = World()
    assert world.size == 2

    # 1 -> 2: both load what one process saved, into objects that differ. (What they loaded shows
    # in what they save below: each rank writes a share of it.)
    states = trained(10 + world.rank)
    by_one = Checkpoints(one, world)
    path = by_one.newest()
    assert path is not None
    assert by_one.load(states, path) == 64
    assert not same(flat(states), flat(trained(10 + world.rank)))

    # 2 -> 1: the test loads this. Saving the same progress again must neither write nor wait.
    by_two = Checkpoints(two, world, keep_last=1)
    assert by_two.newest() is None
    for _ in range(3):
        by_two.save(states, 64)
    by_two.wait()
    assert by_two.newest() == two / "samples-000000000064"  # already published, on both ranks
    shards = {file.name for file in (two / "samples-000000000064").glob("*.distcp")}
    assert shards == {"__0_0.distcp", "__1_0.distcp"}

    # An error on either rank is an error on both, at the same save.
    checksums, publish = checkpoint._checksums, Checkpoints._publish

    def unreadable(folder: Path, rank: int) -> dict[str, list[int]]:
        if rank == 1:
            raise OSError("can't read back")
        return checksums(folder, rank)

    def unpublished(self: Checkpoints, *arguments: object) -> None:
        if self.world.is_first:
            raise OSError(28, "No space left on device")

    for broken, said in ((unreadable, "can't read back"), (unpublished, "disk is full")):
        checkpoint._checksums = unreadable if broken is unreadable else checksums
        Checkpoints._publish = unpublished if broken is unpublished else publish  # type: ignore[assignment,method-assign]
        by_two.save({"box": Box(w=torch.ones(1000))}, 128)
        with pytest.raises(CheckpointError, match=said):
            by_two.wait()
        assert not by_two.failed  # told once
        world.barrier()
        assert [p.name for p in two.iterdir()] == ["samples-000000000064"]
    checkpoint._checksums, Checkpoints._publish = checksums, publish  # type: ignore[method-assign]

    # Damage that the first rank finds reaches both, and so does having nothing whole left.
    copy = two.with_name("copy")
    if world.is_first:
        shutil.copytree(two, copy)
        (copy / "samples-000000000064" / "__1_0.distcp").unlink()
    world.barrier()
    with pytest.raises(CheckpointError, match="no whole checkpoint any more"):
        Checkpoints(copy, world).newest()
    world.close()


if __name__ == "__main__":
    main()
