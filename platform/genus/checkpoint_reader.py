"""Reading published checkpoints without a run: what is there, whether it is whole, its digest."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from genus.errors import CheckpointError
from genus.parts import LoadPlanner, Part

FORMAT = 1

# DCP says at every save and load of a single process that it is one.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")


def published(folder: Path) -> list[Path]:
    """The published checkpoints in a checkpoints folder, oldest first."""
    found = (path for path in folder.glob("samples-*") if re.fullmatch(r"samples-\d+", path.name))
    return sorted((path for path in found if path.is_dir()), key=samples_of)


def samples_of(path: Path) -> int:
    """The progress in samples that a checkpoint's name says."""
    return int(path.name.removeprefix("samples-"))


def seal(meta: dict[str, Any]) -> str:
    """The text of meta.json: ``meta`` and its own checksum."""
    return json.dumps({**meta, "checksum": _crc_of_json(meta)}, indent=1)


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a checkpoint; CheckpointError if it is missing or not as it was written."""
    try:
        meta: dict[str, Any] = json.loads((path / "meta.json").read_bytes())
        checksum = meta.pop("checksum")
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: no readable meta.json ({error})") from None
    if checksum != _crc_of_json(meta):
        raise CheckpointError(f"{path}: meta.json is not as it was written")
    return meta


def _crc_of_json(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: files missing, too short, or other than written."""
    try:
        for name, (size, crc) in read_meta(path)["files"].items():
            file = path / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, {size} were written"
            if crc_of(file) != crc:
                return f"{name} does not have the checksum that was written"
    except (CheckpointError, OSError) as error:
        return str(error)
    return None


def crc_of(file: Path) -> int:
    """CRC-32 of a file's bytes."""
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


# torch writes its index as a pickle. These are all the names that an index needs; nothing else is
# looked up, and never a dotted name: "filesystem" also holds "os.system".
_INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(n for n, v in vars(torch).items() if isinstance(v, torch.dtype))},
}


def _member(owner: object, name: str) -> Any:
    """A memory format by name: Python 3.11.0 to 3.11.3 pickle enums as getattr(class, name)."""
    if owner is _MEM_FORMAT_ENCODING and name in _MEM_FORMAT_ENCODING.__members__:
        return _MEM_FORMAT_ENCODING[name]
    raise CheckpointError(f"the checkpoint's index names {name} of {owner!r}: not loaded")


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name in _INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(f"the checkpoint's index names {module}.{name}: not loaded")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        file = Path(self.path) / ".metadata"
        try:
            metadata = _IndexUnpickler(io.BytesIO(file.read_bytes())).load()
        except CheckpointError:
            raise
        except Exception as error:  # unpickling raises anything
            raise CheckpointError(f"{file}: no readable index ({error})") from None
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{file}: no index of a checkpoint")
        return metadata


def read_index(path: Path) -> Metadata:
    """DCP's index of a checkpoint, unpickled without any foreign class."""
    return _Reader(str(path)).read_metadata()


def tensor_shapes(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of every tensor in a checkpoint, by 'object/key'."""
    return {
        key: (entry.size, entry.properties.dtype)
        for key, entry in read_index(path).state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def load_tensors(path: Path, target: Mapping[str, Tensor | Part]) -> None:
    """Fill the tensors of ``target``, named 'object/key', from a checkpoint."""
    if target:
        reader = _Reader(str(path))
        dcp_load(dict(target), storage_reader=reader, planner=LoadPlanner(), no_dist=True)


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Tensors on the host whose 'object/key' begins with ``prefix``, which is cut off."""
    target = {
        key: torch.empty(shape, dtype=dtype)
        for key, (shape, dtype) in tensor_shapes(path).items()
        if key.startswith(prefix)
    }
    load_tensors(path, target)
    return {key[len(prefix) :]: value for key, value in target.items()}


def newest(run: Path) -> Path:
    """The newest whole checkpoint of a run folder; CheckpointError if there is none."""
    for path in reversed(published(run / "checkpoints")):
        if not fault_of(path):
            return path
    raise CheckpointError(f"{run} has no whole checkpoint in {run / 'checkpoints'}")


def digest(path: Path) -> dict[str, str]:
    """SHA-256 of every named piece of state in a checkpoint, and of all of it under 'total'.

    Tensors are hashed by name, dtype, shape and bytes, scalars by name and exact value; the layout
    on disk (how many ranks wrote it) does not matter. Two runs are equal to the bit if and only if
    their totals are.
    """
    meta = read_meta(path)
    pieces = {owner: hashlib.sha256() for owner in sorted(meta["scalars"])}
    for key, tensor in sorted(read_tensors(path).items()):
        piece = pieces[key.partition("/")[0]]
        piece.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        piece.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    for owner, values in meta["scalars"].items():
        for key, value in sorted(values.items()):
            pieces[owner].update(f"{owner}/{key} {value!r}\n".encode())
    result = {owner: piece.hexdigest() for owner, piece in pieces.items()}
    everything = "".join(f"{owner} {value}\n" for owner, value in result.items())
    result["total"] = hashlib.sha256(
        f"samples {meta['samples']}\n{everything}".encode()
    ).hexdigest()
    return result
