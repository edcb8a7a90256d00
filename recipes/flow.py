"""Normalizing flows of images and vectors: exact likelihood, exact codes.

    accelerate launch recipes/flow.py                                        # Fashion-MNIST
    accelerate launch --config_file launch/accelerate/gpu8.yaml recipes/flow.py \
        --preset glow-cifar10 data.url=/data/cifar10

preset                 score to expect                                      cost
---------------------  ---------------------------------------------------  ----------------------
tiny                   none: seconds, to try the platform out               10 s, 1 CPU core
fashion (default)      2.35 bits/dim, with passport: docs/flows.md          11 min, 2 CPU cores
nice-mnist             4.36 bits/dim (1980.50 nats): Dinh 2015, table 3     90 M samples
realnvp-cifar10        3.49 bits/dim: Dinh 2017, table 1                    25 M samples
glow-cifar10           3.35 bits/dim: Kingma & Dhariwal 2018, table 2       90 M samples
glow-celebahq256       1.03 bits/dim of 5-bit images: same, section 6       40 M samples
tarflow-imagenet64     made for samples; 2.99 bits/dim at noise=0: Zhai 24  250 M samples
8-gaussians, checkerboard, two-moons: beside zuko's, in docs/flows.md       2 min each, 1 CPU core
breast-cancer          test NLL in docs/flows.md                            1 min, 1 CPU core
power, gas, hepmass,   log-likelihood 0.64, 13.09, -14.75, -9.67, 157.54:   200 M samples; 26 M
miniboone, bsds300     Durkan 2019, table 1, RQ-NSF (C), on MAF's tables    for miniboone
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genus import config
from genus.checkpoint_reader import published
from genus.data.manifest import DataInfo
from genus.data.stream import DataConfig, first_batch, open_stream
from genus.errors import ConfigError
from genus.loop import TrainConfig, train
from genus.meter import training_flops
from genus.mirror import TrackingConfig
from genus.networks.flows.dequantiser import DequantiserConfig
from genus.networks.flows.flow import build_flow
from genus.networks.flows.image import GlowConfig, NICEConfig, RealNVPConfig
from genus.networks.flows.tarflow import TarFlowConfig
from genus.networks.flows.vector import VectorFlowConfig
from genus.objectives.flow_likelihood import FlowLikelihood, FlowLikelihoodConfig
from genus.optim.build import AdamWConfig, MuonConfig
from genus.optim.ema import PlainEMAConfig, PowerEMAConfig
from genus.optim.schedule import ScheduleConfig
from genus.quality import Quality
from genus.round_trip import RoundTrip
from genus.run import Run, RunConfig, describe, errors_as_messages
from genus.sampling import SampleGrid
from genus.strategies.making import open_world
from genus.validation import Validation

TEST_DATA = Path(__file__).parents[1] / "tests" / "data"
TOYS = "8-gaussians", "checkerboard", "two-moons"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run of a normalizing flow."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    network: GlowConfig | RealNVPConfig | NICEConfig | TarFlowConfig | VectorFlowConfig = field(
        default_factory=GlowConfig
    )
    logit: float = 0.0
    """Images pass logit(logit + (1 - 2 logit) p) before the flow, p in [0, 1]; 0: they do not."""
    dequantiser: DequantiserConfig = field(default_factory=DequantiserConfig)
    """Used where objective.dequantisation is variational."""
    objective: FlowLikelihoodConfig = field(default_factory=FlowLikelihoodConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: AdamWConfig | MuonConfig = field(default_factory=AdamWConfig)
    ema: PowerEMAConfig | PlainEMAConfig = field(default_factory=PowerEMAConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


# fmt: off
K, M = 1_000, 1_000_000


def run_of(samples: int, batch: int, optim: AdamWConfig, **parts: Any) -> Config:
    """A run of that length, with cadences to match."""
    every = TrainConfig(samples=samples, batch=batch, status_every=samples // 40,
                        sample_every=samples // 4, validate_every=samples // 8,
                        checkpoint_every=samples // 8)
    return Config(train=every, optim=optim, **parts)


def vectors(url: str, samples: int, batch: int, lr: float = 5e-4, **network: Any) -> Config:
    """Coupling splines: Durkan et al. 2019, table 5, as far as it goes."""
    return run_of(samples, batch, AdamWConfig(lr=lr, schedule=ScheduleConfig(kind="cosine")),
                  data=DataConfig(url=url), network=VectorFlowConfig(**network))


PRESETS = {
    "tiny": run_of(
        640, 16, AdamWConfig(lr=1e-3),
        data=DataConfig(url=str(TEST_DATA / "fashion-1000"), size=32),
        network=GlowConfig(steps=2, levels=2, width=16),
    ),
    "fashion": run_of(
        128 * K, 32, AdamWConfig(lr=1e-2, schedule=ScheduleConfig(kind="cosine", warmup=3_200)),
        data=DataConfig(url="fashion-mnist", size=32),
        network=GlowConfig(steps=12, levels=3, width=64), logit=1e-5,
    ),
    "nice-mnist": run_of(
        90 * M, 128, AdamWConfig(lr=1e-3, betas=(0.9, 0.99)),
        data=DataConfig(url="data/mnist"),
        network=NICEConfig(layers=4, width=1000, depth=5),
        objective=FlowLikelihoodConfig(base="logistic"),
    ),
    "realnvp-cifar10": run_of(
        25 * M, 64, AdamWConfig(lr=1e-3, weight_decay=5e-5),
        data=DataConfig(url="data/cifar10", size=32, flip=True),
        network=RealNVPConfig(levels=2, width=64, blocks=8), logit=0.05,
    ),
    "glow-cifar10": run_of(
        90 * M, 512, AdamWConfig(lr=1e-3, schedule=ScheduleConfig(warmup=500 * K)),
        data=DataConfig(url="data/cifar10", size=32, flip=True),
        network=GlowConfig(steps=32, levels=3, width=512),
        objective=FlowLikelihoodConfig(temperature=0.7),
    ),
    "glow-celebahq256": run_of(
        40 * M, 40, AdamWConfig(lr=1e-3, schedule=ScheduleConfig(warmup=500 * K)),
        data=DataConfig(url="data/celebahq256", size=256, flip=True),
        network=GlowConfig(steps=32, levels=6, width=512),
        objective=FlowLikelihoodConfig(bits=5, temperature=0.7, initial_samples=32),
    ),
    "tarflow-imagenet64": run_of(
        256 * M, 256, AdamWConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-4,
                                  schedule=ScheduleConfig(kind="cosine", warmup=M)),
        data=DataConfig(url="data/imagenet64", size=64, flip=True),
        network=TarFlowConfig(patch=2, width=768, blocks=8, layers=8),
        objective=FlowLikelihoodConfig(noise=0.05, label_dropout=0.1, guidance=2.0),
    ),
    **{url: vectors(url, 512 * K, 256, layers=6, width=64) for url in TOYS},
    "breast-cancer": vectors("breast-cancer", 64 * K, 64, layers=4, width=32),
    "power": vectors("data/power", 205 * M, 512, layers=10, width=256),
    "gas": vectors("data/gas", 205 * M, 512, layers=10, width=256),
    "hepmass": vectors("data/hepmass", 205 * M, 512, layers=20, width=128),
    "miniboone": vectors("data/miniboone", 26 * M, 128, 3e-4, layers=10, width=32, bins=4),
    "bsds300": vectors("data/bsds300", 205 * M, 512, layers=10, width=128),
}
# fmt: on


def build(cfg: Config, info: DataInfo) -> tuple[dict[str, nn.Module], FlowLikelihood]:
    """The networks, sized by the data, and the objective."""
    if cfg.objective.noise and cfg.logit:
        raise ConfigError("objective.noise leaves [-1, 1], where logit is not defined: set logit=0")
    flow = build_flow(cfg.network, info.shape, info.classes, cfg.logit)
    networks: dict[str, nn.Module] = {"flow": flow}
    if cfg.objective.dequantisation == "variational":
        networks["dequantiser"] = cfg.dequantiser.build(info.shape)
    guides = isinstance(cfg.network, TarFlowConfig)
    return networks, cfg.objective.build(info.shape, info.classes, guides)


def flops(cfg: Config, info: DataInfo) -> float:
    """Model FLOPs of training on one sample, without a dequantiser's."""
    with torch.device("meta"):
        networks, _ = build(cfg, info)
        label = torch.zeros(1, dtype=torch.int64) if info.classes else None
        return training_flops(networks["flow"], torch.empty(1, *info.shape), label)


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
            if not published(run.folder / "checkpoints"):  # a resume never initialises again
                count = cfg.objective.initial_samples
                batch = first_batch(cfg.data, count, cfg.run.seed, world.device)
                objective.initialise(networks, batch)
                run.event("initialised", samples=0)
                total = sum(float(p.detach().double().sum()) for p in networks["flow"].parameters())
                run.metrics.write({"samples": 0, "initialised": total})  # the same on every rank
            every, often = cfg.train.sample_every, cfg.train.validate_every
            trips = every if objective.traits.latent.startswith("exact") else 0
            shown: dict[str, Any] = {"classes": info.classes, "dims": info.dims}
            measures = [
                SampleGrid(run, networks, objective, every=every, **shown),
                RoundTrip(run, networks, objective, every=trips, data=cfg.data),
                Validation(run, networks, objective, every=often, data=cfg.data, info=info),
                Quality(run, networks, objective, cfg.train, cfg.ema, data=cfg.data, info=info),
            ]
            train(run, networks, objective, stream, cfg.train, cfg.optim, cfg.ema, measures, cost)


if __name__ == "__main__":
    main()
