"""From a sample's members (bytes) to arrays, and from samples to a batch's tensors.

A member's extension says what it is, as webdataset has it: ``png`` and its like are the image,
``cls`` is the label, and a name before the format (``mask.png``, ``latent.npy``) names the field.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genus.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

IMAGES = ("png", "jpg", "jpeg", "webp", "bmp", "gif")
Kind = Literal["image", "integer", "array", "text"]
Fit = Literal["pad", "resize"]
Array = NDArray[np.generic]

_PLAIN: dict[str, tuple[str, Kind]] = {
    **dict.fromkeys(IMAGES, ("image", "image")),
    "cls": ("label", "integer"),
    "npy": ("array", "array"),
    "txt": ("text", "text"),
    "json": ("json", "text"),
}


def field_of(extension: str) -> tuple[str, Kind] | None:
    """(field's name, kind) of a member's extension; None for what we don't decode."""
    name, _, form = extension.rpartition(".")
    if form not in _PLAIN:
        return None
    plain, kind = _PLAIN[form]
    return name or plain, kind


def decode_image(data: bytes, channels: int, size: int = 0, fit: Fit = "pad") -> NDArray[np.uint8]:
    """(C, H, W) uint8 levels. ``channels`` 1 or 3; transparency is laid over white.

    ``size`` 0 keeps the stored size. "pad": centred, 0 around it or cropped, pixels unchanged;
    "resize": the shorter side to ``size`` by antialiased Lanczos, then the centre square.
    Raises DataError (without a place: the caller knows it) for bytes that are no such image.
    """
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.mode != mode:
            image = _to_mode(image, mode)
        if size and fit == "resize":
            image = _resize(image, size)
        pixels = np.asarray(image)
    except DataError:
        raise
    except (
        Exception
    ) as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
        raise DataError(f"no readable image ({type(error).__name__}: {error})") from None
    pixels = pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return _pad(pixels, size) if size else pixels


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        raise DataError(f"an image of mode {image.mode}: only 8 bits a channel are read")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _resize(image: Image.Image, size: int) -> Image.Image:
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _pad(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Centre-pad with 0 or centre-crop (C, H, W) to (C, size, size)."""
    height, width = pixels.shape[1:]
    if height == width == size:
        return pixels
    out = np.zeros((len(pixels), size, size), np.uint8)
    # where the image is larger, its middle; where it is smaller, the middle of the canvas
    top, left = (height - size) // 2, (width - size) // 2
    crop = pixels[:, max(top, 0) : max(top, 0) + size, max(left, 0) : max(left, 0) + size]
    y, x = max(-top, 0), max(-left, 0)
    out[:, y : y + crop.shape[1], x : x + crop.shape[2]] = crop
    return out


def decode_member(kind: Kind, data: bytes, channels: int, size: int, fit: Fit) -> Array:
    """One member as an array: image (C, H, W) uint8, integer () int64, array as stored, text (T,)
    uint8 UTF-8. DataError for bytes that are not what their extension says."""
    if kind == "image":
        return decode_image(data, channels, size, fit)
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
    """The fields that a data set with such members has, the image and the label first."""
    found = dict(sorted(filter(None, map(field_of, extensions))))
    first = {name: found.pop(name) for name in ("image", "label") if name in found}
    return first | found
