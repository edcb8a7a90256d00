"""Writing packed tokens: shards and their indexes as they fill, and the manifest at the end."""

from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.data.checked_tokens import dtype_of
from genus.data.manifest import Manifest, Shard
from genus.data.store import Folder
from genus.data.token_shard import BLOCK, TokenIndex
from genus.errors import DataError

SHARD_TOKENS = 2**24
"""32 MiB of uint16."""


class TokenWriter:
    """A folder of packed tokens that is being written; holds one shard."""

    def __init__(self, folder: Path, vocabulary: int, end: int, shard_tokens: int) -> None:
        """DataError for what no data set can have."""
        if not 1 <= vocabulary <= 2**32 or not -1 <= end < vocabulary or shard_tokens < 2:
            raise DataError(
                f"can't pack with vocabulary={vocabulary}, end={end}, shard_tokens={shard_tokens}: "
                f"a vocabulary has 1 to {2**32} tokens, the end token is one of them or -1 for "
                "none, and a shard has at least 2 tokens"
            )
        self.folder, self.vocabulary, self.end = folder, vocabulary, end
        self.documents = 0
        """Documents that were begun."""
        self.dtype = dtype_of(vocabulary)
        self._tokens = np.empty(shard_tokens, self.dtype)
        self._used = 0
        self._begun: list[NDArray[np.int64]] = []
        self._shards: list[Shard] = []

    def add(self, tokens: NDArray[Any], starts: NDArray[np.int64]) -> None:
        """``tokens`` (n,), end tokens included, over as many shards as they need; documents begin
        at ``starts`` (D,), rising. Those before the first of them go on with the last document."""
        self.documents += len(starts)
        begin = 0
        while begin < len(tokens):
            if self._used == len(self._tokens):
                self._flush()
            stop = min(len(tokens), begin + len(self._tokens) - self._used)
            low, high = starts.searchsorted((begin, stop))
            self._begun.append(starts[low:high] - begin + self._used)
            self._tokens[self._used : self._used + stop - begin] = tokens[begin:stop]
            self._used += stop - begin
            begin = stop

    def finish(self, name: str, tokenizer: str, model: bytes) -> Manifest:
        """Write the last shard and the manifest. ``model``: the tokenizer.json that goes beside."""
        if self._used:
            self._flush()
        if model:
            (self.folder / "tokenizer.json").write_bytes(model)
        manifest = Manifest(
            name=name,
            shards=tuple(self._shards),
            fields={},
            classes=(),
            counts=(),
            channels=0,
            height=0,
            width=0,
            total=0,
            tokens=sum(shard.nsamples for shard in self._shards),
            vocabulary=self.vocabulary,
            dtype=self.dtype.name,
            end=self.end,
            tokenizer=tokenizer,
        )
        manifest.save(Folder(self.folder))
        return manifest

    def _flush(self) -> None:
        tokens = self._tokens[: self._used]
        data = tokens.data.cast("B")
        header = _header(tokens)
        checksum = hashlib.sha256(header)
        checksum.update(data)
        shard = Shard(
            url=f"{len(self._shards):06d}.npy",
            nsamples=len(tokens),
            filesize=len(header) + len(data),
            checksum=f"sha256:{checksum.hexdigest()}",
        )
        index = TokenIndex(
            documents=np.concatenate(self._begun).astype(np.int64),
            crc=np.array(
                [zlib.crc32(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)], np.uint32
            ),
            offset=len(header),
        )
        with (self.folder / shard.url).open("wb") as file:
            file.write(header)
            file.write(data)
        (self.folder / shard.index).write_bytes(index.to_bytes())
        self._shards.append(shard)
        self._used, self._begun = 0, []


def _header(tokens: NDArray[Any]) -> bytes:
    """What numpy puts before the array's bytes in an .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(tokens))
    return buffer.getvalue()
