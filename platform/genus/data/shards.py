"""The shards of one or more data sets, by number: where they lie, and those that are open."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from genus.data.files import lacking
from genus.data.manifest import Manifest, Shard
from genus.data.open_shard import OpenShard
from genus.data.shard_index import ShardIndex
from genus.data.store import Folder, Store, UnreadableError
from genus.errors import DataError

if TYPE_CHECKING:
    from genus.data.cache import Cache

OPEN_SHARDS = 2048
"""Shards whose tables are held, about 50 KB each: a process with 64 lanes needs a thousand."""
OPEN_FILES = min(2048, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
"""Files held open a process."""
RECENT_INDEXES = 64
"""Whole indexes held, for shapes and messages."""
SMALL_SHARD = 32 * 2**20
"""Bytes of a shard whose copy is worth waiting for; samples of larger ones are read by ranges."""
READ_AHEAD = 64 * 2**20
"""Bytes of a local shard that the system is asked to read at once."""
MARK_EVERY = 10.0
"""Seconds between two marks of a copy that is in use."""
THREADS = 16
"""Shards of buckets that are opened at the same time."""

Part = tuple[Store, Manifest]


class Shards:
    """Shards 0..S-1 of ``parts``, one data set after the other.

    Opens files lazily. What could not be had once is not asked for again: retries take long.
    """

    def __init__(self, parts: Sequence[Part], cache: Cache | None) -> None:
        self.parts, self.cache = tuple(parts), cache
        self.held: dict[int, OpenShard] = {}
        """Those that are open; their files may be closed."""
        self.reads = 0
        """Counted up by the reader: what was used last stays open."""
        self._ends = np.cumsum([len(manifest.shards) for _, manifest in parts])
        self._broken: dict[int, UnreadableError] = {}
        self.index = lru_cache(maxsize=RECENT_INDEXES)(self._load_index)
        """Shard number -> its whole index."""

    @property
    def is_remote(self) -> bool:
        """Whether any part lies in a bucket."""
        return any(not isinstance(store, Folder) for store, _ in self.parts)

    def where(self, number: int) -> tuple[Store, Shard]:
        """The store of a shard, and what its manifest says of it."""
        part = int(np.searchsorted(self._ends, number, side="right"))
        store, manifest = self.parts[part]
        return store, manifest.shards[number - int(self._ends[part]) + len(manifest.shards)]

    def ahead(self, numbers: Iterable[int]) -> None:
        """Start to copy these shards in the background, the first ones first."""
        if self.cache is None:
            return
        wanted: list[tuple[Store, str, int, str]] = []
        for number in numbers:
            store, shard = self.where(number)
            if not isinstance(store, Folder):
                if shard.indexsize:
                    wanted.append((store, shard.index, shard.indexsize, shard.checksum))
                wanted.append((store, shard.url, shard.filesize, shard.checksum))
        self.cache.ahead(wanted)

    def get(self, number: int) -> OpenShard:
        """A shard, its file open if it lies here. UnreadableError."""
        held = self.held.get(number)
        if held is not None and held.file >= 0:
            return held
        if number in self._broken:
            raise self._broken[number]
        try:
            if held is None:
                held = OpenShard(self.index(number))
            self._attach(number, held)
        except UnreadableError as error:
            self._broken[number] = error
            raise
        held.used = self.reads
        self.held[number] = held
        self._close_some()
        return held

    def open_together(self, numbers: Iterable[int]) -> None:
        """Open these shards as far as they aren't, at once, as a bucket's answers take time; and
        mark copies that are in use."""
        missing, now = [], time.monotonic()
        for number in numbers:
            held = self.held.get(number)
            if held is None:
                missing += [number] if number not in self._broken else []
            elif now - held.marked > MARK_EVERY:
                self._attach(number, held)
        if len(missing) > 1:
            with ThreadPoolExecutor(min(THREADS, len(missing))) as pool:
                for number, opened in zip(missing, pool.map(self._opened, missing), strict=True):
                    if isinstance(opened, UnreadableError):
                        self._broken[number] = opened
                    else:
                        self.held[number] = opened
            self._close_some()

    def condemn(self, number: int, error: UnreadableError) -> None:
        """The shard can't be had: don't ask again."""
        self._broken[number] = error

    def drop_copy(self, number: int) -> bool:
        """Do without the local copy of a shard, which is damaged; False where there is none."""
        store, shard = self.where(number)
        if self.cache is None or isinstance(store, Folder):
            return False
        self.cache.drop(store, shard.url, shard.checksum)
        self.held[number].close()
        return True

    def _opened(self, number: int) -> OpenShard | UnreadableError:
        try:
            shard = OpenShard(self.index(number))
            self._attach(number, shard)
        except UnreadableError as error:
            return error
        shard.used = self.reads
        return shard

    def _attach(self, number: int, shard: OpenShard) -> None:
        """Open its file, if it lies here, or mark the copy as used."""
        store, where = self.where(number)
        shard.marked = time.monotonic()
        if isinstance(store, Folder):
            if shard.file < 0:
                shard.file = _open_checked(store, where)
            return
        if self.cache is None:
            return
        wanted = store, where.url, where.filesize, where.checksum
        if shard.file < 0 and where.filesize <= SMALL_SHARD and self.cache.takes(where.filesize):
            shard.file = self.cache.open(*wanted)
        elif (copy := self.cache.find(*wanted)) is not None and shard.file < 0:
            try:
                shard.file = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:  # it may have been evicted just now
                if (lack := lacking(str(copy), error)) is not None:
                    raise lack from None

    def _close_some(self) -> None:
        """Keep to the limits; what this batch uses stays."""
        files = [shard for shard in self.held.values() if shard.file >= 0]
        if len(files) > OPEN_FILES:
            for shard in sorted(files, key=_last_use)[: len(files) // 2]:
                if shard.used < self.reads:
                    shard.close()
        if len(self.held) > OPEN_SHARDS:
            oldest = sorted(self.held, key=lambda number: _last_use(self.held[number]))
            for number in oldest[: len(oldest) // 2]:
                if self.held[number].used < self.reads:
                    self.held.pop(number).close()

    def _load_index(self, number: int) -> ShardIndex:
        store, shard = self.where(number)
        index = None
        if self.cache is not None and not isinstance(store, Folder) and shard.indexsize:
            index = self._copied_index(store, shard)
        if index is None:
            index = ShardIndex.load(store, shard.index)
        if len(index) != shard.nsamples:
            raise UnreadableError(
                f"the index of {store.url}/{shard.url} has {len(index)} samples, the manifest "
                f"says {shard.nsamples}. {remedy(store)}"
            )
        return index

    def _copied_index(self, store: Store, shard: Shard) -> ShardIndex | None:
        """By the local copy; None, and the copy is gone, where that is damaged."""
        assert self.cache is not None
        wanted = store, shard.index, shard.indexsize, shard.checksum
        if not self.cache.takes(shard.indexsize):
            return None
        with os.fdopen(self.cache.open(*wanted), "rb") as copy:
            data = copy.read()
        try:
            return ShardIndex.parse(data, store, shard.index)
        except DataError:
            self.cache.drop(store, shard.index, shard.checksum)
            return None

    def __getstate__(self) -> dict[str, Any]:  # for workers that are spawned, not forked
        return {"parts": self.parts, "cache": self.cache}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def remedy(store: Store) -> str:
    """What to do about a shard that isn't what it was."""
    return (
        "Bring the original back or fetch the data set again; if the change was meant, run "
        f"'genus data index {store.url}' and begin a new run"
    )


def _open_checked(store: Folder, shard: Shard) -> int:
    """A descriptor of a local shard, of the size that its manifest says."""
    file = store.open(shard.url)
    size = os.fstat(file).st_size
    if size != shard.filesize:
        os.close(file)
        raise UnreadableError(
            f"shard {store.url}/{shard.url} is {size} bytes long, its manifest says "
            f"{shard.filesize}: it was cut off or replaced. {remedy(store)}"
        )
    if hasattr(os, "posix_fadvise"):  # all of it will be wanted, in no order
        os.posix_fadvise(file, 0, READ_AHEAD, os.POSIX_FADV_WILLNEED)
    return file


def _last_use(shard: OpenShard) -> int:
    return shard.used
