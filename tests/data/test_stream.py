"""The stream is exact and elastic, its state a few integers, and its errors are clear."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from genus.data.batch import Batch
from genus.data.canvas import PIPED
from genus.data.index import index_folder
from genus.data.loading import MOST_PIPED
from genus.data.manifest import Manifest
from genus.data.pack import pack
from genus.data.reader import Reader
from genus.data.store import Folder
from genus.data.stream import DataConfig, Stream, iterate_once, open_stream, read_info
from genus.errors import DataError, MachineError

FASHION = str(Path(__file__).parent / "fashion-1000")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """53 images of 2x2 pixels that tell their number, in 6 shards."""
    folder = tmp_path_factory.mktemp("small")
    numbers = np.arange(53, dtype=np.uint8)
    np.savez(folder / "a.npz", x=np.tile(numbers[:, None, None], (1, 2, 2)), y=numbers % 5)
    pack(folder / "a.npz", folder / "out", shard_size=10, shuffle_seed=None)
    return str(folder / "out")


def take(streams: Sequence[Stream], steps: int) -> list[list[Batch]]:
    """``steps`` global batches, each as its ranks' shares."""
    iterators = [iter(stream) for stream in streams]
    taken = [[next(iterator) for iterator in iterators] for _ in range(steps)]
    for iterator in iterators:
        iterator.close()  # type: ignore[attr-defined]
    return taken


def numbers(step: Sequence[Batch]) -> tuple[list[int], torch.Tensor]:
    """Ids and noise of a global batch."""
    ids = [i for batch in step for i in batch.ids.tolist()]
    return ids, torch.cat([batch.draws.normal("noise", (3,)) for batch in step])


# ---- elastic -------------------------------------------------------------------------------------


def check_elastic(url: str, phases: Sequence[tuple[int, int, int]], batch: int) -> None:
    """(world, workers, steps) one after the other equal one process without a stop."""
    total = sum(steps for _, _, steps in phases)
    config = DataConfig(url=url, lanes=8, window=4, workers=0)
    whole = [numbers(step) for step in take([open_stream(config, batch=batch, seed=5)], total)]
    pieces = []
    state: dict[str, int | str] | None = None
    for world, workers, steps in phases:
        own = DataConfig(url=url, lanes=8, window=4, workers=workers)
        streams = [
            open_stream(own, batch=batch, seed=5, rank=rank, world=world) for rank in range(world)
        ]
        for stream in streams:
            if state is not None:
                stream.load_state_dict(state)
        pieces += [numbers(step) for step in take(streams, steps)]
        states = [stream.state_dict() for stream in streams]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert [ids for ids, _ in pieces] == [ids for ids, _ in whole]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(pieces, whole, strict=True))


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    phases=st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 8]), st.just(0), st.integers(0, 9)), max_size=4
    ),
    batch=st.sampled_from([8, 16, 24]),
)
def test_any_world_sizes_and_stops(
    small: str, phases: list[tuple[int, int, int]], batch: int
) -> None:
    check_elastic(small, phases, batch)


def test_worlds_1_2_4_2_with_workers(small: str) -> None:
    check_elastic(small, [(1, 2, 3), (2, 1, 2), (4, 0, 4), (2, 2, 1)], 16)


def test_every_sample_comes_once_an_epoch_of_its_lane(small: str) -> None:
    steps = take([open_stream(DataConfig(url=small, lanes=1), batch=1, seed=0)], 106)
    ids = [step[0].ids.item() for step in steps]
    assert sorted(ids[:53]) == sorted(ids[53:]) == list(range(53))
    assert ids[:53] != ids[53:]


def test_batch_size_may_change_while_the_lanes_stay(small: str) -> None:
    config = DataConfig(url=small, lanes=4)
    first = open_stream(config, batch=4, seed=0)
    ids = [take([first], 1)[0][0].ids for _ in range(6)]
    second = open_stream(config, batch=12, seed=0)
    second.load_state_dict({**first.state_dict(), "position": 12})
    (step,) = take([second], 1)
    # a lane gives 3 samples to one batch of 12, and one each to three batches of 4
    assert torch.equal(step[0].ids.reshape(4, 3), torch.stack(ids[3:], dim=1))


