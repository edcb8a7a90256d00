"""What to change so that a run fits, and the largest micro-batch that does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from genus.plan.estimate import Where, traces
from genus.plan.job import Job
from genus.plan.memory import memory_of
from genus.plan.step import Traced
from genus.strategies.choice import Choice, Name


@dataclass(frozen=True)
class Line:
    """Activations of a micro-batch: what is there anyway, and what each row adds, bytes."""

    fixed: float
    a_row: float

    def at(self, rows: int) -> float:
        return self.fixed + self.a_row * rows


class Search:
    """Looks for settings of one job. Traces are kept: they do not depend on the strategy."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self._known: dict[tuple[int, bool, bool], Traced] = {}

    def traced(self, job: Job, rows: int) -> Traced:
        """A step with micro-batches of ``rows``, of the batch that needs most."""
        key = rows, bool(job.config.train.recompute), rows < job.share
        if key not in self._known:
            found = traces(with_train(job, micro=rows), rows, gpu=self.where.gpu is not None)
            self._known[key] = max(found, key=lambda t: t.peak)
        return self._known[key]

    def peak(self, job: Job, rows: int) -> int:
        """Bytes of a rank."""
        traced = self.traced(job, rows)
        return memory_of(traced, job.choice, job.processes).peak

    def line(self, job: Job) -> Line:
        """From the two smallest micro-batches: 1 and 2 rows, or as many that are looked at
        together."""
        least = job.together
        one, two = (self.traced(job, rows).activations for rows in (least, 2 * least))
        return Line(2 * one - two, (two - one) / least)

    def largest_micro(self, job: Job) -> int:
        """Samples of the largest micro-batch that fits and divides a rank's share; 0: none.

        The line says where to look; what is returned has been traced.
        """
        room, least = self.where.usable, job.together
        if job.share < 2 * least:
            return job.share if self.peak(job, job.share) <= room else 0
        line, one = self.line(job), self.traced(job, least)
        rest = memory_of(one, job.choice, job.processes).peak - one.activations
        sizes = [n for n in range(least, job.share + 1, least) if job.share % n == 0]
        # 1.25: the line is drawn with small batches, whose peak may lie elsewhere in the step
        likely = [n for n in sizes if n == least or rest + line.at(n) <= 1.25 * room]
        return next((n for n in reversed(likely) if self.peak(job, n) <= room), 0)

    def changes(self, job: Job) -> list[Change]:
        """What makes a job fit that does not, the least intrusive first."""
        found = []
        for settings, changed in _variants(job):
            if rows := self.largest_micro(changed):
                micro = () if rows == job.micro else (f"train.micro={rows}",)
                found.append(Change((*settings, *micro), self.peak(changed, rows)))
        return found


@dataclass(frozen=True)
class Change:
    """Settings under which the run fits."""

    settings: tuple[str, ...]
    peak: int


def _variants(job: Job) -> Iterator[tuple[tuple[str, ...], Job]]:
    yield (), job
    recompute = "train.recompute=true"
    recomputing = with_train(job, recompute=True)
    if not job.config.train.recompute:
        yield (recompute,), recomputing
    if job.processes == 1:
        return
    others: list[Name] = ["zero1", "fsdp2"] if job.config.optim.elementwise else ["fsdp2"]
    for name in others:
        if name != job.choice.name:
            yield (f"train.strategy={name}",), replace(job, choice=Choice(name))
    if job.choice.name != "fsdp2" and not job.config.train.recompute:
        both = replace(recomputing, choice=Choice("fsdp2"))
        yield ("train.strategy=fsdp2", recompute), both


def with_train(job: Job, **train: Any) -> Job:
    """The job with other settings of its TrainConfig."""
    changed = replace(job.config.train, **train)
    return replace(job, config=replace(job.config, train=changed))
