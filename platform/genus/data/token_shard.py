"""One shard of tokens: a plain .npy file and the index beside it.

    000000.npy           tokens (n,) uint16 or uint32, little endian, documents back to back
    000000.index.npz     where documents begin, and a crc32 for each 16 KiB of tokens

Only whole blocks of 16 KiB are read, so every byte that is served was checked.
"""

from __future__ import annotations

import io
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genus.data.files import lacking
from genus.data.manifest import Shard
from genus.data.store import Folder, Store, UnreadableError
from genus.errors import DataError

if TYPE_CHECKING:
    from genus.data.cache import Cache  # wanted for buckets only

BLOCK = 16384
"""Bytes of tokens under one crc32."""
DTYPES = ("uint16", "uint32")
LOOK_EVERY = 10.0
"""Seconds between two looks for the cache's copy of a shard in a bucket; each look marks it."""
_REMEDY = "Bring the original back, fetch the data set again, or pack it anew and begin a new run"


@dataclass(frozen=True)
class TokenIndex:
    """Where the documents of a shard begin, and the checksums of its tokens."""

    documents: NDArray[np.int64]
    """(D,) positions of the documents' first tokens, rising. Tokens before the first of them go on
    with the last document of the shard before."""
    crc: NDArray[np.uint32]
    """(K,) crc32 of each block of BLOCK bytes; the last block may be shorter."""
    offset: int
    """Bytes of the file before the tokens: numpy's header."""

    def to_bytes(self) -> bytes:
        """An .npz file, without pickle."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, documents=self.documents, crc=self.crc, offset=np.int64(self.offset)
        )
        return buffer.getvalue()

    @staticmethod
    def of_bytes(data: bytes, tokens: int, itemsize: int) -> TokenIndex:
        """The inverse of ``to_bytes``; ValueError for what is no index of that many tokens."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                index = TokenIndex(arrays["documents"], arrays["crc"], int(arrays["offset"]))
        except Exception as error:  # zipfile, zlib, KeyError, OSError: all the same here
            raise ValueError(f"it is not readable ({error})") from None
        documents = index.documents
        if index.offset < 0:
            raise ValueError(f"its tokens begin at byte {index.offset}")
        if documents.ndim != 1 or documents.dtype != np.int64 or (np.diff(documents) <= 0).any():
            raise ValueError("its documents are not in order")
        if len(documents) and not 0 <= documents[0] <= documents[-1] < tokens:
            raise ValueError(f"it has documents outside the shard's {tokens} tokens")
        if index.crc.shape != (-(-tokens * itemsize // BLOCK),):
            raise ValueError(f"its {len(index.crc)} checksums are not those of {tokens} tokens")
        return index


class _File:
    """A descriptor that closes with its last user: no thread can be left with a closed one."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    # os.close is bound early: at the interpreter's end the module may be gone before the file
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.descriptor)


class TokenShard:
    """A shard that is open for reading, from a file if there is one here.

    Only pread touches the file, so threads and forked processes may share it.
    """

    def __init__(self, store: Store, shard: Shard, dtype: str) -> None:
        """Reads index and header. UnreadableError where the file isn't what the manifest says."""
        self.store, self.shard = store, shard
        self.path = f"{store.url}/{shard.url}"
        self.dtype: np.dtype[Any] = np.dtype(dtype).newbyteorder("<")
        self._file: _File | None = None
        self._looked = -LOOK_EVERY
        index = store.read_all(shard.index)
        try:
            self.index = TokenIndex.of_bytes(index, shard.nsamples, self.dtype.itemsize)
        except ValueError as error:
            raise UnreadableError(f"the index of shard {self.path}: {error}. {_REMEDY}") from None
        expected = self.index.offset + shard.nsamples * self.dtype.itemsize
        if shard.filesize != expected:
            raise UnreadableError(
                f"shard {self.path} of {shard.filesize} bytes can't hold {shard.nsamples} tokens "
                f"of {self.dtype}, which take {expected}: its manifest is wrong. {_REMEDY}"
            )
        if isinstance(store, Folder):  # of a bucket the checksums alone must tell: requests cost
            self._file = _File(store.open(shard.url))
            self._check_file(self._file.descriptor)

    @property
    def is_remote(self) -> bool:
        """Whether it lies in a bucket; its bytes may come from a copy all the same."""
        return not isinstance(self.store, Folder)

    def look_for_copy(self, cache: Cache) -> None:
        """Read from the cache's copy from now on, if it has come; mark it as used."""
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        shard = self.shard
        copy = cache.find(self.store, shard.url, shard.filesize, shard.checksum)
        if copy is None or self._file is not None:
            return
        try:
            self._file = _File(os.open(copy, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if lacks := lacking(str(copy), error):
                raise lacks from None
            # evicted in between, or of no use: the bucket has the bytes too

    def drop_copy(self, cache: Cache) -> None:
        """Read from the bucket from now on: the copy is damaged."""
        self._file, self._looked = None, time.monotonic()
        cache.drop(self.store, self.shard.url, self.shard.checksum)

    def place(self, first: int, stop: int) -> tuple[str, int, int]:
        """(file, start, stop) in bytes of the blocks first:stop, as stores take it."""
        start = self.index.offset + first * BLOCK
        return self.shard.url, start, min(self.index.offset + stop * BLOCK, self.shard.filesize)

    def read(self, first: int, stop: int) -> bytes | None:
        """The blocks first:stop as they lie in the file here, whole and right or not; None where
        there is no file here."""
        file = self._file  # another thread may drop it
        if file is None:
            return None
        _, start, end = self.place(first, stop)
        try:
            return os.pread(file.descriptor, end - start, start)
        except OSError as error:
            if lacks := lacking(f"shard {self.path}", error):
                raise lacks from None
            if self.is_remote:
                return b""  # as good as a copy that was cut off
            raise UnreadableError(
                f"shard {self.path}, byte {start}: can't be read ({error.strerror}). {_REMEDY}"
            ) from None

    def damage(self, first: int, stop: int, data: bytes) -> dict[int, DataError]:
        """Those of the blocks first:stop that ``data`` doesn't hold as they were packed."""
        _, start, end = self.place(first, stop)
        view = memoryview(data)
        bad = {}
        for block, expected in enumerate(self.index.crc[first:stop].tolist(), first):
            at = (block - first) * BLOCK
            if at >= len(data) or zlib.crc32(view[at : at + BLOCK]) != expected:
                token = block * BLOCK // self.dtype.itemsize
                last = min(token + BLOCK // self.dtype.itemsize, self.shard.nsamples) - 1
                what = "are missing" if len(data) < end - start else "are not as they were packed"
                bad[block] = DataError(
                    f"shard {self.path}, tokens {token} to {last}: their bytes {what} (crc32): the "
                    f"shard is damaged or was replaced. {_REMEDY}"
                )
        return bad

    def _check_file(self, file: int) -> None:
        """The file itself says what it holds; that must be what the manifest says."""
        size = os.fstat(file).st_size
        if size != self.shard.filesize:
            raise UnreadableError(
                f"shard {self.path} is {size} bytes long, its manifest says "
                f"{self.shard.filesize}: it was cut off or replaced. {_REMEDY}"
            )
        header = io.BytesIO(os.pread(file, self.index.offset, 0))
        try:
            np.lib.format.read_magic(header)
            shape, _, dtype = np.lib.format.read_array_header_1_0(header)
        except Exception as error:  # numpy parses it as Python: any of the parser's errors
            raise UnreadableError(
                f"shard {self.path} is no .npy file ({error}). {_REMEDY}"
            ) from None
        if (shape, dtype) != ((self.shard.nsamples,), self.dtype):
            raise UnreadableError(
                f"shard {self.path} holds {dtype} {shape}, its manifest says {self.dtype} "
                f"({self.shard.nsamples},). {_REMEDY}"
            )
