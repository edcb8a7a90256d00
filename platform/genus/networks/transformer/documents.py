"""Documents packed into one row: tokens see their own document only, and positions restart."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def document_spans(document_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Where the documents of each row lie, from any integers that change at every new document.

    Returns (B, T) int64 twice: the document's number in its row, 0, 1, ..., and the position in the
    document.
    """
    T = document_BT.shape[1]
    begins = torch.ones_like(document_BT, dtype=torch.bool)
    begins[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    index = torch.arange(T, device=document_BT.device).expand_as(document_BT)
    first = torch.where(begins, index, 0).cummax(dim=1).values
    return begins.cumsum(1) - 1, index - first


def dense_mask(number_BT: Tensor) -> Tensor:
    """(B, 1, T, T) bool, True where a query (row) may attend to a key (column)."""
    T = number_BT.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=number_BT.device).tril()
    return ((number_BT[:, :, None] == number_BT[:, None, :]) & causal)[:, None]


def block_mask(number_BT: Tensor) -> BlockMask:
    """The same as FlexAttention's description by blocks, which skips those that are masked whole.

    Dong et al. 2024, "Flex Attention". Imported here: it takes a compiler with it.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (number_BT[row, query] == number_BT[row, key]) & (query >= key)

    B, T = number_BT.shape
    return create_block_mask(sees, B, None, T, T, device=number_BT.device)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attention under ``mask``; q (B, H, T, C), k and v (B, K, T, C) with K dividing H."""
    out: Tensor = _flex(q.is_cuda)(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention import flex_attention as flex

    return torch.compile(flex.flex_attention, dynamic=False)


def _flex(cuda: bool) -> Any:
    # Uncompiled it makes all scores; inside a compiled network that network's compiler takes it.
    if torch.compiler.is_compiling() or not cuda:
        from torch.nn.attention import flex_attention as flex

        return flex.flex_attention
    return _compiled_flex()
