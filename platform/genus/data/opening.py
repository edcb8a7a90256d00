"""From a data config to what a stream serves: source, order, buckets and what recipes derive."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genus.data import datasets
from genus.data.aspect import bucket_sizes
from genus.data.decode import Fit, fields_of
from genus.data.manifest import DataInfo, Manifest, info_of
from genus.data.mixture import Mixture
from genus.data.order import Ids, Lanes, Order
from genus.data.reader import Reader
from genus.data.shards import Part
from genus.data.source import Samples, Size, Source
from genus.data.store import Folder
from genus.data.tokens import TokenWindows
from genus.draws import seed_of
from genus.errors import DataError

if TYPE_CHECKING:
    from genus.data.cache import Cache  # heavy, and wanted for buckets only


Shapes = Callable[[Ids], NDArray[np.int32]]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, and how they are served."""

    url: str = "fashion-mnist"
    """Built-in data set (fashion-mnist, fashion-mnist/test, 8-gaussians, ...), a folder by genus
    data pack, or s3://, gs://, http(s)://."""
    also: tuple[str, ...] = ()
    """More data sets to mix in; they must have the same fields."""
    weights: tuple[float, ...] = ()
    """Shares of url and also in every stretch of the run; empty: by their numbers of samples."""
    size: int = 0
    """Side of the images in pixels (0: as stored); of token data the length of a window."""
    fit: Fit = "pad"
    """pad: centred with 0 around, or cropped, exact pixels; resize: to cover, antialiased."""
    bucket_step: int = 0
    """Aspect-ratio buckets: images of about size^2 pixels with sides that are multiples of this
    (0: squares)."""
    flip: bool = False
    """Mirror each image left to right with probability 1/2."""
    lanes: int = 0
    """Lanes of the order, a multiple of any number of processes; 0: train.batch's largest divisor
    up to 64."""
    window: int = 16384
    """Samples of a lane that are shuffled together."""
    workers: int = -1
    """Reading processes a rank; -1: none on a CPU, else a core each, at most 8."""
    bad_samples: int = 0
    """Unreadable samples that a run puts up with, others standing in; one more ends it."""
    cache_gb: float = 50.0
    """Local copies of remote shards, GB a machine, in $GENUS_CACHE or ~/.cache/genus (0: none)."""


@dataclass(frozen=True)
class Opened:
    """Data sets that are ready to be served."""

    info: DataInfo
    source: Source
    order: Lanes
    seed: int
    buckets: list[Size]
    """Shapes of the aspect-ratio buckets; empty: all images are squares."""
    shapes: Shapes
    """Sample ids (n,) -> (n, 2) height and width of their images as stored."""


def opened(config: DataConfig, lanes: int, seed: int) -> Opened:
    """The data of ``config`` in an order of ``lanes`` lanes. Reads manifests only; DataError."""
    parts = _parts(config, fetch=True)
    info = _info(config, parts)
    remote = any(not isinstance(store, Folder) for store, _ in parts)
    cache = _cache(config) if remote else None
    if info.length:
        source: Source = TokenWindows(parts, config.size, cache)
        shapes: Shapes = _no_shapes
    else:
        reader = Reader(parts, cache)
        fields = fields_of(parts[0][1].fields)
        size = (info.resolution, info.resolution)
        source = Samples(
            reader,
            fields,
            info.channels,
            size,
            config.fit,
            info.dims,
            {
                "source": info.source_length,
                "frames": info.source_length,
                "target": info.target_length,
            },
            info.frame_features,
        )
        shapes = reader.shapes
    return Opened(
        info=info,
        source=source,
        order=_order(config, parts, source.sizes, lanes, seed),
        seed=seed,
        buckets=bucket_sizes(config.size, config.bucket_step) if config.bucket_step else [],
        shapes=shapes,
    )


def read_info(config: DataConfig, *, fetch: bool = True) -> DataInfo:
    """What a stream of this config will serve, from the manifests alone.

    DataError where the data can't be read, or are not here and ``fetch`` is False.
    """
    return _info(config, _parts(config, fetch))


def _parts(config: DataConfig, fetch: bool) -> list[Part]:
    stores = [datasets.resolve(url, fetch) for url in (config.url, *config.also)]
    return [(store, Manifest.load(store)) for store in stores]


def _info(config: DataConfig, parts: list[Part]) -> DataInfo:
    for _, manifest in parts:
        if (manifest.dims or manifest.lengths) and not manifest.channels:
            _check_without_images(config, "sequences" if manifest.lengths else "vectors")
    if config.bucket_step:
        if any(manifest.tokens for _, manifest in parts):
            raise DataError("data.bucket_step is for images: these are tokens")
        bucket_sizes(config.size, config.bucket_step)
        if config.fit != "resize":
            raise DataError(f"data.bucket_step needs data.fit=resize, not {config.fit}")
    if config.weights and len(config.weights) != len(parts):
        raise DataError(f"{len(config.weights)} data.weights for {len(parts)} data sets")
    url = " + ".join((config.url, *config.also))
    return info_of([manifest for _, manifest in parts], url, config.size, config.weights)


def _check_without_images(config: DataConfig, held: str) -> None:
    """DataError where the config asks for what only images have."""
    plain = DataConfig()
    for name in ("size", "fit", "bucket_step", "flip"):
        value = getattr(config, name)
        if value != getattr(plain, name):
            raise DataError(
                f"data.{name}={value} is for images: {config.url} holds {held}, which are served "
                "as they are stored"
            )


def _order(config: DataConfig, parts: list[Part], sizes: Ids, lanes: int, seed: int) -> Lanes:
    shards = [len(manifest.shards) for _, manifest in parts]
    by_part = np.split(sizes, np.cumsum(shards)[:-1])
    if len(parts) == 1:
        return Order(sizes, lanes=lanes, window=config.window, seed=seed)
    orders = [
        Order(own, lanes=lanes, window=config.window, seed=seed_of(seed, "data set", number))
        for number, own in enumerate(by_part)
    ]
    weights = config.weights or [order.samples for order in orders]
    return Mixture(orders, shards, weights, seed)


def _cache(config: DataConfig) -> Cache | None:
    from genus.data.cache import Cache

    if not 0 <= config.cache_gb < float("inf"):
        raise DataError(f"data.cache_gb={config.cache_gb}: take 0 (no copies) or more")
    folder = Path(os.environ.get("GENUS_CACHE") or Path.home() / ".cache" / "genus")
    return Cache(folder, int(config.cache_gb * 1e9)) if config.cache_gb else None


def _no_shapes(ids: Ids) -> NDArray[np.int32]:
    return np.zeros((len(ids), 2), np.int32)
