"""Bytes that a rank sends: by hand, and as counted in real steps of two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genus.plan.communication import Sizes, volume
from genus.strategies.choice import Choice
from ranks import run_ranks

SIZES = Sizes(weights=1000, trained=800, units=600)


def sent(name: str, ranks: int, micros: int = 1, **settings: object) -> float:
    return volume(Choice(name, **settings), ranks, SIZES, micros).total  # type: ignore[arg-type]


def test_by_hand() -> None:
    for name in ("ddp", "fsdp2", "zero1", "zero2", "zero3"):
        assert sent(name, 1) == 0
    # all-reduce of the gradients: 2 (N - 1) / N P, once a step
    assert sent("ddp", 4) == sent("ddp", 4, micros=3) == 2 * 3 / 4 * 800
    # forward: all weights; backward: the blocks again, and gradients scattered
    assert sent("fsdp2", 4) == 3 / 4 * (1000 + 600 + 800)
    assert sent("fsdp2", 4, micros=3) == 3 / 4 * 3 * (1600 + 800)
    assert sent("fsdp2", 4, reshard=False) == 3 / 4 * (1000 + 800)
    # stage 1 exchanges at the last micro-batch, stage 2 at each; then weights are gathered
    assert sent("zero1", 4, micros=3) == 3 / 4 * (2 * 800 + 800)
    assert sent("zero2", 4, micros=3) == 3 / 4 * (3 * 2 * 800 + 800)
    assert sent("zero3", 4, micros=3) == 3 / 4 * 3 * (2 * 1000 + 800)


def test_hybrid_sharding_sends_shares_across() -> None:
    found = volume(Choice("hybrid", replicas=2), 8, SIZES)
    assert found.inside == 3 / 4 * (1000 + 600 + 800)  # groups of 4
    assert found.across == 2 * 1 / 2 * 800 / 4  # an all-reduce of a share, over 2


@pytest.mark.slow
def test_counted_in_real_steps_of_two_processes() -> None:
    """Exactly: here every shard has as many rows as the others."""
    worker = Path(__file__).parent / "traffic_worker.py"
    lines = run_ranks(worker)[0].splitlines()
    found = [json.loads(line) for line in lines if line.startswith("[")]
    assert [case for case, _, _ in found] == [
        "ddp AdamWConfig",
        "fsdp2 AdamWConfig",
        "fsdp2 MuonConfig",
    ]
    for case, predicted, counted in found:
        assert predicted == counted > 0, case
