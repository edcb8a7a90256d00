"""Noise levels against their papers' formulas, written out one by one."""

from __future__ import annotations

import math

import pytest
import torch

from genus.samplers.schedules import ddpm_levels, flow_levels, karras_levels, subset_levels


def test_karras_levels() -> None:
    levels = karras_levels(18, 0.002, 80.0, 7.0)
    a, b = 80 ** (1 / 7), 0.002 ** (1 / 7)
    assert levels.tolist() == pytest.approx([(a + i / 17 * (b - a)) ** 7 for i in range(18)] + [0])
    assert levels.dtype == torch.float64
    assert karras_levels(1, 0.002, 80.0).tolist() == pytest.approx([80, 0])


def test_flow_levels() -> None:
    assert flow_levels(4, 0.8).tolist() == pytest.approx([4, 0.6 / 0.4, 0.4 / 0.6, 0.25, 0])


def test_linear_schedule_is_ho_et_als() -> None:
    abar, expected = 1.0, []
    for i in range(1000):
        abar *= 1 - (1e-4 + i * (0.02 - 1e-4) / 999)
        expected.append(math.sqrt((1 - abar) / abar))
    assert ddpm_levels("linear", 1000).tolist() == pytest.approx(expected, rel=1e-9)
    assert expected[-1] == pytest.approx(157.4, abs=0.1)
    # a shorter chain spans the same noise
    assert ddpm_levels("linear", 100)[-1].item() == pytest.approx(157.4, rel=0.5)


def test_cosine_schedule_is_nichol_and_dhariwals() -> None:
    def f(t: int) -> float:
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    abar = 1 / (1 + ddpm_levels("cosine", 1000) ** 2)
    expected = [f(t) / f(0) for t in range(1, 1000)]  # the last beta is cut at 0.999
    assert abar[:-1].tolist() == pytest.approx(expected, rel=1e-7)
    assert (1 - abar[-1] / abar[-2]).item() == pytest.approx(0.999, rel=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("timesteps", [10, 100, 1000])
def test_levels_ascend(schedule: str, timesteps: int) -> None:
    levels = ddpm_levels(schedule, timesteps)  # type: ignore[arg-type]
    assert (levels.diff() > 0).all()
    assert levels.isfinite().all()


def test_subset_levels() -> None:
    chain = torch.arange(1.0, 11.0, dtype=torch.float64)
    assert subset_levels(chain, 10).tolist() == [*reversed(range(1, 11)), 0]
    assert subset_levels(chain, 4).tolist() == [10, 7, 4, 1, 0]
    assert subset_levels(chain, 1).tolist() == [10, 0]
    with pytest.raises(ValueError, match="only 10 timesteps"):
        subset_levels(chain, 11)
