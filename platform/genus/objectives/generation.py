"""How a GAN's networks make data of random numbers: plainly, or by styles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genus.draws import Draws, seed_of
from genus.objectives.conditioning import precision_of
from genus.objectives.phase import Networks

CENTRE_SAMPLES = 10_000
"""Of z, whose mean w is the centre that truncation draws towards."""


@dataclass(frozen=True)
class Plain:
    """x = generator(z, label)."""

    latent: int
    """Numbers of z."""

    trains: tuple[str, ...] = ("generator",)

    def draw(self, networks: Networks, draws: Draws, label: Tensor | None) -> Tensor:
        """(B, ...) generated data, one row a row of ``draws``."""
        generator = networks["generator"]
        z = draws.normal("z", (self.latent,), precision_of(generator))
        made: Tensor = generator(z, label)
        return made


@dataclass(frozen=True)
class Styled:
    """x = synthesis(styles, noise), of styles w = mapping(z, label), one for each of L layers."""

    latent: int
    """Numbers of z."""
    layers: int
    """L"""
    noise_size: int
    """Numbers of noise a sample."""
    mixing: float
    """Probability that a training row takes its later layers' styles from a second z."""
    known: Centres = field(default_factory=lambda: Centres(), compare=False, repr=False)
    """Centres of w that were worked out."""

    trains: tuple[str, ...] = ("mapping", "synthesis")

    def draw(self, networks: Networks, draws: Draws, label: Tensor | None) -> Tensor:
        """(B, C, H, W) generated images as training sees them: with style mixing and noise."""
        styles = self.mixed_styles(networks["mapping"], draws, label)
        return self.image(networks["synthesis"], styles, draws)

    def styles(self, mapping: nn.Module, draws: Draws, label: Tensor | None) -> Tensor:
        """(B, L, W): one w for all layers."""
        w: Tensor = mapping(draws.normal("z", (self.latent,), precision_of(mapping)), label)
        return self.spread(w)

    def spread(self, w: Tensor) -> Tensor:
        """(B, L, W) of (B, W)."""
        return w[:, None].expand(-1, self.layers, -1)

    def mixed_styles(self, mapping: nn.Module, draws: Draws, label: Tensor | None) -> Tensor:
        """(B, L, W): with probability ``mixing`` two w meet at a layer, uniform in 1..L-1
        (Karras et al. 2019, section 3.1)."""
        if not self.mixing:
            return self.styles(mapping, draws, label)
        z = draws.normal("z", (2, self.latent), precision_of(mapping))
        twice = None if label is None else torch.cat([label, label])
        first, second = mapping(z.transpose(0, 1).flatten(0, 1), twice).chunk(2)
        crossing = 1 + draws.integers("crossing", max(1, self.layers - 1))
        is_mixed = draws.uniform("mixing") < self.mixing
        crossing = crossing.where(is_mixed, self.layers)
        is_first = torch.arange(self.layers, device=z.device) < crossing[:, None]
        return torch.where(is_first[:, :, None], first[:, None], second[:, None])

    def image(self, synthesis: nn.Module, styles: Tensor, draws: Draws) -> Tensor:
        """(B, C, H, W) of styles (B, L, W), with the noise that belongs to the rows."""
        made: Tensor = synthesis(styles, self.noise(draws, styles.dtype))
        return made

    def noise(self, draws: Draws, dtype: torch.dtype) -> Tensor | None:
        """(B, N), of generators that add noise: of 1024 pixels some 11 MB a row."""
        return draws.normal("noise", (self.noise_size,), dtype) if self.noise_size else None

    def centre(self, mapping: nn.Module, label: Tensor | None) -> Tensor:
        """(1, W) the mean w, or (B, W): of each row's class.

        Worked out from the weights in use, with z that are always the same, so that there is no
        average to keep in training, and averaged weights have their own centre. Remembered for as
        long as the weights stay.
        """
        if label is None:
            return self.known.of(mapping, self.latent, None)[None]
        kinds = torch.unique(label)
        means = [self.known.of(mapping, self.latent, kind) for kind in kinds]
        return torch.stack(means)[torch.searchsorted(kinds, label)]

    def truncated(self, mapping: nn.Module, w: Tensor, label: Tensor | None, psi: float) -> Tensor:
        """(B, W) centre + psi (w - centre): Karras et al. 2019, appendix B."""
        centre = self.centre(mapping, label)
        return centre + psi * (w - centre)


class Centres:
    """The mean w of all classes or of one, remembered while a mapping's weights stay."""

    def __init__(self) -> None:
        self._weights: list[tuple[int, int]] = []
        self._found: dict[int | None, Tensor] = {}

    def of(self, mapping: nn.Module, latent: int, kind: Tensor | None) -> Tensor:
        """(W,) of class ``kind``, a number, if there are classes."""
        # the version counts changes in place, as an average is lent
        weights = [(p.data_ptr(), p._version) for p in mapping.parameters()]
        if weights != self._weights or torch.is_grad_enabled():
            self._weights, self._found = weights, {}
        key = None if kind is None else int(kind)
        if key not in self._found:
            z = Draws.of([seed_of("centre")], CENTRE_SAMPLES).normal("z", (latent,))
            z = z.to(next(iter(mapping.parameters())))
            w: Tensor = mapping(z, None if kind is None else kind.expand(len(z)))
            self._found[key] = w.mean(0)
        return self._found[key]


def generation_of(networks: Mapping[str, nn.Module], mixing: float = 0.0) -> Plain | Styled:
    """By the networks that there are. ``mixing`` is of styles, and of no use to others."""
    if "mapping" not in networks:
        return Plain(_of(networks["generator"], "latent"))
    synthesis = networks["synthesis"]
    latent = _of(networks["mapping"], "latent")
    return Styled(latent, _of(synthesis, "layers"), _of(synthesis, "noise_size"), mixing)


def _of(network: nn.Module, name: str) -> int:
    value = getattr(network, name)
    assert isinstance(value, int)
    return value
