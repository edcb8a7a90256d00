"""What an encoder reads of a batch: tokens, stacked frames of sound, or patches of an image.

Shapes: B rows, S elements of a source, F numbers of a frame or patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from genus.data.batch import Batch
from genus.data.manifest import DataInfo
from genus.errors import ConfigError
from genus.objectives.conditioning import image_of

TRIM = 16
"""Sources and targets are cut to a multiple of this: padding to the longest of the data set costs
several times the work, and few different shapes keep compiled networks compiled."""


class Source(NamedTuple):
    """As ``EncoderDecoder`` takes it, and how long each is."""

    values: Tensor
    """(B, S) int64 or (B, S, F)."""
    mask: Tensor | None
    """(B, S), True where real; None: everywhere."""
    lengths: Tensor
    """(B,) real elements."""

    def rows(self, rows: Tensor, longest: int) -> Source:
        """The sources ``rows`` (n,), of which none is longer than ``longest``."""
        stop = up_to(longest, TRIM)
        mask = None if self.mask is None else self.mask[rows, :stop]
        return Source(self.values[rows, :stop], mask, self.lengths[rows])


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How what is no text becomes a sequence."""

    stack: int = 4
    """Consecutive frames of sound that the encoder reads as one."""
    patch: int = 8
    """Side of the squares of pixels that the encoder reads as one."""
    masks: int = 0
    """Of frames in training: bands of time and of mel put to the mean (SpecAugment, Park et al.
    2019), so many of each, up to a tenth of the sound and a fifth of the bands wide."""
    shift: int = 0
    """Of images in training: moved by up to so many pixels each way; the border is repeated."""

    def __post_init__(self) -> None:
        if min(self.stack, self.patch) < 1 or min(self.masks, self.shift) < 0:
            raise ConfigError(
                f"objective.source: stack={self.stack} and patch={self.patch} are at least 1, "
                f"masks={self.masks} and shift={self.shift} at least 0"
            )

    def build(self, info: DataInfo) -> SourceReader:
        """For the sources of a data set. ConfigError where it has none, or no whole patches."""
        if "target" not in info.fields:
            raise ConfigError(
                f"{info.url} holds no pairs (its fields: {', '.join(info.fields)}): sequence to "
                "sequence needs a target"
            )
        if "source" in info.fields:
            return SourceReader(self, "source", info.source_length, info.source_vocabulary, 0)
        if "frames" in info.fields:
            length = -(-info.source_length // self.stack)
            return SourceReader(self, "frames", length, 0, self.stack * info.frame_features)
        if "image" not in info.fields:
            raise ConfigError(f"{info.url} has targets without source, frames or image")
        if info.resolution % self.patch:
            raise ConfigError(
                f"images of {info.resolution} pixels have no whole patches of "
                f"objective.source.patch={self.patch}"
            )
        length = (info.resolution // self.patch) ** 2
        return SourceReader(self, "image", length, 0, info.channels * self.patch**2)


@dataclass(frozen=True)
class SourceReader:
    """From a batch to a source."""

    config: SourceConfig
    field: str
    """Of the batch."""
    length: int
    """S at most."""
    vocabulary: int
    """Of tokens; 0 for others."""
    features: int
    """F; 0 for tokens."""

    def read(self, batch: Batch, training: bool = False) -> Source:
        """The batch's sources, as long as the data set's longest."""
        if self.field == "source":
            tokens = batch["source"].long()
            mask = tokens >= 0
            return Source(tokens.clamp(min=0), mask, mask.sum(1))
        if self.field == "image":
            p, image = self.config.patch, image_of(batch)
            if training and self.config.shift:
                image = shifted(image, batch, self.config.shift)
            patches = rearrange(image, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p).contiguous()
            return Source(patches, None, torch.full_like(patches[:, 0, 0], self.length).long())
        frames, length, k = batch["frames"], batch["frames_length"], self.config.stack
        if training and self.config.masks:
            frames = masked(frames, length, batch, self.config.masks)
        stacked = rearrange(F.pad(frames, (0, 0, 0, -frames.shape[1] % k)),
                            "b (s k) f -> b s (k f)", k=k)  # fmt: skip
        lengths = -(-length // k)
        mask = torch.arange(stacked.shape[1], device=frames.device) < lengths[:, None]
        return Source(stacked, mask, lengths)


def up_to(number: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-number // step) * step


def masked(frames: Tensor, length: Tensor, batch: Batch, masks: int) -> Tensor:
    """Frames (B, S, F) with ``masks`` bands of time and of mel in the place of which their row's
    mean stands. Widths and places are uniform."""
    B, S, bands = frames.shape
    u = batch.draws.uniform("masks", (masks, 4))[:, :, :, None]
    time = torch.arange(S, device=frames.device).expand(B, masks, S)
    band = torch.arange(bands, device=frames.device).expand(B, masks, bands)
    real = length[:, None, None]
    hidden_time = _between(time, u[:, :, 0] * 0.1 * real, u[:, :, 1], real)
    hidden_band = _between(band, u[:, :, 2] * 0.2 * bands, u[:, :, 3], bands)
    inside = time[:, 0] < length[:, None]
    mean = (frames * inside[:, :, None]).sum((1, 2)) / (length * bands)
    hidden = (hidden_time[:, :, None] | hidden_band[:, None]) & inside[:, :, None]
    return torch.where(hidden, mean[:, None, None], frames)


def shifted(image: Tensor, batch: Batch, most: int) -> Tensor:
    """Images (B, C, H, W), each moved down and right by up to ``most`` pixels or as many back."""
    _, C, H, W = image.shape
    by = batch.draws.integers("shift", 2 * most + 1, (2,)) - most
    row = (torch.arange(H, device=image.device) - by[:, :1]).clamp(0, H - 1)
    column = (torch.arange(W, device=image.device) - by[:, 1:]).clamp(0, W - 1)
    moved = image.gather(2, row[:, None, :, None].expand(-1, C, -1, W))
    return moved.gather(3, column[:, None, None].expand(-1, C, H, -1))


def _between(at: Tensor, width: Tensor, where: Tensor, room: Tensor | int) -> Tensor:
    """(B, n): whether each place is in one of the bands (B, masks, 1)."""
    start = where * (room - width)
    return ((at >= start) & (at < start + width)).any(1)
