"""Local copies of a bucket's files, shared by all processes of a machine, under a cap."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genus.data.files import lacking
from genus.data.store import Store, UnreadableError
from genus.errors import DataError, MachineError
from genus.nodes import processes_here

if TYPE_CHECKING:
    from filelock import BaseFileLock

Wanted = tuple[Store, str, int, str]
"""(store, name of the file, its bytes, its checksum)."""

PART = 8 << 20
"""Bytes of one range of a download."""
PARTS = 4
"""Ranges of a download at once, and so the memory that it takes."""
THREADS = 4
"""Downloads ahead at once, a process."""
LOCKS = 4096
"""Lock files that all copies share: one a copy would pile up, as none can be removed safely. So
many that a small file hardly ever waits for the download of another, large one."""
MARK_EVERY = 1.0
"""Seconds between two marks of a file as used."""


class Cache:
    """Copies in ``folder``, together at most ``limit`` bytes, running downloads included.

    A copy's name is the hash of its url and checksum, its time of change is its last use. Where
    room is needed the copies that were not used for longest go; whoever has one open keeps it (and
    its disk space) until closing it. One process downloads a file, the others wait for it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._queue: list[Wanted] = []  # what ``ahead`` is to fetch, in this order
        self._running: set[Path] = set()
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "limit": self.limit}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def find(self, store: Store, name: str, size: int, checksum: str) -> Path | None:
        """The copy, if it is there; that counts as a use."""
        path = self._path(store, name, checksum)
        try:
            found = path.stat()
            if found.st_size != size:
                return None
            if time.time() - found.st_mtime >= MARK_EVERY:
                os.utime(path)
        except OSError:
            return None
        return path

    def takes(self, size: int) -> bool:
        """Whether a file of ``size`` bytes may have a copy at all."""
        return size <= self.limit

    def fetch(self, store: Store, name: str, size: int, checksum: str) -> Path:
        """The copy, which is made if need be. It may be evicted as soon as others need the room.

        UnreadableError where the file can't be had or has another size, DataError where the cap is
        too low for it, MachineError where the folder can't take it. Only the size is checked:
        readers check what they read.
        """
        path = self.find(store, name, size, checksum)
        if path is not None:
            return path
        if not self.takes(size):
            raise DataError(
                f"{store.url}/{name} has {size} bytes, the cache in {self.folder} may hold "
                f"{self.limit}: give it more, or turn it off"
            )
        path = self._path(store, name, checksum)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _held(self._lock(_lock_of(path))):
                if self.find(store, name, size, checksum) is None:
                    self._download(path, store, name, size)
        except OSError as error:
            raise self._trouble(error) from None
        return path

    def open(self, store: Store, name: str, size: int, checksum: str) -> int:
        """A file descriptor of the copy, which no eviction can take away; the caller closes it."""
        while True:
            path = self.fetch(store, name, size, checksum)
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # evicted by another process in between
                continue
            except OSError as error:
                raise self._trouble(error) from None

    def drop(self, store: Store, name: str, checksum: str) -> None:
        """Remove the copy: what is in it turned out to be wrong."""
        try:
            self._path(store, name, checksum).unlink(missing_ok=True)
        except OSError as error:
            raise self._trouble(error) from None

    def ahead(self, wanted: Iterable[Wanted]) -> None:
        """Fetch these files in the background, in this order, as far as half of the cap goes.

        The processes of a machine ($LOCAL_WORLD_SIZE) share that half, or they would throw each
        other's copies out. Files that the cache can't take are left out. What an earlier call
        wanted and nobody has begun is forgotten. Errors are for the ``fetch`` that needs the file.
        """
        room, queue = self.limit // 2 // (processes_here() or 1), []
        for store, name, size, checksum in wanted:
            if not self.takes(size):
                continue
            room -= size
            if room < 0:
                break
            queue.append((store, name, size, checksum))
        with self._changed:
            self._queue = queue
            if queue and not self._threads and not self._closed:
                for _ in range(THREADS):
                    self._threads.append(threading.Thread(target=self._work, daemon=True))
                    self._threads[-1].start()
            self._changed.notify_all()

    def close(self) -> None:
        """No more downloads ahead; one that runs is not awaited."""
        with self._changed:
            self._closed = True
            self._queue = []
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                wanted = self._queue.pop(0)
                path = self._path(wanted[0], wanted[1], wanted[3])
                if path in self._running:
                    continue
                self._running.add(path)
            try:
                if not path.exists():  # looking ahead is not a use
                    self.fetch(*wanted)
            except Exception:  # the fetch that needs the file meets the same error and tells
                pass
            finally:
                with self._changed:
                    self._running.discard(path)

    def _path(self, store: Store, name: str, checksum: str) -> Path:
        text = f"{store.url}/{name}\n{checksum}"
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.copy"

    def _trouble(self, error: OSError) -> MachineError:
        """Whatever fails in the cache's own folder: the data have no part in it."""
        if lacks := lacking(str(self.folder), error):
            return lacks
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "its disk is full" if full else error.strerror or str(error)
        return MachineError(
            f"can't keep copies of data in {self.folder} ({what}): make room there, lower the "
            "cache's cap, or set GENUS_CACHE to another folder"
        )

    def _lock(self, name: str) -> BaseFileLock:
        from filelock import FileLock

        folder = self.folder / "locks"
        folder.mkdir(exist_ok=True)
        return FileLock(folder / name)

    def _download(self, path: Path, store: Store, name: str, size: int) -> None:
        """Make the copy, the lock being held: a part file there is a killed process's."""
        there = store.size(name)
        if there != size:
            raise UnreadableError(
                f"{store.url}/{name} is {there} bytes long, its manifest says {size}: it was cut "
                "off or replaced; bring the original back or fetch the manifest again"
            )
        part = path.with_suffix(".part")
        file = self._reserve(part, size)
        try:
            for start in range(0, size, PART * PARTS):
                stop = min(start + PART * PARTS, size)
                begins = range(start, stop, PART)
                spans = [(name, begin, min(begin + PART, stop)) for begin in begins]
                for (_, begin, _), data in zip(spans, store.read_many(spans), strict=True):
                    if isinstance(data, DataError):
                        raise data
                    _write(file, data, begin)
            with _held(self._lock("room")):  # or who counts the files might meet it under no name
                part.replace(path)
        finally:
            os.close(file)
            part.unlink(missing_ok=True)

    def _reserve(self, part: Path, size: int) -> int:
        """A part file that has its final length already, for which there is room under the cap."""
        part.unlink(missing_ok=True)
        while True:
            with _held(self._lock("room")):
                copies, parts = self._files(_lock_of(part))
                if sum(parts) + size <= self.limit:
                    total = sum(parts) + sum(length for _, length, _ in copies)
                    for _, length, path in sorted(copies):
                        if total + size <= self.limit:
                            break
                        path.unlink(missing_ok=True)
                        total -= length
                    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                    file = os.open(part, flags, 0o666)
                    os.truncate(file, size)
                    return file
            time.sleep(0.05)  # other downloads fill the cap: each ends by itself

    def _files(self, own: str) -> tuple[list[tuple[float, int, Path]], list[int]]:
        """((last use, bytes, path) of each copy, bytes of running downloads).

        Removes what killed processes left; ``own`` is the lock that this thread holds.
        """
        copies, parts = [], []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                if path.suffix == ".part" and self._is_left(path, own):
                    path.unlink(missing_ok=True)
                elif path.suffix in (".part", ".copy"):
                    with contextlib.suppress(FileNotFoundError):
                        found = path.stat()
                        if path.suffix == ".part":
                            parts.append(found.st_size)
                        else:
                            copies.append((found.st_mtime, found.st_size, path))
        return copies, parts

    def _is_left(self, part: Path, own: str) -> bool:
        """Whether nobody works on it: who does holds its lock."""
        from filelock import Timeout

        if _lock_of(part) == own:
            return True
        try:
            with _held(self._lock(_lock_of(part)), timeout=0):
                return True
        except Timeout:
            return False


def _lock_of(path: Path) -> str:
    return str(int(path.name[:8], 16) % LOCKS)


@contextlib.contextmanager
def _held(lock: BaseFileLock, timeout: float = -1) -> Iterator[None]:
    with lock.acquire(timeout=timeout, poll_interval=0.02):
        yield


def _write(file: int, data: bytes, offset: int) -> None:
    """All of the data: one pwrite may take less."""
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count
