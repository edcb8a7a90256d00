"""Windows over packed tokens: the right ones, from folders and buckets, and no damage unseen."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genus.data import token_shard, tokens
from genus.data.cache import Cache
from genus.data.manifest import Manifest, Shard
from genus.data.order import Order
from genus.data.pack_tokens import pack_tokens
from genus.data.source import Request
from genus.data.store import Folder, Span, UnreadableError, open_store
from genus.data.token_shard import BLOCK
from genus.data.tokens import TokenWindows
from genus.errors import DataError, MachineError
from token_data import load, made, stored, windows


def expected_windows(folder: Path, length: int) -> list[tuple[list[int], list[int]]]:
    """Tokens and documents of every window, one token at a time."""
    found = []
    for values, begins in stored(folder):
        start = 0
        while start + length + 1 <= len(values):
            place = range(start, start + length + 1)
            number = [sum(int(start < b <= i) for b in begins.tolist()) for i in place]
            found.append(([int(values[i]) for i in place], number))
            start += length
    return found


# ---- windows -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=10),
    length=st.integers(1, 30),
    shard_tokens=st.integers(2, 90),
    vocabulary=st.sampled_from([50, 100_000]),
    seed=st.integers(0, 2**32),
)
def test_windows_against_one_token_at_a_time(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    length: int,
    shard_tokens: int,
    vocabulary: int,
    seed: int,
) -> None:
    out = tmp_path_factory.mktemp("windows") / "out"
    documents = made(lengths, vocabulary, seed)
    end = vocabulary - 1
    manifest = pack_tokens(
        documents, out, vocabulary=vocabulary, end=end, shard_tokens=shard_tokens
    )
    expected = expected_windows(out, length)
    if not expected:
        with pytest.raises(DataError, match="choose a smaller length"):
            windows(out, length)
        return
    data = windows(out, length)
    assert len(data) == len(expected) == data.sizes.sum()
    served = sum(int(size) * length + 1 for size in data.sizes if size)
    assert data.dropped == manifest.tokens - served
    ids = np.random.default_rng(seed).integers(0, len(data), 2 * len(data))  # some come twice
    found = load(data, ids)
    assert found["tokens"].dtype == found["document"].dtype == np.int32
    assert found["tokens"].tolist() == [expected[i][0] for i in ids]
    assert found["document"].tolist() == [expected[i][1] for i in ids]


@pytest.mark.parametrize("vocabulary", [65536, 2**20])
def test_windows_across_blocks(tmp_path: Path, vocabulary: int) -> None:
    """Windows that begin, end and lie on both sides of the 16 KiB blocks."""
    lengths = np.random.default_rng(3).integers(1, 900, 120).tolist()
    documents = made(lengths, vocabulary)
    pack_tokens(documents, tmp_path / "out", vocabulary=vocabulary, shard_tokens=25_000)
    for length in (1, 97, 4096, 8191, 8192, 8193, 24_999):
        data = windows(tmp_path / "out", length)
        ids = np.arange(len(data))
        np.random.default_rng(0).shuffle(ids)
        ids = ids[:300]
        found = load(data, ids)
        values = [shard for shard, _ in stored(tmp_path / "out")]
        numbers = [np.cumsum(np.isin(np.arange(len(v)), b)) for v, b in stored(tmp_path / "out")]
        first = np.cumsum(data.sizes) - data.sizes
        for row, sample in enumerate(ids.tolist()):
            shard = int(np.flatnonzero((first <= sample) & (data.sizes > 0))[-1])
            start = (sample - int(first[shard])) * length
            part = slice(start, start + length + 1)
            number = numbers[shard][part]
            assert np.array_equal(found["tokens"][row], values[shard][part])
            assert np.array_equal(found["document"][row], number - number[0])
            assert data.place(sample).endswith(
                f"out/{shard:06d}.npy, tokens {start} to {start + length}"
            )


def test_large_tokens_keep_their_values(tmp_path: Path) -> None:
    top = [2**31 - 1, 0, 2**31 - 2, 7]
    pack_tokens([top], tmp_path / "a", vocabulary=2**31)
    found = load(windows(tmp_path / "a", 3), np.array([0]))["tokens"]
    assert found.dtype == np.int32
    assert found.tolist() == [top]
    top = [2**32 - 1, 0, 2**31, 7]
    pack_tokens([top], tmp_path / "b", vocabulary=2**32)
    found = load(windows(tmp_path / "b", 3), np.array([0]))["tokens"]
    assert found.dtype == np.int64
    assert found.tolist() == [top]


def test_parts_lie_in_a_row_and_must_fit(tmp_path: Path) -> None:
    parts = []
    for number, shard_tokens in enumerate((50, 33)):
        folder = tmp_path / str(number)
        documents = made([70, 41], 99, number)
        pack_tokens(documents, folder, vocabulary=99, shard_tokens=shard_tokens)
        parts.append((Folder(folder), Manifest.load(Folder(folder))))
    both = TokenWindows(parts, 10)
    alone = [TokenWindows([part], 10) for part in parts]
    assert both.sizes.tolist() == [*alone[0].sizes.tolist(), *alone[1].sizes.tolist()]
    assert both.dropped == alone[0].dropped + alone[1].dropped
    found = load(both, np.arange(len(both)))
    for name, values in found.items():
        each = [load(data, np.arange(len(data)))[name] for data in alone]
        assert np.array_equal(values, np.concatenate(each))
    pack_tokens(made([70], 99), tmp_path / "2", vocabulary=100)
    other = Folder(tmp_path / "2")
    with pytest.raises(DataError, match="their vocabulary is 100 and 99"):
        TokenWindows([parts[0], (other, Manifest.load(other))], 10)
    images = Folder(Path(__file__).parent / "fashion-1000")
    with pytest.raises(DataError, match="fashion-1000 holds no packed tokens"):
        TokenWindows([(images, Manifest.load(images))], 10)
    for bad, length in (([], 10), (parts, 0)):
        with pytest.raises(DataError):
            TokenWindows(bad, length)
    for wrong in (-1, len(both)):
        with pytest.raises(IndexError):
            load(both, np.array([0, wrong]))
    assert load(both, np.empty(0, np.int64))["tokens"].shape == (0, 11)


def test_the_order_serves_every_window_once_an_epoch(tmp_path: Path) -> None:
    pack_tokens(made([500, 700], 99), tmp_path / "out", vocabulary=99, shard_tokens=101)
    data = windows(tmp_path / "out", 10)  # the last shard, of 89 tokens, has 8 windows, not 10
    order = Order(data.sizes, lanes=4, window=16, seed=1)
    epoch = np.concatenate([order.ids(lane, 0, order.length(lane)) for lane in range(4)])
    found = load(data, epoch)["tokens"]
    assert sorted(map(tuple, found.tolist())) == sorted(
        tuple(own) for own, _ in expected_windows(tmp_path / "out", 10)
    )


# ---- processes, threads, files -------------------------------------------------------------------


def open_files() -> int:
    """Shards and copies of shards: connections of other tests come and go."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            # " (deleted)" may follow
            count += link.readlink().name.partition(" ")[0].endswith((".npy", ".copy"))
    return count


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "OPEN_SHARDS", 3)
    pack_tokens(made([800], 99), tmp_path / "out", vocabulary=99, shard_tokens=20)
    gc.collect()
    before = open_files()
    data = windows(tmp_path / "out", 5)
    load(data, np.arange(len(data)))
    assert open_files() == before + 3
    del data
    assert open_files() == before


