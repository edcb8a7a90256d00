"""The GAN recipe and its commands as users meet them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genus.checkpoint_reader import newest, read_meta, read_tensors
from genus.data.manifest import DataInfo
from genus.recipe_command import import_recipe
from genus.tracking import read_metrics
from launching import BIN, ROOT, command, run

GENUS = str(BIN / "genus")
RECIPE = "recipes/gan.py"
TINY = ("--preset", "tiny", "tracking.wandb=off", "run.root=.", "train.samples=320",
        "train.status_every=16")  # fmt: skip
DATA = str(ROOT / "tests" / "data" / "fashion-1000")


def recipe() -> Any:
    return import_recipe(ROOT / RECIPE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(command(1, *TINY, "run.name=run", recipe=RECIPE), folder)
    return folder / "run"


def test_a_run_tells_what_the_two_players_do(trained: Path) -> None:
    rows = [row for row in read_metrics(trained) if "step" in row]
    every = {"discriminator/loss", "discriminator/real_sign", "discriminator/fake_sign",
             "discriminator/augment_p", "discriminator/grad_norm", "generator/loss",
             "generator/grad_norm"}  # fmt: skip
    lazy = {"penalty/r1", "penalty/grad_norm", "path_length/length", "path_length/mean"}
    for row in rows:
        assert every <= row.keys()
        is_due = (row["step"] - 1) % 2 == 0
        assert (lazy <= row.keys()) == is_due
        assert -1 <= row["discriminator/fake_sign"] <= row["discriminator/real_sign"] <= 1 or (
            row["samples"] < 160
        )
    moved = {row["discriminator/augment_p"] for row in rows}
    assert len(moved) > 3  # ADA is at work: a step of 32 / 500,000 at a time
    means = [row["path_length/mean"] for row in rows if "path_length/mean" in row]
    assert means[0] == 0 < means[1] < means[-1]


def test_a_checkpoint_holds_both_players_and_what_steers_them(trained: Path) -> None:
    held = read_tensors(newest(trained))
    for name in ("mapping", "synthesis", "discriminator"):
        assert any(key.startswith(f"networks.{name}/") for key in held)
        assert any(key.startswith(f"optimizers.{name}/") for key in held)
    row = [row for row in read_metrics(trained) if "path_length/mean" in row][-1]
    assert float(held["objective/path_length"]) > row["path_length/mean"] > 0
    assert float(held["objective/augment/p"]) != 0.1
    assert read_meta(newest(trained))["scalars"]["objective"]["augment/seen"] == 320


def test_samples_can_be_truncated(trained: Path) -> None:
    folder = trained.parent
    said = run([GENUS, "sample", "run", "--n", "20", "--truncation", "0.5"], folder)
    assert "truncation 0.5" in said
    said = run([GENUS, "sample", "run", "--temperature", "0.5"], folder, expect=2)
    assert "a style-based GAN has no --temperature" in said
    assert "--truncation" in said


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for words, told in {
        ("train.compile=true",): "objective.path_length=0",
        ("train.micro=6", "--dry-run"): "multiples of 4",
    }.items():
        said = run(command(1, *TINY, "run.name=no", *words, recipe=RECIPE), tmp_path, expect=2)
        assert told in " ".join(said.replace("\u2502", " ").split()), (words, said)
        assert not (tmp_path / "no" / "checkpoints").exists()


@pytest.mark.parametrize("name", recipe().PRESETS)
def test_presets_build_and_their_networks_fit_their_data(name: str) -> None:
    module = recipe()
    cfg = module.PRESETS[name]
    images = {"cifar10": 32, "ffhq256": 256, "ffhq1024": 1024}
    size = next((r for key, r in images.items() if name.endswith(key)), cfg.data.size)
    classes = 10 if "cifar10" in name or name in ("tiny", "fashion") else 0
    info = DataInfo(
        url="", samples=1, channels=0 if name == "mixture-25" else 3, resolution=size,
        classes=classes, class_names=tuple(map(str, range(classes))), fields=(), fingerprint="",
        dims=2 if name == "mixture-25" else 0,
    )  # fmt: skip
    if name == "mixture-25":
        info = replace(info, resolution=0)
    with torch.device("meta"):
        networks, objective = module.build(cfg, info)
    objective.check_rows(cfg.train.micro or cfg.train.batch)
    assert module.flops(cfg, info) > 0
    assert sum(p.numel() for net in networks.values() for p in net.parameters()) > 1000
