"""Each of ADA's transforms against an independent computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from genus.draws import Draws, seed_of
from genus.objectives.augmentation.ada import ADATransforms
from genus.objectives.augmentation.blit import shifted
from genus.objectives.augmentation.chances import Chances, Transform
from genus.objectives.augmentation.colour import recoloured
from genus.objectives.augmentation.corruption import BandFilter, band_gains
from genus.objectives.augmentation.geometry import Resampling, inverse_transform, sampled
from genus.objectives.augmentation.wavelets import SYM2, SYM6, bands

ROWS = 12
ONE = torch.ones(1)
CPU = torch.device("cpu")
Array = NDArray[np.float64]


def draws(rows: int = ROWS) -> Draws:
    return Draws.of([seed_of("run", row) for row in range(rows)])


def images(channels: int = 3, height: int = 16, width: int = 16, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, channels, height, width, generator=generator, dtype=torch.float64)


def applied(x: Tensor, *on: Transform) -> tuple[Tensor, Chances]:
    """What the transforms make of x at p = 1, and the numbers that they had."""
    numbers = Chances.of(draws(len(x)), ONE, on, torch.float64)
    return ADATransforms(on, tuple(x.shape[1:]))(x, ONE, draws(len(x))), numbers


@pytest.mark.parametrize("taps", [SYM2, SYM6], ids=["sym2", "sym6"])
def test_the_filters_are_orthogonal(taps: tuple[float, ...]) -> None:
    for shift in range(0, len(taps), 2):
        product = sum(a * b for a, b in zip(taps, taps[shift:], strict=False))
        assert product == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-10)
    assert sum(taps) == pytest.approx(math.sqrt(2), abs=1e-10)


def test_flips_copy_pixels() -> None:
    x = images(width=12)
    y, numbers = applied(x, "xflip")
    flipped = numbers.uniform("xflip") >= 0.5
    assert 0 < flipped.sum() < ROWS
    for row in range(ROWS):
        assert np.array_equal(y[row], x[row].numpy()[..., ::-1] if flipped[row] else x[row])


def test_quarter_turns_copy_pixels() -> None:
    x = images()
    y, numbers = applied(x, "rotate90")
    turns = (numbers.uniform("rotate90") * 4).int()
    assert set(turns.tolist()) == {0, 1, 2, 3}
    for row in range(ROWS):
        assert np.array_equal(y[row], np.rot90(x[row].numpy(), int(turns[row]), (1, 2)))


@pytest.mark.parametrize("resampled", [False, True])
def test_whole_shifts_move_pixels_and_mirror_the_border(resampled: bool) -> None:
    height, width = 16, 24
    x = images(height=height, width=width)
    on: tuple[Transform, ...] = ("xint",)
    numbers = Chances.of(draws(), ONE, on, torch.float64)
    share = torch.stack([numbers.uniform("xint x"), numbers.uniform("xint y")], 1) * 2 - 1
    shift = torch.round(share / 8 * torch.tensor([width, height])).int()
    assert shift[:, 0].abs().max() == 3
    if resampled:  # through the filters, with nothing but the shift
        inverse, _ = inverse_transform(numbers, shift.double(), height, width)
        y = Resampling(height, width, CPU, torch.float64)(x, inverse)
    else:
        y, _ = applied(x, "xint")
    for row, (right, down) in enumerate(shift.tolist()):
        padded = np.pad(x[row].numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
        want = padded[:, 4 - down : 4 - down + height, 4 - right : 4 - right + width]
        np.testing.assert_allclose(y[row], want, rtol=0, atol=1e-10 if resampled else 0)


def wave(x: Array, y: Array, height: int, width: int) -> Array:
    """A pattern that is its own mirror continuation, so known everywhere."""
    across = np.cos(2 * np.pi * x / (width - 1)) + 0.5 * np.cos(np.pi * x / (width - 1))
    out: Array = across * (1 + np.cos(np.pi * y / (height - 1)))
    return out


def forward_matrix(numbers: Chances, row: int, height: int, width: int) -> Array:
    """Where a pixel of the image goes, from the paper's order of the transforms."""

    def rotation(name: str) -> Array:
        angle = (2 * numbers.uniform(name)[row].item() - 1) * math.pi
        matrix: Array = Rotation.from_euler("z", -angle).as_matrix()
        return matrix

    scale = 2 ** (0.2 * numbers.normal("scale")[row].item())
    aniso = 2 ** (0.2 * numbers.normal("aniso")[row].item())
    shift = np.eye(3)
    shift[0, 2] = numbers.normal("xfrac x")[row].item() * 0.125 * width
    shift[1, 2] = numbers.normal("xfrac y")[row].item() * 0.125 * height
    stretch = np.diag([aniso, 1 / aniso, 1.0])
    before, after = rotation("rotate before"), rotation("rotate after")
    out: Array = shift @ after @ stretch @ before @ np.diag([scale, scale, 1.0])
    return out


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_geometry_moves_a_known_pattern_as_it_should(size: tuple[int, int]) -> None:
    height, width = size
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    x = torch.tensor(wave(columns, rows, height, width)).expand(ROWS, 1, height, width)
    y, numbers = applied(x, "scale", "rotate", "aniso", "xfrac")
    centre = np.array([[(width - 1) / 2], [(height - 1) / 2]])
    place = np.stack([columns.ravel(), rows.ravel()]) - centre
    for row in range(ROWS):
        inverse = np.linalg.inv(forward_matrix(numbers, row, height, width))
        source = inverse[:2, :2] @ place + inverse[:2, 2:] + centre
        want = wave(source[0], source[1], height, width).reshape(height, width)
        np.testing.assert_allclose(y[row, 0], want, rtol=0, atol=0.02)


