"""Losses of optimal networks reach their closed forms, and what all diffusion objectives share."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from closed_form import (
    OBJECTIVES,
    Config,
    GaussianNetwork,
    Prescribed,
    batch_of,
    path_of,
    second_moments,
)
from genus.data.pixels import to_unit
from genus.draws import Draws
from genus.objectives.conditioning import label_of, mean_and_bins
from genus.objectives.ddpm import DDPMConfig
from genus.objectives.edm import EDMConfig
from genus.objectives.flow_matching import FlowMatchingConfig
from genus.objectives.phase import CanLogDensity, CanSample
from genus.samplers.schedules import ddpm_levels

SHAPE = (1, 1, 1)
every_objective = pytest.mark.parametrize("config", OBJECTIVES.values(), ids=OBJECTIVES)


def noise_draws(config: Config, quantiles: Tensor, eps: Tensor) -> Prescribed:
    """The named draws that put row i at quantile i of the training noise."""
    name = "sigma" if isinstance(config, EDMConfig) else "t"
    if isinstance(config, DDPMConfig):
        values = (quantiles * config.timesteps).long()
    elif isinstance(config, FlowMatchingConfig) and config.density == "uniform":
        values = quantiles
    else:
        values = torch.special.ndtri(quantiles)
    return Prescribed.rows(len(eps), eps=eps, **{name: values})


def row_losses(config: Config, network: nn.Module, std: float, quantiles: Tensor) -> Tensor:
    """Exact expected loss at each noise quantile, for data N(0, std^2)."""
    losses = []
    for quantile in quantiles:
        x_0, eps = second_moments(std, 1)
        batch = batch_of(x_0, draws=noise_draws(config, quantile.expand(4), eps))
        losses.append(config.build(SHAPE).phases[0].loss({"denoiser": network}, batch)[0])
    return torch.stack(losses)


QUANTILES = torch.tensor([0.001, 0.1, 0.3, 0.5, 0.8, 0.9985], dtype=torch.float64)


def test_edm_loss_is_one_at_every_noise_level() -> None:
    for sigma_data in (0.5, 1.7):
        config = EDMConfig(sigma_data=sigma_data, P_std=3.0)
        network = GaussianNetwork(path_of(config), sigma_data)
        losses = row_losses(config, network, sigma_data, QUANTILES)
        torch.testing.assert_close(losses, torch.ones_like(losses), rtol=1e-9, atol=0)


def test_edm_loss_is_one_by_monte_carlo() -> None:
    config = EDMConfig()
    rows, dims = 4096, 64
    draws = Draws.of([3], group_size=rows)
    image = 0.5 * Draws.of([4], group_size=rows).normal("x", (1, 8, 8), torch.float64)
    network = GaussianNetwork(path_of(config), 0.5)
    loss, _ = config.build((1, 8, 8)).loss({"denoiser": network}, batch_of(image, draws=draws))
    assert abs(loss.item() - 1) < 4 * math.sqrt(2 / (rows * dims))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_ddpm_loss_floor(schedule: str, prediction: str, std: float) -> None:
    """Var(eps | x_t) = abar s^2 / V and Var(v | x_t) = s^2 / V, V = abar s^2 + 1 - abar, for the
    map (x_0, eps) -> (x_t, v) is a rotation; averaged over every t of the chain."""
    config = DDPMConfig(schedule=schedule, prediction=prediction, timesteps=200)  # type: ignore[arg-type]
    network = GaussianNetwork(path_of(config), std)
    x_0, eps = second_moments(std, 200)
    t = torch.arange(200).repeat_interleave(4)
    batch = batch_of(x_0, draws=Prescribed.rows(800, eps=eps, t=t))
    loss, _ = config.build(SHAPE).loss({"denoiser": network}, batch)
    abar = 1 / (1 + ddpm_levels(config.schedule, 200) ** 2)
    floor = (abar if prediction == "epsilon" else 1) * std**2 / (abar * std**2 + 1 - abar)
    assert loss.item() == pytest.approx(floor.mean().item(), rel=1e-9)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_flow_matching_loss_floor(std: float) -> None:
    """Var(eps - x_0 | x_t) = s^2 / ((1 - t)^2 s^2 + t^2); its integral over t is pi s / 2."""
    config = FlowMatchingConfig(density="uniform")
    network = GaussianNetwork(path_of(config), std)
    t = QUANTILES
    losses = row_losses(config, network, std, t)
    torch.testing.assert_close(losses, std**2 / ((1 - t) ** 2 * std**2 + t**2), rtol=1e-9, atol=0)
    points = 2000
    midpoints = ((torch.arange(points, dtype=torch.float64) + 0.5) / points).repeat_interleave(4)
    x_0, eps = second_moments(std, points)
    batch = batch_of(x_0, draws=noise_draws(config, midpoints, eps))
    loss, _ = config.build(SHAPE).loss({"denoiser": network}, batch)
    assert loss.item() == pytest.approx(math.pi * std / 2, rel=1e-6)


def test_edm_noise_levels_in_training() -> None:
    """ln sigma = P_mean + P_std z, which the network sees as c_noise = ln(sigma) / 4."""
    config = EDMConfig(P_mean=-0.4, P_std=0.9)
    z = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
            seen.append(noise)
            return x

    draws = Prescribed.rows(3, sigma=z, eps=torch.zeros(3))
    image = torch.zeros(3, 1, 1, 1, dtype=torch.float64)
    config.build(SHAPE).loss({"denoiser": Spy()}, batch_of(image, draws=draws))
    torch.testing.assert_close(seen[0], (-0.4 + 0.9 * z) / 4, rtol=1e-12, atol=1e-12)


def test_logit_normal_times() -> None:
    """t is sigmoid(mean + std z): the floor at a prescribed z shows which t it was."""
    config = FlowMatchingConfig(logit_mean=0.7, logit_std=1.3)
    t = torch.sigmoid(0.7 + 1.3 * torch.special.ndtri(QUANTILES))
    losses = row_losses(config, GaussianNetwork(path_of(config), 0.5), 0.5, QUANTILES)
    torch.testing.assert_close(losses, 0.25 / ((1 - t) ** 2 * 0.25 + t**2), rtol=1e-9, atol=0)


@every_objective
def test_the_optimal_network_is_the_minimum_and_gradient_flows(config: Config) -> None:
    network = GaussianNetwork(path_of(config), 0.8)  # not sigma_data: EDM's F is not 0

    def gradient(gain: float) -> Tensor:
        with torch.no_grad():
            network.gain.fill_(gain)
        (g,) = torch.autograd.grad(row_losses(config, network, 0.8, QUANTILES).sum(), network.gain)
        return g

    assert abs(gradient(1.0).item()) < 1e-8
    assert gradient(0.5).item() < -1e-2
    assert gradient(1.5).item() > 1e-2


@every_objective
@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0, 7.0, 90.0])
def test_denoiser_of_the_optimal_network_is_the_posterior_mean(
    config: Config, sigma: float
) -> None:
    """D = m + s^2 / (s^2 + sigma^2) (x - m), between timesteps too; sigma () or (B,)."""
    network = GaussianNetwork(path_of(config), 0.8, means=(0.4, -1.0))
    x = sigma * Draws.of(range(3)).normal("x", (2, 3, 3), torch.float64)
    label = torch.tensor([0, 1, 0])
    m = torch.tensor([0.4, -1.0, 0.4], dtype=torch.float64).view(3, 1, 1, 1)
    expected = m + 0.64 / (0.64 + sigma**2) * (x - m)
    denoiser = config.build((2, 3, 3), 1).denoiser(network)
    level = torch.tensor(sigma, dtype=torch.float64)
    for s in (level, level.repeat(3)):
        torch.testing.assert_close(denoiser(x, s, label), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("timesteps", [10, 1000])
def test_ddpm_timesteps_between_the_grid(timesteps: int) -> None:
    denoiser = DDPMConfig(timesteps=timesteps).build(SHAPE).denoiser(nn.Identity())
    levels = ddpm_levels("linear", timesteps)
    whole = torch.arange(timesteps, dtype=torch.float64)
    torch.testing.assert_close(denoiser.timestep(levels), whole, rtol=0, atol=1e-9)
    halfway = (levels[:-1] * levels[1:]).sqrt()
    torch.testing.assert_close(denoiser.timestep(halfway), whole[:-1] + 0.5, rtol=0, atol=1e-9)
    outside = torch.tensor([1e-9, 1e9], dtype=torch.float64)
    assert denoiser.timestep(outside).tolist() == [0, timesteps - 1]


@every_objective
@pytest.mark.parametrize("micro", [1, 3, 4])
def test_loss_does_not_depend_on_the_micro_batch(config: Config, micro: int) -> None:
    objective = config.build((1, 4, 4), classes=2)
    network = GaussianNetwork(path_of(config), 0.5, means=(0.3, -0.3, 0.0))
    image = 0.7 * Draws.of(range(8)).normal("x", (1, 4, 4), torch.float64)
    batch = batch_of(image, torch.arange(8) % 2)
    whole, metrics = objective.loss({"denoiser": network}, batch)
    total, parts = torch.zeros_like(whole), dict.fromkeys(metrics, 0.0)
    for part in batch.micro_batches(micro):
        loss, values = objective.loss({"denoiser": network}, part)
        total = total + loss * len(part) / 8
        parts = {k: parts[k] + values[k].item() * len(part) / 8 for k in parts}
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=0)
    assert parts == pytest.approx({k: v.item() for k, v in metrics.items()}, rel=1e-12)
    assert not any(value.requires_grad for value in metrics.values())


@every_objective
def test_label_dropout_changes_labels_and_nothing_else(config: Config) -> None:
    image = Draws.of(range(400)).normal("x", (1, 2, 2), torch.float64)
    label = torch.arange(400) % 2
    batch = batch_of(image, label)
    same = GaussianNetwork(path_of(config), 0.5, means=(0.0, 0.0, 0.0))
    apart = GaussianNetwork(path_of(config), 0.5, means=(0.0, 0.0, 5.0))
    for network, differ in ((same, False), (apart, True)):
        losses = [
            replace(config, label_dropout=p)
            .build((1, 2, 2), classes=2)
            .loss({"denoiser": network}, batch)[0]
            for p in (0.0, 0.3)
        ]
        assert (losses[0] != losses[1]).item() == differ
        seen = network.calls[-1][1]
        assert seen is not None
        dropped = seen == 2
        assert 0.22 < dropped.float().mean() < 0.38  # 3.5 standard errors
        assert torch.equal(seen[~dropped], label[~dropped])
        first = network.calls[0][1]
        assert first is not None
        assert torch.equal(first, label)


@every_objective
def test_an_unconditional_network_sees_no_label(config: Config) -> None:
    image = Draws.of(range(4)).normal("x", (1, 2, 2))
    network = GaussianNetwork(path_of(config), 0.5)
    config.build((1, 2, 2)).loss({"denoiser": network}, batch_of(image, torch.zeros(4).long()))
    assert network.calls == [(4, None)]
    with pytest.raises(KeyError, match="no field 'label'"):
        config.build((1, 2, 2), classes=2).loss({"denoiser": network}, batch_of(image))


@every_objective
def test_bytes_and_half_precision(config: Config) -> None:
    """Bytes are scaled to [-1, 1]; half-precision latents and outputs meet float32 arithmetic."""
    objective = config.build((1, 4, 4))
    network = GaussianNetwork(path_of(config), 0.5)
    levels = Draws.of(range(6)).integers("x", 256, (1, 4, 4)).to(torch.uint8)
    loss = objective.loss({"denoiser": network}, batch_of(levels))[0]
    assert torch.equal(loss, objective.loss({"denoiser": network}, batch_of(to_unit(levels)))[0])

    class Half(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
            assert x.dtype == noise.dtype == torch.float32
            out: Tensor = network(x, noise, label)
            return out.bfloat16()

    latents = to_unit(levels).bfloat16()
    half = objective.loss({"denoiser": Half()}, batch_of(latents))[0]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(loss.item(), rel=0.05)


@every_objective
def test_the_contract(config: Config) -> None:
    objective = config.build(SHAPE)
    assert isinstance(objective, CanSample)
    assert isinstance(objective, CanLogDensity)
    (phase,) = objective.phases
    assert (phase.name, phase.trains, phase.every) == ("denoise", ("denoiser",), 1)
    objective.after_step({}, 1)
    assert objective.state_dict() == {}
    objective.load_state_dict({})


def test_noise_bins_add_up_to_the_loss() -> None:
    loss = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    mean, metrics = mean_and_bins(loss, torch.tensor([0.0, 0.3, 0.3, 0.999, 1.0]))
    assert [metrics[f"loss/noise_{i}_of_4"].item() for i in (1, 2, 3, 4)] == pytest.approx(
        [4 / 5, 24 / 5, 0, 96 / 5]
    )
    assert mean == metrics["loss"] == pytest.approx(31 / 5)


def test_label_of_without_dropout_is_the_label_itself() -> None:
    label = torch.tensor([1, 0])
    assert label_of(batch_of(torch.zeros(2, 1, 1, 1), label), 2) is label
