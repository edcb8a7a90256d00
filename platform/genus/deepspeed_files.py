"""The files of DeepSpeed's checkpoints: finding them, and loading them without foreign classes.

Each is a pickle of tensors and plain values that also names a few classes of DeepSpeed. Those are
given stand-ins, so that DeepSpeed need not be imported; a file that names anything else is refused.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from genus.errors import CheckpointError


def is_deepspeed(folder: Path) -> bool:
    """Whether it looks like a folder of DeepSpeed's checkpoints, or like one of them."""
    within = any(folder.glob("*_optim_states.pt")) or any(folder.glob("*/*_optim_states.pt"))
    return (folder / "latest").is_file() or within


def inner_folder(folder: Path) -> Path:
    """The folder with the files: ``folder`` itself, or the one in it that ``latest`` names."""
    if any(folder.glob("*_optim_states.pt")):
        return folder
    inside = sorted({path.parent for path in folder.glob("*/*_optim_states.pt")})
    if (folder / "latest").is_file():
        named = folder / (folder / "latest").read_text().strip()
        if named in inside:
            return named
        raise CheckpointError(f"{folder}/latest names {named.name}, which holds no checkpoint")
    if len(inside) == 1:
        return inside[0]
    names = ", ".join(path.name for path in inside) or "none"
    raise CheckpointError(
        f"{folder} has no file named latest, and these checkpoints of ZeRO: {names}; name one"
    )


class _Unused:
    """Stands for a loss scaler, whose state this does not need."""


class _Place:
    """Stands for a range: its state is what is set."""

    start: int
    numel: int


_STAND_INS: list[tuple[Any, str]] = [
    (_Unused, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Unused, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Place, "deepspeed.utils.tensor_fragment.fragment_address"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
]
"""All of DeepSpeed that its files name."""


def load_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy all files of the folder here")
    try:
        with safe_globals(_STAND_INS):  # type: ignore[arg-type]
            found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"names {named[1]}" if named else f"can't be read safely ({error})"
        raise CheckpointError(
            f"{path} {what}: only tensors, plain values and a few classes of DeepSpeed are loaded. "
            "Leave other objects out of client_state, and save again"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        told = str(error).splitlines()[0]
        raise CheckpointError(f"{path} can't be read: {told}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no file of a DeepSpeed checkpoint")
    return found
