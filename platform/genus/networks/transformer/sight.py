"""What each token of a pass sees and where it stands: causal, by document, or behind a cache."""

from __future__ import annotations

import torch
from torch import Tensor

from genus.errors import DataError
from genus.networks.transformer.attention import View
from genus.networks.transformer.cache import Cache
from genus.networks.transformer.config import BlockConfig
from genus.networks.transformer.documents import block_mask, dense_mask, document_spans
from genus.networks.transformer.rope import rotation_table


def causal_view(config: BlockConfig, x: Tensor, document: Tensor | None) -> tuple[Tensor, View]:
    """Positions (T,) or (B, T), and the view, for tokens x (B, T, D) without a cache."""
    T = x.shape[1]
    rope = config.positions == "rope"
    table = rotation_table(T, config.head_width, config.rope_theta, x) if rope else None
    if document is None:
        return torch.arange(T, device=x.device), View(causal=True, rotation=table)
    if document.shape != x.shape[:2]:
        raise DataError(
            f"transformer: document has shape {tuple(document.shape)} for tokens of "
            f"{tuple(x.shape[:2])}; a class's place in front cannot be packed with others"
        )
    number, positions = document_spans(document)
    rotation = None if table is None else table.at(positions)
    if x.is_cuda:
        return positions, View(blocks=block_mask(number), rotation=rotation)
    return positions, View(mask=dense_mask(number), rotation=rotation)


def cached_view(
    config: BlockConfig, x: Tensor, cache: Cache, lengths: Tensor | None
) -> tuple[Tensor, View]:
    """Positions (T,) or (B, T), and the view, for tokens x (B, T, D) that follow on ``cache``."""
    B, T = x.shape[:2]
    cache.check_room(T)
    if cache.rotation is None and config.positions == "rope":
        cache.rotation = rotation_table(cache.length, config.head_width, config.rope_theta, x)
    table = cache.rotation
    if cache.empty:
        if cache.static or lengths is not None:
            cache.lengths = torch.zeros(B, dtype=torch.long, device=x.device)
        rotation = None if table is None else table.between(0, T)
        # What pads a prompt on the right comes after all that is real: causal is enough.
        return torch.arange(T, device=x.device), View(causal=True, rotation=rotation, cache=cache)
    stop = cache.used + T
    if cache.lengths is None and lengths is None:
        mask = None
        if T > 1:
            mask = torch.ones(T, stop, dtype=torch.bool, device=x.device).tril(cache.used)
        rotation = None if table is None else table.between(cache.used, stop)
        positions = torch.arange(cache.used, stop, device=x.device)
        return positions, View(mask=mask, rotation=rotation, cache=cache)
    if cache.lengths is None:
        cache.lengths = torch.full((B,), cache.used, device=x.device)
    at = cache.lengths[:, None] + torch.arange(T, device=x.device)
    reach = torch.arange(cache.length if cache.static else stop, device=x.device)
    mask = (reach <= at[:, :, None])[:, None]
    rotation = None if table is None else table.at(at)
    return at, View(mask=mask, rotation=rotation, cache=cache, at=at)


def full_view(config: BlockConfig, x: Tensor, mask: Tensor | None) -> tuple[Tensor, View]:
    """Positions (S,), and the view, of an encoder: all see all that ``mask`` (B, S) holds True."""
    S = x.shape[1]
    rotation = None
    if config.positions == "rope":
        rotation = rotation_table(S, config.head_width, config.rope_theta, x)
    seen = None if mask is None else mask[:, None, None, :]
    return torch.arange(S, device=x.device), View(mask=seen, rotation=rotation)


def check_length(needed: int, length: int) -> None:
    """DataError where a network with learned positions meets more tokens than it has."""
    if needed > length:
        raise DataError(
            f"transformer: {needed} positions, but it has learned {length}; shorten the sequence, "
            "build it longer, or take positions=rope"
        )
