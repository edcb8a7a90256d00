"""Copies of a bucket's files: right, shared by processes, under the cap, the least used go first.

The cache's other processes are real ones: scripts below that begin at a line on stdin.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from genus.data.cache import PART, THREADS, Cache
from genus.data.store import Bucket, Folder, Span, UnreadableError
from genus.errors import DataError, MachineError
from object_storage import Fault, FaultyProxy, answer, first, silence, slow

KB = 1000


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENUS_STORE_RETRY_S", "1.5")


@pytest.fixture
def origin(tmp_path: Path) -> Folder:
    """Files 0.tar ... 9.tar of 100 KB; a folder is as good as a bucket where no fault is needed."""
    folder = Folder(tmp_path / "origin")
    for i in range(10):
        folder.write(f"{i}.tar", content(i))
    return folder


def content(i: int) -> bytes:
    return bytes([i]) * 100 * KB


def fetch(cache: Cache, store: Folder | Bucket, i: int) -> bytes:
    return cache.fetch(store, f"{i}.tar", 100 * KB, f"sha{i}").read_bytes()


def held(cache: Cache, store: Folder | Bucket) -> list[int]:
    """Which files have copies, without marking any as used."""
    return [i for i in range(10) if cache._path(store, f"{i}.tar", f"sha{i}").exists()]


def age(cache: Cache, store: Folder | Bucket, i: int, seconds: float) -> None:
    """As if the copy had been used that long ago."""
    when = time.time() - seconds
    os.utime(cache._path(store, f"{i}.tar", f"sha{i}"), (when, when))


def used(cache: Cache) -> int:
    """Bytes of all copies and running downloads."""
    total = 0
    for path in cache.folder.iterdir():
        if path.is_file():
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
    return total


# ---- one process ---------------------------------------------------------------------------------


def test_a_copy_is_made_once_and_found_again(tmp_path: Path, bucket_url: str) -> None:
    store, cache = Bucket(bucket_url), Cache(tmp_path / "cache", 100 << 20)
    data = os.urandom(5 * PART + 77)  # more than one window of ranges
    store.write("deep/0.tar", data)
    wanted = (store, "deep/0.tar", len(data), "sha256:1")
    assert cache.find(*wanted) is None
    path = cache.fetch(*wanted)
    assert path.read_bytes() == data
    store.write("deep/0.tar", b"gone")
    assert cache.fetch(*wanted) == cache.find(*wanted) == path
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.find(*wanted) == path
    file = cache.open(*wanted)
    assert os.read(file, 5) == data[:5]
    os.close(file)


def test_an_empty_file_has_a_copy_too(tmp_path: Path, origin: Folder) -> None:
    origin.write("empty", b"")
    assert Cache(tmp_path / "cache", 1).fetch(origin, "empty", 0, "x").read_bytes() == b""


def test_same_names_and_replaced_files_never_mix(tmp_path: Path, bucket_url: str) -> None:
    cache = Cache(tmp_path / "cache", 1000 * KB)
    a, b = Bucket(f"{bucket_url}/a"), Bucket(f"{bucket_url}/b")
    a.write("0.tar", b"aaaa")
    b.write("0.tar", b"bbbb")
    assert cache.fetch(a, "0.tar", 4, "one").read_bytes() == b"aaaa"
    assert cache.fetch(b, "0.tar", 4, "one").read_bytes() == b"bbbb"
    a.write("0.tar", b"AAAA")
    assert cache.fetch(a, "0.tar", 4, "two").read_bytes() == b"AAAA"
    assert cache.fetch(a, "0.tar", 4, "one").read_bytes() == b"aaaa"


def test_what_cannot_be_copied_is_said(tmp_path: Path, bucket_url: str) -> None:
    cache, store = Cache(tmp_path / "cache", 1000), Bucket(bucket_url)
    store.write("0.tar", b"12345")
    with pytest.raises(DataError, match=r"0\.tar is 5 bytes long, its manifest says 4"):
        cache.fetch(store, "0.tar", 4, "x")
    with pytest.raises(UnreadableError, match=r"none\.tar: it is not there"):
        cache.fetch(store, "none.tar", 4, "x")
    with pytest.raises(DataError, match=r"has 1001 bytes, the cache in .* may hold 1000: give it"):
        cache.fetch(store, "0.tar", 1001, "x")
    (tmp_path / "file").write_bytes(b"")
    assert (cache.takes(1000), cache.takes(1001)) == (True, False)
    with pytest.raises(MachineError, match=r"can't keep copies .*file .*GENUS_CACHE"):
        Cache(tmp_path / "file", 1000).fetch(store, "0.tar", 5, "x")
    assert used(cache) == 0


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, origin: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = Cache(tmp_path / "cache", 1000 * KB)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(MachineError, match=r"/cache \(its disk is full\): make room there"):
            fetch(cache, origin, 0)
    assert used(cache) == 0
    assert fetch(cache, origin, 0) == content(0)


def test_the_least_recently_used_go_first(tmp_path: Path, origin: Folder) -> None:
    cache = Cache(tmp_path / "cache", 399 * KB)
    for i in range(3):
        fetch(cache, origin, i)
        age(cache, origin, i, 100 - i)
    assert cache.find(origin, "0.tar", 100 * KB, "sha0")  # a use: now 1 is the oldest
    fetch(cache, origin, 3)
    assert held(cache, origin) == [0, 2, 3]
    fetch(cache, origin, 4)
    assert held(cache, origin) == [0, 3, 4]


def test_whoever_reads_an_evicted_copy_goes_on_reading(tmp_path: Path, origin: Folder) -> None:
    cache = Cache(tmp_path / "cache", 100 * KB)
    file = cache.open(origin, "0.tar", 100 * KB, "sha0")
    fetch(cache, origin, 1)
    assert held(cache, origin) == [1]
    assert os.pread(file, 100 * KB, 0) == content(0)
    os.close(file)


def test_open_fetches_again_what_others_evicted(
    tmp_path: Path, origin: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, original, tries = Cache(tmp_path / "cache", 100 * KB), Cache.fetch, []

    def evicted(*arguments: object) -> Path:
        path = original(*arguments)  # type: ignore[arg-type]
        tries.append(path)
        if len(tries) < 3:
            path.unlink()
        return path

    monkeypatch.setattr(Cache, "fetch", evicted)
    file = cache.open(origin, "0.tar", 100 * KB, "sha0")
    assert (len(tries), os.pread(file, 100 * KB, 0)) == (3, content(0))
    os.close(file)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, "Permission denied.*another folder"),
        (errno.EDQUOT, "disk is full"),
        (errno.EMFILE, "Too many open files.*ulimit -n"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_the_data(
    tmp_path: Path,
    origin: Folder,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    message: str,
) -> None:
    cache = Cache(tmp_path / "cache", 1000 * KB)

    def lacks(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", lacks)
        with pytest.raises(MachineError, match=rf"/cache .*{message}"):
            fetch(cache, origin, 0)
    path = cache.fetch(origin, "0.tar", 100 * KB, "sha0")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lacks)
        with pytest.raises(MachineError, match=rf"/cache .*{message}"):
            cache.open(origin, "0.tar", 100 * KB, "sha0")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lacks)
        with pytest.raises(MachineError, match=rf"/cache .*{message}"):
            cache.drop(origin, "0.tar", "sha0")
    cache.drop(origin, "0.tar", "sha0")
    assert not path.exists()


# ---- ahead ---------------------------------------------------------------------------------------


def wanted(store: Folder | Bucket, numbers: Sequence[int]) -> list[tuple[object, str, int, str]]:
    return [(store, f"{i}.tar", 100 * KB, f"sha{i}") for i in numbers]


def wait_for(cache: Cache, store: Folder | Bucket, numbers: list[int]) -> None:
    until = time.monotonic() + 20
    while held(cache, store) != numbers and time.monotonic() < until:
        time.sleep(0.01)
    assert held(cache, store) == numbers


def test_ahead_copies_in_the_background_within_half_of_the_cap(
    tmp_path: Path, origin: Folder
) -> None:
    cache = Cache(tmp_path / "cache", 1000 * KB)
    cache.ahead(wanted(origin, range(10)))  # type: ignore[arg-type]
    wait_for(cache, origin, [0, 1, 2, 3, 4])
    cache.ahead(wanted(origin, [7]))  # type: ignore[arg-type]
    wait_for(cache, origin, [0, 1, 2, 3, 4, 7])
    cache.close()
    for thread in cache._threads:
        thread.join(10)
        assert not thread.is_alive()


def test_the_processes_of_a_machine_share_that_half(
    tmp_path: Path, origin: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    cache = Cache(tmp_path / "cache", 1000 * KB)
    for rank in range(2):  # of 10 files each wants 5 others
        cache.ahead(wanted(origin, range(5 * rank, 10)))  # type: ignore[arg-type]
        wait_for(cache, origin, [0, 1, 5, 6][: 2 * rank + 2])
        assert not cache._queue
    cache.close()


def test_ahead_leaves_out_what_the_cache_cannot_take(tmp_path: Path, origin: Folder) -> None:
    cache = Cache(tmp_path / "cache", 400 * KB)
    large = (origin, "9.tar", 401 * KB, "sha9")
    cache.ahead([large, *wanted(origin, [1, 2])])  # type: ignore[list-item]
    wait_for(cache, origin, [1, 2])
    cache.close()


def test_a_small_file_does_not_wait_for_a_download_of_another(
    tmp_path: Path, bucket_url: str, proxy: FaultyProxy
) -> None:
    """Two of the files that shared one of 256 locks, of 300 downloads at once."""
    store, cache = Bucket(bucket_url), Cache(tmp_path / "cache", 10_000 * KB)
    locks: dict[int, str] = {}
    for name in (f"{i}.tar" for i in range(10_000)):
        lock = int(cache._path(store, name, "x").name[:8], 16) % 4096
        if (other := next((o for o in locks if o % 256 == lock % 256 and o != lock), -1)) >= 0:
            break
        locks[lock] = name
    large = locks[other]
    for each in (large, name):
        store.write(each, b"12345")
    asked, go = threading.Event(), threading.Event()

    def stuck(method: str, path: str, before: int) -> None:
        if path.endswith(f"/{large}"):
            asked.set()
            go.wait(30)

    proxy.schedule = stuck
    thread = threading.Thread(target=cache.fetch, args=(store, large, 5, "x"))
    thread.start()
    small = threading.Thread(target=cache.fetch, args=(store, name, 5, "x"))
    try:
        assert asked.wait(20)
        small.start()
        small.join(10)
        assert cache.find(store, name, 5, "x")
        assert not cache.find(store, large, 5, "x")
    finally:
        go.set()
        thread.join()
        small.join()


def test_ahead_returns_at_once_and_forgets_what_is_no_longer_wanted(
    tmp_path: Path, bucket_url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genus.data.cache.LOCKS", 1 << 32)  # downloads that share one would wait
    store, cache = Bucket(bucket_url), Cache(tmp_path / "cache", 10_000 * KB)
    for i in range(10):
        store.write(f"{i}.tar", content(i))
    go, begun = threading.Event(), threading.Semaphore(0)

    def stuck(method: str, path: str, before: int) -> None:
        begun.release()
        go.wait(20)

    proxy.asked.clear()
    proxy.schedule = stuck
    cache.ahead(wanted(store, range(9)))  # type: ignore[arg-type]
    for _ in range(THREADS):
        assert begun.acquire(timeout=20)
    cache.ahead(wanted(store, [0, 9]))  # type: ignore[arg-type]
    proxy.schedule = lambda *_: None
    go.set()
    wait_for(cache, store, [0, 1, 2, 3, 9])
    assert fetch(cache, store, 9) == content(9)
    cache.close()
    assert not any(f"{i}.tar" in path for path in proxy.asked for i in (4, 5, 6, 7, 8))
    # size and content, each once: nothing was fetched twice
    assert set(proxy.asked.values()) == {2}


def test_nobody_waits_for_a_download_that_runs_already(
    tmp_path: Path, bucket_url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genus.data.cache.LOCKS", 1 << 32)
    store, cache = Bucket(bucket_url), Cache(tmp_path / "cache", 10_000 * KB)
    for i in (0, 9):
        store.write(f"{i}.tar", content(i))
    go = threading.Event()

    def stuck(method: str, path: str, before: int) -> None:
        if path.endswith("0.tar"):
            go.wait(30)

    proxy.schedule = stuck
    cache.ahead(wanted(store, [*[0] * THREADS, 9]))  # type: ignore[arg-type]
    wait_for(cache, store, [9])
    go.set()
    wait_for(cache, store, [0, 9])
    cache.close()


def test_errors_ahead_are_told_by_the_fetch_that_needs_the_file(
    tmp_path: Path, bucket_url: str, proxy: FaultyProxy
) -> None:
    store, cache = Bucket(bucket_url), Cache(tmp_path / "cache", 10_000 * KB)
    store.write("1.tar", content(1))
    proxy.schedule = first(1000, answer(403), "0.tar")
    cache.ahead(wanted(store, [0, 1]))  # type: ignore[arg-type]
    wait_for(cache, store, [1])
    with pytest.raises(UnreadableError, match="access denied"):
        fetch(cache, store, 0)
    proxy.schedule = lambda *_: None
    store.write("0.tar", content(0))
    assert fetch(cache, store, 0) == content(0)
    cache.close()


# ---- several processes ---------------------------------------------------------------------------

SCRIPT = """
import random, sys
from pathlib import Path
from genus.data.cache import Cache
from genus.data.store import open_store
url, folder, limit, how, numbers = sys.argv[1:]
store, cache = open_store(url), Cache(Path(folder), int(limit))
numbers = [int(number) for number in numbers.split(",")]
wanted = lambda i: (store, f"{i}.tar", 100_000, f"sha{i}")
print("ready", flush=True)
sys.stdin.readline()
if how == "ahead":
    cache.ahead([wanted(i) for i in numbers])
    print("ready", flush=True)
    sys.stdin.readline()
