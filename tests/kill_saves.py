"""Run by test_checkpoint_kill.py: kills a process that saves, again and again, and looks.

    kill_saves.py FOLDER KILLS SEED      prints one JSON line a kill

Half of the kills come at a random moment. The other half come right before a chosen operation on
the files of a save (Python's audit events: mkdir, open, rename, remove, rmdir), so that every
stage is hit for certain: reserve, write, verify, publish, retain.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from genus.checkpoint import Checkpoints
from genus.checkpoint_reader import newest, published, read_meta, read_tensors, samples_of
from genus.parallel import World
from genus.state import State

SIZE, BATCH, KEEP = 2_500_000, 64, 2  # 10 MB
WATCHED = {"os.mkdir", "open", "os.rename", "os.remove", "os.rmdir"}
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def weights_at(samples: int) -> Tensor:
    """Another 10 MB for every progress, cheap to make."""
    return torch.arange(SIZE, dtype=torch.int32).mul_(2654435761 % 2**31 + samples)


class Training:
    """A state that knows what it has to be."""

    samples = 0

    def state_dict(self) -> State:
        return {"w": weights_at(self.samples), "position": self.samples}

    def load_state_dict(self, state: State) -> None:
        self.samples = int(state["position"])
        weights = state["w"]
        assert isinstance(weights, Tensor)
        assert torch.equal(weights, weights_at(self.samples))


def train_for_ever(run: Path, world: World, told: int, doomed_at: int | None) -> NoReturn:
    """The victim: resumes, saves without end, and tells each published progress.

    With ``doomed_at`` it kills itself before that file operation after its first save.
    """
    training = Training()
    checkpoints = Checkpoints(run / "checkpoints", world, keep_last=KEEP)
    path = checkpoints.newest()
    if path is not None:
        assert checkpoints.load({"training": training}, path) == training.samples
    operations = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal operations
        if event in WATCHED and str(run) in str(arguments[0]):
            operations += 1
            if operations > doomed_at:  # type: ignore[operator]
                os.write(told, f"before {event} {Path(str(arguments[0])).name}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    first = True
    while True:
        training.samples += BATCH
        checkpoints.save({"training": training}, training.samples)
        checkpoints.wait()
        os.write(told, f"published {training.samples}\n".encode())
        if first and doomed_at is not None:
            sys.addaudithook(count)
        first = False


def kill_once(run: Path, world: World, delay: float, doomed_at: int | None) -> dict[str, object]:
    """Start a victim, kill it, and check what it leaves behind."""
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hear)
        try:
            train_for_ever(run, world, tell, doomed_at)
        finally:
            os._exit(1)  # only a failed assertion comes here
    os.close(tell)
    heard = os.read(hear, 1 << 16)  # its first checkpoint of this life
    assert heard, "the victim could not resume"
    if doomed_at is None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    while more := os.read(hear, 1 << 16):
        heard += more
    os.close(hear)
    assert os.WIFSIGNALED(status), "the victim ended by itself"
    assert os.WTERMSIG(status) == signal.SIGKILL
    lines = heard.decode().splitlines()
    acknowledged = [int(line.split()[1]) for line in lines if line.startswith("published")]

    path = newest(run)
    samples, scalars = samples_of(path), read_meta(path)["scalars"]["training"]
    assert read_meta(path)["samples"] == scalars["position"] == samples
    assert torch.equal(read_tensors(path, "training/")["w"], weights_at(samples))
    assert samples >= acknowledged[-1], "a checkpoint that was there is gone"
    assert len(published(run / "checkpoints")) <= KEEP + 1
    hidden = [p for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]
    return {
        "samples": samples,
        "before": lines[-1] if lines[-1].startswith("before") else None,
        "left": sorted(f"{p.name.split('-')[0]} {len(list(p.iterdir()))}" for p in hidden),
        "damaged": len(list((run / "checkpoints").glob("damaged-*"))),
    }


def main() -> None:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)  # forked below
    world, chance = World(), random.Random(seed)
    for kill in range(kills):
        doomed_at = kill // 2 if kill % 2 else None
        report = kill_once(folder, world, chance.uniform(0, 0.12), doomed_at)
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
