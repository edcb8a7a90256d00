"""The game's losses and regularisers against closed forms, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.draws import Draws
from genus.errors import ConfigError
from genus.loop import TrainConfig
from genus.networks.gan.mlp import MLPGANConfig
from genus.networks.gan.stylegan2 import StyleGAN2Config
from genus.objectives.adversarial import Adversarial, AdversarialConfig
from genus.objectives.generation import Styled, generation_of
from genus.objectives.path_length import PathLength, path_lengths
from genus.objectives.phase import SampleOptions, updates_of

ROWS, DIMS = 6, 3
NOTHING = AdversarialConfig(r1=0.0)


class Linear(nn.Module):
    """D(x) = w.x + b."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w.clone()), nn.Parameter(torch.zeros(1, dtype=w.dtype))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return x.flatten(1) @ self.w + self.b


class Constant(nn.Module):
    """G(z) = theta, whatever z."""

    latent = 2

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.theta.expand(len(z), -1)


def batch_of(vectors: Tensor, position: int = 0, seed: int = 0) -> Batch:
    draws = Draws.of([seed * 1000 + i for i in range(len(vectors))])
    return Batch({"vector": vectors}, torch.arange(len(vectors)), position, draws)


def vectors(rows: int = ROWS, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, DIMS, generator=generator, dtype=torch.float64)


def game(config: AdversarialConfig, w: Tensor, theta: Tensor) -> tuple[dict[str, nn.Module],
                                                                      Adversarial]:  # fmt: skip
    networks: dict[str, nn.Module] = {"discriminator": Linear(w), "generator": Constant(theta)}
    return networks, config.build(networks, tuple(theta.shape), 0)


W = torch.tensor([0.3, -1.2, 0.5], dtype=torch.float64)
THETA = torch.tensor([1.0, 0.2, -0.4], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "judge", "maker"),
    [
        (
            "non-saturating",
            lambda r, f: (1 + (-r).exp()).log() + (1 + f.exp()).log(),
            lambda r, f: (1 + (-f).exp()).log(),
        ),
        ("hinge", lambda r, f: (1 - r).clamp(0) + (1 + f).clamp(0), lambda r, f: -f),
        (
            "relativistic",
            lambda r, f: (1 + (f - r).exp()).log(),
            lambda r, f: (1 + (r - f).exp()).log(),
        ),
    ],
)
def test_losses_are_those_of_the_papers(kind, judge, maker) -> None:  # type: ignore[no-untyped-def]
    networks, objective = game(replace(NOTHING, game=kind), W, THETA)
    x = vectors()
    real, fake = x @ W, THETA @ W
    loss, metrics = objective.discriminator_loss(networks, batch_of(x))
    assert torch.allclose(loss, judge(real, fake).mean(), atol=1e-12)
    assert float(metrics["real_sign"]) == pytest.approx(float(real.sign().mean()))
    assert float(metrics["fake_sign"]) == float(fake.sign())
    loss, _ = objective.generator_loss(networks, batch_of(x))
    assert torch.allclose(loss, maker(real, fake).mean(), atol=1e-12)


@pytest.mark.parametrize("every", [1, 16])
@pytest.mark.parametrize("penalty", ["exact", "finite-difference"])
def test_r1_and_r2_of_a_linear_discriminator(every: int, penalty: str) -> None:
    """gamma/2 |w|^2 each, whether part of each step or k times as large at each k-th; a finite
    difference has that expectation, and is (w.u)^2."""
    gammas = {"r1": 3.0, "r2": 5.0}
    config = AdversarialConfig(**gammas, penalty_every=every, penalty=penalty)  # type: ignore[arg-type]
    rows = 6 if penalty == "exact" else 40_000
    networks, objective = game(config, W, THETA)
    batch = batch_of(vectors(rows))
    expected = 0.5 * (3 + 5) * float(W.square().sum())
    if every == 1:
        bare, _ = game(NOTHING, W, THETA)[1].discriminator_loss(networks, batch)
        found = float(objective.discriminator_loss(networks, batch)[0] - bare)
        assert [p.name for p in objective.phases] == ["discriminator", "generator"]
    else:
        (phase,) = (p for p in objective.phases if p.name == "penalty")
        assert phase.every == every
        found = float(phase.loss(networks, batch)[0]) / every
    assert found == pytest.approx(expected, rel=1e-12 if penalty == "exact" else 0.04)