else:
    for i in numbers:
        with open(cache.open(*wanted(i)), "rb") as file:
            assert file.read() == bytes([i]) * 100_000, i
"""


class Other:
    """Another process that reads files of ``url`` through the cache."""

    def __init__(
        self, cache: Cache, url: str, numbers: Sequence[int], how: str = "open", **more: str
    ) -> None:
        arguments = [url, cache.folder, cache.limit, how, ",".join(map(str, numbers))]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def go(self) -> None:
        """Lets it begin, once it is up."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Waits for its end, which must be a good one."""
        _, errors = self.process.communicate("", timeout=60)
        assert self.process.returncode == 0, errors


@pytest.fixture
def others() -> Iterator[list[Other]]:
    """Put here, they are ended with the test."""
    started: list[Other] = []
    yield started
    for other in started:
        other.process.kill()
        other.process.communicate()


def test_uses_by_another_process_count(tmp_path: Path, origin: Folder, others: list[Other]) -> None:
    cache = Cache(tmp_path / "cache", 300 * KB)
    for i in range(3):
        fetch(cache, origin, i)
        age(cache, origin, i, 100 - i)
    others.append(Other(cache, origin.url, [0, 3, 1]))  # uses 0: 3 evicts 1, then 1 evicts 2
    others[0].go()
    others[0].end()
    assert held(cache, origin) == [0, 1, 3]


