"""What a folder of shards holds (manifest.json, in wids' shape), and what recipes derive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from genus.data.decode import fields_of
from genus.data.store import Store, UnreadableError
from genus.errors import DataError

MANIFEST = "manifest.json"
_SHARD_FIELDS = ("url", "nsamples", "filesize", "checksum", "indexsize")
_TOKEN_FIELDS = ("tokens", "vocabulary", "dtype", "end", "tokenizer")
_PAIR_FIELDS = ("lengths", "source_vocabulary", "frame_features", "sound_rate")


@dataclass(frozen=True)
class Shard:
    """One file: its name in the folder, samples, bytes and sha256."""

    url: str
    nsamples: int
    filesize: int
    checksum: str
    indexsize: int = 0
    """Bytes of its index; 0: not known."""

    @property
    def index(self) -> str:
        """The name of its index."""
        return f"{self.url.rpartition('.')[0]}.index.npz"


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
    """Samples; of token data 0, since windows depend on their length."""
    tokens: int = 0
    """Tokens of a token data set, whose shards' nsamples count tokens; 0 for tar shards."""
    vocabulary: int = 0
    """Tokens are 0..vocabulary-1; of sequences those of the target."""
    dtype: str = ""
    """Of the stored tokens: uint16 or uint32."""
    end: int = -1
    """The token that ends a document or a target; -1: none."""
    tokenizer: str = ""
    """"bytes", or the sha256 of tokenizer.json."""
    dims: int = 0
    """Numbers of each vector; 0 without vectors."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Field of sequences -> length of the longest: tokens of source and target, frames."""
    source_vocabulary: int = 0
    """Tokens of sources are 0..source_vocabulary-1; 0 without them."""
    frame_features: int = 0
    """Numbers of a frame; 0 without frames."""
    sound_rate: int = 0
    """Of the sounds that the frames were made from, in Hz; 0: not known."""
    modes: str = ""
    """By what the modes of samples are told apart (genus.evaluate.modes); empty: none are known."""

    def fingerprint(self) -> str:
        """A hash of all content and its order; the same wherever the folder lies."""
        text = json.dumps([[s.nsamples, s.checksum] for s in self.shards])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def save(self, store: Store) -> None:
        """Write manifest.json, atomically."""
        body = asdict(self)
        shards = body.pop("shards")
        unused = {name for name in ("dims", "modes") if not getattr(self, name)}
        if not self.lengths:
            unused |= {*_PAIR_FIELDS}
        if not self.tokens:
            unused |= {"tokens", "dtype"} if self.lengths else {*_TOKEN_FIELDS}
        body = {key: value for key, value in body.items() if key not in unused}
        body = {"__kind__": "wids-shard-index-v1", "wids_version": 1, **body, "shardlist": shards}
        store.write(MANIFEST, (json.dumps(body, indent=1) + "\n").encode())

    @staticmethod
    def load(store: Store) -> Manifest:
        """Read a data set's manifest. DataError where it is missing or not one of ours."""
        try:
            body: dict[str, Any] = json.loads(read_made(store, MANIFEST))
            return Manifest(
                name=body["name"],
                shards=tuple(
                    Shard(**{name: s[name] for name in _SHARD_FIELDS if name in s})
                    for s in body["shardlist"]
                ),
                fields=body["fields"],
                classes=tuple(body["classes"]),
                counts=tuple(body["counts"]),
                channels=body["channels"],
                height=body["height"],
                width=body["width"],
                total=body["total"],
                **{
                    name: body[name]
                    for name in (*_TOKEN_FIELDS, "dims", *_PAIR_FIELDS, "modes")
                    if name in body
                },
            )
        except UnreadableError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"can't read {store.url}/{MANIFEST} ({type(error).__name__}: {error}): make it "
                f"again with 'genus data index {store.url}'"
            ) from None


