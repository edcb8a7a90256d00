"""Stops, other world sizes, workers, faults, mixtures, buckets, tokens: the same samples."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from genus.data.batch import Batch
from genus.data.index import index_folder
from genus.data.manifest import Manifest
from genus.data.pack import pack
from genus.data.pack_text import pack_text
from genus.data.quarantine import Entry
from genus.data.store import Folder
from genus.data.stream import DataConfig, Stream, open_stream
from genus.data.tokens import TokenWindows
from genus.errors import AgreedDataError, DataError

FIXED = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PHASES = st.lists(
    st.tuples(st.sampled_from([1, 2, 4, 8]), st.just(0), st.integers(0, 9)), min_size=1, max_size=4
)
Phase = tuple[int, int, int]
"""World size, workers, steps."""


def numbered(folder: Path, count: int, first: int) -> str:
    """``count`` images of 2x2 pixels that tell their number, ten a shard."""
    numbers = np.arange(first, first + count, dtype=np.uint8)
    np.savez(folder / "a.npz", x=np.tile(numbers[:, None, None], (1, 2, 2)), y=numbers % 5)
    pack(folder / "a.npz", folder / "out", shard_size=10, shuffle_seed=None)
    return str(folder / "out")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return numbered(tmp_path_factory.mktemp("small"), 53, 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return numbered(tmp_path_factory.mktemp("other"), 29, 100)


@pytest.fixture(scope="module")
def damaged(small: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small data set with sample 7 damaged, sample 12 no image, and shard 3 (30..39) gone."""
    folder = Path(shutil.copytree(small, tmp_path_factory.mktemp("damaged") / "out"))
    change_image(folder / "000001.tar", 2, cut=True)
    index_folder(folder)  # the index knows these bytes, so they are read and can't be decoded
    change_image(folder / "000000.tar", 7, cut=False)
    (folder / "000003.tar").unlink()
    return str(folder)


def change_image(shard: Path, row: int, cut: bool) -> None:
    content = bytearray(shard.read_bytes())
    at = [i for i in range(len(content)) if content.startswith(b"\x89PNG", i)][row]
    end = content.index(b"IEND", at)
    content[end - 12 : end] = b"\0" * 12 if cut else bytes(b ^ 1 for b in content[end - 12 : end])
    shard.write_bytes(content)


BAD = {7, 12, *range(30, 40)}


# ---- running in pieces ---------------------------------------------------------------------------


def in_step(streams: Sequence[Stream], steps: int) -> list[list[Batch]]:
    """``steps`` global batches, each as its ranks' shares; ranks agree after each of them."""
    iterators = [iter(stream) for stream in streams]
    taken = []
    for _ in range(steps):
        taken.append([next(iterator) for iterator in iterators])
        settle(streams)
    for iterator in iterators:
        iterator.close()  # type: ignore[attr-defined]
    return taken


def settle(streams: Sequence[Stream]) -> None:
    """What the collective call does: every rank hears what all have to say."""
    said: list[Any] = []
    for stream in streams:
        copy.deepcopy(stream.quarantine).settle(lambda mine: said.append(mine) or [mine])  # type: ignore[func-returns-value]
    for stream in streams:
        stream.settle(lambda mine: said)


def in_pieces(config: DataConfig, phases: Sequence[Phase], batch: int) -> list[list[Batch]]:
    """Global batches of a run that is stopped and resumed with other numbers of processes."""
    state: dict[str, Any] | None = None
    taken = []
    for world, workers, steps in phases:
        own = replace(config, workers=workers)
        streams = [
            open_stream(own, batch=batch, seed=5, rank=rank, world=world) for rank in range(world)
        ]
        for stream in streams:
            if state is not None:
                stream.load_state_dict(state)
        taken += in_step(streams, steps)
        states = [stream.state_dict() for stream in streams]
        assert all(other == states[0] for other in states)
        state = states[0]
    return taken