def test_four_processes_that_want_more_than_the_cap_keep_to_it(
    tmp_path: Path, origin: Folder, others: list[Other]
) -> None:
    cache = Cache(tmp_path / "cache", 350 * KB)
    for start in range(4):
        numbers = [(start + 3 * i) % 10 for i in range(40)]
        others.append(Other(cache, origin.url, numbers))
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            if cache.folder.exists():
                most = max(most, *(used(cache), 0))

    for other in others:
        other.go()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for other in others:
            other.end()
    finally:
        over.set()
        watcher.join()
    # the sum is not of one moment: a copy may be counted beside the one that took its place
    assert 200 * KB <= most <= 450 * KB
    assert used(cache) <= 350 * KB
    assert not list(cache.folder.glob("*.part"))


def test_one_process_downloads_and_the_others_use_its_copy(
    tmp_path: Path, bucket_url: str, proxy: FaultyProxy, others: list[Other]
) -> None:
    cache, store = Cache(tmp_path / "cache", 1000 * KB), Bucket(bucket_url)
    store.write("5.tar", content(5))
    proxy.asked.clear()
    proxy.schedule = first(1000, slow(500_000))
    others.extend(Other(cache, bucket_url, [5]) for _ in range(3))
    for other in others:
        other.go()
    for other in others:
        other.end()
    assert list(proxy.asked.values()) == [2]  # its size and its content


