"""Run by test_parallel.py under every launcher: what a World of the expected size must do.

world_checks.py SIZE PRECISION      the first rank prints its world as a JSON line
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from genus import config
from genus.errors import ConfigError
from genus.optim.build import AdamWConfig
from genus.parallel import World
from genus.strategies.data_parallel import DataParallel


def agreement(world: World) -> None:
    """A flag that one rank raises is learnt by all ranks at the same call."""
    last = world.size - 1
    heard = []
    for call in range(6):
        mine = [world.rank == last and call == 2, False, world.is_first and call == 4]
        heard.append(world.agree(mine))
    late = 0 if world.size == 1 else 1
    expected = [[call == 2 + late, False, call == 4 + late] for call in range(6)]
    assert heard == expected, heard


def exchange(world: World) -> None:
    """Maximum, mean, broadcast and gathering are over all ranks."""
    numbers = torch.arange(world.size, dtype=torch.float64)
    mine = torch.tensor(float(world.rank), dtype=torch.float64)
    assert world.max_(mine.clone()) == numbers.max()
    assert world.mean(mine.clone()) == numbers.mean()
    assert world.broadcast(Path(f"/from/{world.rank}")) == Path("/from/0")
    rows = world.gather_rows(torch.full((2, 3), world.rank))
    assert (rows is None) == (not world.is_first)
    if rows is not None:
        assert rows[:, 0].tolist() == [r for r in range(world.size) for _ in range(2)]
    world.barrier()


class Pair(nn.Module):
    """A layer that trains and a parameter that is fixed for good."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        self.fixed = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) * self.fixed
        return y


def training(world: World) -> None:
    """Gradients are means over ranks, of the networks that a phase trains only."""
    torch.manual_seed(world.rank)  # the first rank's weights count
    networks = {"a": Pair(), "b": Pair()}
    mine = DataParallel(world, networks, AdamWConfig(), clip=0.0)
    prepared = mine.prepared
    weights = {name: networks[name].layer.weight for name in networks}
    for weight in weights.values():
        assert torch.equal(world.mean(weight.detach().clone()), weight)

    x = torch.full((4, 2), world.rank + 1.0, dtype=torch.float64)
    for trained, frozen in (("a", "b"), ("b", "a")):
        for sync in (False, True):  # two micro-batches
            with mine.only([trained], last=sync):
                loss = prepared["b"](prepared["a"](x)).sum()
                loss.backward()
        assert weights[frozen].grad is None, frozen
        assert not networks[trained].fixed.requires_grad
        assert networks[trained].fixed.grad is None
        grad = weights[trained].grad
        assert grad is not None
        everywhere = world.gather_rows(grad.reshape(1, -1))
        if everywhere is not None:
            assert torch.equal(everywhere, everywhere[:1].expand_as(everywhere))
        # By hand, for all ranks' batches and both micro-batches; their mean is what DDP makes.
        a, b = (w.detach().clone().requires_grad_(name == trained) for name, w in weights.items())
        inputs = [torch.full((4, 2), r + 1.0, dtype=torch.float64) for r in range(world.size)]
        total = sum((2 * (r @ a.T @ b.T).sum() for r in inputs), torch.zeros(()))
        total.backward()
        by_hand = (a if trained == "a" else b).grad
        assert by_hand is not None
        assert torch.allclose(grad, by_hand / world.size, rtol=1e-12, atol=0)
        weights[trained].grad = None


def main() -> None:
    size, precision = int(sys.argv[1]), sys.argv[2]
    try:
        world = World(precision)  # type: ignore[arg-type]
    except ConfigError as error:
        config.fail(str(error))
    assert world.size == size, world.size
    assert world.rank == int(os.environ.get("RANK", "0"))
    agreement(world)
    exchange(world)
    if world.precision == "fp32":
        training(world)
    else:  # products in bfloat16, weights in float32
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, 1 + 2**-10)
        mine = DataParallel(world, {"layer": layer}, AdamWConfig(), clip=0.0)
        out = mine.prepared["layer"](torch.ones(1, 1))
        assert (layer.weight.dtype, out.dtype, out.item()) == (torch.float32,) * 2 + (1.0,)
    if world.is_first:
        print(json.dumps({"size": world.size, "is": world.describe()}), flush=True)
    world.close()


if __name__ == "__main__":
    main()