def test_pickled_and_shared_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "OPEN_SHARDS", 2)  # shards are closed while others read them
    pack_tokens(made([3000], 99), tmp_path / "out", vocabulary=99, shard_tokens=100)
    data = windows(tmp_path / "out", 9)
    everything = load(data, np.arange(len(data)))["tokens"]
    copy = pickle.loads(pickle.dumps(data))
    assert np.array_equal(load(copy, np.arange(len(data)))["tokens"], everything)
    wrong: list[object] = []

    def read(seed: int) -> None:
        for ids in np.random.default_rng(seed).integers(0, len(data), (60, 8)):
            try:
                if not np.array_equal(load(data, ids)["tokens"], everything[ids]):
                    wrong.append(ids)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- damage --------------------------------------------------------------------------------------


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def test_no_flipped_byte_changes_what_is_served(tmp_path: Path) -> None:
    """Of shard or index: it is found, or it is one that means nothing. Tokens mean something."""
    out = tmp_path / "out"
    pack_tokens(made([60, 90, 70], 99), out, vocabulary=99)
    right = load(windows(out, 8), np.arange(27))
    offset = (out / "000000.npy").stat().st_size - 2 * 220
    rng = random.Random(0)
    for name in ("000000.npy", "000000.index.npz"):
        original = (out / name).read_bytes()
        for place in range(0, len(original), 1 if name.endswith("npy") else 3):
            flip(out / name, place, rng.randrange(8))
            try:
                found = load(windows(out, 8), np.arange(27))
            except DataError as error:
                assert "000000" in str(error)  # noqa: PT017
            else:
                assert name.endswith("npz") or place < offset
                assert all(np.array_equal(found[field], right[field]) for field in right)
            (out / name).write_bytes(original)


