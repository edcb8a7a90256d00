"""Gated PixelCNN (van den Oord et al. 2016b): a vertical and a horizontal stack of gated layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.pixelcnn.causal import CausalConv, Memory, Place, framed, null_label
from genus.networks.roles import Roles


@dataclass(frozen=True, kw_only=True)
class GatedPixelCNNConfig:
    """Sizes of a gated PixelCNN."""

    width: int = 32
    """Features of each stack."""
    layers: int = 6
    """Gated layers after the first."""
    kernel: int = 3
    """Columns that the layers see, an odd number; of the rows above (kernel - 1) / 2."""
    first: int = 7
    """The same of the first layer, which leaves the pixel itself out."""
    head: int = 64
    """Features between the head's two convolutions."""

    def build(
        self, *, channels: int, resolution: int, classes: int = 0, outputs: int
    ) -> GatedPixelCNN:
        """The network, for images of any size; ConfigError for impossible sizes."""
        if min(self.width, self.head) < 1 or self.layers < 0:
            raise ConfigError("gated pixelcnn: width and head are at least 1, layers at least 0")
        if min(self.kernel, self.first) < 3 or self.kernel % 2 == 0 or self.first % 2 == 0:
            raise ConfigError(
                f"gated pixelcnn: kernel {self.kernel} and first {self.first} are to be odd and at "
                "least 3: the kernel has a middle"
            )
        return GatedPixelCNN(self, channels, classes, outputs)


class Gate(nn.Module):
    """tanh(a) sigmoid(b) of features (a, b) with the class added: eq. 2 and 4."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, 2 * width) if classes else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """(B, 2 F, H, W) -> (B, F, H, W)."""
        if self.table is not None:
            x = x + self.table(label)[:, :, None, None]
        a, b = x.chunk(2, dim=1)
        return a.tanh() * b.sigmoid()


class VerticalLayer(nn.Module):
    """Of the rows above: the stack's next features, and what the horizontal stack gets.

    The ``last`` layer has no next one, and so no gate: its weights would never get a gradient.
    """

    def __init__(self, conv: nn.Module, width: int, classes: int, last: bool) -> None:
        super().__init__()
        self.conv = conv
        self.gate = None if last else Gate(width, classes)
        self.across = nn.Conv2d(2 * width, 2 * width, 1)

    def forward(self, x: Tensor, label: Tensor, place: Place | None) -> tuple[Tensor, Tensor]:
        h = self.conv(x) if isinstance(self.conv, nn.Conv2d) else self.conv(x, place)
        return h if self.gate is None else self.gate(h, label), self.across(h)


class HorizontalLayer(nn.Module):
    """Of the row so far; the stack is a residual one, but for its first layer (figure 2)."""

    def __init__(self, conv: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.conv = conv
        self.gate = Gate(width, classes)
        self.out = nn.Conv2d(width, width, 1)

    def forward(
        self, x: Tensor, from_vertical: Tensor, label: Tensor, place: Place | None
    ) -> Tensor:
        first = isinstance(self.conv, nn.Conv2d)
        h = self.conv(x) if first else self.conv(x, place)
        y: Tensor = self.out(self.gate(h + from_vertical, label))
        return y if first else x + y


class GatedPixelCNN(nn.Module):
    """Images to what the distribution of each pixel given the earlier ones needs."""

    def __init__(
        self, config: GatedPixelCNNConfig, channels: int, classes: int, outputs: int
    ) -> None:
        super().__init__()
        self.classes = classes
        self.reach = config.first // 2
        width, inputs = config.width, channels + 1
        half = config.kernel // 2 + 1
        above = nn.Conv2d(inputs, 2 * width, (self.reach, config.first))
        left = nn.Conv2d(inputs, 2 * width, (1, self.reach))
        self.vertical = nn.ModuleList([VerticalLayer(above, width, classes, config.layers == 0)])
        self.horizontal = nn.ModuleList([HorizontalLayer(left, width, classes)])
        for i in range(config.layers):
            conv = CausalConv(width, 2 * width, (half, config.kernel), "vertical")
            self.vertical.append(VerticalLayer(conv, width, classes, i + 1 == config.layers))
            conv = CausalConv(width, 2 * width, (1, half), "horizontal")
            self.horizontal.append(HorizontalLayer(conv, width, classes))
        self.head0 = nn.Conv2d(width, config.head, 1)
        self.head1 = nn.Conv2d(config.head, outputs, 1)

    @property
    def roles(self) -> Roles:
        reads = [
            stream[0].get_parameter("conv.weight") for stream in (self.vertical, self.horizontal)
        ]
        return Roles(reads, [self.head1.weight])

    def forward(
        self, x: Tensor, label: Tensor | None = None, memory: Memory | None = None
    ) -> Tensor:
        """x (B, C, H, W) in [-1, 1], label (B,) or None -> (B, outputs, H, W), of which (i, j)
        depends on the pixels before (i, j) alone; with ``memory`` its pixel, (B, outputs, 1, 1)."""
        label = null_label(label, self.classes, x)
        reach = self.reach
        if memory is None:
            canvas = framed(x, reach, reach)
            across = self.rows_above(canvas, label, None)
            place = None
        else:
            row, column, W = memory.row, memory.column, x.shape[3]
            canvas = framed(x, reach, reach, row)
            if column == 0:
                whole = Place(memory, row, None, W)
                memory.vertical[0] = self.rows_above(canvas, label, whole)
            across = [feature[..., column : column + 1] for feature in memory.vertical[0]]
            canvas = canvas[..., column : column + 2 * reach + 1]
            place = Place(memory, row, column, W)
        h = canvas[:, :, reach:, : -reach - 1]  # this row, from ``reach`` before each pixel on
        for layer, feature in zip(self.horizontal, across, strict=True):
            h = layer(h, feature, label, place)
        y: Tensor = self.head1(F.relu(self.head0(F.relu(h))))
        return y

    def rows_above(self, canvas: Tensor, label: Tensor, place: Place | None) -> list[Tensor]:
        """The vertical stack's contributions to each layer of the horizontal one."""
        v, across = canvas[:, :, :-1], []
        for layer in self.vertical:
            v, feature = layer(v, label, place)
            across.append(feature)
        return across
