"""What a folder of shards holds (manifest.json, in wids' shape), and what recipes derive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genus.data.decode import fields_of
from genus.errors import DataError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One tar file: its name in the folder, samples, bytes and sha256."""

    url: str
    nsamples: int
    filesize: int
    checksum: str

    @property
    def index(self) -> str:
        """The name of its index."""
        return f"{self.url.removesuffix('.tar')}.index.npz"


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds."""

    name: str
    shards: tuple[Shard, ...]
    fields: Mapping[str, int]
    """Member extension -> number of samples that have it."""
    classes: tuple[str, ...]
    """Names of the classes 0, 1, ...; empty without labels."""
    counts: tuple[int, ...]
    """Samples of each class."""
    channels: int
    """1 if all images are grey, else 3; 0 without images."""
    height: int
    """Pixels; 0 where the images differ."""
    width: int
    """Pixels; 0 where the images differ."""
    total: int
    """Samples."""

    def fingerprint(self) -> str:
        """A hash of all content and its order; the same wherever the folder lies."""
        text = json.dumps([[s.nsamples, s.checksum] for s in self.shards])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def save(self, folder: Path) -> None:
        """Write manifest.json, atomically."""
        body = asdict(self)
        shards = body.pop("shards")
        body = {"__kind__": "wids-shard-index-v1", "wids_version": 1, **body, "shardlist": shards}
        temporary = folder / f".{MANIFEST}.new"
        temporary.write_text(json.dumps(body, indent=1) + "\n")
        temporary.replace(folder / MANIFEST)

    @staticmethod
    def load(folder: Path) -> Manifest:
        """Read a folder's manifest. DataError where it is missing or not one of ours."""
        path = folder / MANIFEST
        try:
            body: dict[str, Any] = json.loads(path.read_text())
            return Manifest(
                name=body["name"],
                shards=tuple(
                    Shard(s["url"], s["nsamples"], s["filesize"], s["checksum"])
                    for s in body["shardlist"]
                ),
                fields=body["fields"],
                classes=tuple(body["classes"]),
                counts=tuple(body["counts"]),
                channels=body["channels"],
                height=body["height"],
                width=body["width"],
                total=body["total"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"can't read {path} ({type(error).__name__}: {error}): make it again with "
                f"'genus data index {folder}'"
            ) from None


@dataclass(frozen=True)
class DataInfo:
    """What recipes derive their sizes from."""

    url: str
    """As the config says it."""
    samples: int
    """Samples an epoch."""
    channels: int
    """Of an image: 1 or 3; 0 without images."""
    resolution: int
    """Side of the images as the stream serves them, in pixels; 0 without images."""
    classes: int
    """Number of classes; 0 without labels."""
    class_names: tuple[str, ...]
    """One name a class."""
    fields: tuple[str, ...]
    """Names of the batch's fields."""
    fingerprint: str
    """Hash of the data set's content."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self) | {"class_names": [*self.class_names], "fields": [*self.fields]}

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> DataInfo:
        """The inverse of ``to_json``."""
        lists = {name: tuple(body[name]) for name in ("class_names", "fields")}
        return DataInfo(**{**body, **lists})


def info_of(manifest: Manifest, url: str, size: int) -> DataInfo:
    """What a stream serves with images of side ``size`` (0: as stored, which must be square)."""
    fields = fields_of(manifest.fields)
    if "image" in fields and not size and manifest.height == 0:
        raise DataError(f"the images of {url} differ in size: set data.size (and data.fit)")
    if not size and manifest.height != manifest.width:
        raise DataError(
            f"the images of {url} are {manifest.height} high and {manifest.width} wide: set "
            "data.size (and data.fit) for squares"
        )
    return DataInfo(
        url=url,
        samples=manifest.total,
        channels=manifest.channels,
        resolution=(size or manifest.height) if "image" in fields else 0,
        classes=len(manifest.classes),
        class_names=manifest.classes,
        fields=tuple(fields),
        fingerprint=manifest.fingerprint(),
    )
