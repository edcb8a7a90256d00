"""Distributions of pixel levels: normalised, as defined, finite, and drawn as they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genus.objectives.logistic_mixture import (
    Categorical,
    LogisticMixture,
    PixelLaw,
    unit_of,
)
from genus.samplers.categorical import choose

LAWS: dict[str, PixelLaw] = {
    "grey, 256 levels": LogisticMixture(1, 256, 10),
    "grey, 2 levels": LogisticMixture(1, 2, 3),
    "one logistic, 3 levels": LogisticMixture(1, 3, 1),
    "two channels": LogisticMixture(2, 5, 3),
    "colour, 4 levels": LogisticMixture(3, 4, 3),
    "softmax": Categorical(1, 256),
    "softmax, colour": Categorical(3, 4),
}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())


def parameters_of(law: PixelLaw, rows: int = 4, spread: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return spread * torch.randn(rows, law.outputs, generator=generator, dtype=torch.float64)


def all_pixels(law: PixelLaw) -> Tensor:
    """(levels^C, C): all values that a pixel can have."""
    levels = [torch.arange(law.levels)] * law.channels
    return torch.cartesian_prod(*levels).reshape(-1, law.channels)


def log_p_of_all(law: PixelLaw, parameters: Tensor) -> Tensor:
    """(B, levels^C)."""
    pixels = all_pixels(law)
    B, N = len(parameters), len(pixels)
    every = law.log_probability(
        parameters.repeat_interleave(N, 0), pixels.repeat(B, 1)
    )  # rows are pixels
    return every.reshape(B, N)


@every_law
@pytest.mark.parametrize("spread", [0.1, 1.5, 20.0])
def test_probabilities_of_all_pixels_sum_to_one(law: PixelLaw, spread: float) -> None:
    log_p = log_p_of_all(law, parameters_of(law, spread=spread))
    torch.testing.assert_close(
        log_p.exp().sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_the_mixture_is_the_published_one() -> None:
    """Salimans et al. 2017, eq. 1-3, as written: differences of sigmoids, infinite ends."""
    law, levels = LogisticMixture(3, 6, 2), torch.tensor([[0, 2, 5], [3, 5, 0], [1, 4, 3]])
    parameters = parameters_of(law, rows=3)
    weights, means, log_scales, raw = torch.split(parameters, [2, 6, 6, 6], dim=1)
    m, s = means.reshape(3, 3, 2), log_scales.reshape(3, 3, 2).exp()
    alpha, beta, gamma = raw.reshape(3, 3, 2).tanh().unbind(1)
    r, g, b = (2 * levels.double() / 5 - 1)[:, :, None].unbind(1)
    centres = (m[:, 0], m[:, 1] + alpha * r, m[:, 2] + beta * r + gamma * g)
    P = weights.softmax(1)
    for x, level, c in zip((r, g, b), levels.unbind(1), range(3), strict=True):
        upper = torch.sigmoid((x + 0.2 - centres[c]) / s[:, c])
        lower = torch.sigmoid((x - 0.2 - centres[c]) / s[:, c])
        upper[level == 5], lower[level == 0] = 1.0, 0.0
        P = P * (upper - lower)
    torch.testing.assert_close(
        law.log_probability(parameters, levels), P.sum(1).log(), rtol=1e-12, atol=1e-12
    )


def test_outputs_are_ten_a_component_for_colour_and_three_for_grey() -> None:
    assert (LogisticMixture(3).outputs, LogisticMixture(1).outputs) == (100, 30)
    assert (Categorical(3).outputs, Categorical(1).outputs) == (768, 256)


@every_law
def test_a_grid_of_pixels_is_its_pixels(law: PixelLaw) -> None:
    generator = torch.Generator().manual_seed(1)
    parameters = torch.randn(2, law.outputs, 3, 2, generator=generator, dtype=torch.float64)
    levels = torch.randint(law.levels, (2, law.channels, 3, 2), generator=generator)
    together = law.log_probability(parameters, levels)
    assert together.shape == (2, 3, 2)
    for i in range(3):
        for j in range(2):
            alone = law.log_probability(parameters[:, :, i, j], levels[:, :, i, j])
            torch.testing.assert_close(together[:, i, j], alone, rtol=1e-12, atol=0)


@every_law
def test_channel_by_channel_is_the_chain_rule(law: PixelLaw) -> None:
    generator = torch.Generator().manual_seed(2)
    parameters = parameters_of(law, rows=50)
    levels = torch.randint(law.levels, (50, law.channels), generator=generator)
    total = torch.zeros(50, dtype=torch.float64)
    for c in range(law.channels):
        log_p = law.channel(parameters, levels[:, :c])
        assert log_p.shape == (50, law.levels)
        torch.testing.assert_close(
            log_p.exp().sum(1), torch.ones(50, dtype=torch.float64), rtol=1e-12, atol=0
        )
        total = total + log_p.gather(1, levels[:, c : c + 1])[:, 0]
    torch.testing.assert_close(
        total, law.log_probability(parameters, levels), rtol=1e-11, atol=1e-11
    )


@every_law
@pytest.mark.parametrize("size", [0.0, 30.0, 1e4, 1e12])
def test_gradients_are_finite_at_extremes(law: PixelLaw, size: float) -> None:
    parameters = (size * parameters_of(law, rows=200).sign()).float().requires_grad_()
    levels = torch.arange(200)[:, None].expand(-1, law.channels) % law.levels
    levels[:50] = 0
    levels[50:100] = law.levels - 1
    log_p = law.log_probability(parameters, levels)
    log_p.sum().backward()
    assert parameters.grad is not None
    assert log_p.isfinite().all()
    assert (log_p <= 1e-6).all()
    assert parameters.grad.isfinite().all()


def test_float32_keeps_the_probability_of_levels_far_from_the_mean() -> None:
    """Where both sigmoids round to 1, their difference is still known."""
    law = LogisticMixture(1, 256, 1)
    levels = torch.arange(256)[:, None]
    for mean, log_scale in ((0.9, -6.0), (-3.0, -4.0), (0.0, 5.0)):
        row = torch.tensor([[0.0, mean, log_scale]], dtype=torch.float64).expand(256, 3)
        exact = law.log_probability(row, levels)
        found = law.log_probability(row.float(), levels)
        torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-5)


def test_lower_precision_is_raised_to_float32() -> None:
    law = LogisticMixture(1, 256, 2)
    parameters = parameters_of(law).bfloat16()
    levels = torch.tensor([[0], [1], [100], [255]])
    found = law.log_probability(parameters, levels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, law.log_probability(parameters.float(), levels))


@every_law
def test_draws_have_the_probabilities(law: PixelLaw) -> None:
    N, rows = 20_000, 2
    generator = torch.Generator().manual_seed(3)
    parameters = parameters_of(law, rows=rows)
    for row in range(rows):
        uniforms = torch.rand(N, 1 + law.channels, generator=generator, dtype=torch.float64)
        drawn = law.draw(parameters[row : row + 1].expand(N, -1), uniforms)
        place = drawn @ (law.levels ** torch.arange(law.channels - 1, -1, -1))
        found = torch.bincount(place, minlength=law.levels**law.channels) / N
        P = log_p_of_all(law, parameters[row : row + 1])[0].exp()
        error = (found - P).abs() / ((P * (1 - P) / N).sqrt() + 1 / N)
        assert error.max() < 5


@every_law
def test_the_ends_of_the_uniforms_give_levels(law: PixelLaw) -> None:
    parameters = parameters_of(law)
    for value in (0.0, 1 - 2**-53):
        uniforms = torch.full((4, 1 + law.channels), value, dtype=torch.float64)
        for dtype in (torch.float32, torch.float64):
            drawn = law.draw(parameters.to(dtype), uniforms)
            assert ((drawn >= 0) & (drawn < law.levels)).all()


def test_choose_takes_each_number_for_its_share_of_the_uniforms() -> None:
    P = torch.tensor([0.0, 0.25, 0.5, 0.25], dtype=torch.float64)
    uniforms = torch.arange(8, dtype=torch.float64) / 8
    drawn = choose(P.log().expand(8, -1), uniforms)
    assert drawn.tolist() == [1, 1, 2, 2, 2, 2, 3, 3]


def test_levels_span_the_range_of_the_network() -> None:
    assert unit_of(torch.tensor([0, 255]), 256).tolist() == [-1.0, 1.0]
    assert unit_of(torch.tensor([0, 1, 2]), 3).tolist() == [-1.0, 0.0, 1.0]
