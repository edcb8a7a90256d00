"""PixelCNN++ (Salimans et al. 2017): gated residual blocks at several resolutions, with shortcuts.

Departure from the published network: no weight normalisation. Its initialisation needs a pass over
data before training, and a norm over an image's points would let later pixels be seen; torch's own
initialisation, with the last convolution of every block times 0.1 as published, trains as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.pixelcnn.causal import (
    CausalConv,
    Down,
    Memory,
    Place,
    Stream,
    Up,
    framed,
    null_label,
)
from genus.networks.roles import Roles

KERNELS: dict[Stream, tuple[int, int]] = {"vertical": (2, 3), "horizontal": (2, 2)}


@dataclass(frozen=True, kw_only=True)
class PixelCNNPlusPlusConfig:
    """Sizes of a PixelCNN++.

    Published for CIFAR-10: width 160, 5 blocks, 3 levels, dropout 0.5, with 100 outputs (10
    logistics); that has 53.6 M parameters here, without the published one's gains of the weights.
    """

    width: int = 48
    """Features of each stream (nr_filters)."""
    blocks: int = 1
    """Residual blocks a level in the encoder (nr_resnet); the decoder has one more at all levels
    but the coarsest."""
    levels: int = 3
    """Resolutions; each further one has half the last one's."""
    dropout: float = 0.0
    """Probability, within every residual block."""

    def build(
        self, *, channels: int, resolution: int, classes: int = 0, outputs: int
    ) -> PixelCNNPlusPlus:
        """The network; ConfigError where the sizes do not fit one another."""
        if min(self.width, self.blocks, self.levels) < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                "pixelcnn++: width, blocks and levels are at least 1, dropout is below 1"
            )
        if resolution < 1 << (self.levels - 1):
            raise ConfigError(
                f"pixelcnn++: {self.levels} levels halve {resolution} px to nothing: take fewer"
            )
        return PixelCNNPlusPlus(self, channels, classes, outputs)


class GatedBlock(nn.Module):
    """x + a sigmoid(b), with (a, b) from two causal convolutions of x, a side input and the class.

    The nonlinearity is ELU of x and -x, so the convolutions have twice the features as input.
    """

    def __init__(
        self, config: PixelCNNPlusPlusConfig, stream: Stream, side: int, classes: int
    ) -> None:
        """``side``: features of the side input, 0 for none."""
        super().__init__()
        width, kernel = config.width, KERNELS[stream]
        self.conv0 = CausalConv(2 * width, width, kernel, stream)
        self.join = nn.Conv2d(2 * side, width, 1) if side else None
        self.dropout = nn.Dropout(config.dropout)
        self.conv1 = CausalConv(2 * width, 2 * width, kernel, stream)
        self.table = nn.Embedding(classes + 1, 2 * width) if classes else None
        with torch.no_grad():
            self.conv1.conv.weight.mul_(0.1)
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, x: Tensor, side: Tensor | None, label: Tensor, place: Place | None) -> Tensor:
        h = self.conv0(concat_elu(x), place)
        if self.join is not None:
            assert side is not None, "the block was made for a side input"
            h = h + self.join(concat_elu(side))
        h = self.conv1(self.dropout(concat_elu(h)), place)
        if self.table is not None:
            h = h + self.table(label)[:, :, None, None]
        a, b = h.chunk(2, dim=1)
        return torch.addcmul(x, a, b.sigmoid())


