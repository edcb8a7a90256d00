"""Run by test_gan_strategies.py on one or two ranks: what a GAN's phases do to the weights.

gan_gradients.py OUT.pt STRATEGY...

Every network takes one step of plain descent with rate 1 for each phase of each regulariser, so
that a weight moves by its gradient. The first rank writes {"strategy/network/regulariser/tensor":
values}.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.draws import Draws
from genus.errors import ConfigError
from genus.networks.gan.dcgan import DCGANConfig
from genus.networks.gan.mlp import MLPGANConfig
from genus.networks.gan.r3gan import R3GANConfig
from genus.networks.gan.stylegan2 import StyleGAN2Config
from genus.objectives.adversarial import AdversarialConfig
from genus.objectives.augmentation.config import AugmentConfig
from genus.parallel import World
from genus.strategies.making import spread

ROWS, MICROS = 8, 2
SMALL = 0.25
"""Factor on the losses: the largest gradients are then about 1."""
GAMMAS = {"r1": 0.5, "r2": 0.5}
DIFFERENCE = {**GAMMAS, "penalty": "finite-difference", "difference_step": 0.1}
REGULARISERS: dict[str, dict[str, Any]] = {
    "none": {"r1": 0.0},
    "R1": {"r1": 0.5},
    "R1 lazy": {"r1": 0.5, "penalty_every": 2},
    "R1 + R2, relativistic": {**GAMMAS, "game": "relativistic"},
    "R1 + R2 by finite differences": DIFFERENCE,
    "R1, augmented": {"r1": 0.5, "augment": AugmentConfig(kind="ada", p=0.8)},
    "path length": {"r1": 0.0, "path_length": 2.0, "mixing": 0.5},
}
STYLED = StyleGAN2Config(
    latent=8, width=8, mapping_layers=2, channels_base=64, channels_max=8, label_layers=1, group=2
)
NETWORKS = {
    "MLP": (MLPGANConfig(latent=2, width=16, depth=2), (3,)),
    "DCGAN": (DCGANConfig(latent=8, width=4), (1, 16, 16)),
    "StyleGAN2": (STYLED, (1, 16, 16)),
    "R3GAN": (R3GANConfig(latent=8, widths=(16, 16, 16), blocks=1, group_width=4), (1, 16, 16)),
}
CLASSES = 3


class Descent:
    """Plain descent with rate 1: a weight moves by its gradient."""

    elementwise: ClassVar[bool] = True

    def build(self, network: nn.Module, updates: float = 1.0) -> list[torch.optim.Optimizer]:
        parameters = list(network.parameters())
        return [torch.optim.SGD([{"params": parameters, "peak": 1.0}], lr=1.0)]


class Settings:
    precision, strategy = "fp32", "auto"
    recompute = compile = False
    clip, batch = 0.0, ROWS * MICROS


def is_possible(network: str, regulariser: str) -> bool:
    """Vectors have no augmentation, plain generators no styles."""
    if regulariser == "path length":
        return network == "StyleGAN2"
    return network != "MLP" or "augment" not in regulariser


def batch_of(world: World, shape: tuple[int, ...], micro: int) -> Batch:
    """This rank's share of a micro-batch: together the same on any number of ranks."""
    generator = torch.Generator().manual_seed(micro)
    data = torch.randn(ROWS, *shape, generator=generator)
    share = slice(world.rank * ROWS // world.size, (world.rank + 1) * ROWS // world.size)
    name = "vector" if len(shape) == 1 else "image"
    draws = Draws.of([100 * micro + row for row in range(ROWS)])
    fields = {name: data[share], "label": (torch.arange(ROWS) % CLASSES)[share]}
    return Batch(fields, torch.arange(ROWS)[share], 0, draws.window(share.start, share.stop))


def moved(world: World, network: str, regulariser: str) -> dict[str, Tensor]:
    """The weights after one step of each phase, in turns, and the path lengths' mean."""
    config, shape = NETWORKS[network]
    torch.manual_seed(0)
    networks = config.build(shape, CLASSES)
    with torch.no_grad():  # what starts at zero would hide the gradients of what lies before it
        for part in networks.values():
            for parameter in part.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    objective = AdversarialConfig(**REGULARISERS[regulariser]).build(networks, shape, CLASSES)
    mine = spread(world, networks, objective.phases, Descent(), Settings())  # type: ignore[arg-type]
    for phase in objective.phases:
        for micro in range(MICROS):
            batch = batch_of(world, shape, micro).scoped(phase.name)
            with mine.only(phase.trains, last=micro == MICROS - 1):
                loss, _ = mine.loss(phase, batch)
                mine.backward(loss * (SMALL / MICROS), phase.trains)
        assert float(mine.step(phase.trains, torch.zeros(()))[1]) == 0
    objective.after_step(mine.prepared, ROWS * MICROS)
    found = {name: mine.layout.whole(name, part).clone() for name, part in mine.layout.live.items()}
    return {**found, "path_length": objective.path_length.mean, "p": objective.controller.p}


def main() -> None:
    out, found = Path(sys.argv[1]), {}
    for strategy in sys.argv[2:]:
        world = World(strategy=strategy)  # type: ignore[arg-type]
        for network in NETWORKS:
            for regulariser in REGULARISERS:
                key = f"{strategy}/{network}/{regulariser}"
                if is_possible(network, regulariser):
                    try:
                        found |= {
                            f"{key}/{name}": value
                            for name, value in moved(world, network, regulariser).items()
                        }
                    except ConfigError as error:
                        found[f"{key}/refused: {error}"] = torch.zeros(1)
                    print(key, flush=True)
    if world.is_first:
        torch.save(found, out)
    world.close()


if __name__ == "__main__":
    os.environ["LOCAL_WORLD_SIZE"] = "2"  # of four ranks: two nodes
    main()
