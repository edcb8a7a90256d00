"""What an index knows of the sequences of a data set: how long they are, and of which tokens."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from genus.data.manifest import Manifest
from genus.data.sequences import SEQUENCES, Extent, extent_of, joined
from genus.data.shard_index import ShardIndex
from genus.errors import DataError


def extents(file: BinaryIO, index: ShardIndex, place: str) -> dict[str, Extent]:
    """Member extension -> how long the sequences of a shard are, all of which are read. DataError
    for one that can't be read or has other frames."""
    found: dict[str, Extent] = {}
    for extension in SEQUENCES:
        for data, member in members_of(file, index, extension):
            try:
                known = [found[extension]] if extension in found else []
                found[extension] = joined(extension, [*known, extent_of(extension, data)])
            except DataError as error:
                raise DataError(
                    f"shard {place}, member {member}: {error}; remove or mend it"
                ) from None
    return found


def with_sequences(
    manifest: Manifest, shards: Sequence[dict[str, Extent]], before: Manifest | None
) -> Manifest:
    """``manifest`` with what is known of its sequences. Where the tokens fit the manifest that was
    there, its lengths, vocabularies, end token and tokenizer stay."""
    found: dict[str, Extent] = {}
    for extension in SEQUENCES:
        own = [shard[extension] for shard in shards if extension in shard]
        if own:
            try:
                found[extension] = joined(extension, own)
            except DataError as error:
                raise DataError(f"{manifest.name}: {error}") from None
    if not found:
        return manifest
    size = {e: found[e].size if e in found else 0 for e in SEQUENCES}
    manifest = replace(
        manifest,
        lengths={SEQUENCES[extension][0]: extent.length for extension, extent in found.items()},
        vocabulary=size["target.npy"],
        source_vocabulary=size["source.npy"],
        frame_features=size["frames.npy"],
    )
    if before is None or before.vocabulary < manifest.vocabulary:
        return manifest
    return replace(
        manifest,
        lengths={
            field: max(length, before.lengths.get(field, 0))
            for field, length in manifest.lengths.items()
        },
        vocabulary=before.vocabulary,
        source_vocabulary=max(before.source_vocabulary, manifest.source_vocabulary),
        end=before.end,
        tokenizer=before.tokenizer,
    )


def members_of(file: BinaryIO, index: ShardIndex, extension: str) -> Iterator[tuple[bytes, str]]:
    """(data, name) of the members with an extension."""
    extensions = index.extensions.tolist()
    if extension not in extensions:
        return
    column = extensions.index(extension)
    for row in np.flatnonzero(index.size[:, column] >= 0).tolist():
        data = read_at(file, int(index.offset[row, column]), int(index.size[row, column]))
        yield data, f"{index.keys[row]}.{extension}"


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise tarfile.ReadError("unexpected end of data")
    return data
