"""The bytes of any sample, by its number: one pread at the offset that the index knows."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from genus.data.index import ShardIndex
from genus.data.manifest import Manifest
from genus.errors import DataError

V = TypeVar("V")

OPEN_FILES = 128
"""Shards held open a process; the usual limit of a process is 1024 files."""
OPEN_INDEXES = 2048
"""Shard indexes held in memory a process, about 50 KB each at 1000 samples a shard."""


class Reader:
    """Members of samples 0..N-1 of a folder of shards, checked against their crc32.

    Opens files lazily. pread has no file position, so processes forked off may share the files.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.sizes = np.array([shard.nsamples for shard in manifest.shards], np.int64)
        self.ends = np.cumsum(self.sizes)
        self._files = _Recent(OPEN_FILES, self._open, os.close)
        self._indexes = _Recent(OPEN_INDEXES, self._load, lambda index: None)

    def read(self, sample: int) -> dict[str, bytes]:
        """Extension -> data of all members of a sample. DataError names shard, key and remedy."""
        number = int(np.searchsorted(self.ends, sample, side="right"))
        index = self._indexes[number]
        row = int(sample - self.ends[number] + self.sizes[number])
        # the members of a sample lie side by side, so one read fetches all of them
        members = [
            (str(extension), offset, size, crc)
            for extension, offset, size, crc in zip(
                index.extensions,
                index.offset[row].tolist(),
                index.size[row].tolist(),
                index.crc[row].tolist(),
                strict=True,
            )
            if size >= 0
        ]
        start = min(offset for _, offset, _, _ in members)
        stop = max(offset + size for _, offset, size, _ in members)
        try:
            span = os.pread(self._files[number], stop - start, start)
        except OSError as error:
            raise DataError(
                f"{self.place(sample)}: can't read the shard ({error.strerror}); bring the file "
                "back or fetch the data set again"
            ) from None
        found = {}
        for extension, offset, size, crc in members:
            data = span[offset - start : offset - start + size]
            if len(data) < size or zlib.crc32(data) != crc:
                raise DataError(
                    f"{self.place(sample)}, member .{extension}: its bytes are not those that were "
                    f"indexed (crc32): the shard is damaged or was replaced. {self._remedy()}"
                )
            found[extension] = data
        return found

    def place(self, sample: int) -> str:
        """Where a sample lies, for messages."""
        number = int(np.searchsorted(self.ends, sample, side="right"))
        row = int(sample - self.ends[number] + self.sizes[number])
        path = self.folder / self.manifest.shards[number].url
        return f"shard {path}, sample {self._indexes[number].keys[row]}"

    def _open(self, number: int) -> int:
        shard = self.manifest.shards[number]
        path = self.folder / shard.url
        file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        size = os.fstat(file).st_size
        if size != shard.filesize:
            os.close(file)
            raise DataError(
                f"shard {path} is {size} bytes long, its manifest says {shard.filesize}: it was "
                f"cut off or replaced. {self._remedy()}"
            )
        return file

    def _load(self, number: int) -> ShardIndex:
        shard = self.manifest.shards[number]
        index = ShardIndex.load(self.folder / shard.index)
        if len(index) != shard.nsamples:
            raise DataError(
                f"the index of {self.folder / shard.url} has {len(index)} samples, the manifest "
                f"says {shard.nsamples}. {self._remedy()}"
            )
        return index

    def _remedy(self) -> str:
        return (
            "Bring the original back or fetch the data set again; if the change was meant, run "
            f"'genus data index {self.folder}' and begin a new run"
        )

    def __getstate__(self) -> dict[str, Any]:  # for workers that are spawned, not forked
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Recent(Generic[V]):
    """What ``make(number)`` gave for the ``limit`` most recently used numbers."""

    def __init__(self, limit: int, make: Callable[[int], V], drop: Callable[[V], None]) -> None:
        self._limit, self._make, self._drop = limit, make, drop
        self._held: OrderedDict[int, V] = OrderedDict()

    def __getitem__(self, number: int) -> V:
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        value = self._held[number] = self._make(number)
        if len(self._held) > self._limit:
            self._drop(self._held.popitem(last=False)[1])
        return value
