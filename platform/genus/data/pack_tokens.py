"""From documents that are tokens already to packed token shards with their index and manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from genus.atomic import new_folder
from genus.data.checked_tokens import checked
from genus.data.manifest import Manifest
from genus.data.text import BYTES, Tokens, read_model
from genus.data.token_writer import SHARD_TOKENS, TokenWriter
from genus.errors import DataError


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
    model = read_model(Path(tokenizer)) if tokenizer not in ("", BYTES) else b""
    if model:
        tokenizer = "sha256:" + hashlib.sha256(model).hexdigest()
    with new_folder(out) as folder:
        writer = TokenWriter(folder, vocabulary, end, shard_tokens)
        first = np.zeros(1, np.int64)
        tail = np.array([end] if end >= 0 else [], writer.dtype)
        for document in documents:
            tokens = checked(document, f"document {writer.documents}", vocabulary, end)
            writer.add(np.concatenate([tokens, tail]), first)
        if writer.documents == 0:
            raise DataError(f"there are no documents to pack into {out}")
        manifest = writer.finish(name or out.name, tokenizer, model)
    print(
        f"packed {manifest.tokens:,} tokens of {writer.documents:,} documents in "
        f"{len(manifest.shards)} shards: {out}"
    )
    return manifest
