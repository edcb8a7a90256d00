"""Log densities by the probability-flow ODE against analytic ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from closed_form import (
    OBJECTIVES,
    Config,
    GaussianNetwork,
    MixtureDenoiser,
    Prescribed,
    batch_of,
    path_of,
)
from genus.draws import Draws
from genus.objectives.ddpm import DDPMConfig
from genus.samplers.likelihood import ODELikelihood, ode_log_density

EXACT = ODELikelihood(trace="exact")
MEANS = torch.tensor([[-0.9, 0.4], [0.9, -0.4]], dtype=torch.float64).view(2, 2, 1, 1)
MIXTURE = MixtureDenoiser(MEANS, std=0.4, sigma_max=500.0)
POINTS = Draws.of(range(6)).normal("x", (2, 1, 1), torch.float64)


def gaussian(mean: float, std: float, sigma_max: float = 80.0) -> MixtureDenoiser:
    return MixtureDenoiser(
        torch.full((1, 1, 1, 2), mean, dtype=torch.float64), std, sigma_max=sigma_max
    )


def log_density(
    denoiser: MixtureDenoiser, x: Tensor, config: ODELikelihood, sigma_data: float = 0.5
) -> Tensor:
    return ode_log_density(denoiser, x, None, Draws.of(range(len(x))), config, sigma_data).nats


@pytest.mark.parametrize("std", [0.05, 0.5, 3.0])
def test_gaussian_density(std: float) -> None:
    """sigma_data = std makes the ODE trivial and the prior exact; any other agrees too."""
    x = std * Draws.of(range(4)).normal("x", (1, 1, 2), torch.float64)
    denoiser = gaussian(0.0, std)
    expected = denoiser.log_density(x, denoiser.sigma_min)
    found = log_density(denoiser, x, ODELikelihood(steps=2, trace="exact"), std)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    far = gaussian(0.0, std, sigma_max=5000.0)
    found = log_density(far, x, ODELikelihood(steps=64, trace="exact"), 0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-4)


def test_gaussian_with_a_mean() -> None:
    denoiser = gaussian(0.6, 0.5, sigma_max=5000.0)
    x = 0.6 + 0.5 * Draws.of(range(4)).normal("x", (1, 1, 2), torch.float64)
    expected = denoiser.log_density(x, denoiser.sigma_min)
    found = log_density(denoiser, x, ODELikelihood(steps=64, trace="exact"))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_mixture_density() -> None:
    expected = MIXTURE.log_density(POINTS, MIXTURE.sigma_min)
    found = log_density(MIXTURE, POINTS, ODELikelihood(steps=128, trace="exact"))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    coarse = log_density(MIXTURE, POINTS, EXACT)  # the default's steps
    torch.testing.assert_close(coarse, expected, rtol=0, atol=2e-2)


def test_fourth_order() -> None:
    exact = log_density(MIXTURE, POINTS, ODELikelihood(steps=256, trace="exact"))
    errors = [
        (log_density(MIXTURE, POINTS, ODELikelihood(steps=n, trace="exact")) - exact).norm().item()
        for n in (64, 128)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.5)


def test_rademacher_probes_average_to_the_exact_trace() -> None:
    """All sign vectors of two dimensions (up to sign) are a design for v^T J v: the mean over them
    is the trace to rounding, though each alone is not."""
    ones = torch.full((6, 2), 0.9, dtype=torch.float64)
    mixed = ones.clone()
    mixed[:, 1] = 0.1

    class Signs(Prescribed):
        def _fill(self, kind: str, name: str, shape: object, dtype: torch.dtype) -> Tensor:
            return self.values[name].view(6, 2, 1, 1)

    draws = Signs(
        tuple(range(6)), 1, torch.device("cpu"), 0, 6, "", {"probe0": ones, "probe1": mixed}
    )
    both = ode_log_density(MIXTURE, POINTS, None, draws, ODELikelihood(), 0.5)
    one = ode_log_density(MIXTURE, POINTS, None, draws, ODELikelihood(probes=1), 0.5)
    exact = log_density(MIXTURE, POINTS, EXACT)
    torch.testing.assert_close(both.nats, exact, rtol=1e-10, atol=1e-10)
    assert (one.nats - exact).abs().max() > 0.1
    assert one.standard_error is None
    torch.testing.assert_close(both.standard_error, (one.nats - exact).abs(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_hutchinson_agrees_within_its_standard_error(trace: str) -> None:
    config = ODELikelihood(steps=6, trace=trace, probes=100)  # type: ignore[arg-type]
    result = ode_log_density(MIXTURE, POINTS, None, Draws.of(range(6)), config, 0.5)
    exact = log_density(MIXTURE, POINTS, ODELikelihood(steps=6, trace="exact"))
    assert result.kind == "estimate"
    assert result.standard_error is not None
    deviation = (result.nats - exact) / result.standard_error
    assert deviation.abs().max() < 3.5
    assert deviation.abs().max() > 0.1
    assert "100-probe" in result.dequantisation


@pytest.mark.parametrize("law", ["uniform", "truncated normal"])
def test_dequantised_densities_average_to_the_mass_of_a_level(law: str) -> None:
    """E exp(nats) over the dequantisation is exactly the model's mass on the level's bin."""
    std, rows = 0.05, 20_000
    denoiser = MixtureDenoiser(torch.zeros(1, 1, 1, 1, dtype=torch.float64), std)
    config = ODELikelihood(steps=1, trace="exact", dequantisation=law)  # type: ignore[arg-type]
    width = math.hypot(std, denoiser.sigma_min)
    for level in (120, 140):
        image = torch.full((rows, 1, 1, 1), level, dtype=torch.uint8)
        draws = Draws.of([level], group_size=rows)
        result = ode_log_density(denoiser, image, None, draws, config, std)
        edges = (torch.tensor([level, level + 1.0]).double() - 0.5) / 127.5 - 1
        low, high = torch.special.ndtr(edges / width).tolist()
        weights = result.nats.exp().double()
        error = 4 * weights.std().item() / math.sqrt(rows) + 1e-6
        assert weights.mean().item() == pytest.approx(high - low, abs=error)
        assert error < 0.02 * (high - low)
        assert result.nats.mean().item() <= math.log(high - low)  # Jensen: a bound
        assert result.kind == "estimate"
        assert result.dequantisation.startswith(f"{law}, 1 draw; model density at sigma 0.002")


@pytest.mark.parametrize("config", OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_objective(config: Config) -> None:
    """Through each parametrisation and the objective's own method, with labels."""
    std = 0.5
    network = GaussianNetwork(path_of(config), std, means=(0.2, -0.1, 0.0))
    likelihood = ODELikelihood(steps=64, trace="exact")
    objective = config.build((2, 1, 1), classes=2, likelihood=likelihood)
    label = torch.tensor([0, 1, 0, 1])
    mean = torch.tensor([0.2, -0.1, 0.2, -0.1], dtype=torch.float64).view(4, 1, 1, 1)
    x = mean + std * Draws.of(range(4)).normal("x", (2, 1, 1), torch.float64)
    result = objective.log_density({"denoiser": network}, batch_of(x, label))
    variance = std**2 + objective.denoiser(network).sigma_min ** 2
    square = ((x - mean) ** 2).flatten(1).sum(1)
    expected = -square / (2 * variance) - math.log(2 * math.pi * variance)
    # the prior N(0, sigma_max^2 + sigma_data^2) misses the mean by mean / sigma_max
    atol = 2e-2 if isinstance(config, DDPMConfig) else 5e-3
    torch.testing.assert_close(result.nats, expected, rtol=0, atol=atol)
    assert (result.kind, result.dims) == ("exact", 2)
    assert result.dequantisation.startswith("none; model density at sigma")
    assert not result.nats.requires_grad


def test_rows_do_not_see_each_other() -> None:
    x, config = POINTS.float(), ODELikelihood(steps=4)
    whole = ode_log_density(MIXTURE, x, None, Draws.of(range(6)), config, 0.5)
    alone = ode_log_density(MIXTURE, x[3:4], None, Draws.of([3]), config, 0.5)
    torch.testing.assert_close(whole.nats[3:4], alone.nats, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # the divergence needs gradients whatever the caller's mode
        quiet = ode_log_density(MIXTURE, x, None, Draws.of(range(6)), config, 0.5)
    assert torch.equal(quiet.nats, whole.nats)
