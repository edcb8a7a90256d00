"""What a diffusion loss takes from a batch, and its loss told apart by noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.data.pixels import to_unit


def image_of(batch: Batch) -> Tensor:
    """(B, C, H, W) in [-1, 1] if the data are uint8, else as they are; float32 at least."""
    image = to_unit(batch["image"])
    return image.to(torch.promote_types(image.dtype, torch.float32))


def precision_of(network: nn.Module) -> torch.dtype:
    """float64 where the network's weights are, else float32."""
    weights = next(iter(network.parameters()))
    return torch.promote_types(weights.dtype, torch.float32)


def label_of(batch: Batch, classes: int, dropout: float = 0.0) -> Tensor | None:
    """(B,) int64, each replaced by ``classes`` (no class) with probability ``dropout``.

    None for an unconditional model (``classes`` 0). The dropout is what classifier-free guidance
    needs: Ho & Salimans 2022, Algorithm 1.
    """
    if classes == 0:
        return None
    label = batch["label"]
    if dropout == 0:
        return label
    return label.masked_fill(batch.draws.uniform("label_dropout") < dropout, classes)


def mean_and_bins(
    loss: Tensor, quantile: Tensor, bins: int = 4
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of the rows' losses (B,), and metrics by noise level.

    ``quantile`` (B,) is each row's noise level as a quantile of the training distribution, low
    noise first; so each bin holds 1 / bins of the rows in expectation, and bins * mean(loss in bin)
    is an unbiased estimate that adds up over micro-batches and ranks and is never 0 / 0.
    """
    row_bin = (quantile * bins).long().clamp(0, bins - 1)
    detached = loss.detach()
    metrics = {"loss": detached.mean()}
    for i in range(bins):
        metrics[f"loss/noise_{i + 1}_of_{bins}"] = bins * (detached * (row_bin == i)).mean()
    return loss.mean(), metrics
