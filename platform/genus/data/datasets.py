"""Built-in data sets: where they come from, and how they get onto this machine.

Sources are tried in this order: a folder that the user names, the installed Debian package, the
package by apt-get, the data set's own home page. Whichever it is, the content's hashes decide.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from genus.data.manifest import MANIFEST
from genus.data.pack import pack
from genus.data.store import Store, open_store
from genus.errors import DataError


@dataclass(frozen=True)
class BuiltIn:
    """A data set of idx.gz files."""

    splits: Mapping[str, tuple[str, str]]
    """Split -> files of its images and its labels; the first split is what the bare name means."""
    sha256: Mapping[str, str]
    """File -> hash of its content, unpacked: packagers compress anew."""
    classes: tuple[str, ...]
    package: str
    """Debian package."""
    installed: str
    """The folder that the package fills, relative to the root of the file system."""
    home: str
    """URL of the folder with the files."""


BUILT_IN: dict[str, BuiltIn] = {
    "fashion-mnist": BuiltIn(
        splits={
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
    )
}  # fmt: skip


class UnavailableError(Exception):
    """A source that can't give the files here; the message says why."""


def data_root() -> Path:
    """Where built-in data sets live: $GENUS_DATA, or data/ in the current folder."""
    return Path(os.environ.get("GENUS_DATA") or "data")


def resolve(url: str, may_fetch: bool = True) -> Store:
    """The folder or bucket that ``url`` means; a built-in data set is fetched if it isn't there.

    DataError where it may not be fetched, or where the url is neither a bucket's, nor a folder with
    a manifest, nor a built-in name.
    """
    folder = Path(url)
    if "://" in url or (folder / MANIFEST).exists():
        return open_store(url)
    name, _, split = url.partition("/")
    known = [
        n if i == 0 else f"{n}/{s}" for n, b in BUILT_IN.items() for i, s in enumerate(b.splits)
    ]
    if name in BUILT_IN and split in ("", *BUILT_IN[name].splits):
        part = split or next(iter(BUILT_IN[name].splits))
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
        with _lock(root / f".{name}.lock"), tempfile.TemporaryDirectory() as scratch:
            missing = [s for s in data.splits if not (folder / s / MANIFEST).exists()]
            if missing:  # else another process did it while this one waited
                files, origin = _find(name, data, Path(scratch), source)
                print(f"{name}: taken from {origin}", flush=True)
                for split in missing:
                    images, _ = data.splits[split]
                    pack(files / images, folder / split, classes=data.classes, name=name)
    return folder


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system frees it when its holder dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _find(name: str, data: BuiltIn, scratch: Path, source: str | Path | None) -> tuple[Path, str]:
    """(folder with verified files, what was used)."""
    if source is not None:
        try:
            _verify(Path(source), data)
        except UnavailableError as why:
            raise DataError(f"{source} is no source of {name}: {why}") from None
        return Path(source), f"your folder {source}"
    sources: dict[str, Callable[[], Path]] = {
        f"the installed package {data.package}": lambda: Path("/") / data.installed,
        f"apt-get download {data.package}": lambda: _from_apt(data, scratch),
        f"its home page {data.home}": lambda: _from_home(data, scratch / "home"),
    }
    failures = []
    for origin, get in sources.items():
        try:
            folder = get()
            _verify(folder, data)
            return folder, origin
        except UnavailableError as why:
            failures.append(f"  {origin}: {why}")
    raise DataError(
        f"{name} can't be had here:\n" + "\n".join(failures) + "\nInstall the Debian package "
        f"{data.package}, or put {', '.join(data.sha256)} into a folder and run "
        f"'genus data fetch {name} --source FOLDER'"
    )


def _verify(folder: Path, data: BuiltIn) -> None:
    for file, expected in data.sha256.items():
        try:
            content = gzip.decompress((folder / file).read_bytes())
        except FileNotFoundError:
            raise UnavailableError(f"there is no {folder / file}") from None
        except (OSError, EOFError, zlib.error) as error:
            raise UnavailableError(f"can't read {folder / file} ({error})") from None
        if hashlib.sha256(content).hexdigest() != expected:
            raise UnavailableError(f"{folder / file} is not the original (its sha256 differs)")


def _from_apt(data: BuiltIn, scratch: Path) -> Path:
    """The package, downloaded and unpacked but not installed: that needs no root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UnavailableError("this system has no apt-get and dpkg-deb")
    download = ["apt-get", "download", data.package]
    try:
        _command(download, scratch)
    except UnavailableError:  # fresh containers have no package lists yet
        _command(["apt-get", "update"], scratch)
        _command(download, scratch)
    packages = list(scratch.glob("*.deb"))
    if len(packages) != 1:
        raise UnavailableError(f"apt-get left {len(packages)} packages")
    _command(["dpkg-deb", "-x", packages[0].name, "unpacked"], scratch)
    return scratch / "unpacked" / data.installed


def _command(words: list[str], folder: Path) -> None:
    try:
        subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip() or error.stdout.strip()).splitlines()[-1:]
        raise UnavailableError(f"'{' '.join(words)}' failed: {''.join(said)}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"'{' '.join(words)}' failed: {error}") from None


def _from_home(data: BuiltIn, folder: Path) -> Path:
    folder.mkdir()
    for file in data.sha256:
        try:
            with (
                urllib.request.urlopen(data.home + file, timeout=30) as answer,
                (folder / file).open("wb") as out,
            ):
                shutil.copyfileobj(answer, out)
        except (urllib.error.URLError, OSError) as error:
            raise UnavailableError(f"{file}: {error}") from None
    return folder
