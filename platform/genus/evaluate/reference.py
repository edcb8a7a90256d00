"""Features of the real images, kept on disk: they are the same for every evaluation."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genus.atomic import replacing
from genus.evaluate.features import Extractor


def reference_features(
    images: Iterable[Tensor],
    count: int,
    extractor: Extractor,
    *,
    fingerprint: str,
    cache: Path | None,
) -> Tensor:
    """Features (count, D) float32 of the first ``count`` real images (batches of uint8).

    With a ``cache`` folder the images are read only the first time. The file's name is a hash of
    everything that the features depend on: ``fingerprint`` (of the data's content), the extractor's
    weights and preprocessing, and the count. A damaged file is made anew, with a warning.
    """
    if cache is None:
        return extractor.all(images, count)
    key = json.dumps(
        [fingerprint, extractor.name, extractor.weights_sha256, extractor.preprocessing, count]
    )
    digest = hashlib.sha256(key.encode()).hexdigest()[:20]
    path = cache / f"{extractor.name}-{digest}.safetensors"
    if path.exists():
        try:
            return _read(path, key, count)
        except (ValueError, OSError, SafetensorError) as error:
            warnings.warn(f"reference features {path} are made anew: {error}", stacklevel=2)
    features = extractor.all(images, count).contiguous()
    with replacing(path) as temporary:
        save_file({"features": features}, temporary, {"key": key, "checksum": _checksum(features)})
    return features


def _read(path: Path, key: str, count: int) -> Tensor:
    """The stored features, or ValueError saying why they can't be those that are asked for."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("key") != key or "features" not in file.keys():  # noqa: SIM118
            raise ValueError("the file is of something else")
        features: Tensor = file.get_tensor("features")
    if features.ndim != 2 or len(features) != count or features.dtype != torch.float32:
        raise ValueError(f"the file holds {features.dtype} {tuple(features.shape)}")
    if _checksum(features) != metadata.get("checksum"):
        raise ValueError("the file is damaged")
    return features


def _checksum(features: Tensor) -> str:
    return hashlib.sha256(features.numpy().tobytes()).hexdigest()
