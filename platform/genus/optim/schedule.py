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
    """constant; cosine; 1/sqrt past ``decay`` (Karras 2024, eq. 67); warm-up-stable-decay."""
    warmup: int = 0
    """Linear warm-up, samples."""
    decay: int = 0
    """rsqrt: reference length t_ref, samples. wsd: length of the final linear decay, samples.
    cosine: its length (0: the run's)."""
    floor: float = 0.0
    """Share of the learning rate that cosine and wsd end at."""

    def __post_init__(self) -> None:
        """ConfigError for a kind that would silently be constant."""
        if self.kind in ("rsqrt", "wsd") and self.decay <= 0:
            raise ConfigError(f"schedule.kind={self.kind} needs schedule.decay, in samples")


def factor(config: ScheduleConfig, samples: int, total: int) -> float:
    """The factor in [0, 1] at ``samples`` of a run of ``total``."""
    warm = min(1.0, samples / config.warmup) if config.warmup else 1.0
    return warm * (config.floor + (1 - config.floor) * _shape(config, samples, total))


def decayed(config: ScheduleConfig, samples: int, total: int) -> float:
    """How far the decay has come, from 0 to 1, at ``samples`` of a run of ``total``."""
    return 1 - _shape(config, samples, total)


def half_cosine(samples: int, length: int) -> float:
    """From 1 at 0 samples to 0 at ``length``, and 0 from there on."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, samples / length)))


def _shape(config: ScheduleConfig, samples: int, total: int) -> float:
    """From 1 downwards."""
    match config.kind:
        case "constant":
            return 1.0
        case "cosine":
            return half_cosine(samples, config.decay or total)
        case "rsqrt":
            return 1 / math.sqrt(max(samples / config.decay, 1))
        case "wsd":
            return min(1.0, max(0, total - samples) / config.decay)
