"""Every bijection and every flow: inverse, log-determinant, gradients, saving, densities."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from genus.networks.flows.autoregressive import MaskedAutoregressive
from genus.networks.flows.bijection import Bijection, Chain, Split
from genus.networks.flows.conditioners import MLP, ConvNet, ConvPrior, ResNet
from genus.networks.flows.coupling import Coupling, MaskedCoupling, checkerboard
from genus.networks.flows.dequantiser import DequantiserConfig
from genus.networks.flows.elementwise import Additive, Affine, Elementwise, RationalQuadratic
from genus.networks.flows.image import GlowConfig, NICEConfig, RealNVPConfig
from genus.networks.flows.linear import ActNorm, InvertibleLinear, Permutation, initialise
from genus.networks.flows.pixels import Logit, NormalCDF
from genus.networks.flows.reshape import Shape, Squeeze
from genus.networks.flows.tarflow import TarFlowConfig
from genus.networks.flows.vector import VectorFlowConfig

F = 3  # features of a context
IMAGE, VECTOR = (2, 4, 4), (5,)
Make = Callable[[int], Bijection]
"""Features of the context (0: none) -> a bijection."""


def mlp(features: int) -> Callable[[int, int], torch.nn.Module]:
    return partial(MLP, width=16, depth=2, features=features)


def conv(features: int) -> Callable[[int, int], torch.nn.Module]:
    return partial(ConvNet, width=8, features=features)


def resnet(features: int) -> Callable[[int, int], torch.nn.Module]:
    return partial(ResNet, width=8, blocks=1, features=features)


BIJECTIONS: dict[str, tuple[tuple[int, ...], Make]] = {
    "additive coupling": (VECTOR, lambda f: Coupling(5, Additive(), mlp(f))),
    "affine coupling": (VECTOR, lambda f: Coupling(5, Affine(), mlp(f), second=False)),
    "glow coupling": (IMAGE, lambda f: Coupling(2, Affine("glow"), conv(f))),
    "spline coupling": (VECTOR, lambda f: Coupling(5, RationalQuadratic(6, 2.0), mlp(f))),
    "spline coupling of images": (IMAGE, lambda f: Coupling(2, RationalQuadratic(4), conv(f))),
    "spline coupling of both halves": (
        IMAGE,
        lambda f: Coupling(2, RationalQuadratic(4), conv(f), both=True),
    ),
    "checkerboard coupling": (
        IMAGE,
        lambda f: MaskedCoupling(checkerboard(2, 4, 4, even=True), Affine(), resnet(f)),
    ),
    "actnorm": (IMAGE, lambda f: ActNorm(2)),
    "invertible 1x1": (IMAGE, lambda f: InvertibleLinear(2)),
    "invertible matrix": (VECTOR, lambda f: InvertibleLinear(5)),
    "logit": (IMAGE, lambda f: Logit(0.05)),
    "normal cdf": (VECTOR, lambda f: NormalCDF()),
    "permutation": (VECTOR, lambda f: Permutation(torch.tensor([3, 1, 4, 0, 2]))),
    "squeeze": (IMAGE, lambda f: Squeeze()),
    "split": (
        IMAGE,
        lambda f: Split(Chain([ActNorm(1), Shape(1, 4, 4)]), Coupling(2, Affine(), ConvPrior)),
    ),
    "masked autoregressive": (VECTOR, lambda f: MaskedAutoregressive(5, Affine(), [16, 16], f)),
    "masked spline": (VECTOR, lambda f: MaskedAutoregressive(5, RationalQuadratic(5), [16], f)),
}
FLOWS: dict[str, tuple[tuple[int, ...], Make]] = {
    **{
        kind: (
            VECTOR,
            lambda f, kind=kind: VectorFlowConfig(kind=kind, layers=3, width=16).build(  # type: ignore[misc]
                dims=5, features=f
            ),
        )
        for kind in ("nice", "realnvp", "nsf", "maf", "maf-nsf")
    },
    "nice of images": (
        IMAGE,
        lambda f: NICEConfig(width=16, depth=2).build(channels=2, resolution=4, features=f),
    ),
    "realnvp of images": (
        IMAGE,
        lambda f: RealNVPConfig(width=8, blocks=1).build(channels=2, resolution=4, features=f),
    ),
    "glow": (
        IMAGE,
        lambda f: GlowConfig(steps=2, levels=2, width=8).build(
            channels=2, resolution=4, features=f
        ),
    ),
    "glow, additive": (
        IMAGE,
        lambda f: GlowConfig(
            steps=2, levels=1, width=8, coupling="additive", learned_prior=False
        ).build(channels=2, resolution=4, features=f),
    ),
    "tarflow": (
        IMAGE,
        lambda f: TarFlowConfig(patch=2, width=16, blocks=2, layers=2, head_width=8).build(
            channels=2, resolution=4, features=f
        ),
    ),
    "tarflow of many patches": (
        IMAGE,
        lambda f: TarFlowConfig(patch=1, width=64, blocks=2, layers=2, head_width=32).build(
            channels=2, resolution=4, features=f
        ),
    ),
}
ALL = BIJECTIONS | FLOWS
BOUNDED = ("logit",)
"""Those that take numbers in (-1, 1) only."""
CASES = [(name, features) for name in ALL for features in (0, F)]


@pytest.fixture(autouse=True)
def exact() -> object:
    """float64 by default, and a seed."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(name: str, features: int = 0) -> tuple[Bijection, Tensor, Tensor | None]:
    """A bijection with random weights (they start at the identity), data and a context."""
    shape, build = ALL[name]
    flow = build(features)
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(6, *shape)
    x = x.tanh() if name in BOUNDED else x
    return flow, x, torch.randn(6, features) if features else None