def test_a_killed_download_leaves_no_wrong_file_and_no_bytes_behind(
    tmp_path: Path, bucket_url: str, proxy: FaultyProxy, others: list[Other]
) -> None:
    cache, store = Cache(tmp_path / "cache", 100 * KB), Bucket(bucket_url)
    for i in (4, 5):
        store.write(f"{i}.tar", content(i))
    asked = threading.Event()

    def schedule(method: str, path: str, before: int) -> Fault | None:
        if method == "GET":
            asked.set()
            return silence()
        return None

    proxy.schedule = schedule
    others.append(Other(cache, bucket_url, [5], GENUS_STORE_TIMEOUT_S="100"))
    others[0].go()
    assert asked.wait(30)
    assert used(cache) == 100 * KB  # a running download counts whole
    others[0].process.send_signal(signal.SIGKILL)
    others[0].process.wait()
    assert held(cache, store) == []
    proxy.schedule = lambda *_: None
    assert fetch(cache, store, 4) == content(4)  # another file: the dead one's part makes room
    assert not list(cache.folder.glob("*.part"))
    assert fetch(cache, store, 5) == content(5)


def test_a_download_ahead_does_not_hold_the_exit(
    tmp_path: Path, bucket_url: str, proxy: FaultyProxy, others: list[Other]
) -> None:
    cache, store = Cache(tmp_path / "cache", 1000 * KB), Bucket(bucket_url)
    store.write("5.tar", content(5))
    asked = threading.Event()

    def schedule(method: str, path: str, before: int) -> Fault:
        asked.set()
        return silence()

    proxy.schedule = schedule
    patient = {"GENUS_STORE_TIMEOUT_S": "100", "GENUS_STORE_RETRY_S": "100"}
    others.append(Other(cache, bucket_url, [5], "ahead", **patient))
    others[0].go()
    assert asked.wait(30)
    others[0].go()
    _, errors = others[0].process.communicate("", timeout=20)
    assert (others[0].process.returncode, errors) == (0, "")


