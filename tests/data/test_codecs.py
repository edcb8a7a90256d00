"""Every kind of file that people have: Pillow's pixels, and no garbage from damaged ones."""

from __future__ import annotations

import io
import multiprocessing
import struct
import subprocess
import sys
import zlib
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from genus.data.codecs import MAX_PIXELS, jpeg_size, read_pixels
from genus.errors import DataError

Levels = NDArray[np.uint8]


def picture(height: int, width: int, channels: int) -> Image.Image:
    """Waves and some noise: neither flat nor pure noise, so that no codec has it easy."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / (7 + c) + y / (11 - c)) for c in range(channels)]
    noise = np.random.default_rng(height).normal(0, 9, (height, width, channels))
    levels = (np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if channels == 1 else levels)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def interlaced(levels: Levels) -> bytes:
    """An Adam7 PNG, which Pillow can't write."""
    height, width = levels.shape[:2]
    rows = b""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    for top, left, down, right in [*passes, (1, 0, 2, 1)]:
        part = levels[top::down, left::right]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    colour = 0 if levels.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 1)
    return png_of(("IHDR", header), ("IDAT", zlib.compress(rows)), ("IEND", b""))


def png_of(*chunks: tuple[str, bytes]) -> bytes:
    """A PNG file of (name, body), checksums right."""
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        tagged = name.encode() + body
        out += struct.pack(">I", len(body)) + tagged + struct.pack(">I", zlib.crc32(tagged))
    return out


@cache
def files(height: int, width: int) -> dict[str, bytes]:
    grey, colour, clear = (picture(height, width, c) for c in (1, 3, 4))
    palette, turned = colour.quantize(40), Image.Exif()
    turned[0x112] = 6  # orientation: a quarter turn
    text = PngInfo()
    text.add_text("about", "IDAT tRNS acTL")
    first = tuple(int(level) for level in np.asarray(colour)[0, 0])
    animated = {"save_all": True, "append_images": [clear.convert("RGB")]}
    kinds = {"L": grey, "RGB": colour, "P": palette, "1": grey.convert("1")}
    found = {f"{form} {k}": encoded(i, form) for k, i in kinds.items() for form in ("PNG", "GIF")}
    found |= {f"BMP {name}": encoded(image, "BMP") for name, image in kinds.items()}
    found |= {
        "PNG RGBA": encoded(clear, "PNG"),
        "PNG LA": encoded(clear.convert("LA"), "PNG"),
        "PNG P, transparent colour": encoded(palette, "PNG", transparency=3),
        "PNG P, alpha": encoded(clear.quantize(20), "PNG"),
        "PNG L, transparent level": encoded(grey, "PNG", transparency=grey.getpixel((0, 0))),
        "PNG RGB, transparent colour": encoded(colour, "PNG", transparency=first),
        "PNG RGB, turned": encoded(colour, "PNG", exif=turned),
        "PNG RGB, profile": encoded(colour, "PNG", icc_profile=b"no profile" * 20),
        "PNG RGB, text": encoded(colour, "PNG", pnginfo=text),
        "PNG animated": encoded(colour, "PNG", **animated),
        "PNG interlaced L": interlaced(np.asarray(grey)),
        "PNG interlaced RGB": interlaced(np.asarray(colour)),
        "JPEG L progressive": encoded(grey, "JPEG", progressive=True),
        "JPEG CMYK": encoded(colour.convert("CMYK"), "JPEG"),
        "JPEG of RGB": encoded(colour, "JPEG", keep_rgb=True),
        "JPEG turned": encoded(colour, "JPEG", exif=turned),
        "JPEG, bytes after its end": encoded(colour, "JPEG") + b"more",
        "WEBP": encoded(colour, "WEBP", quality=60),
        "WEBP alpha": encoded(clear, "WEBP"),
        "WEBP lossless": encoded(colour, "WEBP", lossless=True),
        "WEBP lossless alpha": encoded(clear, "WEBP", lossless=True),
        "WEBP turned": encoded(colour, "WEBP", exif=turned),
        "WEBP animated": encoded(colour, "WEBP", **animated),
        "GIF transparent": encoded(clear, "GIF"),
        "GIF animated": encoded(colour, "GIF", **animated),
    }
    for quality in (10, 75, 95):
        found[f"JPEG L {quality}"] = encoded(grey, "JPEG", quality=quality)
        for sampling in ("4:4:4", "4:2:2", "4:2:0"):
            for progressive in (False, True):
                found[f"JPEG {quality} {sampling} {progressive}"] = encoded(
                    colour, "JPEG", quality=quality, subsampling=sampling, progressive=progressive
                )
    return found


def by_pillow(data: bytes, channels: int) -> Levels:
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L" if channels == 1 else "RGB"))


