"""Learning-rate schedules as pure functions of progress in samples: there is no state to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from genus.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The factor on ``optim.lr`` over the run."""

    kind: Literal["constant", "cosine", "rsqrt", "wsd"] = "constant"
    """constant; cosine to 0; 1/sqrt past ``decay`` (Karras 2024, eq. 67); warm-up-stable-decay."""
    warmup: int = 0
    """Linear warm-up, samples."""
    decay: int = 0
    """rsqrt: reference length t_ref, samples. wsd: length of the final linear decay, samples."""

    def __post_init__(self) -> None:
        """ConfigError for a kind that would silently be constant."""
        if self.kind in ("rsqrt", "wsd") and self.decay <= 0:
            raise ConfigError(f"schedule.kind={self.kind} needs schedule.decay, in samples")


def factor(config: ScheduleConfig, samples: int, total: int) -> float:
    """The factor in [0, 1] at ``samples`` of a run of ``total``."""
    warm = min(1.0, samples / config.warmup) if config.warmup else 1.0
    match config.kind:
        case "constant":
            shape = 1.0
        case "cosine":
            shape = 0.5 * (1 + math.cos(math.pi * min(1.0, samples / total)))
        case "rsqrt":
            shape = 1 / math.sqrt(max(samples / config.decay, 1))
        case "wsd":
            shape = min(1.0, max(0, total - samples) / config.decay)
    return warm * shape
