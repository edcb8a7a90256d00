"""What of this machine is this process's own: cores, and its share among the run's processes."""

from __future__ import annotations

import os


def cores_here() -> int:
    """Cores that this process may use: SLURM, containers and taskset give it a part of a node's."""
    may = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return may or 1


def processes_here() -> int | None:
    """torchrun's LOCAL_WORLD_SIZE, or DeepSpeed's LOCAL_SIZE; None where nobody says."""
    said = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    return int(said) if said else None
