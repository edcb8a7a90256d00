"""Is every byte of a data set what its manifest and its indexes say?

Each shard is read once, in pieces, for its sha256 and for the crc32 of every member where the index
says that it lies; on request every image and vector is decoded too.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

import numpy as np

from genus.data import datasets
from genus.data.decode import Kind, decode_member, field_of
from genus.data.index import PIECE
from genus.data.manifest import Manifest, Shard
from genus.data.shard_index import ShardIndex
from genus.data.store import Store
from genus.data.token_shard import BLOCK, TokenIndex
from genus.errors import DataError
from genus.nodes import cores_here


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong."""

    shard: str
    """Name of the file; empty: the manifest."""
    sample: str
    """Key of the sample and extension of the member; empty: the shard as a whole."""
    what: str

    def __str__(self) -> str:
        place = ", ".join(filter(None, (self.shard or "manifest", self.sample)))
        return f"{place}: {self.what}"


@dataclass(frozen=True)
class _Member:
    """Bytes that are checked by themselves."""

    start: int
    stop: int
    crc: int
    sample: str
    check: Callable[[bytes], str]
    """What is wrong with the content, beyond its checksum; empty: nothing."""


def verify(url: str, workers: int | None = None, *, decode: bool = False) -> list[Fault]:
    """Everything that is wrong with a data set, sorted; an empty list where all is well.

    ``url`` is what data.url takes. ``workers`` shards are read at a time (None: one a core), by
    threads, or by processes where images are to be decoded. A bar on stderr tells how far it is,
    if that is a terminal. DataError where there is no data set to check.
    """
    from tqdm import tqdm

    if workers is not None and workers < 1:
        raise DataError(f"{workers} workers: at least one has to do the work")
    store = datasets.resolve(url, may_fetch=False)
    manifest = Manifest.load(store)
    faults = [] if manifest.tokens else _check_totals(manifest)
    work = [(store, s, manifest.dtype, manifest.dims, decode) for s in manifest.shards]
    bar = tqdm(total=len(work), unit=" shards", disable=not sys.stderr.isatty())
    with bar, _pool(workers or cores_here(), decode) as pool:
        for done in as_completed([pool.submit(_check_shard, *item) for item in work]):
            faults += done.result()
            bar.update()
    return sorted(faults)


def _pool(workers: int, decode: bool) -> Executor:
    if not decode or workers == 1:  # hashing and checksums leave the interpreter to others
        return ThreadPoolExecutor(workers)
    # not forked: a bucket's connections don't live on in a forked process
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def _check_totals(manifest: Manifest) -> list[Fault]:
    total = sum(shard.nsamples for shard in manifest.shards)
    if total == manifest.total:
        return []
    return [Fault("", "", f"it says {manifest.total} samples, its shards have {total}")]


def _check_shard(store: Store, shard: Shard, dtype: str, dims: int, decode: bool) -> list[Fault]:
    """``dtype`` of token data, empty for samples; ``dims`` of their vectors."""
    found: list[Fault] = []
    members: list[_Member] = []
    try:
        if dtype:
            members = list(_token_blocks(store, shard, dtype))
        else:
            index = ShardIndex.load(store, shard.index)
            members = sorted(_members(index, dims, decode), key=lambda member: member.start)
            if len(index) != shard.nsamples:
                what = f"its index has {len(index)} samples, the manifest says {shard.nsamples}"
                found.append(Fault(shard.url, "", what))
    except (DataError, ValueError) as error:
        found.append(Fault(shard.url, "", f"its index: {error}"))
    try:
        return found + list(_read_shard(store, shard, members))
    except DataError as error:
        return [*found, Fault(shard.url, "", str(error))]


def _read_shard(store: Store, shard: Shard, members: Sequence[_Member]) -> Iterator[Fault]:
    """Reads the file in pieces; ``members`` in the order of their beginnings. Holds a piece and
    those members that began before it."""
    size = store.size(shard.url)
    if size != shard.filesize:
        what = f"it is {size} bytes long, the manifest says {shard.filesize}"
        yield Fault(shard.url, "", what)
    for member in members:
        if member.stop > size:
            yield Fault(shard.url, member.sample, "it lies beyond the end of the shard")
    members = [member for member in members if member.stop <= size]
    checksum = hashlib.sha256()
    held, begin, number = b"", 0, 0  # bytes of the file from ``begin`` on; the next member
    for start in range(0, size, PIECE):
        piece = store.read(shard.url, start, min(start + PIECE, size))
        checksum.update(piece)
        held += piece
        end = begin + len(held)
        while number < len(members) and members[number].stop <= end:
            member = members[number]
            data = held[member.start - begin : member.stop - begin]
            if zlib.crc32(data) != member.crc:
                yield Fault(shard.url, member.sample, "its bytes are not those indexed (crc32)")
            elif what := member.check(data):
                yield Fault(shard.url, member.sample, what)
            number += 1
        keep = min(members[number].start, end) if number < len(members) else end
        held, begin = held[keep - begin :], keep
    if f"sha256:{checksum.hexdigest()}" != shard.checksum:
        yield Fault(shard.url, "", "its content is not what the manifest says (sha256)")


def _members(index: ShardIndex, dims: int, decode: bool) -> Iterator[_Member]:
    for column, extension in enumerate(index.extensions.tolist()):
        kind = field_of(extension)
        for row in np.flatnonzero(index.size[:, column] >= 0).tolist():
            start = int(index.offset[row, column])
            check: Callable[[bytes], str] = _nothing
            if kind == ("label", "integer"):
                check = partial(_check_label, label=int(index.label[row]))
            elif decode and kind is not None:
                shape = tuple(index.shape[row].tolist()) if kind[0] == "image" else None
                shape = (dims,) if kind[1] == "vector" else shape
                check = partial(_check_content, kind=kind[1], shape=shape)
            yield _Member(
                start,
                start + int(index.size[row, column]),
                int(index.crc[row, column]),
                f"sample {index.keys[row]}.{extension}",
                check,
            )


def _token_blocks(store: Store, shard: Shard, dtype: str) -> Iterator[_Member]:
    itemsize = np.dtype(dtype).itemsize
    index = TokenIndex.of_bytes(store.read_all(shard.index), shard.nsamples, itemsize)
    stop = index.offset + shard.nsamples * itemsize
    for number, crc in enumerate(index.crc.tolist()):
        start = index.offset + number * BLOCK
        first = number * BLOCK // itemsize
        yield _Member(start, min(start + BLOCK, stop), crc, f"tokens from {first}", _nothing)


def _nothing(data: bytes) -> str:
    return ""


def _check_label(data: bytes, label: int) -> str:
    try:
        return "" if int(data) == label else f"it is {int(data)}, its index says {label}"
    except ValueError:
        return f"{data[:40]!r} is no class number"


def _check_content(data: bytes, kind: Kind, shape: tuple[int, ...] | None) -> str:
    """``shape`` of an image (channels, height, width) by the index, or of a vector (D,) by the
    manifest; None: not known."""
    try:
        array = decode_member(kind, data, 3, None, "pad")
    except DataError as error:
        return str(error)
    if kind == "vector" and shape is not None and array.shape != shape:
        return f"it has {len(array)} numbers, the manifest says {shape[0]}"
    if shape is None or array.shape[1:] == shape[1:]:
        return ""
    return f"it is {array.shape[1]} x {array.shape[2]}, its index says {shape[1]} x {shape[2]}"
