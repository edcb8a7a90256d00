"""What all generators and discriminators keep, whatever their architecture."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.gan.dcgan import DCGANConfig
from genus.networks.gan.mlp import MLPGANConfig
from genus.networks.gan.r3gan import R3GANConfig
from genus.networks.gan.stylegan2 import StyleGAN2Config
from genus.networks.units import recompute, units_of

Config = StyleGAN2Config | R3GANConfig | DCGANConfig | MLPGANConfig


@dataclass(frozen=True)
class Style(StyleGAN2Config):
    """Small sizes."""

    latent: int = 6
    width: int = 8
    mapping_layers: int = 2
    channels_base: int = 64
    channels_max: int = 8
    label_layers: int = 2
    group: int = 2


IMAGE, VECTOR = (3, 16, 16), (2,)
CLASSES, ROWS = 3, 4
CASES: dict[str, tuple[Config, tuple[int, ...]]] = {
    "stylegan2": (Style(), IMAGE),
    "stylegan2 grouped": (Style(grouped=True), IMAGE),
    "stylegan2 residual": (Style(generator="resnet", discriminator="orig", group=1), IMAGE),
    "stylegan2 skip": (Style(discriminator="skip", clamp=256.0), (1, 8, 8)),
    "stylegan2 filtered": (Style(filtered=True), IMAGE),
    "r3gan": (R3GANConfig(latent=6, widths=(16, 16, 8), group_width=8), IMAGE),
    "r3gan adapters": (R3GANConfig(latent=6, widths=(8, 16), blocks=1, group_width=4), (1, 8, 8)),
    "dcgan": (DCGANConfig(latent=6, width=8), IMAGE),
    "dcgan wide": (DCGANConfig(latent=6, width=8), (1, 32, 32)),
    "mlp": (MLPGANConfig(width=16, depth=2), VECTOR),
}
every_case = pytest.mark.parametrize(("config", "shape"), CASES.values(), ids=CASES.keys())


class Generator(nn.Module):
    """z, label -> x of either kind of generator."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {name: part for name, part in networks.items() if name != "discriminator"}
        )
        if "synthesis" in networks:
            self.noise = normal(1, networks["synthesis"].noise_size, seed=9)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        if "generator" in self.parts:
            x: Tensor = self.parts["generator"](z, label)
            return x
        synthesis = self.parts["synthesis"]
        w = self.parts["mapping"](z, label)
        noise = self.noise.to(z).expand(len(z), -1)
        x = synthesis(w[:, None].expand(-1, synthesis.layers, -1), noise)
        return x

    @property
    def latent(self) -> int:
        return next(part.latent for part in self.parts.values() if hasattr(part, "latent"))


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def built(
    config: Config, shape: tuple[int, ...], classes: int = CLASSES
) -> tuple[Generator, nn.Module]:
    """In float64, with random numbers added to the zeros that networks start from."""
    torch.manual_seed(0)
    networks = config.build(shape, classes)
    for network in networks.values():
        network.double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Generator(networks), networks["discriminator"]


def inputs(generator: Generator) -> tuple[Tensor, Tensor]:
    return normal(ROWS, generator.latent, seed=1), torch.arange(ROWS) % CLASSES


def data(shape: tuple[int, ...]) -> Tensor:
    return normal(ROWS, *shape, seed=2)


@every_case
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_shapes(config: Config, shape: tuple[int, ...], classes: int) -> None:
    generator, discriminator = built(config, shape, classes)
    z, label = inputs(generator)
    given = label if classes else None
    x = generator(z, given)
    assert x.shape == (ROWS, *shape)
    assert discriminator(x, given).shape == (ROWS,)
    assert discriminator(x[:1], None if given is None else given[:1]).shape == (1,)
    assert isinstance(discriminator.group, int)
    assert all(
        parameter.dim()
        for network in (generator, discriminator)
        for parameter in network.parameters()
    )


@every_case
def test_gradient_reaches_every_parameter(config: Config, shape: tuple[int, ...]) -> None:
    generator, discriminator = built(config, shape)
    z, label = inputs(generator)
    logits = discriminator(generator(z, label), label)
    (logits * normal(ROWS, seed=3)).sum().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@every_case
def test_gradient_penalty_reaches_the_weights(config: Config, shape: tuple[int, ...]) -> None:
    """The gradient of |grad_x D|^2 reaches all but the last bias, and is not 0 for any weight."""
    _, discriminator = built(config, shape)
    x, label = data(shape).requires_grad_(), torch.arange(ROWS) % CLASSES
    (gradient,) = torch.autograd.grad(discriminator(x, label).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    missing = [name for name, p in discriminator.named_parameters() if p.grad is None]
    assert missing in ([], ["out.bias"], ["net.out.bias"])
    for name, parameter in discriminator.named_parameters():
        if name not in missing and parameter.dim() > 1:
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


@every_case
def test_penalty_of_finite_differences(config: Config, shape: tuple[int, ...]) -> None:
    """The derivative of |grad_x D|^2 along a direction of all parameters, by differences."""
    _, discriminator = built(config, shape)
    x, label = data(shape).requires_grad_(), torch.arange(ROWS) % CLASSES

    def penalty() -> Tensor:
        (gradient,) = torch.autograd.grad(discriminator(x, label).sum(), x, create_graph=True)
        return gradient.square().sum()

    parameters = list(discriminator.parameters())
    torch.manual_seed(4)
    direction = [torch.randn_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None)
    ends, step = [], 1e-6
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(along, alpha=sign * step)
        ends.append(penalty().detach())
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-4, atol=1e-6)


