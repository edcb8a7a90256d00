"""From documents or text files to packed token shards with their index and manifest."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.atomic import new_folder
from genus.data.manifest import Manifest, Shard
from genus.data.store import Folder
from genus.data.text import BYTES, Tokens, open_tokenizer, read_model, read_texts
from genus.data.token_shard import BLOCK, DTYPES, TokenIndex
from genus.errors import DataError

SHARD_TOKENS = 2**24
"""32 MiB of uint16."""


def pack_tokens(
    documents: Iterable[Tokens],
    out: str | Path,
    *,
    vocabulary: int,
    end: int = -1,
    shard_tokens: int = SHARD_TOKENS,
    name: str = "",
    tokenizer: str = "",
) -> Manifest:
    """Pack ``documents``, in their order, into the new folder ``out`` and return its manifest.

    A document is its token numbers (n,) in 0..vocabulary-1. The token ``end`` is put behind each
    (-1: none), so it may not occur in them. Every shard but the last has ``shard_tokens`` tokens; a
    document that doesn't fit goes on in the next one. ``tokenizer`` is "bytes", the path of a
    tokenizer.json (the folder gets a copy), or "": unknown. Memory holds one shard and one
    document. ``out`` appears whole or not at all, and is never overwritten: DataError, as for
    tokens outside the vocabulary.
    """
    out = Path(out)
    if not 1 <= vocabulary <= 2**32 or not -1 <= end < vocabulary or shard_tokens < 2:
        raise DataError(
            f"can't pack with vocabulary={vocabulary}, end={end}, shard_tokens={shard_tokens}: a "
            f"vocabulary has 1 to {2**32} tokens, the end token is one of them or -1 for none, and "
            "a shard has at least 2 tokens"
        )
    model = read_model(Path(tokenizer)) if tokenizer not in ("", BYTES) else None
    with new_folder(out) as folder:
        writer = _Writer(folder, DTYPES[0] if vocabulary <= 2**16 else DTYPES[1], shard_tokens)
        count = 0
        for document in documents:
            writer.begin_document()
            writer.add(_checked(document, f"document {count}", vocabulary, end))
            if end >= 0:
                writer.add(np.array([end]))
            count += 1
        writer.close()
        if count == 0:
            raise DataError(f"there are no documents to pack into {out}")
        if model is not None:
            tokenizer = "sha256:" + hashlib.sha256(model).hexdigest()
            (folder / "tokenizer.json").write_bytes(model)
        manifest = Manifest(
            name=name or out.name,
            shards=tuple(writer.shards),
            fields={},
            classes=(),
            counts=(),
            channels=0,
            height=0,
            width=0,
            total=0,
            tokens=sum(shard.nsamples for shard in writer.shards),
            vocabulary=vocabulary,
            dtype=writer.dtype.name,
            end=end,
            tokenizer=tokenizer,
        )
        manifest.save(Folder(folder))
    print(
        f"packed {manifest.tokens:,} tokens of {count:,} documents in {len(manifest.shards)} "
        f"shards: {out}"
    )
    return manifest


def pack_text(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str = BYTES,
    end: str = "",
    separator: str = "",
    field: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    name: str = "",
) -> Manifest:
    """Pack UTF-8 text files into the new folder ``out`` and return its manifest.

    Documents, in the order of ``paths``: of ``*.jsonl`` the string ``field`` of each line, of other
    files the parts between ``separator``, or without one the whole file. Their text is kept
    exactly; documents of no character are left out, and their number is printed. ``tokenizer`` is
    "bytes" (UTF-8 bytes, end token 256, vocabulary 257) or the path of a Hugging Face
    tokenizer.json, whose token ``end`` ("<|endoftext|>", say; "": none) is put behind each
    document. DataError as by ``pack_tokens``, and for files that aren't UTF-8 or JSON.
    """
    coder = open_tokenizer(tokenizer, end)
    texts = _filled(read_texts([Path(path) for path in paths], separator, field))
    return pack_tokens(
        coder.encode(texts),
        out,
        vocabulary=coder.vocabulary,
        end=coder.end,
        shard_tokens=shard_tokens,
        name=name,
        tokenizer=tokenizer,
    )


def _filled(texts: Iterable[tuple[str, str]]) -> Iterator[str]:
    empty: list[str] = []
    for place, text in texts:
        if text:
            yield text
        else:
            empty.append(place)
    if empty:
        print(f"left out {len(empty):,} documents without text (the first: {empty[0]})")


def _checked(document: Tokens, place: str, vocabulary: int, end: int) -> NDArray[Any]:
    """The tokens (n,) of a document, all of which may be stored."""
    tokens = np.asarray(document)
    if tokens.ndim != 1 or (tokens.dtype.kind not in "iu" and tokens.size):
        raise DataError(f"{place}: expected integers (n,), found {tokens.dtype} {tokens.shape}")
    if tokens.size == 0:
        if end < 0:
            raise DataError(f"{place} has no tokens, and no end token marks it: leave it out")
        return tokens
    bad = (tokens < 0) | (tokens >= vocabulary)
    if bad.any():
        raise DataError(
            f"{place}, token {bad.argmax()} is {tokens[bad.argmax()]}, outside the vocabulary "
            f"0..{vocabulary - 1}: was it made with another tokenizer?"
        )
    inside = tokens == end
    if inside.any():
        raise DataError(
            f"{place}, token {inside.argmax()} is the end token {end}, which packing adds: "
            "leave it out of the documents"
        )
    return tokens


class _Writer:
    """Shards and their indexes, written one after another as they fill."""

    def __init__(self, folder: Path, dtype: str, shard_tokens: int) -> None:
        self.folder = folder
        self.dtype: np.dtype[Any] = np.dtype(dtype).newbyteorder("<")
        self.shards: list[Shard] = []
        self._tokens = np.empty(shard_tokens, self.dtype)
        self._used = 0
        self._documents: list[int] = []

    def begin_document(self) -> None:
        if self._used == len(self._tokens):
            self._flush()
        self._documents.append(self._used)

    def add(self, tokens: NDArray[Any]) -> None:
        """Tokens that go on with the document, over as many shards as they need."""
        while len(tokens):
            if self._used == len(self._tokens):
                self._flush()
            part = tokens[: len(self._tokens) - self._used]
            self._tokens[self._used : self._used + len(part)] = part
            self._used += len(part)
            tokens = tokens[len(part) :]

    def close(self) -> None:
        if self._used:
            self._flush()

    def _flush(self) -> None:
        tokens = self._tokens[: self._used]
        data = tokens.data.cast("B")
        header = _header(tokens)
        checksum = hashlib.sha256(header)
        checksum.update(data)
        shard = Shard(
            url=f"{len(self.shards):06d}.npy",
            nsamples=len(tokens),
            filesize=len(header) + len(data),
            checksum=f"sha256:{checksum.hexdigest()}",
        )
        index = TokenIndex(
            documents=np.array(self._documents, np.int64),
            crc=np.array(
                [zlib.crc32(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)], np.uint32
            ),
            offset=len(header),
        )
        with (self.folder / shard.url).open("wb") as file:
            file.write(header)
            file.write(data)
        (self.folder / shard.index).write_bytes(index.to_bytes())
        self.shards.append(shard)
        self._used, self._documents = 0, []


def _header(tokens: NDArray[Any]) -> bytes:
    """What numpy puts before the array's bytes in an .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(tokens))
    return buffer.getvalue()
