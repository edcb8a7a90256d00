"""Random numbers that belong to samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genus.draws import Draws, seed_of

KINDS: dict[str, Callable[[Draws, str], Tensor]] = {
    "normal": lambda draws, name: draws.normal(name, (3, 5)),
    "normal float64 scalar": lambda draws, name: draws.normal(name, dtype=torch.float64),
    "uniform": lambda draws, name: draws.uniform(name, (2,)),
    "integers": lambda draws, name: draws.integers(name, 1000, (4,)),
}
each_kind = pytest.mark.parametrize("draw", KINDS.values(), ids=list(KINDS))


def some(groups: int = 4, size: int = 3) -> Draws:
    return Draws.of([seed_of("run", g) for g in range(groups)], size)


@each_kind
@pytest.mark.parametrize("micro", [1, 2, 3, 4, 5, 7, 12])
def test_micro_batches_draw_what_the_batch_draws(
    draw: Callable[[Draws, str], Tensor], micro: int
) -> None:
    whole = draw(some(), "noise")
    parts = [some().window(i, min(i + micro, 12)) for i in range(0, 12, micro)]
    assert torch.equal(torch.cat([draw(part, "noise") for part in parts]), whole)
    assert [len(part) for part in parts] == [len(draw(part, "noise")) for part in parts]


def test_windows_of_windows_and_empty_ones() -> None:
    whole = some().normal("noise", (2,))
    inner = some().window(2, 11).window(3, 7)
    assert torch.equal(inner.normal("noise", (2,)), whole[5:9])
    for at in (0, 4, 6, 12):
        assert some().window(at, at).normal("noise", (2,)).shape == (0, 2)


@each_kind
def test_world_size_does_not_matter(draw: Callable[[Draws, str], Tensor]) -> None:
    seeds = [seed_of("run", lane) for lane in range(4)]
    one = draw(Draws.of(seeds, 3), "noise")
    two = torch.cat([draw(Draws.of(half, 3), "noise") for half in (seeds[:2], seeds[2:])])
    assert torch.equal(one, two)


@each_kind
def test_a_group_depends_on_its_own_seed_only(draw: Callable[[Draws, str], Tensor]) -> None:
    a, b = draw(Draws.of([1, 2, 3], 2), "x"), draw(Draws.of([1, 7, 3], 2), "x")
    assert torch.equal(a[:2], b[:2])
    assert torch.equal(a[4:], b[4:])
    assert not torch.equal(a[2:4], b[2:4])
    assert not torch.equal(a[:1], a[1:2])  # rows of a group differ


def test_no_generator_is_touched() -> None:
    before = torch.get_rng_state()
    first = some().normal("noise", (4,))
    torch.rand(3)
    assert torch.equal(some().normal("noise", (4,)), first)
    torch.set_rng_state(before)
    some().normal("noise", (4,))
    assert torch.equal(torch.get_rng_state(), before)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_names_scopes_and_groups_are_independent() -> None:
    draws = Draws.of([seed_of(i) for i in range(200)])
    x = draws.normal("noise", (100,), torch.float64)
    others = [
        draws.normal("noise2", (100,), torch.float64),
        draws.scoped("generator").normal("noise", (100,), torch.float64),
        draws.scoped("critic").normal("noise", (100,), torch.float64),
        draws.scoped("critic").scoped("r1").normal("noise", (100,), torch.float64),
        x.roll(1, 0),
    ]
    for i, other in enumerate(others):
        for earlier in [x, *others[:i]]:  # 6 standard errors of n = 20,000
            assert abs(correlation(earlier, other)) < 6 / math.sqrt(20_000)


def test_statistics() -> None:
    draws = Draws.of([seed_of("s", i) for i in range(1000)], 2)
    n = 2000 * 50
    x = draws.normal("x", (50,), torch.float64)
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
    u = draws.uniform("u", (50,), torch.float64)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    counts = draws.integers("k", 10, (50,)).flatten().bincount(minlength=10)
    assert len(counts) == 10
    chi_squared = ((counts - n / 10) ** 2 / (n / 10)).sum()
    assert chi_squared < 40  # 9 degrees of freedom: p = 8e-6


def test_shapes_and_types() -> None:
    draws = some()
    assert draws.normal("x").shape == (12,)
    assert draws.normal("x", (2, 3), torch.float64).dtype == torch.float64
    assert draws.uniform("x", (2,)).dtype == torch.float32
    assert draws.integers("x", 1).tolist() == [0] * 12
    assert draws.integers("x", 5).dtype == torch.int64


def test_seeds_avalanche() -> None:
    # Neighbouring arguments share no more bits than chance, in the low half too, which is all
    # that torch's generator on the CPU takes.
    seeds = [seed_of(3, step, lane, "noise") for step in range(200) for lane in range(10)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)
    flips = [(a ^ b).bit_count() for a, b in itertools.pairwise(seeds)]
    mean = sum(flips) / len(flips)
    assert abs(mean - 31.5) < 6 * math.sqrt(63 / 4 / len(flips))
    assert min(flips) >= 8
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert abs(ones - 1000) < 6 * math.sqrt(2000 / 4)


def test_seeds_are_the_same_for_ever() -> None:
    """A resumed run must see the same noise after an update of genus."""
    assert seed_of(0) == 4761921975702974394
    assert seed_of(7, "lane", 3) == 6735874389317498070
    assert len({seed_of(1, "a"), seed_of("1a"), seed_of("a", 1), seed_of(1, "a", "")}) == 4
