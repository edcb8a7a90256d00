"""Sequences of variable length: what sequence-to-sequence models read and write.

    KEY.source.npy, KEY.target.npy     tokens (S,) or (T,), uint16 or uint32
    KEY.frames.npy                     frames (S, F), float16 or float32

They are served padded to the longest of the data set, tokens with -1, frames with 0: shapes depend
on no rank and no batch.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genus.errors import DataError

PAD = -1
"""Stands behind the tokens of a sequence that is shorter than the longest."""
SequenceKind = Literal["sequence", "frames"]
SEQUENCES: Mapping[str, tuple[str, SequenceKind]] = {
    "source.npy": ("source", "sequence"),
    "target.npy": ("target", "sequence"),
    "frames.npy": ("frames", "frames"),
}
"""Member extension -> (field, kind)."""
_MOST = 2**32
"""Tokens are below."""


@dataclass(frozen=True)
class Extent:
    """What the sequences of a field have in common."""

    length: int
    """The longest, in tokens or frames."""
    size: int
    """One more than the largest token, or the numbers of a frame."""


def npy(array: NDArray[Any]) -> bytes:
    """The content of an .npy file, little endian."""
    buffer = io.BytesIO()
    np.save(buffer, array.astype(array.dtype.newbyteorder("<")), allow_pickle=False)
    return buffer.getvalue()


def read_sequence(data: bytes) -> NDArray[np.int64]:
    """The tokens (n,), n at least 1, in an .npy file. DataError (without a place)."""
    array = _load(data)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise DataError(f"no tokens: expected integers (n,), found {array.dtype} {array.shape}")
    if int(array.min()) < 0 or int(array.max()) >= _MOST:
        raise DataError(f"tokens from {array.min()} to {array.max()}, outside 0..{_MOST - 1}")
    return array.astype(np.int64)


def read_frames(data: bytes) -> NDArray[np.float32]:
    """The frames (n, F), n and F at least 1, in an .npy file. DataError (without a place)."""
    array = _load(data)
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise DataError(f"no frames: expected floats (n, F), found {array.dtype} {array.shape}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        frames: NDArray[np.float32] = array.astype(np.float32)
    if not np.isfinite(frames).all():
        raise DataError("frames with numbers that are not finite in float32")
    return frames


def sequence_into(data: bytes, out: NDArray[np.int64]) -> int:
    """``read_sequence`` into ``out`` (S,), a row of a batch, padded; its length. DataError where it
    is longer."""
    tokens = read_sequence(data)
    _check_length(len(tokens), len(out))
    out[: len(tokens)] = tokens
    out[len(tokens) :] = PAD
    return len(tokens)


def frames_into(data: bytes, out: NDArray[np.float32]) -> int:
    """``read_frames`` into ``out`` (S, F), a row of a batch, padded; its length. DataError where it
    is longer or has other frames."""
    frames = read_frames(data)
    _check_length(len(frames), len(out))
    if frames.shape[1] != out.shape[1]:
        raise DataError(f"frames of {frames.shape[1]} numbers, the data set's have {out.shape[1]}")
    out[: len(frames)] = frames
    out[len(frames) :] = 0
    return len(frames)


def extent_of(extension: str, data: bytes) -> Extent:
    """Of a single member. DataError (without a place)."""
    if SEQUENCES[extension][1] == "frames":
        return Extent(*read_frames(data).shape)
    tokens = read_sequence(data)
    return Extent(len(tokens), int(tokens.max()) + 1)


def joined(extension: str, extents: Iterable[Extent]) -> Extent:
    """Of all members together. DataError where frames differ."""
    extents = [*extents]
    sizes = {extent.size for extent in extents}
    if SEQUENCES[extension][1] == "frames" and len(sizes) > 1:
        raise DataError(
            f"its .{extension} have frames of {' and '.join(map(str, sorted(sizes)))} numbers: "
            "they must be alike to share a batch"
        )
    return Extent(max(extent.length for extent in extents), max(sizes))


def _load(data: bytes) -> NDArray[Any]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"no readable array ({error})") from None
    if not isinstance(array, np.ndarray):
        raise DataError("no array but an archive")
    return array


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise DataError(f"a sequence of {length}, the data set's longest is {most}")
