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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

import numpy as np

from genus.data.decode import field_of
from genus.data.index_sequences import extents, members_of, read_at, with_sequences
from genus.data.manifest import MANIFEST, Manifest, Shard
from genus.data.sequences import Extent
from genus.data.shard_index import ShardIndex
from genus.data.store import Folder, Store, open_store
from genus.data.vectors import EXTENSION, Vector, read_into, read_vector
from genus.errors import DataError

PIECE = 8 * 2**20
"""Bytes of a shard that are read at once."""
MAX_CLASSES = 1_000_000
"""More are taken for a mistake: a manifest names and counts each."""
THREADS = 8
"""Shards that are indexed at the same time."""


def index_folder(
    url: str | Path,
    *,
    name: str = "",
    classes: Sequence[str] = (),
    modes: str = "",
    progress: Callable[[str], object] = lambda shard: None,
) -> Manifest:
    """Write the index of every ``*.tar`` in a folder or bucket, then its manifest.

    ``classes`` names the classes (default: those of the manifest that is there, else their
    numbers), and ``modes`` says how modes are told apart (default: as the manifest that is there
    does); ``progress`` is told of each shard that is done. DataError for tars that can't be read
    or hold no samples.
    """
    store = open_store(str(url))
    files = store.names()
    paths = [file for file in files if file.endswith(".tar")]
    if not paths:
        raise DataError(f"{store.url} holds no *.tar files to index")

    def work(path: str) -> tuple[Shard, ShardIndex, int, dict[str, Extent]]:
        with open_shard(store, path) as file:
            index = index_shard(file, f"{store.url}/{path}")
            dims = vector_length(file, index, f"{store.url}/{path}")
            sequences = extents(file, index, f"{store.url}/{path}")
            file.seek(0)
            data = index.to_bytes()
            shard = Shard(path, len(index), *sha256_of(file), len(data))
        store.write(shard.index, data)
        progress(path)
        return shard, index, dims, sequences

    with ThreadPoolExecutor(THREADS) as pool:
        shards, indexes, lengths, sequences = zip(*pool.map(work, paths), strict=True)
    before: Manifest | None = None
    if MANIFEST in files:
        try:
            before = Manifest.load(store)
        except DataError:  # this one replaces it
            pass
    classes = classes or (before.classes if before else ())
    manifest = _summary(name or store.url.rpartition("/")[2], shards, indexes, classes)
    modes = modes or (before.modes if before else "")
    manifest = replace(manifest, dims=_one_length(store, paths, lengths), modes=modes)
    manifest = with_sequences(manifest, sequences, before)
    manifest.save(store)
    return manifest


def sha256_of(file: BinaryIO) -> tuple[int, str]:
    """Bytes and checksum of a file, read in pieces."""
    digest, size = hashlib.sha256(), 0
    while piece := file.read(PIECE):
        digest.update(piece)
        size += len(piece)
    return size, f"sha256:{digest.hexdigest()}"


def open_shard(store: Store, name: str) -> BinaryIO:
    """A shard as a file at its beginning; one in a bucket is copied into a temporary file."""
    if isinstance(store, Folder):
        return (store.root / name).open("rb")
    size = store.size(name)
    file = cast(BinaryIO, TemporaryFile())  # noqa: SIM115 - the caller closes it
    for start in range(0, size, PIECE):
        file.write(store.read(name, start, min(start + PIECE, size)))
    file.seek(0)
    return file


def index_shard(file: BinaryIO, place: str) -> ShardIndex:
    """The index of one tar: headers and data are read once, in order. ``place``: for messages."""
    samples: list[tuple[str, dict[str, tuple[int, int, int]]]] = []
    shape: list[tuple[int, int, int]] = []
    label: list[int] = []
    for key, extension, offset, data in _members(file, place):
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
            shape.append((0, 0, 0))
            label.append(-1)
        members = samples[-1][1]
        field = field_of(extension)
        same = [e for e in members if e == extension or (field and field_of(e) == field)]
        if same:
            raise DataError(
                f"shard {place}, sample {key}: .{same[0]} and .{extension} are the same field; "
                "rename or remove one and pack it again"
            )
        members[extension] = offset, len(data), zlib.crc32(data)
        match field:
            case ("image", "image"):
                shape[-1] = image_shape(data, f"shard {place}, member {key}.{extension}")
            case ("label", "integer"):
                label[-1] = _label_of(data, f"shard {place}, member {key}.{extension}")
    extensions = sorted({extension for _, members in samples for extension in members})
    table = np.full((len(samples), len(extensions), 3), (0, -1, 0), np.int64)
    for row, (_, members) in zip(table, samples, strict=True):
        for column, extension in enumerate(extensions):
            if extension in members:
                row[column] = members[extension]
    return ShardIndex.of(
        keys=np.array([key for key, _ in samples], dtype=np.str_),
        extensions=np.array(extensions, dtype=np.str_),
        offset=table[..., 0],
        size=table[..., 1],
        crc=table[..., 2].astype(np.uint32),
        shape=np.array(shape, np.int32).reshape(-1, 3),
        label=np.array(label, np.int64),
    )


def _members(file: BinaryIO, place: str) -> Iterator[tuple[str, str, int, bytes]]:
    """(key, extension, offset, data) of a tar's members, named and skipped as webdataset does."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
                name = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member.name)
                if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name) or name is None:
                    continue
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name} is a sparse file")
                data = read_at(file, member.offset_data, member.size)
                yield name[1], name[2].lower(), member.offset_data, data
            file.seek(tar.offset)  # tarfile takes a damaged header for the end
            if file.read(512).strip(b"\0"):
                raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged or cut off")
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"can't read the shard {place} ({error}): it must be a whole, uncompressed tar"
        ) from None


def image_shape(data: bytes, place: str) -> tuple[int, int, int]:
    """(channels 1 or 3, height, width) from an image's header; DataError names ``place``."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            grey = image.mode in ("1", "L", "LA")
            return (1 if grey else 3), image.height, image.width
    except Exception as error:
        raise DataError(f"{place}: no readable image ({error}): remove or mend it") from None


def vector_length(file: BinaryIO, index: ShardIndex, place: str) -> int:
    """Numbers of each vector in a shard, all of which are read; 0 without vectors.

    DataError for one that can't be read or is of another length than those before it.
    """
    found: Vector | None = None
    for data, member in members_of(file, index, EXTENSION):
        try:
            if found is None:
                found = read_vector(data)
            read_into(data, found)
            if not np.isfinite(found).all():
                raise DataError("a vector with numbers that are not finite")
        except DataError as error:
            raise DataError(f"shard {place}, member {member}: {error}; remove or mend it") from None
    return 0 if found is None else len(found)


def _one_length(store: Store, paths: Sequence[str], lengths: Sequence[int]) -> int:
    """The vectors' length in all shards that have any."""
    known = {length: path for path, length in zip(paths, lengths, strict=True) if length}
    if len(known) > 1:
        (one, first), (two, second), *_ = known.items()
        raise DataError(
            f"{store.url}: the vectors of {first} have {one} numbers, those of {second} {two}: "
            "they must be alike to share a batch"
        )
    return next(iter(known), 0)


def _label_of(data: bytes, place: str) -> int:
    try:
        label = int(data)
    except ValueError:
        label = -1
    if not 0 <= label < MAX_CLASSES:
        raise DataError(
            f"{place}: {data[:40]!r} is no class number (0, 1, ... below {MAX_CLASSES:,})"
        )
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