class Level(nn.Module):
    """One stream at one resolution: an encoder, the coarser levels, a decoder with shortcuts.

    The vertical stream's features of each depth, encoder first, are what the horizontal one reads,
    block by block. They are returned, not written into an argument, of which hooks may hand on a
    copy (ZeRO-3's do).
    """

    def __init__(
        self, config: PixelCNNPlusPlusConfig, stream: Stream, classes: int, depth: int = 0
    ) -> None:
        super().__init__()
        self.stream, self.depth = stream, depth
        width, reads = config.width, stream == "horizontal"
        self.inner: Level | None = None
        shortcuts = config.blocks
        if depth + 1 < config.levels:
            shortcuts += 1
            self.down = Down(width, KERNELS[stream], stream)
            self.inner = Level(config, stream, classes, depth + 1)
            self.up = Up(width, KERNELS[stream])
        sides = width if reads else 0
        self.encoder = nn.ModuleList(
            GatedBlock(config, stream, sides, classes) for _ in range(config.blocks)
        )
        self.decoder = nn.ModuleList(
            GatedBlock(config, stream, sides + width, classes) for _ in range(shortcuts)
        )

    def forward(
        self, x: Tensor, label: Tensor, vertical: dict[int, list[Tensor]], place: Place | None
    ) -> tuple[Tensor, dict[int, list[Tensor]]]:
        """(B, F, H, W) -> (B, F, H, W), or what is at the place; and the features of a vertical
        stream by depth."""
        features: dict[int, list[Tensor]] = {}
        reads = self.stream == "horizontal"
        read = iter(self.read(vertical, place) if reads else ())
        written, shortcuts = [], [x]
        for block in self.encoder:
            x = block(x, next(read) if reads else None, label, place)
            shortcuts.append(x)
            written.append(x)
        if self.inner is None:
            shortcuts.pop()
        else:
            coarse = self.down(x, place)
            if coarse is not None:
                inside = None if place is None else place.coarser()
                coarse, features = self.inner(coarse, label, vertical, inside)
            x = self.up(coarse, place)
        for block in self.decoder:
            side = shortcuts.pop()
            x = block(x, torch.cat([next(read), side], dim=1) if reads else side, label, place)
            written.append(x)
        if not reads:
            features[self.depth] = written
        return x, features

    def read(self, vertical: dict[int, list[Tensor]], place: Place | None) -> list[Tensor]:
        """The vertical stream's features of this level."""
        features = vertical[self.depth]
        if place is None or place.column is None:
            return features
        return [feature[..., place.column : place.column + 1] for feature in features]


class PixelCNNPlusPlus(nn.Module):
    """Images to what the distribution of each pixel given the earlier ones needs."""

    def __init__(
        self, config: PixelCNNPlusPlusConfig, channels: int, classes: int, outputs: int
    ) -> None:
        super().__init__()
        self.classes = classes
        self.factor = 1 << (config.levels - 1)
        width, inputs = config.width, channels + 1
        self.above0 = nn.Conv2d(inputs, width, (2, 3))
        self.above1 = nn.Conv2d(inputs, width, (1, 3))
        self.left = nn.Conv2d(inputs, width, (2, 1))
        self.vertical = Level(config, "vertical", classes)
        self.horizontal = Level(config, "horizontal", classes)
        self.head = nn.Conv2d(width, outputs, 1)

    @property
    def roles(self) -> Roles:
        reads = [layer.weight for layer in (self.above0, self.above1, self.left)]
        return Roles(reads, [self.head.weight])

    def forward(
        self, x: Tensor, label: Tensor | None = None, memory: Memory | None = None
    ) -> Tensor:
        """x (B, C, H, W) in [-1, 1], label (B,) or None -> (B, outputs, H, W), of which (i, j)
        depends on the pixels before (i, j) alone; with ``memory`` its pixel, (B, outputs, 1, 1)."""
        H, W = x.shape[2:]
        label = null_label(label, self.classes, x)
        # what is added below and to the right comes after all pixels of the image
        x = F.pad(x, (0, -W % self.factor, 0, -H % self.factor))
        if memory is None:
            canvas = framed(x, 2, 1)
            _, vertical = self.vertical(self.above0(canvas[:, :, :-1]), label, {}, None)
            place = None
        else:
            canvas = framed(x, 2, 1, memory.row)
            vertical, column = memory.vertical, memory.column
            if column == 0:
                place = Place(memory, memory.row, None, x.shape[3])
                vertical |= self.vertical(self.above0(canvas[:, :, :-1]), label, {}, place)[1]
            place = Place(memory, memory.row, column, x.shape[3])
            canvas = canvas[..., column : column + 3]
        h = self.above1(canvas[:, :, 1:-1]) + self.left(canvas[:, :, 1:, :-2])
        h, _ = self.horizontal(h, label, vertical, place)
        y: Tensor = self.head(F.elu(h))
        return y[:, :, :H, :W]


def concat_elu(x: Tensor) -> Tensor:
    """(B, F, ...) -> (B, 2 F, ...): ELU of x and of -x (Salimans et al. 2017, after Shang 2016)."""
    return F.elu(torch.cat([x, -x], dim=1))
