"""What a stream serves: samples by their numbers, decoded and stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genus.data.canvas import canvas
from genus.data.decode import Array, Fit, Kind, decode_into, decode_member, stack
from genus.data.open_shard import Fields
from genus.data.order import Ids
from genus.data.reader import Reader
from genus.data.sequences import frames_into, sequence_into
from genus.data.vectors import read_into
from genus.errors import DataError

Size = tuple[int, int]
"""Height and width of images, pixels."""
FILLED = ("image", "vector", "sequence", "frames")
"""Kinds that are decoded into a batch's own memory."""


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
    """Images, vectors, sequences, labels and whatever else lies beside them in tar shards."""

    reader: Reader
    fields: Mapping[str, Kind]
    channels: int
    size: Size
    fit: Fit
    dims: int = 0
    """Numbers of a vector."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Field of sequences -> the longest of the data set, to which they are padded."""
    frame_features: int = 0
    """Numbers of a frame."""

    @property
    def sizes(self) -> Ids:
        return self.reader.sizes

    @property
    def is_remote(self) -> bool:
        return self.reader.is_remote

    @property
    def row_bytes(self) -> int:
        image = self.channels * self.size[0] * self.size[1]
        rest = 4 * self.dims + 8 * len(self.fields)
        for name, kind in self.fields.items():
            if kind in ("sequence", "frames"):
                rest += self.lengths[name] * (8 if kind == "sequence" else 4 * self.frame_features)
        return image + rest

    def place(self, sample: int) -> str:
        return self.reader.place(sample)

    def ahead(self, shards: Iterable[int]) -> None:
        self.reader.ahead(shards)

    def load(self, request: Request) -> Loaded:
        ids, size = request.ids, request.size or self.size
        batches = {
            name: self._canvas(name, kind, len(ids), size)
            for name, kind in self.fields.items()
            if kind in FILLED
        }
        frames_length: list[int] = []
        others: dict[str, list[Array]] = {
            name: [] for name in self.fields if name not in batches and name != "label"
        }
        wanted = {*batches, *others}
        sound: Fields | None = None  # the fields of the sample before: mostly those of all
        labels: list[int] = []
        faults: dict[int, DataError] = {}
        has_label = "label" in self.fields
        # the usual case needs no more than its one array: this loop is the hot path
        rows = {name: batch.numpy() for name, batch in batches.items()}
        only = next(iter(rows.values())) if len(batches) == len(wanted) == 1 else None
        fills = {name: self._fill(self.fields[name], frames_length) for name in batches}
        fill_only = next(iter(fills.values()), read_into)
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
                    fill_only(data[0], only[row])
                    continue
                for (name, kind), part in zip(fields, data, strict=True):
                    if name in fills:
                        fills[name](part, rows[name][row])
                    else:
                        value = decode_member(kind, part, self.channels, size, self.fit)
                        others[name].append(value)
            except DataError as error:
                faults[row] = error if error is found else self._placed(error, int(ids[row]))
        if "vector" in batches and not faults:
            faults = self._infinite(batches["vector"], ids)
        if faults:
            return Loaded(request, {}, faults)
        stacked: dict[str, Tensor] = {}
        for name, kind in self.fields.items():
            if name in batches:
                stacked[name] = batches[name]
            elif name in others:
                stacked[name] = self._stacked(name, kind, others[name])
            else:
                stacked[name] = torch.from_numpy(np.array(labels, np.int64))
        if "frames" in self.fields:
            stacked["frames_length"] = torch.tensor(frames_length, dtype=torch.int64)
        return Loaded(request, stacked)

    def _fill(self, kind: Kind, lengths: list[int]) -> Callable[[bytes, NDArray[Any]], object]:
        """What decodes a member into its row of a batch; of frames it notes in ``lengths`` how many
        they are."""
        match kind:
            case "vector":
                return read_into
            case "sequence":
                return sequence_into
            case "frames":
                return lambda data, out: lengths.append(frames_into(data, out))
        return partial(decode_into, channels=self.channels, fit=self.fit)

    def _canvas(self, name: str, kind: Kind, count: int, size: Size) -> Tensor:
        """Images (count, C, H, W) uint8, vectors (count, D) or frames (count, S, F) float32, or
        sequences (count, S) int64, still to be filled. In memory channels lie innermost, as
        decoders give them: to spread them would take half as long as decoding."""
        match kind:
            case "vector":
                return canvas(name, (count, 4 * self.dims)).view(torch.float32)
            case "sequence":
                return canvas(name, (count, 8 * self.lengths[name])).view(torch.int64)
            case "frames":
                shape = (count, self.lengths[name], 4 * self.frame_features)
                return canvas(name, shape).view(torch.float32)
        return canvas(name, (count, *size, self.channels)).permute(0, 3, 1, 2)

    def _infinite(self, vectors: Tensor, ids: Ids) -> dict[int, DataError]:
        """The rows whose numbers are not all finite, which ``read_into`` leaves open."""
        if bool(vectors.isfinite().all()):
            return {}
        bad = (~vectors.isfinite()).any(1).nonzero().flatten().tolist()
        error = DataError("its vector has numbers that are not finite")
        return {row: self._placed(error, int(ids[row])) for row in bad}

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
