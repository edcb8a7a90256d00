"""How many of the run's processes share this machine, as launchers say it."""

from __future__ import annotations

import os


def processes_here() -> int | None:
    """torchrun's LOCAL_WORLD_SIZE, or DeepSpeed's LOCAL_SIZE; None where nobody says."""
    said = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    return int(said) if said else None
