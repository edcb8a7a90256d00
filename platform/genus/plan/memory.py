"""Bytes of one rank in a training step, by strategy, from the trace of a step that holds all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from genus.plan.step import Traced
from genus.strategies.choice import Choice

BUCKET = 500_000_000
"""DeepSpeed's default reduce_bucket_size, numbers."""
LIVE = 1_000_000_000
"""DeepSpeed's default stage3_max_live_parameters, numbers."""


@dataclass(frozen=True)
class Memory:
    """Of one rank, at the worst moment of a step, in bytes."""

    parameters: int
    """Weights and buffers, and the float32 copies that a strategy keeps of them."""
    optimizer: int
    averages: int
    gradients: int
    """Where they are whole, or this rank's share."""
    buffers: int
    """Of the exchange: buckets, gathered weights."""
    activations: int
    """Kept for the backward pass, and passing."""

    @property
    def peak(self) -> int:
        return sum(asdict(self).values())

    @property
    def state(self) -> int:
        """What is there between steps."""
        return self.parameters + self.optimizer + self.averages


def memory_of(traced: Traced, choice: Choice, ranks: int) -> Memory:
    """Of one rank, at the peak of a step."""
    if choice.name == "ddp" or (ranks == 1 and not choice.stage):
        return _whole(traced, ranks)
    if choice.name in ("fsdp2", "hybrid"):
        return _fully_sharded(traced, choice, ranks)
    return _zero(traced, choice, ranks)


def _whole(traced: Traced, ranks: int) -> Memory:
    """DDP's buckets are a second copy of the gradients, from the first backward on."""
    w = traced.weights
    return Memory(
        parameters=w.parameters + w.buffers,
        optimizer=w.optimizer,
        averages=w.averages,
        gradients=traced.gradients_at_peak,
        buffers=w.trained if ranks > 1 else 0,
        activations=traced.activations,
    )


def _fully_sharded(traced: Traced, choice: Choice, ranks: int) -> Memory:
    """What is no block stays gathered from the forward pass on. A block is gathered into a flat
    buffer and cut into parameters while the next one already is; its gradient, whole, is laid flat
    for the reduce-scatter."""
    w, shards = traced.weights, ranks // choice.replicas
    largest = max(w.units, default=0)
    rest = w.parameters - sum(w.units)
    gathered = w.parameters if not choice.reshard else rest + 2 * largest
    flat = max(largest, rest)
    held = min(traced.gradients_at_peak, w.gradients) // shards
    passing = min(largest or rest, traced.gradients_at_peak)
    return Memory(
        parameters=w.parameters // shards + w.buffers,
        optimizer=w.optimizer // shards,
        averages=w.averages // shards,
        gradients=held + passing,
        buffers=gathered + flat,
        activations=traced.activations,
    )


def _zero(traced: Traced, choice: Choice, ranks: int) -> Memory:
    """The network's weights lie in a flat buffer of which this rank's part is copied: DeepSpeed
    keeps a master copy even where weights are float32 already. Read off DeepSpeed's
    stage_1_and_2.py and stage3.py."""
    w, said = traced.weights, choice.deepspeed.get("zero_optimization", {})
    bucket = 4 * int(_number(said, "reduce_bucket_size", BUCKET))
    part = w.parameters // ranks
    gradients = traced.gradients_at_peak
    if choice.stage > 1:
        gradients = min(gradients, w.gradients // ranks)
    offloaded = said.get("offload_optimizer", {}).get("device", "none") != "none"
    buckets = bucket * (2 if said.get("overlap_comm") is True else 1)
    weights = w.parameters + part
    if choice.stage == 3:
        live = 4 * int(_number(said, "stage3_max_live_parameters", LIVE))
        # as measured on two ranks: beside the live weights what they were gathered into, and the
        # network that evaluations call
        buckets = bucket + min(live, w.parameters) + 2 * w.parameters
        weights = 2 * part
    return Memory(
        parameters=(weights - part if offloaded else weights) + w.buffers,
        optimizer=0 if offloaded else w.optimizer // ranks,
        averages=0 if offloaded else w.averages // ranks,
        gradients=gradients,
        buffers=buckets,
        activations=traced.activations,
    )


def _number(said: Any, key: str, default: float) -> float:
    value = said.get(key, default)
    return default if value == "auto" else float(value)