def test_sampling_is_grid_sample_and_its_derivative_the_adjoint() -> None:
    x, grid = images(2, 5, 6, 3), torch.rand(3, 4, 7, 2, dtype=torch.float64) * 2.2 - 1.1
    plain = torch.nn.functional.grid_sample(x, grid, align_corners=True)
    assert torch.equal(sampled(x, grid), plain)
    values = torch.randn_like(plain)
    leaf = x.requires_grad_()
    (spread,) = torch.autograd.grad((sampled(leaf, grid) * values).sum(), leaf)
    torch.testing.assert_close((spread * x).sum(), (values * plain).sum())


def test_brightness_contrast_saturation_and_luma_flip() -> None:
    x = images()
    grey = x.mean(1, keepdim=True)
    y, numbers = applied(x, "brightness")
    torch.testing.assert_close(
        y - x, (0.2 * numbers.normal("brightness")).view(-1, 1, 1, 1) + 0 * x
    )
    y, numbers = applied(x, "contrast")
    torch.testing.assert_close(y, x * (2 ** (0.5 * numbers.normal("contrast"))).view(-1, 1, 1, 1))
    y, numbers = applied(x, "saturation")
    gain = (2 ** numbers.normal("saturation")).view(-1, 1, 1, 1)
    torch.testing.assert_close(y, grey + gain * (x - grey))
    y, numbers = applied(x, "lumaflip")
    flips = (numbers.uniform("lumaflip") >= 0.5).view(-1, 1, 1, 1)
    torch.testing.assert_close(y, torch.where(flips, x - 2 * grey, x))


def test_hue_turns_colours_about_grey() -> None:
    x = images()
    y, numbers = applied(x, "hue")
    torch.testing.assert_close(y.mean(1), x.mean(1))
    for row in range(ROWS):
        angle = (2 * numbers.uniform("hue")[row].item() - 1) * math.pi
        turn = Rotation.from_rotvec(angle * np.ones(3) / math.sqrt(3)).as_matrix()
        want = np.einsum("ij,jhw->ihw", turn, x[row].numpy())
        np.testing.assert_allclose(y[row], want, atol=1e-12)


def test_all_colours_in_order_and_grey_images() -> None:
    on: tuple[Transform, ...] = ("brightness", "contrast", "lumaflip", "hue", "saturation")
    x = images()
    y, _ = applied(x, *on)
    want = x
    for name in on:
        want, _ = applied(want, name)
    torch.testing.assert_close(y, want)
    grey = images(1)
    numbers = Chances.of(draws(), ONE, on, torch.float64)
    of_three = recoloured(grey.expand(-1, 3, -1, -1), numbers).mean(1, keepdim=True)
    torch.testing.assert_close(recoloured(grey, numbers), of_three)


