"""The tiny recipe on CUDA: precisions, compile, resume, and agreement with the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genus.checkpoint_reader import digest, newest, read_tensors
from genus.tracking import read_metrics
from launching import command, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
TINY = ("--preset", "tiny", "tracking.wandb=off", "run.root=.", "train.sample_every=0")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(precision: str, tmp_path: Path) -> None:
    run(command(1, *TINY, "run.name=run", f"train.precision={precision}"), tmp_path, cuda=True)
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["denoise/loss"] < rows[0]["denoise/loss"]


def test_compiled_equals_eager(tmp_path: Path) -> None:
    run(command(1, *TINY, "run.name=eager", "train.samples=160"), tmp_path, cuda=True)
    run(
        command(1, *TINY, "run.name=compiled", "train.samples=160", "train.compile=true"),
        tmp_path,
        cuda=True,
    )
    a, b = (read_tensors(newest(tmp_path / n), "networks.") for n in ("eager", "compiled"))
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=0, atol=1e-3)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    run(command(1, *TINY, "run.name=straight"), tmp_path, cuda=True)
    run(command(1, *TINY, "run.name=cut", "train.minutes=0.0001"), tmp_path, cuda=True)
    run(command(1, *TINY, "run.name=cut"), tmp_path, cuda=True)
    a, b = (read_tensors(newest(tmp_path / n), "networks.") for n in ("straight", "cut"))
    for key, value in a.items():  # convolutions on CUDA may sum in another order
        torch.testing.assert_close(b[key], value, rtol=0, atol=1e-4)
    assert (
        digest(newest(tmp_path / "cut"))["stream"]
        == digest(newest(tmp_path / "straight"))["stream"]
    )
