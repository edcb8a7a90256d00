"""From pairs of a source (tokens, frames or an image) and a target (tokens) to tar shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.atomic import new_folder
from genus.data.checked_tokens import checked, dtype_of
from genus.data.decode import IMAGES
from genus.data.index import index_folder
from genus.data.manifest import Manifest
from genus.data.pack import Source, write_shards
from genus.data.sequences import npy
from genus.data.store import Folder
from genus.data.text import Tokenizer, Tokens
from genus.errors import DataError


@dataclass(frozen=True)
class Pair:
    """A sample; it has at most one of source, frames and image."""

    target: Tokens
    """(T,) tokens, without the end token."""
    source: Tokens | None = None
    """(S,) tokens."""
    frames: NDArray[Any] | None = None
    """(S, F) floats, kept as float16 or float32."""
    image: bytes = b""
    """The content of an image file."""
    extension: str = "png"
    """Of the image file."""


def pack_pairs(
    pairs: Sequence[Pair],
    out: str | Path,
    *,
    vocabulary: int,
    end: int,
    source_vocabulary: int = 0,
    tokenizer: Tokenizer | None = None,
    lengths: Mapping[str, int] | None = None,
    sound_rate: int = 0,
    shard_size: int = 1000,
    shuffle_seed: int | None = 0,
    name: str = "",
) -> Manifest:
    """Pack ``pairs`` into the new folder ``out`` and return its manifest.

    Targets are tokens in 0..vocabulary-1; the token ``end`` is put behind each (so it doesn't occur
    in them), and models begin a target with it too. Sources are tokens in 0..source_vocabulary-1
    (0: the vocabulary of the targets), stored as they are. ``tokenizer``: that of the targets, of
    which the folder gets a copy. ``lengths`` are at least those of the manifest: give splits the
    same, and they are padded alike. ``sound_rate``: of the sounds behind frames, in Hz. Pairs are
    shuffled by ``shuffle_seed`` (None: kept in order); their keys are their numbers. ``out``
    appears whole or not at all, and is never overwritten: DataError, as for tokens outside their
    vocabulary.
    """
    out = Path(out)
    if not pairs or shard_size < 1:
        raise DataError(f"{len(pairs)} pairs in shards of {shard_size}: there must be 1 or more")
    if not 0 <= end < vocabulary <= 2**32:
        raise DataError(f"end={end} is no token of the vocabulary 0..{vocabulary - 1}")
    sizes = vocabulary, source_vocabulary or vocabulary
    members = Source(len(pairs), lambda number: _members(pairs[number], number, *sizes, end), None)
    with new_folder(out) as folder:
        write_shards(members, folder, shard_size, shuffle_seed)
        manifest = index_folder(folder, name=name or out.name)
        manifest = replace(
            manifest,
            vocabulary=vocabulary,
            source_vocabulary=sizes[1] if "source" in manifest.lengths else 0,
            end=end,
            sound_rate=sound_rate,
            tokenizer="" if tokenizer is None else tokenizer.name,
            lengths={
                field: max(length, (lengths or {}).get(field, 0))
                for field, length in manifest.lengths.items()
            },
        )
        if tokenizer is not None and tokenizer.model:
            (folder / "tokenizer.json").write_bytes(tokenizer.model)
        manifest.save(Folder(folder))
    longest = ", ".join(f"{field} up to {length:,}" for field, length in manifest.lengths.items())
    print(f"packed {manifest.total:,} pairs in {len(manifest.shards)} shards ({longest}): {out}")
    return manifest


def _members(
    pair: Pair, number: int, vocabulary: int, source_vocabulary: int, end: int
) -> Mapping[str, bytes]:
    target = checked(pair.target, f"target {number}", vocabulary, end)
    kept = dtype_of(vocabulary)
    members = {"target.npy": npy(np.append(target.astype(kept), np.array(end, kept)))}
    if pair.source is not None:
        source = checked(pair.source, f"source {number}", source_vocabulary, -1)
        members["source.npy"] = npy(source.astype(dtype_of(source_vocabulary)))
    if pair.frames is not None:
        half = pair.frames.dtype == np.float16
        members["frames.npy"] = npy(pair.frames if half else pair.frames.astype(np.float32))
    if pair.image:
        if pair.extension not in IMAGES:
            raise DataError(f"image {number} is a .{pair.extension}: take {', '.join(IMAGES)}")
        members[pair.extension] = pair.image
    return members
