"""Flows on a GPU: what the CPU gives, an inverse that undoes them also under bfloat16, a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genus.networks.flows.flow import Flow, build_flow
from genus.networks.flows.image import GlowConfig
from genus.networks.flows.tarflow import TarFlowConfig
from genus.tracking import read_events, read_metrics
from launching import command, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
SHAPE = (3, 16, 16)
CONFIGS = {
    "glow": GlowConfig(steps=4, levels=2, width=64),
    "tarflow": TarFlowConfig(patch=4, width=64, blocks=2, layers=2, head_width=32),
}


def make(name: str) -> tuple[Flow, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    flow = build_flow(CONFIGS[name], SHAPE, classes=3)
    for parameter in flow.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return flow, torch.rand(8, *SHAPE) * 2 - 1, torch.arange(8) % 3


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gpu_gives_what_the_cpu_gives(name: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    flow, x, label = make(name)
    z, log_det = flow(x, label)
    flow = flow.cuda()
    there, log_det_there = flow(x.cuda(), label.cuda())
    torch.testing.assert_close(there.cpu(), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_det_there.cpu(), log_det, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_inverse_undoes_the_flow(name: str, bf16: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    flow, x, label = (part.cuda() for part in make(name))
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        z, log_det = flow(x, label)
        back = flow(z, label, inverse=True)
    assert log_det.dtype == torch.float32
    assert (back - x).abs().max() < 1e-3


def test_the_recipe_trains_on_a_gpu(tmp_path: Path) -> None:
    words = ("--preset", "tiny", "tracking.wandb=off", "run.root=.", "run.name=run")
    run(command(1, *words, "train.precision=bf16", recipe="recipes/flow.py"), tmp_path, cuda=True)
    losses = [r["likelihood/loss"] for r in read_metrics(tmp_path / "run") if "step" in r]
    assert losses[-1] < losses[0]
    trips = [e for e in read_events(tmp_path / "run") if e["event"] == "round trip"]
    assert trips
    assert not any(trip["drifts"] for trip in trips)
