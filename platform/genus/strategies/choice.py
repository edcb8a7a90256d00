"""Which strategy the launcher and the config ask for; a contradiction is refused.

`accelerate launch` says it by environment variables (FSDP and DeepSpeed sections of its file),
`deepspeed` by --deepspeed_config, and everybody by ``train.strategy``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from genus.errors import ConfigError
from genus.nodes import processes_here

Name = Literal["ddp", "fsdp2", "hybrid", "zero1", "zero2", "zero3"]
Strategy = Literal["auto", "ddp", "fsdp2", "hybrid", "zero1", "zero2", "zero3"]

_SWITCHES = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)
_OURS = {
    "optimizer": "optim.*",
    "scheduler": "optim.schedule.*",
    "fp16": "train.precision",
    "amp": "train.precision",
}
"""Sections of a DeepSpeed file that a recipe's config decides."""


_UNSUPPORTED = (
    "mics_shard_size",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_gradients",
)
"""Ways of ZeRO in which a rank's part is not a range of the float32 weights."""


@dataclass(frozen=True)
class Choice:
    """A strategy and its settings."""

    name: Name = "ddp"
    replicas: int = 1
    """Of hybrid sharding: groups of ranks that hold a whole copy each."""
    reshard: bool = True
    """Of FSDP2: a block's weights are gathered again for its backward."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """A DeepSpeed file's content."""

    @property
    def stage(self) -> int:
        """ZeRO's stage; 0 for the others."""
        return int(self.name[-1]) if self.name.startswith("zero") else 0

    def __str__(self) -> str:
        if self.name == "hybrid":
            return f"hybrid FSDP2, {self.replicas} replicas"
        return {"ddp": "DDP", "fsdp2": "FSDP2"}.get(self.name, f"DeepSpeed ZeRO-{self.stage}")


def choose(said: Strategy = "auto") -> Choice:
    """What launcher and config say together. Raises ConfigError where they contradict."""
    if said not in get_args(Strategy):
        raise ConfigError(f"train.strategy={said}: take one of {', '.join(get_args(Strategy))}")
    launched = _launched()
    if said == "auto":
        return launched or Choice()
    if launched is not None and launched.name != said:
        raise ConfigError(
            f"train.strategy={said} contradicts the launcher, which says {launched.name}: say it "
            "in one place"
        )
    if launched is not None:
        return launched
    return Choice(said, replicas=_nodes()) if said == "hybrid" else Choice(said)


@contextmanager
def switches_off() -> Iterator[None]:
    """Within, Accelerate sees a plain distributed launch: the strategies are applied by us."""
    kept = {name: os.environ.pop(name) for name in _SWITCHES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _launched() -> Choice | None:
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        return _from_deepspeed()
    if _is_on("ACCELERATE_USE_FSDP"):
        return _from_fsdp()
    return None


def _from_fsdp() -> Choice:
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("FSDP version 1: set fsdp_version: 2 in accelerate's file")
    if _is_on("FSDP_OFFLOAD_PARAMS"):
        raise ConfigError(
            "fsdp_offload_params: not supported; to keep moments in host memory take "
            "launch/accelerate/zero2-offload.yaml"
        )
    if _is_on("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ConfigError("fsdp_activation_checkpointing: set train.recompute=true instead")
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if reshard not in ("true", "false"):
        raise ConfigError(f"fsdp_reshard_after_forward: {reshard}: true or false")
    replicas, shards = (_parallelism(f"DP_{what}") for what in ("REPLICATE", "SHARD"))
    if any(_parallelism(what) > 1 for what in ("TP", "CP", "SP")):
        raise ConfigError("parallelism_config: tensor, context and sequence parallelism: leave out")
    if replicas > 1 and replicas * shards != _world():
        raise ConfigError(
            f"parallelism_config says {replicas} replicas of {shards} shards, and there are "
            f"{_world()} processes: make dp_replicate_size the nodes, dp_shard_size a node's GPUs"
        )
    return Choice("hybrid" if replicas > 1 else "fsdp2", replicas, reshard == "true")


def _from_deepspeed() -> Choice:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file.lower() != "none":
        said = read_deepspeed(Path(file))
    else:
        asked: dict[str, Any] = {"stage": int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))}
        for what in ("optimizer", "param"):
            device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE", "none")
            if device != "none":
                asked[f"offload_{what}"] = {"device": device}
        said = {"zero_optimization": asked}
    zero = said.get("zero_optimization", {})
    for what in ("offload_optimizer", "offload_param"):
        if (zero.get(what) or {}).get("device") == "nvme":
            raise ConfigError(f"DeepSpeed's {what} to nvme: nothing could be saved: take cpu")
    for key in _UNSUPPORTED:
        if zero.get(key, 0) not in (0, 1, -1) or zero.get(key) is True:
            raise ConfigError(f"DeepSpeed's zero_optimization.{key}: not supported, leave it out")
    stage = zero.get("stage", 0)
    names: dict[int, Name] = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
    if stage not in names:
        raise ConfigError(f"DeepSpeed's zero_optimization.stage is {stage!r}: 0, 1, 2 or 3")
    return Choice(names[stage], deepspeed=said)


def read_deepspeed(file: Path) -> dict[str, Any]:
    """A DeepSpeed file. ConfigError where it can't be read, or decides what the recipe does."""
    try:
        said: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't read the DeepSpeed file {file}: {error}") from None
    for section, key in _OURS.items():
        switched_on = section in said and said[section].get("enabled", True) is True
        if switched_on:
            raise ConfigError(f"{file}: '{section}' is {key}'s business here: leave it out")
    return said


def _nodes() -> int:
    here = processes_here() or (1 if _world() == 1 else 0)
    if not here or _world() % here:
        raise ConfigError(
            f"train.strategy=hybrid: {_world()} processes, and LOCAL_WORLD_SIZE, those of a node, "
            f"is {here or 'not said'}: launch as many on every node, with torchrun or accelerate"
        )
    return _world() // here


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _parallelism(what: str) -> int:
    return int(os.environ.get(f"PARALLELISM_CONFIG_{what}_SIZE", "1"))


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")