def test_every_lane_step_and_seed_has_its_own_draws() -> None:
    noise = []
    for seed in (0, 1):
        stream = open_stream(DataConfig(url=FASHION, lanes=8), batch=16, seed=seed)
        noise += [step[0].draws.normal("noise") for step in take([stream], 2)]
    assert len(set(torch.cat(noise).tolist())) == 2 * 2 * 16


def test_micro_batches_see_the_same_draws() -> None:
    batch = next(iter(open_stream(DataConfig(url=FASHION, lanes=8), batch=48, seed=0)))
    noise = batch.draws.normal("noise", (2,))
    for size in (1, 5, 6, 48):
        parts = list(batch.micro_batches(size))
        assert torch.equal(torch.cat([p.draws.normal("noise", (2,)) for p in parts]), noise)
        assert torch.equal(torch.cat([p.ids for p in parts]), batch.ids)


# ---- state ---------------------------------------------------------------------------------------


def test_position_moves_by_the_global_batch_as_batches_are_handed_out() -> None:
    stream = open_stream(DataConfig(url=FASHION, workers=2), batch=16, seed=0, rank=1, world=2)
    iterator = iter(stream)
    for step in range(3):
        assert stream.position == 16 * step  # what workers have read ahead doesn't count
        batch = next(iterator)
        assert (batch.position, len(batch)) == (16 * step, 8)
    assert stream.state_dict() == {
        "position": 48,
        "seed": 0,
        "lanes": 16,
        "window": 16384,
        "fingerprint": read_info(DataConfig(url=FASHION)).fingerprint,
        "bad": '{"samples": [], "shards": []}',
    }
    stream.load_state_dict({**stream.state_dict(), "position": 0})
    with pytest.raises(RuntimeError, match="moved while it ran"):
        next(iterator)


def test_another_order_or_data_set_is_refused(small: str) -> None:
    state = open_stream(DataConfig(url=FASHION), batch=16, seed=0).state_dict()
    changes: list[tuple[DataConfig, int, int, str]] = [
        (DataConfig(url=small), 16, 0, "fingerprint"),
        (DataConfig(url=FASHION, lanes=8), 16, 0, r"set data\.lanes=16"),
        (DataConfig(url=FASHION, window=9), 16, 0, r"set data\.window=16384"),
        (DataConfig(url=FASHION), 16, 1, r"set run\.seed=0"),
    ]
    for config, batch, seed, message in changes:
        stream = open_stream(config, batch=batch, seed=seed)
        with pytest.raises(DataError, match=message):
            stream.load_state_dict(state)
        assert stream.position == 0


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(open_stream(DataConfig(url=FASHION, workers=1, flip=True), batch=16, seed=0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_sizes_that_do_not_fit_are_value_errors() -> None:
    for config, batch, world in (
        (DataConfig(url=FASHION, lanes=7), 16, 1),
        (DataConfig(url=FASHION), 16, 3),
        (DataConfig(url=FASHION, workers=-2), 16, 1),
        (DataConfig(url=FASHION), 0, 1),
        (DataConfig(url=FASHION, lanes=-2), 16, 1),
    ):
        with pytest.raises(ValueError, match=r"lanes|batch|workers"):
            next(iter(open_stream(config, batch=batch, seed=0, world=world)))


# ---- what is in a batch --------------------------------------------------------------------------


def test_fields_belong_to_their_ids(small: str) -> None:
    batch = take([open_stream(DataConfig(url=small), batch=16, seed=0)], 1)[0][0]
    assert batch["image"].dtype == torch.uint8
    expected = batch.ids.to(torch.uint8)[:, None, None, None].expand(16, 1, 2, 2)
    assert torch.equal(batch["image"], expected)  # packed unshuffled: the pixels are the id
    assert torch.equal(batch["label"], batch.ids % 5)


def test_flips_mirror_half_and_do_not_depend_on_the_world() -> None:
    def images(flip: bool, world: int) -> torch.Tensor:
        config = DataConfig(url=FASHION, flip=flip, size=32)
        streams = [
            open_stream(config, batch=64, seed=0, rank=rank, world=world) for rank in range(world)
        ]
        return torch.cat([batch["image"] for batch in take(streams, 2)[1]])

    plain, mirrored = images(False, 1), images(True, 1)
    assert plain.shape == (64, 1, 32, 32)
    same = (mirrored == plain).flatten(1).all(1)
    turned = (mirrored == plain.flip(-1)).flatten(1).all(1)
    assert bool((same | turned).all())
    assert 16 <= int(same.sum()) <= 48
    assert torch.equal(images(True, 4), mirrored)


@pytest.mark.parametrize("bucket_step", [0, 64])
def test_large_batches_of_workers_are_not_written_over(tmp_path: Path, bucket_step: int) -> None:
    """Workers use their shared memory again; batches that are kept must not change."""
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(48):
        shape = (128, 128, 3) if number % 3 else (64, 256, 3)
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:02}.bmp")
    pack(tmp_path / "images", tmp_path / "out", shard_size=16)
    config = DataConfig(
        url=str(tmp_path / "out"), size=128, fit="resize", bucket_step=bucket_step, workers=0
    )
    steps = 40
    kept = take([open_stream(replace(config, workers=2), batch=32, seed=0)], steps)
    plain = take([open_stream(config, batch=32, seed=0)], steps)
    assert kept[0][0]["image"].nbytes > PIPED
    for (one,), (two,) in zip(kept, plain, strict=True):
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one["image"], two["image"])