def read_made(store: Store, name: str) -> bytes:
    """All of a file that ``genus data index`` makes; UnreadableError, saying so."""
    try:
        return store.read_all(name)
    except UnreadableError as error:
        if store.url.startswith("http"):
            raise
        raise UnreadableError(
            f"{error}. (Shards made elsewhere get it by 'genus data index {store.url}')"
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
    """Side of the images as the stream serves them, in pixels (with buckets: the side of the square
    of about their area); 0 without images."""
    classes: int
    """Number of classes; 0 without labels."""
    class_names: tuple[str, ...]
    """One name a class."""
    fields: tuple[str, ...]
    """Names of the batch's fields."""
    fingerprint: str
    """Hash of the data sets' content, their shares and the length of windows."""
    vocabulary: int = 0
    """Of tokens, or of target sequences; 0 without them."""
    length: int = 0
    """Of a window of tokens, which serves one more; 0 without tokens."""
    dropped: int = 0
    """Tokens an epoch at the ends of shards that are in no window."""
    dims: int = 0
    """Numbers of a vector; 0 without vectors."""
    end: int = -1
    """The token that ends documents and target sequences; -1: none."""
    target_length: int = 0
    """T, tokens of the longest target, its end token included; 0 without targets."""
    source_length: int = 0
    """S, tokens of the longest source, or frames; 0 without them."""
    source_vocabulary: int = 0
    """Of source sequences; 0 without them."""
    frame_features: int = 0
    """F, numbers of a frame; 0 without frames."""
    sound_rate: int = 0
    """Of the sounds that the frames were made from, in Hz; 0: not known."""
    tokenizer: str = ""
    """Of windows or targets: "bytes", or the sha256 of tokenizer.json; empty: not known."""

    @property
    def has_one_tokenizer(self) -> bool:
        """Whether sources are tokens of the targets' tokenizer, as far as vocabularies tell."""
        return 0 < self.source_vocabulary == self.vocabulary

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample: (C, H, W) of images as the stream serves them, or (D,) of vectors."""
        return (self.dims,) if self.dims else (self.channels, self.resolution, self.resolution)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self) | {"class_names": [*self.class_names], "fields": [*self.fields]}

    @property
    def sample(self) -> str:
        """What a sample is, in words."""
        if self.length:
            return f"{self.length} tokens of {self.vocabulary:,}"
        parts = []
        if self.resolution:
            parts.append("x".join(map(str, self.shape)))
        if self.dims:
            parts.append(f"{self.dims} numbers")
        if self.frame_features:
            parts.append(f"up to {self.source_length} frames of {self.frame_features}")
        elif self.source_length:
            parts.append(f"up to {self.source_length} tokens of {self.source_vocabulary:,}")
        if self.target_length:
            parts.append(f"up to {self.target_length} tokens of {self.vocabulary:,}")
        if self.classes:
            parts.append(f"{self.classes} classes")
        return " -> ".join(parts) if self.target_length else ", ".join(parts)

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> DataInfo:
        """The inverse of ``to_json``."""
        lists = {name: tuple(body[name]) for name in ("class_names", "fields")}
        return DataInfo(**{**body, **lists})


def info_of(
    manifests: Sequence[Manifest], url: str, size: int, weights: Sequence[float] = ()
) -> DataInfo:
    """What a stream serves from one or more data sets, with images of side ``size`` (0: as stored,
    which must be square) or token windows of that length. DataError where they don't go together.
    """
    first = manifests[0]
    if size < 0:
        raise DataError(f"data.size={size}: take 0 (as stored) or more")
    for other in manifests[1:]:
        _check_alike(first, other)
    fields = ("tokens", "document") if first.tokens else tuple(fields_of(first.fields))
    if first.tokens and size < 1:
        raise DataError(f"{url} holds tokens: set data.size to the length of a window")
    if "frames" in fields:
        fields = (*fields, "frames_length")
    if "image" in fields and not size:
        size = _stored_size(manifests, url)
    if "vector" in fields and not first.dims:
        raise DataError(
            f"the manifest of {first.name} doesn't say how long its vectors are: make it again "
            "with 'genus data index'"
        )
    for name in ("source", "target", "frames"):
        if name in fields and not first.tokens and name not in first.lengths:
            raise DataError(
                f"the manifest of {first.name} doesn't say how long its {name} sequences are: make "
                "it again with 'genus data index'"
            )
    samples, dropped = [m.total for m in manifests], 0
    if first.tokens:
        shards = [[max(0, s.nsamples - 1) // size for s in m.shards] for m in manifests]
        samples = [sum(windows) for windows in shards]
        served = sum(n * size + 1 for windows in shards for n in windows if n)
        dropped = sum(m.tokens for m in manifests) - served
    return DataInfo(
        url=url,
        samples=sum(samples),
        channels=max(manifest.channels for manifest in manifests),
        resolution=size if "image" in fields else 0,
        classes=len(first.classes),
        class_names=first.classes,
        fields=fields,
        fingerprint=_fingerprint(manifests, weights, size if first.tokens else 0),
        vocabulary=first.vocabulary,
        length=size if first.tokens else 0,
        dropped=dropped,
        dims=first.dims,
        end=first.end,
        target_length=max(m.lengths.get("target", 0) for m in manifests),
        source_length=max(
            m.lengths.get(name, 0) for m in manifests for name in ("source", "frames")
        ),
        source_vocabulary=first.source_vocabulary,
        frame_features=first.frame_features,
        sound_rate=first.sound_rate,
        tokenizer=first.tokenizer,
    )


def _check_alike(first: Manifest, other: Manifest) -> None:
    for what, one, two in (
        ("fields", sorted(fields_of(first.fields)), sorted(fields_of(other.fields))),
        ("classes", first.classes, other.classes),
        ("vocabulary", first.vocabulary, other.vocabulary),
        ("tokenizer", first.tokenizer, other.tokenizer),
        ("end token", first.end, other.end),
        ("numbers of a vector", first.dims, other.dims),
        ("vocabulary of sources", first.source_vocabulary, other.source_vocabulary),
        ("numbers of a frame", first.frame_features, other.frame_features),
        ("rate of sounds", first.sound_rate, other.sound_rate),
    ):
        if one != two:
            raise DataError(
                f"{first.name} and {other.name} can't be mixed: the {what} of one are {one}, "
                f"of the other {two}"
            )


def _stored_size(manifests: Sequence[Manifest], url: str) -> int:
    sizes = {(manifest.height, manifest.width) for manifest in manifests}
    height, width = next(iter(sizes))
    if len(sizes) > 1 or height == 0:
        raise DataError(f"the images of {url} differ in size: set data.size (and data.fit)")
    if height != width:
        raise DataError(
            f"the images of {url} are {height} high and {width} wide: set data.size (and data.fit) "
            "for squares"
        )
    return height


def _fingerprint(manifests: Sequence[Manifest], weights: Sequence[float], length: int) -> str:
    """One data set's own, or a hash of all that decides which samples there are."""
    own = [manifest.fingerprint() for manifest in manifests]
    if len(own) == 1 and not length:
        return own[0]
    text = json.dumps([own, [*weights], length])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
