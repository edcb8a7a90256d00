"""genus plan as users call it: reports, refusals, plans that runs find again, large presets."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
import torch

from genus.cli import main
from genus.plan.compare import comparison
from genus.plan.estimate import traces
from genus.plan.job import Described, read_job
from genus.plan.machines import EFFICIENCY, GPUS, gpu_named
from genus.plan.speed import exposed, roofline
from genus.plan.trace import Operation
from genus.recipe_command import import_recipe
from launching import ROOT

RECIPE = str(ROOT / "recipes" / "diffusion.py")
TEXT = str(ROOT / "recipes" / "autoregressive.py")


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 2
    return capsys.readouterr().err


def test_refusals_say_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert "RECIPE" in refusal(capsys)
    away = "data.url=data/away"
    assert "--image CxHxW" in refusal(capsys, RECIPE, "--preset", "tiny", away)
    assert "3x64x64" in refusal(capsys, RECIPE, "--preset", "tiny", away, "--image", "64x64")
    assert "squares" in refusal(capsys, RECIPE, "--preset", "tiny", away, "--image", "3x64x32")
    assert "take a multiple" in refusal(capsys, RECIPE, "--preset", "tiny", "--processes", "3")
    assert "h100" in refusal(capsys, RECIPE, "--preset", "tiny", "--gpu", "h900")
    muon = ("--preset", "tiny", "optim=MuonConfig", "train.strategy=zero2")
    assert "AdamWConfig" in refusal(capsys, RECIPE, *muon)
    assert "positive" in refusal(capsys, RECIPE, "--processes", "0")
    assert "no recipe" in refusal(capsys, str(ROOT / "recipes" / "none.py"))


def test_a_plan_beside_what_its_run_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan lies in the folder that the run then takes, and is compared with its rows."""
    words = [
        "--preset",
        "tiny",
        f"run.root={tmp_path}",
        "train.samples=64",
        "train.status_every=16",
    ]
    assert main(["plan", RECIPE, *words]) == 0
    told = capsys.readouterr().out
    assert "parameters      184,704" in told
    assert "samples/s" in told
    folder = tmp_path / "diffusion-tiny"
    body = json.loads((folder / "plan.json").read_text())
    assert body["peak_bytes"] == sum(body["memory"].values())
    assert main(["plan", "--compare", str(folder)]) == 2, "nothing is measured yet"
    capsys.readouterr()

    off = ["train.sample_every=0", "train.checkpoint_every=0"]
    monkeypatch.setattr(sys, "argv", [RECIPE, *words, *off])
    import_recipe(Path(RECIPE)).main()
    capsys.readouterr()
    assert main(["plan", "--compare", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["ms a step", "samples/s", "peak MiB"]
    predicted, measured, ratio = (float(x) for x in lines[1].split()[-3:])
    assert ratio == pytest.approx(predicted / measured, abs=0.02)


def test_without_a_plan_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plan it first"):
        list(comparison(tmp_path))


def test_a_gpu_and_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "tiny", "--processes", "4", "--gpu", "h100", "--price", "3", "--no-store"]
    assert main(["plan", RECIPE, *words, "train.strategy=fsdp2", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["machine"], body["strategy"], body["rows"]) == ("H100", "FSDP2", 4)
    assert body["sent"]["inside"] > 0
    assert body["fits"]
    hours = 640 / body["samples_per_second"] / 3600
    assert body["hours"] == pytest.approx(hours)


def test_the_roofline_by_hand() -> None:
    h100 = gpu_named("H100")
    product = Operation("aten.mm", 1e15, 10**6, torch.bfloat16)
    copy = Operation("aten.add", 0.0, 10**12, torch.bfloat16)
    by_hand = 1e15 / (989e12 * EFFICIENCY.products) + 1e12 / (3.35e12 * EFFICIENCY.memory)
    assert roofline([product, copy], h100) == pytest.approx(by_hand)
    many = [Operation("aten.add", 0.0, 1, torch.float32)] * 1000
    assert roofline(many, h100) == pytest.approx(1000 * EFFICIENCY.launch), "the host is the limit"
    assert exposed(0.0, 0.0, h100, 1, 1.0) == 0.0
    assert exposed(450e9, 0.0, h100, 1, 0.3) == pytest.approx(1 / EFFICIENCY.links - 0.2)
    assert all(gpu.usable > 0.9 * (gpu.memory_gib - 1) * 2**30 for gpu in GPUS.values())


def large(recipe: str, preset: str, described: Described, count: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = ["--preset", preset, "train.precision=bf16", "train.micro=1"]
    job = read_job(Path(recipe), words, processes=8, described=described)
    w = traces(job, 1, gpu=True)[0].weights
    assert (w.count, w.parameters) == (count, 4 * count)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < 0.2 * w.parameters, "tensors were made"


def test_a_large_network_without_its_memory() -> None:
    large(RECIPE, "dit-xl2-imagenet256", Described(image="4x32x32", classes=1000), 674_816_272)


@pytest.mark.slow
def test_larger_ones() -> None:
    large(TEXT, "gpt2-1.5b", Described(vocabulary=50257), 1_557_611_200)
    large(TEXT, "llama-8b", Described(vocabulary=128256), 8_030_261_248)
