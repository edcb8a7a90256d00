"""Generative adversarial networks: StyleGAN2-ADA, R3GAN, and small ones.

    accelerate launch recipes/gan.py                                         # Fashion-MNIST
    accelerate launch --config_file launch/accelerate/gpu8.yaml recipes/gan.py \
        --preset r3gan-cifar10 data.url=/data/cifar10

preset                 score to expect                                      seconds per 1000 images
---------------------  ---------------------------------------------------  -----------------------
tiny                   none: to try the platform out                        12, 1 CPU core
fashion (default)      FD-EffLite0 445 (2,000 samples): docs/gan.md         11, 1 CPU core
mixture-25             25 of 25 modes, mode KL 0.01: docs/gan.md            0.06, 1 CPU core
stacked-mnist          1000 of 1000 modes, mode KL 0.05: docs/gan.md        3.8, 1 CPU core
stylegan2-ada-cifar10  FID 2.42: Karras 2020b, conditional, with ADA        not published
stylegan2-ffhq256      FID 3.78: StyleGAN2 in Huang 2024's table            5.5, 8 V100
stylegan2-ffhq1024     FID 2.84: Karras 2020a, table 1, config F            20, 8 V100
r3gan-cifar10          FID 1.96: Huang 2024                                 not published
r3gan-ffhq256          FID 2.75: Huang 2024                                 not published
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genus import config
from genus.data.manifest import DataInfo
from genus.data.stream import DataConfig, open_stream
from genus.loop import Evaluation, TrainConfig, train
from genus.meter import training_flops
from genus.mirror import TrackingConfig
from genus.networks.gan.dcgan import DCGANConfig
from genus.networks.gan.mlp import MLPGANConfig
from genus.networks.gan.r3gan import R3GANConfig
from genus.networks.gan.stylegan2 import StyleGAN2Config
from genus.objectives.adversarial import Adversarial, AdversarialConfig
from genus.objectives.augmentation.config import PIPELINES, AugmentConfig
from genus.objectives.generation import Plain
from genus.optim.build import AdamWConfig, MuonConfig
from genus.optim.ema import PlainEMAConfig, PowerEMAConfig
from genus.optim.schedule import ScheduleConfig
from genus.quality import Quality
from genus.run import Run, RunConfig, describe, errors_as_messages
from genus.sampling import SampleGrid
from genus.strategies.making import open_world

TEST_DATA = Path(__file__).parents[1] / "tests" / "data"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run of a generative adversarial network."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    network: StyleGAN2Config | R3GANConfig | DCGANConfig | MLPGANConfig = field(
        default_factory=StyleGAN2Config
    )
    objective: AdversarialConfig = field(default_factory=AdversarialConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: AdamWConfig | MuonConfig = field(default_factory=AdamWConfig)
    ema: PowerEMAConfig | PlainEMAConfig = field(default_factory=PlainEMAConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        self.objective.check(self.train)


# fmt: off
K, M = 1_000, 1_000_000
CONSTANT, COSINE = ScheduleConfig(), ScheduleConfig(kind="cosine")
FALLING = AdamWConfig(lr=2e-4, betas=(0.0, 0.9), last_beta2=0.99,
                      schedule=replace(COSINE, decay=20 * M, floor=0.25))


def growing(half_life: int) -> PlainEMAConfig:
    """As R3GAN has it."""
    return PlainEMAConfig(half_life=half_life, rampup=0.0, grows=20 * M)


def run_of(samples: int, batch: int, half_life: int = 10 * K, rampup: float = 0.05, *,
           lr: float = 2.5e-3, schedule: ScheduleConfig = CONSTANT, **parts: Any) -> Config:
    """A run of that length, with cadences to match, by Adam as StyleGAN2 has it."""
    every = TrainConfig(samples=samples, batch=batch, clip=0.0, sample_every=samples // 4,
                        checkpoint_every=samples // 8, status_every=max(samples // 40, 160))
    usual = {"optim": AdamWConfig(lr=lr, betas=(0.0, 0.99), schedule=schedule),
             "ema": PlainEMAConfig(half_life=half_life, rampup=rampup)}
    return Config(train=every, **{**usual, **parts})


def stylegan2(r1: float, every: int = 16, path: float = 2.0, **more: Any) -> AdversarialConfig:
    """Lazy R1; path lengths and, with them, style mixing."""
    return AdversarialConfig(r1=r1, penalty_every=every, path_length=path,
                             mixing=0.9 if path else 0.0, **more)


def r3gan(gamma: float, p: float) -> AdversarialConfig:
    """R1 and R2 in each step that fall to a tenth, and augmentation that grows."""
    shown = AugmentConfig(kind="fixed", p=p, grows=20 * M, colour_share=0.5,
                          transforms=(*PIPELINES["bgc"], "cutout"))
    return AdversarialConfig(game="relativistic", r1=gamma, r2=gamma, anneal=20 * M, augment=shown)


PRESETS = {
    "tiny": run_of(
        640, 16, 1_000, lr=2e-3, data=DataConfig(url=str(TEST_DATA / "fashion-1000"), size=32),
        network=StyleGAN2Config(latent=16, width=16, mapping_layers=2, channels_base=128,
                                channels_max=16, label_layers=1),
        objective=replace(stylegan2(0.1, 2, augment=AugmentConfig(kind="ada", p=0.1, interval=2)),
                          path_length_every=2),
    ),
    "fashion": run_of(
        240 * K, 8, lr=5e-3, schedule=replace(COSINE, floor=0.1),
        data=DataConfig(url="fashion-mnist", size=32),
        network=StyleGAN2Config(latent=64, width=64, mapping_layers=2, mapping_rate=0.03,
                                channels_base=256, channels_max=128, label_layers=2),
        objective=AdversarialConfig(game="relativistic", r1=1.0, r2=1.0, penalty_every=4,
                                    anneal=240 * K)),
    "mixture-25": run_of(
        5_120 * K, 256, 50 * K, lr=1e-3, schedule=COSINE, data=DataConfig(url="25-gaussians"),
        network=MLPGANConfig(latent=2, width=128, depth=3),
        objective=AdversarialConfig(game="relativistic", r1=0.1, r2=0.1)),
    "stacked-mnist": run_of(
        1_200 * K, 64, 50 * K, lr=2e-4, schedule=COSINE,
        data=DataConfig(url="stacked-mnist", size=32), network=DCGANConfig(latent=128, width=32),
        objective=AdversarialConfig(game="relativistic", r1=1.0, r2=1.0)),
    "stylegan2-ada-cifar10": run_of(
        100 * M, 64, 500 * K, data=DataConfig(url="data/cifar10", size=32),
        network=StyleGAN2Config(mapping_layers=2, discriminator="orig", group=32),
        objective=stylegan2(0.01, path=0.0, augment=AugmentConfig(kind="ada"))),
    "stylegan2-ffhq256": run_of(
        25 * M, 64, 20 * K, 0.0, data=DataConfig(url="data/ffhq256", size=256, flip=True),
        network=StyleGAN2Config(channels_base=16384, group=8), objective=stylegan2(1.0)),
    "stylegan2-ffhq1024": run_of(
        25 * M, 32, 10 * K, 0.0, data=DataConfig(url="data/ffhq1024", size=1024, flip=True),
        lr=2e-3, objective=stylegan2(10.0)),
    "r3gan-cifar10": run_of(
        200 * M, 512, data=DataConfig(url="data/cifar10", size=32, flip=True), optim=FALLING,
        network=R3GANConfig(), objective=r3gan(0.05, 0.55), ema=growing(5 * M),
    ),
    "r3gan-ffhq256": run_of(
        50 * M, 256, data=DataConfig(url="data/ffhq256", size=256, flip=True), optim=FALLING,
        network=R3GANConfig(widths=(768, 768, 768, 768, 384, 192, 96)),
        objective=r3gan(150.0, 0.3), ema=growing(500 * K),
    ),
}
# fmt: on


def build(cfg: Config, info: DataInfo) -> tuple[dict[str, nn.Module], Adversarial]:
    """The networks, sized by the data, and the objective."""
    networks = cfg.network.build(info.shape, info.classes)
    return networks, cfg.objective.build(networks, info.shape, info.classes)


def flops(cfg: Config, info: DataInfo) -> float:
    """Model FLOPs of training on one sample, without penalties and path lengths.

    The discriminator sees a real and a generated row, and one more for the generator's sake, whose
    weights' gradients are not wanted; the generator makes one row without a gradient, one with.
    """
    with torch.device("meta"), torch.no_grad():
        networks, objective = build(cfg, info)
        label = torch.zeros(1, dtype=torch.int64) if info.classes else None
        judge = training_flops(networks["discriminator"], torch.empty(1, *info.shape), label)
        z = torch.empty(1, objective.generation.latent)
        if isinstance(objective.generation, Plain):
            make = training_flops(networks["generator"], z, label)
        else:
            w = networks["mapping"](z, label)
            make = training_flops(networks["mapping"], z, label)
            make += training_flops(networks["synthesis"], objective.generation.spread(w), None)
        return (2 + 2 / 3) * judge + (1 + 1 / 3) * make


def main() -> None:
    command = config.parse(Config, PRESETS, default="fashion")
    cfg = command.config
    with errors_as_messages():
        world = open_world(cfg.train, cfg.optim)
        cfg.objective.check_world(cfg.train, world, getattr(cfg.network, "group", 1))
        if command.dry_run:
            return describe(build, cfg, world, flops)
        stream = open_stream(cfg.data, batch=cfg.train.batch, seed=cfg.run.seed, **world.place)
        info, cost = stream.info, flops(cfg, stream.info)
        with Run(command, __file__, world, info) as run:
            networks, objective = build(cfg, info)
            shown: dict[str, Any] = {"classes": info.classes, "dims": info.dims}
            grid = SampleGrid(run, networks, objective, every=cfg.train.sample_every, **shown)
            like = Quality(run, networks, objective, cfg.train, cfg.ema, data=cfg.data, info=info)
            measures: list[Evaluation] = [grid, like]
            train(run, networks, objective, stream, cfg.train, cfg.optim, cfg.ema, measures, cost)


if __name__ == "__main__":
    main()
