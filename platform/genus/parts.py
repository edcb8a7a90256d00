"""Tensors that lie on several ranks, as a checkpoint takes them and gives them back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Box = tuple[tuple[int, ...], Tensor]
"""Where it begins in the whole tensor, and what it holds."""


class Part:
    """This rank's share of a tensor that lies on several ranks: boxes of it, as views.

    torch.distributed.checkpoint writes the boxes, and reads into them, by the methods with double
    underscores and the planners below, so that what is stored does not depend on how it was
    spread: any strategy on any number of ranks reads what another wrote.
    """

    def __init__(self, shape: Sequence[int], local: Tensor, boxes: Sequence[Box]) -> None:
        """``shape`` of the whole; ``local`` is this rank's share, and ``boxes``, perhaps none, are
        its views."""
        self.shape, self.local, self.boxes = torch.Size(shape), local, list(boxes)
        self.dtype = local.dtype

    @classmethod
    def of_rows(cls, shape: Sequence[int], first: int, rows: Tensor) -> Part:
        """Rows from ``first`` on."""
        offset = (first, *[0] * (len(shape) - 1))
        return cls(shape, rows, [(offset, rows)] if rows.numel() else [])

    @classmethod
    def of_range(cls, shape: Sequence[int], start: int, flat: Tensor) -> Part:
        """Elements from ``start`` on of the tensor laid out row by row; ``flat`` is contiguous."""
        boxes, at = [], 0
        for offset, sizes in boxes_of_range(tuple(shape), start, start + flat.numel()):
            count = math.prod(sizes)
            boxes.append((offset, flat[at : at + count].view(sizes)))
            at += count
        return cls(shape, flat, boxes)

    def on_host(self) -> Part:
        """A copy in host memory."""
        boxes = [(offset, box.detach().to("cpu", copy=True)) for offset, box in self.boxes]
        return Part(self.shape, torch.empty(0, dtype=self.dtype), boxes)

    def copy_(self, other: Part) -> None:
        """Take over the same boxes' values."""
        for (here, box), (there, value) in zip(self.boxes, other.boxes, strict=True):
            assert here == there
            if box.data_ptr() != value.data_ptr():
                box.copy_(value)

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size(offset), sizes=box.shape)
            for offset, box in self.boxes
        ]

    def __create_write_items__(self, name: str, part: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def box_at(self, offset: torch.Size | None) -> Tensor:
        """The box that begins there."""
        return next(box for begin, box in self.boxes if torch.Size(begin) == offset)


class SavePlanner(DefaultSavePlanner):
    """DCP's own, for a flat dictionary, which knows parts."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Any:
        value = self.state_dict[index.fqn]
        return value.box_at(index.offset) if isinstance(value, Part) else value


class LoadPlanner(DefaultLoadPlanner):
    """DCP's own, for a flat dictionary, which knows parts."""

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Without the walk through nested containers, which turns what it does not know to None."""
        assert metadata is not None
        self.state_dict = self.original_state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        value = self.state_dict[index.fqn]
        if isinstance(value, Part):
            return value.box_at(index.offset)
        assert isinstance(value, Tensor)
        return value


def boxes_of_range(
    shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(offset, sizes) of boxes that hold the elements ``start`` to ``stop`` of a tensor laid out
    row by row, in their order: a part of a row, whole rows, a part of a row, and so in each."""
    if start >= stop:
        return
    if not shape:
        yield (), ()
        return
    row = math.prod(shape[1:])
    first, last = start // row, stop // row
    if start % row:
        inside = min(stop, (first + 1) * row)
        for offset, sizes in boxes_of_range(shape[1:], start % row, inside - first * row):
            yield (first, *offset), (1, *sizes)
        start, first = inside, first + 1
    if first < last and start < stop:
        yield (first, *[0] * (len(shape) - 1)), (last - first, *shape[1:])
        start = last * row
    if start < stop:
        for offset, sizes in boxes_of_range(shape[1:], 0, stop - start):
            yield (last, *offset), (1, *sizes)
