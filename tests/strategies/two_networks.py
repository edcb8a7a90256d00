"""Run by test_strategies_unit.py on two ranks: a generator and a critic under every strategy.

two_networks.py OUT.pt STRATEGY...      the first rank writes {strategy: {name: weights}}
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genus.objectives.phase import Networks, Phase
from genus.optim.build import AdamWConfig
from genus.optim.ema import EMA, PowerEMAConfig
from genus.parallel import World
from genus.strategies.making import spread
from genus.strategies.spread import Spread

OPTIM = AdamWConfig(lr=1e-2, eps=1e-6, weight_decay=0.1)
STEPS, MICROS = 3, 2


class Scaled(nn.Module):
    """Blocks, a parameter without dimensions, one that is fixed, and a buffer."""

    counts: Tensor

    def __init__(self, width: int, scalar: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(2)
        )
        self.scale = nn.Parameter(torch.full(() if scalar else (1,), 1.5))
        self.fixed = nn.Parameter(torch.ones(width), requires_grad=False)
        self.register_buffer("counts", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x * self.scale * self.fixed


def critic_loss(networks: Networks, z: Any) -> tuple[Tensor, dict[str, Tensor]]:
    fake = networks["generator"](z).detach()
    return (networks["critic"](fake) - networks["critic"](z.flip(1))).square().mean(), {}


def generator_loss(networks: Networks, z: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return -networks["critic"](networks["generator"](z)).mean(), {}


PHASES = (
    Phase("critic", ("critic",), critic_loss),
    Phase("generator", ("generator",), generator_loss),
)


class Settings:
    precision, strategy = "fp32", "auto"
    recompute = compile = False
    clip, batch = 0.05, 8

    def __init__(self, recompute: bool = False) -> None:
        self.recompute = recompute


def networks(scalar: bool) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: Scaled(6, scalar) for name in ("generator", "critic")}


def rows(world: World, step: int, micro: int) -> Tensor:
    """This rank's share of 8 rows: together the same on any number of ranks."""
    torch.manual_seed(100 * step + micro)
    return torch.randn(8, 6).chunk(world.size)[world.rank]


def update(world: World, mine: Spread, step: int, spoil: bool = False) -> list[float]:
    """One step of both phases; each one's flag."""
    flags = []
    for phase in PHASES:
        bad = torch.zeros(())
        for micro in range(MICROS):
            with mine.only(phase.trains, last=micro == MICROS - 1):
                z: Any = rows(world, step, micro)
                loss, _ = mine.loss(phase, z)
                if spoil and world.rank == world.size - 1:
                    loss = loss * float("nan")
                mine.backward(loss / MICROS, phase.trains)
            bad = torch.maximum(bad, (~torch.isfinite(loss.detach())).float())
        flags.append(float(mine.step(phase.trains, bad)[1]))
    return flags


def whole(mine: Spread) -> dict[str, Tensor]:
    parts = mine.layout.live
    return {name: mine.layout.whole(name, part).clone() for name, part in parts.items()}


def trained(world: World, recompute: bool = False) -> dict[str, Tensor]:
    """Weights and averages after the steps, of which one is spoilt on one rank."""
    plain = networks(scalar=world.choice.stage == 0)  # ZeRO refuses them
    mine = spread(world, plain, PHASES, OPTIM, Settings(recompute))  # type: ignore[arg-type]
    averages = EMA(PowerEMAConfig(widths=(0.1,)), mine.layout)
    for step in range(STEPS):
        assert update(world, mine, step) == [0, 0]
        averages.update(8 * (step + 1), 8)
    before = whole(mine)
    assert update(world, mine, STEPS, spoil=True) == [1, 1]
    after = whole(mine)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert update(world, mine, STEPS) == [0, 0]
    found = whole(mine)
    with torch.no_grad():  # what a forward without a backward leaves gathered must not be used
        mine.prepared["generator"](torch.ones(2, 6))
    with averages.applied(), torch.no_grad():
        for _ in range(1 + world.rank):  # ranks may evaluate as often as they like, alone
            shown = plain["generator"](torch.ones(2, 6))
    again = whole(mine)
    assert all(torch.equal(again[name], value) for name, value in found.items())
    return {**found, "shown": shown, "counts": plain["generator"].get_buffer("counts")}


def main() -> None:
    found = {}
    for strategy in sys.argv[2:]:
        world = World(strategy=strategy)  # type: ignore[arg-type]
        found[strategy] = trained(world)
        found[f"{strategy} recompute"] = trained(world, recompute=True)
    if world.is_first:
        torch.save(found, Path(sys.argv[1]))
    world.close()


if __name__ == "__main__":
    os.environ["LOCAL_WORLD_SIZE"] = "2"  # of four ranks: two nodes
    main()
