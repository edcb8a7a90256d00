"""Beam search: the most probable continuation that a bounded search finds, not a draw.

Shapes: B rows, K beams, V vocabulary, N tokens at most.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.samplers.tokens import Reader, check_prompts, no_gradients


class Found(NamedTuple):
    """The best continuation of each row."""

    tokens: Tensor
    """(B, N) int64; after ``end``, ``end`` only."""
    scores: Tensor
    """(B,): log-probability over length penalty, ``end`` counted in both."""


def length_penalty(length: float, alpha: float) -> float:
    """((5 + length) / 6)^alpha: Wu et al. 2016, eq. 14, without their coverage; 1 at alpha 0."""
    return float(((5 + length) / 6) ** alpha)


def beam_search(
    model: nn.Module,
    prompts: Tensor,
    lengths: Tensor | None,
    count: int,
    *,
    beams: int = 4,
    alpha: float = 0.6,
    end: int = -1,
    label: Tensor | None = None,
    classes: int = 0,
    source: Tensor | None = None,
    source_mask: Tensor | None = None,
    static: bool = False,
) -> Found:
    """The continuation with the highest score that ``beams`` hypotheses a row find.

    A hypothesis is complete at ``end`` or with ``count`` tokens. Those that end stay in the beam,
    which searches on with one fewer (as Bahdanau et al. 2015 did), so that one beam is greedy
    decoding and a beam as wide as the number of hypotheses is exhaustive. A row stops where no open
    hypothesis can win: its log-probability can only fall, so it scores at most that over the
    longest's penalty. prompts, lengths, label, classes, source and static as in ``generate``.
    """
    if beams < 1 or alpha < 0:
        raise ConfigError(
            f"beam search: beams={beams} must be at least 1 and alpha={alpha:g} at least 0"
        )
    check_prompts(prompts, lengths, count, classes)
    reader = Reader(model, prompts.shape[1] + count - (0 if classes else 1), static=static)
    B, K = len(prompts), beams
    with no_gradients(model):
        logits = reader.read(prompts, lengths, label=label, source=source, source_mask=source_mask)
        rows = torch.arange(B, device=prompts.device)
        reader.cache.reorder(rows.repeat_interleave(K))
        log_p = logits.log_softmax(-1)[:, None].expand(-1, K, -1)
        V = log_p.shape[-1]
        rank_K = torch.arange(K, device=prompts.device)
        # At first one hypothesis is open, the empty one; -inf is a place without one.
        open_BK = log_p.new_full((B, K), -torch.inf)
        open_BK[:, 0] = 0
        free_B = torch.full_like(rows, K)
        tokens_BKN = prompts.new_full((B, K, count), max(end, 0))
        best_BN, best_B = tokens_BKN[:, 0], open_BK[:, 0] - torch.inf
        for step in range(count):
            totals, at = (open_BK[:, :, None] + log_p).flatten(1).topk(K)
            totals = totals.masked_fill(rank_K >= free_B[:, None], -torch.inf)
            parent, token = at // V, at % V
            tokens_BKN = tokens_BKN.gather(1, parent[:, :, None].expand(-1, -1, count))
            tokens_BKN[:, :, step] = token
            last = step + 1 == count
            complete = (totals > -torch.inf) & ((token == end) | last)
            scores = totals.where(complete, -torch.inf) / length_penalty(step + 1, alpha)
            score, which = scores.max(1)
            better = score > best_B
            best_B = score.where(better, best_B)
            best_BN = tokens_BKN[rows, which].where(better[:, None], best_BN)
            open_BK = totals.masked_fill(complete, -torch.inf)
            free_B = free_B - complete.sum(1)
            bound = open_BK.amax(1) / length_penalty(count, alpha)
            if last or bool((bound <= best_B).all()):
                break
            # Beams of a row share its source.
            reader.cache.reorder((rows[:, None] * K + parent).flatten(), memory=False)
            log_p = reader.next(token.flatten()).log_softmax(-1).view(B, K, V)
    return Found(best_BN.clone(), best_B.clone())  # ordinary tensors