# ---- once through --------------------------------------------------------------------------------


@given(
    limit=st.integers(4, 60),
    batch=st.integers(1, 20),
    world=st.sampled_from([1, 2, 3]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_iterate_once_covers_the_first_samples(
    small: str, limit: int, batch: int, world: int
) -> None:
    if batch < world:
        return
    config = DataConfig(url=small, flip=True)
    runs = [
        list(iterate_once(config, batch, limit=limit, rank=rank, world=world))
        for rank in range(world)
    ]
    assert len({len(run) for run in runs}) == 1
    ids = [batch.ids for run in runs for batch in run]
    assert torch.cat(ids).tolist() == list(range(min(limit, 53)))
    assert min(map(len, ids)) >= 1
    assert max(map(len, ids)) <= batch // world + (min(limit, 53) % world > 0)
    noise = torch.cat([batch.draws.normal("x") for run in runs for batch in run])
    (one,) = iterate_once(config, 53, limit=limit)
    assert torch.equal(noise, one.draws.normal("x"))
    assert torch.equal(one["label"], one.ids % 5)


# ---- bad data ------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FASHION, tmp_path / "broken"))


def open_reader(folder: Path) -> Reader:
    return Reader([(Folder(folder), Manifest.load(Folder(folder)))])


def image_of(reader: Reader, sample: int) -> bytes:
    (found,) = reader.read(np.array([sample]))
    assert isinstance(found, tuple)
    _, _, (data,) = found
    return data


def errors(folder: Path, workers: int) -> str:
    """What a stream over a whole epoch of the broken data says."""
    config = DataConfig(url=str(folder), workers=workers)
    with pytest.raises(DataError) as caught:
        take([open_stream(config, batch=50, seed=0)], 30)
    return str(caught.value)


def test_damaged_bytes_are_named(broken: Path) -> None:
    reader = open_reader(broken)
    data = image_of(reader, 130)
    shard = broken / "000001.tar"
    content = shard.read_bytes()
    at = content.index(data) + len(data) // 2
    shard.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    messages = {errors(broken, workers) for workers in (0, 2)}
    (message,) = messages  # a worker's error is the same clear one
    assert reader.place(130) in message
    assert "field image" in message
    assert "genus data index" in message
    assert "Traceback" not in message


def test_missing_cut_and_swapped_shards_are_named(broken: Path, small: str) -> None:
    shard = broken / "000003.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10240])
    assert f"{shard} is {len(content) - 10240} bytes long" in errors(broken, 0)
    shard.unlink()
    assert f"{shard} is not there" in errors(broken, 0)
    shard.write_bytes(content)
    shutil.copy(broken / "000003.index.npz", broken / "000002.index.npz")
    assert "000002.tar" in errors(broken, 0)
    shutil.copy(Path(small) / "000000.index.npz", broken / "000002.index.npz")
    assert "has 10 samples, the manifest says 125" in errors(broken, 0)
    (broken / "000002.index.npz").unlink()
    assert "000002.index.npz" in errors(broken, 1)


def test_undecodable_and_missing_members_are_named(small: str, tmp_path: Path) -> None:
    import webdataset

    members = {"png": image_of(open_reader(Path(small)), 0), "cls": b"0"}
    with webdataset.TarWriter(str(tmp_path / "0.tar"), encoder=False) as writer:
        writer.write({"__key__": "whole", **members})
        writer.write({"__key__": "cut", **members, "png": members["png"][:-30]})
        writer.write({"__key__": "bare", "png": members["png"]})
    index_folder(tmp_path)
    config = DataConfig(url=str(tmp_path))
    samples = iterate_once(config, 1)
    next(samples)
    with pytest.raises(DataError, match=r"0\.tar, sample cut: no readable image"):
        next(samples)
    with webdataset.TarWriter(str(tmp_path / "0.tar"), encoder=False) as writer:
        writer.write({"__key__": "whole", **members})
        writer.write({"__key__": "bare", "png": members["png"]})
    index_folder(tmp_path)
    with pytest.raises(DataError, match=r"0\.tar, sample bare: it has no label"):
        list(iterate_once(config, 2))
    with webdataset.TarWriter(str(tmp_path / "0.tar"), encoder=False) as writer:
        for length in (2, 3):
            buffer = io.BytesIO()
            np.save(buffer, np.zeros(length))
            writer.write({"__key__": str(length), "npy": buffer.getvalue()})
    index_folder(tmp_path)
    with pytest.raises(DataError, match=rf"array of {tmp_path}: samples of different shapes"):
        list(iterate_once(config, 2))


# ---- processes -----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs Linux")
def test_signals_to_the_job_leave_workers_alive_but_their_rank_ends_them() -> None:
    iterator = iter(open_stream(DataConfig(url=FASHION, workers=2), batch=16, seed=0))
    for _ in range(MOST_PIPED + 1):  # batches from each worker: both have started
        next(iterator)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for name in ("TERM", "USR1", "INT"):  # from a stranger, as srun and scancel send them
        subprocess.run(["kill", f"-{name}", *(str(w.pid) for w in workers)], check=True)
    for _ in range(20):
        next(iterator)
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()  # SIGTERM from their rank
    workers[0].join()
    assert workers[0].exitcode == 0
    iterator.close()  # type: ignore[attr-defined]
    assert not any(worker.is_alive() for worker in workers)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_readers_hold_a_bounded_number_of_files(
    small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genus.data.shards.OPEN_FILES", 2)
    reader = open_reader(Path(small))
    before = open_files()
    for sample in range(53):
        reader.read(np.array([sample]))
    assert open_files() - before <= 2
    assert len(reader.shards.held) == 6  # their tables stay
    monkeypatch.setattr("genus.data.shards.OPEN_SHARDS", 3)
    for sample in range(53):
        assert not isinstance(reader.read(np.array([sample]))[0], DataError)
    assert len(reader.shards.held) <= 3


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_too_few_file_descriptors_are_no_fault_of_the_data(small: str) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = DataConfig(url=small, bad_samples=53)
    next(iter(open_stream(config, batch=8, seed=0)))  # what is imported late is here by now
    stream = open_stream(config, batch=8, seed=0)
    lowest = os.open("/dev/null", os.O_RDONLY)  # the number that the next file would get
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(MachineError, match="ulimit -n"):
            next(iter(stream))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