@pytest.mark.parametrize(("name", "features"), CASES)
def test_inverse(name: str, features: int) -> None:
    flow, x, context = make(name, features)
    y, log_det = flow(x, context)
    assert log_det.shape == (6,)
    assert (flow.inverse(y, context) - x).abs().max() < 1e-10
    if name == "normal cdf":
        return  # what follows leaves its range
    z = y + 0.1 * torch.randn_like(y)
    assert (flow(flow.inverse(z, context), context)[0] - z).abs().max() < 1e-9


@pytest.mark.parametrize(("name", "features"), CASES)
def test_log_determinant(name: str, features: int) -> None:
    flow, x, context = make(name, features)
    _, log_det = flow(x, context)
    for row in range(3):
        own = None if context is None else context[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda one, own=own: flow(one[None], own)[0].flatten(), x[row]
        ).flatten(1)
        expected = torch.linalg.slogdet(jacobian.reshape(len(jacobian), -1)).logabsdet
        assert abs(log_det[row] - expected) < 1e-8


@pytest.mark.parametrize(("name", "features"), CASES)
def test_every_parameter_has_a_gradient(name: str, features: int) -> None:
    flow, x, context = make(name, features)
    if not list(flow.parameters()):
        return  # it moves numbers about
    y, log_det = flow(x, context)
    (y.square().sum() / 2 - log_det.sum()).backward()
    for key, parameter in flow.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ALL)
def test_saved_and_loaded_is_the_same(name: str) -> None:
    flow, x, _ = make(name)
    other, _, _ = make(name)
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other(x)[0], flow(x)[0])


