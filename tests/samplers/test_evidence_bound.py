"""The evidence lower bound of the optimal DDPM on Gaussian data, against its closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from closed_form import GaussianNetwork, Prescribed, batch_of, path_of, second_moments
from genus.draws import Draws
from genus.objectives.ddpm import DDPM, DDPMConfig
from genus.objectives.phase import LogDensity
from genus.samplers.bound import EvidenceBound, _log_decoder
from genus.samplers.schedules import ddpm_levels

STD = 0.5
ALL = EvidenceBound(terms=0)
SMALL = EvidenceBound(terms=0, variance="small")


def optimal(
    config: DDPMConfig, how: EvidenceBound = ALL
) -> tuple[DDPM, dict[str, GaussianNetwork]]:
    objective = config.build((1, 1, 1), likelihood=how)
    return objective, {"denoiser": GaussianNetwork(path_of(config), STD)}


def bound(config: DDPMConfig, x_0: Tensor, eps: Tensor, how: EvidenceBound = ALL) -> LogDensity:
    """All terms, with the same prescribed eps (rows,) in each of them."""
    names = [f"eps{t}" for t in range(config.timesteps)]
    draws = Prescribed.rows(len(x_0), **dict.fromkeys(names, eps))
    objective, networks = optimal(config, how)
    return objective.log_density(networks, batch_of(x_0, draws=draws))


def decoder_variance(config: DDPMConfig, how: EvidenceBound) -> float:
    """beta_1 = 1 - abar_1, or beta-tilde_2 = beta_2 (1 - abar_1) / (1 - abar_2)."""
    abar = 1 / (1 + ddpm_levels(config.schedule, config.timesteps) ** 2)
    if how.variance == "large":
        return 1 - abar[0].item()
    return ((1 - abar[1] / abar[0]) * (1 - abar[0]) / (1 - abar[1])).item()


def model_variance(config: DDPMConfig, how: EvidenceBound) -> float:
    """Of p_theta(x_0), Gaussian as the chain is linear: Ho et al.'s Algorithm 2, step by step."""
    abar = 1 / (1 + ddpm_levels(config.schedule, config.timesteps) ** 2)
    variance = 1.0
    for t in reversed(range(1, config.timesteps)):
        alpha, before = (abar[t] / abar[t - 1]).item(), abar[t - 1].item()
        beta, now = 1 - alpha, abar[t].item()
        shrink = math.sqrt(now) * STD**2 / (now * STD**2 + 1 - now)  # x_0 = shrink x_t
        mean = math.sqrt(before) * beta / (1 - now) * shrink  # eq. 7
        mean += math.sqrt(alpha) * (1 - before) / (1 - now)
        added = beta if how.variance == "large" else beta * (1 - before) / (1 - now)
        variance = mean**2 * variance + added
    first = abar[0].item()
    shrink = math.sqrt(first) * STD**2 / (first * STD**2 + 1 - first)
    return shrink**2 * variance + decoder_variance(config, how)


configs = pytest.mark.parametrize(
    "config",
    [
        DDPMConfig(prediction=p, schedule=s, timesteps=200)  # type: ignore[arg-type]
        for p in ("epsilon", "v")
        for s in ("linear", "cosine")
    ],
    ids=lambda c: f"{c.prediction}-{c.schedule}",
)


variances = pytest.mark.parametrize("how", [ALL, SMALL], ids=["large", "small"])


@variances
@configs
def test_expected_bound_in_closed_form(config: DDPMConfig, how: EvidenceBound) -> None:
    """KL divergences of Gaussians in the paper's symbols, with the least error of x_0. All terms
    are quadratic in (x_0, eps), so the second-moment quadrature gives its mean exactly."""
    sigma2 = ddpm_levels(config.schedule, config.timesteps) ** 2
    error = STD**2 * sigma2 / (STD**2 + sigma2)
    L_T = ((1 + 1 / sigma2[-1]).log() + (sigma2[-1] + STD**2) / (1 + sigma2[-1]) - 1) / 2
    abar = 1 / (1 + sigma2)
    alpha, before, now = abar[1:] / abar[:-1], abar[:-1], abar[1:]
    beta = 1 - alpha
    posterior = beta * (1 - before) / (1 - now)  # beta-tilde, eq. 7
    reverse = beta if how.variance == "large" else posterior
    distance2 = before * beta**2 / (1 - now) ** 2 * error[1:]  # of the means, eq. 7
    L_t = ((posterior + distance2) / reverse - 1 + (reverse / posterior).log()).sum() / 2
    v = decoder_variance(config, how)
    L_0 = math.log(2 * math.pi * v) / 2 + error[0] / (2 * v)
    x_0, eps = second_moments(STD, 1)
    result = bound(config, x_0, eps, how)
    assert result.nats.mean().item() == pytest.approx(-(L_T + L_t + L_0).item(), rel=1e-8)
    assert (result.kind, result.dims, result.standard_error) == ("lower bound", 1, None)


