"""Vectors of a data set: one ``KEY.vector.npy`` a sample, a 1-D array of D finite numbers.

They are written as little-endian float32 in numpy's own format, so any tool reads them with
``np.load``. Shards made elsewhere may hold other real types; all are served as float32.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genus.errors import DataError

EXTENSION = "vector.npy"
REAL = "fiu"
"""numpy's kinds of real numbers."""

Vector = NDArray[np.float32]
"""(D,)"""


def to_bytes(vector: Vector) -> bytes:
    """``vector`` (D,) as the content of an .npy file."""
    return _header(len(vector)) + vector.astype("<f4", copy=False).tobytes()


def read_vector(data: bytes) -> Vector:
    """The vector (D,) in an .npy file. DataError (without a place: the caller knows it) for bytes
    that are no such file, another shape, and numbers that are not real or not finite in float32."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"no readable vector ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in REAL:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"no vector: expected real numbers (D,), found {found}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        vector: Vector = array.astype(np.float32)
    if not np.isfinite(vector).all():
        raise DataError("a vector with numbers that are not finite in float32")
    return vector


def read_into(data: bytes, out: Vector) -> None:
    """``read_vector`` into ``out`` (D,), a row of a batch. DataError where the length is another.

    Files with the header that we write are copied as they are, in a tenth of ``np.load``'s time:
    whether their numbers are finite is for the caller to see, on the whole batch at once.
    """
    header = _header(len(out))
    if len(data) == len(header) + 4 * len(out) and data.startswith(header):
        out[:] = np.frombuffer(data, "<f4", offset=len(header))
        return
    vector = read_vector(data)
    if len(vector) != len(out):
        raise DataError(f"a vector of {len(vector)} numbers, the data set's have {len(out)}")
    out[:] = vector


@lru_cache(maxsize=16)
def _header(length: int) -> bytes:
    """What numpy puts before ``length`` float32 numbers in an .npy file."""
    buffer = io.BytesIO()
    empty = {"descr": "<f4", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(buffer, empty)
    return buffer.getvalue()
