"""Orders of convergence, equivalences between samplers, and moments of what they draw."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from closed_form import (
    OBJECTIVES,
    Config,
    GaussianNetwork,
    MixtureDenoiser,
    Prescribed,
    path_of,
)
from genus.draws import Draws
from genus.objectives.edm import EDMConfig
from genus.objectives.flow_matching import FlowMatchingConfig
from genus.objectives.phase import SampleOptions
from genus.samplers.ancestral import ancestral, ddim
from genus.samplers.denoiser import Denoiser
from genus.samplers.dpm_solver import dpm_solver_pp_2m
from genus.samplers.draw import Method, SamplingConfig, solve
from genus.samplers.ode import euler, heun, heun_churn
from genus.samplers.schedules import ddpm_levels, flow_levels, karras_levels

METHODS = get_args(Method)
MIXTURE = MixtureDenoiser(
    torch.tensor([[-1.0, 0.5], [0.8, 0.9], [0.2, -1.2]], dtype=torch.float64).view(3, 2, 1, 1),
    std=0.3,
)
every_objective = pytest.mark.parametrize("config", OBJECTIVES.values(), ids=OBJECTIVES)


def grid(steps: int) -> Tensor:
    """From sigma 20 to 0.1 in ``steps`` steps, without the final 0."""
    return karras_levels(steps + 1, 0.1, 20.0)[:-1]


def run(method: str, denoiser: Denoiser, sigmas: Tensor, rows: int = 16) -> Tensor:
    draws = Draws.of(range(rows))
    x = sigmas[0] * draws.normal("prior", (2, 1, 1), torch.float64)
    return solve(method, denoiser, x, sigmas, None, draws)


@cache
def exact_solution() -> Tensor:
    """Richardson's extrapolation of Heun: its h^2 error cancels."""
    return (4 * run("heun", MIXTURE, grid(512)) - run("heun", MIXTURE, grid(256))) / 3


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("dpm++2m", 2)])
def test_order_of_convergence(method: str, order: int) -> None:
    errors = [
        (run(method, MIXTURE, grid(n)) - exact_solution()).norm().item() for n in (64, 128, 256)
    ]
    slopes = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert slopes == pytest.approx([order, order], abs=0.12)


def test_dpm_solver_pp_2m_by_hand() -> None:
    """Lu et al. 2022b, Algorithm 2, two uneven steps with D = sigma. (A wrong r can't be seen in
    the order of convergence: its errors, (h^2 - h_old^2) D' / 2, telescope over the grid.)"""

    class Level(MixtureDenoiser):
        def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
            return sigma.expand_as(x)

    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    r = math.log(2) / math.log(3)  # h_old / h, for steps 8 -> 4 -> 4/3
    first = 4 / 8 * 1 + (1 - 4 / 8) * 8
    D = (1 + 1 / (2 * r)) * 4 - 1 / (2 * r) * 8
    second = 1 / 3 * first + (1 - 1 / 3) * D
    sigmas = torch.tensor([8.0, 4.0, 4 / 3], dtype=torch.float64)
    found = dpm_solver_pp_2m(Level(MIXTURE.means), x, sigmas)
    assert found.item() == pytest.approx(second, rel=1e-12)


