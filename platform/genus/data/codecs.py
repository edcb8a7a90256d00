"""From an image file's bytes to pixel levels, exactly as Pillow reads them, but faster.

Common files go to a decoder that was measured to be the fastest (benchmarks/decode.py): PNG and
WebP to imagecodecs, JPEG to simplejpeg. Both start no threads, print nothing and are safe after a
fork. Everything else is Pillow's: palettes, transparency, 1 and 16 bits, CMYK, GIF, BMP.

On every path: the pixels are Pillow's, EXIF orientation is ignored, and a file that was cut off or
that a decoder complains about is refused, since most decoders would fill what is missing with grey.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from numpy.typing import NDArray

from genus.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
"""(H, W) grey or (H, W, 3) RGB levels."""

MAX_PIXELS = 178_956_970
"""Larger images are refused, as by Pillow: a damaged header can ask for any amount of memory."""
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_PNG_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, colour type, ..., interlaced
_JPEG = b"\xff\xd8\xff"
_CMYK = ("CMYK", "YCCK")


def read_pixels(data: bytes, channels: int, slot: Pixels | None = None, shrink: int = 1) -> Pixels:
    """The image in ``data``: (H, W) for ``channels`` 1, (H, W, 3) for 3; transparency over white.

    Where ``slot`` is given and has the image's shape the pixels are written into it, and it is
    returned. ``shrink`` 2, 4 or 8 decodes a JPEG that has a ``jpeg_size`` at that fraction of its
    size, rounded up. Raises DataError (without a place: the caller knows it) for bytes that are no
    such image.
    """
    try:
        pixels = None
        if data.startswith(_PNG):
            pixels = _read_png(data, slot)
        elif data.startswith(_JPEG):
            pixels = _read_jpeg(data, slot, shrink)
        elif data.startswith(b"RIFF"):
            pixels = _read_webp(data, slot)
        if pixels is None:
            pixels = _read_any(data, channels)
        if pixels.ndim == 2 and channels == 3:
            pixels = np.repeat(pixels[:, :, None], 3, axis=2)
        elif pixels.ndim == 3 and channels == 1:
            pixels = _grey(pixels)
    except (DataError, ImportError):
        raise
    except Exception as error:  # ValueError, RuntimeError, OSError, SyntaxError, struct.error, ...
        raise DataError(f"no readable image ({type(error).__name__}: {error})") from None
    if slot is None or pixels is slot or pixels.shape != slot.shape:
        return pixels
    slot[...] = pixels
    return slot


def _read_png(data: bytes, slot: Pixels | None) -> Pixels | None:
    """None for what is not plain 8-bit grey or RGB."""
    # libpng and Pillow are content once they have the last row, wherever the file ends
    if not data.endswith(_PNG_END) and _PNG_END not in data:
        raise DataError("no readable image (the PNG is cut off: it has no end chunk)")
    width, height, bits, colour, _, _, _ = _PNG_HEADER.unpack_from(data, 16)
    if bits != 8 or colour not in (0, 2):
        return None
    first, name = 33, data[37:41]
    while name != b"IDAT":
        if name in (b"tRNS", b"acTL"):  # transparency, animation
            return None
        if not name:
            raise DataError("no readable image (a PNG without data)")
        first += 12 + int.from_bytes(data[first : first + 4], "big")
        name = data[first + 4 : first + 8]
    if first > 33:  # nothing in between changes a pixel, but libpng prints what it thinks of it
        data = data[:33] + data[first:]
    if _takes(slot, (height, width) if colour == 0 else (height, width, 3)):
        _png_decode()(data, out=slot)
        return slot
    _limit(height, width)
    return _png_decode()(data)


@functools.cache
def _png_decode() -> Callable[..., Pixels]:
    """imagecodecs' decoder: an import statement would be 5% of the time of a small image."""
    from imagecodecs import png_decode

    return png_decode


