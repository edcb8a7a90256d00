"""Learning-rate schedules against their formulas."""

from __future__ import annotations

import itertools
import math

import pytest

from genus.errors import ConfigError
from genus.optim.schedule import ScheduleConfig, factor

TOTAL = 1000


def test_constant_with_warmup() -> None:
    config = ScheduleConfig(warmup=100)
    assert [factor(config, s, TOTAL) for s in (0, 25, 100, 999)] == [0.0, 0.25, 1.0, 1.0]
    assert factor(ScheduleConfig(), 0, TOTAL) == 1.0


def test_cosine_ends_at_zero_and_stays_there() -> None:
    config = ScheduleConfig(kind="cosine")
    for samples, expected in ((0, 1.0), (250, 0.5 + math.sqrt(2) / 4), (500, 0.5), (1000, 0.0)):
        assert factor(config, samples, TOTAL) == pytest.approx(expected, abs=1e-15)
    assert factor(config, 1500, TOTAL) == pytest.approx(0.0, abs=1e-15)


def test_inverse_square_root_past_the_reference() -> None:
    config = ScheduleConfig(kind="rsqrt", decay=100, warmup=10)
    values = [factor(config, s, TOTAL) for s in (5, 50, 100, 400, 10_000)]
    assert values == [0.5, 1.0, 1.0, 0.5, 0.1]


def test_stable_then_linear_decay() -> None:
    config = ScheduleConfig(kind="wsd", decay=200, warmup=100)
    values = [factor(config, s, TOTAL) for s in (0, 50, 100, 800, 900, 950, 1000, 1100)]
    assert values == [0.0, 0.5, 1.0, 1.0, 0.5, 0.25, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["constant", "cosine", "rsqrt", "wsd"])
def test_between_zero_and_one_and_without_jumps(kind: str) -> None:
    config = ScheduleConfig(kind=kind, warmup=70, decay=130)  # type: ignore[arg-type]
    values = [factor(config, s, TOTAL) for s in range(TOTAL + 1)]
    assert min(values) >= 0
    assert max(values) <= 1
    steps = [abs(a - b) for a, b in itertools.pairwise(values)]
    assert max(steps) <= 1 / 70 + 1e-12


@pytest.mark.parametrize("kind", ["rsqrt", "wsd"])
def test_a_kind_that_needs_a_length_is_not_silently_constant(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"needs schedule\.decay"):
        ScheduleConfig(kind=kind)  # type: ignore[arg-type]


def test_warm_up_multiplies_the_shape() -> None:
    config = ScheduleConfig(kind="cosine", warmup=500)
    assert factor(config, 250, TOTAL) == pytest.approx(0.5 * (0.5 + math.sqrt(2) / 4))


def test_a_floor_and_a_length_of_the_decay() -> None:
    config = ScheduleConfig(kind="cosine", decay=100, floor=0.25)
    for samples, expected in ((0, 1.0), (50, 0.625), (100, 0.25), (400, 0.25)):
        assert factor(config, samples, total=400) == pytest.approx(expected)
