"""What every network keeps: ``network(x, noise, label)``, whatever its architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from genus.networks.dit import DiTConfig
from genus.networks.unet import UNetConfig

CLASSES = 4
UNET = UNetConfig(channels=8, mults=(2, 2), blocks=2, attention=(8,), head_channels=0)
CONFIGS = {
    "ddpm": UNetConfig(
        channels=8, mults=(1, 2), blocks=1, attention=(8,), head_channels=4, style="ddpm"
    ),
    "ddpm++": UNET,
    "adm": UNetConfig(
        channels=8, mults=(1, 2), blocks=1, attention=(8, 4), head_channels=8, patch=2, style="adm"
    ),
    "dit": DiTConfig(width=16, depth=2, heads=2, patch=2),
}
RESOLUTION = 16
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
Config = UNetConfig | DiTConfig


def built(config: Config, classes: int = CLASSES, out_channels: int | None = None) -> nn.Module:
    """In float64, with random parameters in place of the zeros that the networks start from."""
    torch.manual_seed(0)
    network = config.build(
        channels=3, resolution=RESOLUTION, classes=classes, out_channels=out_channels
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.double().eval()


def inputs(rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 3, RESOLUTION, RESOLUTION, generator=generator, dtype=torch.float64)
    noise = torch.rand(rows, generator=generator, dtype=torch.float64) * 3
    return x, noise, torch.arange(rows) % CLASSES


@every_config
def test_output_has_the_shape_of_the_input_or_the_channels_asked_for(config: Config) -> None:
    x, noise, label = inputs()
    assert built(config)(x, noise, label).shape == x.shape
    wide = built(config, out_channels=5)(x, noise, label)
    assert wide.shape == (3, 5, RESOLUTION, RESOLUTION)
    assert wide.is_contiguous()


@every_config
def test_starts_as_zero(config: Config) -> None:
    """The head starts at zero in every published variant."""
    network = config.build(channels=3, resolution=RESOLUTION, classes=CLASSES)
    x, noise, label = inputs()
    assert network(x.float(), noise.float(), label).abs().max() == 0


@every_config
def test_gradient_reaches_every_parameter(config: Config) -> None:
    network = built(config)
    x, noise, label = inputs()
    label[0] = CLASSES
    network(x, noise, label).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@every_config
def test_no_label_is_the_null_class(config: Config) -> None:
    network = built(config)
    x, noise, label = inputs()
    null = network(x, noise, torch.full_like(label, CLASSES))
    torch.testing.assert_close(network(x, noise, None), null, rtol=0, atol=0)
    assert (network(x, noise, label) - null).abs().max() > 1e-3


@every_config
def test_unconditional_network_ignores_the_label(config: Config) -> None:
    network = built(config, classes=0)
    x, noise, label = inputs()
    assert torch.equal(network(x, noise, label), network(x, noise))


@every_config
def test_noise_level_and_class_matter(config: Config) -> None:
    network = built(config)
    x, noise, label = inputs()
    y = network(x, noise, label)
    assert (network(x, noise + 1, label) - y).abs().max() > 1e-3
    assert (network(x, noise, (label + 1) % CLASSES) - y).abs().max() > 1e-3


@every_config
def test_rows_are_independent(config: Config) -> None:
    network = built(config)
    x, noise, label = inputs()
    together = network(x, noise, label)
    for row in range(len(x)):
        one = slice(row, row + 1)
        alone = network(x[one], noise[one], label[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-11, atol=1e-11)


@every_config
def test_state_dict_round_trip(config: Config) -> None:
    x, noise, label = inputs()
    source = built(config)
    target = config.build(channels=3, resolution=RESOLUTION, classes=CLASSES).double().eval()
    target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(source(x, noise, label), target(x, noise, label))


@every_config
def test_meta_device_and_back(config: Config) -> None:
    """What is made without memory is complete once its state is loaded: no hidden tensors."""
    source = built(config)
    with torch.device("meta"):
        shell = config.build(channels=3, resolution=RESOLUTION, classes=CLASSES).double()
        x, noise, label = (value.to("meta") for value in inputs())
        assert shell(x, noise, label).shape == x.shape
    shell.to_empty(device="cpu").load_state_dict(source.state_dict())
    assert torch.equal(shell.eval()(*inputs()), source(*inputs()))


@every_config
def test_bfloat16_autocast_is_close(config: Config) -> None:
    network = built(config).float()
    x, noise, label = inputs()
    x, noise = x.float(), noise.float()
    exact = network(x, noise, label)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x, noise, label)
    rounded.float().square().sum().backward()
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-5 < error < 0.05


@every_config
def test_channels_last_gives_the_same(config: Config) -> None:
    network = built(config)
    x, noise, label = inputs()
    y = network(x.contiguous(memory_format=torch.channels_last), noise, label)
    torch.testing.assert_close(y, network(x, noise, label), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["adm", "dit"])
def test_compiles_as_one_graph(name: str) -> None:
    network = built(CONFIGS[name])
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs()), network(*inputs()), rtol=1e-11, atol=1e-11)


def test_dropout_only_in_training() -> None:
    network = built(replace(UNET, dropout=0.5))
    assert torch.equal(network(*inputs()), network(*inputs()))
    network.train()
    assert not torch.equal(network(*inputs()), network(*inputs()))


BAD: dict[str, tuple[Config, int, str]] = {
    "odd resolution": (UNetConfig(mults=(1, 2, 2)), 30, "30 is not divisible by 4"),
    "odd patch": (UNetConfig(mults=(1,), attention=(), patch=3), 32, "not divisible by 3"),
    "attention off the grid": (UNetConfig(attention=(7,)), 32, r"attention at \[7\]"),
    "attention before patching": (
        UNetConfig(mults=(1, 2), attention=(32,), patch=2),
        32,
        r"levels' resolutions are \(16, 8\)",
    ),
    "width and groups": (UNetConfig(channels=144), 32, "channels 144"),
    "width no multiple of 4": (UNetConfig(channels=30), 32, "channels 30"),
    "heads": (UNetConfig(channels=64, head_channels=48), 32, "head_channels 48"),
    "no levels": (UNetConfig(mults=()), 32, "not empty"),
    "dit patch": (DiTConfig(patch=3), 32, "32 is not divisible by patch 3"),
    "dit heads": (DiTConfig(width=384, heads=5), 32, "heads 5"),
}


@pytest.mark.parametrize(("config", "resolution", "message"), BAD.values(), ids=BAD.keys())
def test_sizes_that_do_not_fit_are_refused(config: Config, resolution: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.build(channels=1, resolution=resolution)
