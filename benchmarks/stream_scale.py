"""What scale costs: opening, seeking, planning, and reading from many shards at once.

    python benchmarks/stream_scale.py [--quick] [--json]

No peer is in it: each row has a goal of its own, in milliseconds, MiB or nanoseconds; ``ratio`` is
ours over the goal. The data sets are manifests whose shards are not there, but for reading: there
they are the test data's eight shards under many names. Times to open and seek are the slowest of
several tries, each with a new order, at random positions: nothing is kept from one to the next.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from genus.data.manifest import Manifest, Shard
from genus.data.order import Order
from genus.data.reader import Reader
from genus.data.store import Folder
from genus.data.stream import DataConfig, open_stream

LANES, SHARD = 64, 1000
SMALL = Path(__file__).parents[1] / "tests" / "data" / "fashion-1000"
Row = tuple[str, float, str, float]
"""What, value, unit, goal."""


def write_manifest(folder: Path, shards: int) -> None:
    """A data set of images of which only the manifest is there."""
    manifest = Manifest(
        name="large",
        shards=tuple(
            Shard(f"{n:06}.tar", SHARD, 20_000_000, f"sha256:{n:064x}", 40_000)
            for n in range(shards)
        ),
        fields={"jpg": shards * SHARD, "cls": shards * SHARD},
        classes=("a", "b"),
        counts=(shards * SHARD // 2, shards * SHARD // 2),
        channels=3,
        height=256,
        width=256,
        total=shards * SHARD,
    )
    manifest.save(Folder(folder))


def slowest(tries: int, work: Callable[[int], object]) -> float:
    """Milliseconds of the slowest of several tries; ``work`` gets the try's number."""
    times = []
    for number in range(tries):
        start = time.perf_counter()
        work(number)
        times.append(1000 * (time.perf_counter() - start))
    return max(times)


def opening(folder: Path, tries: int) -> Iterator[Row]:
    write_manifest(folder, 10_000)
    config = DataConfig(url=str(folder))
    took = slowest(tries, lambda number: open_stream(config, batch=512, seed=0))
    yield "open 1e4 shards (1e7 samples) from the manifest", took, "ms", 1000.0


def seeking(tries: int) -> Iterator[Row]:
    positions = np.random.default_rng(0).integers(0, 10**8, tries) // LANES

    def seek(lanes: int) -> Callable[[int], object]:
        def work(number: int) -> None:
            order = Order(np.full(10_000, SHARD), lanes=LANES, window=16384, seed=0)
            at = int(positions[number])
            for lane in range(lanes):
                order.ids(lane, at, at + 8)

        return work

    for processes in (1, 8):
        took = slowest(tries, seek(LANES // processes))
        yield f"seek in 1e7 samples, {LANES} lanes on {processes} process(es)", took, "ms", 50.0


def planning(share: float) -> Iterator[Row]:
    """``share`` of an epoch of one of 64 processes, 1e9 samples in 1e6 shards."""
    tracemalloc.start()
    order = Order(np.full(1_000_000, SHARD), lanes=LANES, window=16384, seed=0)
    stop = int(order.length(5) * share)
    seen = np.zeros(order.samples if share == 1 else 1, np.bool_)
    base, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
    tracemalloc.reset_peak()
    for position in range(0, stop, 4096):
        ids = order.ids(5, position, min(position + 4096, stop))
        if share == 1:
            assert not seen[ids].any(), "an id came twice"
            seen[ids] = True
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] - base
    tracemalloc.stop()
    assert share < 1 or int(seen.sum()) == stop
    what = f"1e9 samples in 1e6 shards, one of {LANES} processes, {stop:,} samples planned"
    yield f"{what}: memory beyond the shard sizes", peak / 2**20, "MiB", 64.0
    yield f"{what}: time a sample", 1e9 * seconds / stop, "ns", 1000.0


def reading(folder: Path, shards: int) -> float:
    """Microseconds to read a random sample out of ``shards`` shards."""
    folder.mkdir()
    few = Manifest.load(Folder(SMALL))
    many = [replace(few.shards[n % 8], url=f"{n:06}.tar") for n in range(shards)]
    for number, shard in enumerate(many):
        source = few.shards[number % 8]
        (folder / shard.url).symlink_to(SMALL / source.url)
        (folder / shard.index).symlink_to(SMALL / source.index)
    manifest = replace(few, shards=tuple(many), total=sum(shard.nsamples for shard in many))
    reader = Reader([(Folder(folder), manifest)])
    generator = np.random.default_rng(0)
    batches = [generator.integers(0, manifest.total, 64) for _ in range(2000)]
    for ids in batches[:1000]:  # until every shard is open
        reader.read(ids)
    start = time.perf_counter()
    for ids in batches[1000:]:
        reader.read(ids)
    return 1e6 * (time.perf_counter() - start) / 64_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tries, a part of an epoch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tries = 5 if options.quick else 20
    with tempfile.TemporaryDirectory() as folder:
        rows = [*opening(Path(folder), tries), *seeking(tries)]
        few, many = (reading(Path(folder) / str(shards), shards) for shards in (8, 1088))
        what = "read out of 1,088 shards at once (64 lanes on 1 process)"
        rows.append((f"{what}, for {few:.1f} us out of 8 shards", many, "us", 3 * few))
    rows += planning(0.05 if options.quick else 1.0)
    for what, value, unit, goal in rows:
        if options.json:
            print(json.dumps({
                "row": f"{what}, {unit}", "ours": value, "peer": goal, "peer_name": "goal",
                "ratio": value / goal, "goal": 1.0, "lower_is_better": True,
            }))  # fmt: skip
        else:
            print(f"{what:90} {value:9.1f} {unit:4} (goal {goal:g})")
    if not options.json:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"resident at most: {peak:.0f} MiB, of which torch about 300")


if __name__ == "__main__":
    main()
