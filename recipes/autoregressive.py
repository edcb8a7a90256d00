"""Autoregressive models of text and of pixels.

    accelerate launch recipes/autoregressive.py                              # Shakespeare's plays
    accelerate launch --config_file launch/accelerate/gpu8.yaml recipes/autoregressive.py \
        --preset gpt2-124m data.url=/data/openwebtext

preset                 score to expect                                      cost
---------------------  ---------------------------------------------------  ----------------------
tiny                   none: seconds, to try the platform out               10 s, 1 CPU core
shakespeare (default)  1.39 nats a character (2.01 bits) on the test split  9 min, 2 CPU cores
fashion-pixels         3.01 bits/dim on the test split, given the class     15 min, 2 CPU cores
shakespeare-10m        1.47 nats: nanoGPT's on its 1.1 M characters         1 GPU, minutes
gpt2-124m              2.85 nats on OpenWebText: nanoGPT's reproduction     300 B tokens, 8 A100:
                                                                            4 days
gpt2-350m, gpt2-774m, gpt2-1.5b: none, Radford 2019's data are not public   300 B tokens
llama-8b               the size of Llama 3 8B (Dubey 2024)                  15 T tokens
enwik8-12l             1.11 bits/byte: Al-Rfou 2019, table 2, 12 layers     1.3 B tokens a 10 epochs
pixelcnn-cifar10       2.92 bits/dim: Salimans 2017, table 1                250 M samples
image-gpt-cifar10      2.8 bits/dim at best, of transformers this small     50 M samples
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genus import config
from genus.data.manifest import DataInfo
from genus.data.stream import DataConfig, open_stream
from genus.errors import ConfigError
from genus.loop import TrainConfig, train
from genus.meter import training_flops
from genus.mirror import TrackingConfig
from genus.networks.pixelcnn.gated import GatedPixelCNNConfig
from genus.networks.pixelcnn.plus_plus import PixelCNNPlusPlusConfig
from genus.networks.transformer.decoder import TransformerConfig
from genus.objectives.next_token import LEVELS, NextToken, NextTokenConfig
from genus.objectives.pixel_likelihood import PixelLikelihood, PixelLikelihoodConfig
from genus.optim.build import AdamWConfig, MuonConfig
from genus.optim.ema import PlainEMAConfig, PowerEMAConfig
from genus.optim.schedule import ScheduleConfig
from genus.quality import Quality
from genus.run import Run, RunConfig, describe, errors_as_messages
from genus.sampling import SampleGrid
from genus.strategies.making import open_world
from genus.text_samples import TextSamples
from genus.validation import Validation

TINY_DATA = str(Path(__file__).parents[1] / "tests" / "data" / "fashion-1000")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run of an autoregressive model."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    network: TransformerConfig | PixelCNNPlusPlusConfig | GatedPixelCNNConfig = field(
        default_factory=TransformerConfig
    )
    objective: NextTokenConfig | PixelLikelihoodConfig = field(default_factory=NextTokenConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: AdamWConfig | MuonConfig = field(default_factory=AdamWConfig)
    ema: PowerEMAConfig | PlainEMAConfig = field(default_factory=PowerEMAConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


# fmt: off
K, M = 1_000, 1_000_000


def run_of(samples: int, batch: int, optim: AdamWConfig | MuonConfig, **parts: Any) -> Config:
    """A run of that length, with cadences to match."""
    every = TrainConfig(samples=samples, batch=batch, status_every=samples // 40,
                        sample_every=samples // 4, validate_every=samples // 8,
                        checkpoint_every=samples // 8)
    return Config(train=every, optim=optim, **parts)


def adamw(lr: float, warmup: int, beta: float = 0.95, decay: float = 0.1) -> AdamWConfig:
    """With a warm-up of so many samples, then a cosine."""
    return AdamWConfig(lr=lr, betas=(0.9, beta), weight_decay=decay,
                       schedule=ScheduleConfig(kind="cosine", warmup=warmup))


def gpt2(width: int, depth: int, heads: int, lr: float) -> Config:
    """GPT-2's shape (Radford et al. 2019) on packed tokens, as nanoGPT trains it."""
    return run_of(
        300 * M, 480, adamw(lr, M), data=DataConfig(url="data/openwebtext", size=1024),
        network=TransformerConfig(width=width, depth=depth, heads=heads, positions="learned"),
    )


