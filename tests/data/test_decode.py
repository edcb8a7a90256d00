"""Bytes to arrays: exact pixels, modes, padding and resizing."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from genus.data.decode import (
    decode_image,
    decode_member,
    field_of,
    fields_of,
    jsons,
    stack,
    texts,
)
from genus.errors import DataError


def png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def random(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_are_exact() -> None:
    grey, colour = random(5, 7), random(5, 7, 3)
    assert np.array_equal(decode_image(png(grey), 1), grey[None])
    assert np.array_equal(decode_image(png(grey), 3), np.stack([grey] * 3))
    assert np.array_equal(decode_image(png(colour), 3), colour.transpose(2, 0, 1))


def test_transparency_lies_over_white() -> None:
    pixels = np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], np.uint8)
    expected = np.array([[255, 10], [255, 20], [255, 30]], np.uint8)[:, None]
    assert np.array_equal(decode_image(png(pixels), 3), expected)


@given(height=st.integers(1, 9), width=st.integers(1, 9), size=st.integers(1, 9))
def test_pad_keeps_the_middle(height: int, width: int, size: int) -> None:
    pixels = random(height, width) | np.uint8(1)  # no zeros but those of the padding
    out = decode_image(png(pixels), 1, size, "pad")[0]
    assert out.shape == (size, size)
    rows, columns = min(height, size), min(width, size)
    assert np.count_nonzero(out) == rows * columns
    y, x = (height - rows) // 2, (width - columns) // 2
    top, left = (size - rows + 1) // 2, (size - columns + 1) // 2
    inside = out[top : top + rows, left : left + columns]
    assert np.array_equal(inside, pixels[y : y + rows, x : x + columns])


def test_pad_28_to_32() -> None:
    pixels = random(28, 28)
    assert np.array_equal(decode_image(png(pixels), 1, 32)[0], np.pad(pixels, 2))


def test_resize_is_antialiased_and_takes_the_middle() -> None:
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, 32:96:2] = 200  # the middle square: every other column; beside it: black
    out = decode_image(png(stripes), 1, 16, "resize")
    assert out.shape == (1, 16, 16)
    assert np.abs(out[:, :, 2:-2].astype(int) - 100).max() <= 3  # point sampling gives 0 and 200
    assert np.array_equal(decode_image(png(random(9, 9)), 1, 9, "resize")[0], random(9, 9))


def test_unreadable_images_are_refused() -> None:
    with pytest.raises(DataError, match="no readable image"):
        decode_image(b"no image", 1)
    with pytest.raises(DataError, match="no readable image"):
        decode_image(png(random(40, 40))[:-900], 1)
    with pytest.raises(DataError, match="8 bits"):
        decode_image(png(np.zeros((2, 2), np.uint16)), 1)


def test_other_members() -> None:
    assert field_of("png") == ("image", "image")
    assert field_of("mask.png") == ("mask", "image")
    assert field_of("cls") == ("label", "integer")
    assert field_of("latent.npy") == ("latent", "array")
    assert field_of("md5") is None
    assert list(fields_of(["txt", "cls", "jpg", "md5", "png"])) == ["image", "label", "text"]
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3, dtype=np.float16))
    array = decode_member("array", buffer.getvalue(), 0, 0, "pad")
    assert stack("array", [array, array]).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert stack("integer", [decode_member("integer", b"7\n", 0, 0, "pad")]).tolist() == [7]
    words = [decode_member("text", text.encode(), 0, 0, "pad") for text in ("grün", "", '{"a": 1}')]
    field = stack("text", words)
    assert field.dtype == torch.uint8
    assert texts(field) == ["grün", "", '{"a": 1}']
    assert jsons(field[2:]) == [{"a": 1}]
    with pytest.raises(DataError, match="no readable integer"):
        decode_member("integer", b"cat", 0, 0, "pad")
    with pytest.raises(DataError, match="no readable array"):
        decode_member("array", b"", 0, 0, "pad")
    with pytest.raises(DataError, match="different shapes"):
        stack("array", [array, array[:2]])
