"""A job whose network is small enough to work everything out by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genus.data.batch import Batch
from genus.data.manifest import DataInfo
from genus.loop import TrainConfig
from genus.objectives.phase import Networks, Phase, Stateless
from genus.optim.build import AdamWConfig, MuonConfig
from genus.optim.ema import PlainEMAConfig, PowerEMAConfig
from genus.plan.job import Job
from genus.run import RunConfig
from genus.strategies.choice import Choice

A, B, C = 8, 4096, 2
"""Inputs, hidden, outputs: hidden activations decide the peak."""


@dataclass(frozen=True)
class Config:
    """What a plan reads of a recipe's config."""

    train: TrainConfig
    optim: AdamWConfig | MuonConfig
    ema: PowerEMAConfig | PlainEMAConfig
    run: RunConfig


class Squares(Stateless):
    """Mean square of the outputs; network: ``model``."""

    def __init__(self) -> None:
        self.phases = (Phase("fit", ("model",), self.loss),)

    def loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = networks["model"](batch["vector"]).square().mean()
        return loss, {"loss": loss.detach()}


def build(cfg: Any, info: DataInfo) -> tuple[dict[str, nn.Module], Squares]:
    """A x B x C with a ReLU."""
    return {"model": nn.Sequential(nn.Linear(A, B), nn.ReLU(), nn.Linear(B, C))}, Squares()


def job(
    processes: int = 1,
    choice: Choice | None = None,
    ema: PowerEMAConfig | PlainEMAConfig | None = None,
    optim: AdamWConfig | MuonConfig | None = None,
    **train: Any,
) -> Job:
    """Of made-up vectors."""
    info = DataInfo("nowhere", 0, 0, 0, 0, (), ("vector",), "made up", dims=A)
    config = Config(
        train=TrainConfig(**{"batch": 64, "samples": 640, **train}),
        optim=optim or AdamWConfig(),
        ema=ema or PlainEMAConfig(),
        run=RunConfig(),
    )
    precision = "fp32" if config.train.precision == "auto" else config.train.precision
    return Job(
        Path("mlp.py"), "hand", config, build, info, False, processes, choice or Choice(), precision
    )  # fmt: skip