PRESETS = {
    "tiny": run_of(
        640, 16, AdamWConfig(lr=3e-3), data=DataConfig(url=TINY_DATA, size=8, fit="resize"),
        network=TransformerConfig(width=32, depth=2, heads=2),
        objective=NextTokenConfig(label_dropout=0.1),
    ),
    "shakespeare": run_of(
        54 * K, 32, MuonConfig(lr=0.04, adamw_lr=3e-3, weight_decay=0.05,
                               schedule=ScheduleConfig(kind="cosine", warmup=3_200)),
        data=DataConfig(url="shakespeare", size=128),
        network=TransformerConfig(width=128, depth=4, heads=4),
    ),
    "shakespeare-10m": run_of(  # nanoGPT's setting for a GPU
        320 * K, 64, adamw(1e-3, 6_400, 0.99), data=DataConfig(url="shakespeare", size=256),
        network=TransformerConfig(width=384, depth=6, heads=6, positions="learned", dropout=0.2),
    ),
    "fashion-pixels": run_of(
        40 * K, 32, adamw(2e-3, 3_200, 0.999, 0.0), data=DataConfig(url="fashion-mnist"),
        network=PixelCNNPlusPlusConfig(width=32, blocks=1),
        objective=PixelLikelihoodConfig(label_dropout=0.1),
    ),
    "gpt2-124m": gpt2(768, 12, 12, 6e-4), "gpt2-350m": gpt2(1024, 24, 16, 3e-4),
    "gpt2-774m": gpt2(1280, 36, 20, 2.5e-4), "gpt2-1.5b": gpt2(1600, 48, 25, 2e-4),
    "llama-8b": run_of(
        1_800 * M, 2048, adamw(3e-4, 16 * M), data=DataConfig(url="data/pretraining", size=8192),
        network=TransformerConfig(width=4096, depth=32, heads=32, kv_heads=8, mlp="swiglu",
                                  mlp_width=14336, norm="rms", rope_theta=500_000.0, tied=False,
                                  bias=False),
        objective=NextTokenConfig(documents=True),
    ),
    "enwik8-12l": run_of(
        2 * M, 64, adamw(2.5e-4, 20 * K), data=DataConfig(url="data/enwik8", size=512),
        network=TransformerConfig(width=512, depth=12, heads=8, dropout=0.1),
    ),
    "pixelcnn-cifar10": run_of(
        250 * M, 96, AdamWConfig(lr=1e-3, betas=(0.95, 0.9995)),
        data=DataConfig(url="data/cifar10", size=32, flip=True),
        network=PixelCNNPlusPlusConfig(width=160, blocks=5, levels=3, dropout=0.5),
        objective=PixelLikelihoodConfig(mixtures=10), ema=PlainEMAConfig(half_life=130 * K),
    ),
    "image-gpt-cifar10": run_of(
        50 * M, 128, adamw(3e-4, M, decay=0.01),
        data=DataConfig(url="data/cifar10", size=32, flip=True),
        network=TransformerConfig(width=512, depth=24, heads=8),
        objective=NextTokenConfig(label_dropout=0.1),
    ),
}
# fmt: on


def build(cfg: Config, info: DataInfo) -> tuple[dict[str, nn.Module], NextToken | PixelLikelihood]:
    """The network, sized by the data, and the objective."""
    network, objective, classes = cfg.network, cfg.objective, info.classes
    if isinstance(network, TransformerConfig) and isinstance(objective, NextTokenConfig):
        if info.length:
            model = network.build(vocabulary=info.vocabulary, length=info.length)
            return {"model": model}, objective.build(info.length)
        length = info.channels * info.resolution**2
        # where there are no classes, "no class" still stands in front of the first pixel
        model = network.build(vocabulary=LEVELS, length=length, classes=max(1, classes))
        return {"model": model}, objective.build(length, classes, info.shape)
    if isinstance(network, TransformerConfig) or isinstance(objective, NextTokenConfig):
        raise ConfigError("TransformerConfig goes with NextTokenConfig, PixelCNNs with "
                          "PixelLikelihoodConfig: set network and objective together")  # fmt: skip
    pixels = objective.build(info.shape, classes)
    size = {"channels": info.channels, "resolution": info.resolution}
    return {"pixels": network.build(**size, classes=classes, outputs=pixels.law.outputs)}, pixels


def flops(cfg: Config, info: DataInfo) -> float:
    """Model FLOPs of training on one sample: a window, or an image."""
    with torch.device("meta"):
        networks, _ = build(cfg, info)
        if pixels := networks.get("pixels"):
            return training_flops(pixels, torch.empty(1, *info.shape), None)
        length = info.length or info.channels * info.resolution**2 - 1
        return training_flops(networks["model"], torch.zeros(1, length, dtype=torch.int64))


def main() -> None:
    command = config.parse(Config, PRESETS, default="shakespeare")
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
            if info.length:
                shown = TextSamples(run, networks, objective, every=every, data=cfg.data)
            else:
                shown = SampleGrid(run, networks, objective, every=every, classes=info.classes)
            loss = Validation(run, networks, objective, every=often, data=cfg.data, info=info)
            like = Quality(run, networks, objective, cfg.train, cfg.ema, data=cfg.data, info=info)
            parts = cfg.train, cfg.optim, cfg.ema, [shown, loss, like], cost
            train(run, networks, objective, stream, *parts)


if __name__ == "__main__":
    main()
