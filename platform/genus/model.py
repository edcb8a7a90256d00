"""A trained model taken from a run folder: networks with averaged weights, and their objective."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genus import config
from genus.checkpoint_reader import newest, read_meta, read_tensors, tensor_shapes
from genus.data.manifest import DataInfo
from genus.errors import ConfigError
from genus.optim.ema import last_snapshot, reconstruct
from genus.provenance import load_recipe

POST_HOC = " (post-hoc)"


@dataclass(frozen=True)
class Model:
    """What sampling and evaluation need of a run."""

    folder: Path
    config: Any
    info: DataInfo
    networks: dict[str, nn.Module]
    objective: Any
    samples: int
    """Progress of these weights, samples."""
    checkpoint: str
    """Name of the checkpoint."""
    ema: str
    """Whose weights these are: an average's label, ``0.123 (post-hoc)`` or ``none``."""


def load_model(folder: Path, ema: str | None = None, device: torch.device | str = "cpu") -> Model:
    """The newest checkpoint of a run. ``ema``: an average's label (default: first), ``none`` for
    the weights as trained, or any width, which is then reconstructed from the run's snapshots.

    Raises ConfigError or CheckpointError saying what is missing.
    """
    recipe = load_recipe(folder)
    cfg = config.load(recipe.Config, folder / "config.json")
    info = DataInfo.from_json(json.loads((folder / "data.json").read_text()))
    networks, objective = recipe.build(cfg, info)
    path = newest(folder)
    tensors, label = _weights(folder, path, ema or cfg.ema.labels()[0])
    for name, network in networks.items():
        own = read_tensors(path, f"networks.{name}/")  # buffers that have no average, too
        averaged = {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")}
        network.load_state_dict({**own, **averaged})
        network.to(device).eval()
    samples = int(read_meta(path)["samples"])
    if label.endswith(POST_HOC):
        samples = last_snapshot(folder / "snapshots")
    return Model(folder, cfg, info, networks, objective, samples, path.name, label)


def in_double(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies in float64 (float32 weights are exact in it) that take their inputs to it."""
    copies = {name: copy.deepcopy(network).double() for name, network in networks.items()}
    for network in copies.values():
        network.register_forward_pre_hook(_widen, with_kwargs=True)
    return copies


def _widen(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def wide(value: Any) -> Any:
        is_real = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if is_real else value

    return tuple(map(wide, args)), {name: wide(value) for name, value in kwargs.items()}


def _weights(folder: Path, path: Path, wanted: str) -> tuple[dict[str, Tensor], str]:
    if wanted == "none":
        return {}, "none"
    labels = sorted({k.split("/")[1] for k in tensor_shapes(path) if k.startswith("ema/")})
    try:
        number = f"{float(wanted):.3f}"
    except ValueError:
        number = wanted
    for label in (wanted, number):
        if label in labels:
            return read_tensors(path, f"ema/{label}/"), label
    try:
        return reconstruct(folder / "snapshots", float(wanted)), number + POST_HOC
    except ValueError as error:
        known = ", ".join([*labels, "none"])
        raise ConfigError(f"no average '{wanted}' (there are: {known}); {error}") from None
