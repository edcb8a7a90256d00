"""Bytes to arrays: exact pixels, modes, padding and resizing."""

from __future__ import annotations

import io
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from genus.data.decode import (
    Fit,
    decode_image,
    decode_into,
    decode_member,
    field_of,
    fields_of,
    jsons,
    stack,
    texts,
)
from genus.errors import DataError


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
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


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_pad_keeps_the_middle(height: int, width: int, size: tuple[int, int]) -> None:
    pixels = random(height, width) | np.uint8(1)  # no zeros but those of the padding
    out = decode_image(png(pixels), 1, size, "pad")[0]
    assert out.shape == size
    rows, columns = min(height, size[0]), min(width, size[1])
    assert np.count_nonzero(out) == rows * columns
    y, x = (height - rows) // 2, (width - columns) // 2
    top, left = (size[0] - rows + 1) // 2, (size[1] - columns + 1) // 2
    inside = out[top : top + rows, left : left + columns]
    assert np.array_equal(inside, pixels[y : y + rows, x : x + columns])


def test_pad_28_to_32() -> None:
    pixels = random(28, 28)
    assert np.array_equal(decode_image(png(pixels), 1, (32, 32))[0], np.pad(pixels, 2))


def test_resize_is_antialiased_and_takes_the_middle() -> None:
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, 32:96:2] = 200  # the middle square: every other column; beside it: black
    out = decode_image(png(stripes), 1, (16, 16), "resize")
    assert out.shape == (1, 16, 16)
    assert np.abs(out[:, :, 2:-2].astype(int) - 100).max() <= 3  # point sampling gives 0 and 200
    assert np.array_equal(decode_image(png(random(9, 9)), 1, (9, 9), "resize")[0], random(9, 9))


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((16, 16), (16, 27)),
        ((10, 30), (18, 30)),
        ((30, 10), (30, 50)),
        ((60, 90), (60, 100)),
        ((24, 40), (24, 40)),
    ],
)
def test_resize_covers_a_rectangle(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    """A 48 x 80 image becomes as large as ``scaled``, of which ``size`` is the middle. Linear
    levels stay linear, so what comes out is known."""
    y, x = np.mgrid[:48, :80]
    out = decode_image(png((20 + 2 * y + x).astype(np.uint8)), 1, size, "resize")[0]
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    rows = (np.arange(size[0]) + top + 0.5) * 48 / scaled[0] - 0.5
    columns = (np.arange(size[1]) + left + 0.5) * 80 / scaled[1] - 0.5
    away = np.abs(out - (20 + 2 * rows[:, None] + columns))
    assert away[2:-2, 2:-2].max() <= 1
    assert away.max() < 5  # the border, where there is nothing to average with


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["pad", "resize"])
@pytest.mark.parametrize("size", [(40, 56), (16, 16), (64, 50)])
def test_decode_into_a_batch(channels: int, fit: Fit, size: tuple[int, int]) -> None:
    for data in (png(random(40, 56)), png(random(40, 56, 3)), jpeg(random(40, 56, 3))):
        expected = decode_image(data, channels, size, fit)
        first = np.full((3, channels, *size), 7, np.uint8)
        last = np.full((3, *size, channels), 7, np.uint8).transpose(0, 3, 1, 2)
        for batch in (first, last):
            decode_into(data, batch[1], channels, fit)
            assert np.array_equal(batch[1], expected)
            assert (batch[0] == 7).all()
            assert (batch[2] == 7).all()


@pytest.mark.parametrize("side", [512, 671])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_shrunk_while_decoded_is_close(side: int, channels: int) -> None:
    """To the same file decoded whole: 671 is no multiple of 8, and a picture that is off by a part
    of a pixel or aliased falls far below this."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (84, 84, 3), dtype=np.uint8))
    data = jpeg(np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)))
    whole = np.asarray(Image.open(io.BytesIO(data)))
    for size, least in ((200, 99), (100, 38), (64, 38), (32, 38), (16, 38)):
        out = decode_image(data, channels, (size, size), "resize")
        expected = decode_image(png(whole), channels, (size, size), "resize")
        error = np.square(out.astype(float) - expected).mean()
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > least


def test_unreadable_images_are_refused() -> None:
    out = np.empty((1, 8, 8), np.uint8)
    for fit in get_args(Fit):
        for data in (b"no image", png(random(40, 40))[:-900], jpeg(random(40, 40))[:-9]):
            with pytest.raises(DataError, match="no readable image"):
                decode_image(data, 1, (8, 8), fit)
            with pytest.raises(DataError, match="no readable image"):
                decode_into(data, out, 1, fit)


def test_other_members() -> None:
    assert field_of("png") == ("image", "image")
    assert field_of("mask.png") == ("mask", "image")
    assert field_of("cls") == ("label", "integer")
    assert field_of("latent.npy") == ("latent", "array")
    assert field_of("md5") is None
    assert list(fields_of(["txt", "cls", "jpg", "md5", "png"])) == ["image", "label", "text"]
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3, dtype=np.float16))
    array = decode_member("array", buffer.getvalue(), 0, None, "pad")
    assert stack("array", [array, array]).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert stack("integer", [decode_member("integer", b"7\n", 0, None, "pad")]).tolist() == [7]
    words = [
        decode_member("text", text.encode(), 0, None, "pad") for text in ("grün", "", '{"a": 1}')
    ]
    field = stack("text", words)
    assert field.dtype == torch.uint8
    assert texts(field) == ["grün", "", '{"a": 1}']
    assert jsons(field[2:]) == [{"a": 1}]
    with pytest.raises(DataError, match="no readable integer"):
        decode_member("integer", b"cat", 0, None, "pad")
    with pytest.raises(DataError, match="no readable array"):
        decode_member("array", b"", 0, None, "pad")
    with pytest.raises(DataError, match="different shapes"):
        stack("array", [array, array[:2]])
