"""Run by test_plan_communication.py on two ranks: counts what real steps send.

For each case the first rank prints a JSON line: [case, bytes predicted, bytes counted].
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genus.data.batch import Batch
from genus.draws import Draws
from genus.loop import TrainConfig
from genus.networks.transformer.decoder import TransformerConfig
from genus.networks.units import units_of
from genus.objectives.next_token import NextTokenConfig
from genus.optim.build import AdamWConfig, MuonConfig
from genus.parallel import World
from genus.plan.communication import Sizes, counted, volume
from genus.strategies.making import spread

CASES: list[tuple[str, Any]] = [
    ("ddp", AdamWConfig()),
    ("fsdp2", AdamWConfig()),
    ("fsdp2", MuonConfig()),
]
LARGE = 1024
"""Bytes; less is a norm or a flag."""


class Counter(TorchDispatchMode):
    """The collectives of what runs within, as (kind, bytes of the whole tensor)."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "c10d" in func.namespace:
            tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
            self._saw(str(func).replace("_", ""), [x.nbytes for x in tensors])
        return func(*args, **(kwargs or {}))

    def _saw(self, name: str, sizes: list[int]) -> None:
        if not sizes or max(sizes) <= LARGE:
            return
        if "allreduce" in name:
            self.calls.append(("all_reduce", sum(sizes)))
        elif "reducescatter" in name:
            self.calls.append(("reduce_scatter", max(sizes)))
        elif "allgatherintotensor" in name:  # a share goes in
            self.calls.append(("all_gather", self.ranks * sizes[0]))
        elif "allgatherbase" in name:
            self.calls.append(("all_gather", max(sizes)))
        elif "allgather" in name:  # the outputs, and this rank's input
            self.calls.append(("all_gather", sum(sizes) - min(sizes)))


def main() -> None:
    for strategy, optim in CASES:
        world, found = step(strategy, optim)
        if world.is_first:
            print(json.dumps([f"{strategy} {type(optim).__name__}", *found]))
    world.barrier()
    world.close()


def step(strategy: Any, optim: Any) -> tuple[World, tuple[float, float]]:
    """One step; predicted and counted bytes."""
    train = TrainConfig(batch=8, samples=80, strategy=strategy)
    world = World(train.precision, train.strategy)
    network = TransformerConfig(width=64, depth=3, heads=2).build(vocabulary=64, length=16)
    total = sum(p.nbytes for p in network.parameters())
    units = sum(p.nbytes for unit in units_of(network).values() for p in unit.parameters())
    matrices = 0
    if not optim.elementwise:
        plain = optim.build(network)[0]
        matrices = sum(p.nbytes for group in plain.param_groups for p in group["params"])
    sizes = Sizes(total, total, units, matrices if strategy == "fsdp2" else 0)
    objective = NextTokenConfig().build(16)
    mine = spread(world, {"model": network}, objective.phases, optim, train)
    tokens = torch.randint(64, (4, 17), dtype=torch.int32)
    batch = Batch({"tokens": tokens, "document": tokens}, torch.arange(4), 0, Draws.of(range(4)))
    phase = objective.phases[0]
    with Counter(world.size) as seen:
        with mine.only(phase.trains, last=True):
            loss, _ = mine.loss(phase, batch)
            mine.backward(loss, phase.trains)
        mine.step(phase.trains, torch.zeros(()))
    predicted = volume(world.choice, world.size, sizes).total
    return world, (predicted, counted(seen.calls, world.size))


if __name__ == "__main__":
    main()
