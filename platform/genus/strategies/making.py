"""From a launcher and a config to a world, and to networks spread over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import nn

from genus.errors import ConfigError
from genus.networks.units import recompute
from genus.objectives.phase import Phase
from genus.parallel import Precision, World
from genus.strategies.choice import Choice, Strategy
from genus.strategies.data_parallel import DataParallel
from genus.strategies.float8 import to_float8
from genus.strategies.spread import Optim, Spread


class Training(Protocol):
    """What of a run's TrainConfig the strategies must agree with."""

    @property
    def precision(self) -> Precision: ...
    @property
    def strategy(self) -> Strategy: ...
    @property
    def recompute(self) -> bool: ...
    @property
    def compile(self) -> bool: ...
    @property
    def clip(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def micro(self) -> int: ...


def open_world(train: Training, optim: Optim) -> World:
    """The world of a run. ConfigError where launcher, config and strategy do not go together."""
    world = World(train.precision, train.strategy)
    check_choice(world.choice, world.precision, optim)
    _check_deepspeed(world, train)
    return world


def check_choice(choice: Choice, precision: Precision, optim: Optim) -> None:
    """ConfigError where a strategy can't have that precision or that optimizer."""
    if choice.name != "ddp" and precision == "fp16":
        raise ConfigError(f"fp16 and {choice} don't go together: take bf16, or DDP")
    if choice.stage and not optim.elementwise:
        raise ConfigError(
            f"{choice} lays weights out flat, and {type(optim).__name__} needs matrices: take "
            "optim=AdamWConfig, or train.strategy=ddp or fsdp2"
        )


def spread(
    world: World,
    networks: Mapping[str, nn.Module],
    phases: Sequence[Phase],
    optim: Optim,
    train: Training,
) -> Spread:
    """Networks and their optimizers on the ranks, as ``world.choice`` says."""
    if world.precision == "fp8" and not to_float8(networks):
        raise ConfigError("fp8 found no linear layer in the networks' blocks: take bf16")
    for network in networks.values():
        if train.recompute:
            recompute(network)
        if train.compile:
            network.compile()
    clip = train.clip
    choice = world.choice
    if choice.stage:
        from genus.strategies.zero import Zero

        return Zero(world, networks, optim, clip, phases)
    if choice.name in ("fsdp2", "hybrid") and world.size > 1:
        from genus.strategies.fully_sharded import FullySharded

        copies, reshard = choice.replicas, choice.reshard
        return FullySharded(world, networks, optim, clip, phases, copies, reshard)
    return DataParallel(world, networks, optim, clip, phases)


def _check_deepspeed(world: World, train: Training) -> None:
    """A DeepSpeed file may leave to the recipe what the recipe decides, or say the same."""
    ours = {
        "train_batch_size": train.batch,
        "gradient_clipping": train.clip,
        "train_micro_batch_size_per_gpu": None,
        "gradient_accumulation_steps": None,
    }
    for key, value in ours.items():
        said = world.choice.deepspeed.get(key, "auto")
        if said not in ("auto", value) and not (value is None and said == 1):
            where = "train.micro" if value is None else f"this run's {value}"
            raise ConfigError(
                f'the DeepSpeed file says {key}: {said}, which contradicts {where}: write "auto"'
            )
    bf16 = world.choice.deepspeed.get("bf16", {}).get("enabled", "auto")
    if bf16 not in ("auto", world.precision in ("bf16", "fp8")):
        raise ConfigError(
            f"the DeepSpeed file says bf16: {bf16}, and the run's precision is {world.precision}: "
            'write "auto", or set train.precision'
        )
