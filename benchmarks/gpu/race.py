"""Networks that train beside one another in one process: the batch that fits, and a step's time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SAME_LOSS = 0.02
"""Bfloat16 rounds differently in different programs."""


@dataclass(frozen=True)
class Contender:
    """A network in training. ``loss`` takes the network, tokens and targets, each (B, T)."""

    name: str
    network: nn.Module
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer

    def step(self, tokens: Tensor) -> Tensor:
        """One training step on tokens (B, T + 1); returns the loss."""
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(tokens.device.type, torch.bfloat16):
            loss = self.loss(self.network, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


def largest_batch(contender: Contender, tokens_of: Callable[[int], Tensor], limit: int) -> int:
    """The largest power of two up to ``limit`` that has room; SystemExit where not even 1 has.
    ``tokens_of`` makes a batch of so many rows."""
    largest, batch = 0, 1
    with suppress(torch.OutOfMemoryError):
        while batch <= limit:
            contender.step(tokens_of(batch))
            largest, batch = batch, 2 * batch
    contender.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    if not largest:
        raise SystemExit(f"the device has no room for a row of {contender.name}")
    return largest


@dataclass(frozen=True)
class Timing:
    """Of one contender."""

    seconds: list[float]
    """A step's, of each round."""
    memory: int
    """Bytes at the peak of a step, on top of weights and optimizer state; 0 on a CPU."""


def timings(
    racing: list[Contender], tokens: Tensor, rounds: int, steps: int, same: int
) -> list[Timing]:
    """Rounds in which every contender makes ``steps`` steps, after one to warm up. AssertionError
    where the losses of the first ``same`` contenders differ."""
    cuda = tokens.is_cuda
    seconds: list[list[float]] = [[] for _ in racing]
    memory = [0] * len(racing)
    losses = [float(one.step(tokens)) for one in racing]  # which compiles them
    spread = max(losses[:same]) - min(losses[:same])
    assert spread < SAME_LOSS, f"the losses differ: {losses}"
    for one in racing:
        one.optimizer.zero_grad(set_to_none=True)

    def now() -> float:
        if not cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    order = list(range(len(racing)))
    for round in range(rounds + 1):
        for at in order:
            before = 0
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = now()
            for _ in range(steps):
                racing[at].step(tokens)
            elapsed = now() - start
            if cuda:
                memory[at] = torch.cuda.max_memory_allocated() - before
            racing[at].optimizer.zero_grad(set_to_none=True)
            if round:
                seconds[at].append(elapsed / steps)
        order = order[1:] + order[:1]  # who goes first changes
    return [Timing(values, peak) for values, peak in zip(seconds, memory, strict=True)]
