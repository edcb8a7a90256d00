"""One training step of a job, traced: its memory by kind, and its operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.networks.units import recompute, units_of
from genus.optim.ema import EMA
from genus.plan.disguise import as_gpu, autocast, backward
from genus.plan.job import Job
from genus.plan.rows import faked, first_rows
from genus.plan.trace import Operation, Trace, fakes
from genus.strategies.data_parallel import (
    Whole,
    clip_to,
    freeze_all_but,
    sum_of_squares,
    trainable_of,
)


@dataclass(frozen=True)
class Weights:
    """Bytes of what a run holds between steps, of one whole copy."""

    parameters: int
    buffers: int
    optimizer: int
    averages: int
    gradients: int
    units: tuple[int, ...]
    """Of the blocks that a network repeats, each one's parameters."""
    count: int
    """Parameters."""
    trained: int
    """Bytes of the parameters that phases train."""


@dataclass(frozen=True)
class Traced:
    """One step of one process that holds everything."""

    rows: int
    """Of a micro-batch."""
    weights: Weights
    peak: int
    """Bytes at the worst moment, all kinds together."""
    gradients_at_peak: int
    forward: tuple[Operation, ...]
    """Of one micro-batch, forward and backward; of a phase that is due at every k-th step the
    k-th part."""
    update: tuple[Operation, ...]
    """Of the clipping, the optimizer and the averages, once a step."""

    @property
    def activations(self) -> int:
        """What of the peak grows with the micro-batch: kept for the backward pass, and passing."""
        w = self.weights
        held = w.parameters + w.buffers + w.optimizer + w.averages
        return self.peak - held - self.gradients_at_peak


def trace_step(job: Job, batch: Batch, rows: int, *, gpu: bool = False) -> Traced:
    """A step with micro-batches of ``rows``, which the batch has. Moments exist: the first step,
    which makes them, has less. ``gpu``: with what a GPU's kernels keep."""
    disguise = as_gpu(job.precision) if gpu else nullcontext()
    accumulates = job.share > rows
    with fakes() as mode:
        networks, objective = job.build(job.config, job.info)
    if job.config.train.recompute:
        for network in networks.values():
            recompute(network)
    micro = faked(first_rows(batch, rows), mode)
    trace = Trace()
    with trace, disguise:
        run = _Run(job, networks, trace)
        for field in micro.fields.values():
            trace.hold(field)
        trace.restart()
        peak_gradients = [0]
        trace.on_peak = lambda: peak_gradients.__setitem__(0, run.gradients)
        forward: list[Operation] = []
        update: list[Operation] = []
        for phase in objective.phases:
            for repeat in range(2 if accumulates else 1):
                trace.operations = []
                with run.only(phase.trains):
                    with autocast(job.precision):
                        loss, metrics = phase.loss(networks, micro.scoped(phase.name))
                    run.backward(loss * (rows / job.share))
                del loss, metrics
                if repeat == 0:
                    forward += [done.shared(phase.every) for done in trace.operations]
            trace.operations = []
            run.step(phase.trains)
            update += [done.shared(phase.every) for done in trace.operations]
        trace.operations = []
        run.average()
        update += trace.operations
        peak = trace.peak
    return Traced(rows, run.weights, peak, peak_gradients[0], tuple(forward), tuple(update))


class _Run:
    """Networks, optimizers and averages of fake tensors, as the loop uses real ones."""

    def __init__(self, job: Job, networks: Mapping[str, nn.Module], trace: Trace) -> None:
        self.networks, self.clip = networks, job.config.train.clip
        self._cfg = job.config
        held = [trace.live]
        for network in networks.values():
            for tensor in (*network.parameters(), *network.buffers()):
                trace.hold(tensor)
        held.append(trace.live)
        self.averages = EMA(job.config.ema, Whole(networks))
        held.append(trace.live)
        self.optimizers = {n: job.config.optim.build(network) for n, network in networks.items()}
        self._trainable = trainable_of(networks)
        parameters = [p for owned in self._trainable.values() for p in owned]
        self.gradients = 0
        self._seen: set[int] = set()
        for p in parameters:  # an update without gradients to speak of makes the moments
            p.grad = torch.zeros_like(p)
        self.step(list(networks))
        held.append(trace.live)
        for p in parameters:
            hook: Any = p.register_post_accumulate_grad_hook
            hook(self._has_gradient)
        everything = [p for network in networks.values() for p in network.parameters()]
        total = sum(map(_size, everything))
        self.weights = Weights(
            parameters=total,
            buffers=held[1] - held[0] - total,
            optimizer=held[3] - held[2],
            averages=held[2] - held[1],
            gradients=sum(map(_size, parameters)),
            units=tuple(
                sum(_size(p) for p in unit.parameters())
                for network in networks.values()
                for unit in units_of(network).values()
            ),
            count=sum(p.numel() for p in everything),
            trained=sum(map(_size, parameters)),
        )

    def _has_gradient(self, parameter: Tensor) -> None:
        if id(parameter) not in self._seen:
            self._seen.add(id(parameter))
            self.gradients += _size(parameter)

    @contextmanager
    def only(self, trains: Any) -> Iterator[None]:
        freeze_all_but(trains, self._trainable)
        yield

    def backward(self, loss: Tensor) -> None:
        backward(loss)

    @torch.no_grad()
    def step(self, trains: Any) -> None:
        optimizers = [optimizer for name in trains for optimizer in self.optimizers[name]]
        parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        clip_to(self.clip, sum_of_squares(parameters, torch.device("cpu")).sqrt(), parameters)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.gradients, self._seen = 0, set()

    def average(self) -> None:
        self.averages.update(10_000, 100)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
