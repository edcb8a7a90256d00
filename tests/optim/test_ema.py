"""Power-function EMA: its profile, and the reconstruction of any width from two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.integrate import quad
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.optim.ema import (
    EMA,
    PlainEMAConfig,
    PowerEMAConfig,
    gamma_of,
    profile_product,
    reconstruct,
    solve_weights,
)
from genus.strategies.data_parallel import Whole

WIDTHS = (0.05, 0.10)


class Weights(nn.Module):
    """Nothing but a vector of weights."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start)


def tracked(config: PowerEMAConfig | PlainEMAConfig, path: Tensor, batch: int) -> EMA:
    """An EMA that has followed ``path`` (steps, dim), one row a step of ``batch`` samples."""
    network = Weights(torch.zeros_like(path[0]))
    ema = EMA(config, Whole({"net": network}))
    for step, row in enumerate(path, start=1):
        with torch.no_grad():
            network.w.copy_(row)
        ema.update(step * batch, batch)
    return ema


# ---- the profile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 1.0, 6.94, 16.97, 100.0])
def test_gamma_is_the_inverse_of_the_width(gamma: float) -> None:
    width = np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
    assert gamma_of(width) == pytest.approx(gamma, rel=1e-9)
    # and that width is the standard deviation of the profile (gamma + 1) tau^gamma on [0, 1]
    first, second = (quad(lambda t, k=k: (gamma + 1) * t ** (gamma + k), 0, 1)[0] for k in (1, 2))
    assert np.sqrt(second - first**2) == pytest.approx(width, rel=1e-6)