def content(step: Sequence[Batch]) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Ids, pixels (or tokens) and noise of a global batch."""
    ids = [i for batch in step for i in batch.ids.tolist()]
    name = "image" if "image" in step[0] else "tokens"
    pixels = torch.cat([batch[name] for batch in step])
    return ids, pixels, torch.cat([batch.draws.normal("noise", (3,)) for batch in step])


def check(config: DataConfig, phases: Sequence[Phase], batch: int) -> None:
    total = sum(steps for _, _, steps in phases)
    whole = in_pieces(config, [(1, 0, total)], batch)
    pieces = in_pieces(config, phases, batch)
    for one, two in zip(map(content, whole), map(content, pieces), strict=True):
        assert one[0] == two[0]
        assert all(torch.equal(a, b) for a, b in zip(one[1:], two[1:], strict=True))


# ---- bad data ------------------------------------------------------------------------------------


@FIXED
@given(phases=PHASES, batch=st.sampled_from([8, 16, 24]), window=st.sampled_from([2, 4, 100]))
def test_faults_change_nothing_for_resumed_and_rescaled_runs(
    damaged: str, phases: list[Phase], batch: int, window: int
) -> None:
    check(DataConfig(url=damaged, lanes=8, window=window, bad_samples=12, workers=0), phases, batch)


def test_faults_with_workers(damaged: str) -> None:
    config = DataConfig(url=damaged, lanes=8, window=4, bad_samples=12)
    check(config, [(1, 2, 4), (2, 1, 3), (4, 0, 4), (2, 2, 3)], 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_others_stand_in_for_bad_samples_and_the_ledger_says_so(damaged: str, workers: int) -> None:
    config = DataConfig(url=damaged, lanes=1, workers=workers, bad_samples=12)
    stream = open_stream(config, batch=1, seed=0)
    ledger: list[Entry] = []
    stream.ledger = ledger.append
    good = open_stream(replace(config, url=damaged), batch=1, seed=0)
    order = [int(i) for i in good._order.ids(0, 0, 53)]
    ids = [int(step[0].ids) for step in in_step([stream], 53)]
    assert stream.position == 53  # no batch was left out
    assert not set(ids) & BAD
    assert [a for a, b in zip(ids, order, strict=True) if b not in BAD] == [
        i for i in order if i not in BAD
    ]
    assert {(e.get("sample"), e["shard"], e["count"]) for e in ledger} == {
        (7, 0, 1),
        (12, 1, 1),
        (None, 3, 10),
    }
    for entry in ledger:  # each was met where the order has it
        number = int(entry["samples"])
        assert order[number] in BAD
        assert ("000003.tar" in str(entry["why"])) == ("sample" not in entry)
    assert stream.quarantine.count == 12


def test_substitutes_come_from_the_same_lane(damaged: str) -> None:
    stream = open_stream(DataConfig(url=damaged, lanes=8, bad_samples=12), batch=8, seed=0)
    per_lane = [set(stream._order.ids(lane, 0, 6).tolist()) for lane in range(8)]
    for (batch,) in in_step([stream], 6):
        assert all(i in per_lane[lane] for lane, i in enumerate(batch.ids.tolist()))


@pytest.mark.parametrize("workers", [0, 1])
def test_one_bad_sample_too_many_ends_the_run(damaged: str, workers: int) -> None:
    config = DataConfig(url=damaged, lanes=8, workers=workers)
    for budget in (0, 11):
        stream = open_stream(replace(config, bad_samples=budget), batch=8, seed=0)
        with pytest.raises(DataError, match=rf"data\.bad_samples allows {budget}") as caught:
            in_step([stream], 20)
        assert "Traceback" not in str(caught.value)
    in_step([open_stream(replace(config, bad_samples=12), batch=8, seed=0)], 20)


def test_a_run_is_not_resumed_with_less_than_it_has_put_up_with(damaged: str) -> None:
    config = DataConfig(url=damaged, lanes=8, bad_samples=12)
    stream = open_stream(config, batch=8, seed=0)
    in_step([stream], 7)
    with pytest.raises(DataError, match=r"12 bad samples: set data\.bad_samples"):
        open_stream(replace(config, bad_samples=11), batch=8, seed=0).load_state_dict(
            stream.state_dict()
        )


def test_all_ranks_end_together(damaged: str) -> None:
    config = DataConfig(url=damaged, lanes=8, bad_samples=3)
    streams = [open_stream(config, batch=8, seed=0, rank=rank, world=2) for rank in range(2)]
    iterators = [iter(stream) for stream in streams]
    while not any(stream.quarantine.exhausted for stream in streams):
        for iterator in iterators:
            assert len(next(iterator)) == 4  # a rank that met too much goes on until all know
    said = [stream.quarantine._fresh for stream in streams]
    messages = []
    for stream in streams:
        with pytest.raises(DataError) as caught:
            stream.settle(lambda mine: said)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_rank_without_any_good_row_goes_on_until_all_know(small: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "out"))
    config = DataConfig(url=str(folder), lanes=2, workers=0)
    streams = [open_stream(config, batch=2, seed=0, rank=rank, world=2) for rank in range(2)]
    iterators = [iter(stream) for stream in streams]
    for iterator in iterators:
        next(iterator)
    for shard in folder.glob("*.tar"):
        shard.write_bytes(b"\0" * shard.stat().st_size)
    for iterator in iterators:
        assert len(next(iterator)) == len(next(iterator)) == 1
    said = [stream.quarantine._fresh for stream in streams]
    for stream in streams:
        with pytest.raises(AgreedDataError, match="allows 0"):
            stream.settle(lambda mine: said)


def test_ranks_learn_of_each_others_bad_samples(damaged: str) -> None:
    config = DataConfig(url=damaged, lanes=8, bad_samples=12)
    streams = [open_stream(config, batch=8, seed=0, rank=rank, world=2) for rank in range(2)]
    in_step(streams, 7)
    assert {stream.quarantine.count for stream in streams} == {12}
    assert streams[0].state_dict() == streams[1].state_dict()


# ---- mixtures ------------------------------------------------------------------------------------


@FIXED
@given(
    phases=PHASES,
    batch=st.sampled_from([8, 16]),
    weights=st.sampled_from([(), (1.0, 3.0), (0.9, 0.1)]),
)
def test_mixtures_are_elastic(
    damaged: str, other: str, phases: list[Phase], batch: int, weights: tuple[float, ...]
) -> None:
    config = DataConfig(
        url=damaged, also=(other,), weights=weights, lanes=8, window=5, bad_samples=12, workers=0
    )
    check(config, phases, batch)


def test_shares_of_a_mixture_hold_and_each_set_has_its_own_epochs(small: str, other: str) -> None:
    config = DataConfig(url=small, also=(other,), weights=(3.0, 1.0), lanes=1)
    steps = in_step([open_stream(config, batch=64, seed=0)], 64)
    ids = [i for step in steps for i in content(step)[0]]
    assert Counter(i < 53 for i in ids) == {True: 3072, False: 1024}  # one block of 4096
    for own, n in (([i for i in ids if i < 53], 53), ([i - 53 for i in ids if i >= 53], 29)):
        for epoch in range(len(own) // n):
            assert sorted(own[epoch * n : (epoch + 1) * n]) == list(range(n))
    pixels = torch.cat([content(step)[1] for step in steps])[:, 0, 0, 0].tolist()
    assert pixels == [i if i < 53 else i - 53 + 100 for i in ids]


def test_mixtures_that_can_not_be(small: str, other: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=np.zeros((9, 2, 2), np.uint8))
    pack(tmp_path / "b.npz", tmp_path / "bare")
    for changes, message in (
        ({"also": (str(tmp_path / "bare"),)}, "the fields of one are"),
        ({"also": (other,), "weights": (1.0,)}, r"1 data\.weights for 2 data sets"),
        ({"also": (other,), "weights": (1.0, 0.0)}, "must be positive"),
        ({"also": (other,), "weights": (1.0, 1e-6)}, "can't be kept"),
    ):
        with pytest.raises(DataError, match=message):
            open_stream(DataConfig(url=small, **changes), batch=8, seed=0)  # type: ignore[arg-type]
    one = open_stream(DataConfig(url=small, also=(other,), weights=(1.0, 1.0)), batch=8, seed=0)
    two = open_stream(DataConfig(url=small, also=(other,), weights=(1.0, 2.0)), batch=8, seed=0)
    with pytest.raises(DataError, match="fingerprint"):
        two.load_state_dict(one.state_dict())


# ---- tokens --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shakespeare in shards of 20,000 bytes; in one shard a block is damaged."""
    out = tmp_path_factory.mktemp("tokens") / "out"
    text = Path(__file__).parent / "shakespeare.txt"
    pack_text([text], out, separator="\n\n", shard_tokens=20_000)
    content = bytearray((out / "000002.npy").read_bytes())
    content[20_000] ^= 1
    (out / "000002.npy").write_bytes(content)
    return str(out)


