"""What is in a data set: counts, sizes, classes, some texts and numbers, a sheet of its images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from genus.data import datasets
from genus.data.decode import Fit, decode_into
from genus.data.index import THREADS
from genus.data.manifest import Manifest
from genus.data.open_shard import Found
from genus.data.reader import Reader
from genus.data.shard_index import ShardIndex
from genus.data.vectors import read_into
from genus.errors import DataError

TEXTS = 3
"""Samples whose texts are shown, of as many characters as TEXT_WIDTH."""
TEXT_WIDTH = 100
VECTORS = 10_000
"""Vectors, spread evenly over the data set, whose numbers are summed up."""
COLUMNS = 32
"""Dimensions of vectors that are shown."""
SHEET = 64
"""Images on the contact sheet."""
TILE = 112
"""About the side of an image on the contact sheet, pixels; smaller ones are enlarged."""
CAPTION = 14
"""Height of the line below an image, pixels."""


@dataclass(frozen=True)
class Report:
    """``str(report)`` is a table for the terminal."""

    url: str
    manifest: Manifest
    sizes: NDArray[np.int64]
    """(N, 3) channels, height, width of every image; without rows where there are none."""
    texts: tuple[tuple[str, str], ...]
    """("sample 17, txt", the beginning of the text) of some samples."""
    vectors: NDArray[np.float32]
    """(n, D) of some samples; without rows where there are none."""

    def __str__(self) -> str:
        sections = [self._overview(), self._shards(), self._fields(), self._images()]
        sections += [self._vectors(), self._classes(), [*self.texts]]
        return "\n\n".join(_aligned(rows) for rows in sections if rows)

    def _overview(self) -> list[tuple[str, str]]:
        m = self.manifest
        rows = [("data set", m.name), ("where", self.url), ("fingerprint", m.fingerprint())]
        if m.tokens:
            tokens = f"{m.tokens:,} of {m.vocabulary:,} kinds, {m.dtype}"
            return [*rows, ("tokens", tokens), ("tokenizer", m.tokenizer or "unknown")]
        return [*rows, ("samples", f"{m.total:,}")]

    def _shards(self) -> list[tuple[str, str]]:
        shards, unit = self.manifest.shards, "tokens" if self.manifest.tokens else "samples"
        megabytes = [shard.filesize / 1e6 for shard in shards]
        return [
            ("shards", f"{len(shards):,}, {sum(megabytes):,.1f} MB in all"),
            ("MB a shard", _spread(megabytes, ",.2f")),
            (f"{unit} a shard", _spread([shard.nsamples for shard in shards], ",.0f")),
        ]

    def _fields(self) -> list[tuple[str, str]]:
        total = self.manifest.total
        return [
            (f".{extension}", f"{count:,} samples" + (" (all)" if count == total else ""))
            for extension, count in self.manifest.fields.items()
        ]

    def _images(self) -> list[tuple[str, str]]:
        if not len(self.sizes):
            return []
        channels, height, width = self.sizes.astype(float).T
        grey = int((channels == 1).sum())
        return [
            ("images", f"{len(self.sizes):,}: {grey:,} grey, {len(self.sizes) - grey:,} in colour"),
            ("width", _spread(width, ",.0f")),
            ("height", _spread(height, ",.0f")),
            ("width / height", _spread(width / height, ".2f")),
        ]

    def _vectors(self) -> list[tuple[str, str]]:
        count, dims = self.vectors.shape
        if not count:
            return []
        seen = "all" if count == self.manifest.total else f"{count:,} of {self.manifest.total:,}"
        rows = [("vectors", f"of {dims:,} numbers; least, mean and greatest of {seen} samples:")]
        for number, column in enumerate(self.vectors.T.astype(np.float64)[:COLUMNS]):
            parts = (column.min(), column.mean(), column.max())
            rows.append((f"number {number}", "".join(f"{value:>12.5g}" for value in parts)))
        if dims > COLUMNS:
            rows.append(("...", f"and {dims - COLUMNS:,} more"))
        return rows

    def _classes(self) -> list[tuple[str, str]]:
        m = self.manifest
        return [
            (f"class {number}", f"{count:>9,}  {name}")
            for number, (name, count) in enumerate(zip(m.classes, m.counts, strict=True))
        ]


def inspect(url: str) -> Report:
    """What a data set holds, by its manifest, its indexes and a few samples; ``url`` is what
    data.url takes. DataError where it can't be read."""
    store = datasets.resolve(url, may_fetch=False)
    manifest = Manifest.load(store)
    if manifest.tokens:
        none = np.zeros((0, 0), np.float32)
        return Report(store.url, manifest, np.zeros((0, 3), np.int64), (), none)

    def sizes_of(name: str) -> NDArray[np.int64]:
        return ShardIndex.load(store, name).shape

    with ThreadPoolExecutor(THREADS) as pool:
        sizes = np.concatenate([*pool.map(sizes_of, [shard.index for shard in manifest.shards])])
    texts = []
    reader = Reader([(store, manifest)])
    for number, found in zip(_spaced(manifest.total, TEXTS), _read(reader, TEXTS), strict=True):
        _, fields, members = found
        for (name, kind), data in zip(fields, members, strict=True):
            if kind == "text":
                line = " ".join(data.decode(errors="replace").split())
                shown = line if len(line) <= TEXT_WIDTH else line[: TEXT_WIDTH - 3] + "..."
                texts.append((f"sample {number}, {name}", shown))
    return Report(store.url, manifest, sizes[sizes[:, 0] > 0], tuple(texts), _vectors(reader))