@variances
@configs
def test_bound_is_below_the_evidence_of_every_point(config: DDPMConfig, how: EvidenceBound) -> None:
    variance = model_variance(config, how)
    assert variance == pytest.approx(STD**2, rel=0.2)
    x = torch.tensor([-1.2, -0.5, 0.0, 0.3, 1.0], dtype=torch.float64)
    x_0 = x.repeat_interleave(2).view(-1, 1, 1, 1)
    eps = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(5)
    found = bound(config, x_0, eps, how).nats.view(5, 2).mean(1)  # exact: quadratic in eps
    evidence = -(x**2) / (2 * variance) - math.log(2 * math.pi * variance) / 2
    assert (found <= evidence).all()
    assert (evidence - found).max() < (0.1 if how is ALL else 1.0)


def test_bound_tightens_with_the_chain() -> None:
    """Mean gap to the data's negative entropy, the best that any model can do."""
    best = -math.log(2 * math.pi * math.e * STD**2) / 2
    x_0, eps = second_moments(STD, 1)
    gaps = [
        best - bound(DDPMConfig(schedule="cosine", timesteps=T), x_0, eps).nats.mean().item()
        for T in (50, 200, 800)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.2


def test_random_terms_agree_with_all_terms() -> None:
    """Expectations over eps, 64 rows of random terms against the closed sum."""
    config = DDPMConfig(timesteps=50)
    x_0, _ = second_moments(STD, 16)
    objective, networks = optimal(config, EvidenceBound(terms=200))
    sampled = objective.log_density(networks, batch_of(x_0))
    assert sampled.standard_error is not None
    repeated = [
        optimal(config)[0].log_density(networks, batch_of(x_0, seed=seed)).nats
        for seed in range(60)
    ]
    everything = torch.stack(repeated)
    # the decoder's own noise is in both; compare means over rows
    error = math.sqrt(
        sampled.standard_error.square().sum().item() / 64**2
        + everything.mean(1).var().item() * (1 + 1 / 60)
    )
    assert abs(sampled.nats.mean().item() - everything.mean().item()) < 3.5 * error
    assert sampled.kind == "lower bound"
    assert "200 random terms" in sampled.dequantisation
    assert 0 < sampled.standard_error.mean().item() < 0.5


def test_discretised_decoder_is_a_distribution() -> None:
    """Its masses over all 256 levels sum to 1, far from the mean too, and none is -inf."""
    levels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    x_0 = levels.double() / 127.5 - 1
    for mean in (-1.3, -0.2, 0.0, 0.997):
        for std in (0.005, 0.3):
            log_p = _log_decoder(levels, x_0, torch.full_like(x_0, mean), std)
            assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
            assert log_p.isfinite().all()


def test_bytes_have_log_masses() -> None:
    """Gaussian data on levels: at most the levels' true mean log mass, and near it."""
    config = DDPMConfig(schedule="cosine", timesteps=1000)
    draws = Draws.of([0], group_size=4096)
    levels = ((STD * draws.normal("x", (1, 1, 1)) + 1) * 127.5).round().clamp(0, 255)
    objective = config.build((1, 1, 1))
    network = GaussianNetwork(path_of(config), STD)
    result = objective.log_density({"denoiser": network}, batch_of(levels.byte(), draws=draws))
    assert result.nats.dtype == torch.float32
    assert "discretised" in result.dequantisation
    edges = (torch.arange(257).double() - 0.5) / 127.5 - 1
    cdf = torch.special.ndtr(edges / STD)
    cdf[0], cdf[-1] = 0, 1
    mass = cdf.diff()
    best = (mass * mass.log()).sum().item()
    mean = result.nats.mean().item()
    assert best - 0.5 < mean < best + 0.06
