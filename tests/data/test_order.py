"""The order is a permutation an epoch, cut into lanes, from wherever one starts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from genus.data.order import Order, lanes_for, own_lanes, permutation
from genus.draws import seed_of
from genus.errors import DataError

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda s: sum(s) > 0)


@settings(deadline=None)
@given(sizes=sizes, data=st.data(), window=st.integers(1, 50), seed=st.integers(0, 2**62))
def test_each_sample_comes_once_an_epoch(
    sizes: list[int], data: st.DataObject, window: int, seed: int
) -> None:
    samples = sum(sizes)
    lanes = data.draw(st.integers(1, min(samples, 16)))
    order = Order(np.array(sizes), lanes=lanes, window=window, seed=seed)
    lengths = [order.length(lane) for lane in range(lanes)]
    assert sum(lengths) == samples
    assert max(lengths) - min(lengths) <= 1
    for epoch in range(3):
        ids = [order.ids(lane, epoch * n, (epoch + 1) * n) for lane, n in enumerate(lengths)]
        assert sorted(np.concatenate(ids).tolist()) == list(range(samples))


@settings(deadline=None)
@given(sizes=sizes, data=st.data(), window=st.integers(1, 50))
def test_a_stretch_equals_its_parts(sizes: list[int], data: st.DataObject, window: int) -> None:
    lanes = data.draw(st.integers(1, min(sum(sizes), 8)))
    lane = data.draw(st.integers(0, lanes - 1))

    def make() -> Order:
        return Order(np.array(sizes), lanes=lanes, window=window, seed=3)

    whole = make().ids(lane, 0, 200)
    cuts = sorted(data.draw(st.lists(st.integers(0, 200), max_size=5)))
    order = make()
    parts = [order.ids(lane, a, b) for a, b in itertools.pairwise([0, *cuts, 200])]
    assert np.array_equal(np.concatenate(parts), whole)
    start = data.draw(st.integers(0, 199))  # and from anywhere, without what came before
    assert np.array_equal(make().ids(lane, start, 200), whole[start:])


def test_a_lane_is_shuffled_inside_windows_only() -> None:
    order = Order(np.array([100]), lanes=2, window=10, seed=0)
    ids = order.ids(1, 0, 50)  # one shard: the row is 0..99, lane 1 is its second half
    for number in range(5):
        window = ids[number * 10 : number * 10 + 10]
        assert sorted(window.tolist()) == list(range(50 + number * 10, 60 + number * 10))
        assert window.tolist() != sorted(window.tolist())


def test_seed_epoch_and_lane_change_the_order() -> None:
    def first(seed: int, lane: int, epoch: int) -> tuple[int, ...]:
        order = Order(np.array([50] * 4), lanes=2, window=100, seed=seed)
        return tuple(order.ids(lane, epoch * 100, epoch * 100 + 20).tolist())

    assert len({first(*key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}) == 4


def test_the_order_is_what_it_always_was() -> None:
    """Old runs must resume: these numbers may never change."""
    assert permutation(8, 0, "shards", 0).tolist() == [6, 2, 4, 3, 7, 5, 1, 0]
    order = Order(np.array([5, 3, 4]), lanes=3, window=3, seed=7)
    assert [order.ids(lane, 3, 9).tolist() for lane in range(3)] == [
        [11, 1, 2, 0, 3, 8],
        [3, 5, 6, 4, 7, 6],
        [7, 8, 10, 9, 11, 2],
    ]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8, 9, 1000, 4096, 16384, 300_000])
def test_permutations_are_stable_argsorts_of_philox_words(n: int) -> None:
    for key in range(3):
        words = np.random.Philox(key=seed_of(key)).random_raw(n)
        assert np.array_equal(permutation(n, key), np.argsort(words, kind="stable"))


def test_words_that_agree_in_their_upper_bits_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = np.array([9, 1, 9, 1 << 60, 3, (1 << 60) - 1, 3], np.uint64)

    class Philox:
        def __init__(self, key: int) -> None: ...

        def random_raw(self, n: int) -> NDArray[np.uint64]:
            return words[:n]

    monkeypatch.setattr(np.random, "Philox", Philox)
    assert permutation(7, 0).tolist() == [1, 4, 6, 0, 2, 5, 3]


def test_a_position_in_a_large_data_set_needs_one_window() -> None:
    order = Order(np.full(10_000, 100_000), lanes=64, window=16384, seed=0)  # 1e9 samples
    ids = order.ids(63, 12_345_678_901, 12_345_678_911)
    assert len(set(ids.tolist())) == 10
    assert ids.min() >= 0
    assert ids.max() < 10**9


def test_lanes_and_world_that_do_not_fit_say_what_does() -> None:
    assert lanes_for(64) == 64
    assert lanes_for(96) == 48
    assert lanes_for(2048) == 64
    assert lanes_for(7 * 13) == 13
    assert lanes_for(96, 32) == 32
    with pytest.raises(DataError, match=r"batch of 64 or 128"):
        lanes_for(100, 64)
    with pytest.raises(DataError, match=r"3 processes can't share 8 lanes: start 2 or 4"):
        own_lanes(8, 0, 3)
    with pytest.raises(DataError, match=r"start 8, or"):
        own_lanes(8, 0, 16)
    with pytest.raises(DataError, match=r"set data.lanes to fewer"):
        Order(np.array([3]), lanes=4, window=8, seed=0)


@given(lanes=st.integers(1, 64), data=st.data())
def test_ranks_share_the_lanes(lanes: int, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from([d for d in range(1, lanes + 1) if lanes % d == 0]))
    for lane in range(lanes):
        owners = [rank for rank in range(world) if lane in own_lanes(lanes, rank, world)]
        assert owners == [lane * world // lanes]
