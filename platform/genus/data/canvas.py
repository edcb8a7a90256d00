"""Memory for a batch's images, which a worker process and its rank share.

New shared memory costs a page fault every 4 KB, which for large images takes as long as decoding
them. So a worker uses a few pieces over and over. That is safe without a word between processes:
DataLoader hands a worker task k + PREFETCH when its rank takes the result of task k, so when the
rank asks for the next result, at most PREFETCH tasks after the one it holds have been begun. The
rank must have copied a result by then; ``loading.load`` does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PIPED = 2**20
"""Bytes below which a worker sends through its pipe: that is cheaper than shared memory."""
PREFETCH = 2
"""Tasks that a worker has at once."""
PIECES = PREFETCH + 2

_pieces: dict[str, list[torch.UntypedStorage]] = {}


def canvas(name: str, shape: tuple[int, ...]) -> Tensor:
    """uint8, not filled; in a worker process shared, if it is large, and used again for the field
    ``name`` after PIECES tasks."""
    size = math.prod(shape)
    if torch.utils.data.get_worker_info() is None or size < PIPED:
        return torch.empty(shape, dtype=torch.uint8)
    pieces = _pieces.setdefault(name, [])
    piece = pieces.pop(0) if len(pieces) == PIECES else None
    if piece is None or piece.nbytes() < size:
        piece = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    pieces.append(piece)
    flat = torch.empty(0, dtype=torch.uint8).set_(piece)
    return flat[:size].view(shape)
