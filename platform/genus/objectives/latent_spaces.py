"""The latent spaces of a GAN's generator: z, which is drawn, and w, which styles live in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genus.draws import Draws
from genus.errors import ConfigError
from genus.objectives.conditioning import precision_of
from genus.objectives.generation import Plain, Styled
from genus.objectives.phase import Codes, Networks, SampleOptions


@dataclass(frozen=True)
class NormalSpace:
    """z (B, Z), standard normal; an image belongs to a z and a class."""

    generation: Plain | Styled
    is_normal: bool = True

    def draw(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Codes:
        """ConfigError for truncation, which moves w."""
        if options.truncation is not None:
            raise ConfigError("--truncation is for codes in w: there are none of them here")
        first = networks[self.generation.trains[0]]
        z = draws.normal("z", (self.generation.latent,), precision_of(first))
        if isinstance(self.generation, Plain):
            return Codes(z, None)
        return Codes(z, self.generation.noise(draws, z.dtype))

    def decode(self, networks: Networks, codes: Codes, label: Tensor | None) -> Tensor:
        """(B, C, H, W) images, or (B, D) vectors."""
        if isinstance(self.generation, Plain):
            made: Tensor = networks["generator"](codes.code, label)
            return made
        styles = self.generation.spread(networks["mapping"](codes.code, label))
        image: Tensor = networks["synthesis"](styles, codes.noise)
        return image


@dataclass(frozen=True)
class StyleSpace:
    """Styles (B, L, W), a w for each layer; drawn ones are alike in all layers. An image belongs to
    its styles and noise: the class is part of w."""

    generation: Styled
    is_normal: bool = False

    def draw(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Codes:
        """The styles, with the noise of each row."""
        styles = self.styles(networks, draws, label, options)
        return Codes(styles, self.noise(draws, styles.dtype))

    def styles(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Tensor:
        """(B, L, W): w = mapping(z, label), truncated where that is asked for."""
        generation, mapping = self.generation, networks["mapping"]
        styles = generation.styles(mapping, draws, label)
        if options.truncation is not None:
            w = generation.truncated(mapping, styles[:, 0], label, options.truncation)
            styles = generation.spread(w)
        return styles

    def noise(self, draws: Draws, dtype: torch.dtype) -> Tensor | None:
        """(B, N), of generators that add noise."""
        return self.generation.noise(draws, dtype)

    def decode(self, networks: Networks, codes: Codes, label: Tensor | None = None) -> Tensor:
        """(B, C, H, W) images."""
        made: Tensor = networks["synthesis"](codes.code, codes.noise)
        return made

    def noise_sizes(self, synthesis: nn.Module) -> list[int]:
        """Numbers of each of the square noise maps that follow each other in a row of noise."""
        sizes = getattr(synthesis, "noise_sizes", [])
        assert isinstance(sizes, list)
        assert sum(sizes) == self.generation.noise_size
        return sizes
