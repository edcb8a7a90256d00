"""The index beside a shard: where each sample's members lie in the tar.

    000000.index.npz     table (n, 3 m + 4) int64, extensions (m,), keys (n,)

One table, since every array in an .npz file takes as long to open as a thousand rows do to read.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.data.manifest import read_made
from genus.data.store import Store, UnreadableError


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """A shard of n samples with m kinds of members. A member that a sample lacks has size -1."""

    extensions: NDArray[np.str_]
    """(m,) member extensions, lower case."""
    table: NDArray[np.int64]
    """(n, 3 m + 4): offset, size and crc of each member, label, and the image's shape."""
    encoded: bytes = b""
    """The file that it comes from, where keys were not read yet."""

    @staticmethod
    def of(
        keys: NDArray[np.str_],
        extensions: NDArray[np.str_],
        offset: NDArray[Any],
        size: NDArray[Any],
        crc: NDArray[Any],
        shape: NDArray[Any],
        label: NDArray[Any],
    ) -> ShardIndex:
        """From single columns: offset, size, crc (n, m), shape (n, 3), label (n,)."""
        members = np.stack([offset, size, crc], axis=2, dtype=np.int64, casting="unsafe")
        columns = [members.reshape(len(keys), 3 * len(extensions)), label[:, None], shape]
        index = ShardIndex(extensions, np.concatenate(columns, axis=1, dtype=np.int64))
        index.__dict__["keys"] = keys
        return index

    @cached_property
    def keys(self) -> NDArray[np.str_]:
        """(n,) webdataset keys."""
        with np.load(io.BytesIO(self.encoded), allow_pickle=False) as arrays:
            return np.asarray(arrays["keys"])

    @property
    def offset(self) -> NDArray[np.int64]:
        """(n, m) bytes from the tar's beginning to the member's data."""
        return self.table[:, :-4:3]

    @property
    def size(self) -> NDArray[np.int64]:
        """(n, m) bytes."""
        return self.table[:, 1:-4:3]

    @property
    def crc(self) -> NDArray[np.int64]:
        """(n, m) crc32 of the member's data."""
        return self.table[:, 2:-4:3]

    @property
    def label(self) -> NDArray[np.int64]:
        """(n,) class number; -1 where there is none."""
        return self.table[:, -4]

    @property
    def shape(self) -> NDArray[np.int64]:
        """(n, 3) channels (1 or 3), height, width of the image; 0 where there is none."""
        return self.table[:, -3:]

    def __len__(self) -> int:
        return len(self.table)

    def to_bytes(self) -> bytes:
        """As an .npz file, without pickle."""
        out = io.BytesIO()
        np.savez_compressed(out, table=self.table, extensions=self.extensions, keys=self.keys)
        return out.getvalue()

    @staticmethod
    def load(store: Store, name: str) -> ShardIndex:
        """Read what ``to_bytes`` gave. UnreadableError where it is missing or damaged."""
        return ShardIndex.parse(read_made(store, name), store, name)

    @staticmethod
    def parse(data: bytes, store: Store, name: str) -> ShardIndex:
        """The inverse of ``to_bytes``; ``store`` and ``name`` are for messages."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                if "table" not in arrays:
                    return _older(arrays)
                index = ShardIndex(arrays["extensions"], arrays["table"], data)
                if index.table.shape[1] != 3 * len(index.extensions) + 4:
                    raise ValueError(f"a table of shape {index.table.shape}")
                return index
        except Exception as error:  # zipfile, zlib, KeyError, ValueError: all the same here
            raise UnreadableError(
                f"can't read the index {store.url}/{name} ({error}): make it again with "
                f"'genus data index {store.url}'"
            ) from None


def _older(arrays: Mapping[str, NDArray[Any]]) -> ShardIndex:
    """As Genus wrote it before 2026-11-21: an array a column."""
    return ShardIndex.of(**arrays)
