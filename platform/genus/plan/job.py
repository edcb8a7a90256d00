"""What is planned: a recipe's config, and what its data look like, without running the recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genus.data.manifest import DataInfo
from genus.data.opening import read_info
from genus.errors import ConfigError, DataError
from genus.recipe_command import command_of, import_recipe
from genus.strategies.choice import Choice, Name
from genus.strategies.making import check_choice


@dataclass(frozen=True)
class Job:
    """A run that could be started."""

    recipe: Path
    preset: str
    config: Any
    build: Callable[[Any, DataInfo], tuple[dict[str, nn.Module], Any]]
    info: DataInfo
    has_data: bool
    """The data are here; otherwise ``info`` is what the command line says of them."""
    processes: int
    choice: Choice
    precision: str
    """fp32, bf16 or fp16."""

    @property
    def share(self) -> int:
        """Samples of a global batch on one rank."""
        return int(self.config.train.batch) // self.processes

    @property
    def micro(self) -> int:
        """Samples of one forward and backward on one rank."""
        said = int(self.config.train.micro)
        return min(said, self.share) if said else self.share

    @cached_property
    def together(self) -> int:
        """Rows that the objective looks at together: a micro-batch is a multiple of them."""
        with torch.device("meta"):
            _, objective = self.build(self.config, self.info)
        return int(getattr(objective, "group", 1))


@dataclass(frozen=True)
class Described:
    """What a command line says of data that are not here."""

    image: str = ""
    """CxHxW."""
    classes: int = 0
    vocabulary: int = 0
    dims: int = 0


def read_job(
    recipe: Path,
    words: Sequence[str],
    *,
    processes: int = 1,
    nodes: int = 1,
    described: Described | None = None,
) -> Job:
    """The job of ``genus plan RECIPE words``. ConfigError where it can't be planned, or where
    the run would be refused."""
    module = import_recipe(recipe)
    command = command_of(module, words)
    cfg = command.config
    if processes < 1 or cfg.train.batch % processes:
        raise ConfigError(
            f"train.batch={cfg.train.batch} can't be dealt to {processes} processes: take a "
            "multiple"
        )
    info, has_data = _info(cfg, described or Described())
    choice = _choice(cfg, nodes)
    precision = "fp32" if cfg.train.precision == "auto" else cfg.train.precision
    build = vars(module).get("build")
    if build is None:
        raise ConfigError(f"{recipe} has no build(config, info), which gives its networks")
    return Job(
        recipe, command.preset, cfg, build, info, has_data, processes, choice, precision
    )  # fmt: skip


def _choice(cfg: Any, nodes: int) -> Choice:
    name: Name = "ddp" if cfg.train.strategy == "auto" else cfg.train.strategy
    choice = Choice(name, replicas=nodes if name == "hybrid" else 1)
    check_choice(choice, cfg.train.precision, cfg.optim)
    return choice


def _info(cfg: Any, said: Described) -> tuple[DataInfo, bool]:
    if said != Described():
        return _described(cfg, said), False
    try:
        return read_info(cfg.data, fetch=False), True
    except DataError as error:
        raise ConfigError(
            f"sizes follow from the data, and {cfg.data.url} can't be read here ({error}). Say "
            "what they are: --image CxHxW --classes N, or --vocabulary N, or --dims N"
        ) from None


def _described(cfg: Any, said: Described) -> DataInfo:
    image = [0, 0, 0]
    if said.image:
        if not re.fullmatch(r"\d+x\d+x\d+", said.image):
            raise ConfigError(f"--image {said.image}: write channels x height x width, as 3x64x64")
        image = [int(number) for number in said.image.split("x")]
        if image[1] != image[2]:
            raise ConfigError(f"--image {said.image}: recipes serve squares")
    if said.vocabulary and not cfg.data.size:
        raise ConfigError("--vocabulary: set data.size to the tokens of a window")
    fields = ["image"] if said.image else []
    fields += ["label"] if said.classes else []
    fields += ["vector"] if said.dims else []
    fields += ["tokens", "document"] if said.vocabulary else []
    return DataInfo(
        url=cfg.data.url,
        samples=0,
        channels=image[0],
        resolution=image[1],
        classes=said.classes,
        class_names=tuple(str(i) for i in range(said.classes)),
        fields=tuple(fields),
        fingerprint="described",
        vocabulary=said.vocabulary,
        length=cfg.data.size if said.vocabulary else 0,
        dims=said.dims,
    )
