"""Files of a local folder, and what it shares with buckets."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genus.atomic import replacing
from genus.errors import DataError, GenusError, MachineError

Span = tuple[str, int, int]
"""(name of a file, first byte, the byte after the last)."""


class UnreadableError(DataError):
    """A file that can't be had at all: it is missing, forbidden or out of reach."""


def checked(name: str, url: str) -> str:
    """The name, if it stays inside its store: manifests come from strangers."""
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise DataError(f"'{name}' is no name of a file in {url}")
    return name


def too_short(place: str, size: int, stop: int) -> DataError:
    """A file that ends before the bytes that its index promises."""
    return DataError(
        f"{place} is {size} bytes long, but bytes up to {stop} are wanted: it was cut off or "
        "replaced; bring the original back or fetch the data again"
    )


def lacking(place: str, error: OSError) -> MachineError | None:
    """What to raise where the machine, not the file, is at fault; None for other errors."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "raise the limit ('ulimit -n 65536'; of the whole machine: sysctl fs.file-max)"
    elif error.errno == errno.ENOMEM:
        remedy = "use fewer workers or smaller batches, or a machine with more memory"
    else:
        return None
    return MachineError(f"{place} can't be read ({error.strerror}): {remedy}")


@dataclass(frozen=True)
class Folder:
    """A local folder, or one that is mounted."""

    root: Path

    @property
    def url(self) -> str:
        return str(self.root)

    def open(self, name: str) -> int:
        """A file descriptor for reading, which the caller closes."""
        try:
            return os.open(self.root / checked(name, self.url), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(name, error) from None

    def read(self, name: str, start: int, stop: int) -> bytes:
        if not 0 <= start <= stop:
            raise ValueError(f"no span of bytes: {start} to {stop}")
        file = self.open(name)
        try:
            data = _read(file, start, stop)
            size = os.fstat(file).st_size
        except OSError as error:
            raise self._unreadable(name, error) from None
        finally:
            os.close(file)
        if len(data) < stop - start:
            raise too_short(f"{self.url}/{name}", size, stop)
        return data

    def read_many(self, spans: Sequence[Span]) -> list[bytes | DataError]:
        found: list[bytes | DataError] = []
        for span in spans:
            try:
                found.append(self.read(*span))
            except DataError as error:
                found.append(error)
        return found

    def read_all(self, name: str) -> bytes:
        return self.read(name, 0, self.size(name))

    def size(self, name: str) -> int:
        try:
            return (self.root / checked(name, self.url)).stat().st_size
        except OSError as error:
            raise self._unreadable(name, error) from None

    def names(self) -> list[str]:
        """Hidden files are left out: among them are those that are being written."""
        try:
            with os.scandir(self.root) as entries:
                return sorted(e.name for e in entries if e.is_file() and e.name[0] != ".")
        except OSError as error:
            raise self._unreadable("", error) from None

    def write(self, name: str, data: bytes) -> None:
        path = self.root / checked(name, self.url)
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise DataError(
                f"can't write {path} ({error.strerror}): free space there, get the right to write, "
                "or name another folder"
            ) from None

    def _unreadable(self, name: str, error: OSError) -> GenusError:
        place = f"{self.url}/{name}" if name else self.url
        if lacks := lacking(place, error):
            return lacks
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            what = "is not there: check the path, or fetch the data again"
        elif error.errno in (errno.EACCES, errno.EPERM):
            what = "may not be read: check its permissions"
        else:
            what = f"can't be read ({error.strerror}): check the disk or mount that it lies on"
        return UnreadableError(f"{place} {what}")


def _read(file: int, start: int, stop: int) -> bytes:
    """The bytes [start, stop), fewer only at the file's end: one pread gives at most 2 GiB."""
    data = os.pread(file, stop - start, start)
    while len(data) < stop - start:
        more = os.pread(file, stop - start - len(data), start + len(data))
        if not more:
            break
        data += more
    return data