def test_published_exponents() -> None:
    """Karras et al. 2024, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.2887, 1.0, float("nan")])
def test_impossible_widths(width: float) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        gamma_of(width)
    with pytest.raises(ConfigError, match=r"ema\.widths"):
        PowerEMAConfig(widths=(0.05, width))


def test_widths_must_differ() -> None:
    for widths in ((), (0.05, 0.05)):
        with pytest.raises(ConfigError, match="different widths"):
            PowerEMAConfig(widths=widths)


@pytest.mark.parametrize("width", WIDTHS)
def test_update_is_exactly_the_discrete_profile(width: float) -> None:
    """Step k has weight (k^(g+1) - (k-1)^(g+1)) / n^(g+1): the profile's integral over the step."""
    path = torch.randn(50, 3, dtype=torch.float64)
    ema = tracked(PowerEMAConfig(widths=(width,)), path, batch=8)
    edges = (torch.arange(51, dtype=torch.float64) / 50) ** (gamma_of(width) + 1)
    expected = edges.diff() @ path
    assert torch.allclose(ema.averages[f"{width:.3f}"][0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("width", WIDTHS)
def test_update_tends_to_the_integral_as_the_batch_shrinks(width: float) -> None:
    """Of theta(tau) = tau^2 at t = 1 the profile's integral is (g + 1) / (g + 3)."""
    gamma = gamma_of(width)
    exact, errors = (gamma + 1) / (gamma + 3), []
    for steps in (200, 400, 800):
        path = (torch.arange(1, steps + 1, dtype=torch.float64)[:, None] / steps) ** 2
        ema = tracked(PowerEMAConfig(widths=(width,)), path, batch=1)
        errors.append(abs(float(ema.averages[f"{width:.3f}"][0]) - exact))
    assert errors[2] < 2e-3
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)  # first order in the batch
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_profile_product_is_the_inner_product_of_the_profiles() -> None:
    def profile(tau: float, t: float, gamma: float) -> float:
        return (gamma + 1) / t * (tau / t) ** gamma if tau <= t else 0.0

    for t_a, t_b in ((0.7, 1.0), (1.0, 0.3), (1.0, 1.0)):
        for gamma_a, gamma_b in ((1.0, 6.94), (6.94, 16.97), (3.0, 3.0)):
            parts = [np.array(x) for x in (t_a, gamma_a, t_b, gamma_b)]
            numerical = quad(
                lambda tau, a=(t_a, gamma_a), b=(t_b, gamma_b): profile(tau, *a) * profile(tau, *b),
                0,
                min(t_a, t_b),
            )[0]
            assert profile_product(*parts) == pytest.approx(numerical, rel=1e-7)


# ---- reconstruction ------------------------------------------------------------------------------


def training_path(steps: int, dim: int) -> Tensor:
    """Weights that drift while they settle, and walk at random."""
    generator = torch.Generator().manual_seed(1)
    progress = torch.arange(1, steps + 1, dtype=torch.float64)[:, None] / steps
    directions = torch.randn(3, dim, generator=generator, dtype=torch.float64)
    drift = directions[0] * progress.sqrt() + directions[1] * torch.exp(-4 * progress)
    walk = torch.randn(steps, dim, generator=generator, dtype=torch.float64).cumsum(0)
    return directions[2] + drift + 0.3 * walk / steps**0.5


STEPS, BATCH, CADENCE, DIM = 4096, 16, 128, 400
"""32 snapshots of two widths. Times below are in samples."""


def profile_weights(width: float, step: int) -> NDArray[np.float64]:
    edges = (np.arange(step + 1) / step) ** (gamma_of(width) + 1)
    return np.diff(edges)


def exact_ema(path: Tensor, width: float, step: int) -> Tensor:
    """What an EMA of this width, had it been tracked, would be after ``step`` steps."""
    return torch.from_numpy(profile_weights(width, step)) @ path[:step]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A folder of snapshots written while training, and the weights' path."""
    folder, path = tmp_path_factory.mktemp("snapshots"), training_path(STEPS, DIM)
    network = Weights(path[0].float())
    ema = EMA(
        PowerEMAConfig(widths=WIDTHS, snapshot_every=CADENCE * BATCH), Whole({"net": network})
    )
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            network.w.copy_(path[step - 1])
        ema.update(step * BATCH, BATCH)
        if step % CADENCE == 0:
            ema.snapshot(folder, step * BATCH)
    return folder, path


def error(found: Tensor, expected: Tensor, path: Tensor) -> float:
    """Root mean square error relative to how far the average lies from the weights themselves."""
    scale = (expected - path[-1]).square().mean().sqrt()
    return float((found.double() - expected).square().mean().sqrt() / scale)


@pytest.mark.parametrize(
    ("width", "bound"),
    [(0.04, 0.02), (0.05, 0.008), (0.07, 0.005), (0.10, 0.005), (0.14, 0.005), (0.20, 0.012)],
)
@pytest.mark.parametrize("step", [STEPS // 2, STEPS])
def test_post_hoc_reconstruction_from_files(
    snapshots: tuple[Path, Tensor], width: float, step: int, bound: float
) -> None:
    """Half-precision files: within 0.5 % between the stored widths, 2 % a good way outside."""
    folder, path = snapshots
    found = reconstruct(folder, width, step * BATCH)["net.w"]
    assert found.dtype == torch.float32
    assert error(found, exact_ema(path, width, step), path[:step]) < bound


@pytest.mark.parametrize(
    ("width", "bound"), [(0.04, 5e-4), (0.07, 1e-4), (0.10, 1e-12), (0.14, 2e-4), (0.20, 3e-3)]
)
def test_post_hoc_reconstruction_of_exact_snapshots(
    snapshots: tuple[Path, Tensor], width: float, bound: float
) -> None:
    """Without rounding only the profiles' own error is left: within 0.01 % between the widths."""
    _, path = snapshots
    steps = [s for s in range(CADENCE, STEPS + 1, CADENCE) for _ in WIDTHS]
    widths = [w for _ in range(CADENCE, STEPS + 1, CADENCE) for w in WIDTHS]
    weights = solve_weights([s * BATCH for s in steps], widths, STEPS * BATCH, width)
    found = torch.zeros(DIM, dtype=torch.float64)
    for weight, s, w in zip(weights, steps, widths, strict=True):
        found += weight * exact_ema(path, w, s)
    assert error(found, exact_ema(path, width, STEPS), path) < bound


def test_a_stored_width_is_reconstructed_by_itself() -> None:
    times, widths = [512, 512, 1024, 1024], [0.05, 0.1, 0.05, 0.1]
    weights = solve_weights(times, widths, 1024, 0.1)
    assert np.allclose(weights, [0, 0, 0, 1], atol=1e-9)
    assert solve_weights(times, widths, 1024, 0.07).sum() == pytest.approx(1, abs=1e-12)


def test_reconstruction_takes_no_snapshot_from_later(
    snapshots: tuple[Path, Tensor], tmp_path: Path
) -> None:
    folder, _ = snapshots
    step = 1024
    for file in folder.iterdir():
        if int(file.stem.rpartition("-")[2]) <= step * BATCH:
            (tmp_path / file.name).symlink_to(file)
    alone = reconstruct(tmp_path, 0.07)["net.w"]
    assert torch.equal(reconstruct(folder, 0.07, step * BATCH)["net.w"], alone)


def test_missing_snapshots_are_an_error(tmp_path: Path, snapshots: tuple[Path, Tensor]) -> None:
    with pytest.raises(ValueError, match="no snapshots"):
        reconstruct(tmp_path / "none", 0.07)
    save_file({"net.w": torch.zeros(1)}, tmp_path / "plain-000000000016.safetensors")
    with pytest.raises(ValueError, match="no snapshots"):
        reconstruct(tmp_path, 0.07)
    with pytest.raises(ValueError, match="no snapshots"):
        reconstruct(snapshots[0], 0.07, BATCH)  # before the first one
    with pytest.raises(ValueError, match="must lie between"):
        reconstruct(snapshots[0], 0.5)


def test_a_width_of_more_than_three_decimals_keeps_its_name(tmp_path: Path) -> None:
    config = PowerEMAConfig(widths=(0.0625, 0.062, 0.05))
    assert config.labels() == ["0.0625", "0.062", "0.050"]
    ema = EMA(config, Whole({"net": Weights(torch.ones(1))}))
    ema.snapshot(tmp_path, 64)
    names = sorted(file.stem.rpartition("-")[0] for file in tmp_path.iterdir())
    assert sorted(map(float, names)) == [0.05, 0.062, 0.0625]


# ---- the averages as an object -------------------------------------------------------------------


def test_plain_ema_halves_in_a_half_life() -> None:
    config = PlainEMAConfig(half_life=64, rampup=0.0)
    path = torch.cat([torch.ones(1, 1), torch.zeros(64, 1)]).double()
    network = Weights(path[0].clone())
    ema = EMA(config, Whole({"net": network}))
    with torch.no_grad():
        network.w.zero_()
    for step in range(1, 17):
        ema.update(step * 8, 8)  # 128 samples: two half-lives
    assert float(ema.averages["plain"][0]) == pytest.approx(0.25, rel=1e-12)


def test_plain_ema_forgets_the_start_with_a_ramp() -> None:
    """EDM's ramp-up: the half-life is at most 5 % of the training so far."""
    config = PlainEMAConfig(half_life=10_000, rampup=0.05)
    assert config.decays(1000, 10) == [pytest.approx(0.5 ** (10 / 50))]
    assert config.decays(1_000_000, 10) == [pytest.approx(0.5 ** (10 / 10_000))]


def test_averages_follow_training_in_place_and_are_lent() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    layout = Whole({"net": network})
    ema = EMA(PowerEMAConfig(widths=WIDTHS), layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(1, 6):
        network(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        ema.update(step * 4, 4)
    live = {key: value.clone() for key, value in network.state_dict().items()}
    with ema.applied("0.050"):
        lent = dict(network.state_dict())
        for key, value in zip(layout.live, ema.averages["0.050"], strict=True):
            assert torch.equal(lent[key.removeprefix("net.")], value)
        assert not torch.equal(lent["0.weight"], live["0.weight"])
    with pytest.raises(RuntimeError, match="mat1"), ema.applied():
        network(torch.zeros(4, 7))  # an evaluation that fails gives the weights back, too
    assert all(torch.equal(value, live[key]) for key, value in network.state_dict().items())


def test_state_round_trip_continues_to_the_bit() -> None:
    path = torch.randn(20, 5)
    whole, first = (tracked(PowerEMAConfig(widths=WIDTHS), path[:n], 4) for n in (20, 10))
    network = Weights(torch.zeros(5))
    second = EMA(PowerEMAConfig(widths=WIDTHS), Whole({"net": network}))
    second.load_state_dict(first.state_dict())
    for step in range(11, 21):
        with torch.no_grad():
            network.w.copy_(path[step - 1])
        second.update(step * 4, 4)
    for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        assert torch.equal(a, b)


def test_narrow_weights_are_averaged_in_float32() -> None:
    network = Weights(torch.zeros(3)).bfloat16()
    ema = EMA(PlainEMAConfig(half_life=1000, rampup=0.0), Whole({"net": network}))
    with torch.no_grad():
        network.w.fill_(1.0)
    for step in range(1, 101):
        ema.update(step, 1)
    expected = 1 - 0.5 ** (100 / 1000)
    assert ema.averages["plain"][0].dtype == torch.float32
    assert torch.allclose(ema.averages["plain"][0], torch.tensor(expected), atol=1e-6)
    with ema.applied():
        assert network.w.dtype == torch.bfloat16


def test_a_half_life_can_grow_along_half_a_cosine() -> None:
    """As R3GAN's: 0 at the start, there after ``grows`` samples."""
    config = PlainEMAConfig(half_life=1000, rampup=0.0, grows=100)
    for samples, half_life in ((50, 500.0), (100, 1000.0), (900, 1000.0)):
        assert config.decays(samples, 10) == [pytest.approx(0.5 ** (10 / half_life))]
