"""The plan of a run: what a rank needs, what a step takes, what the whole will cost."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genus.errors import ConfigError
from genus.plan.communication import Sizes, Volume, volume
from genus.plan.job import Job
from genus.plan.machines import GPU
from genus.plan.memory import Memory, memory_of
from genus.plan.rows import samples_of
from genus.plan.speed import Seconds, exposed, measured, roofline
from genus.plan.step import Traced, trace_step

SCHEMA = "genus-plan/1"


@dataclass(frozen=True)
class Where:
    """What a job would run on."""

    gpu: GPU | None
    """None: this machine's CPU."""
    nodes: int = 1
    disk_gbs: float = 0.0
    """What all ranks together write, 10^9 bytes a second; 0: measured here."""

    @property
    def name(self) -> str:
        return self.gpu.name if self.gpu else "this CPU"

    @property
    def usable(self) -> float:
        """Bytes for tensors of one rank."""
        return self.gpu.usable if self.gpu else free_memory()


@dataclass(frozen=True)
class Plan:
    """All that is predicted of one way to run a job."""

    recipe: str
    preset: str
    strategy: str
    machine: str
    processes: int
    precision: str
    recompute: bool
    rows: int
    """Of a micro-batch on one rank."""
    micros: int
    """Micro-batches of a step."""
    batch: int
    samples: int
    parameters: int
    """Numbers."""
    memory: Memory
    usable: int
    sent: Volume
    """Bytes of a rank in a step."""
    checkpoint: int
    """Bytes of all ranks together."""
    checkpoint_seconds: float
    step_seconds: float
    """0: not estimated."""

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.usable

    @property
    def samples_per_second(self) -> float:
        return self.batch / self.step_seconds if self.step_seconds else 0.0

    @property
    def hours(self) -> float:
        return self.samples / self.samples_per_second / 3600 if self.step_seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """As plan.json holds it."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "peak_bytes": self.memory.peak,
            "samples_per_second": self.samples_per_second,
            "hours": self.hours,
            "fits": self.fits,
        }


def traces(job: Job, rows: int, *, gpu: bool) -> list[Traced]:
    """Steps of the job with micro-batches of ``rows``: of several batches where they differ."""
    return [trace_step(job, batch, rows, gpu=gpu) for batch in samples_of(job, rows)]


def plan(job: Job, where: Where, *, timed: bool = True) -> Plan:
    """The plan of a job as it is. ``timed``: with the time of a step, which on a CPU takes a few
    real ones."""
    traced = traces(job, job.micro, gpu=where.gpu is not None)
    return _planned(job, where, traced, timed)


def _planned(job: Job, where: Where, traced: Sequence[Traced], timed: bool) -> Plan:
    cfg = job.config
    micros = -(-job.share // job.micro)
    most = max(traced, key=lambda t: t.peak)
    if job.choice.name == "hybrid" and job.processes % job.choice.replicas:
        raise ConfigError(
            f"{job.processes} ranks can't be split into {job.choice.replicas} equal replicas"
        )
    memory = memory_of(most, job.choice, job.processes)
    sent = volume(job.choice, job.processes, sizes_of(most, job), micros)
    w = most.weights
    checkpoint = w.parameters + w.buffers + w.optimizer + w.averages
    return Plan(
        recipe=job.recipe.name,
        preset=job.preset,
        strategy=str(job.choice),
        machine=where.name,
        processes=job.processes,
        precision=job.precision,
        recompute=cfg.train.recompute,
        rows=job.micro,
        micros=micros,
        batch=cfg.train.batch,
        samples=cfg.train.samples,
        parameters=w.count,
        memory=memory,
        usable=int(where.usable),
        sent=sent,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint / (1e9 * (where.disk_gbs or disk_speed(cfg.run.root))),
        step_seconds=_step_seconds(job, where, traced, sent, micros) if timed else 0.0,
    )


def sizes_of(traced: Traced, job: Job) -> Sizes:
    """What the exchange is about. Muon's momenta are gathered, each as large as its matrix: a
    checkpoint's moments are those and AdamW's two a parameter."""
    w = traced.weights
    matrices = 0 if job.config.optim.elementwise else max(0, 2 * w.trained - w.optimizer)
    return Sizes(w.parameters, w.trained, sum(w.units), matrices)


def _step_seconds(
    job: Job, where: Where, traced: Sequence[Traced], sent: Volume, micros: int
) -> float:
    share = job.share / job.micro
    if where.gpu is None:
        if job.processes > 1:
            return 0.0  # processes that share cores: nothing measured alone tells of them
        taken: Seconds = measured(job)
        return taken.step(share)
    gpu = where.gpu
    typical = traced[0]
    forward, update = roofline(typical.forward, gpu), roofline(typical.update, gpu)
    if job.choice.name != "ddp":
        update /= job.processes // job.choice.replicas
    wait = exposed(sent.inside, sent.across, gpu, where.nodes, forward)
    return Seconds(0.0, forward, update).step(share) + wait


def free_memory() -> int:
    """Bytes that a process could take now, on Linux."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def disk_speed(root: str, size: int = 32 * 2**20) -> float:
    """10^9 bytes a second of a file written where runs lie, fsync included."""
    folder = Path(root)
    while not folder.is_dir():
        folder = folder.parent
    data = os.urandom(2**20)
    start = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(size // len(data)):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"can't write to run.root={root}: {error}") from None
    return size / (time.perf_counter() - start) / 1e9
