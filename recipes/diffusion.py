"""Diffusion and flow-matching models of images.

    accelerate launch recipes/diffusion.py                                   # Fashion-MNIST
    accelerate launch --config_file launch/accelerate/gpu8.yaml recipes/diffusion.py \
        --preset edm-cifar10 data.url=/data/cifar10

preset                 score to expect                                      cost
---------------------  ---------------------------------------------------  ----------------------
tiny                   none: seconds, to try the platform out               5 s, 1 CPU core
fashion (default)      FD-EffLite0 500, with passport: docs/diffusion.md    9 min, 2 CPU cores
edm-cifar10            FID 1.88: Karras 2022, table 2, config E, cond. VP   200 M samples: 2 days,
                       (1.79 with their augmentation, which is not here)    8 V100
edm-imagenet64         FID 1.36: Karras 2022, stochastic sampler; in fp16   2500 M samples: two
                                                                            weeks, 32 A100
dit-b4                 none published: DiT-B/4's shape on pixels            100 M samples
dit-xl2-imagenet256    on latents 4x32x32; DiT's own 2.27 (guidance 1.5,    1792 M samples
                       Peebles & Xie 2023) also learns the variance
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from genus import config
from genus.data.manifest import DataInfo
from genus.data.stream import DataConfig, open_stream
from genus.loop import TrainConfig, train
from genus.meter import training_flops
from genus.mirror import TrackingConfig
from genus.networks.dit import DiTConfig
from genus.networks.unet import UNetConfig
from genus.objectives.ddpm import DDPMConfig
from genus.objectives.edm import EDMConfig
from genus.objectives.flow_matching import FlowMatchingConfig
from genus.objectives.phase import Objective
from genus.optim.build import AdamWConfig, MuonConfig
from genus.optim.ema import PlainEMAConfig, PowerEMAConfig
from genus.optim.schedule import ScheduleConfig
from genus.quality import Quality
from genus.run import Run, RunConfig, describe, errors_as_messages
from genus.samplers.draw import SamplingConfig
from genus.sampling import SampleGrid
from genus.strategies.making import open_world
from genus.validation import Validation

TEST_DATA = Path(__file__).parents[1] / "tests" / "data"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A diffusion run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    network: UNetConfig | DiTConfig = field(default_factory=UNetConfig)
    objective: EDMConfig | DDPMConfig | FlowMatchingConfig = field(default_factory=EDMConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: AdamWConfig | MuonConfig = field(default_factory=AdamWConfig)
    ema: PowerEMAConfig | PlainEMAConfig = field(default_factory=PowerEMAConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


# fmt: off
M = 1_000_000
PRESETS = {
    "tiny": Config(
        data=DataConfig(url=str(TEST_DATA / "fashion-1000"), size=32),
        network=UNetConfig(channels=16, mults=(1, 2), blocks=1, attention=(), patch=4,
                           head_channels=0),
        objective=FlowMatchingConfig(),
        sampling=SamplingConfig(method="euler", steps=8),
        train=TrainConfig(samples=640, batch=16, status_every=160, sample_every=640,
                          checkpoint_every=320),
        optim=AdamWConfig(lr=1e-3),
    ),
    "fashion": Config(
        data=DataConfig(url="fashion-mnist", size=32),
        network=UNetConfig(channels=48, mults=(1, 2, 2), blocks=1, attention=(8,), patch=2,
                           head_channels=48, style="ddpm"),
        objective=FlowMatchingConfig(logit_std=1.2, label_dropout=0.05),
        sampling=SamplingConfig(method="dpm++2m", steps=8),
        train=TrainConfig(samples=76_800, batch=32, status_every=3_200, sample_every=38_400,
                          checkpoint_every=19_200),
        optim=AdamWConfig(lr=1.5e-3, betas=(0.9, 0.99),
                          schedule=ScheduleConfig(kind="wsd", warmup=2_304, decay=61_440)),
    ),
    "edm-cifar10": Config(
        data=DataConfig(url="data/cifar10", size=32, flip=True),
        network=UNetConfig(channels=128, mults=(2, 2, 2), blocks=4, attention=(16,), dropout=0.13,
                           head_channels=0, style="ddpm++"),
        objective=EDMConfig(label_dropout=0.0),
        sampling=SamplingConfig(method="heun", steps=18),
        train=TrainConfig(samples=200 * M, batch=512, clip=0.0, status_every=50_000,
                          sample_every=5 * M, checkpoint_every=2 * M),
        optim=AdamWConfig(lr=1e-3, schedule=ScheduleConfig(warmup=10 * M)),
        ema=PlainEMAConfig(half_life=M // 2),
    ),
    "edm-imagenet64": Config(
        data=DataConfig(url="data/imagenet64", size=64),
        network=UNetConfig(channels=192, mults=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8),
                           head_channels=64, dropout=0.1, style="adm"),
        objective=EDMConfig(label_dropout=0.0),
        sampling=SamplingConfig(method="heun-churn", steps=256),
        train=TrainConfig(samples=2_500 * M, batch=4096, clip=0.0, status_every=200_000,
                          sample_every=50 * M, checkpoint_every=10 * M),
        optim=AdamWConfig(lr=1e-4, schedule=ScheduleConfig(warmup=10 * M)),
        ema=PlainEMAConfig(half_life=50 * M),
    ),
    "dit-b4": Config(
        data=DataConfig(url="data/imagenet64", size=64),
        network=DiTConfig(width=768, depth=12, heads=12, patch=4),
        objective=FlowMatchingConfig(),
        sampling=SamplingConfig(method="heun", steps=25),
        train=TrainConfig(samples=100 * M, batch=256, status_every=50_000, sample_every=2 * M,
                          checkpoint_every=M),
        ema=PowerEMAConfig(snapshot_every=2 * M),
    ),
    "dit-xl2-imagenet256": Config(
        data=DataConfig(url="data/imagenet256-latents"),
        network=DiTConfig(width=1152, depth=28, heads=16, patch=2),
        objective=DDPMConfig(),
        sampling=SamplingConfig(method="ancestral", steps=250, guidance=1.5),
        train=TrainConfig(samples=1_792 * M, batch=256, clip=0.0, status_every=50_000,
                          checkpoint_every=10 * M),
        ema=PlainEMAConfig(half_life=1_774_000, rampup=0.0),
    ),
}
# fmt: on


def build(cfg: Config, info: DataInfo) -> tuple[dict[str, nn.Module], Objective]:
    """The networks, sized by the data, and the objective."""
    shape = (info.channels, info.resolution, info.resolution)
    denoiser = cfg.network.build(channels=shape[0], resolution=shape[1], classes=info.classes)
    return {"denoiser": denoiser}, cfg.objective.build(shape, info.classes, cfg.sampling)


def flops(cfg: Config, info: DataInfo) -> float:
    """Model FLOPs of training on one sample."""
    with torch.device("meta"):
        networks, _ = build(cfg, info)
        x = torch.empty(1, info.channels, info.resolution, info.resolution)
        return training_flops(networks["denoiser"], x, torch.empty(1), None)


def main() -> None:
    command = config.parse(Config, PRESETS, default="fashion")
    cfg = command.config
    with errors_as_messages():
        world = open_world(cfg.train, cfg.optim)
        if command.dry_run:
            return describe(build, cfg, world, flops)
        stream = open_stream(cfg.data, batch=cfg.train.batch, seed=cfg.run.seed, **world.place)
        info, cost = stream.info, flops(cfg, stream.info)
        with Run(command, __file__, world, info) as run:
            networks, objective = build(cfg, info)
            every, often = cfg.train.sample_every, cfg.train.validate_every
            grid = SampleGrid(run, networks, objective, every=every, classes=info.classes)
            rows = 100  # a bound takes many network calls an image
            loss = Validation(
                run, networks, objective, every=often, data=cfg.data, info=info, rows=rows
            )
            like = Quality(run, networks, objective, cfg.train, cfg.ema, data=cfg.data, info=info)
            parts = cfg.train, cfg.optim, cfg.ema, [grid, loss, like], cost
            train(run, networks, objective, stream, *parts)


if __name__ == "__main__":
    main()