def test_every_parameter_gets_a_gradient_of_each_of_its_phases() -> None:
    """DDP waits for all; the last bias, which no slope knows, gets zero."""
    config = AdversarialConfig(r1=1.0, r2=1.0, penalty_every=4, path_length=2.0, mixing=0.5)
    networks = small_style()
    objective = config.build(networks, (1, 8, 8), 0)
    batch = images()
    for phase in objective.phases:
        for network in networks.values():
            network.zero_grad(set_to_none=True)
        phase.loss(networks, batch)[0].backward()  # type: ignore[no-untyped-call]
        for name in phase.trains:
            for key, parameter in networks[name].named_parameters():
                assert parameter.grad is not None, (phase.name, key)
        for name in networks.keys() - {*phase.trains, "discriminator"}:
            assert all(p.grad is None for p in networks[name].parameters())


def eigenvalues(gamma: float, kind: str) -> Tensor:
    """Of the flow (-dL_D/dpsi, -dL_G/dtheta) at the equilibrium of the Dirac-GAN: data at 0,
    G = theta, D(x) = psi x (Mescheder et al. 2018, section 2)."""
    config = AdversarialConfig(game=kind, r1=gamma)  # type: ignore[arg-type]

    def flow(point: Tensor) -> Tensor:
        psi, theta = point.clone().requires_grad_()
        networks: Mapping[str, nn.Module] = {
            "discriminator": _Slope(psi),
            "generator": _Place(theta),
        }
        objective = config.build(networks, (1,), 0)
        batch = batch_of(torch.zeros(1, 1, dtype=torch.float64))
        d, _ = objective.discriminator_loss(networks, batch)
        (for_psi,) = torch.autograd.grad(d, psi)
        g, _ = objective.generator_loss(networks, batch)
        (for_theta,) = torch.autograd.grad(g, theta)
        return -torch.stack([for_psi, for_theta])

    steps = 1e-4 * torch.eye(2, dtype=torch.float64)  # the flow's third derivatives are about 1
    columns = [(flow(step) - flow(-step)) / 2e-4 for step in steps]
    return torch.linalg.eigvals(torch.stack(columns, dim=1))


class _Slope(nn.Module):
    def __init__(self, psi: Tensor) -> None:
        super().__init__()
        self.psi = psi
        self.dummy = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.psi * x[:, 0]


class _Place(nn.Module):
    latent = 1

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = theta
        self.dummy = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.theta.expand(len(z), 1)


@pytest.mark.parametrize("kind", ["non-saturating", "relativistic"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 3.0])
def test_eigenvalues_of_the_dirac_gan(gamma: float, kind: str) -> None:
    """-gamma/2 +- sqrt(gamma^2/4 - f'(0)^2) with f' = 1/2: Mescheder et al. 2018, lemma 4.1 and
    appendix. Unregularised they lie on the imaginary axis, where training circles for ever."""
    found = eigenvalues(gamma, kind)
    root = torch.sqrt(torch.tensor(gamma**2 / 4 - 0.25, dtype=torch.complex128))
    expected = torch.stack([-gamma / 2 + root, -gamma / 2 - root])
    order = lambda v: sorted(v.tolist(), key=lambda z: (round(z.real, 9), z.imag))  # noqa: E731
    for a, b in zip(order(found), order(expected), strict=True):
        assert abs(a - b) < 1e-7
    assert (found.real.max() < -1e-3) == (gamma > 0)


def test_penalties_fall_along_a_cosine() -> None:
    config = AdversarialConfig(r1=2.0, penalty_every=4, anneal=100, anneal_to=0.1)
    networks, objective = game(config, W, THETA)
    whole = float(W.square().sum()) * 4
    for position, share in ((0, 1.0), (50, 0.55), (100, 0.1), (999, 0.1)):
        loss, _ = objective.penalty_loss(networks, batch_of(vectors(), position))
        assert float(loss) == pytest.approx(share * whole, rel=1e-12)