@every_case
def test_rows_are_independent(config: Config, shape: tuple[int, ...]) -> None:
    generator, discriminator = built(config, shape)
    z, label = inputs(generator)
    together = generator(z, label)
    for row in range(ROWS):
        one = slice(row, row + 1)
        torch.testing.assert_close(generator(z[one], label[one]), together[one])
    logits, size = discriminator(together, label), discriminator.group
    for start in range(0, ROWS, size):
        own = slice(start, start + size)
        torch.testing.assert_close(discriminator(together[own], label[own]), logits[own])


@every_case
def test_rows_of_a_group_do_matter(config: Config, shape: tuple[int, ...]) -> None:
    _, discriminator = built(config, shape)
    x, label = data(shape), torch.zeros(ROWS, dtype=torch.long)
    other = x.clone()
    other[1] += 1
    same = (discriminator(x, label)[0] - discriminator(other, label)[0]).abs() < 1e-12
    assert bool(same) == (discriminator.group == 1)


@every_case
def test_label_changes_the_output(config: Config, shape: tuple[int, ...]) -> None:
    generator, discriminator = built(config, shape)
    z, label = inputs(generator)
    x, other = data(shape), (label + 1) % CLASSES
    assert (generator(z, label) - generator(z, other)).abs().max() > 1e-6
    assert (discriminator(x, label) - discriminator(x, other)).abs().min() > 1e-9
    for network, given in ((generator, z), (discriminator, x)):
        with pytest.raises(ValueError, match="needs a label"):
            network(given, None)
    free = built(config, shape, classes=0)
    assert torch.equal(free[0](z, label), free[0](z, None))
    assert torch.equal(free[1](x, label), free[1](x, None))


@every_case
def test_state_makes_the_network(config: Config, shape: tuple[int, ...]) -> None:
    """Nothing is hidden from the state: made without memory, then loaded."""
    source = built(config, shape)
    with torch.device("meta"):
        networks = config.build(shape, CLASSES)
        shells = Generator(networks), networks["discriminator"]
    for shell, origin in zip(shells, source, strict=True):
        shell.double().to_empty(device="cpu").load_state_dict(origin.state_dict())
    z, label = inputs(source[0])
    assert torch.equal(shells[0](z, label), source[0](z, label))
    assert torch.equal(shells[1](data(shape), label), source[1](data(shape), label))


@every_case
def test_calls_leave_no_trace(config: Config, shape: tuple[int, ...]) -> None:
    """The same call gives the same, draws no random numbers and keeps the inputs."""
    generator, discriminator = built(config, shape)
    z, label = inputs(generator)
    x = data(shape)
    kept = [value.clone() for value in (z, label, x)]
    before = torch.get_rng_state()
    first = generator(z, label), discriminator(x, label)
    second = generator(z, label), discriminator(x, label)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip((z, label, x), kept, strict=True))


@every_case
def test_units_are_found_and_can_be_recomputed(config: Config, shape: tuple[int, ...]) -> None:
    generator, discriminator = built(config, shape)
    z, label = inputs(generator)
    for network, given in ((generator, z), (discriminator, data(shape))):
        assert len(units_of(network)) >= 1
        again = copy.deepcopy(network)
        recompute(again)
        for one in (network, again):
            one(given, label).square().sum().backward()
        for (name, mine), other in zip(network.named_parameters(), again.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, msg=name)


@pytest.mark.slow
@every_case
def test_compiles_as_one_graph(config: Config, shape: tuple[int, ...]) -> None:
    generator, discriminator = built(config, shape)
    z, label = inputs(generator)
    for network, given in ((generator, z), (discriminator, data(shape))):
        torch.compiler.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(given, label), network(given, label))


@pytest.mark.slow
@every_case
def test_bfloat16_autocast_is_close(config: Config, shape: tuple[int, ...]) -> None:
    generator, discriminator = (network.float() for network in built(config, shape))
    z, label = inputs(generator)
    for network, given in ((generator, z.float()), (discriminator, data(shape).float())):
        exact = network(given, label)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(given, label)
        assert (rounded.float() - exact).norm() < 0.1 * exact.norm()


BAD: dict[str, tuple[Config, tuple[int, ...], str]] = {
    "not square": (DCGANConfig(), (3, 16, 32), "16 x 32"),
    "no power of two": (Style(), (1, 28, 28), "28 x 28"),
    "too small": (R3GANConfig(), (1, 4, 4), "4 x 4"),
    "vectors": (DCGANConfig(), (2,), r"images \(C, H, W\)"),
    "images": (MLPGANConfig(), (1, 8, 8), r"vectors \(D,\)"),
    "widths": (R3GANConfig(), (3, 64, 64), "64 pixels take 5 widths"),
    "groups": (R3GANConfig(widths=(12, 12)), (3, 8, 8), "group_width 16"),
    "no blocks": (R3GANConfig(blocks=0), (3, 32, 32), "at least 1"),
    "no features": (StyleGAN2Config(channels_base=32), (3, 64, 64), "at least 64"),
    "no group": (Style(group=0), IMAGE, "at least 1"),
    "no width": (DCGANConfig(width=0), IMAGE, "at least 1"),
    "no depth": (MLPGANConfig(depth=0), VECTOR, "at least 1"),
}


@pytest.mark.parametrize(("config", "shape", "message"), BAD.values(), ids=BAD.keys())
def test_impossible_sizes_are_refused(config: Config, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.build(shape, 0)
