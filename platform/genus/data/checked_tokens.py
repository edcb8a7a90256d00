"""Tokens that may be stored, and in which type."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genus.data.text import Tokens
from genus.errors import DataError


def dtype_of(vocabulary: int) -> np.dtype[Any]:
    """In which tokens of a vocabulary are stored: little endian."""
    return np.dtype("uint16" if vocabulary <= 2**16 else "uint32").newbyteorder("<")


def checked(document: Tokens, place: str, vocabulary: int, end: int) -> NDArray[Any]:
    """The tokens (n,) of a document, all of which may be stored. DataError names ``place``."""
    tokens = np.asarray(document)
    if tokens.ndim != 1 or (tokens.dtype.kind not in "iu" and tokens.size):
        raise DataError(f"{place}: expected integers (n,), found {tokens.dtype} {tokens.shape}")
    if tokens.size == 0:
        if end < 0:
            raise DataError(f"{place} has no tokens, and no end token marks it: leave it out")
        return tokens.astype(np.uint16)
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