@pytest.mark.parametrize("step", [0.5, 0.1, 0.02])
def test_the_finite_difference_is_off_by_the_square_of_its_step(step: float) -> None:
    """Of f(x) = sin(a.x): E[(cos(a.x) sin(s a.u) / s)^2] = cos^2 (1 - exp(-2 s^2 |a|^2)) / 2s^2,
    which is |grad f|^2 (1 - s^2 |a|^2 + ...)."""
    from genus.objectives.gradient_penalty import finite_difference

    generator = torch.Generator().manual_seed(0)
    a = torch.tensor([1.0, -0.5], dtype=torch.float64)
    x = torch.tensor([[0.4, 0.3]], dtype=torch.float64).expand(200_000, 2)
    u = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    found = finite_difference(lambda y: (y @ a).sin().double(), x, u, step).mean()
    size = float(a @ a)
    expected = math.cos(0.25) ** 2 * (1 - math.exp(-2 * step**2 * size)) / (2 * step**2)
    assert float(found) == pytest.approx(expected, rel=0.015)


# ---- style-based generators ----------------------------------------------------------------------


def small_style(**more: int) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    config = StyleGAN2Config(
        latent=8, width=8, mapping_layers=2, channels_base=64, channels_max=8, group=2
    )
    return config.build((1, 8, 8), more.get("classes", 0))


def images(rows: int = 8, classes: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (rows, 1, 8, 8), generator=generator, dtype=torch.uint8)
    fields = {"image": image}
    if classes:
        fields["label"] = torch.arange(rows) % classes
    return Batch(fields, torch.arange(rows), 0, Draws.of(list(range(rows))))


class Affine(nn.Module):
    """Image (B, 1, 2, 2) = A w summed over the layers' styles."""

    layers, noise_size = 3, 0

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, styles: Tensor, noise: Tensor | None) -> Tensor:
        return (styles.sum(1) @ self.a.T).reshape(-1, 1, 2, 2)


def test_path_lengths_of_a_linear_generator() -> None:
    """|A^T y| / sqrt(pixels), for each of the layers the same."""
    torch.manual_seed(0)
    a, y = torch.randn(4, 5).double(), torch.randn(7, 1, 2, 2).double()
    styles = torch.randn(7, 3, 5).double().requires_grad_()
    synthesis = Affine(a)
    found = path_lengths(synthesis(styles, None), styles, y, synthesis)
    assert torch.allclose(found, (y.reshape(7, 4) @ a / 2).norm(dim=1))


def test_the_mean_length_moves_by_its_decay_once_a_step_and_ignores_what_is_not_finite() -> None:
    state = PathLength(decay=0.1)
    first = state.penalty(torch.tensor([1.0, 3.0]))
    assert first.tolist() == [1.0, 9.0]  # against the mean before the step, 0
    state.penalty(torch.tensor([5.0, float("nan")]))  # another micro-batch
    state.update()
    assert float(state.mean) == pytest.approx(0.1 * 3.0)
    state.update()  # a step without lengths
    assert float(state.mean) == pytest.approx(0.3)
    state.penalty(torch.tensor([3.3]))
    state.update()
    assert float(state.mean) == pytest.approx(0.3 + 0.1 * 3.0)
    other = PathLength(decay=0.1)
    other.load_state_dict(state.state_dict())
    assert torch.equal(other.mean, state.mean)
    assert other.penalty(torch.tensor([0.6])) == pytest.approx(0.0, abs=1e-9)


def test_styles_mix_as_often_as_asked_and_cross_anywhere_inside() -> None:
    networks = small_style()
    generation = generation_of(networks, mixing=0.75)
    assert isinstance(generation, Styled)
    draws = Draws.of(list(range(4000)))
    with torch.no_grad():
        styles = generation.mixed_styles(networks["mapping"], draws, None)
    changes = (styles[:, 1:] != styles[:, :-1]).any(2)
    assert changes.sum(1).max() == 1
    share = float(changes.any(1).float().mean())
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4000)
    where = changes.float().mean(0) / share  # uniform over the crossings
    assert (where - 1 / changes.shape[1]).abs().max() < 0.04


def test_truncation_draws_towards_the_mean_style() -> None:
    networks = small_style()
    objective = NOTHING.build(networks, (1, 8, 8), 0)
    draws = Draws.of(list(range(4)))

    def drawn(psi: float | None) -> Tensor:
        with torch.no_grad():
            return objective.sample(networks, draws, None, SampleOptions(truncation=psi))

    assert torch.allclose(drawn(1.0), drawn(None), atol=1e-5)
    synthesis = networks["synthesis"]
    for name, parameter in synthesis.named_parameters():
        if "strength" in name:
            nn.init.zeros_(parameter)  # what is left is of w alone
    same = drawn(0.0)
    assert torch.allclose(same, same[:1].expand_as(same), atol=1e-6)
    between, far = drawn(0.5), drawn(1.0)
    assert (between - same).norm() < (far - same).norm()
    assert objective.plan(SampleOptions(truncation=0.7)).sampler == "truncation 0.7"


