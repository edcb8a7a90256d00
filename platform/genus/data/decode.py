"""From a sample's members (bytes) to arrays, and from samples to a batch's tensors.

A member's extension says what it is, as webdataset has it: ``png`` and its like are the image,
``cls`` is the label, and a name before the format (``mask.png``, ``latent.npy``) names the field;
``vector.npy`` is the sample's vector, ``source.npy``, ``target.npy`` and ``frames.npy`` are its
sequences.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genus.data.codecs import jpeg_size, read_pixels
from genus.data.sequences import SEQUENCES, read_frames, read_sequence
from genus.data.vectors import EXTENSION, read_vector
from genus.errors import DataError

IMAGES = ("png", "jpg", "jpeg", "webp", "bmp", "gif")
Kind = Literal["image", "vector", "integer", "array", "text", "sequence", "frames"]
Fit = Literal["pad", "resize"]
Array = NDArray[np.generic]

SPARE = 2
"""How much larger than its target a JPEG is left by the decoder's own, rough shrinking. Measured on
40 pictures against shrinking by Lanczos alone: at 2 all agree to 40 dB or better, at 1 to 28 dB."""

_PLAIN: dict[str, tuple[str, Kind]] = {
    **dict.fromkeys(IMAGES, ("image", "image")),
    "cls": ("label", "integer"),
    "npy": ("array", "array"),
    "txt": ("text", "text"),
    "json": ("json", "text"),
}


def field_of(extension: str) -> tuple[str, Kind] | None:
    """(field's name, kind) of a member's extension; None for what we don't decode."""
    if extension == EXTENSION:
        return "vector", "vector"
    if extension in SEQUENCES:
        return SEQUENCES[extension]
    name, _, form = extension.rpartition(".")
    if form not in _PLAIN:
        return None
    plain, kind = _PLAIN[form]
    return name or plain, kind


def decode_image(
    data: bytes, channels: int, size: tuple[int, int] | None = None, fit: Fit = "pad"
) -> NDArray[np.uint8]:
    """(C, H, W) uint8 levels. ``channels`` 1 or 3; transparency is laid over white.

    ``size`` is (height, width); None keeps the stored size. "pad": centred, 0 around it or cropped,
    pixels unchanged; "resize": scaled by antialiased Lanczos until it just covers ``size``, then
    its centre. A JPEG of four times the size or more is shrunk in part while it is decoded.
    Raises DataError (without a place: the caller knows it) for bytes that are no such image.
    """
    if size is not None:
        out = np.empty((channels, *size), np.uint8)
        decode_into(data, out, channels, fit)
        return out
    pixels = read_pixels(data, channels)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode_into(data: bytes, out: NDArray[np.uint8], channels: int, fit: Fit) -> None:
    """``decode_image`` into ``out`` (C, H, W), a row of a batch, say, whose H and W are the size.

    Fastest where no copy is needed: ``out`` contiguous for one channel, and for three a view
    (C, H, W) of contiguous (H, W, C) memory. After a DataError ``out`` holds anything.
    """
    slot = out[0] if channels == 1 else out.transpose(1, 2, 0)
    if fit == "resize":
        pixels = _covering(data, channels, slot)
    else:
        pixels = read_pixels(data, channels, slot)
    if pixels is not slot:
        _place(pixels, slot)


def _covering(data: bytes, channels: int, slot: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image scaled, its shape kept, until neither side is less than that of ``slot``."""
    from PIL import Image

    size = slot.shape[:2]
    # libjpeg can shrink while it decodes, which is cheap but not clean: that much is left to Pillow
    stored = jpeg_size(data) or size
    spare = min(stored[0] / size[0], stored[1] / size[1]) / SPARE
    shrink = next((by for by in (8, 4, 2) if by <= spare), 1)
    pixels = read_pixels(data, channels, slot, shrink)
    if shrink == 1:
        stored = pixels.shape[:2]
    scale = max(size[0] / stored[0], size[1] / stored[1])
    height, width = (max(s, round(p * scale)) for s, p in zip(size, stored, strict=True))
    if (height, width) == stored:
        return pixels
    # what libjpeg rounded up to whole pixels is no part of the image
    box = (0, 0, stored[1] / shrink, stored[0] / shrink)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, box)
    return np.asarray(image)


def _place(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Centre (H, W, ...) in ``out`` (h, w, ...): cropped where it is larger, 0 around where not."""
    if pixels.shape != out.shape:
        out[...] = 0
    # where the image is larger, its middle; where it is smaller, the middle of the canvas
    top, left = (pixels.shape[0] - out.shape[0]) // 2, (pixels.shape[1] - out.shape[1]) // 2
    y, x = max(top, 0), max(left, 0)
    crop = pixels[y : y + out.shape[0], x : x + out.shape[1]]
    y, x = max(-top, 0), max(-left, 0)
    out[y : y + crop.shape[0], x : x + crop.shape[1]] = crop


def decode_member(
    kind: Kind, data: bytes, channels: int, size: tuple[int, int] | None, fit: Fit
) -> Array:
    """One member as an array: image (C, H, W) uint8, vector (D,) float32, integer () int64, array
    as stored, text (T,) uint8 UTF-8, sequence (S,) int64, frames (S, F) float32. DataError for
    bytes that are not what their extension says."""
    if kind == "image":
        return decode_image(data, channels, size, fit)
    if kind == "vector":
        return read_vector(data)
    if kind == "sequence":
        return read_sequence(data)
    if kind == "frames":
        return read_frames(data)
    try:
        if kind == "integer":
            return np.array(int(data), np.int64)
        if kind == "array":
            return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
        data.decode()
        return np.frombuffer(data, np.uint8)
    except (ValueError, EOFError) as error:
        raise DataError(f"no readable {kind} ({error})") from None


def stack(kind: Kind, values: Sequence[Array]) -> Tensor:
    """One tensor with a row a sample. Texts are padded with zero bytes to the longest, (B, T).

    Raises DataError where shapes or types differ.
    """
    if kind == "text":
        out = np.zeros((len(values), max((len(v) for v in values), default=0)), np.uint8)
        for row, value in zip(out, values, strict=True):
            row[: len(value)] = value
        return torch.from_numpy(out)
    shapes = {(value.shape, value.dtype.str) for value in values}
    if len(shapes) > 1:
        shown = ", ".join(sorted(f"{dtype}{shape}" for shape, dtype in shapes))
        raise DataError(
            f"samples of different shapes ({shown}) can't share a batch: set data.size for images, "
            "make arrays alike"
        )
    return torch.from_numpy(np.stack(values))


def texts(field: Tensor) -> list[str]:
    """The strings in a text field (B, T) uint8."""
    return [bytes(row).rstrip(b"\0").decode() for row in field.cpu().numpy()]


def jsons(field: Tensor) -> list[object]:
    """The values in a JSON field (B, T) uint8."""
    return [json.loads(text) for text in texts(field)]


def fields_of(extensions: Iterable[str]) -> Mapping[str, Kind]:
    """The fields that a data set with such members has: image, vector and label first.

    DataError where members of two kinds would be one field.
    """
    found: dict[str, Kind] = {}
    for name, kind in sorted(filter(None, map(field_of, extensions))):
        if found.setdefault(name, kind) != kind:
            raise DataError(
                f"the field '{name}' would hold members of two kinds, {found[name]} and {kind}: "
                "rename one of them and pack the data again"
            )
    first = {name: found.pop(name) for name in ("image", "vector", "label") if name in found}
    return first | found
