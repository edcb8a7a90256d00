"""A recipe of the simplest exact model: x = mean of its class + scale * a fixed rotation of z.

For tests of the commands: its density, codes and inverse are known in closed form, and its float32
inverse is not exact. ``python tests/rotation.py data.url=...`` trains it on images of 8 x 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genus import config
from genus.data.batch import Batch
from genus.data.manifest import DataInfo
from genus.data.stream import DataConfig, open_stream
from genus.draws import Draws
from genus.loop import TrainConfig, train
from genus.mirror import TrackingConfig
from genus.objectives.phase import (
    LogDensity,
    Networks,
    Phase,
    SampleOptions,
    SamplingPlan,
    Traits,
)
from genus.optim.build import AdamWConfig
from genus.optim.ema import PowerEMAConfig
from genus.parallel import World
from genus.run import Run, RunConfig, errors_as_messages
from genus.state import State


class Rotation(nn.Module):
    """x (B, D) -> z (B, D) and log |det| (B,); with ``inverse`` z -> x."""

    def __init__(self, dims: int, classes: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(max(1, classes)))
        self.log_scale = nn.Parameter(torch.zeros(()))
        noise = torch.randn(dims, dims, generator=torch.Generator().manual_seed(0)).double()
        self.register_buffer("matrix", torch.linalg.qr(noise)[0].float())

    def forward(
        self, x: Tensor, label: Tensor | None, inverse: bool = False
    ) -> tuple[Tensor, Tensor] | Tensor:
        label = torch.zeros(len(x), dtype=torch.int64) if label is None else label
        mean, scale = self.mean[label][:, None], self.log_scale.exp()
        if inverse:
            return mean + scale * torch.linalg.solve(self.matrix, x.T).T
        return (x - mean) @ self.matrix.T / scale, -x.shape[1] * self.log_scale.expand(len(x))


class RotationLikelihood:
    """Maximum likelihood; networks: ``flow``. For images (C, H, W) or vectors (D,)."""

    traits = Traits(
        density="exact",
        sampling_cost="one matrix product",
        principle="maximum likelihood",
        latent="exact, of the data's dimension",
        architecture="linear",
    )

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        self.shape, self.classes = shape, classes
        self.dims = math.prod(shape)
        self.phases = (Phase("likelihood", ("flow",), self.loss),)

    def loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = -self.log_density(networks, batch).nats.mean() / self.dims
        return loss, {"loss": loss.detach()}

    def log_density(self, networks: Networks, batch: Batch) -> LogDensity:
        is_image = len(self.shape) == 3
        noise = batch.draws.uniform("dequantise", self.shape) if is_image else torch.zeros(())
        z, log_det = networks["flow"](self._unit(batch, noise), self._label(batch))
        nats = log_det - (z.square().sum(1) + self.dims * math.log(2 * math.pi)) / 2
        if not is_image:
            return LogDensity(nats, "exact", "none", self.dims, unit="nats")
        return LogDensity(nats - self.dims * math.log(128), "exact", "uniform", self.dims)

    def encode(self, networks: Networks, batch: Batch) -> Tensor:
        x = self._unit(batch, torch.tensor(0.5))
        code: Tensor = networks["flow"](x, self._label(batch))[0]
        return code

    def decode(self, networks: Networks, code: Tensor, label: Tensor | None) -> Tensor:
        own = label if self.classes else None
        x: Tensor = networks["flow"](code, own, inverse=True)
        if len(self.shape) == 1:
            return x
        return (256 / 255 * (x + 1) - 1 / 255 - 1).unflatten(1, self.shape)

    def plan(self, options: SampleOptions) -> SamplingPlan:
        return SamplingPlan(f"inverse, temperature {self._temperature(options):g}", 1, None)

    def sample(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Tensor:
        z = self._temperature(options) * draws.normal("z", (self.dims,))
        return self.decode(networks, z, label)

    def _temperature(self, options: SampleOptions) -> float:
        return 1.0 if options.temperature is None else options.temperature

    def _unit(self, batch: Batch, noise: Tensor) -> Tensor:
        if len(self.shape) == 1:
            return batch["vector"]
        return ((batch["image"].float() + noise) / 128 - 1).flatten(1)

    def _label(self, batch: Batch) -> Tensor | None:
        return batch["label"] if self.classes else None

    def after_step(self, networks: Networks, samples: int) -> None:
        """Nothing."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to load."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(size=8, fit="resize"))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(samples=4000, batch=100))
    optim: AdamWConfig = field(default_factory=lambda: AdamWConfig(lr=0.03))
    ema: PowerEMAConfig = field(default_factory=PowerEMAConfig)
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(wandb="off"))


def build(cfg: Config, info: DataInfo) -> tuple[dict[str, nn.Module], RotationLikelihood]:
    shape = (info.channels, info.resolution, info.resolution) if info.resolution else (info.dims,)
    flow = Rotation(math.prod(shape), info.classes)
    return {"flow": flow}, RotationLikelihood(shape, info.classes)


def main() -> None:
    command = config.parse(Config, {"tiny": Config()}, default="tiny")
    cfg = command.config
    with errors_as_messages():
        world = World(cfg.train.precision)
        stream = open_stream(cfg.data, batch=cfg.train.batch, seed=cfg.run.seed, **world.place)
        with Run(command, __file__, world, stream.info) as run:
            networks, objective = build(cfg, stream.info)
            train(run, networks, objective, stream, cfg.train, cfg.optim, cfg.ema, [])


if __name__ == "__main__":
    main()
