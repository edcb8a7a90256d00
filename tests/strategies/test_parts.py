"""Boxes of tensors that lie on several ranks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genus.parts import Part, boxes_of_range


def range_and_shape() -> st.SearchStrategy[tuple[tuple[int, ...], int, int]]:
    shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)

    def ranges(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[tuple[int, ...], int, int]]:
        ends = st.integers(0, math.prod(shape))
        return st.tuples(st.just(shape), ends, ends)

    return shapes.flatmap(ranges)


@given(range_and_shape())
def test_boxes_hold_the_range_in_order_and_nothing_else(
    case: tuple[tuple[int, ...], int, int],
) -> None:
    shape, start, stop = case
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    found: list[int] = []
    boxes = list(boxes_of_range(shape, start, stop))
    for offset, sizes in boxes:
        assert len(offset) == len(sizes) == len(shape)
        box = numbers[tuple(slice(o, o + s) for o, s in zip(offset, sizes, strict=True))]
        assert box.shape == sizes
        found += box.flatten().tolist()
    assert found == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


def test_boxes_of_a_part_are_views() -> None:
    flat = torch.zeros(7)
    part = Part.of_range((3, 4), 2, flat)
    assert [offset for offset, _ in part.boxes] == [(0, 2), (1, 0), (2, 0)]
    for number, (_, box) in enumerate(part.boxes):
        box.fill_(number + 1)
    assert flat.tolist() == [1, 1, 2, 2, 2, 2, 3]
    copy = part.on_host()
    flat.zero_()
    assert copy.boxes[1][1].tolist() == [[2, 2, 2, 2]]
    part.copy_(copy)
    assert flat.tolist() == [1, 1, 2, 2, 2, 2, 3]
    with pytest.raises(AssertionError):
        part.copy_(Part.of_range((3, 4), 3, torch.zeros(7)))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_rows(rows: int) -> None:
    part = Part.of_rows((5, 2), 3, torch.ones(rows, 2))
    assert part.shape == (5, 2)
    assert [(offset, tuple(box.shape)) for offset, box in part.boxes] == (
        [((3, 0), (rows, 2))] if rows else []
    )
