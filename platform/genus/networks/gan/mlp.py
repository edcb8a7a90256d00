"""Perceptrons as generator and discriminator of vectors: for toy densities."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.gan.shapes import one_hot, with_label


class Perceptron(nn.Module):
    """(B, I) -> (B, O): ``depth`` hidden layers of ``width`` with leaky ReLU, then a linear one."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(width if number else inputs, width), nn.LeakyReLU(0.2))
            for number in range(depth)
        )
        self.out = nn.Linear(width, outputs)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                gain = 1.0 if part is self.out else nn.init.calculate_gain("leaky_relu", 0.2)
                nn.init.normal_(part.weight, std=gain / part.in_features**0.5)
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = layer(x)
        y: Tensor = self.out(x)
        return y


class MLPGenerator(nn.Module):
    """z (B, Z), label (B,) -> x (B, D)."""

    def __init__(self, latent: int, dims: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        self.net = Perceptron(latent + classes, dims, width, depth)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        hot = one_hot(label, self.classes, z) if self.classes else None
        x: Tensor = self.net(with_label(z, hot))
        return x


class MLPDiscriminator(nn.Module):
    """x (B, D), label (B,) -> logits (B,)."""

    group = 1

    def __init__(self, dims: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.classes = classes
        self.net = Perceptron(dims + classes, 1, width, depth)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        hot = one_hot(label, self.classes, x) if self.classes else None
        logits: Tensor = self.net(with_label(x, hot))[:, 0]
        return logits


@dataclass(frozen=True, kw_only=True)
class MLPGANConfig:
    """Sizes."""

    latent: int = 2
    """Numbers of z."""
    width: int = 128
    """Features of a hidden layer."""
    depth: int = 3
    """Hidden layers."""

    def build(self, shape: tuple[int, ...], classes: int) -> dict[str, nn.Module]:
        """generator and discriminator of vectors ``shape`` (D,); ``classes`` 0 is unconditional.
        ConfigError for impossible sizes."""
        if len(shape) != 1:
            raise ConfigError(f"perceptrons make vectors (D,), and the data is {shape}")
        if min(self.latent, self.width, self.depth) < 1:
            raise ConfigError("perceptrons: latent, width and depth are at least 1")
        return {
            "generator": MLPGenerator(self.latent, shape[0], classes, self.width, self.depth),
            "discriminator": MLPDiscriminator(shape[0], classes, self.width, self.depth),
        }
