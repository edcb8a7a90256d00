"""The bytes of any samples, by their numbers: one read each, at the place that the index knows.

A folder's shards are read where they lie. A bucket's shards are read from their local copies; until
a large shard's copy is there, its samples are read out of the bucket by ranges.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genus.data.index import ShardIndex
from genus.data.manifest import Manifest, Shard
from genus.data.order import Ids
from genus.data.rows import DamagedError, Found, OpenShard, Span
from genus.data.store import Folder, Store, UnreadableError
from genus.errors import DataError

if TYPE_CHECKING:
    from genus.data.cache import Cache

OPEN_SHARDS = 256
"""Shards held open a process, about 50 KB of index each; the usual limit of files is 1024."""
RECENT_INDEXES = 64
"""Whole indexes kept a process, for shapes and messages."""
SMALL_SHARD = 32 * 2**20
"""Bytes of a shard whose copy is worth waiting for; samples of larger ones are read by ranges."""
READ_AHEAD = 64 * 2**20
"""Bytes of a local shard that the system is asked to read at once."""
MARK_EVERY = 10.0
"""Seconds between two marks of a copy that is in use."""

Part = tuple[Store, Manifest]


class Reader:
    """Samples 0..N-1 of one or more data sets, one after the other, checked against their crc32.

    Opens files lazily. pread has no file position, so processes forked off may share the files;
    buckets can't be used in forked processes at all.
    """

    def __init__(self, parts: Sequence[Part], cache: Cache | None = None) -> None:
        self.parts, self.cache = tuple(parts), cache
        self.sizes = np.array([s.nsamples for _, m in parts for s in m.shards], np.int64)
        self.ends = np.cumsum(self.sizes)
        self.starts = self.ends - self.sizes
        self._parts_end = np.cumsum([len(manifest.shards) for _, manifest in parts])
        self._open: dict[int, OpenShard] = {}
        self._reads = 0
        self._broken: dict[int, UnreadableError] = {}
        self._index = lru_cache(maxsize=RECENT_INDEXES)(self._load_index)

    @property
    def is_remote(self) -> bool:
        """Whether any part lies in a bucket."""
        return any(not isinstance(store, Folder) for store, _ in self.parts)

    def shards_of(self, ids: Ids) -> Ids:
        """(n,) number of the shard of each sample (n,)."""
        return np.searchsorted(self.ends, ids, side="right")

    def read(self, ids: Ids) -> list[Found | DataError]:
        """The samples ``ids`` (n,) as they are stored, or what is wrong with them.

        UnreadableError where a whole shard can't be had.
        """
        numbers = self.shards_of(ids)
        rows = (ids - self.starts[numbers]).tolist()
        found: list[Any] = []
        far: list[tuple[int, int, Span]] = []  # what is to be read out of buckets
        self._reads += 1
        held = self._open.get if self.cache is None else self._nothing
        pread, crc32, reads = os.pread, zlib.crc32, self._reads
        for number, row in zip(
            numbers.tolist(), rows, strict=True
        ):  # the hot path: a sample a turn
            try:
                shard = held(number) or self._shard(number)
                shard.used = reads
                span = shard.unpack(shard.table, row * shard.stride)
                if shard.file < 0:
                    far.append((len(found), number, span))
                    found.append(None)
                    continue
                start, stop, label = span[:3]
                data = pread(shard.file, stop - start, start)
                if len(span) == 6 and len(data) == span[4] and crc32(data) == span[5]:
                    found.append((label, shard.fields, (data,)))
                else:
                    found.append(self._members(number, shard, data, span))
            except OSError as error:
                found.append(self._unreadable(number, f"{error.strerror}"))
            except DataError as error:
                found.append(error)
            except DamagedError as error:
                found.append(self._damaged(number, row, error))
        if far:
            self._read_far(far, found, rows)
        return found

    def shapes(self, ids: Ids) -> NDArray[np.int32]:
        """(n, 2) height and width of each sample's image, from the indexes alone."""
        out = np.empty((len(ids), 2), np.int32)
        numbers = self.shards_of(ids)
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            out[rows] = self._index(number).shape[ids[rows] - self.starts[number], 1:]
        return out

    def ahead(self, numbers: Iterable[int]) -> None:
        """Start to copy these shards in the background, the first ones first."""
        if self.cache is None:
            return
        wanted: list[tuple[Store, str, int, str]] = []
        for number in numbers:
            store, shard = self.shard(number)
            if not isinstance(store, Folder):
                if shard.indexsize:
                    wanted.append((store, shard.index, shard.indexsize, shard.checksum))
                wanted.append((store, shard.url, shard.filesize, shard.checksum))
        self.cache.ahead(wanted)

    def shard(self, number: int) -> tuple[Store, Shard]:
        """Where a shard lies."""
        part = int(np.searchsorted(self._parts_end, number, side="right"))
        store, manifest = self.parts[part]
        return store, manifest.shards[number - int(self._parts_end[part]) + len(manifest.shards)]

    def place(self, sample: int) -> str:
        """Where a sample lies, for messages."""
        number = int(self.shards_of(np.array([sample]))[0])
        store, shard = self.shard(number)
        row = int(sample - self.starts[number])
        try:
            key = str(self._index(number).keys[row])
        except DataError:
            key = f"number {row}"
        return f"shard {store.url}/{shard.url}, sample {key}"

    # ---- shards ----------------------------------------------------------------------------------

    def _shard(self, number: int) -> OpenShard:
        held = self._open.get(number)
        if held is not None and held.file >= 0 and not self._stale(held):
            return held
        if number in self._broken:
            raise self._broken[number]
        try:
            shard = self._refreshed(number, held) if held else self._opened(number)
        except UnreadableError as error:
            self._broken[number] = error
            raise
        self._open[number] = shard
        if len(self._open) > OPEN_SHARDS:
            oldest = min(self._open, key=lambda other: (other == number, self._open[other].used))
            self._open.pop(oldest).close()
        return shard

    @staticmethod
    def _nothing(number: int) -> None:
        """Copies in a cache are looked after at each use."""

    @staticmethod
    def _stale(held: OpenShard) -> bool:
        return time.monotonic() - held.marked > MARK_EVERY

    def _refreshed(self, number: int, held: OpenShard) -> OpenShard:
        """Mark a copy as used; or open the copy that has come since."""
        store, shard = self.shard(number)
        if isinstance(store, Folder) or self.cache is None:
            return held
        held.marked = time.monotonic()
        copy = self.cache.find(store, shard.url, shard.filesize, shard.checksum)
        if copy is not None and held.file < 0:
            held.file = _descriptor(copy)
        return held

    def _opened(self, number: int) -> OpenShard:
        store, shard = self.shard(number)
        file = -1
        if isinstance(store, Folder):
            file = store.open(shard.url)
            size = os.fstat(file).st_size
            if size != shard.filesize:
                os.close(file)
                raise UnreadableError(
                    f"shard {store.url}/{shard.url} is {size} bytes long, its manifest says "
                    f"{shard.filesize}: it was cut off or replaced. {_remedy(store)}"
                )
            if hasattr(os, "posix_fadvise"):  # all of it will be wanted, in no order
                os.posix_fadvise(file, 0, READ_AHEAD, os.POSIX_FADV_WILLNEED)
        elif self.cache is not None:
            wanted = store, shard.url, shard.filesize, shard.checksum
            if shard.filesize <= SMALL_SHARD:
                file = self.cache.open(*wanted)
            elif (copy := self.cache.find(*wanted)) is not None:
                file = _descriptor(copy)
        try:
            return OpenShard(file, self._index(number))
        except DataError:
            if file >= 0:
                os.close(file)
            raise

    def _load_index(self, number: int) -> ShardIndex:
        store, shard = self.shard(number)
        if self.cache is None or isinstance(store, Folder) or not shard.indexsize:
            index = ShardIndex.load(store, shard.index)
        else:
            wanted = store, shard.index, shard.indexsize, shard.checksum
            with os.fdopen(self.cache.open(*wanted), "rb") as copy:
                index = ShardIndex.parse(copy.read(), store, shard.index)
        if len(index) != shard.nsamples:
            raise UnreadableError(
                f"the index of {store.url}/{shard.url} has {len(index)} samples, the manifest "
                f"says {shard.nsamples}. {_remedy(store)}"
            )
        return index

    # ---- members ---------------------------------------------------------------------------------

    def _members(self, number: int, shard: OpenShard, data: bytes, span: Span) -> Found:
        """What lies in ``data``. A damaged local copy is dropped and the bucket asked instead."""
        try:
            return shard.found(data, span)
        except DamagedError:
            store, where = self.shard(number)
            if isinstance(store, Folder) or self.cache is None:
                raise
            found = shard.found(store.read(where.url, span[0], span[1]), span)
            self.cache.drop(store, where.url, where.checksum)
            self._open.pop(number).close()
            return found

    def _read_far(
        self, far: Sequence[tuple[int, int, Span]], found: list[Any], rows: Sequence[int]
    ) -> None:
        """Fill in what lies in buckets only, all of a bucket at once."""
        by_store: dict[int, list[tuple[int, int, Span]]] = {}
        for one in far:
            by_store.setdefault(id(self.shard(one[1])[0]), []).append(one)
        for wanted in by_store.values():
            store = self.shard(wanted[0][1])[0]
            got = store.read_many(
                [(self.shard(n)[1].url, span[0], span[1]) for _, n, span in wanted]
            )
            for (place, number, span), data in zip(wanted, got, strict=True):
                if isinstance(data, UnreadableError):
                    self._broken[number] = data
                if isinstance(data, DataError):
                    found[place] = data
                    continue
                try:
                    found[place] = self._shard(number).found(data, span)
                except DamagedError as error:
                    found[place] = self._damaged(number, rows[place], error)

    # ---- messages --------------------------------------------------------------------------------

    def _unreadable(self, number: int, why: str) -> UnreadableError:
        store, shard = self.shard(number)
        error = UnreadableError(
            f"shard {store.url}/{shard.url}: can't read it ({why}); bring the file back or fetch "
            "the data set again"
        )
        self._broken[number] = error
        return error

    def _damaged(self, number: int, row: int, error: DamagedError) -> DataError:
        store, _ = self.shard(number)
        return DataError(
            f"{self.place(int(self.starts[number]) + row)}, field {error.field}: its bytes are not "
            "those that were indexed (crc32): the shard is damaged or was replaced. "
            f"{_remedy(store)}"
        )

    def __getstate__(self) -> dict[str, Any]:  # for workers that are spawned, not forked
        return {"parts": self.parts, "cache": self.cache}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _descriptor(copy: Path) -> int:
    """Of a local copy; -1 if it was evicted just now."""
    try:
        return os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _remedy(store: Store) -> str:
    return (
        "Bring the original back or fetch the data set again; if the change was meant, run "
        f"'genus data index {store.url}' and begin a new run"
    )
