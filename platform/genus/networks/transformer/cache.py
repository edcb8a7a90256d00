"""Keys and values of the tokens already seen, so that a new token costs one position's work."""

from __future__ import annotations

import torch
from torch import Tensor

from genus.errors import DataError
from genus.networks.transformer.rope import Rotation


class Cache:
    """Room for ``length`` positions of each row, allocated at the first call and filled in place.

    Give it to ``forward`` with the prompt, then with each new token. Rows may hold unequally many
    tokens: prompts are padded on the right and ``forward(..., lengths=(B,))`` says how many tokens
    of each row are real; the next token of a row goes behind its last real one. Nothing written
    here carries a gradient.

    Eagerly, attention reads the filled part only. With ``static`` it reads all ``length``
    positions under a mask and no shape or Python number changes from token to token: made for
    torch.compile and CUDA graphs. There, more than ``length`` positions are an index error.
    """

    def __init__(self, length: int, *, static: bool = False) -> None:
        self.length = length
        self.static = static
        self.used = 0
        """Positions in use in the fullest row; not kept up where ``static``."""
        self.lengths: Tensor | None = None
        """(B,) tokens in each row; None where all rows hold ``used``."""
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        """A tensor a block: (B, K, length, C)."""
        self.memory: list[tuple[Tensor, Tensor]] = []
        """Keys and values of cross-attention a block, each (B, K, S, C)."""
        self.memory_mask: Tensor | None = None
        """(B, S), True where there is something to attend to."""
        self.rotation: Rotation | None = None

    @property
    def empty(self) -> bool:
        return not self.keys

    def check_room(self, tokens: int) -> None:
        """DataError where ``tokens`` more positions do not fit (unless ``static``)."""
        if not self.static and self.used + tokens > self.length:
            raise DataError(
                f"the cache holds {self.length} positions, {self.used} are used and {tokens} more "
                "were given; make Cache(length) as long as prompt and continuation together"
            )

    def write(self, block: int, k_BKTC: Tensor, v_BKTC: Tensor, at_BT: Tensor | None) -> None:
        """Put keys and values at positions ``at_BT``, or at the end of all rows."""
        if block == len(self.keys):
            # Zeros, not empty memory: what is masked is still multiplied, and 0 * NaN is NaN.
            B, K, _, C = k_BKTC.shape
            self.keys.append(k_BKTC.new_zeros(B, K, self.length, C))
            self.values.append(v_BKTC.new_zeros(B, K, self.length, C))
        keys, values = self.keys[block], self.values[block]
        if at_BT is None:
            T = k_BKTC.shape[2]
            keys.narrow(2, self.used, T).copy_(k_BKTC.detach())
            values.narrow(2, self.used, T).copy_(v_BKTC.detach())
        else:
            rows = torch.arange(len(at_BT), device=at_BT.device)[:, None]
            keys[rows, :, at_BT] = k_BKTC.detach().transpose(1, 2)
            values[rows, :, at_BT] = v_BKTC.detach().transpose(1, 2)

    def read(self, block: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values that ``tokens`` new positions may attend to, (B, K, L, C) views."""
        if self.static:
            return self.keys[block], self.values[block]
        stop = self.used + tokens
        return self.keys[block].narrow(2, 0, stop), self.values[block].narrow(2, 0, stop)

    def advance(self, tokens: int, real_B: Tensor | None) -> None:
        """Count ``tokens`` new positions, of which ``real_B`` (B,) are real in each row."""
        if self.lengths is not None:
            self.lengths += tokens if real_B is None else real_B
        if not self.static:
            self.used += tokens

    def reorder(self, rows: Tensor, *, memory: bool = True) -> None:
        """Row i becomes what row ``rows[i]`` was: in place where as many rows remain (beam search),
        else in new memory (one prompt to several beams). ``memory`` False leaves the keys of
        cross-attention alone, where each row keeps its source: beams of the same one do."""
        for tensors in (self.keys, self.values):
            for block, tensor in enumerate(tensors):
                if len(rows) == len(tensor):
                    part = tensor if self.static else tensor[:, :, : self.used]
                    part.copy_(part[rows])
                else:
                    tensors[block] = tensor[rows]
        if self.lengths is not None:
            self.lengths = self.lengths[rows]
        if memory:
            self.memory = [(k[rows], v[rows]) for k, v in self.memory]
            self.memory_mask = None if self.memory_mask is None else self.memory_mask[rows]
