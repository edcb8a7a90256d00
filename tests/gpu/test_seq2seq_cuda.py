"""Sequence to sequence on a GPU: losses and answers as on the CPU, sources of every kind, bf16."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genus.data.batch import Batch
from genus.data.manifest import DataInfo
from genus.draws import Draws
from genus.model import in_double
from genus.networks.transformer.encoder_decoder import EncoderDecoderConfig
from genus.objectives.phase import SampleOptions
from genus.objectives.sequence_to_sequence import SequenceToSequenceConfig
from genus.objectives.sources import SourceConfig
from genus.tracking import read_metrics
from launching import command, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
DEVICE = "cuda"
V, END, T, S, B = 11, 10, 24, 40, 6


def info_of(field: str) -> DataInfo:
    fields = {"frames": ("frames", "target", "frames_length")}.get(field, (field, "target"))
    return DataInfo(
        url=field, samples=9, channels=3, resolution=16 if field == "image" else 0, classes=0,
        class_names=(), fields=fields, fingerprint="", vocabulary=V, end=END, target_length=T,
        source_length=S, source_vocabulary=7 if field == "source" else 0,
        frame_features=5 if field == "frames" else 0,
    )  # fmt: skip


def batch_of(field: str, device: str) -> Batch:
    random = torch.Generator().manual_seed(1)

    def tokens(high: int, longest: int) -> Tensor:
        rows = torch.randint(0, high, (B, longest), generator=random)
        lengths = torch.randint(2, longest, (B, 1), generator=random)
        return rows.masked_fill(torch.arange(longest) >= lengths, -1)

    target = tokens(V - 1, T)
    target[torch.arange(B), (target >= 0).sum(1) - 1] = END
    fields = {"target": target}
    if field == "source":
        fields["source"] = tokens(7, S)
    elif field == "frames":
        fields["frames"] = torch.randn(B, S, 5, generator=random)
        fields["frames_length"] = torch.randint(30, S + 1, (B,), generator=random)
    else:
        fields["image"] = torch.randint(0, 256, (B, 3, 16, 16), generator=random).to(torch.uint8)
    moved = {name: value.to(device) for name, value in fields.items()}
    return Batch(moved, torch.arange(B), 0, Draws.of(range(B), device=device))


@pytest.mark.parametrize("field", ["source", "frames", "image"])
def test_losses_gradients_and_answers_are_the_cpu_s(field: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    source = SourceConfig(patch=4, stack=2)
    objective = SequenceToSequenceConfig(source=source, ctc=0.3 if field == "frames" else 0.0)
    built = objective.build(info_of(field))
    network = EncoderDecoderConfig(width=32, depth=2, heads=2).build(
        vocabulary=V,
        length=T,
        source_length=built.source.length,
        source_vocabulary=built.source.vocabulary,
        source_features=built.source.features,
        ctc=objective.ctc > 0,
    )
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    found = []
    for device in ("cpu", DEVICE):
        model, batch = copy.deepcopy(network).to(device), batch_of(field, device)
        loss, _ = built.loss({"model": model}, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        options = SampleOptions(beams=3, length=8)
        # in float64 near ties between beams fall alike on both devices
        answers = built.translate(in_double({"model": model}), batch, options)
        found.append((loss.detach().cpu(), gradients, answers.cpu()))
    (loss, gradients, answers), (theirs, other, same) = found
    torch.testing.assert_close(theirs, loss, rtol=1e-5, atol=1e-6)
    for name, value in gradients.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)
    assert torch.equal(answers, same)


@pytest.mark.parametrize("more", [("train.precision=bf16",), ("train.compile=true",)])
def test_the_recipe_learns(more: tuple[str, ...], tmp_path: Path) -> None:
    words = ("--preset", "tiny", "tracking.wandb=off", "run.root=.", "run.name=run", *more)
    run(command(1, *words, recipe="recipes/seq2seq.py"), tmp_path, timeout=500, cuda=True)
    rows = [row["predict/loss"] for row in read_metrics(tmp_path / "run") if "step" in row]
    assert rows[-1] < rows[0]
