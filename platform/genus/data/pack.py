"""From images on disk to webdataset shards with their index and manifest."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genus.atomic import new_folder
from genus.data.decode import IMAGES
from genus.data.index import image_shape, index_folder
from genus.data.manifest import Manifest
from genus.data.order import permutation
from genus.errors import DataError


@dataclass(frozen=True)
class Source:
    """N samples to be packed."""

    count: int
    members: Callable[[int], Mapping[str, bytes]]
    """Sample number -> extension and content of its image, vector or sequences."""
    labels: NDArray[np.int64] | None
    """(N,) class numbers."""
    classes: tuple[str, ...] = ()
    """Names of the classes, where they have names."""
    modes: str = ""
    """By what modes are told apart, where they can be (genus.evaluate.modes)."""


def pack(
    source: str | Path,
    out: str | Path,
    *,
    shard_size: int = 1000,
    shuffle_seed: int | None = 0,
    classes: Sequence[str] = (),
    name: str = "",
) -> Manifest:
    """Pack ``source`` into the new folder ``out`` and return its manifest.

    ``source`` is a folder of images (each sub-folder a class; or no sub-folders and no labels), an
    .npz (``image``/``images``/``x`` (N, H, W[, C]) uint8 with ``label``/``labels``/``y`` (N,)), or
    the images of an idx pair (``*-images-idx3-ubyte[.gz]``, its labels beside it). Image files keep
    their bytes, arrays become lossless PNG. Samples are shuffled by ``shuffle_seed`` (None: kept in
    the source's order); their keys are their numbers in the source. ``out`` appears whole or not at
    all, and is never overwritten: DataError.
    """
    data = open_source(Path(source))
    if data.count == 0:
        raise DataError(f"{source} holds no images ({', '.join(IMAGES)})")
    if classes:
        data = replace(data, classes=tuple(classes))
    return pack_source(data, Path(out), shard_size=shard_size, shuffle_seed=shuffle_seed, name=name)


def pack_source(
    data: Source, out: Path, *, shard_size: int, shuffle_seed: int | None, name: str = ""
) -> Manifest:
    """Pack at least one sample into the new folder ``out``; what ``pack`` says of it holds."""
    if shard_size < 1:
        raise DataError(f"shards of {shard_size} samples: take 1 or more")
    with new_folder(out) as temporary:
        write_shards(data, temporary, shard_size, shuffle_seed)
        manifest = index_folder(
            temporary, name=name or out.name, classes=data.classes, modes=data.modes
        )
    print(f"packed {manifest.total:,} samples in {len(manifest.shards)} shards: {out}")
    return manifest


def open_source(source: Path) -> Source:
    """What ``pack`` reads: a folder, an .npz or an idx pair. DataError for anything else."""
    if source.is_dir():
        return _folder(source)
    if not source.exists():
        raise DataError(f"{source} does not exist")
    if source.suffix == ".npz":
        return _npz(source)
    if "idx3-ubyte" in source.name:
        return _idx(source)
    raise DataError(
        f"can't pack {source} as images: expected a folder of them, an .npz, or "
        "*-images-idx3-ubyte[.gz]"
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The uint8 array in an idx or idx.gz file, of whatever shape it says."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, code, dims = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{dims}I", data, 4)
        if (zero, code) != (0, 8):
            raise ValueError(f"not uint8: magic number {data[:4].hex()}")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise DataError(f"can't read the idx file {path}: {error}") from None


def from_arrays(
    images: NDArray[np.generic],
    labels: NDArray[np.generic] | None,
    place: str = "the array",
    classes: tuple[str, ...] = (),
) -> Source:
    """Images (N, H, W[, 1 or 3]) uint8 and labels (N,) or None. DataError for other shapes."""
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        raise DataError(
            f"{place}: images must be uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), found "
            f"{images.dtype} {images.shape}"
        )

    def png(number: int) -> Mapping[str, bytes]:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(images[number]).save(buffer, "PNG")
        return {"png": buffer.getvalue()}

    return Source(len(images), png, checked_labels(labels, len(images), place), classes)


def checked_labels(
    labels: NDArray[np.generic] | None, count: int, place: str
) -> NDArray[np.int64] | None:
    """Class numbers (count,), or None where there are none. DataError for anything else."""
    if labels is None:
        return None
    if labels.size != count or labels.dtype.kind not in "iu":
        raise DataError(
            f"{place}: {count} samples need as many integer labels, found {labels.dtype} "
            f"{labels.shape}"
        )
    return labels.ravel().astype(np.int64)


def _folder(folder: Path) -> Source:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower().removeprefix(".") in IMAGES and path.is_file()
    ]
    parts = [path.relative_to(folder).parts for path in files]
    loose = [path for path, part in zip(files, parts, strict=True) if len(part) == 1]
    if loose and len(loose) < len(files):
        raise DataError(
            f"{folder} has images beside class folders (such as {loose[0].name}): put every image "
            "in its class's folder, or all of them in one folder without classes"
        )
    if loose or not files:
        labels, classes = None, []
    else:
        classes = [name for name in classes if any(part[0] == name for part in parts)]
        number = {name: i for i, name in enumerate(classes)}
        labels = np.array([number[part[0]] for part in parts], np.int64)

    def read(number: int) -> Mapping[str, bytes]:
        data = files[number].read_bytes()
        image_shape(data, str(files[number]))  # a broken file is found here, under its own name
        return {files[number].suffix.lower().removeprefix("."): data}

    return Source(len(files), read, labels, tuple(classes))


def _npz(path: Path) -> Source:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image = next((arrays[n] for n in ("image", "images", "x") if n in arrays), None)
            label = next((arrays[n] for n in ("label", "labels", "y") if n in arrays), None)
            names = ", ".join(arrays)
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {path}: {error}") from None
    if image is None:
        raise DataError(f"{path} has no array image, images or x (it has {names})")
    return from_arrays(image, label, str(path))


def _idx(path: Path) -> Source:
    twin = path.name.replace("images", "labels").replace("idx3", "idx1")
    beside = path.with_name(twin)
    has_labels = twin != path.name and beside.exists()
    return from_arrays(read_idx(path), read_idx(beside) if has_labels else None, str(path))


def write_shards(data: Source, folder: Path, shard_size: int, seed: int | None) -> None:
    """The tar shards of ``data`` into ``folder``, shuffled by ``seed``."""
    from webdataset import ShardWriter

    numbers = np.arange(data.count) if seed is None else permutation(data.count, seed, "pack")
    pattern = str(folder).replace("%", "%%") + "/%06d.tar"
    # mtime=0: the same input gives the same bytes, and no PAX header a member
    with ShardWriter(pattern, maxcount=shard_size, mtime=0, encoder=False, verbose=0) as writer:
        for number in numbers.tolist():
            sample = {"__key__": f"{number:08d}", **data.members(number)}
            if data.labels is not None:
                sample["cls"] = str(data.labels[number]).encode()
            writer.write(sample)
