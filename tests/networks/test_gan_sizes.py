"""Parameter counts of GANs: as published, and counted here from the papers' tables of layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import nn

from genus.networks.gan.r3gan import R3GANConfig
from genus.networks.gan.stylegan2 import StyleGAN2Config

PAPER_256 = StyleGAN2Config(channels_base=16384, group=8)
CONFIG_F = StyleGAN2Config()
CIFAR = StyleGAN2Config(mapping_layers=2, discriminator="orig", group=32)


def sizes(
    config: StyleGAN2Config | R3GANConfig, resolution: int, classes: int = 0
) -> dict[str, int]:
    with torch.device("meta"):
        networks = config.build((3, resolution, resolution), classes)
    return {name: counted(network) for name, network in networks.items()}


def counted(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def features(resolution: int, base: int) -> int:
    return min(base // resolution, 512)


def styled(inputs: int, outputs: int) -> int:
    """A style of each input, 3x3 weights, bias, and the strength of the noise."""
    return dense(512, inputs) + 9 * inputs * outputs + outputs + 1


def to_rgb(inputs: int) -> int:
    return dense(512, inputs) + 3 * inputs + 3


def generator_count(resolution: int, base: int, mapping_layers: int, classes: int = 0) -> int:
    """Mapping and synthesis: Karras et al. 2020, figure 2 and table 1 (config F, skip)."""
    mapping = mapping_layers * dense(512, 512)
    if classes:
        mapping += dense(classes, 512) + 512 * 512  # the first layer reads twice the numbers
    first = features(4, base)
    total = mapping + 16 * first + styled(first, first) + to_rgb(first)
    at = 8
    while at <= resolution:
        inputs, outputs = features(at // 2, base), features(at, base)
        total += styled(inputs, outputs) + styled(outputs, outputs) + to_rgb(outputs)
        at *= 2
    return total


def discriminator_count(resolution: int, base: int, *, residual: bool, classes: int = 0) -> int:
    """A residual or a plain discriminator; with classes the label's mapping has 8 layers."""
    total = 3 * features(resolution, base) + features(resolution, base)
    at = resolution
    while at > 4:
        inputs, outputs = features(at, base), features(at // 2, base)
        total += 9 * inputs * inputs + inputs + 9 * inputs * outputs + outputs
        total += inputs * outputs if residual else 0
        at //= 2
    last = features(4, base)
    total += 9 * (last + 1) * last + last + dense(16 * last, last)
    if not classes:
        return total + dense(last, 1)
    return total + dense(last, last) + dense(classes, last) + 8 * dense(last, last)


@pytest.mark.parametrize(
    ("config", "resolution", "generator", "discriminator"),
    [
        # The training log of the official implementation at 1024 pixels (2 mapping layers, as its
        # "auto" configuration has them): 28794124 and 29012513.
        (StyleGAN2Config(mapping_layers=2), 1024, 28_794_124, 29_012_513),
        # Config F itself has 8 mapping layers: 6 of 262656 numbers more.
        (CONFIG_F, 1024, 30_370_060, 29_012_513),
        # 24.767 M and 24.001 M: Huang et al. 2024, config A of their table of the roadmap.
        (PAPER_256, 256, 24_767_458, 24_001_089),
    ],
    ids=["1024 auto", "config F", "paper256"],
)
def test_stylegan2_has_the_published_sizes(
    config: StyleGAN2Config, resolution: int, generator: int, discriminator: int
) -> None:
    found = sizes(config, resolution)
    assert found["mapping"] + found["synthesis"] == generator
    assert found["discriminator"] == discriminator


def test_32_pixels_of_512_features_have_the_logged_size() -> None:
    """21523475: logged by the official implementation with 8 mapping layers."""
    found = sizes(StyleGAN2Config(), 32)
    assert found["mapping"] + found["synthesis"] == 21_523_475


@pytest.mark.parametrize(
    ("config", "resolution", "classes"),
    [(CIFAR, 32, 0), (CIFAR, 32, 10), (PAPER_256, 256, 0), (CONFIG_F, 1024, 0), (CONFIG_F, 64, 7)],
    ids=["cifar", "cifar conditional", "paper256", "config F", "64 conditional"],
)
def test_stylegan2_counts_by_layers(config: StyleGAN2Config, resolution: int, classes: int) -> None:
    found = sizes(config, resolution, classes)
    base = config.channels_base
    generator = generator_count(resolution, base, config.mapping_layers, classes)
    assert found["mapping"] + found["synthesis"] == generator
    assert found["discriminator"] == discriminator_count(
        resolution, base, residual=config.discriminator == "resnet", classes=classes
    )


def r3gan_count(widths: Sequence[int], classes: int) -> dict[str, int]:
    """Two 1-3-1 blocks a resolution, twice as wide in the middle, groups of 16 features."""
    body = 0
    for width in widths:
        middle = 2 * width
        body += 2 * (2 * width * middle + 9 * middle * 16 + 2 * middle)
    body += sum(a * b for a, b in pairwise(widths) if a != b)
    body += 3 * widths[-1] + 16 * widths[0]
    inputs = 128 if classes else 64
    outputs = widths[0] if classes else 1
    return {
        "generator": body + inputs * widths[0] + 64 * classes,
        "discriminator": body + widths[0] * outputs + widths[0] * classes,
    }


@pytest.mark.parametrize(
    ("widths", "resolution", "classes"),
    [
        ((768, 768, 768, 768), 32, 10),
        ((768, 768, 768, 768), 32, 0),
        ((768, 768, 768, 768, 384, 192, 96), 256, 0),
    ],
    ids=["cifar10", "cifar10 unconditional", "ffhq256"],
)
def test_r3gan_counts_by_layers(widths: tuple[int, ...], resolution: int, classes: int) -> None:
    found = sizes(R3GANConfig(widths=widths), resolution, classes)
    assert found == r3gan_count(widths, classes)


def test_r3gan_ffhq256_has_the_published_size() -> None:
    """23.058 M and 23.010 M: Huang et al. 2024, config E of their table of the roadmap."""
    found = sizes(R3GANConfig(widths=(768, 768, 768, 768, 384, 192, 96)), 256)
    assert round(found["generator"] / 1e6, 3) == 23.058
    assert round(found["discriminator"] / 1e6, 3) == 23.010
