"""The bytes of any samples, by their numbers: one read each, at the place that the index knows.

A folder's shards are read where they lie. A bucket's shards are read from their local copies; until
a large shard's copy is there, its samples are read out of the bucket by ranges.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genus.data.open_shard import DamagedError, Found, OpenShard, Span
from genus.data.order import Ids
from genus.data.shards import Part, Shards, remedy
from genus.data.store import UnreadableError
from genus.errors import DataError

if TYPE_CHECKING:
    from genus.data.cache import Cache

Far = tuple[int, int, OpenShard, Span]
"""What is to be read out of a bucket: its place in the answer, shard number, shard, row."""


class Reader:
    """Samples 0..N-1 of one or more data sets, one after the other, checked against their crc32.

    pread has no file position, so processes forked off may share the files; buckets can't be used
    in forked processes at all.
    """

    def __init__(self, parts: Sequence[Part], cache: Cache | None = None) -> None:
        self.shards = Shards(parts, cache)
        self.sizes = np.array([s.nsamples for _, m in parts for s in m.shards], np.int64)
        self.ends = np.cumsum(self.sizes)
        self.starts = self.ends - self.sizes

    @property
    def is_remote(self) -> bool:
        """Whether any part lies in a bucket."""
        return self.shards.is_remote

    def read(self, ids: Ids) -> list[Found | DataError]:
        """The samples ``ids`` (n,) as they are stored, or what is wrong with them.

        UnreadableError where a whole shard can't be had.
        """
        numbers = self._shards_of(ids)
        rows = (ids - self.starts[numbers]).tolist()
        found: list[Any] = []
        far: list[Far] = []
        shards = self.shards
        shards.reads += 1
        if shards.is_remote:
            shards.open_together(dict.fromkeys(numbers.tolist()))
        held, pread, crc32, reads = shards.held.get, os.pread, zlib.crc32, shards.reads
        # the hot path: a sample a turn
        for number, row in zip(numbers.tolist(), rows, strict=True):
            try:
                shard = held(number)
                if shard is None or shard.file < 0:
                    shard = shards.get(number)
                shard.used = reads
                span = shard.unpack(shard.table, row * shard.stride)
                if shard.file < 0:
                    far.append((len(found), number, shard, span))
                    found.append(None)
                    continue
                start, stop, label = span[:3]
                data = pread(shard.file, stop - start, start)
                if len(span) == 6 and len(data) == span[4] and crc32(data) == span[5]:
                    found.append((label, shard.fields, (data,)))
                else:
                    found.append(self._members(number, shard, data, span))
            except OSError as error:
                why = f"can't be read ({error.strerror}): check the disk or mount that it lies on"
                found.append(self._bad(number, row, why))
            except DataError as error:
                found.append(error)
            except DamagedError as error:
                found.append(self._bad(number, row, str(error)))
        if far:
            self._read_far(far, found, rows)
        return found

    def shapes(self, ids: Ids) -> NDArray[np.int32]:
        """(n, 2) height and width of each sample's image, from the indexes alone."""
        out = np.empty((len(ids), 2), np.int32)
        numbers = self._shards_of(ids)
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            out[rows] = self.shards.index(number).shape[ids[rows] - self.starts[number], 1:]
        return out

    def ahead(self, numbers: Iterable[int]) -> None:
        """Start to copy these shards in the background, the first ones first."""
        self.shards.ahead(numbers)

    def place(self, sample: int) -> str:
        """Where a sample lies, for messages."""
        number = int(self._shards_of(np.array([sample]))[0])
        store, shard = self.shards.where(number)
        row = int(sample - self.starts[number])
        try:
            key = str(self.shards.index(number).keys[row])
        except DataError:
            key = f"number {row}"
        return f"shard {store.url}/{shard.url}, sample {key}"

    def _shards_of(self, ids: Ids) -> Ids:
        return np.searchsorted(self.ends, ids, side="right")

    def _members(self, number: int, shard: OpenShard, data: bytes, span: Span) -> Found:
        """What lies in ``data``. A damaged local copy is dropped and the bucket asked instead."""
        try:
            return shard.found(data, span)
        except DamagedError:
            store, where = self.shards.where(number)
            if self.shards.cache is None or not self.shards.drop_copy(number):
                raise
            return shard.found(store.read(where.url, span[0], span[1]), span)

    def _read_far(self, far: Sequence[Far], found: list[Any], rows: Sequence[int]) -> None:
        """Fill in what lies in buckets only, all of a bucket at once."""
        by_store: dict[int, list[Far]] = {}
        for one in far:
            by_store.setdefault(id(self.shards.where(one[1])[0]), []).append(one)
        for wanted in by_store.values():
            store = self.shards.where(wanted[0][1])[0]
            spans = [(self.shards.where(n)[1].url, span[0], span[1]) for _, n, _, span in wanted]
            for (place, number, shard, span), data in zip(
                wanted, store.read_many(spans), strict=True
            ):
                if isinstance(data, UnreadableError):
                    self.shards.condemn(number, data)
                if isinstance(data, DataError):
                    found[place] = data
                    continue
                try:
                    found[place] = shard.found(data, span)
                except DamagedError as error:
                    found[place] = self._bad(number, rows[place], str(error))

    def _bad(self, number: int, row: int, why: str) -> DataError:
        store, _ = self.shards.where(number)
        place = self.place(int(self.starts[number]) + row)
        return DataError(f"{place}: {why}. {remedy(store)}")

    def __getstate__(self) -> dict[str, Any]:  # for workers that are spawned, not forked
        return {"parts": self.shards.parts, "cache": self.shards.cache}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
