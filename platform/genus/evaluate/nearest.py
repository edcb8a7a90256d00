"""Baselines for answers: the source itself, or the answer to the most similar training source.

Shapes: N training sources, M test sources, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.data.batch import Batch

SEGMENTS = 32
"""Into which a sound is cut, whatever its length."""


def nearest(blocks: Iterable[Tensor], test: Tensor) -> Tensor:
    """(M,) for each test source the number of the training source with the largest cosine.

    Sources are described by ``token_vectors`` (sparse or dense) or ``signal_vectors``, (N, D) in
    blocks of rows and (M, D); only one block is kept at a time.
    """
    best = torch.full((len(test),), -torch.inf)
    which = torch.zeros(len(test), dtype=torch.int64)
    seen = 0
    for block in blocks:
        cosine = torch.cat([(block @ part.T).T for part in torch.split(test, 256)])
        value, at = cosine.max(1)
        which = torch.where(value > best, at + seen, which)
        best, seen = torch.maximum(best, value), seen + len(block)
    return which


def token_vectors(train: Tensor, test: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Unit TF-IDF vectors of tokens (N, S) and (M, S), -1 where padded: sparse (N, V) and dense
    (M, V). A token weighs its count times ln((1 + N) / (1 + sources that have it)) + 1."""
    counts = _counts(train, vocabulary)
    having = torch.bincount(counts.indices()[1], minlength=vocabulary)
    idf = torch.log((1 + len(train)) / (1 + having)) + 1
    row, token = counts.indices()
    values = counts.values() * idf[token]
    norm = torch.zeros(len(train)).index_add_(0, row, values.square()).sqrt().clamp(min=1e-12)
    unit = torch.sparse_coo_tensor(
        counts.indices(), values / norm[row], counts.shape, check_invariants=True
    )
    return unit.coalesce(), F.normalize(_counts(test, vocabulary).to_dense() * idf, dim=1)


def _counts(tokens: Tensor, vocabulary: int) -> Tensor:
    """Sparse (N, V): how often each token occurs in each row."""
    real = tokens >= 0
    row = torch.arange(len(tokens))[:, None].expand(tokens.shape)[real]
    at = torch.stack([row, tokens[real]])
    ones = torch.ones(at.shape[1])
    shape = len(tokens), vocabulary
    return torch.sparse_coo_tensor(at, ones, shape, check_invariants=True).coalesce()


def signal_vectors(batch: Batch) -> Tensor:
    """(B, D): images as their pixels, sounds as the mean frames of ``SEGMENTS`` equal parts; each
    without its mean and of unit length, so that a cosine is a correlation."""
    if "frames" in batch:
        flat = torch.stack([
            F.adaptive_avg_pool1d(frames[:length].T[None].float(), SEGMENTS).flatten()
            for frames, length in zip(batch["frames"], batch["frames_length"].tolist(), strict=True)
        ])  # fmt: skip
    else:
        flat = batch["image"].flatten(1).float()
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)
