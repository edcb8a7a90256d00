"""A user's own image, read as a model's data are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genus.data.decode import IMAGES, Fit, decode_image
from genus.data.manifest import DataInfo
from genus.errors import DataError


def read_image(path: Path, info: DataInfo, fit: Fit, what: str) -> Tensor:
    """(C, R, R) uint8 in the channels and size of the model's images. DataError, which begins with
    ``what``: the argument that named the file."""
    size = (info.resolution, info.resolution)
    return torch.from_numpy(_decoded(path, info.channels, size, fit, what).copy())


def stored_size(path: Path, what: str) -> tuple[int, int]:
    """(height, width) of the image in the file. DataError as above."""
    _, height, width = _decoded(path, 3, None, "pad", what).shape
    return height, width


def _decoded(
    path: Path, channels: int, size: tuple[int, int] | None, fit: Fit, what: str
) -> NDArray[np.uint8]:
    if path.suffix.removeprefix(".").lower() not in IMAGES:
        raise DataError(f"{what}: {path} is no image ({', '.join(IMAGES)})")
    try:
        return decode_image(path.read_bytes(), channels, size, fit)
    except OSError as error:
        raise DataError(f"{what}: can't read {path} ({error.strerror})") from None
    except DataError as error:
        raise DataError(f"{what}: {path}: {error}") from None
