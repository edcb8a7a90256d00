"""Reading a bucket: Genus' store against s3fs, the store of most Python data loaders.

    python benchmarks/object_store.py [--json] [--quick] [--peer PYTHON]

A SeaweedFS server runs on loopback. Rows are ranges of 1 KB and 100 KB at random places of a 64 MB
object, one at a time and 32 at once, in requests a second, and the whole object in MB a second.
s3fs reads ranges by ``cat_file`` and ``cat_ranges``, the object by ``cat_file``. It lives in an
environment of its own, PYTHON is its interpreter:

    python -m venv /tmp/s3fs && /tmp/s3fs/bin/pip install 's3fs>=2026'

Without one, or --peer, the rows compare with obstore used directly: calls that wait one at a time,
32 threads, one get of the object. Ours and the peer's turns alternate, in a process each, which
also checks every byte; medians of rounds are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

URL = "s3://data/bench"
SIZE = 64 << 20
PEER = "/tmp/s3fs/bin/python"
GOAL = 1.0
Read = Callable[[list[tuple[int, int]], str], list[Any]]
"""(spans, way) -> their bytes."""
ROWS = [
    (f"range {size // 1000} KB, {way}", size, way)
    for size in (1000, 100_000)
    for way in ("one at a time", "32 at once")
] + [("object 64 MB", SIZE, "whole")]


# ---- readers: each runs in a process of its own, this file being its program ---------------------


def ours() -> Read:
    from genus.data.store import open_store

    store = open_store(URL)

    def read(spans: list[tuple[int, int]], way: str) -> list[Any]:
        if way == "whole":
            return [store.read_all("object")]
        if way == "one at a time":
            return [store.read("object", start, stop) for start, stop in spans]
        return store.read_many([("object", start, stop) for start, stop in spans])

    return read


def s3fs() -> Read:
    import s3fs as library

    files = library.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    path = URL.removeprefix("s3://") + "/object"

    def read(spans: list[tuple[int, int]], way: str) -> list[Any]:
        if way == "whole":
            return [files.cat_file(path)]
        if way == "one at a time":
            return [files.cat_file(path, start=start, end=stop) for start, stop in spans]
        starts, stops = ([span[i] for span in spans] for i in (0, 1))
        return files.cat_ranges([path] * len(spans), starts, stops, batch_size=32)

    return read


def obstore() -> Read:
    from obstore.store import S3Store

    store = S3Store("data", prefix="bench", client_options={"allow_http": True})
    pool = ThreadPoolExecutor(32)

    def one(span: tuple[int, int]) -> bytes:
        return bytes(store.get_range("object", start=span[0], end=span[1]))

    def read(spans: list[tuple[int, int]], way: str) -> list[Any]:
        if way == "whole":
            return [bytes(store.get("object").bytes())]
        return list(map(one, spans) if way == "one at a time" else pool.map(one, spans))

    return read


def serve(kind: str) -> None:
    """Times what stdin orders: [spans, way], answered by [seconds, hash]."""
    read = {"ours": ours, "s3fs": s3fs, "obstore": obstore}[kind]()
    for line in sys.stdin:
        spans, way = json.loads(line)
        begin = time.perf_counter()
        found = read([(a, b) for a, b in spans], way)
        seconds = time.perf_counter() - begin
        print(json.dumps([seconds, hashlib.sha256(b"".join(found)).hexdigest()]), flush=True)


# ---- the comparison ------------------------------------------------------------------------------


class Reader:
    """A process that reads when told to."""

    def __init__(self, python: str, kind: str, variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [python, __file__, "--serve", kind],
            env={**os.environ, **variables, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def time(self, spans: list[tuple[int, int]], way: str, expected: str) -> float:
        """Seconds; RuntimeError for any wrong byte."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([spans, way]), file=self.process.stdin, flush=True)
        seconds, found = json.loads(self.process.stdout.readline())
        if found != expected:
            raise RuntimeError("the bytes that were read are not those that were written")
        return float(seconds)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(quick: bool, python: str) -> Iterator[dict[str, object]]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from object_storage import s3_server

    kind = "s3fs" if Path(python).exists() else "obstore"
    rng, rounds = random.Random(0), 3 if quick else 9
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder)) as s3:
        os.environ.update(s3.environment)
        from genus.data.store import open_store

        data = rng.randbytes(SIZE)
        open_store(URL).write("object", data)
        readers = [
            Reader(sys.executable, "ours", s3.environment),
            Reader(python if kind == "s3fs" else sys.executable, kind, s3.environment),
        ]
        try:
            for row, size, way in ROWS:
                count = {"one at a time": 100, "32 at once": 320 if quick else 640, "whole": 1}[way]
                times: list[list[float]] = [[], []]
                for _ in range(rounds + 1):
                    starts = [rng.randrange(SIZE - size + 1) for _ in range(count)]
                    spans = [(start, start + size) for start in starts]
                    digest = hashlib.sha256(b"".join(data[a:b] for a, b in spans)).hexdigest()
                    for reader, taken in zip(readers, times, strict=True):
                        taken.append(reader.time(spans, way, digest))
                amount = SIZE / 1e6 if way == "whole" else count
                own, peer = (amount / statistics.median(taken[1:]) for taken in times)
                yield {
                    "row": row,
                    "ours": round(own, 1),
                    "peer": round(peer, 1),
                    "peer_name": "s3fs" if kind == "s3fs" else "obstore, used directly",
                    "ratio": round(own / peer, 3),
                    "goal": GOAL,
                    "lower_is_better": False,
                    "unit": "MB/s" if way == "whole" else "ranges/s",
                }
        finally:
            for reader in readers:
                reader.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 45 s")
    parser.add_argument("--peer", default=PEER, metavar="PYTHON", help="one that has s3fs")
    parser.add_argument("--serve", choices=["ours", "s3fs", "obstore"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    for row in measure(args.quick, args.peer):
        if args.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['row']}: {row['ours']} {row['unit']}, {row['peer_name']} {row['peer']}, "
                f"ratio {row['ratio']} (goal {GOAL})",
                flush=True,
            )


if __name__ == "__main__":
    main()
