"""Bytes that a rank sends in a step, by strategy.

N ranks in a ring: an all-gather or a reduce-scatter of B bytes costs a rank (N - 1) / N B, an
all-reduce both (Patarasuk & Yuan 2009). Weights and gradients are float32 (bf16 is autocast's), so
are what is sent. Norms and flags, a few bytes, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from genus.strategies.choice import Choice


@dataclass(frozen=True)
class Volume:
    """What a rank sends in a step, bytes."""

    inside: float
    """Within a group of shards: all ranks, or with hybrid sharding one replica."""
    across: float
    """Among the replicas of hybrid sharding; 0 for the others."""

    @property
    def total(self) -> float:
        return self.inside + self.across


@dataclass(frozen=True)
class Sizes:
    """Bytes of one whole copy."""

    weights: int
    """All parameters."""
    trained: int
    """Parameters that have gradients."""
    units: int
    """Parameters inside the blocks that a network repeats, which are let go between uses."""
    gathered_updates: int = 0
    """Of an optimizer that works on whole matrices (Muon): those that shards are gathered for."""


def volume(choice: Choice, ranks: int, sizes: Sizes, micros: int = 1) -> Volume:
    """``micros``: forward and backward passes of a step."""
    if ranks == 1:
        return Volume(0.0, 0.0)
    if choice.name == "ddp":
        return Volume(all_reduce(sizes.trained, ranks), 0.0)
    if choice.name in ("fsdp2", "hybrid"):
        return _fully_sharded(choice, ranks, sizes, micros)
    if choice.stage < 3:
        # DeepSpeed's buckets are all-reduced and cut (use_multi_rank_bucket_allreduce), where the
        # paper reduce-scatters; stage 2 keeps no gradients to add to and exchanges every time.
        times = micros if choice.stage == 2 else 1
        sent = times * all_reduce(sizes.trained, ranks) + gather(sizes.trained, ranks)
        return Volume(sent, 0.0)
    each = 2 * gather(sizes.weights, ranks) + gather(sizes.trained, ranks)
    return Volume(micros * each, 0.0)


def _fully_sharded(choice: Choice, ranks: int, sizes: Sizes, micros: int) -> Volume:
    """Gathered in each forward, blocks again in each backward, which scatters gradients; replicas
    exchange theirs at the last."""
    shards = ranks // choice.replicas
    again = sizes.units if choice.reshard else 0
    inside = micros * gather(sizes.weights + again + sizes.trained, shards)
    inside += gather(sizes.gathered_updates, shards)
    return Volume(inside, all_reduce(sizes.trained / shards, choice.replicas))


def gather(size: float, ranks: int) -> float:
    """Bytes a rank sends in an all-gather or reduce-scatter of ``size`` bytes in all."""
    return (ranks - 1) / ranks * size


def all_reduce(size: float, ranks: int) -> float:
    """Bytes a rank sends in an all-reduce of ``size`` bytes."""
    return 2 * gather(size, ranks)


def counted(calls: Iterable[tuple[str, int]], ranks: int) -> float:
    """Bytes a rank sends in collectives that were seen: (kind, bytes of the whole tensor)."""
    cost = {"all_reduce": all_reduce, "all_gather": gather, "reduce_scatter": gather}
    return sum(cost[kind](size, ranks) for kind, size in calls)
