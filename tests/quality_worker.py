"""Run by test_quality.py on each rank: a model of known samples measures itself as in the loop.

quality_worker.py FOLDER DATA COUNT [--broken]  the first rank prints what became the event as a
                                                JSON line; "broken": no counter of modes can be made
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from genus import config
from genus.data.stream import DataConfig, read_info
from genus.draws import Draws
from genus.errors import GenusError
from genus.evaluate.real_data import RealData
from genus.loop import TrainConfig
from genus.mirror import TrackingConfig
from genus.objectives.phase import Networks, SampleOptions, SamplingPlan, Traits
from genus.optim.ema import PlainEMAConfig
from genus.parallel import World
from genus.quality import Quality
from genus.run import Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """What Quality reads of a recipe's."""

    run: RunConfig
    data: DataConfig
    train: TrainConfig
    ema: PlainEMAConfig = field(default_factory=PlainEMAConfig)
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(wandb="off"))


class Scale(nn.Module):
    """Noise times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Noise:
    """Samples are scaled uniform noise on [-1, 1], of images plus a level of each class; those of
    vectors are rounded to multiples of 2 up to +-2, so that of 25-gaussians they are centres."""

    traits = Traits(
        density="none", sampling_cost="1", principle="none", latent="none", architecture="none"
    )

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def plan(self, options: SampleOptions) -> SamplingPlan:
        return SamplingPlan("noise", 1, None)

    def sample(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Tensor:
        x = networks["net"](2 * draws.uniform("x", self.shape) - 1)
        if len(self.shape) == 1:
            return 2 * (1.5 * x).round()
        assert label is not None
        return 0.3 * x + (label / 10 - 0.5)[:, None, None, None]


def measure(folder: str, url: str, count: int) -> dict[str, Any]:
    """What becomes the event at 100 samples, and under "spoilt" with weights that are not finite;
    or under "refused" why nothing is measured."""
    world = World()
    data = DataConfig(url=url)
    info = read_info(data)
    cfg = Config(
        run=RunConfig(root=folder, name="run", seed=3),
        data=data,
        train=TrainConfig(evaluate_every=100, evaluate_samples=count),
    )
    with Run(config.Command(cfg, "toy", False), __file__, world, info) as run:
        networks = {"net": Scale()}
        parts = cfg.train, cfg.ema
        try:
            quality = Quality(run, networks, Noise(info.shape), *parts, data=data, info=info)
            found = {"every": quality.every, **quality.run(100)}
            with torch.no_grad():
                networks["net"].weight.fill_(float("nan"))
            found["spoilt"] = dict(quality.run(200))
            with patch.object(RealData, "modes", fail):
                found["failed"] = dict(quality.run(300))
        except GenusError as error:
            found = {"refused": str(error), "kind": type(error).__name__}
        everywhere = world.gather(found.get("passport", found.get("refused")))
        assert len(set(everywhere)) == 1, everywhere
        assert everywhere[0] is not None, found
    return found


def fail(*arguments: Any) -> Any:
    """As torch does: none of our own errors."""
    raise RuntimeError("out of memory")


def main() -> None:
    if sys.argv[4:] == ["--broken"]:
        RealData.counter = property(fail)  # type: ignore[assignment, method-assign]
    found = measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    if os.environ["RANK"] == "0":
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
