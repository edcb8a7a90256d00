"""What a stream serves: samples by their numbers, decoded and stacked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from genus.data.canvas import canvas
from genus.data.decode import Array, Fit, Kind, decode_into, decode_member, stack
from genus.data.open_shard import Fields
from genus.data.order import Ids
from genus.data.reader import Reader
from genus.errors import DataError

Size = tuple[int, int]
"""Height and width of images, pixels."""


@dataclass(frozen=True)
class Request:
    """Samples that make one batch."""

    ids: Ids
    """(B,) their numbers."""
    size: Size | None = None
    """Of their images; None: the data set's own."""


@dataclass(frozen=True)
class Loaded:
    """A batch on the host, or what was wrong with it."""

    request: Request
    fields: Mapping[str, Tensor | Array]
    """One row a sample; nothing where there are faults."""
    faults: Mapping[int, DataError] = field(default_factory=dict)
    """Row -> what is wrong with it; UnreadableError: with all of its shard."""

    def pin_memory(self) -> Loaded:
        """In memory that a GPU copies from by itself; DataLoader's pinning thread calls this."""
        pinned = {name: torch.as_tensor(v).pin_memory() for name, v in self.fields.items()}
        return replace(self, fields=pinned)


class Source(Protocol):
    """Samples 0..N-1, which lie in shards. Must be picklable, for worker processes."""

    @property
    def sizes(self) -> Ids:
        """(S,) samples of each shard."""

    @property
    def is_remote(self) -> bool:
        """Whether it holds connections, which forked processes must not use."""

    @property
    def row_bytes(self) -> int:
        """About what a sample takes in memory."""

    def load(self, request: Request) -> Loaded:
        """The samples, or which of them are bad. DataError for what is wrong with all of them."""

    def place(self, sample: int) -> str:
        """Where a sample lies, for messages."""

    def ahead(self, shards: Iterable[int]) -> None:
        """These shards will be wanted soon."""


@dataclass(frozen=True)
class Samples:
    """Images, labels and whatever else lies beside them in tar shards."""

    reader: Reader
    fields: Mapping[str, Kind]
    channels: int
    size: Size
    fit: Fit

    @property
    def sizes(self) -> Ids:
        return self.reader.sizes

    @property
    def is_remote(self) -> bool:
        return self.reader.is_remote

    @property
    def row_bytes(self) -> int:
        return self.channels * self.size[0] * self.size[1] + 8 * len(self.fields)

    def place(self, sample: int) -> str:
        return self.reader.place(sample)

    def ahead(self, shards: Iterable[int]) -> None:
        self.reader.ahead(shards)

    def load(self, request: Request) -> Loaded:
        ids, size = request.ids, request.size or self.size
        images = {
            name: self._canvas(name, len(ids), size)
            for name, kind in self.fields.items()
            if kind == "image"
        }
        others: dict[str, list[Array]] = {
            name: [] for name, kind in self.fields.items() if kind != "image"
        }
        has_label = others.pop("label", None) is not None
        wanted = {*images, *others}
        sound: Fields | None = None  # the fields of the sample before: mostly those of all
        labels: list[int] = []
        faults: dict[int, DataError] = {}
        # the usual case needs no more than its one array: this loop is the hot path
        arrays = {name: image.numpy() for name, image in images.items()}
        only = next(iter(arrays.values())) if len(images) == len(wanted) == 1 else None
        for row, found in enumerate(self.reader.read(ids)):
            try:
                if isinstance(found, DataError):
                    raise found
                label, fields, data = found
                labels.append(label)
                if fields is not sound or (has_label and label < 0):
                    self._check(label, [name for name, _ in fields], wanted)
                    sound = fields
                if only is not None:
                    decode_into(data[0], only[row], self.channels, self.fit)
                    continue
                for (name, kind), part in zip(fields, data, strict=True):
                    if kind == "image":
                        decode_into(part, arrays[name][row], self.channels, self.fit)
                    else:
                        value = decode_member(kind, part, self.channels, size, self.fit)
                        others[name].append(value)
            except DataError as error:
                faults[row] = error if error is found else self._placed(error, int(ids[row]))
        if faults:
            return Loaded(request, {}, faults)
        stacked: dict[str, Tensor] = {}
        for name, kind in self.fields.items():
            if name in images:
                stacked[name] = images[name]
            elif name in others:
                stacked[name] = self._stacked(name, kind, others[name])
            else:
                stacked[name] = torch.from_numpy(np.array(labels, np.int64))
        return Loaded(request, stacked)

    def _canvas(self, name: str, count: int, size: Size) -> Tensor:
        """(count, C, H, W) uint8, still to be filled; in memory channels lie innermost, as decoders
        give them: to spread them would take half as long as decoding."""
        return canvas(name, (count, *size, self.channels)).permute(0, 3, 1, 2)

    def _check(self, label: int, members: list[str], wanted: set[str]) -> None:
        """DataError where a sample hasn't each field once."""
        missing = sorted(wanted - {*members})
        if "label" in self.fields and label < 0:
            missing.append("label")
        if missing:
            raise DataError(f"it has no {', '.join(missing)}, which other samples have")
        if len(members) > len(wanted):
            raise DataError(f"it has more than one member for a field ({', '.join(members)})")

    def _placed(self, error: DataError, sample: int) -> DataError:
        return DataError(f"{self.place(sample)}: {error}; mend it and pack the data again")

    def _stacked(self, name: str, kind: Kind, values: list[Array]) -> Tensor:
        try:
            return stack(kind, values)
        except DataError as error:
            raise DataError(
                f"field {name} of {self.reader.shards.parts[0][0].url}: {error}"
            ) from None
