"""Streams out of a real S3 server: the same batches as from a folder, through every fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genus.data.index import index_folder
from genus.data.manifest import MANIFEST, Manifest
from genus.data.quarantine import Entry
from genus.data.store import Bucket, Folder, open_store
from genus.data.stream import DataConfig, Stream, open_stream
from genus.errors import DataError, MachineError
from object_storage import S3, Fault, FaultyProxy, answer, close, cut, delay, first, silence, slow

FASHION = Path(__file__).parent / "fashion-1000"
STEPS = 21
"""Of 50: a little more than an epoch."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def uploaded(s3: S3) -> str:
    """The small data set in a bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        bucket, folder = open_store("s3://data/fashion"), Folder(FASHION)
        for name in folder.names():
            bucket.write(name, folder.read_all(name))
    return "s3://data/fashion"


def config(url: str, **changes: object) -> DataConfig:
    return replace(DataConfig(url=url, lanes=10, window=40, workers=0), **changes)  # type: ignore[arg-type]


def open_(config: DataConfig) -> Stream:
    return open_stream(config, batch=50, seed=3)


def run(stream: Stream, steps: int = STEPS) -> list[dict[str, torch.Tensor]]:
    """Fields and ids of some batches."""
    iterator = iter(stream)
    found = []
    for _ in range(steps):
        batch = next(iterator)
        found.append({**batch.fields, "ids": batch.ids})
    iterator.close()  # type: ignore[attr-defined]
    return found


def same(one: list[dict[str, torch.Tensor]], two: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, two, strict=True)
    )


@pytest.fixture(scope="module")
def local() -> list[dict[str, torch.Tensor]]:
    return run(open_(config(str(FASHION))))


# ---- without faults ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_a_bucket_serves_what_a_folder_serves(
    uploaded: str,
    s3_environment: S3,
    local: list[dict[str, torch.Tensor]],
    own_cache: Path,
    workers: int,
    cache_gb: float,
) -> None:
    stream = open_(config(uploaded, workers=workers, cache_gb=cache_gb))
    assert same(run(stream), local)
    copies = list(own_cache.glob("*.copy"))
    assert len(copies) == (16 if cache_gb else 0)  # eight shards and their indexes


def test_a_web_server_serves_it_too(
    uploaded: str, s3: S3, local: list[dict[str, torch.Tensor]]
) -> None:
    assert same(run(open_(config(f"{s3.filer}/buckets/data/fashion"))), local)


def test_large_shards_are_read_by_ranges_until_their_copies_are_there(
    uploaded: str,
    s3_environment: S3,
    local: list[dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    proxy: FaultyProxy,
) -> None:
    monkeypatch.setattr("genus.data.shards.SMALL_SHARD", 0)
    stream = open_(config(uploaded))
    assert same(run(stream), local)
    held = stream._source.reader.shards.held.values()  # type: ignore[attr-defined]
    assert any(shard.file >= 0 for shard in held)  # by then copies have come
    proxy.asked.clear()
    assert same(run(open_(config(uploaded, cache_gb=0.0))), local)
    ranges = sum(count for path, count in proxy.asked.items() if path.endswith(".tar"))
    assert ranges >= 1000  # one a sample: nothing was copied


def test_a_warm_cache_asks_for_the_manifest_only(
    uploaded: str, proxy: FaultyProxy, local: list[dict[str, torch.Tensor]]
) -> None:
    run(open_(config(uploaded)))
    proxy.asked.clear()
    assert same(run(open_(config(uploaded))), local)
    assert {path.rpartition("/")[2] for path in proxy.asked} == {MANIFEST}


def test_a_cache_smaller_than_the_data_serves_the_same(
    uploaded: str,
    s3_environment: S3,
    local: list[dict[str, torch.Tensor]],
    own_cache: Path,
) -> None:
    largest = max(path.stat().st_size for path in FASHION.glob("*.tar"))
    cap = 3.5 * largest
    assert same(run(open_(config(uploaded, cache_gb=cap / 1e9))), local)
    assert sum(path.stat().st_size for path in own_cache.glob("*.copy")) <= cap


def test_a_damaged_copy_is_fetched_again(
    uploaded: str, proxy: FaultyProxy, local: list[dict[str, torch.Tensor]], own_cache: Path
) -> None:
    run(open_(config(uploaded)))
    shard = max(own_cache.glob("*.copy"), key=lambda path: path.stat().st_size)
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"IDAT", b"IDOT"))
    proxy.asked.clear()
    stream = open_(config(uploaded))
    ledger: list[Entry] = []
    stream.ledger = ledger.append
    assert same(run(stream), local)
    assert not ledger
    assert shard.read_bytes() == content  # the copy is whole again
    assert sum(path.endswith(".tar") for path in proxy.asked.elements()) >= 2  # a range, the shard


def test_a_damaged_copy_of_an_index_is_fetched_again(
    uploaded: str, s3_environment: S3, local: list[dict[str, torch.Tensor]], own_cache: Path
) -> None:
    run(open_(config(uploaded)))
    index = min(own_cache.glob("*.copy"), key=lambda path: path.stat().st_size)
    index.write_bytes(b"\0" * index.stat().st_size)
    stream = open_(config(uploaded))
    ledger: list[Entry] = []
    stream.ledger = ledger.append
    assert same(run(stream), local)
    assert not ledger


def test_a_cache_too_small_for_a_shard_is_passed_by(
    uploaded: str, s3_environment: S3, local: list[dict[str, torch.Tensor]], own_cache: Path
) -> None:
    assert same(run(open_(config(uploaded, cache_gb=2e-5))), local)  # room for indexes only
    assert sum(path.stat().st_size for path in own_cache.glob("*.copy")) <= 20_000


def test_a_full_disk_under_the_cache_ends_the_run_and_is_no_bad_data(
    uploaded: str, s3_environment: S3, own_cache: Path
) -> None:
    own_cache.parent.mkdir(exist_ok=True)
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(MachineError, match="GENUS_CACHE"):
        run(open_(config(uploaded, bad_samples=1000)))


def test_a_shard_that_goes_away_within_a_batch_costs_only_itself(
    uploaded: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENUS_STORE_RETRY_S", "0.2")

    def schedule(method: str, path: str, before: int) -> Fault | None:
        return answer(404) if path.endswith("000005.tar") and before % 2 else None

    proxy.schedule = schedule
    stream = open_(config(uploaded, cache_gb=0.0, bad_samples=125))
    assert len(run(stream)) == STEPS
    assert stream.quarantine.count == 125


def test_buckets_of_shapes_are_copied_ahead_too(
    uploaded: str, s3_environment: S3, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genus.data.shards.SMALL_SHARD", 0)
    changes = {"size": 28, "bucket_step": 14, "fit": "resize"}
    plain = run(open_(config(str(FASHION), **changes)))
    assert same(run(open_(config(uploaded, **changes))), plain)
    assert len(list(own_cache.glob("*.copy"))) == 16


def test_shards_in_a_bucket_are_indexed_there(bucket_url: str) -> None:
    bucket, folder = Bucket(bucket_url), Folder(FASHION)
    for name in folder.names():
        if name.endswith(".tar"):
            bucket.write(name, folder.read_all(name))
    done: list[str] = []
    index_folder(bucket_url, name="fashion-1000", progress=done.append)
    assert sorted(done) == [name for name in folder.names() if name.endswith(".tar")]
    ours, theirs = Manifest.load(bucket), Manifest.load(folder)
    assert ours.fingerprint() == theirs.fingerprint()
    assert ours.counts == theirs.counts


# ---- faults that pass ----------------------------------------------------------------------------

PASSING = {
    "500": first(2, answer(500), ".tar"),
    "503 with Retry-After": first(1, answer(503, Retry_After="0"), ".tar"),
    "429": first(1, answer(429), ".tar"),
    "cut in the headers": first(2, close(), ".tar"),
    "cut in the body": first(3, cut(1000), ".tar"),
    "slow": first(1, slow(100_000), ".tar"),
    "late": first(1, delay(0.3), ".tar"),
    "silent": first(1, silence(), "000002.tar"),
    "500 for the index": first(1, answer(500), ".npz"),
    "cut manifest": first(1, cut(100), MANIFEST),
}


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_not_noticed(
    uploaded: str,
    proxy: FaultyProxy,
    local: list[dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    cache_gb: float,
) -> None:
    monkeypatch.setenv("GENUS_STORE_TIMEOUT_S", "1")
    met: list[Fault] = []

    def schedule(method: str, path: str, before: int) -> Fault | None:
        fault = PASSING[name](method, path, before)
        met.extend([fault] if fault else [])
        return fault

    proxy.schedule = schedule
    stream = open_(config(uploaded, cache_gb=cache_gb))
    ledger: list[Entry] = []
    stream.ledger = ledger.append
    assert same(run(stream), local)
    assert met
    assert not ledger


# ---- faults that stay ----------------------------------------------------------------------------

STAYING = {
    "404": (answer(404), "is not there"),
    "403": (answer(403), "access denied"),
    "500": (answer(500), "500"),
    "closed": (close(), "000005.tar"),
    "silent": (silence(), "000005.tar"),
    "cut": (cut(10), "000005.tar"),
}


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
@pytest.mark.parametrize("name", STAYING)
def test_what_stays_is_replaced_and_told(
    uploaded: str,
    proxy: FaultyProxy,
    local: list[dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    own_cache: Path,
    name: str,
    cache_gb: float,
) -> None:
    monkeypatch.setenv("GENUS_STORE_TIMEOUT_S", "0.3")
    monkeypatch.setenv("GENUS_STORE_RETRY_S", "0.5")
    fault, message = STAYING[name]
    proxy.schedule = first(10**9, fault, "000005.tar")
    stream = open_(config(uploaded, cache_gb=cache_gb, bad_samples=125))
    ledger: list[Entry] = []
    stream.ledger = ledger.append
    found = run(stream)
    (entry,) = ledger
    assert entry["shard"] == 5
    assert entry["count"] == 125
    assert message in str(entry["why"])
    assert "000005.tar" in str(entry["why"])
    for batch, expected in zip(found, local, strict=True):
        lost = (expected["ids"] >= 625) & (expected["ids"] < 750)
        assert torch.equal(batch["ids"][~lost], expected["ids"][~lost])
        assert not ((batch["ids"] >= 625) & (batch["ids"] < 750)).any()
        assert len(batch["image"]) == 50
    # a resumed run goes on with the same, even if the shard is back
    proxy.schedule = lambda method, path, before: None
    again = open_(config(uploaded, cache_gb=cache_gb, bad_samples=125))
    again.load_state_dict({**stream.state_dict(), "position": 500})
    assert same(run(again, STEPS - 10), found[10:])
    # and without a budget one message ends it
    monkeypatch.setenv("GENUS_CACHE", str(own_cache / "new"))
    proxy.schedule = first(10**9, fault, "000005.tar")
    with pytest.raises(DataError, match=r"data\.bad_samples allows 0") as caught:
        run(open_(config(uploaded, cache_gb=cache_gb, workers=0)))
    assert message in str(caught.value)


def test_a_server_that_is_gone_ends_the_run_with_one_message(
    uploaded: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENUS_STORE_RETRY_S", "0.3")
    stream = open_(config(uploaded, bad_samples=100))
    proxy.schedule = first(10**9, close())
    with pytest.raises(DataError, match="allows 100"):
        run(stream)
    with pytest.raises(DataError, match=MANIFEST):
        open_(config(uploaded))
