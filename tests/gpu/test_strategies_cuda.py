"""Strategies and precisions on one GPU: what a single process can show of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genus.checkpoint_reader import newest, read_tensors
from genus.tracking import read_events
from launching import ROOT, command, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

RECIPES = sorted(path.name for path in ROOT.glob("recipes/*.py"))
COMMON = (
    "--preset", "tiny", "tracking.wandb=off", "train.samples=80", "train.sample_every=0",
    "train.micro=8", "optim=AdamWConfig", "optim.lr=1e-3", "optim.eps=1e-6", "run.root=.",
)  # fmt: skip
FILES = ROOT / "launch" / "deepspeed"


def trained(folder: Path, name: str, recipe: str, *words: str) -> dict[str, torch.Tensor]:
    arguments = (*COMMON, f"run.name={name}", *words)
    run(command(1, *arguments, recipe=f"recipes/{recipe}"), folder, cuda=True)
    path = newest(folder / name)
    return {**read_tensors(path, "networks."), **read_tensors(path, "ema/")}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Of all weights and averages, relative to their size."""
    assert a.keys() == b.keys()
    off = sum(float((a[k].double() - b[k].double()).square().sum()) for k in a)
    return (off / sum(float(v.double().square().sum()) for v in a.values())) ** 0.5


@pytest.mark.parametrize("recipe", RECIPES)
def test_zero_with_and_without_offload_trains_as_one_process(recipe: str, tmp_path: Path) -> None:
    plain = trained(tmp_path, "plain", recipe)
    for name, words in {
        "zero1": ("train.strategy=zero1",),
        "zero2": ("train.strategy=zero2",),
        "zero3": ("train.strategy=zero3",),
        "offload2": ("--deepspeed_config", str(FILES / "zero2-offload.json")),
        "offload3": ("--deepspeed_config", str(FILES / "zero3-offload.json")),
        "recompute": ("train.recompute=true",),
    }.items():
        assert difference(plain, trained(tmp_path, name, recipe, *words)) < 1e-4, name
        on = [event["on"] for event in read_events(tmp_path / name) if event["event"] == "start"]
        assert ("ZeRO" in on[0]) == (name != "recompute")


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_bf16_is_autocasts_under_every_strategy(strategy: str, tmp_path: Path) -> None:
    exact = trained(tmp_path, "fp32", "diffusion.py")
    words = ("train.precision=bf16", f"train.strategy={strategy}")
    rounded = trained(tmp_path, "bf16", "diffusion.py", *words)
    assert all(value.dtype == torch.float32 for value in rounded.values())
    assert 1e-6 < difference(exact, rounded) < 2e-2


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs float8 products",
)
def test_float8_trains(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    wide = ("network.width=64",)
    exact = trained(tmp_path, "bf16", "autoregressive.py", "train.precision=bf16", *wide)
    rounded = trained(tmp_path, "fp8", "autoregressive.py", "train.precision=fp8", *wide)
    assert 1e-6 < difference(exact, rounded) < 5e-2


def test_fp16_under_ddp(tmp_path: Path) -> None:
    exact = trained(tmp_path, "fp32", "diffusion.py")
    rounded = trained(tmp_path, "fp16", "diffusion.py", "train.precision=fp16")
    assert 1e-6 < difference(exact, rounded) < 2e-2