@FIXED
@given(phases=PHASES, length=st.sampled_from([64, 100]))
def test_token_windows_are_elastic(tokens: str, phases: list[Phase], length: int) -> None:
    config = DataConfig(url=tokens, size=length, lanes=8, window=50, bad_samples=150, workers=0)
    check(config, phases, 16)


def test_a_run_refuses_windows_of_another_length(tokens: str) -> None:
    one, two = (
        open_stream(DataConfig(url=tokens, size=length), batch=8, seed=0) for length in (64, 65)
    )
    with pytest.raises(DataError, match="fingerprint"):
        two.load_state_dict(one.state_dict())
    source = TokenWindows([(Folder(Path(tokens)), Manifest.load(Folder(Path(tokens))))], 64)
    assert one.info.samples == len(source)
    assert one.info.dropped == source.dropped > 0
    with pytest.raises(DataError, match=r"set data\.size to the length"):
        open_stream(DataConfig(url=tokens), batch=8, seed=0)


# ---- aspect-ratio buckets ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """200 images of many shapes."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for i in range(200):
        height, width = generator.integers(8, 40, 2)
        pixels = np.full((height, width, 3), i, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:03}.png")
    pack(folder / "images", folder / "out", shard_size=16)
    return str(folder / "out")


@FIXED
@given(phases=PHASES)
def test_buckets_are_elastic_and_all_ranks_have_one_shape(shapes: str, phases: list[Phase]) -> None:
    config = DataConfig(url=shapes, size=16, bucket_step=4, fit="resize", lanes=8, workers=0)
    check(config, phases, 16)
    for step in in_pieces(config, phases, 16):
        assert len({batch["image"].shape[1:] for batch in step}) == 1