def _read_jpeg(data: bytes, slot: Pixels | None, shrink: int) -> Pixels | None:
    """None for CMYK. Strict: libjpeg's warnings (premature end, bad Huffman code, ...) refuse."""
    from simplejpeg import decode_jpeg, decode_jpeg_header

    height, width, space, _ = decode_jpeg_header(data)
    _limit(height, width)
    if space in _CMYK:
        decode_jpeg(data, "CMYK")  # Pillow ignores libjpeg's warnings
        return None
    to = "GRAY" if space == "Gray" else "RGB"
    shape = (height, width) if space == "Gray" else (height, width, 3)
    if shrink == 1 and _takes(slot, shape):
        decode_jpeg(data, to, buffer=slot)
        return slot
    if shrink == 1 and slot is not None and slot.shape == shape == (height, width, 3):
        return _spread(decode_jpeg(data, "RGBX"), slot)
    # simplejpeg takes the smallest scale that gives no less than it is asked for
    height, width = -(-height // shrink), -(-width // shrink)
    pixels: Pixels = decode_jpeg(data, to, min_height=height, min_width=width)
    return pixels[:, :, 0] if space == "Gray" else pixels


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) where ``data`` is a grey or colour JPEG that can be decoded smaller."""
    from simplejpeg import decode_jpeg_header

    if not data.startswith(_JPEG):
        return None
    try:
        height, width, space, _ = decode_jpeg_header(data)
    except ValueError:  # read_pixels says so
        return None
    return None if space in _CMYK else (height, width)


def _read_webp(data: bytes, slot: Pixels | None) -> Pixels | None:
    """None for what has or may have transparency or several frames."""
    from imagecodecs import webp_decode

    form = data[12:16]
    plain = (
        form == b"VP8 "
        or (form == b"VP8L" and not data[24] & 0x10)  # alpha is used
        or (form == b"VP8X" and not data[20] & 0x12)  # alpha, animation
    )
    if not plain:
        return None
    if slot is None or slot.ndim == 2 or slot.flags.c_contiguous:
        return webp_decode(data, hasalpha=False)
    quads = webp_decode(data, hasalpha=True)
    return _spread(quads, slot) if quads.shape[:2] == slot.shape[:2] else quads[:, :, :3]


def _read_any(data: bytes, channels: int) -> Pixels:
    """By Pillow."""
    from PIL import Image

    image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF", "BMP"))
    if image.format == "GIF" and not data.rstrip(b"\0").endswith(b";"):
        raise DataError("no readable image (the GIF is cut off: it has no trailer)")
    mode = "L" if channels == 1 else "RGB"
    as_it_is = image.mode == mode and not image.has_transparency_data
    return np.asarray(image if as_it_is else _to_mode(image, mode))


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        raise DataError(f"an image of mode {image.mode}: only 8 bits a channel are read")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _grey(pixels: Pixels) -> Pixels:
    """Pillow's luma of RGB: the decoders have formulas of their own."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).convert("L"))


def _takes(slot: Pixels | None, shape: tuple[int, ...]) -> TypeGuard[Pixels]:
    """Can a decoder write an image of this shape straight into ``slot``?"""
    # the strides of a single row or column may be anything, which the decoders reject
    return (
        slot is not None and slot.shape == shape and slot.flags.c_contiguous and min(shape[:2]) > 1
    )


def _spread(quads: Pixels, slot: Pixels) -> Pixels:
    """(H, W, 4), which is spoilt, to a ``slot`` (H, W, 3) whose channels lie apart in memory: numpy
    shifts words in less than half the time that it copies single bytes."""
    words = quads.view("<u4")[:, :, 0]
    for channel in range(3):
        np.copyto(slot[:, :, channel], words, casting="unsafe")
        words >>= 8
    return slot


def _limit(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise DataError(f"an image of {height} x {width} pixels: at most {MAX_PIXELS:,} are read")
