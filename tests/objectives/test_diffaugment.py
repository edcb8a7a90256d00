"""DiffAugment's policies against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from genus.draws import Draws, seed_of
from genus.objectives.augmentation.config import AugmentConfig
from genus.objectives.augmentation.diffaugment import DiffAugment, Policy

P = torch.zeros(1)
ALL: tuple[Policy, ...] = ("color", "translation", "cutout")
each_policy = pytest.mark.parametrize("policy", [*((p,) for p in ALL), ALL], ids="+".join)


def draws(rows: int) -> Draws:
    return Draws.of([seed_of("run", row) for row in range(rows)])


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def numbers(rows: int) -> dict[str, Tensor]:
    """The uniform numbers by name, in the order in which the module lists them."""
    names = ("brightness", "saturation", "contrast", "move y", "move x", "cut y", "cut x")
    drawn = draws(rows).uniform("transforms", (len(names),), torch.float64)
    return dict(zip(names, drawn.T, strict=True))


@each_policy
def test_differentiable_twice(policy: tuple[Policy, ...]) -> None:
    augment, x = DiffAugment(policy, (3, 8, 8)), images(1, 3, 8, 8).requires_grad_()
    assert gradcheck(lambda x: augment(x, P, draws(1)).square(), x)
    assert gradgradcheck(lambda x: augment(x, P, draws(1)).square(), x)


@each_policy
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_always_on_whatever_p(
    policy: tuple[Policy, ...], channels: int, dtype: torch.dtype
) -> None:
    x = images(16, channels, 16, 24).to(dtype)
    augment = AugmentConfig(kind="diffaugment", policy=policy).build((channels, 16, 24))
    y = augment(x, P, draws(16))
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert torch.equal(y, augment(x, torch.ones(1), draws(16)))
    assert (y != x).flatten(1).any(1).sum() >= 14


@each_policy
def test_windows_of_a_batch_see_what_the_batch_sees(policy: tuple[Policy, ...]) -> None:
    augment, x = DiffAugment(policy, (3, 16, 16)), images(6, 3, 16, 16)
    parts = [augment(x[i : i + 2], P, draws(6).window(i, i + 2)) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), augment(x, P, draws(6)), rtol=0, atol=1e-12)


def test_colour_by_formula() -> None:
    x, drawn = images(20, 3, 8, 8), numbers(20)
    y = DiffAugment(["color"], (3, 8, 8))(x, P, draws(20))
    for row in range(20):
        u = {name: values[row].item() for name, values in drawn.items()}
        want = x[row].numpy() + u["brightness"] - 0.5
        grey = want.mean(0)
        want = (want - grey) * 2 * u["saturation"] + grey
        want = (want - want.mean()) * (0.5 + u["contrast"]) + want.mean()
        np.testing.assert_allclose(y[row], want, atol=1e-12)


def test_translation_copies_pixels_and_fills_with_grey() -> None:
    height, width = 16, 24
    x, drawn = images(200, 2, height, width), numbers(200)
    y = DiffAugment(["translation"], (2, height, width))(x, P, draws(200))
    seen = set()
    for row in range(200):
        down = int(drawn["move y"][row] * 5) - 2
        right = int(drawn["move x"][row] * 7) - 3
        seen.add((down, right))
        padded = np.pad(x[row].numpy(), ((0, 0), (3, 3), (3, 3)))
        want = padded[:, 3 - down : 3 - down + height, 3 - right : 3 - right + width]
        assert np.array_equal(y[row], want)
    assert len(seen) == 35  # of 35 possible shifts


@pytest.mark.parametrize(("height", "width"), [(16, 24), (14, 10)])
def test_cutout_blanks_half_of_each_side_at_every_place(height: int, width: int) -> None:
    x = images(400, 1, height, width).abs() + 1
    y = DiffAugment(["cutout"], (1, height, width))(x, P, draws(400))
    assert torch.equal(y[y != 0], x[y != 0])
    blank = (y == 0)[:, 0]
    rows, columns = blank.any(2), blank.any(1)
    assert torch.equal(blank, rows[:, :, None] & columns[:, None, :])  # a rectangle
    for lines, size in ((rows, height), (columns, width)):
        count, side = lines.sum(1), size // 2
        assert int(count.max()) == side
        for edge in (0, -1):  # centred on the first or the last pixel
            assert int(count[lines[:, edge]].min()) == side - side // 2
        assert lines.any(0).all()
        edges = (lines[:, 1:] != lines[:, :-1]).sum(1)
        assert int(edges.max()) <= 2  # in one piece