def test_damage_is_named_and_only_its_rows_are_bad(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack_tokens(made([30_000, 30_000], 60_000), out, vocabulary=60_000, shard_tokens=40_000)
    data = windows(out, 1000)
    right = load(data, np.arange(len(data)))["tokens"]
    size = (out / "000000.npy").stat().st_size
    flip(out / "000000.npy", size - 80_000 + 2 * 10_000)  # token 10,000: in the second block
    message = r"out/000000\.npy, tokens 8192 to 16383: .* \(crc32\)"
    with pytest.raises(DataError, match=message):
        load(data, np.array([10]))
    assert not data.load(Request(np.array([7, 17]))).faults
    loaded = data.load(Request(np.array([7, 10])))
    assert (dict(loaded.fields), list(loaded.faults)) == ({}, [1])
    fields, faults = data.read(np.arange(len(data))[::-1])
    bad = {len(data) - 1 - row for row in faults}
    assert bad == set(range(8, 17))  # windows [1000 i, 1000 i + 1000] that touch 8192..16383
    good = np.array([i for i in range(len(data)) if i not in bad])
    assert np.array_equal(fields["tokens"][len(data) - 1 - good], right[good])


def test_shards_that_are_not_what_the_manifest_says(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack_tokens(made([9000], 99), out, vocabulary=99)
    shard, index = out / "000000.npy", out / "000000.index.npz"
    whole, values, good_index = shard.read_bytes(), np.load(shard), index.read_bytes()

    def check(message: str) -> None:
        with pytest.raises(DataError, match=message):
            load(windows(out, 10), np.array([0]))
        shard.write_bytes(whole)
        index.write_bytes(good_index)

    shard.write_bytes(whole[:-1])
    check(r"000000\.npy is 18127 bytes long, its manifest says 18128")
    np.save(shard, values.astype(np.int16))
    check(r"holds int16 \(9000,\)")
    np.save(shard, values.reshape(90, 100))
    check(r"holds uint16 \(90, 100\)")
    np.save(shard, values[::-1])
    check(r"tokens 0 to 8191: their bytes are not as they were packed")
    shard.write_bytes(bytes(len(whole)))
    check(r"is no \.npy file")
    pack_tokens(made([9000], 99, seed=1), tmp_path / "other", vocabulary=99)
    index.write_bytes((tmp_path / "other" / index.name).read_bytes())
    check(r"tokens 0 to 8191")
    pack_tokens(made([5], 99), tmp_path / "short", vocabulary=99)
    index.write_bytes((tmp_path / "short" / index.name).read_bytes())
    check(r"index of shard .*its 1 checksums")
    index.write_bytes(b"")
    check(r"index of shard .*not readable")
    data = windows(out, 10)
    load(data, np.array([0]))
    os.truncate(shard, 17_000)  # while it is open
    load(data, np.array([0]))
    with pytest.raises(DataError, match=r"tokens 8192 to 8999: their bytes are missing"):
        load(data, np.array([898]))
    shard.unlink()
    with pytest.raises(UnreadableError):
        load(windows(out, 10), np.array([0]))


@pytest.mark.parametrize("count", [90, 9000])
def test_a_manifest_of_another_type(tmp_path: Path, count: int) -> None:
    out = tmp_path / "out"
    manifest = pack_tokens(made([count], 99), out, vocabulary=99)
    wrong = replace(manifest, dtype="uint32")
    for store in (Folder(out), Distant(out)):
        with pytest.raises(UnreadableError, match=r"out/000000|away/000000"):
            load(TokenWindows([(store, wrong)], 10), [0])
    for dtype in ("", "int16", "float32"):
        with pytest.raises(DataError, match=f"dtype '{dtype}', expected uint16 or uint32"):
            TokenWindows([(Folder(out), replace(manifest, dtype=dtype))], 10)


# ---- buckets -------------------------------------------------------------------------------------


class Distant:
    """A bucket's calls, answered from a folder and counted."""

    def __init__(self, root: Path) -> None:
        self.url = "s3://far/away"
        self.folder = Folder(root)
        self.calls: list[list[Span]] = []
        self.indexes: list[str] = []
        self.lost = ""

    def size(self, name: str) -> int:
        return self.folder.size(name)

    def names(self) -> list[str]:
        raise AssertionError("listing is dear")

    def write(self, name: str, data: bytes) -> None:
        raise AssertionError("nothing is written")

    def read_all(self, name: str) -> bytes:
        self.indexes.append(name)
        if name.startswith(self.lost or "-"):
            raise UnreadableError(f"{name} is gone")
        return self.folder.read_all(name)

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self.folder.read(name, start, stop)

    def read_many(self, spans: Sequence[Span]) -> list[bytes | DataError]:
        self.calls.append(list(spans))
        return [
            DataError("timed out") if start > 20_000 else self.read(name, start, stop)
            for name, start, stop in spans
        ]


class OneCopy:
    """A cache that has the second shard, in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wanted: list[Any] = []

    def find(self, store: Any, name: str, size: int, checksum: str) -> Path | None:
        return self.root / name if name == "000001.npy" else None

    def ahead(self, wanted: Any) -> None:
        self.wanted += wanted


def test_buckets_are_asked_once_a_batch(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack_tokens(made([60_000], 60_000), out, vocabulary=60_000, shard_tokens=25_000)
    here, bucket = windows(out, 1000), Distant(out)
    part = bucket, Manifest.load(Folder(out))
    far = TokenWindows([part], 1000)
    assert (here.is_remote, far.is_remote) == (False, True)
    ids = np.array([32, 1, 0, 25, 2])
    found, right = load(far, ids), load(here, ids)
    request = Request(ids)
    loaded = here.load(request)
    assert loaded.request is request
    assert {name: torch.as_tensor(v).tolist() for name, v in loaded.fields.items()} == {
        name: values.tolist() for name, values in right.items()
    }
    assert all(np.array_equal(found[field], right[field]) for field in right)
    offset = (out / "000000.npy").stat().st_size - 50_000
    assert bucket.calls == [  # 0, 1 and 2 share a block, which is fetched once
        [("000000.npy", offset, offset + BLOCK), ("000001.npy", offset, offset + 2 * BLOCK)],
    ]
    fields, faults = far.read(np.array([23, 0]))
    assert [(row, str(error)) for row, error in faults.items()] == [(0, "timed out")]
    assert np.array_equal(fields["tokens"][1], right["tokens"][2])
    cache = OneCopy(out)
    copied = TokenWindows([part], 1000, cache)  # type: ignore[arg-type]
    bucket.calls.clear()
    assert np.array_equal(load(copied, ids)["tokens"], right["tokens"])
    assert [[name for name, _, _ in call] for call in bucket.calls] == [["000000.npy"]]
    copied.ahead([1])
    shard: Shard = part[1].shards[1]
    assert cache.wanted == [(bucket, "000001.npy", shard.filesize, shard.checksum)]
    bucket.lost = "000001"
    bucket.indexes.clear()
    broken = TokenWindows([part], 1000)
    broken.read(ids)
    fields, faults = broken.read(ids)  # a lost shard is not asked for again
    assert bucket.indexes == ["000000.index.npz", "000001.index.npz"]
    assert {row: type(error) for row, error in faults.items()} == {
        0: UnreadableError,
        3: UnreadableError,
    }
    assert np.array_equal(fields["tokens"][1], right["tokens"][1])


def test_from_a_real_bucket_and_its_copies(
    tmp_path: Path, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_shard, "LOOK_EVERY", 0.0)
    out = tmp_path / "out"
    pack_tokens(made([30_000], 60_000), out, vocabulary=60_000, shard_tokens=20_000)
    bucket = open_store(bucket_url)
    for path in out.iterdir():
        bucket.write(path.name, path.read_bytes())
    manifest = Manifest.load(bucket)
    assert manifest == Manifest.load(Folder(out))
    ids = np.array([27, 3, 3, 12])
    right = load(windows(out, 1000), ids)
    cache = Cache(tmp_path / "cache", 10**9)
    far = TokenWindows([(bucket, manifest)], 1000, cache)
    far = pickle.loads(pickle.dumps(far))
    found = load(far, ids)
    assert all(np.array_equal(found[field], right[field]) for field in right)
    for shard in manifest.shards:
        cache.fetch(bucket, shard.url, shard.filesize, shard.checksum)
        bucket.write(shard.url, b"gone")
    found = load(far, ids)  # from the copies
    assert all(np.array_equal(found[field], right[field]) for field in right)
    _, faults = TokenWindows([(bucket, manifest)], 1000).read(ids)
    assert set(faults) == {0, 1, 2, 3}


class Copies(Cache):
    """A cache that counts."""

    finds = 0
    dropped: tuple[str, ...] = ()

    def find(self, store: Any, name: str, size: int, checksum: str) -> Path | None:
        self.finds += 1
        return super().find(store, name, size, checksum)

    def drop(self, store: Any, name: str, checksum: str) -> None:
        self.dropped += (name,)
        super().drop(store, name, checksum)


def copied(tmp_path: Path) -> tuple[Distant, Copies, TokenWindows, list[Path]]:
    """Two shards of 8 windows in a bucket, and their copies."""
    out = tmp_path / "out"
    pack_tokens(made([16_000], 60_000), out, vocabulary=60_000, shard_tokens=8_100)
    bucket, cache = Distant(out), Copies(tmp_path / "cache", 10**9)
    manifest = Manifest.load(Folder(out))
    copies = [cache.fetch(bucket, s.url, s.filesize, s.checksum) for s in manifest.shards]
    bucket.calls.clear()
    return bucket, cache, TokenWindows([(bucket, manifest)], 1000, cache), copies


@pytest.mark.parametrize("how", ["changed", "cut off", "unreadable"])
def test_a_damaged_copy_is_dropped_and_the_bucket_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bucket, cache, far, copies = copied(tmp_path)
    ids = np.arange(15)
    right = load(windows(tmp_path / "out", 1000), ids)
    assert all(np.array_equal(load(far, ids)[field], right[field]) for field in right)
    assert bucket.calls == []
    with monkeypatch.context() as patch:
        if how == "changed":
            flip(copies[0], 5000)
        elif how == "cut off":
            os.truncate(copies[0], 5000)
        else:
            inode, read = copies[0].stat().st_ino, os.pread

            def broken(file: int, size: int, start: int) -> bytes:
                if os.fstat(file).st_ino == inode:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return read(file, size, start)

            patch.setattr(os, "pread", broken)
        files = open_files()
        found = load(far, ids)
    assert all(np.array_equal(found[field], right[field]) for field in right)
    assert [[name for name, _, _ in call] for call in bucket.calls] == [["000000.npy"]]
    assert (cache.dropped, open_files()) == (("000000.npy",), files - 1)
    assert [copy.exists() for copy in copies] == [False, True]
    # only what is bad in the bucket too is a fault
    flip(copies[1], 5000)
    flip(tmp_path / "out" / "000001.npy", 5000)
    _, faults = far.read(ids)
    assert min(faults) == 8
    assert all("000001.npy, tokens 0 to" in str(error) for error in faults.values())


def test_a_copy_that_is_in_use_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cache, far, copies = copied(tmp_path)
    load(far, np.arange(8))
    cache.finds = 0
    load(far, np.arange(8))
    assert cache.finds == 0  # at most every ten seconds
    monkeypatch.setattr(token_shard, "LOOK_EVERY", 0.0)
    files = open_files()
    for copy in copies:
        os.utime(copy, (1, 1))
    load(far, np.arange(8))
    assert [copy.stat().st_mtime > 1 for copy in copies] == [True, False]
    assert open_files() == files


def test_files_beyond_the_cap_are_read_out_of_the_bucket(tmp_path: Path) -> None:
    bucket, _, far, _ = copied(tmp_path)
    small = Copies(tmp_path / "small", 10_000)
    direct = TokenWindows(far.parts, 1000, small)
    direct.ahead([0, 1])
    right = load(far, np.arange(15))
    found = load(direct, np.arange(15))
    assert all(np.array_equal(found[field], right[field]) for field in right)
    assert {name for call in bucket.calls for name, _, _ in call} == {"000000.npy", "000001.npy"}


def test_too_few_files_are_no_fault_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, far, _ = copied(tmp_path)
    far._open(0)
    here = windows(tmp_path / "out", 1000)

    def lacks(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", lacks)
    for data, file in ((far, "copy"), (here, "npz")):
        with pytest.raises(MachineError, match=rf"\.{file} .*Too many open files.*ulimit -n"):
            data.read(np.arange(8))