def test_a_class_has_a_centre_of_its_own() -> None:
    networks = small_style(classes=3)
    generation = generation_of(networks)
    assert isinstance(generation, Styled)
    mapping = networks["mapping"]
    label = torch.tensor([2, 0, 2])
    with torch.no_grad():
        centres = generation.centre(mapping, label)
        alone = generation.centre(mapping, torch.tensor([0]))
    assert torch.equal(centres[0], centres[2])
    assert torch.equal(centres[1:2], alone)
    assert not torch.allclose(centres[0], centres[1])
    with torch.no_grad():
        list(mapping.parameters())[-1].add_(1)  # in place, as an average is lent
        assert not torch.allclose(generation.centre(mapping, label), centres)


# ---- refusals and bookkeeping --------------------------------------------------------------------


def split(
    config: AdversarialConfig, batch: int, micro: int, group: int, precision: str = "fp32"
) -> None:
    """Check the split of a batch on one process."""
    world = SimpleNamespace(size=1, precision=precision)
    config.check_world(TrainConfig(batch=batch, micro=micro), world, group)  # type: ignore[arg-type]


def test_what_plain_generators_and_groups_can_not_have_is_refused() -> None:
    plain = MLPGANConfig().build((2,), 0)
    with pytest.raises(ConfigError, match="style-based"):
        AdversarialConfig(path_length=2.0).build(plain, (2,), 0)
    with pytest.raises(ConfigError, match="--truncation"):
        NOTHING.build(plain, (2,), 0).plan(SampleOptions(truncation=0.5))
    objective = NOTHING.build(small_style(), (1, 8, 8), 0)
    with pytest.raises(ConfigError, match="multiples of 2"):
        objective.check_rows(3)
    for batch, micro, group, path in (
        (6, 3, 2, 0.0),
        (6, 2, 3, 0.0),
        (7, 0, 1, 2.0),
        (8, 6, 4, 0.0),
    ):
        with pytest.raises(ConfigError, match="looked at together"):
            split(AdversarialConfig(path_length=path), batch, micro, group)
    split(AdversarialConfig(path_length=2.0), 8, 64, 4)
    coarse = AdversarialConfig(penalty="finite-difference", difference_step=0.01)
    split(coarse, 8, 0, 1)
    with pytest.raises(ConfigError, match="rounding"):
        split(coarse, 8, 0, 1, precision="bf16")
    with pytest.raises(ConfigError, match="multiples of 2"):
        objective.discriminator_loss(small_style(), images(3))


def test_lazy_phases_share_the_learning_rate_out() -> None:
    """c = k / (k + 1): Karras et al. 2020, appendix B."""
    config = AdversarialConfig(r1=1.0, penalty_every=16, path_length=2.0, path_length_every=4)
    phases = config.build(small_style(), (1, 8, 8), 0).phases
    assert 1 / updates_of(phases, "discriminator") == pytest.approx(16 / 17)
    assert 1 / updates_of(phases, "synthesis") == pytest.approx(4 / 5)
    assert [phase.name for phase in phases] == [
        "discriminator", "penalty", "generator", "path_length",
    ]  # fmt: skip


def test_each_phase_has_random_numbers_of_its_own_and_rows_do_not_depend_on_the_micro_batch() -> (
    None
):
    networks = small_style()
    objective = replace(NOTHING, mixing=0.9).build(networks, (1, 8, 8), 0)
    whole = images(8)
    halves = list(whole.micro_batches(4))
    for phase in objective.phases:
        loss, _ = phase.loss(networks, whole.scoped(phase.name))
        parts = [phase.loss(networks, half.scoped(phase.name))[0] for half in halves]
        assert torch.allclose(loss, torch.stack(parts).mean(), atol=1e-6)
    draws = whole.draws
    a, b = (objective.generation.draw(networks, draws.scoped(p.name), None)
            for p in objective.phases)  # fmt: skip
    assert not torch.equal(a, b)
