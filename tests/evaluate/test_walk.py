"""Ways between latent codes against their closed forms."""

from __future__ import annotations

import math

import torch

from genus.evaluate.walk import great_circle, straight


def test_a_quarter_circle() -> None:
    a, b = torch.tensor([[3.0, 0.0]]).double(), torch.tensor([[0.0, 3.0]]).double()
    way = great_circle(a, b, 5)
    angles = torch.arange(5).double() * math.pi / 8
    expected = 3 * torch.stack([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(way, expected[None], rtol=0, atol=1e-12)


def test_the_length_goes_from_one_to_the_other_and_the_ends_are_the_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 2, 5, 5, generator=generator, dtype=torch.float64)
    b = 3 * torch.randn(4, 2, 5, 5, generator=generator, dtype=torch.float64)
    way = great_circle(a, b, 7)
    assert way.shape == (4, 7, 2, 5, 5)
    torch.testing.assert_close(way[:, 0], a, rtol=0, atol=1e-12)
    torch.testing.assert_close(way[:, -1], b, rtol=0, atol=1e-12)
    lengths = way.flatten(2).norm(dim=2)
    torch.testing.assert_close(lengths, straight(lengths[:, 0], lengths[:, -1], 7))
    # constant rate: the angle between neighbours is the same all the way
    units = way.flatten(2) / lengths[:, :, None]
    turns = (units[:, 1:] * units[:, :-1]).sum(2).acos()
    torch.testing.assert_close(turns, turns[:, :1].expand(-1, 6), rtol=0, atol=1e-9)


def test_straight_on_and_codes_in_one_direction() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 0.0]])
    middle = straight(a, b, 3)[0, 1]
    torch.testing.assert_close(middle, torch.tensor([3.0, 1.0]))
    for other in (a, 2 * a, a * (1 + 1e-6), -a):
        torch.testing.assert_close(great_circle(a, other, 3), straight(a, other, 3))
    assert great_circle(a, torch.zeros_like(a), 3).isfinite().all()