def test_ddim_is_euler_is_flow_matching_euler() -> None:
    """Three published forms of the first-order step: in sigma, DDIM's, and rectified flow's in t
    (x_t' = x_t + (t' - t) v), on flow matching's own grid."""
    sigmas = flow_levels(30, 0.95)
    a, b = run("euler", MIXTURE, sigmas), run("ddim", MIXTURE, sigmas)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    draws = Draws.of(range(16))
    times = (sigmas / (1 + sigmas)).tolist()
    x = times[0] * draws.normal("prior", (2, 1, 1), torch.float64)
    for t, following in pairwise(times):
        sigma = torch.tensor(t / (1 - t), dtype=torch.float64)
        x = x + (following - t) * (x - MIXTURE(x / (1 - t), sigma)) / t
    torch.testing.assert_close(a, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ancestral_is_ho_et_als_algorithm_2(schedule: str) -> None:
    """The whole chain in the paper's own coordinates and symbols, with the same noise."""
    T = 40
    sigma = ddpm_levels(schedule, T)  # type: ignore[arg-type]
    abar = 1 / (1 + sigma**2)
    draws = Draws.of(range(5))
    x = (draws.normal("prior", (2, 1, 1), torch.float64)) * (1 - abar[-1]).sqrt()
    for t in reversed(range(T)):
        alpha = abar[t] / abar[t - 1] if t else abar[0]
        beta = 1 - alpha
        x_0 = MIXTURE(x / abar[t].sqrt(), sigma[t])
        eps = (x - abar[t].sqrt() * x_0) / (1 - abar[t]).sqrt()
        x = (x - beta / (1 - abar[t]).sqrt() * eps) / alpha.sqrt()
        if t:
            z = draws.normal(f"ancestral{T - 1 - t}", (2, 1, 1), torch.float64)
            x = x + (beta * (1 - abar[t - 1]) / (1 - abar[t])).sqrt() * z
    sigmas = torch.cat([sigma.flip(0), sigma.new_zeros(1)])
    start = sigma[-1] * draws.normal("prior", (2, 1, 1), torch.float64)
    ours = ancestral(MIXTURE, start, sigmas, draws=draws)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def moments(sampler: str, sigmas: Tensor, mean: float, std: float) -> tuple[float, float]:
    """Exact mean and variance of a sampler's output for data N(mean, std^2).

    The sampler is affine in its noise: row 0 runs without any, row i with the i-th source at 1, so
    the differences are its impulse responses and their squares add up to the variance.
    """
    steps = len(sigmas) - 1
    names = [f"{kind}{i}" for i in range(steps) for kind in ("churn", "ancestral")]
    rows = len(names) + 2
    unit = torch.eye(rows, dtype=torch.float64)
    draws = Prescribed.rows(rows, **{name: unit[i + 2] for i, name in enumerate(names)})
    start = math.hypot(sigmas[0].item(), std)  # the data's exact law at that noise level
    x = (mean + start * unit[1]).view(-1, 1, 1, 1)
    data = MixtureDenoiser(torch.tensor([mean], dtype=torch.float64).view(1, 1, 1, 1), std)
    if sampler == "heun-churn":
        out = heun_churn(data, x, sigmas, draws=draws, S_churn=80.0, S_tmin=0, S_noise=1.0)
    elif sampler == "ddim-half":
        out = ddim(data, x, sigmas, draws=draws, eta=0.5)
    else:
        out = solve(sampler, data, x, sigmas, None, draws)
    out = out.flatten()
    return out[0].item(), (out[1:] - out[0]).square().sum().item()


@pytest.mark.parametrize("sampler", [*METHODS, "ddim-half"])
def test_samplers_reproduce_a_gaussian(sampler: str) -> None:
    """Mean and variance to within the step's error, which falls as the steps double."""
    mean, std = 0.7, 0.4
    errors = []
    for steps in (100, 200):
        m, variance = moments(sampler, karras_levels(steps, 1e-4, 80.0), mean, std)
        assert m == pytest.approx(mean, abs=1e-2)
        assert variance == pytest.approx(std**2, rel=0.15)
        errors.append(abs(variance - std**2))
    assert errors[1] < 0.6 * errors[0]


def test_stochastic_samplers_use_their_noise() -> None:
    """Without it their variance would be far too small."""
    sigmas = karras_levels(100, 0.002, 200.0)
    for sampler in ("ancestral", "heun-churn"):
        quiet = moments("euler", sigmas, 0.0, 0.4)[1]
        assert moments(sampler, sigmas, 0.0, 0.4)[1] == pytest.approx(quiet, rel=0.15)
    draws = Prescribed.rows(
        4, **{f"{k}{i}": torch.zeros(1) for k in ("churn", "ancestral") for i in range(100)}
    )
    data = MixtureDenoiser(torch.zeros(1, 1, 1, 1, dtype=torch.float64), 0.4)
    x = sigmas[0] * torch.ones(4, 1, 1, 1, dtype=torch.float64)
    assert heun_churn(data, x, sigmas, draws=draws).abs().max() < 0.3  # 0.4 for plain Heun
    assert ancestral(data, x, sigmas, draws=draws).abs().max() < 1e-2


def test_churn_without_churn_is_heun_and_its_limits() -> None:
    sigmas = karras_levels(20, 0.01, 80.0)
    x = 80 * Draws.of(range(3)).normal("prior", (2, 1, 1), torch.float64)
    draws = Prescribed.rows(3)  # has no noise to give: asking for any is an error
    plain = heun(MIXTURE, x, sigmas)
    assert torch.equal(heun_churn(MIXTURE, x, sigmas, draws=draws, S_churn=0), plain)
    assert torch.equal(heun_churn(MIXTURE, x, sigmas, draws=draws, S_tmin=100.0), plain)
    assert torch.equal(heun_churn(MIXTURE, x, sigmas, draws=draws, S_tmax=0.001), plain)


def test_churn_raises_the_noise_level_by_gamma() -> None:
    """gamma = min(S_churn / N, sqrt 2 - 1), and the noise added is S_noise sqrt(sh^2 - s^2)."""
    sigmas = torch.tensor([10.0, 0.0], dtype=torch.float64)
    seen: list[tuple[float, float]] = []

    class Spy(MixtureDenoiser):
        def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
            seen.append((x.item(), sigma.item()))
            return super().__call__(x, sigma, label)

    spy = Spy(torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    for churn, gamma in ((0.1, 0.1), (9.0, math.sqrt(2) - 1)):
        draws = Prescribed.rows(1, churn0=torch.ones(1))
        x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        heun_churn(spy, x, sigmas, draws=draws, S_churn=churn, S_noise=2.0)
        raised = 10 * (1 + gamma)
        assert seen.pop() == pytest.approx((2 * math.sqrt(raised**2 - 100), raised))


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [(euler, 6), (heun, 11), (dpm_solver_pp_2m, 6)],
    ids=["euler", "heun", "dpm_solver_pp_2m"],
)
def test_network_calls_and_labels(sampler: object, calls: int) -> None:
    """NFE as published: Heun 2N - 1, the others N; a label picks its component."""
    assert callable(sampler)
    denoiser = MixtureDenoiser(MIXTURE.means, std=0.01)
    x = 80 * Draws.of(range(4)).normal("prior", (2, 1, 1), torch.float64)
    out = sampler(denoiser, x, karras_levels(6, 0.002, 80.0), torch.tensor([0, 1, 2, 1]))
    assert len(denoiser.calls) == calls
    assert (out - MIXTURE.means[[0, 1, 2, 1]]).abs().max() < 0.1


@every_objective
@pytest.mark.parametrize("method", METHODS)
def test_every_objective_samples_with_every_method(config: Config, method: str) -> None:
    """Data N(m, s^2) come back: 2,048 rows, so 4 standard errors and the steps' own error."""
    objective = config.build((1, 2, 2), classes=1)
    network = GaussianNetwork(path_of(config), 0.4, means=(0.3, 0.0))
    draws = Draws.of([1], group_size=2048)
    options = SampleOptions(steps=50, method=method)
    x = objective.sample({"denoiser": network}, draws, torch.zeros(2048).long(), options)
    assert x.shape == (2048, 1, 2, 2)
    assert x.dtype == torch.float32
    assert not x.requires_grad
    assert x.mean().item() == pytest.approx(0.3, abs=0.025)
    # ancestral steps narrow the data, by a share that falls as 1 / steps
    assert x.std().item() == pytest.approx(0.4, rel=0.15 if method == "ancestral" else 0.06)


@every_objective
@pytest.mark.parametrize("method", METHODS)
def test_a_sample_is_its_seeds_alone(config: Config, method: str) -> None:
    """Batches of 1, 4 and 16 and another order: bitwise the same sample i."""
    objective = config.build((1, 4, 4), classes=3)
    network = GaussianNetwork(path_of(config), 0.4, means=(0.3, -0.2, 0.1, 0.0))
    options = SampleOptions(steps=6, method=method, guidance=1.5)
    label = torch.arange(16) % 3

    def sample(rows: list[int]) -> Tensor:
        return objective.sample({"denoiser": network}, Draws.of(rows), label[rows], options)

    whole = sample(list(range(16)))
    assert len(whole.unique(dim=0)) == 16
    for rows in ([[i] for i in range(16)], [list(range(i, i + 4)) for i in range(0, 16, 4)]):
        assert torch.equal(torch.cat([sample(part) for part in rows]), whole)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(sample(order), whole[order])
    windows = Draws.of([5], group_size=16)
    both = [
        objective.sample({"denoiser": network}, windows.window(*w), None, options)
        for w in ((0, 7), (7, 16))
    ]
    one = objective.sample({"denoiser": network}, windows, None, options)
    assert torch.equal(torch.cat(both), one)


def test_options_override_the_defaults() -> None:
    config = EDMConfig()
    network = GaussianNetwork(path_of(config), 0.4, means=(0.3, 0.0))
    objective = config.build((1, 2, 2), 1, SamplingConfig(method="euler", steps=5, guidance=2.0))
    draws, label = Draws.of(range(3)), torch.zeros(3).long()

    def calls(options: SampleOptions) -> list[int]:
        network.calls.clear()
        objective.sample({"denoiser": network}, draws, label, options)
        return [rows for rows, _ in network.calls]

    assert calls(SampleOptions()) == [6] * 5  # guided: both halves in one call
    assert calls(SampleOptions(steps=3)) == [6] * 3
    assert calls(SampleOptions(guidance=1.0, method="heun")) == [3] * 9
    weaker = {"denoiser": GaussianNetwork(path_of(config), 0.6, means=(0.3, 0.0))}
    assert calls(SampleOptions(guide=weaker)) == [3] * 5
    assert len(weaker["denoiser"].calls) == 5
    with pytest.raises(ValueError, match="no sampling method 'hein'; there are: euler, heun"):
        calls(SampleOptions(method="hein"))
    with pytest.raises(ValueError, match="at least 1"):
        calls(SampleOptions(steps=0))


def test_flow_denoiser_starts_where_its_grid_does() -> None:
    objective = FlowMatchingConfig().build((1, 1, 1))
    denoiser = objective.denoiser(torch.nn.Identity())
    assert denoiser.noise_levels(7)[0].item() == pytest.approx(denoiser.sigma_max)


@every_objective
def test_grids_start_at_sigma_max_and_end_at_zero(config: Config) -> None:
    denoiser = config.build((1, 1, 1)).denoiser(torch.nn.Identity())
    assert isinstance(denoiser.sigma_min, float)
    for steps in (1, 2, 10):
        levels = denoiser.noise_levels(steps)
        assert levels.shape == (steps + 1,)
        assert levels.dtype == torch.float64
        assert levels[0].item() == pytest.approx(denoiser.sigma_max)
        assert levels[-1] == 0
        assert (levels.diff() < 0).all()
