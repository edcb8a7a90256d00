"""Convolutions that see earlier pixels only, over a whole image or one pixel after the other.

"Earlier" is in raster order: all rows above, and what is left in the same row. Two streams share
the work (van den Oord et al. 2016b, figure 1): the *vertical* one sees the rows above, over their
whole width; the *horizontal* one sees the rows above and the row so far, and takes the vertical
one's features. Both are strict from their first layer on, which leaves the pixel itself out; all
further layers may then look at their own place.

Sampling goes pixel by pixel, and nothing that a pixel needs of the earlier ones changes any more
(Ramachandran et al. 2017): the vertical stream runs once a row, the horizontal one once a pixel,
on the windows of inputs that ``Memory`` keeps. A whole image costs what one pass over it costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stream = Literal["vertical", "horizontal"]


@dataclass
class Memory:
    """What sampling keeps between the calls of a network, and the pixel that is asked for.

    The pixels are to be asked for in raster order, each once, without gradients, by batches of the
    same rows; a new image takes a new memory.
    """

    row: int = 0
    column: int = 0
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    """Of each layer: the rows of its input that it can still see; upsampled rows."""
    vertical: dict[int, list[Tensor]] = field(default_factory=dict)
    """The vertical stream's features of this row, by level of resolution (0: finest)."""

    def at(self, row: int, column: int) -> Memory:
        """The same memory, asked for another pixel."""
        self.row, self.column = row, column
        return self


@dataclass(frozen=True)
class Place:
    """Where a layer works in sampling: a row of ``width`` features, or a column of it."""

    memory: Memory
    row: int
    column: int | None
    """None: the whole row."""
    width: int

    def coarser(self) -> Place:
        """This place at half the resolution."""
        column = None if self.column is None else self.column // 2
        return Place(self.memory, self.row // 2, column, self.width // 2)

    @property
    def begins_coarser(self) -> bool:
        """Whether a feature at half the resolution can be computed from here on: the top left one
        of the four that it stands for completes what it sees."""
        return self.row % 2 == 0 and (self.column is None or self.column % 2 == 0)


class CausalConv(nn.Module):
    """A convolution whose kernel ends in its own row: in the middle of it (vertical), or at its end
    (horizontal); zeros stand for what is beyond the image."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stream: Stream, stride: int = 1
    ) -> None:
        super().__init__()
        self.rows, columns = kernel
        self.left = columns // 2 if stream == "vertical" else columns - 1
        self.right = columns - 1 - self.left
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride)

    def forward(self, x: Tensor, place: Place | None = None) -> Tensor:
        """x (B, C, H, W), or with a place what is there of it, (B, C, 1, W or 1)."""
        y: Tensor = self.conv(self.window(x, place))
        return y

    def window(self, x: Tensor, place: Place | None) -> Tensor:
        """x with all that the kernel sees around it; with a place, x is remembered."""
        if place is None:
            return F.pad(x, (self.left, self.right, self.rows - 1, 0))
        kept = place.memory.inputs.get(self)
        if kept is None:
            B, C = x.shape[:2]
            kept = x.new_zeros(B, C, self.rows, self.left + place.width + self.right)
        if not place.column:  # a new row: the oldest is forgotten
            kept = torch.cat([kept[:, :, 1:], torch.zeros_like(kept[:, :, :1])], dim=2)
            place.memory.inputs[self] = kept
        start, count = place.column or 0, x.shape[3]
        kept[:, :, -1, self.left + start : self.left + start + count] = x[:, :, 0]
        return kept[..., start : start + self.left + count + self.right]


class Down(nn.Module):
    """Half the resolution: one feature for 2 x 2, which sees what the first of them sees."""

    def __init__(self, width: int, kernel: tuple[int, int], stream: Stream) -> None:
        super().__init__()
        self.causal = CausalConv(width, width, kernel, stream, stride=2)

    def forward(self, x: Tensor, place: Place | None = None) -> Tensor | None:
        """None where no coarser feature begins at the place."""
        window = self.causal.window(x, place)
        if place is not None and not place.begins_coarser:
            return None
        y: Tensor = self.causal.conv(window)
        return y


class Up(nn.Module):
    """Twice the resolution: 2 x 2 of one feature, none before what the feature has seen."""

    def __init__(self, width: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        side = (kernel[1] - 1) // 2
        self.conv = nn.ConvTranspose2d(
            width, width, kernel, 2, padding=(0, side), output_padding=(0, side)
        )

    def forward(self, x: Tensor | None, place: Place | None = None) -> Tensor:
        """x None: the place lies in a feature that was given before. ``place`` is the finer one."""
        if place is None:
            y: Tensor = self.conv(x)
            return y
        kept = place.memory.inputs.get(self)
        column = place.column or 0
        if x is not None:
            y = self.conv(x)
            if kept is None:
                kept = y.new_zeros(*y.shape[:3], place.width)
                place.memory.inputs[self] = kept
            kept[..., column : column + y.shape[3]] = y
        assert kept is not None, "the first pixel begins at every resolution"
        row = kept[:, :, place.row % 2, None]
        return row if place.column is None else row[..., column : column + 1]


def framed(x: Tensor, above: int, side: int, row: int | None = None) -> Tensor:
    """Images (B, C, H, W) with a channel of ones, in a frame of zeros ``above`` and at both sides:
    (B, C + 1, above + H, side + W + side). The ones tell black from what is beyond the image.

    With ``row``: of that row and those above it only, (B, C + 1, above + 1, ...).
    """
    top = above
    if row is not None:
        x = x[:, :, max(0, row - above) : row + 1]
        top = above + 1 - x.shape[2]
    return F.pad(torch.cat([x, torch.ones_like(x[:, :1])], dim=1), (side, side, top, 0))


def null_label(label: Tensor | None, classes: int, x: Tensor) -> Tensor:
    """(B,) classes, ``classes`` itself where none is given."""
    return x.new_full((len(x),), classes, dtype=torch.long) if label is None else label
