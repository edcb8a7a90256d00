"""Reading what DeepSpeed's own ``engine.save_checkpoint`` wrote, ZeRO stages 1 to 3.

    FOLDER/latest                                          the name of the newest one
    FOLDER/global_step10/mp_rank_00_model_states.pt        names, shapes, buffers (stages 1 and 2)
                         zero_pp_rank_N_mp_rank_00_model_states.pt                     (stage 3)
                         [bf16_]zero_pp_rank_N_mp_rank_00_optim_states.pt      flat weights, moments

Each rank's file holds one flat float32 tensor of weights for a group of parameters, and moments
that lie alike. In stages 1 and 2 the parameters of a group lie end to end and are cut where the
ranks' shares end; the file says where on its rank each one lies. In stage 3 each parameter is cut
into as many equal pieces as there are ranks, the last one filled up.

The files are mapped into memory, so that a tensor is read when it is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genus.deepspeed_files import inner_folder, load_file
from genus.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of each parameter, besides the number of its steps."""


@dataclass(frozen=True)
class _Range:
    """A piece of a parameter: a range of one rank's flat tensor of one group."""

    rank: int
    group: int
    start: int
    count: int


class DeepSpeedCheckpoint:
    """One checkpoint of DeepSpeed, its tensors whole and by their names."""

    def __init__(self, folder: Path) -> None:
        """CheckpointError where a rank's file is missing, names a class that is not looked up, or
        is not laid out as this reads it."""
        self.folder = inner_folder(folder)
        self._optimizers = self._open_ranks()
        self.ranks = len(self._optimizers)
        try:
            self._read()
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise CheckpointError(
                f"{self.folder} is not laid out as DeepSpeed's ZeRO checkpoints are ({why})"
            ) from None

    def _open_ranks(self) -> list[dict[str, Any]]:
        pattern = re.compile(r"(bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
        found: dict[int, Path] = {}
        for path in self.folder.glob("*_optim_states.pt"):
            match = pattern.fullmatch(path.name)
            if match is None or int(match[3]):
                raise CheckpointError(
                    f"{path}: networks split by tensor, pipeline or expert parallelism are not read"
                )
            found[int(match[2])] = path
        some = load_file(next(iter(found.values())))["optimizer_state_dict"]
        counts = some.get("partition_count")
        counts = set(counts) if isinstance(counts, list) else {counts}
        (ranks,) = counts if len(counts) == 1 else {None}
        if not isinstance(ranks, int):
            raise CheckpointError(
                f"{self.folder}: its parameters lie on different numbers of ranks (experts?), "
                "which is not read"
            )
        missing = [str(rank) for rank in range(ranks) if rank not in found]
        if missing or len(found) != ranks:
            lacking = f"rank {', '.join(missing)}'s is missing" if missing else "there are more"
            raise CheckpointError(
                f"{self.folder} was written by {ranks} ranks, and of their *_optim_states.pt "
                f"{lacking}: copy all files of the folder here"
            )
        return [load_file(found[rank])["optimizer_state_dict"] for rank in range(ranks)]

    def _read(self) -> None:
        first = self._optimizers[0]
        self.stage = int(first.get("zero_stage", 1))  # DeepSpeed's optimizer for bf16 does not say
        model = self._model(0)
        groups: list[Mapping[str, torch.Size]] = model["param_shapes"]
        self.shapes = {n: torch.Size(shape) for group in groups for n, shape in group.items()}
        """Of the parameters that were trained."""
        module: Mapping[str, Tensor] = model["module"]
        self.buffers = {name: module[name] for name in model["buffer_names"]}
        self.fixed: dict[str, torch.Size]
        """Of those that were not, and in stages 1 and 2 of second names of parameters."""
        if self.stage == 3:
            self.fixed = dict(model.get("frozen_param_shapes") or {})
            models = [model, *(self._model(rank) for rank in range(1, self.ranks) if self.fixed)]
            self._fixed_pieces = {
                n: [each["frozen_param_fragments"][n] for each in models] for n in self.fixed
            }
            self._flat, self._base = "fp32_flat_groups", "optimizer_state_dict"
            self._ranges = _in_equal_pieces(groups, self.ranks)
        else:
            whole = module.keys() - self.shapes.keys() - self.buffers.keys()
            self.fixed = {name: module[name].shape for name in module if name in whole}
            self._fixed_pieces = {name: [module[name]] for name in self.fixed}
            self._flat, self._base = "single_partition_of_fp32_groups", "base_optimizer_state"
            self._ranges = _as_said([state["param_slice_mappings"] for state in self._optimizers])
        for name, shape in self.shapes.items():
            have = sum(piece.count for piece in self._ranges[name])
            spare = self.ranks if self.stage == 3 else 1
            if not shape.numel() <= have < shape.numel() + spare:
                raise ValueError(f"{name} has {have} numbers, not {shape.numel()}")
        for state in self._optimizers:
            if self._base not in state or "state" not in state[self._base]:
                raise CheckpointError(
                    f"{self.folder} holds no state of its optimizer as ZeRO saves it by default "
                    "(elastic_checkpoint, or offloaded to a disk?)"
                )

    def _model(self, rank: int) -> dict[str, Any]:
        name = f"zero_pp_rank_{rank}_mp_rank_00" if self.stage == 3 else "mp_rank_00"
        return load_file(self.folder / f"{name}_model_states.pt")

    # ---- tensors ---------------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        """Master weights of a parameter that was trained, a parameter that was not, a buffer."""
        if name in self.buffers:
            return self.buffers[name]
        if name in self.fixed:
            shape = torch.Size(self.fixed[name])
            pieces = [piece.flatten() for piece in self._fixed_pieces[name]]
            return torch.cat(pieces)[: shape.numel()].view(shape)
        return self._whole(name, lambda rank, group: self._optimizers[rank][self._flat][group])

    def moment(self, name: str, key: str) -> Tensor:
        """``key`` of ``MOMENTS``; CheckpointError where the optimizer has none."""
        return self._whole(name, lambda rank, group: self._kept(rank, group, name)[key])

    def step(self, name: str) -> float:
        """How many steps Adam has made with a parameter."""
        piece = self._ranges[name][0]
        kept = self._kept(piece.rank, piece.group, name)
        groups = self._optimizers[piece.rank][self._base]["param_groups"]
        # DeepSpeed's own Adam counts in the group
        owner: Mapping[str, Any] = next((g for g in groups if piece.group in g["params"]), {})
        step = kept.get("step", owner.get("step"))
        if step is None:
            raise CheckpointError(f"{self.folder} does not say how many steps Adam made")
        return float(step)

    def _kept(self, rank: int, group: int, name: str) -> Mapping[str, Any]:
        kept: Mapping[str, Any] = self._optimizers[rank][self._base]["state"].get(group, {})
        lacking = [key for key in MOMENTS if key not in kept]
        if lacking:
            raise CheckpointError(
                f"{self.folder} holds no {' and no '.join(lacking)} of {name}: it was saved before "
                "the first step, or its optimizer is not Adam"
            )
        return kept

    def _whole(self, name: str, flat_of: Callable[[int, int], Tensor]) -> Tensor:
        pieces = []
        for piece in self._ranges[name]:
            flat = flat_of(piece.rank, piece.group).flatten()
            if flat.numel() < piece.start + piece.count:
                raise CheckpointError(
                    f"{self.folder}: rank {piece.rank}'s share ends within {name}"
                )
            pieces.append(flat[piece.start : piece.start + piece.count])
        shape = self.shapes[name]
        return torch.cat(pieces)[: shape.numel()].view(shape)


def _in_equal_pieces(groups: list[Mapping[str, torch.Size]], ranks: int) -> dict[str, list[_Range]]:
    """Stage 3: at the same place on every rank."""
    found = {}
    for number, group in enumerate(groups):
        start = 0
        for name, shape in group.items():
            count = math.ceil(shape.numel() / ranks)
            found[name] = [_Range(rank, number, start, count) for rank in range(ranks)]
            start += count
    return found


def _as_said(mappings: list[list[Mapping[str, Any]]]) -> dict[str, list[_Range]]:
    """Stages 1 and 2: ``mappings`` of each rank, by group and name; pieces in the ranks' order."""
    found: dict[str, list[_Range]] = {}
    for rank, groups in enumerate(mappings):
        for number, group in enumerate(groups):
            for name, place in group.items():
                piece = _Range(rank, number, int(place.start), int(place.numel))
                found.setdefault(name, []).append(piece)
    return found
