"""Closed-form checks of the networks' parts, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from genus.networks.blocks import STYLES, DoublingConv, ResidualBlock
from genus.networks.dit import grid_positions
from genus.networks.layers import SelfAttention, sinusoids


def test_sinusoids_against_their_formula() -> None:
    t = torch.tensor([0.0, 1.0, 250.5], dtype=torch.float64)
    for shift, lowest in [(1.0, 1e-4), (0.0, 10_000 ** (-3 / 4))]:
        table = sinusoids(t, 8, shift)
        assert table[2, 0] == pytest.approx(math.cos(250.5), abs=1e-12)
        assert table[2, 4] == pytest.approx(math.sin(250.5), abs=1e-12)
        assert table[2, 7] == pytest.approx(math.sin(250.5 * lowest), abs=1e-12)


def test_sinusoids_keep_full_precision_of_half_precision_noise() -> None:
    assert sinusoids(torch.ones(1, dtype=torch.bfloat16), 8).dtype == torch.float32
    assert sinusoids(torch.tensor([7]), 8).dtype == torch.float32


def test_grid_positions_tell_columns_from_rows() -> None:
    table = grid_positions(16, 3).unflatten(0, (3, 3))
    assert torch.equal(table[0, 2, :8], table[1, 2, :8])
    assert torch.equal(table[2, 0, 8:], table[2, 1, 8:])
    row2_col1 = table[2, 1].double()
    w1 = 10_000 ** (-1 / 4)
    assert row2_col1[1] == pytest.approx(math.sin(1 * w1), abs=1e-7)
    assert row2_col1[5] == pytest.approx(math.cos(1 * w1), abs=1e-7)
    assert row2_col1[9] == pytest.approx(math.sin(2 * w1), abs=1e-7)
    assert len(table.flatten(0, 1).unique(dim=0)) == 9


def test_doubling_conv_is_nearest_neighbour_then_convolution() -> None:
    torch.manual_seed(0)
    conv = DoublingConv(3, 5).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0), conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), plain, rtol=1e-13, atol=1e-13)
    g = torch.randn_like(plain)
    of = (x, conv.weight, conv.bias)
    ours, theirs = torch.autograd.grad(conv(x), of, g), torch.autograd.grad(plain, of, g)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_attention_against_its_formula() -> None:
    torch.manual_seed(0)
    width, heads = 6, 2
    attention = SelfAttention(width, heads).double()
    x = torch.randn(2, 5, width, dtype=torch.float64)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    parts = []
    for head in (slice(0, 3), slice(3, 6)):
        weights = (q[..., head] @ k[..., head].mT / math.sqrt(3)).softmax(-1)
        parts.append(weights @ v[..., head])
    expected = attention.out(torch.cat(parts, dim=-1))
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("direction", ["down", "up", None])
@pytest.mark.parametrize("style", ["ddpm++", "adm"])
def test_residual_block_against_edm(style: str, direction: str | None) -> None:
    """UNetBlock of EDM's training/networks.py, written out: resample first, then convolve."""
    torch.manual_seed(0)
    s = STYLES[style]
    block = ResidualBlock(
        8, 8, 16, groups=2, heads=0, dropout=0.0, style=s, direction=direction
    ).double()  # fmt: skip
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    embedding = torch.randn(2, 16, dtype=torch.float64)

    def box(z: torch.Tensor) -> torch.Tensor:
        f = torch.ones(8, 1, 2, 2, dtype=z.dtype)
        if direction == "down":
            return F.conv2d(z, f / 4, groups=8, stride=2)
        return F.conv_transpose2d(z, f, groups=8, stride=2) if direction == "up" else z

    h = F.conv2d(box(F.silu(block.norm0(x))), block.conv0.weight, block.conv0.bias, padding=1)
    params = block.project(embedding)[:, :, None, None]
    if style == "adm":
        h = F.silu(block.norm1(h) * (1 + params[:, :8]) + params[:, 8:])
        skip, scale = box(x), 1.0
    else:
        h = F.silu(block.norm1(h + params))
        skip = box(x) if direction is None else block.skip(box(x))
        scale = math.sqrt(0.5)
    expected = (block.conv1(h) + skip) * scale
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-12, atol=1e-12)
