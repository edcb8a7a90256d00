"""Fixed-length windows over packed tokens: the samples of language models.

Sample i of a shard of n tokens, at length T, is the window of tokens [i T, i T + T + 1): inputs and
targets overlap by one token. Windows never cross shards, so a shard has (n - 1) // T of them and at
most T tokens at its end are in none: ``TokenWindows.dropped`` counts those. Windows do cross
documents; "document" says which token belongs to which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genus.data.manifest import Manifest, Shard
from genus.data.order import Ids
from genus.data.source import Loaded, Request
from genus.data.store import Folder, Store, UnreadableError
from genus.data.token_shard import BLOCK, DTYPES, TokenShard
from genus.errors import DataError

if TYPE_CHECKING:
    from genus.data.cache import Cache  # wanted for buckets only

OPEN_SHARDS = 256
"""Shards held open a process, each with its index (8 bytes a document); the usual limit of a
process is 1024 files."""


class _Window(NamedTuple):
    row: int
    """In the batch."""
    shard: int
    start: int
    """First token."""
    first: int
    """First block of its shard that it needs."""
    stop: int
    """The block after its last one."""


_Span = list[_Window]
"""Windows of one shard whose blocks lie side by side, in their order there."""
_Blocks = tuple[TokenShard, bytes, dict[int, DataError]]
"""(shard, the bytes of a span's blocks, what is wrong with some of the blocks)."""


class TokenWindows:
    """Samples 0..N-1 of length T: the windows of all shards of all parts, in a row.

    Can be pickled. Threads may share it, and forked processes too where all parts are folders.
    """

    def __init__(
        self, parts: Sequence[tuple[Store, Manifest]], length: int, cache: Cache | None = None
    ) -> None:
        """``parts``: folders or buckets of one vocabulary; ``length``: T in tokens, at least 1;
        ``cache``: takes copies of buckets' shards.

        Opens no file. DataError where a part holds no tokens, the parts don't fit together, or no
        shard has a window's T + 1 tokens.
        """
        self.parts, self.length, self.cache = tuple(parts), length, cache
        _check(self.parts, length)
        self._shards = [(store, m, shard) for store, m in self.parts for shard in m.shards]
        tokens = np.array([shard.nsamples for _, _, shard in self._shards], np.int64)
        self.sizes: Ids = np.maximum(tokens - 1, 0) // length
        """(S,) samples of each shard."""
        self.dropped = int((tokens - np.where(self.sizes > 0, self.sizes * length + 1, 0)).sum())
        """Tokens that are in no window."""
        self.vocabulary = self.parts[0][1].vocabulary
        self._ends = np.cumsum(self.sizes)
        self._itemsize = np.array([np.dtype(m.dtype).itemsize for _, m, _ in self._shards])
        if len(self) == 0:
            raise DataError(
                f"{self.parts[0][0].url}: no shard has the {length + 1} tokens of a window of "
                f"length {length}: choose a smaller length or pack more text"
            )
        # no method: a cycle would leave files open until the garbage collector comes by
        self._open = lru_cache(maxsize=OPEN_SHARDS)(partial(_open_shard, self._shards))
        self._broken: dict[int, UnreadableError] = {}

    def __len__(self) -> int:
        """N, samples an epoch."""
        return int(self._ends[-1])

    @property
    def row_bytes(self) -> int:
        """About what a sample takes in memory."""
        return 8 * (self.length + 1)

    @property
    def is_remote(self) -> bool:
        """Whether any part lies in a bucket."""
        return any(not isinstance(store, Folder) for store, _ in self.parts)

    def load(self, request: Request) -> Loaded:
        """Fields "tokens" (B, T + 1) int32 (int64 if the vocabulary needs it) and "document"
        (B, T + 1) int32: 0 for the window's first document, 1 for its next..."""
        fields, faults = self.read(request.ids)
        return Loaded(request, {} if faults else fields, faults)

    def read(self, ids: Ids) -> tuple[dict[str, Tensor], dict[int, DataError]]:
        """The fields of the windows ``ids`` (B,), and which rows mean nothing, with what is wrong:
        the error names shard and place; UnreadableError: all of the shard can't be had."""
        shape = len(ids), self.length + 1
        tokens = np.empty(shape, np.int32 if self.vocabulary <= 2**31 else np.int64)
        document = np.zeros(shape, np.int32)
        faults: dict[int, DataError] = {}
        spans = self._spans(ids)
        for span, answer in zip(spans, self._fetch(spans), strict=True):
            if isinstance(answer, DataError):
                faults |= {window.row: answer for window in span}
                if isinstance(answer, UnreadableError):
                    self._broken[span[0].shard] = answer  # a bucket's retries take long: no more
                continue
            shard, data, bad = answer
            itemsize = shard.dtype.itemsize
            values = np.frombuffer(data, shard.dtype, len(data) // itemsize)
            base = span[0].first * BLOCK // itemsize
            documents = shard.index.documents
            for row, _, start, first, stop in span:
                if bad and (own := bad.keys() & set(range(first, stop))):
                    faults[row] = bad[min(own)]
                    continue
                tokens[row] = values[start - base : start - base + self.length + 1]
                low, high = documents.searchsorted((start, start + self.length), side="right")
                document[row, documents[low:high] - start] = 1  # where the next document begins
        np.cumsum(document, axis=1, out=document)
        return {
            "tokens": torch.from_numpy(tokens),
            "document": torch.from_numpy(document),
        }, faults

    def place(self, sample: int) -> str:
        """Where a sample lies, for messages."""
        ((window,),) = self._spans(np.array([sample]))
        store, _, shard = self._shards[window.shard]
        end = window.start + self.length
        return f"shard {store.url}/{shard.url}, tokens {window.start} to {end}"

    def ahead(self, shards: Iterable[int]) -> None:
        """Start to copy these shards of buckets into the cache, in the background."""
        if self.cache is not None:
            wanted = [self._shards[number] for number in shards]
            self.cache.ahead(
                (store, shard.url, shard.filesize, shard.checksum)
                for store, _, shard in wanted
                if not isinstance(store, Folder)
            )

    def _spans(self, ids: Ids) -> list[_Span]:
        """Where the windows lie, so that every block is read once."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise IndexError(f"sample ids {ids.min()} to {ids.max()} of {len(self)} samples")
        row = np.argsort(ids, kind="stable")
        shard = np.searchsorted(self._ends, ids[row], side="right")
        start = (ids[row] - self._ends[shard] + self.sizes[shard]) * self.length
        first = start * self._itemsize[shard] // BLOCK
        stop = ((start + self.length + 1) * self._itemsize[shard] - 1) // BLOCK + 1
        spans: list[_Span] = []
        for values in np.stack((row, shard, start, first, stop), axis=1).tolist():
            window = _Window(*values)
            last = spans[-1][-1] if spans else None
            if last and last.shard == window.shard and window.first <= last.stop:
                spans[-1].append(window)
            else:
                spans.append([window])
        return spans

    def _fetch(self, spans: Sequence[_Span]) -> list[_Blocks | DataError]:
        """Each span's blocks; all that come out of one bucket are asked for together."""
        answers: list[_Blocks | DataError] = []
        far: list[tuple[int, TokenShard]] = []
        for number, span in enumerate(spans):
            try:
                shard = self._shard(span[0].shard)
                blocks = self._here(shard, span[0].first, span[-1].stop)
                if blocks is None:
                    far.append((number, shard))
                answers.append(blocks or (shard, b"", {}))
            except DataError as error:
                answers.append(error)
        for store in {id(shard.store): shard.store for _, shard in far}.values():
            wanted = [(n, shard, spans[n]) for n, shard in far if shard.store is store]
            found = store.read_many(
                [shard.place(span[0].first, span[-1].stop) for _, shard, span in wanted]
            )
            for (n, shard, span), got in zip(wanted, found, strict=True):
                if isinstance(got, DataError):
                    answers[n] = got
                else:
                    answers[n] = shard, got, shard.damage(span[0].first, span[-1].stop, got)
        return answers

    def _here(self, shard: TokenShard, first: int, stop: int) -> _Blocks | None:
        """The blocks first:stop from this machine; None where a bucket is to be asked for them. A
        damaged copy is dropped: it says nothing about the data."""
        data = shard.read(first, stop)
        if data is None:
            return None
        bad = shard.damage(first, stop, data)
        if bad and shard.is_remote and self.cache is not None:
            shard.drop_copy(self.cache)
            return None
        return shard, data, bad

    def _shard(self, number: int) -> TokenShard:
        if number in self._broken:
            raise self._broken[number]
        shard = self._open(number)
        if shard.is_remote and self.cache is not None:
            shard.look_for_copy(self.cache)
        return shard

    def __reduce__(self) -> tuple[type[TokenWindows], tuple[Any, ...]]:
        return TokenWindows, (self.parts, self.length, self.cache)  # open files stay behind


def _open_shard(shards: Sequence[tuple[Store, Manifest, Shard]], number: int) -> TokenShard:
    store, manifest, shard = shards[number]
    return TokenShard(store, shard, manifest.dtype)


def _check(parts: Sequence[tuple[Store, Manifest]], length: int) -> None:
    if length < 1:
        raise DataError(f"windows of length {length}: a window holds at least 1 token")
    if not parts:
        raise DataError("no token data: name at least one folder or bucket of packed tokens")
    (store, first), *_ = parts
    for other, manifest in parts:
        if manifest.dtype not in DTYPES or not manifest.shards:
            raise DataError(
                f"{other.url} holds no packed tokens: its manifest says {len(manifest.shards)} "
                f"shards of dtype '{manifest.dtype}', expected {' or '.join(DTYPES)}"
            )
        for name in ("vocabulary", "end", "tokenizer"):
            here, there = getattr(manifest, name), getattr(first, name)
            if here != there:
                raise DataError(
                    f"{other.url} and {store.url} don't fit together: their {name} is {here!r} and "
                    f"{there!r}; pack both with the same tokenizer"
                )
