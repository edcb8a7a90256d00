"""The steps of a GAN's run on one device: all that genus.loop does for a batch, without data, log
and checkpoints. For benchmarks/gan.py and benchmarks/gpu/stylegan2.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from genus.data.batch import Batch
from genus.draws import Draws
from genus.loop import TrainConfig
from genus.objectives.adversarial import AdversarialConfig
from genus.optim.build import AdamWConfig
from genus.optim.ema import EMA, PlainEMAConfig
from genus.parallel import World
from genus.strategies.making import spread

PLAIN = ("discriminator", "generator")
Step = Callable[[], None]


def random_batch(shape: tuple[int, ...], classes: int, rows: int, device: torch.device) -> Batch:
    """Images of noise, as the stream hands a batch of one lane out."""
    image = torch.randint(256, (rows, *shape), dtype=torch.uint8).to(device)
    fields = {"image": image}
    if classes:
        fields["label"] = torch.arange(rows, device=device) % classes
    return Batch(fields, torch.arange(rows), 0, Draws.of([0], rows, device))


class Training:
    """Networks, objective and averages; a step is of the phases that its caller names."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        objective: AdversarialConfig,
        train: TrainConfig,
        shape: tuple[int, ...],
        classes: int = 0,
    ) -> None:
        """The learning rate is 0: at the same cost the networks stay the same."""
        world = World(train.precision, "ddp")
        self.objective = objective.build(networks, shape, classes)
        optim = AdamWConfig(lr=0.0, betas=(0.0, 0.99))
        self.spread = spread(world, networks, self.objective.phases, optim, train)
        self.averages = EMA(PlainEMAConfig(half_life=10_000), self.spread.layout)
        self.device, self.micro = world.device, train.micro
        self.batch = random_batch(shape, classes, train.batch, world.device)
        self.samples = 100_000

    def step(self, phases: tuple[str, ...]) -> None:
        """One step in which these phases are due."""
        for phase in self.objective.phases:
            if phase.name not in phases:
                continue
            bad = torch.zeros((), device=self.device)
            micros = list(self.batch.scoped(phase.name).micro_batches(self.micro))
            for i, micro in enumerate(micros):
                with self.spread.only(phase.trains, last=i == len(micros) - 1):
                    loss, _ = self.spread.loss(phase, micro)
                    self.spread.backward(loss * (len(micro) / len(self.batch)), phase.trains)
                bad = torch.maximum(bad, (~torch.isfinite(loss.detach())).float())
            self.spread.step(phase.trains, bad)
        self.samples += len(self.batch)
        self.objective.after_step(self.spread.prepared, self.samples)
        self.averages.update(self.samples, len(self.batch))

    def cycle(self) -> None:
        """As many steps as it takes until all phases are due together again."""
        for number in range(self.cycle_steps):
            due = (phase.name for phase in self.objective.phases if number % phase.every == 0)
            self.step(tuple(due))

    @property
    def cycle_steps(self) -> int:
        return math.lcm(*(phase.every for phase in self.objective.phases))


def parameters(*networks: nn.Module) -> int:
    """How many."""
    return sum(p.numel() for network in networks for p in network.parameters())
