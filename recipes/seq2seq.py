"""Sequence to sequence: translation, captions, transcripts.

    accelerate launch recipes/seq2seq.py                                # verses, English to Spanish
    accelerate launch recipes/seq2seq.py --preset speech

preset             score to expect                                          cost
-----------------  -------------------------------------------------------  ----------------------
tiny               none: seconds, to try the platform out                   10 s, 1 CPU core
reverse            0 errors: strings of up to 16 letters, reversed          2 min, 1 CPU core
verses (default)   BLEU 25.2, chrF 46.7 on Mark; nearest verse 25.0, 44.6   27 min, 2 CPU cores
captions           86 % of characters wrong; nearest image 77 %             5 min, 1 CPU core
speech             53 % of characters wrong; nearest sound 60 %             20 min, 1 CPU core
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from genus import config
from genus.data.manifest import DataInfo
from genus.data.stream import DataConfig, open_stream
from genus.loop import TrainConfig, train
from genus.meter import training_flops
from genus.mirror import TrackingConfig
from genus.networks.transformer.encoder_decoder import EncoderDecoderConfig
from genus.objectives.sequence_to_sequence import SequenceToSequence, SequenceToSequenceConfig
from genus.objectives.sources import SourceConfig
from genus.optim.build import AdamWConfig, MuonConfig
from genus.optim.ema import PlainEMAConfig, PowerEMAConfig
from genus.optim.schedule import ScheduleConfig
from genus.run import Run, RunConfig, describe, errors_as_messages
from genus.strategies.making import open_world
from genus.translations import Translations
from genus.validation import Validation


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run of an encoder-decoder."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    network: EncoderDecoderConfig = field(default_factory=EncoderDecoderConfig)
    objective: SequenceToSequenceConfig = field(default_factory=SequenceToSequenceConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: AdamWConfig | MuonConfig = field(default_factory=MuonConfig)
    ema: PowerEMAConfig | PlainEMAConfig = field(default_factory=PowerEMAConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def run_of(samples: int, batch: int, lr: float, **parts: Any) -> Config:
    """A run of that length, with cadences to match."""
    every = TrainConfig(samples=samples, batch=batch, status_every=samples // 40,
                        sample_every=samples // 4, validate_every=samples // 8,
                        checkpoint_every=samples // 8)  # fmt: skip
    schedule = ScheduleConfig(kind="cosine", warmup=samples // 20)
    optim = MuonConfig(lr=lr, adamw_lr=3e-3, weight_decay=0.05, schedule=schedule)
    return Config(train=every, optim=optim, **parts)


# fmt: off
K = 1_000
PRESETS = {
    "tiny": run_of(
        640, 16, 0.02, data=DataConfig(url="reverse"),
        network=EncoderDecoderConfig(width=32, depth=1, heads=2),
    ),
    "reverse": run_of(
        64 * K, 64, 0.02, data=DataConfig(url="reverse"),
        network=EncoderDecoderConfig(width=64, depth=2, heads=4, positions="learned"),
    ),
    "verses": run_of(
        160 * K, 64, 0.02, data=DataConfig(url="verses-en-es"),
        network=EncoderDecoderConfig(width=128, depth=3, heads=4, positions="learned", dropout=0.1),
    ),
    "captions": run_of(
        24 * K, 32, 0.02, data=DataConfig(url="emoji-captions", size=64),
        network=EncoderDecoderConfig(width=128, depth=3, heads=4, dropout=0.2),
        objective=SequenceToSequenceConfig(length_penalty=0.0),
    ),
    "speech": run_of(
        40 * K, 16, 0.02, data=DataConfig(url="speech-prompts"),
        network=EncoderDecoderConfig(width=128, depth=3, encoder_depth=4, heads=4,
                                     positions="learned", dropout=0.2),
        objective=SequenceToSequenceConfig(source=SourceConfig(stack=3, masks=2), ctc=0.5),
    ),
}
# fmt: on


def build(cfg: Config, info: DataInfo) -> tuple[dict[str, nn.Module], SequenceToSequence]:
    """The network, sized by the data, and the objective."""
    objective = cfg.objective.build(info)
    source = objective.source
    model = cfg.network.build(
        vocabulary=info.vocabulary,
        length=info.target_length,
        source_length=source.length,
        source_vocabulary=source.vocabulary,
        source_features=source.features,
        ctc=cfg.objective.ctc > 0,
    )
    return {"model": model}, objective


def flops(cfg: Config, info: DataInfo) -> float:
    """Model FLOPs of training on the longest pair; most are shorter."""
    with torch.device("meta"):
        networks, objective = build(cfg, info)
        source = objective.source
        shape = (1, source.length, source.features) if source.features else (1, source.length)
        values = torch.zeros(shape, dtype=None if source.features else torch.int64)
        targets = torch.zeros(1, info.target_length, dtype=torch.int64)
        return training_flops(networks["model"], values, targets)


def main() -> None:
    command = config.parse(Config, PRESETS, default="verses")
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
            shown = Translations(run, networks, objective, every=every, data=cfg.data, info=info)
            loss = Validation(run, networks, objective, every=often, data=cfg.data, info=info)
            parts = cfg.train, cfg.optim, cfg.ema, [shown, loss], cost
            train(run, networks, objective, stream, *parts)


if __name__ == "__main__":
    main()
