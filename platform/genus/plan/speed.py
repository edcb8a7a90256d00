"""Seconds of a step: on a CPU by taking a few, on a GPU by a roofline of what was traced."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from genus.data.batch import Batch
from genus.draws import seed_of
from genus.networks.units import recompute
from genus.objectives.phase import Phase
from genus.optim.ema import EMA
from genus.plan.disguise import autocast
from genus.plan.job import Job
from genus.plan.machines import EFFICIENCY, GPU
from genus.plan.rows import batches, first_rows
from genus.plan.trace import Operation
from genus.strategies.data_parallel import (
    Whole,
    clip_to,
    freeze_all_but,
    sum_of_squares,
    trainable_of,
)


@dataclass(frozen=True)
class Seconds:
    """Of the parts of one step on one rank."""

    data: float
    """Waiting for a batch."""
    micro: float
    """One forward and backward of a micro-batch."""
    update: float
    """Clipping, optimizer and averages."""

    def step(self, micros: float) -> float:
        """Of a whole step, without communication."""
        return self.data + micros * self.micro + self.update


class Trial:
    """A few real steps of one process; each ``take`` is one, of one micro-batch.

    ``clock`` is time.perf_counter, or time.process_time where neighbours are to be left out.
    """

    def __init__(self, job: Job, clock: Callable[[], float] = time.perf_counter) -> None:
        self.job, self.clock = job, clock
        cfg = job.config
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(cfg.run.seed)
            self.networks, self.objective = job.build(cfg, job.info)
        for network in self.networks.values():
            if cfg.train.recompute:
                recompute(network)
        self.optimizers = {n: cfg.optim.build(network) for n, network in self.networks.items()}
        self.averages = EMA(cfg.ema, Whole(self.networks))
        self._trainable = trainable_of(self.networks)
        self._batches: Iterator[Batch] = batches(job, job.micro)

    def take(self) -> Seconds:
        """Seconds of one step's parts; the first call also warms up what is slow at first."""
        start = self.clock()
        batch = next(self._batches)
        data = self.clock() - start
        micro, update = 0.0, 0.0
        for phase in self.objective.phases:
            start = self.clock()
            self._forward_and_backward(phase, first_rows(batch, self.job.micro))
            middle = self.clock()
            self._update(phase.trains)
            micro += (middle - start) / phase.every
            update += (self.clock() - middle) / phase.every
        start = self.clock()
        self.averages.update(100_000, self.job.config.train.batch)
        return Seconds(data, micro, update + self.clock() - start)

    def _forward_and_backward(self, phase: Phase, micro: Batch) -> None:
        torch.default_generator.manual_seed(seed_of(0, micro.position, phase.name))
        freeze_all_but(phase.trains, self._trainable)
        with autocast(self.job.precision):
            loss, _ = phase.loss(self.networks, micro.scoped(phase.name))
        loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _update(self, trains: Sequence[str]) -> None:
        optimizers = [o for name in trains for o in self.optimizers[name]]
        parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        norm = sum_of_squares(parameters, torch.device("cpu")).sqrt()
        clip_to(self.job.config.train.clip, norm, parameters)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def measured(job: Job, steps: int = 5) -> Seconds:
    """Medians of ``steps`` real steps, after one to warm up."""
    trial = Trial(job)
    trial.take()
    taken = [trial.take() for _ in range(steps)]
    return median(taken)


def median(taken: Sequence[Seconds]) -> Seconds:
    """Part by part."""
    return Seconds(
        data=statistics.median(t.data for t in taken),
        micro=statistics.median(t.micro for t in taken),
        update=statistics.median(t.update for t in taken),
    )


def roofline(operations: Sequence[Operation], gpu: GPU) -> float:
    """Each operation takes what its FLOPs or its bytes take, whichever is more; and all together
    no less than the host needs to start them."""
    total = sum(_seconds(operation, gpu) for operation in operations)
    return max(total, len(operations) * EFFICIENCY.launch)


def _seconds(operation: Operation, gpu: GPU) -> float:
    peak = gpu.fp32_tflops if operation.dtype == torch.float32 else gpu.bf16_tflops
    share = EFFICIENCY.convolutions if "conv" in operation.name else EFFICIENCY.products
    computed = operation.flops / (1e12 * peak * share)
    moved = operation.bytes / (1e9 * gpu.bandwidth_gbs * EFFICIENCY.memory)
    return max(computed, moved)


def exposed(sent_inside: float, sent_across: float, gpu: GPU, nodes: int, backward: float) -> float:
    """Seconds of the exchange that are not hidden behind the backward pass, two thirds of a
    micro-batch. ``sent_inside`` and ``sent_across``: bytes (see ``communication.Volume``)."""
    inside = gpu.link_gbs if nodes == 1 or sent_across else gpu.network_gbs
    seconds = sent_inside / (1e9 * inside) + sent_across / (1e9 * gpu.network_gbs)
    return max(0.0, seconds / EFFICIENCY.links - backward * 2 / 3)