@pytest.mark.parametrize("name", files(8, 8))
def test_pixels_are_those_of_pillow(name: str) -> None:
    for height, width in ((1, 1), (8, 8), (37, 53), (64, 48)):
        data = files(height, width)[name]
        for channels in (1, 3):
            expected = by_pillow(data, channels)
            assert expected.shape[:2] == (height, width)  # orientation is ignored
            assert np.array_equal(read_pixels(data, channels), expected)
            slot = np.empty_like(expected)
            assert read_pixels(data, channels, slot) is slot
            assert np.array_equal(slot, expected)
            apart = np.empty(expected.shape[::-1], np.uint8).T  # another layout in memory
            assert read_pixels(data, channels, apart) is apart
            assert np.array_equal(apart, expected)
            other = np.zeros((height + 1, *expected.shape[1:]), np.uint8)  # another shape
            assert np.array_equal(read_pixels(data, channels, other), expected)
            assert not other.any()


def test_colours_become_grey_by_pillows_formula() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(colours), "PNG", compress_level=0)
    r, g, b = colours.astype(np.int64).transpose(2, 0, 1)
    luma = (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16  # ITU-R BT.601 in 16 bits
    assert np.array_equal(read_pixels(data, 1), luma)


@pytest.mark.parametrize("name", files(8, 8))
def test_cut_files_are_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = files(13, 21)[name]
    if "bytes after its end" in name:
        data = data[: -len(b"more")]
    for length in range(len(data)):
        if name.startswith("BMP") or name == "GIF animated":
            # padding after the last row, or another frame, may be lost: never a pixel
            try:
                assert np.array_equal(read_pixels(data[:length], 3), by_pillow(data, 3))
                assert len(data) - length <= 3 or name == "GIF animated"
            except DataError:
                pass
        else:
            with pytest.raises(DataError):
                read_pixels(data[:length], 3)
    assert capfd.readouterr() == ("", "")


def test_damaged_png_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(picture(13, 21, 3), "PNG")
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        with pytest.raises(DataError):
            read_pixels(bytes(damaged), 3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_damaged_jpeg_is_refused(mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    """An end marker in the middle: libjpeg only warns, and Pillow gives a half-grey image."""
    data = encoded(picture(64, 64, 3).convert(mode), "JPEG")
    middle = len(data) - 600
    damaged = data[:middle] + b"\xff\xd9" + data[middle + 2 :]
    assert by_pillow(damaged, 3).shape == (64, 64, 3)
    for channels in (1, 3):
        with pytest.raises(DataError, match="no readable image"):
            read_pixels(damaged, channels)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_said_about_harmless_chunks(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    read_pixels(files(8, 8)["PNG RGB, profile"], 3)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="no readable image"):
        read_pixels(data, 3)
    assert jpeg_size(data) is None


def test_sixteen_bits_are_refused() -> None:
    data = encoded(Image.fromarray(np.zeros((2, 2), np.uint16)), "PNG")
    with pytest.raises(DataError, match="8 bits"):
        read_pixels(data, 1)


def test_giant_sizes_are_refused_before_memory_is_asked_for() -> None:
    header = struct.pack(">IIBBBBB", MAX_PIXELS + 1, 1, 8, 0, 0, 0, 0)
    bomb = png_of(("IHDR", header), ("IDAT", zlib.compress(b"")), ("IEND", b""))
    with pytest.raises(DataError, match="at most"):
        read_pixels(bomb, 1)
    jpeg = bytearray(encoded(picture(16, 16, 3), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5  # height and width in the frame header
    jpeg[at : at + 4] = struct.pack(">HH", 65500, 65500)
    with pytest.raises(DataError, match="at most"):
        read_pixels(bytes(jpeg), 3)


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_jpeg_is_decoded_smaller(shrink: int) -> None:
    data = files(37, 53)["JPEG 95 4:2:0 False"]
    assert jpeg_size(data) == (37, 53)
    pixels = read_pixels(data, 3, shrink=shrink)
    assert pixels.shape == (-(-37 // shrink), -(-53 // shrink), 3)
    assert read_pixels(data, 1, shrink=shrink).shape == pixels.shape[:2]
    assert jpeg_size(files(37, 53)["JPEG CMYK"]) is None
    assert jpeg_size(files(37, 53)["PNG L"]) is None


def _decoded(name: str) -> bytes:
    return read_pixels(files(37, 53)[name], 3).tobytes()


def test_forked_processes_decode() -> None:
    names = ["PNG RGB", "JPEG 75 4:2:0 False", "WEBP", "PNG RGBA"]
    here = [_decoded(name) for name in names]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_decoded, names).get(timeout=60) == here


def test_decoders_start_no_threads() -> None:
    script = (
        "import io, os, sys; from genus.data.codecs import read_pixels\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "for name in sys.argv[1:]: read_pixels(bytes.fromhex(name), 3)\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    data = [files(37, 53)[name].hex() for name in ("PNG RGB", "JPEG 75 4:2:0 False", "WEBP")]
    done = subprocess.run(
        [sys.executable, "-c", script, *data], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"