@pytest.mark.parametrize("size", [2, 5, 16, 64])
def test_the_bands_sum_to_the_image(size: int) -> None:
    np.testing.assert_allclose(bands(size).sum(0), np.eye(size), rtol=0, atol=1e-10)


def test_bands_pass_the_frequencies_that_they_are_named_for() -> None:
    """Mirrored cosines are the filters' eigenvectors, with the wavelets' frequency responses."""
    size = 33
    filters = bands(size)
    for k in range(size):
        cosine = np.cos(np.pi * k * np.arange(size) / (size - 1))

        def low(octave: int, k: int = k) -> float:
            angle = np.pi * k / (size - 1) * 2**octave
            return float(abs(np.dot(SYM2, np.exp(-1j * angle * np.arange(4)))) ** 2 / 2)

        want = [low(0) * low(1) * low(2), low(0) * low(1) * (1 - low(2))]
        want += [low(0) * (1 - low(1)), 1 - low(0)]
        for matrix, response in zip(filters, want, strict=True):
            np.testing.assert_allclose(matrix @ cosine, response * cosine, atol=1e-10)


def test_the_image_filter_amplifies_and_keeps_the_expected_power() -> None:
    x = images(height=12, width=20)
    y, numbers = applied(x, "imgfilter")
    chosen = 2 ** numbers.bands()[1].numpy()
    power = np.array([10, 1, 1, 1]) / 13
    gain = np.ones_like(chosen)
    for band in range(4):
        step = np.where(np.arange(4) == band, chosen, 1.0)
        gain *= step / np.sqrt((power * step**2).sum(1, keepdims=True))
    np.testing.assert_allclose(band_gains(torch.tensor(chosen)), gain)
    for row in range(ROWS):
        down = np.tensordot(gain[row], bands(12), 1)
        across = np.tensordot(gain[row], bands(20), 1)
        np.testing.assert_allclose(y[row], down @ x[row].numpy() @ across.T, atol=1e-12)
    one = torch.tensor([[3.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    assert (torch.tensor(power) * band_gains(one).square()).sum().item() == pytest.approx(1)
    same = BandFilter(12, 20, CPU, torch.float64).amplified(x, torch.ones(ROWS, 4).double())
    torch.testing.assert_close(same, x, rtol=0, atol=1e-10)


def test_noise_has_the_strength_that_was_drawn() -> None:
    x = images(3, 32, 32, 64)
    y, numbers = applied(x, "noise")
    added, sigma = (y - x).flatten(1), 0.1 * numbers.normal("noise").abs()
    ratio = added.std(1) / sigma
    assert (ratio - 1).abs().max() < 0.08  # 3072 numbers: 1.3% of standard error
    assert added.mean().abs() < 0.002
    assert sigma.mean().item() == pytest.approx(0.1 * math.sqrt(2 / math.pi), abs=0.03)


def test_cutout_blanks_a_rectangle_of_half_the_side() -> None:
    x = images(3, 16, 24) + 10
    y, numbers = applied(x, "cutout")
    for row in range(ROWS):
        across, down = (numbers.uniform(f"cutout {axis}")[row].item() for axis in "xy")
        for i in range(16):
            for j in range(24):
                cut = abs((i + 0.5) / 16 - down) < 0.25 and abs((j + 0.5) / 24 - across) < 0.25
                assert torch.equal(y[row, :, i, j], x[row, :, i, j] * (not cut))
    assert ((y == 0).sum((1, 2, 3)) <= 3 * 8 * 12).all()
    assert ((y == 0).sum((1, 2, 3)) == 3 * 8 * 12).any()


def test_positions_outside_see_the_mirror_image_however_far() -> None:
    x = images(1, 9, 9, 1)
    size, far = 9, torch.tensor([[40.0, -23.0]], dtype=torch.float64)
    inverse = torch.eye(3, dtype=torch.float64)[None].clone()
    inverse[0, :2, 2] = -far[0]
    y = Resampling(size, size, CPU, torch.float64)(x, inverse)
    torch.testing.assert_close(y, shifted(x, far), rtol=0, atol=1e-10)