def test_each_sample_comes_as_often_as_without_buckets_near_its_own_shape(shapes: str) -> None:
    config = DataConfig(url=shapes, size=16, bucket_step=4, fit="resize", lanes=8)
    stream = open_stream(config, batch=8, seed=0)
    assert stream._buckets is not None
    block = stream._buckets.block
    steps = in_step([stream], block)
    per_lane = block * 8 // 8
    plain = [i for lane in range(8) for i in stream._order.ids(lane, 0, per_lane).tolist()]
    assert Counter(i for step in steps for i in content(step)[0]) == Counter(plain)
    shown = {tuple(step[0]["image"].shape[2:]) for step in steps}
    assert shown == {(20, 12), (16, 16), (12, 20), (20, 12)} | (shown & {(8, 16), (16, 8)})
    stored = stream._buckets.shapes(np.arange(200)).astype(float)
    near = 0
    for step in steps:
        height, width = step[0]["image"].shape[2:]
        ratios = stored[step[0].ids.numpy()]
        own = np.log(ratios[:, 1] / ratios[:, 0]).clip(-np.log(2), np.log(2))
        near += int((np.abs(own - np.log(width / height)) < 0.35).sum())
    assert near > 0.93 * block * 8  # the rest moved to fill batches
    for step in steps[:4]:  # pixels still belong to their ids
        image = step[0]["image"]
        assert (image.flatten(1) == image[:, :1, 0, 0]).all()


def test_bucketed_runs_refuse_another_batch_or_step(shapes: str) -> None:
    config = DataConfig(url=shapes, size=16, bucket_step=4, fit="resize", lanes=8)
    state = open_stream(config, batch=16, seed=0).state_dict()
    for changed, batch, message in (
        (config, 24, r"set train\.batch=16"),
        (replace(config, bucket_step=8), 16, r"set data\.bucket_step and data\.size as"),
        (replace(config, bucket_step=0), 16, r"its buckets is .* here it is none; set data"),
    ):
        with pytest.raises(DataError, match=message):
            open_stream(changed, batch=batch, seed=0).load_state_dict(state)
    for changes, message in (
        ({"bucket_step": 5}, r"must divide data\.size=16"),
        ({"fit": "pad"}, r"needs data\.fit=resize"),
    ):
        with pytest.raises(DataError, match=message):
            open_stream(replace(config, **changes), batch=16, seed=0)  # type: ignore[arg-type]
