"""A generator and a critic that train in turns: every strategy gives one process's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from two_networks import trained

from genus.parallel import World
from ranks import run_ranks

STRATEGIES = ["ddp", "fsdp2", "hybrid", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    script, folder = Path(__file__).with_name("two_networks.py"), tmp_path_factory.mktemp("two")
    weights: dict[str, dict[str, Tensor]] = {}
    for size, strategies in ((2, [s for s in STRATEGIES if s != "hybrid"]), (4, ["hybrid"])):
        out = folder / f"{size}.pt"
        run_ranks(script, str(out), *strategies, size=size)
        weights |= torch.load(out, weights_only=True)
    return weights


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return trained(World())


@pytest.mark.parametrize("recompute", ["", " recompute"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_weights_and_averages(
    found: dict[str, dict[str, Tensor]], alone: dict[str, Tensor], strategy: str, recompute: str
) -> None:
    ours = found[strategy + recompute]
    assert ours.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.allclose(ours[name], value, rtol=1e-5, atol=1e-6), name
    assert not torch.equal(alone["generator.scale"], torch.tensor(1.5))
    assert torch.equal(alone["generator.fixed"], torch.ones(6))
