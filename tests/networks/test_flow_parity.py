"""zuko's and normflows' splines and normflows' Glow, with the same parameters: the same figures."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genus.networks.flows.bijection import Bijection
from genus.networks.flows.elementwise import RationalQuadratic
from genus.networks.flows.image import GlowConfig

normflows = pytest.importorskip("normflows")
zuko = pytest.importorskip("zuko")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from normflows_weights import copy_glow, peer_glow  # noqa: E402

BINS, BOUND = 8, 5.0
OURS = RationalQuadratic(BINS, BOUND)
TOLERANCE = 1e-6
DIMS = 3 * 32 * 32


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """float64 by default, and a seed."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def points() -> Tensor:
    """Inside the interval, at its ends, and outside."""
    return torch.cat([torch.linspace(-7, 7, 2001), torch.tensor([-BOUND, BOUND])])


def softplus_inverse(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))


def ours_from_knots(horizontal: Tensor, vertical: Tensor, inner: Tensor) -> Tensor:
    """Our parameters (..., size) of a spline with these knots and inner derivatives."""

    def raw(knots: Tensor) -> Tensor:
        parts = knots.diff(dim=-1) / (2 * BOUND)
        return ((parts - OURS.least) / (1 - OURS.least * BINS)).log()

    at_zero = softplus_inverse(torch.tensor(1 - OURS.least))
    slopes = softplus_inverse(inner - OURS.least) - at_zero
    return torch.cat([raw(horizontal), raw(vertical), slopes], dim=-1)


def test_spline_is_zukos() -> None:
    x = points()
    widths, heights, slopes = (torch.randn(len(x), n) for n in (BINS, BINS, BINS - 1))
    peer = zuko.transforms.MonotonicRQSTransform(widths, heights, slopes, bound=BOUND)
    parameters = ours_from_knots(peer.horizontal, peer.vertical, peer.derivatives[..., 1:-1])
    y, log_derivative = OURS.transform(x, parameters)
    expected, expected_log = peer.call_and_ladj(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(log_derivative, expected_log, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(OURS.inverse(x, parameters), peer.inv(x), rtol=0, atol=TOLERANCE)


def test_spline_is_normflows() -> None:
    x = points()
    parameters = 2 * torch.randn(len(x), OURS.size)
    widths, heights, slopes = parameters.split([BINS, BINS, BINS - 1], dim=-1)
    at_zero = math.log(math.expm1(1 - OURS.least))  # where its derivatives are 1
    for inverse in (False, True):
        expected, expected_log = normflows.utils.splines.unconstrained_rational_quadratic_spline(
            x, widths, heights, slopes + at_zero, inverse=inverse, tail_bound=BOUND
        )
        if inverse:
            torch.testing.assert_close(
                OURS.inverse(x, parameters), expected, rtol=0, atol=TOLERANCE
            )
        else:
            y, log_derivative = OURS.transform(x, parameters)
            torch.testing.assert_close(y, expected, rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(log_derivative, expected_log, rtol=0, atol=TOLERANCE)


def glows() -> tuple[Bijection, normflows.MultiscaleFlow, Tensor]:
    """Two levels of two steps with random weights, and data."""
    peer = peer_glow(2, 2, 16)
    x = torch.rand(3, 3, 32, 32)
    peer.log_prob(x, None)  # initialises its actnorms
    for parameter in peer.flows.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    ours = GlowConfig(steps=2, levels=2, width=16, learned_prior=False).build(
        channels=3, resolution=32
    )
    copy_glow(peer, ours)
    return ours, peer, x


def log_density(ours: Bijection, x: Tensor) -> Tensor:
    z, log_det = ours(x)
    return log_det - z.square().sum(1) / 2 - DIMS / 2 * math.log(2 * math.pi)


def test_glow_is_normflows() -> None:
    ours, peer, x = glows()
    torch.testing.assert_close(log_density(ours, x), peer.log_prob(x, None), rtol=0, atol=TOLERANCE)


def test_gradients_of_glow_are_normflows() -> None:
    ours, peer, x = glows()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(ours, x).sum(), x)
    (expected,) = torch.autograd.grad(peer.log_prob(x, None).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=TOLERANCE)


def test_inverse_of_glow_is_normflows() -> None:
    ours, peer, _ = glows()
    deep, shallow = torch.randn(3, 24, 8, 8), torch.randn(3, 6, 16, 16)
    expected, _ = peer.forward_and_log_det([deep, shallow])
    x = ours.inverse(torch.cat([deep.flatten(1), shallow.flatten(1)], dim=1))
    torch.testing.assert_close(x, expected, rtol=0, atol=TOLERANCE)
