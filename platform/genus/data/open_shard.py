"""A shard that is being read: where each of its samples lies, packed to be looked up fast."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from genus.data.decode import Kind, field_of
from genus.data.shard_index import ShardIndex

Span = tuple[int, ...]
"""A row: start and stop of the sample in the shard, label, then offset, size, crc a member."""
_MEMBER = (("offset", "<i8"), ("size", "<i8"), ("crc", "<u4"))


Fields = tuple[tuple[str, Kind], ...]
"""Name and kind of each member that we decode, but the label, which the index knows."""
Found = tuple[int, Fields, tuple[bytes, ...]]
"""One sample as it is stored: its class number (-1: none), its fields, and the data of each. A
plain tuple, as one is made for every sample."""


class DamagedError(Exception):
    """Bytes are not those that were indexed."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"field {field}: its bytes are not those that were indexed (crc32): the shard is "
            "damaged or was replaced"
        )


class OpenShard:
    """The rows of a shard and, where it lies here, its file."""

    def __init__(self, index: ShardIndex) -> None:
        self.file = -1
        """A descriptor, which ``close`` closes; -1: none, or the shard lies in a bucket only."""
        self.marked = 0.0
        """When the copy was last marked as used."""
        self.used = 0
        """When it was last read from; the reader counts."""
        known = [field_of(str(extension)) for extension in index.extensions]
        columns = [i for i, f in enumerate(known) if f not in (None, ("label", "integer"))]
        self.fields = _shared(tuple(f for f in (known[i] for i in columns) if f is not None))
        rows = struct.Struct("<qqq" + "qqI" * len(columns))
        self.unpack, self.stride, self.table = rows.unpack_from, rows.size, _table(index, columns)

    def found(self, data: bytes, span: Span) -> Found:
        """The members in ``data``, the bytes of a row's span. DamagedError."""
        fields, parts = [], []
        for column, field in enumerate(self.fields):
            offset, size, crc = span[3 + 3 * column : 6 + 3 * column]
            if size < 0:  # this sample has no such member
                continue
            part = data[offset - span[0] : offset - span[0] + size]
            if len(part) < size or zlib.crc32(part) != crc:
                raise DamagedError(field[0])
            fields.append(field)
            parts.append(part)
        return span[2], tuple(fields), tuple(parts)

    def close(self) -> None:
        """Close the file."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


@cache
def _shared(fields: Fields) -> Fields:
    """One object for all shards that have these fields, to be told apart by identity."""
    return fields


def _table(index: ShardIndex, columns: Sequence[int]) -> bytes:
    """A row a sample, for the members in ``columns``. They lie side by side in the tar, so one read
    fetches all of them."""
    offset, size = index.offset[:, columns], index.size[:, columns]
    there = size >= 0
    types = [("start", "<i8"), ("stop", "<i8"), ("label", "<i8")]
    types += [(f"{n}{i}", t) for i in range(len(columns)) for n, t in _MEMBER]
    table = np.empty(len(index), types)
    far = np.iinfo(np.int64).max
    start = np.where(there, offset, far).min(1, initial=far)
    table["start"] = np.where(there.any(1), start, 0)
    table["stop"] = np.where(there, offset + size, 0).max(1, initial=0)
    table["label"] = index.label
    for i, column in enumerate(columns):
        table[f"offset{i}"], table[f"size{i}"] = index.offset[:, column], index.size[:, column]
        table[f"crc{i}"] = index.crc[:, column]
    return table.tobytes()
