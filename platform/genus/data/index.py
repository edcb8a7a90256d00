"""Where every sample lies: a small index beside each tar shard, and one manifest for the folder.

    <folder>/manifest.json        shards (wids' shape), fields, classes, image size, total
    <folder>/000000.tar           a plain webdataset shard: KEY.png, KEY.cls, ...
    <folder>/000000.index.npz     per sample its key, and per member offset, size and crc32

The index is made from the tar alone, whoever wrote it, so the tar stays the only truth.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from genus.data.decode import field_of
from genus.data.manifest import MANIFEST, Manifest, Shard
from genus.errors import DataError


@dataclass(frozen=True)
class ShardIndex:
    """A shard of n samples with m kinds of members. A member that a sample lacks has size -1."""

    keys: NDArray[np.str_]
    """(n,) webdataset keys."""
    extensions: NDArray[np.str_]
    """(m,) member extensions, lower case."""
    offset: NDArray[np.int64]
    """(n, m) bytes from the tar's beginning to the member's data."""
    size: NDArray[np.int64]
    """(n, m) bytes."""
    crc: NDArray[np.uint32]
    """(n, m) crc32 of the member's data."""
    shape: NDArray[np.int32]
    """(n, 3) channels (1 or 3), height, width of the image; 0 where there is none."""
    label: NDArray[np.int64]
    """(n,) class number; -1 where there is none."""

    def __len__(self) -> int:
        return len(self.keys)

    def save(self, path: Path) -> None:
        """Write as .npz, without pickle."""
        np.savez_compressed(path, **vars(self))

    @staticmethod
    def load(path: Path) -> ShardIndex:
        """Read what ``save`` wrote. DataError where it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return ShardIndex(**arrays)
        except (
            Exception
        ) as error:  # zipfile, zlib, KeyError, ValueError, OSError: all the same here
            raise DataError(
                f"can't read the index {path} ({error}): make it again with "
                f"'genus data index {path.parent}'"
            ) from None


def index_folder(folder: Path, *, name: str = "", classes: Sequence[str] = ()) -> Manifest:
    """Write the index of every ``*.tar`` in ``folder``, then its manifest.

    ``classes`` names the classes (default: those of the manifest that is there, else their
    numbers). DataError for tars that can't be read or hold no samples.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise DataError(f"{folder} holds no *.tar files to index")
    shards, indexes = [], []
    for path in paths:
        index = index_shard(path)
        with path.open("rb") as file:
            checksum = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(path.name, len(index), path.stat().st_size, checksum)
        index.save(folder / shard.index)
        shards.append(shard)
        indexes.append(index)
    if not classes and (folder / MANIFEST).exists():
        classes = Manifest.load(folder).classes
    manifest = _summary(name or folder.name, shards, indexes, classes)
    manifest.save(folder)
    return manifest


def index_shard(path: Path) -> ShardIndex:
    """The index of one tar: headers and data are read once, in order."""
    samples: list[tuple[str, dict[str, tuple[int, int, int]]]] = []
    shape: list[tuple[int, int, int]] = []
    label: list[int] = []
    for key, extension, offset, data in _members(path):
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
            shape.append((0, 0, 0))
            label.append(-1)
        members = samples[-1][1]
        if extension in members:
            raise DataError(f"shard {path}, sample {key}: two members .{extension}; pack it again")
        members[extension] = offset, len(data), zlib.crc32(data)
        match field_of(extension):
            case ("image", "image"):
                shape[-1] = image_shape(data, f"shard {path}, member {key}.{extension}")
            case ("label", "integer"):
                label[-1] = _label_of(data, f"shard {path}, member {key}.{extension}")
    extensions = sorted({extension for _, members in samples for extension in members})
    table = np.full((len(samples), len(extensions), 3), (0, -1, 0), np.int64)
    for row, (_, members) in zip(table, samples, strict=True):
        for column, extension in enumerate(extensions):
            if extension in members:
                row[column] = members[extension]
    return ShardIndex(
        keys=np.array([key for key, _ in samples], dtype=np.str_),
        extensions=np.array(extensions, dtype=np.str_),
        offset=table[..., 0],
        size=table[..., 1],
        crc=table[..., 2].astype(np.uint32),
        shape=np.array(shape, np.int32).reshape(-1, 3),
        label=np.array(label, np.int64),
    )


def _members(path: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """(key, extension, offset, data) of a tar's members, named and skipped as webdataset does."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
                name = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member.name)
                if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name) or name is None:
                    continue
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name} is a sparse file")
                data = _read_at(file, member.offset_data, member.size)
                yield name[1], name[2].lower(), member.offset_data, data
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"can't read the shard {path} ({error}): it must be a whole, uncompressed tar"
        ) from None


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def image_shape(data: bytes, place: str) -> tuple[int, int, int]:
    """(channels 1 or 3, height, width) from an image's header; DataError names ``place``."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            grey = image.mode in ("1", "L", "LA")
            return (1 if grey else 3), image.height, image.width
    except Exception as error:
        raise DataError(f"{place}: no readable image ({error}): remove or mend it") from None


def _label_of(data: bytes, place: str) -> int:
    try:
        label = int(data)
    except ValueError:
        label = -1
    if label < 0:
        raise DataError(f"{place}: {data[:40]!r} is no class number (0, 1, ...)")
    return label


def _summary(
    name: str, shards: Sequence[Shard], indexes: Sequence[ShardIndex], classes: Sequence[str]
) -> Manifest:
    total = sum(len(index) for index in indexes)
    if total == 0:
        raise DataError(f"the shards of {name} hold no samples (members named KEY.EXTENSION)")
    fields: dict[str, int] = {}
    for index in indexes:
        for extension, size in zip(index.extensions, index.size.T, strict=True):
            fields[str(extension)] = fields.get(str(extension), 0) + int((size >= 0).sum())
    label = np.concatenate([index.label for index in indexes])
    counts = np.bincount(label[label >= 0], minlength=len(classes)) if (label >= 0).any() else ()
    if len(classes) < len(counts):
        if classes:
            raise DataError(f"{name} has labels up to {len(counts) - 1} for {len(classes)} classes")
        classes = [str(number) for number in range(len(counts))]
    shape = np.concatenate([index.shape for index in indexes])
    shape = shape[shape[:, 0] > 0]
    same = len(shape) > 0 and bool((shape[:, 1:] == shape[0, 1:]).all())
    return Manifest(
        name=name,
        shards=tuple(shards),
        fields=dict(sorted(fields.items())),
        classes=tuple(classes) if len(counts) else (),
        counts=tuple(int(n) for n in cast(Sequence[int], counts)),
        channels=int(shape[:, 0].max(initial=0)),
        height=int(shape[0, 1]) if same else 0,
        width=int(shape[0, 2]) if same else 0,
        total=total,
    )
