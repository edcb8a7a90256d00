"""Filters against their definition, their symmetries, and what they keep from aliasing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from scipy.signal import firwin
from torch import Tensor

from genus.networks.filtering import (
    BINOMIAL,
    TRIANGLE,
    WHOLE_BAND,
    Taps,
    downsample,
    filtered_leaky_relu,
    kaiser_filter,
    low_pass,
    upsample,
)

LOPSIDED: Taps = (0.5, 2.0, 1.0, -0.3, 0.1)
FILTERS = {
    "binomial": BINOMIAL,
    "triangle": TRIANGLE,
    "two": (1.0, 1.0),
    "lopsided": LOPSIDED,
    "lopsided four": (1.0, 4.0, 2.0, 0.5),
    "kaiser": WHOLE_BAND,
}
every_filter = pytest.mark.parametrize("taps", FILTERS.values(), ids=FILTERS.keys())


def images(rows: int = 2, channels: int = 3, height: int = 12, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, channels, height, width, generator=generator, dtype=torch.float64)


def normalised(taps: Taps) -> list[float]:
    return [tap / sum(taps) for tap in taps]


def placed(signal: list[float], at: int) -> float:
    return signal[at] if 0 <= at < len(signal) else 0.0


def line_low_pass(line: list[float], taps: Taps) -> list[float]:
    """y[n] = sum_j taps[j] x[n + taps // 2 - j ...]: the middle of the taps on the pixel."""
    k = normalised(taps)
    middle = len(k) - 1 - len(k) // 2
    return [
        sum(k[j] * placed(line, n + middle - j) for j in range(len(k))) for n in range(len(line))
    ]


def line_down(line: list[float], taps: Taps) -> list[float]:
    k = normalised(taps)
    middle = len(k) // 2
    return [
        sum(k[j] * placed(line, 2 * n + middle - j) for j in range(len(k)))
        for n in range(len(line) // 2)
    ]


def line_up(line: list[float], taps: Taps) -> list[float]:
    k = normalised(taps)
    zeros = [value for pair in ((x, 0.0) for x in line) for value in pair]
    before = (len(k) - 1) // 2
    return [
        2 * sum(k[j] * placed(zeros, n + before - j) for j in range(len(k)))
        for n in range(len(zeros))
    ]


def by_definition(
    line_filter: Callable[[list[float], Taps], list[float]], x: Tensor, taps: Taps
) -> Tensor:
    """A filter of lines, along the rows and then along the columns."""
    for _ in range(2):
        flat = [line_filter(line, taps) for line in x.flatten(0, 2).tolist()]
        lines = torch.tensor(flat, dtype=x.dtype).view(*x.shape[:3], -1)
        x = lines.transpose(2, 3)
    return x


@every_filter
def test_low_pass_is_its_definition(taps: Taps) -> None:
    x = images()
    torch.testing.assert_close(
        low_pass(x, taps), by_definition(line_low_pass, x, taps), rtol=0, atol=1e-13
    )


@every_filter
def test_downsampling_filters_and_takes_every_second_pixel(taps: Taps) -> None:
    x = images()
    torch.testing.assert_close(
        downsample(x, taps), by_definition(line_down, x, taps), rtol=0, atol=1e-13
    )


@every_filter
def test_upsampling_puts_zeros_between_and_filters(taps: Taps) -> None:
    x = images()
    torch.testing.assert_close(
        upsample(x, taps), by_definition(line_up, x, taps), rtol=0, atol=1e-13
    )


def test_padding_sets_the_size() -> None:
    x = images()
    assert low_pass(x, padding=(2, 2)).shape[2:] == (13, 9)
    torch.testing.assert_close(low_pass(x, padding=(2, 2))[:, :, :-1, :-1], low_pass(x))


@every_filter
def test_mean_level_is_kept(taps: Taps) -> None:
    flat = torch.full((1, 1, 64, 64), 3.0, dtype=torch.float64)
    inner = slice(16, -16)
    assert (low_pass(flat, taps)[..., inner, inner] - 3).abs().max() < 1e-12
    assert (downsample(flat, taps)[..., 8:-8, 8:-8] - 3).abs().max() < 1e-12
    if taps not in (LOPSIDED, FILTERS["lopsided four"]):  # even and odd taps sum to the same
        level = upsample(flat, taps)[..., 32:-32, 32:-32]
        assert (level.mean() - 3).abs() < 1e-12
    if taps in (BINOMIAL, TRIANGLE):
        assert (level - 3).abs().max() < 1e-12


@every_filter
def test_up_is_the_adjoint_of_down(taps: Taps) -> None:
    """<down x, y> = <x, up y> / 4 of the taps in reverse: the two are one map and its transpose."""
    x, y = images(), images(height=6, width=4)
    if taps is LOPSIDED:
        return  # reversing odd taps moves their middle only where they are symmetric
    left = (downsample(x, taps) * y).sum()
    right = (x * upsample(y, taps[::-1])).sum() / 4
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@every_filter
def test_shift_by_two_before_down_is_one_after(taps: Taps) -> None:
    x = F.pad(images(), (24,) * 4)  # nothing near the border
    moved = torch.roll(x, (2, 4), (2, 3))
    torch.testing.assert_close(
        downsample(moved, taps), torch.roll(downsample(x, taps), (1, 2), (2, 3))
    )
    torch.testing.assert_close(upsample(moved, taps), torch.roll(upsample(x, taps), (4, 8), (2, 3)))


@every_filter
@pytest.mark.parametrize("operation", [low_pass, downsample, upsample])
@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_derivatives_are_those_of_the_linear_map(
    operation: Callable[[Tensor, Taps], Tensor], taps: Taps, size: tuple[int, int]
) -> None:
    """With the map as a matrix: the gradient of |A x|^4 / 4, and that of |its gradient|^4 / 4."""
    x = images(1, 2, *size)
    numbers = size[0] * size[1]
    basis = torch.eye(numbers, dtype=x.dtype).view(numbers, 1, *size)
    matrix = operation(basis, taps).flatten(1)

    def quartic(y: Tensor) -> Tensor:
        return y.square().sum().square() / 4

    def derivatives(linear: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        v = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(quartic(linear(v)), v, create_graph=True)
        (second,) = torch.autograd.grad(quartic(first), v)
        return first, second

    ours = derivatives(lambda v: operation(v, taps))
    theirs = derivatives(lambda v: v.flatten(2) @ matrix)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    def both(x: Tensor) -> Tensor:
        return downsample(filtered_leaky_relu(upsample(x)))

    compiled = torch.compile(both, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), both(images()))


@pytest.mark.parametrize(
    ("taps", "cutoff", "width"), [(12, 0.25, 0.2), (24, 0.125, 0.1), (7, 0.2, 0.05), (32, 0.2, 0.2)]
)
def test_kaiser_filter_is_scipys(taps: int, cutoff: float, width: float) -> None:
    """The three ranges of attenuation: under 21, up to 50 and above."""
    theirs = torch.from_numpy(firwin(taps, cutoff, width=width, fs=1.0))
    ours = torch.tensor(kaiser_filter(taps, cutoff, width), dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def band_limited(size: int, highest: float, shift: float) -> Tensor:
    """A periodic image of waves up to ``highest`` cycles a pixel, moved by ``shift`` pixels."""
    generator = torch.Generator().manual_seed(1)
    frequency = torch.fft.fftfreq(size, dtype=torch.float64)
    spectrum = torch.fft.fft2(torch.randn(size, size, generator=generator, dtype=torch.float64))
    inside = (frequency.abs() <= highest)[:, None] & (frequency.abs() <= highest)
    phase = torch.exp(-2j * math.pi * frequency * shift)
    image = torch.fft.ifft2(spectrum * inside * phase[:, None] * phase).real
    return (image / image.std())[None, None]


def moved(image: Tensor, shift: float) -> Tensor:
    frequency = torch.fft.fftfreq(image.shape[-1], dtype=torch.float64)
    phase = torch.exp(-2j * math.pi * frequency * shift)
    return torch.fft.ifft2(torch.fft.fft2(image) * phase[:, None] * phase).real


def translation_psnr(nonlinearity: Callable[[Tensor], Tensor], shift: float) -> float:
    """EQ-T in dB: how well the response to a moved image is the moved response (away from the
    borders); Karras et al. 2021, equation 3."""
    size, highest, border = 128, 0.2, 24
    expected = moved(nonlinearity(band_limited(size, highest, 0.0)), shift)
    actual = nonlinearity(band_limited(size, highest, shift))
    inner = slice(border, -border)
    error = (expected - actual)[..., inner, inner].square().mean()
    peak = expected[..., inner, inner].max() - expected[..., inner, inner].min()
    return float(10 * torch.log10(peak**2 / error))


@pytest.mark.parametrize("shift", [0.5, 0.25, 0.3])
def test_filtered_nonlinearity_follows_subpixel_moves(shift: float) -> None:
    plain = translation_psnr(lambda x: F.leaky_relu(x, 0.2), shift)
    filtered = translation_psnr(filtered_leaky_relu, shift)
    sharp = translation_psnr(
        lambda x: filtered_leaky_relu(x, taps=kaiser_filter(24, 0.25, 0.1)), shift
    )
    print(f"shift {shift}: plain {plain:.1f} dB, filtered {filtered:.1f}, 24 taps {sharp:.1f}")
    assert filtered > plain + 10
    assert sharp > plain + 10