@pytest.mark.parametrize("name", ["masked autoregressive", "maf", "maf-nsf", "tarflow"])
def test_a_context_moves_every_dimension(name: str) -> None:
    flow, x, context = make(name, F)
    assert context is not None
    moved = (flow(x, context + 1)[0] - flow(x, context)[0]).abs().amax(0).flatten()
    first_patch = 2 * 2 * 2 if name == "tarflow" else 0  # nothing precedes it: it is not changed
    assert (moved[first_patch:] > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_rows_are_independent(name: str) -> None:
    flow, x, _ = make(name)
    y, log_det = flow(x)
    one, single = flow(x[2:3])
    torch.testing.assert_close(one[0], y[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(single[0], log_det[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["realnvp", "nsf", "maf", "maf-nsf"])
@pytest.mark.parametrize("features", [0, F])
def test_densities_in_two_dimensions_integrate_to_one(kind: str, features: int) -> None:
    flow = VectorFlowConfig(kind=kind, layers=3, width=16).build(dims=2, features=features)  # type: ignore[arg-type]
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    side = torch.linspace(-12, 12, 601)
    grid = torch.cartesian_prod(side, side)
    context = torch.randn(1, features).expand(len(grid), -1) if features else None
    with torch.no_grad():
        z, log_det = flow(grid, context)
    density = (log_det - z.square().sum(1) / 2 - math.log(2 * math.pi)).exp()
    assert abs(density.sum() * (side[1] - side[0]) ** 2 - 1) < 1e-3


@pytest.mark.parametrize("transform", [Additive(), Affine(), RationalQuadratic()])
def test_zero_parameters_are_the_identity(transform: Elementwise) -> None:
    x = torch.linspace(-5, 5, 101)
    y, log_derivative = transform.transform(x, torch.zeros(101, transform.size))
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
    assert log_derivative.abs().max() < 1e-12


def test_actnorm_standardises_the_data_that_initialise_it() -> None:
    flow, x, _ = make("glow")
    x = 3 * torch.randn(64, *IMAGE) + 2
    seen: list[Tensor] = []
    for module in flow.modules():
        if isinstance(module, ActNorm):
            module.register_forward_hook(lambda m, i, o: seen.append(o[0]))
    initialise(flow, x)
    seen.clear()
    flow(x)
    for y in seen:
        rows = y.transpose(0, 1).flatten(1)
        assert rows.mean(1).abs().max() < 1e-10
        assert (rows.var(1, correction=0) - 1).abs().max() < 1e-8
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("dtype", "value", "log_determinant"),
    [(torch.float32, 3e-6, 3e-5), (torch.bfloat16, 0.03, 0.2)],
)
@pytest.mark.parametrize("name", FLOWS)
def test_lower_precision(
    name: str, dtype: torch.dtype, value: float, log_determinant: float
) -> None:
    """float32 weights, and the networks' products in bfloat16 under autocast. What they give is the
    same both ways, so the inverse undoes the map to float32's precision in either case."""
    flow, x, _ = make(name)
    exact_y, exact_log_det = flow(x)
    flow, x = flow.float().eval(), x.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y, log_det = flow(x)
        back = flow.inverse(y)
    assert y.dtype == log_det.dtype == torch.float32
    assert (y - exact_y).abs().max() < value * (1 + exact_y.abs().max())
    assert (log_det - exact_log_det).abs().max() < log_determinant
    assert (back - x).abs().max() < 1e-4


def test_the_flow_of_dequantisation_noise_has_the_density_that_it_says() -> None:
    """log q(u | x) = log N(eps) - log |det du/deps|, by autograd."""
    dequantiser = DequantiserConfig(layers=3, width=8).build((1, 2, 2))
    for parameter in dequantiser.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    image, eps = torch.rand(3, 1, 2, 2) * 2 - 1, torch.randn(3, 1, 2, 2)
    u, log_q = dequantiser(image, eps)
    assert ((u > 0) & (u < 1)).all()
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, row=row: dequantiser(image[row : row + 1], one[None])[0].flatten(), eps[row]
        ).reshape(4, 4)
        log_normal = -(eps[row].square() + math.log(2 * math.pi)).sum() / 2
        assert abs(log_q[row] - (log_normal - torch.linalg.slogdet(jacobian).logabsdet)) < 1e-9
    loss = (dequantiser(image, eps)[1] - dequantiser(image, eps)[0].sum()).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in dequantiser.parameters())


def test_glow_has_the_published_size() -> None:
    with torch.device("meta"):
        flow = GlowConfig().build(channels=3, resolution=32)
    count = sum(p.numel() for p in flow.parameters())
    assert 43.5e6 < count < 44.5e6
