"""Large configurations on the meta device: parameter counts as published."""

from __future__ import annotations

import torch
from torch import nn

from genus.networks.dit import DiTConfig
from genus.networks.unet import UNetConfig


def millions(network: nn.Module) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def test_edm_cifar10_ddpmpp() -> None:
    """55.7 M: Karras et al. 2022, table 7 (network architectures), CIFAR-10 with DDPM++."""
    config = UNetConfig(
        channels=128, mults=(2, 2, 2), blocks=4, attention=(16,), head_channels=0, dropout=0.13
    )
    with torch.device("meta"):
        network = config.build(channels=3, resolution=32, classes=10)
        out = network(torch.zeros(2, 3, 32, 32), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    assert out.shape == (2, 3, 32, 32)
    assert round(millions(network), 1) == 55.7


def test_edm_imagenet64_adm() -> None:
    """295.9 M: Karras et al. 2022, table 7, ImageNet-64; Dhariwal & Nichol 2021: 296 M."""
    config = UNetConfig(
        channels=192,
        mults=(1, 2, 3, 4),
        blocks=3,
        attention=(32, 16, 8),
        head_channels=64,
        dropout=0.1,
        style="adm",
    )
    with torch.device("meta"):
        network = config.build(channels=3, resolution=64, classes=1000)
        out = network(torch.zeros(1, 3, 64, 64), torch.zeros(1))
    assert out.shape == (1, 3, 64, 64)
    assert round(millions(network), 1) == 295.9


def test_dit() -> None:
    """33 / 130 / 458 / 675 M: Peebles & Xie 2023, table 4 (patch 2, ImageNet 256 latents)."""
    sizes = {33: (384, 12, 6), 130: (768, 12, 12), 458: (1024, 24, 16), 675: (1152, 28, 16)}
    for published, (width, depth, heads) in sizes.items():
        config = DiTConfig(width=width, depth=depth, heads=heads, patch=2)
        with torch.device("meta"):
            network = config.build(channels=4, resolution=32, classes=1000, out_channels=8)
        assert round(millions(network)) == published


def test_dit_s_to_the_parameter() -> None:
    """Counted by hand from the paper's description of DiT-S/2."""
    d, depth, patch = 384, 12, 2
    block = 4 * d * (d + 1) + 4 * d * (d + 1) + d * (4 * d + 1) + 6 * d * (d + 1)
    head = 2 * d * (d + 1) + patch**2 * 8 * (d + 1)
    conditioning = d * (256 + 1) + d * (d + 1) + 1001 * d
    expected = depth * block + head + conditioning + d * (4 * patch**2 + 1)
    with torch.device("meta"):
        network = DiTConfig(width=d, depth=depth, heads=6, patch=patch).build(
            channels=4, resolution=32, classes=1000, out_channels=8
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
