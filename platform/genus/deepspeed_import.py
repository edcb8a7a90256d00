"""From DeepSpeed's own checkpoint to a run that goes on from it.

The weights and Adam's moments of one network are DeepSpeed's; the averages begin at these weights;
all else (the stream's place, progress, the objective, other networks) is what the run's newest
checkpoint holds. The result is a new run folder: published checkpoints are never changed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from genus import config
from genus.atomic import new_folder
from genus.checkpoint import Checkpoints
from genus.checkpoint_reader import load_tensors, newest, read_meta, tensor_shapes
from genus.data.manifest import DataInfo
from genus.deepspeed_checkpoint import MOMENTS, DeepSpeedCheckpoint
from genus.errors import ConfigError
from genus.parallel import World
from genus.parts import Part
from genus.provenance import load_recipe
from genus.state import State
from genus.tracking import Journal

COPIED = ("recipe.py", "data.json", "environment.json", "code.diff")


class Later(Part):
    """A whole tensor that is made when it is written."""

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, make: Callable[[], Tensor]
    ) -> None:
        super().__init__(shape, torch.empty(0, dtype=dtype), [])
        self._make = make

    def on_host(self) -> Part:
        return self

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offsets=torch.Size([0] * len(self.shape)), sizes=self.shape)]

    def box_at(self, offset: torch.Size | None) -> Tensor:
        """The whole."""
        made = self._make().to(self.dtype)
        assert made.shape == self.shape
        return made


@dataclass
class Given:
    """A piece of state that is what it was given."""

    state: State

    def state_dict(self) -> State:
        return self.state

    def load_state_dict(self, state: State) -> None:
        raise NotImplementedError("it is only written")


def convert(
    source: DeepSpeedCheckpoint, run: Path, out: Path, name: str, prefix: str
) -> tuple[Path, list[str]]:
    """Make the run folder ``out``; returns its checkpoint, and the parameters that have no moments
    in it, since DeepSpeed did not train them. ``name``: of the network, empty for the only one;
    ``prefix``: what DeepSpeed's names have before those of the network.

    Raises ConfigError where the network is another one, or trained by another optimizer.
    """
    recipe = load_recipe(run)
    cfg = config.load(recipe.Config, run / "config.json")
    info = DataInfo.from_json(json.loads((run / "data.json").read_text()))
    with torch.device("meta"):
        networks, _ = recipe.build(cfg, info)
    if not name and len(networks) == 1:
        name = next(iter(networks))
    if name not in networks:
        raise ConfigError(
            f"{run} has no network '{name}': --network {' or '.join(networks)}, and --prefix with "
            "what stands before its names in DeepSpeed's files, parts.NAME. where Genus trained it"
        )
    path = newest(run)
    states = _states(source, path, name, networks[name], prefix)
    with new_folder(out) as folder:
        for file in COPIED:
            if (run / file).exists():
                shutil.copy(run / file, folder / file)
        checkpoints = Checkpoints(folder / "checkpoints", World(), file_per_tensor=True)
        checkpoints.save(states, samples := int(read_meta(path)["samples"]))
        checkpoints.wait()
        journal = Journal(folder / "events.jsonl")
        told = {"weights": str(source.folder.resolve()), "others": str(path.resolve())}
        journal.write({"event": "converted", "network": name, "samples": samples, **told})
        journal.close()
        moved = dataclasses.replace(cfg.run, root=str(out.parent), name=out.name)
        (folder / "config.json").write_text(config.dumps(dataclasses.replace(cfg, run=moved)))
    made = newest(out)
    trained = [key for key, p in networks[name].named_parameters() if p.requires_grad]
    known = tensor_shapes(made)
    return made, [key for key in trained if f"optimizers.{name}/{key}/step" not in known]


def matched(source: DeepSpeedCheckpoint, network: nn.Module, prefix: str) -> dict[str, str]:
    """The network's names, each with DeepSpeed's name for what belongs there.

    ConfigError where names or shapes differ. Of a tensor that has several names in the network
    DeepSpeed keeps one.
    """
    shapes = {**source.shapes, **source.fixed}
    shapes |= {buffer: value.shape for buffer, value in source.buffers.items()}
    there = {n[len(prefix) :]: n for n in shapes if n.startswith(prefix)}
    own = network.state_dict()
    alike: dict[int, list[str]] = {}
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for key, parameter in parameters.items():
        alike.setdefault(id(parameter), []).append(key)
    found = {}
    for key in own:
        names = alike[id(parameters[key])] if key in parameters else [key]
        # a trained one first: its master weights are the exact ones
        names = sorted([key, *names], key=lambda n: there.get(n) not in source.shapes)
        first = next((n for n in names if n in there), None)
        if first is not None:
            found[key] = there[first]
    wrong = [
        f"{key} is {tuple(shapes[name])} there and {tuple(own[key].shape)} in the run"
        for key, name in found.items()
        if torch.Size(shapes[name]) != own[key].shape
    ]
    for where, differing in (
        (f"{source.folder} lacks", sorted(own.keys() - found.keys())),
        ("the run's network has no", sorted(there.keys() - own.keys())),
    ):
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            wrong.append(f"{where} {', '.join(differing[:3])}{more}")
    if wrong:
        example = next(iter(source.shapes), "none")
        raise ConfigError(
            f"{source.folder} is of another network: {'; '.join(wrong[:4])}. Its names are like "
            f"{example}: --prefix says what they have before the network's own ('{prefix}' now)"
        )
    return found


def _states(
    source: DeepSpeedCheckpoint, path: Path, name: str, network: nn.Module, prefix: str
) -> dict[str, Given]:
    """What the new checkpoint holds: the run's at ``path``, and the network's in its place."""
    meta, shapes = read_meta(path), tensor_shapes(path)
    moments = f"optimizers.{name}"
    kinds = meta["scalars"][moments].get("kinds")
    if kinds not in ("Adam", "AdamW"):
        raise ConfigError(
            f"the run trains '{name}' by {kinds or 'nothing'}, and DeepSpeed's file holds the "
            "moments of Adam: start the run with optim=AdamWConfig"
        )
    names = matched(source, network, prefix)
    tensors: dict[str, Part] = {}
    for place, (shape, dtype) in shapes.items():
        there = names.get(key_in_network(place, name))
        if there is not None:
            tensors[place] = Later(shape, dtype, partial(source.tensor, there))
        elif not place.startswith(f"{moments}/"):  # old moments don't go with new weights
            tensors[place] = Later(shape, dtype, partial(_stored, path, place, shape, dtype))
    for key, parameter in network.named_parameters():
        if parameter.requires_grad and names[key] in source.shapes:
            step = torch.tensor(source.step(names[key]))
            tensors[f"{moments}/{key}/step"] = Later((), torch.float32, partial(torch.clone, step))
            for kept in MOMENTS:
                make = partial(source.moment, names[key], kept)
                tensors[f"{moments}/{key}/{kept}"] = Later(parameter.shape, torch.float32, make)
    states: dict[str, State] = {owner: dict(values) for owner, values in meta["scalars"].items()}
    for place, tensor in tensors.items():
        owner, _, key = place.partition("/")
        states[owner][key] = tensor
    return {owner: Given(state) for owner, state in states.items()}


def key_in_network(place: str, name: str) -> str:
    """The network's name of a weight, or of its average, by its place in a checkpoint; empty for
    what is neither."""
    owner, _, key = place.partition("/")
    if owner == "ema":
        network, _, key = key.partition("/")[2].partition(".")
        return key if network == name else ""
    return key if owner == f"networks.{name}" else ""


def _stored(path: Path, place: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    value = torch.empty(shape, dtype=dtype)
    load_tensors(path, {place: value})
    return value
