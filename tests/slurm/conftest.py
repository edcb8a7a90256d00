"""One SLURM for all tests of this folder; they are skipped where none can be started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from jobs import LONG, SHORT, Job, submit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    cluster = Cluster(nodes=4)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def by_two(cluster: Cluster) -> Job:
    """A finished run of two nodes that nothing interrupted; a checkpoint in its midst is kept."""
    words = (f"train.samples={LONG}", f"train.keep_every={SHORT}")
    job = submit(cluster, "by-two", "--nodes=2", "--time=10", words=words)
    job.wait_for("COMPLETED")
    return job


@pytest.fixture(scope="session")
def sweep(cluster: Cluster) -> list[Job]:
    """Two finished runs of one process, the first with the preset's own learning rate."""
    first = submit(cluster, "swept", "--sweep", "optim.lr=1e-3,3e-4", "--time=10")
    root = first.folder.parent
    tasks = [
        Job(cluster, f"{first.number}_{task}", root / f"swept-lr-{value}")
        for task, value in enumerate(("1e-3", "3e-4"))
    ]
    for task in tasks:
        task.wait_for("COMPLETED")
    return tasks
