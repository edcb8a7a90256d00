"""PixelCNNs: strict causality by the Jacobian, pixel by pixel as all at once, published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.pixelcnn.causal import Memory, framed
from genus.networks.pixelcnn.gated import GatedPixelCNNConfig
from genus.networks.pixelcnn.plus_plus import PixelCNNPlusPlusConfig

Config = GatedPixelCNNConfig | PixelCNNPlusPlusConfig
CONFIGS: dict[str, Config] = {
    "gated": GatedPixelCNNConfig(width=6, layers=3, head=64),
    "gated, narrow": GatedPixelCNNConfig(width=4, layers=2, first=3, kernel=5, head=64),
    "plus plus": PixelCNNPlusPlusConfig(width=4, blocks=2),
    "plus plus, one level": PixelCNNPlusPlusConfig(width=4, levels=1),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
SIZES = [(5, 5), (8, 8), (6, 7), (3, 9)]
CLASSES, OUTPUTS = 4, 5


def built(config: Config, channels: int = 2, classes: int = CLASSES) -> nn.Module:
    """In float64, with weights far enough from 0 that every path is seen."""
    torch.manual_seed(0)
    network = config.build(channels=channels, resolution=8, classes=classes, outputs=OUTPUTS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.double().eval()


def images(rows: int, channels: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, channels, *size, generator=generator, dtype=torch.float64)


def dependence(network: nn.Module, x: Tensor, label: Tensor | None) -> Tensor:
    """(pixels, pixels): how much each output pixel (rows) depends on each input pixel."""

    weights = torch.arange(1.0, OUTPUTS + 1, dtype=torch.float64).sqrt()  # nothing cancels by luck

    def outputs(x: Tensor) -> Tensor:
        return (weights[:, None] * network(x, label)[0].flatten(1)).sum(0)

    J = torch.autograd.functional.jacobian(outputs, x)  # (pixels, 1, C, H, W)
    return J[:, 0].flatten(2).abs().sum(1)


@every_config
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_a_pixel_depends_on_earlier_ones_only(
    config: Config, size: tuple[int, int], classes: int
) -> None:
    label = torch.tensor([1]) if classes else None
    J = dependence(built(config, classes=classes), images(1, 2, size), label)
    assert J.triu().max() == 0  # raster order: rows of J by output pixel, itself included
    pixel = torch.arange(size[0] * size[1])
    assert (J[pixel[1:], pixel[:-1]] > 0)[pixel[1:] % size[1] != 0].all()  # its left neighbour
    assert (J[pixel[size[1] :], pixel[: -size[1]]] > 0).all()  # the one above


@pytest.mark.parametrize(
    "config",
    [GatedPixelCNNConfig(width=6, layers=3), PixelCNNPlusPlusConfig(width=6, blocks=2)],
    ids=["gated", "plus plus"],
)
def test_there_is_no_blind_spot(config: Config) -> None:
    """All earlier pixels count, those above and to the right too (2016b, section 2.2)."""
    J = dependence(built(config), images(1, 2, (6, 6)), torch.tensor([2]))
    assert (J[torch.ones_like(J).tril(-1) > 0] > 0).all()


@every_config
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixel_by_pixel_is_what_all_at_once_gives(config: Config, size: tuple[int, int]) -> None:
    """What lies ahead is not there yet when a pixel is asked for."""
    network, x = built(config), images(3, 2, size)
    label = torch.tensor([0, 3, CLASSES])
    full = network(x, label)
    canvas, memory = torch.full_like(x, 7.0), Memory()
    with torch.no_grad():
        for i in range(size[0]):
            for j in range(size[1]):
                pixel = network(canvas, label, memory.at(i, j))
                assert pixel.shape == (3, OUTPUTS, 1, 1)
                torch.testing.assert_close(
                    pixel[:, :, 0, 0], full[:, :, i, j], rtol=1e-12, atol=1e-12
                )
                canvas[:, :, i, j] = x[:, :, i, j]


@every_config
def test_gradient_reaches_every_parameter(config: Config) -> None:
    network = built(config)
    network(images(2, 2, (8, 8)), torch.tensor([1, CLASSES])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@every_config
def test_no_label_is_the_last_class_and_rows_are_independent(config: Config) -> None:
    network, x = built(config), images(3, 2, (8, 8))
    label = torch.tensor([0, 1, 2])
    null = network(x, torch.full_like(label, CLASSES))
    assert torch.equal(network(x), null)
    together = network(x, label)
    assert (together - null).abs().amin(0).max() > 1e-3
    for row in range(3):
        alone = network(x[row : row + 1], label[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-11, atol=1e-11)
    unconditional = built(config, classes=0)
    assert torch.equal(unconditional(x, label), unconditional(x))


def test_ones_tell_the_image_from_what_is_beyond_it() -> None:
    x = images(2, 3, (4, 5))
    canvas = framed(x, above=2, side=1)
    assert canvas.shape == (2, 4, 6, 7)
    assert torch.equal(canvas[:, :3, 2:, 1:-1], x)
    assert (canvas[:, 3, 2:, 1:-1] == 1).all()
    assert canvas[:, 3].sum() == 2 * 4 * 5
    assert canvas[:, :, :2].abs().max() == canvas[..., [0, -1]].abs().max() == 0
    for row in range(4):
        assert torch.equal(framed(x, 2, 1, row), canvas[:, :, row : row + 3])


@every_config
def test_meta_device_and_back(config: Config) -> None:
    source, x, label = built(config), images(2, 2, (8, 8)), torch.tensor([0, 1])
    with torch.device("meta"):
        shell = config.build(channels=2, resolution=8, classes=CLASSES, outputs=OUTPUTS).double()
        assert shell(x.to("meta"), label.to("meta")).shape == (2, OUTPUTS, 8, 8)
    shell.to_empty(device="cpu").load_state_dict(source.state_dict())
    assert torch.equal(shell.eval()(x, label), source(x, label))


@pytest.mark.parametrize("name", ["gated", "plus plus"])
def test_compiles_as_one_graph(name: str) -> None:
    network, x, label = built(CONFIGS[name]), images(2, 2, (4, 4)), torch.tensor([0, 1])
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, label), network(x, label), rtol=1e-11, atol=1e-11)


def test_published_size_to_the_parameter() -> None:
    """Salimans et al. 2017, section 3: the CIFAR-10 network, counted by hand from its description.

    5 blocks and 160 filters at 3 resolutions and 10 logistics: 53.6 M.
    """
    F, blocks = 160, 5
    conv0, conv1 = 2 * F * F, 2 * F * 2 * F  # weights a point of the kernel
    vertical = 6 * (conv0 + conv1) + 3 * F
    horizontal = 4 * (conv0 + conv1) + 3 * F
    one, two = 2 * F * F + F, 4 * F * F + F  # 1x1 convolutions of one or two side inputs
    encoder = 3 * blocks * (vertical + horizontal + one)
    decoder = (3 * blocks + 2) * (vertical + one + horizontal + two)
    resampling = 4 * (6 * F * F + F + 4 * F * F + F)
    ends = 4 * F * (6 + 3 + 2) + 3 * F + 100 * (F + 1)
    with torch.device("meta"):
        network = PixelCNNPlusPlusConfig(width=F, blocks=blocks, dropout=0.5).build(
            channels=3, resolution=32, outputs=100
        )
    found = sum(parameter.numel() for parameter in network.parameters())
    assert found == encoder + decoder + resampling + ends
    assert round(found / 1e6, 1) == 53.6


def test_dropout_only_in_training() -> None:
    network = built(PixelCNNPlusPlusConfig(width=4, dropout=0.5))
    x = images(1, 2, (8, 8))
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))


BAD: dict[str, tuple[Config, str]] = {
    "even kernel": (GatedPixelCNNConfig(kernel=4), "kernel 4"),
    "first too small": (GatedPixelCNNConfig(first=1), "first 1"),
    "no width": (GatedPixelCNNConfig(width=0), "at least 1"),
    "no blocks": (PixelCNNPlusPlusConfig(blocks=0), "at least 1"),
    "all dropped": (PixelCNNPlusPlusConfig(dropout=1.0), "below 1"),
    "too many levels": (PixelCNNPlusPlusConfig(levels=5), "5 levels"),
}


@pytest.mark.parametrize(("config", "message"), BAD.values(), ids=BAD.keys())
def test_sizes_that_do_not_fit_are_refused(config: Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.build(channels=1, resolution=8, outputs=3)