def test_downloads_wait_where_others_fill_the_cap(tmp_path: Path, origin: Folder) -> None:
    """Two downloads do not fit together: the second begins when the first is a copy."""
    cache = Cache(tmp_path / "cache", 150 * KB)
    begun, go = threading.Event(), threading.Event()

    class Slow(Folder):
        def read_many(self, spans: Sequence[Span]) -> list[bytes | DataError]:
            begun.set()
            assert go.wait(20)
            return super().read_many(spans)

    thread = threading.Thread(target=fetch, args=(cache, Slow(origin.root), 0))
    thread.start()
    assert begun.wait(20)
    second = threading.Thread(target=fetch, args=(cache, origin, 1))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert used(cache) == 100 * KB
    go.set()
    thread.join(20)
    second.join(20)
    assert held(cache, origin) == [1]


def test_a_finished_download_is_never_missed_by_who_counts(
    tmp_path: Path, origin: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its old name and its new one a file has to be hidden from whoever makes room."""
    cache, counted, replace = Cache(tmp_path / "cache", 1000 * KB), [], Path.replace

    def watched(part: Path, path: Path) -> Path:
        with pytest.raises(Timeout), FileLock(cache.folder / "locks/room").acquire(timeout=0):
            pass
        counted.append(path)
        return replace(part, path)

    monkeypatch.setattr(Path, "replace", watched)
    assert fetch(cache, origin, 0) == content(0)
    assert len(counted) == 1
