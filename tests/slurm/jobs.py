"""Submitting runs of a few seconds to the test cluster, and waiting for what becomes of them."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from cluster import ROOT, Cluster

from genus.checkpoint_reader import digest, newest, published
from genus.tracking import read_events

RECIPE = ROOT / "recipes" / "diffusion.py"
SAMPLES = 3200
"""Length of a run: long enough for a fault to meet it."""
SHORT, LONG = 1600, 6400
"""Of runs of two processes: SLURM looks at time limits every 30 s only."""
TINY = ("--preset", "tiny", "train.sample_every=0", "tracking.wandb=off")


@dataclass(frozen=True)
class Job:
    """A submitted run."""

    cluster: Cluster
    number: str
    folder: Path

    @property
    def state(self) -> str:
        return self.cluster.state_of(self.number)

    @property
    def restarts(self) -> int:
        return int(self.cluster.field(self.number, "Restarts") or 0)

    @property
    def node(self) -> str:
        """The node of the batch script, and of the first rank."""
        return self.cluster.field(self.number, "BatchHost")

    def wait_for(self, *states: str, limit: float = 300) -> None:
        """Wait until the job is in one of the states; AssertionError shows its log."""
        try:
            self.cluster.wait(lambda: self.state in states, f"{states}", limit)
        except AssertionError as error:
            raise AssertionError(f"{error}\nstate {self.state}\n{self.log()}") from None

    def wait_until_saved(self) -> None:
        """Wait for the first checkpoint, the sign that training is under way."""
        try:
            self.cluster.wait(lambda: published(self.folder / "checkpoints"), "checkpoint")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def stop_worker(self) -> int:
        """Once training is under way, hold the batch host's youngest rank, by SIGSTOP: then a fault
        meets a live run however fast the machine is. Returns its pid."""
        self.wait_until_saved()
        worker = max(self.cluster.pids(self.node, "diffusion.py --config"))
        self.cluster.kill(worker, signal.SIGSTOP)
        return worker

    def let_go_on_signalled(self, worker: int) -> None:
        """Let a held rank go on when SIGTERM has come for it."""
        self.cluster.wait(lambda: self.cluster.has_got(worker, signal.SIGTERM), "SIGTERM")
        self.cluster.kill(worker, signal.SIGCONT)

    def events(self, what: str) -> list[dict[str, object]]:
        return [event for event in read_events(self.folder) if event["event"] == what]

    def digest(self, samples: int = 0) -> dict[str, str]:
        """Of the newest checkpoint, or of the one at ``samples``."""
        path = self.folder / "checkpoints" / f"samples-{samples:012d}"
        return digest(path if samples else newest(self.folder))

    def log(self) -> str:
        """All that the job and its nodes wrote."""
        files = [
            *self.folder.glob("slurm/job-*.out"),
            *self.folder.glob("slurm/*/logs/*/*.log"),
        ]
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(files))


def submit(
    cluster: Cluster, name: str, *flags: str, words: tuple[str, ...] = (), recipe: Path = RECIPE
) -> Job:
    """``genus submit`` as the ordinary user; AssertionError where it refuses."""
    words = (f"train.samples={SAMPLES}", *words)
    told = ask(cluster, name, *flags, words=words, recipe=recipe)
    assert told[0] == 0, told[1]
    number = re.search(r"^job (\d+):", told[1], re.MULTILINE)
    assert number is not None, told[1]
    return Job(cluster, number.group(1), cluster.home / "runs" / name)


def ask(
    cluster: Cluster, name: str, *flags: str, words: tuple[str, ...] = (), recipe: Path = RECIPE
) -> tuple[int, str]:
    """Exit code and output of ``genus submit``."""
    done = cluster.command("genus", "submit", str(recipe), *flags, "--", *TINY,
                           f"run.name={name}", *words)  # fmt: skip
    return done.returncode, done.stdout
