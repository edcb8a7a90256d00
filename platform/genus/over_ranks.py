"""What the ranks have together: for the world, and for objectives, which know none."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(values: Tensor) -> Tensor:
    """In place: the mean over all ranks of a device tensor; all ranks call it."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
