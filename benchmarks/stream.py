"""Samples a second of Genus's stream beside webdataset, mosaicml-streaming (MDS) and LitData.

    python benchmarks/stream.py [--json] [--quick] [--own] [--only TEXT] [--folder F]

Every cell of {Fashion-MNIST PNG 28 px, JPEG 256 px} x {0, 2 workers} x {local, S3} is measured cold
and then warm. Each measurement is one pass in a process of its own; libraries take turns, and rows
give medians of ``--rounds`` turns. The first run makes the data and the peers' environment.

What is compared, and how it is kept fair:

- The same image files, in the same order, with the same number of samples a shard. Genus and
  webdataset read the same tars; MDSWriter and litdata.optimize write theirs from these bytes.
- The same target: batches of 64, uint8 (64, C, H, W), and labels. ``stream_clock.py`` checks shape
  and labels and stops every loader's clock after the same whole batches.
- Each shuffles as its users have it. Genus: its default window. webdataset: shardshuffle=100,
  shuffle(1000). MDS: shuffle=True with its default algorithm. LitData: shuffle=True.
- Each decodes with what it ships: Pillow in the peers (LitData would take torchvision, which has no
  CPU build for this torch). Rows "with our decoder" give the peers' bytes to ours, so that what
  remains is the way of the data. The images lie in MDS and LitData as bytes: that is what MDS's
  jpeg and png columns hold, and LitData's own type for PIL images would store raw pixels.
- Genus checks every sample's crc32; the peers don't.
- Process start and imports are outside the clock. With 0 workers it runs from ``iter`` to the last
  batch; with 2 it starts after the first batch, whose time is given apart (first_batch_s), as is
  the loader's construction (construct_s). all_s is all three together.
- local, cold: the files' pages are dropped (fdatasync, posix_fadvise DONTNEED; a disk's own cache
  stays). Warm: the next process, on what the cold pass left in memory.
- S3: SeaweedFS on this machine, shares its cores and answers from its memory. Cold: an empty cache
  folder. Warm: the next process, on the cache folder that the cold pass filled. webdataset has no
  reader of s3:// any more: it gets signed links, which its own http reader fetches with curl, and
  cache_dir. MDS and LitData use their S3 clients.
- "ceiling": the same images by os.pread at known offsets in a shuffled order and our decoder into
  one array, nothing else; with 2 workers two such processes at once, rates added.

OMP_NUM_THREADS=1 in all processes. Versions are those of ``stream_setup.PEERS``, named in each row.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import stream_setup as setup
from stream_clock import Task

HERE = Path(__file__).parent
ROOT = HERE.parent
PEERS = ("webdataset", "mosaicml-streaming", "litdata")
GOALS = {"ceiling": 0.9, "own": 1.5, "genus": 1.0}
"""For the ceiling, and for peers by their decoder."""
BUCKET = "bench"
SECONDS = 1200
"""The longest that one measurement may take."""
Result = dict[str, float]


@dataclass(frozen=True)
class Runner:
    """One library with one decoder."""

    library: str
    decoder: str
    """"own" or "genus"."""
    name: str
    """As the rows say it."""
    python: Path

    @property
    def script(self) -> Path:
        """What measures it."""
        return HERE / ("stream_peers.py" if self.library in PEERS else "stream_ours.py")


@dataclass(frozen=True)
class Cell:
    """One combination, of which a cold and a warm pass are measured."""

    data: setup.DataSet
    workers: int
    remote: bool

    @property
    def name(self) -> str:
        """As the rows say it."""
        place = "S3" if self.remote else "local"
        return f"stream {self.data.name}, {self.workers} workers, {place}"

    def task(self, runner: Runner, cache: Path, cold: bool) -> Task:
        """What the measured process is told."""
        data = self.data
        return {
            "library": runner.library,
            "decoder": runner.decoder,
            "folder": str(data.folder),
            "shards": data.shards,
            "remote": f"s3://{BUCKET}/{data.folder.name}" if self.remote else "",
            "cache": str(cache),
            "evict": cold,
            "workers": self.workers,
            "channels": data.channels,
            "size": data.size,
            "samples": data.samples,
            "classes": data.classes,
            "label_sum": data.label_sum,
        }


def measured(runner: Runner, task: Task, variables: dict[str, str]) -> Result:
    """One pass in a new process. RuntimeError where it fails."""
    environment = {
        **os.environ,
        **variables,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GENUS_CACHE": task["cache"],
        # the peers' environment has no Genus of its own; ours has no other
        "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), os.environ.get("PYTHONPATH", "")]),
    }
    words: list[str | Path] = [runner.python, runner.script, json.dumps(task)]
    if runner.library in PEERS:
        words.insert(2, "measure")
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            result: Result = json.loads(line.removeprefix("RESULT "))
            return result
    raise RuntimeError(f"{runner.name} gave no result ({done.returncode}):\n{done.stderr[-2000:]}")


def measure_cell(
    cell: Cell, runners: list[Runner], rounds: int, scratch: Path, variables: dict[str, str]
) -> dict[tuple[str, str], list[Result]]:
    """(runner's name, "cold" or "warm") -> results; the runners take turns. A peer that fails is
    told on stderr and left out."""
    found: dict[tuple[str, str], list[Result]] = {}
    out = set()
    for _ in range(rounds):
        for runner in runners:
            if runner.name in out or (runner.library == "ceiling" and cell.remote):
                continue
            cache = scratch / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            if not cell.remote:
                setup.evict(cell.data.folder)
            for state in ("cold", "warm"):
                task = cell.task(runner, cache, cold=state == "cold")
                try:
                    result = measured(runner, task, variables)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    if runner.library == "genus":
                        raise
                    print(f"{cell.name}, {state}: {error}", file=sys.stderr)
                    out.add(runner.name)
                    break
                found.setdefault((runner.name, state), []).append(result)
    return found


def rows(
    cell: Cell, runners: list[Runner], found: dict[tuple[str, str], list[Result]]
) -> Iterator[dict[str, object]]:
    """Genus against each other runner, cold and warm."""
    for state in ("cold", "warm"):
        ours = found[runners[0].name, state]
        for runner in runners[1:]:
            peer = found.get((runner.name, state))
            if peer is None:
                continue
            rate, other = (statistics.median(r["rate"] for r in each) for each in (ours, peer))
            spread = [round(bound(r["rate"] for r in ours)) for bound in (min, max)]
            row: dict[str, object] = {
                "row": f"{cell.name}, {state}",
                "ours": round(rate),
                "peer": round(other),
                "peer_name": runner.name,
                "ratio": round(rate / other, 3),
                "goal": GOALS["ceiling" if runner.library == "ceiling" else runner.decoder],
                "lower_is_better": False,
                "unit": "samples/s",
                "samples": cell.data.samples,
                "rounds": len(ours),
                "ours_range": spread,
                "peer_range": [round(bound(r["rate"] for r in peer)) for bound in (min, max)],
            }
            for name in ("construct_s", "first_batch_s", "all_s"):
                row |= {
                    f"{who}_{name}": round(statistics.median(r[name] for r in each), 3)
                    for who, each in (("ours", ours), ("peer", peer))
                    if name in each[0]
                }
            yield row


@contextlib.contextmanager
def server(data: list[setup.DataSet], scratch: Path) -> Iterator[dict[str, str]]:
    """SeaweedFS with all data sets in it; what a client's environment must say."""
    from genus.data.store import open_store

    sys.path.insert(0, str(ROOT / "tests"))
    from object_storage import s3_server

    folder = scratch / "server"
    folder.mkdir()
    with s3_server(folder) as s3:
        s3.make_bucket(BUCKET)
        os.environ.update(s3.environment)
        for one in data:
            for form in sorted(path for path in one.folder.iterdir() if path.is_dir()):
                if form.name not in ("tar", "mds", "litdata"):
                    continue
                store = open_store(f"s3://{BUCKET}/{one.folder.name}/{form.name}")
                for path in setup.files(form):
                    store.write(path.name, path.read_bytes())
        yield s3.environment


def make_runners(peers: Path | None) -> list[Runner]:
    """Genus first. Without an environment for the peers only webdataset, which is in ours."""
    here = Path(sys.executable)
    python = setup.peers_python(peers) if peers else here
    known = setup.versions(python)
    runners = [
        Runner("genus", "genus", f"genus {importlib.metadata.version('genus')}", here),
        Runner("ceiling", "genus", "ceiling: pread + decode", here),
    ]
    for library in PEERS if peers else PEERS[:1]:
        name = f"{library} {known[library]}"
        runners.append(Runner(library, "own", name, python))
        runners.append(Runner(library, "genus", f"{name} with our decoder", python))
    return runners


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="1,000 images, webdataset only: 45 s")
    parser.add_argument("--only", default="", help='cells whose name has this: "2 workers, local"')
    parser.add_argument("--rounds", type=int, default=3, help="turns of each library")
    parser.add_argument("--samples", type=int, default=60_000, help="of Fashion-MNIST")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/genus-stream"), help="the data")
    parser.add_argument("--peers", type=Path, default=Path("/tmp/genus-peers"), help="their venv")
    parser.add_argument(
        "--own", action="store_true", help="without the rows that give the peers our decoder"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="genus-stream-") as name:
        scratch = Path(name)
        if args.quick:
            small = str(ROOT / "tests" / "data" / "fashion-1000")
            data = [setup.fashion(scratch / "fashion", 1000, small)]
            runners = [r for r in make_runners(None) if r.decoder == "own" or r.library != PEERS[0]]
            cells = [Cell(data[0], 0, remote) for remote in (False, True)]
        else:
            runners = make_runners(args.peers)
            data = [
                setup.fashion(args.folder / f"fashion-{args.samples}", args.samples),
                setup.jpegs(args.folder / "jpeg256"),
            ]
            for one in data:
                setup.pack_for_peers(one, runners[-1].python)
            cells = [Cell(d, w, remote) for d in data for remote in (False, True) for w in (0, 2)]
        cells = [cell for cell in cells if args.only in cell.name]
        if args.own:
            runners = [r for r in runners if r.decoder == "own" or r.library not in PEERS]
        rounds = 1 if args.quick else args.rounds
        with contextlib.ExitStack() as stack:
            variables: dict[str, str] = {}
            stored = [one for one in data if any(c.remote and c.data == one for c in cells)]
            if stored:
                variables = stack.enter_context(server(stored, scratch))
            for cell in cells:
                found = measure_cell(cell, runners, rounds, scratch, variables)
                for row in rows(cell, runners, found):
                    if args.json:
                        print(json.dumps(row), flush=True)
                    else:
                        print(
                            f"{row['row']}: {row['ours']} samples/s, {row['peer_name']} "
                            f"{row['peer']}, ratio {row['ratio']} (goal {row['goal']})",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
