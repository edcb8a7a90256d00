"""What an optimizer should know of a network's parameters: which are at its ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Roles:
    """A network's attribute ``roles``, or of a part of it. Without one the first matrix in the
    order of parameters is taken to read the data, and the last one to write the result."""

    reads: Sequence[Tensor] = ()
    """What the data come to first; embeddings need not be named."""
    writes: Sequence[Tensor] = ()
    """What the result comes from."""
    width: int = 0
    """Of a transformer: channels of a token, with which its matrices grow."""