def contact_sheet(url: str, path: Path, count: int = SHEET) -> int:
    """Write a PNG of ``count`` images spread evenly over the data set, each cut to its middle and
    with its class below; the number of images drawn. DataError where there are none to draw."""
    from genus.evaluate.grid import save_grid

    store = datasets.resolve(url, may_fetch=False)
    manifest = Manifest.load(store)
    if not manifest.channels:
        raise DataError(f"{store.url} holds no images to draw")
    stored = min(manifest.height, manifest.width)  # 0: the images differ
    small = 0 < stored <= TILE
    side = stored if small else TILE
    fit: Fit = "pad" if small else "resize"
    enlarge = TILE // side  # by whole pixels
    tiles = []
    for label, fields, members in _read(Reader([(store, manifest)]), count):
        images = [m for (name, _), m in zip(fields, members, strict=True) if name == "image"]
        data = images[0] if images else None
        if data is not None:
            image = np.empty((3, side, side), np.uint8)
            decode_into(data, image, 3, fit)
            image = image.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
            named = 0 <= label < len(manifest.classes)
            caption = manifest.classes[label] if named else ""
            tiles.append(_captioned(image, caption) if manifest.classes else image)
    if not tiles:
        raise DataError(f"none of {count} samples of {store.url} has an image to draw")
    save_grid(torch.from_numpy(np.stack(tiles)), path, columns=round(len(tiles) ** 0.5))
    return len(tiles)


def _vectors(reader: Reader) -> NDArray[np.float32]:
    """(n, D) those of some samples."""
    dims = reader.shards.parts[0][1].dims
    members = [
        data
        for _, fields, parts in (_read(reader, VECTORS) if dims else ())
        for (name, _), data in zip(fields, parts, strict=True)
        if name == "vector"
    ]
    vectors = np.empty((len(members), dims), np.float32)
    for row, data in zip(vectors, members, strict=True):
        read_into(data, row)
    return vectors


def _captioned(image: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """(3, H, W) to (3, H + CAPTION, W): the text on white below, cut where it is too long."""
    from PIL import Image, ImageDraw

    line = Image.new("L", (image.shape[2], CAPTION), 255)
    ImageDraw.Draw(line).text((1, 1), caption, fill=0)
    return np.concatenate([image, np.repeat(np.asarray(line)[None], 3, axis=0)], axis=1)


def _spaced(total: int, count: int) -> list[int]:
    """``count`` numbers of 0..total-1 (all, if those are fewer), evenly apart."""
    count = min(count, total)
    return [number * total // count for number in range(count)]


def _read(reader: Reader, count: int) -> list[Found]:
    numbers = np.array(_spaced(reader.shards.parts[0][1].total, count), np.int64)
    found = []
    for sample in reader.read(numbers):
        if isinstance(sample, DataError):
            raise sample
        found.append(sample)
    return found


def _spread(values: Sequence[float] | NDArray[np.floating], form: str) -> str:
    """Least, median and greatest."""
    least, median, greatest = np.min(values), np.median(values), np.max(values)
    if least == greatest:
        return format(float(least), form)
    parts = (format(float(value), form) for value in (least, median, greatest))
    return "{0} to {2}, median {1}".format(*parts)


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
