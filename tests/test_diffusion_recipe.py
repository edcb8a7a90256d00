"""The diffusion recipe and the genus command as users meet them: commands, files, messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genus.checkpoint_reader import digest, newest
from genus.tracking import read_events, read_metrics
from launching import BIN, ROOT, command, run

GENUS = str(BIN / "genus")
TINY = ("--preset", "tiny", "tracking.wandb=off", "run.root=.")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run with snapshots for post-hoc averages."""
    folder = tmp_path_factory.mktemp("trained")
    run(command(1, *TINY, "run.name=run", "ema.snapshot_every=160"), folder)
    return folder / "run"


def test_a_run_folder_tells_everything(trained: Path) -> None:
    assert json.loads((trained / "config.json").read_text())["optim"]["lr"] == 1e-3
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["recipe"] == str(ROOT / "recipes" / "diffusion.py")
    assert "--preset tiny" in environment["command"]
    assert environment["packages"]["torch"]
    assert not [name for name in environment["variables"] if "KEY" in name or "TOKEN" in name]
    assert json.loads((trained / "data.json").read_text())["classes"] == 10
    assert [e["event"] for e in read_events(trained)] == [
        "start", "checkpoint", "samples", "checkpoint", "finish", "closed",
    ]  # fmt: skip
    assert [row["samples"] for row in read_metrics(trained)] == [160, 320, 480, 640]
    assert {"model_tflops_per_second", "data_wait_ms"} <= set(read_metrics(trained)[-1])
    with Image.open(trained / "samples" / "000000000640.png") as grid:
        assert grid.width > 10 * 32


def test_the_same_command_again_finds_nothing_left_to_do(trained: Path) -> None:
    before = digest(newest(trained))
    output = run(command(1, *TINY, "run.name=run", "ema.snapshot_every=160"), trained.parent)
    assert "resumed from samples-000000000640" in output
    assert digest(newest(trained)) == before


def test_a_stored_config_finds_its_own_folder(trained: Path) -> None:
    words = command(1, "--config", "run/config.json", "train.samples=656")
    output = run(words, trained.parent)
    assert "run: 1 process" in output
    assert "resumed from samples-000000000640" in output
    assert "config changed since this run was started: train.samples: 640 -> 656" in output
    assert len(list(trained.glob("environment*.json"))) >= 2


def test_samples_depend_on_their_number_and_class_only(trained: Path) -> None:
    arrays = {}
    for name, more in {"a": ["--batch", "7"], "b": [], "c": ["--ema", "none"]}.items():
        words = [GENUS, "sample", str(trained), "--n", "20", "--out", f"{name}.npz", *more]
        run(words, trained.parent)
        with np.load(trained.parent / f"{name}.npz") as file:
            arrays[name] = file["images"]
            assert file["labels"].tolist() == [*range(10), *range(10)]
    # rounding of another batch size may move a level by one, nothing more
    assert np.abs(arrays["a"].astype(int) - arrays["b"].astype(int)).max() <= 1
    assert np.abs(arrays["c"].astype(int) - arrays["b"].astype(int)).max() > 10


def test_any_width_of_average_guidance_class_and_steps(trained: Path) -> None:
    words = [GENUS, "sample", str(trained), "--n", "4", "--out", "grid.png", "--class", "3"]
    words += ["--ema", "0.13", "--guidance", "2", "--steps", "3", "--method", "heun"]
    output = run(words, trained.parent)
    assert "heun, 3 steps, 10 NFE, guidance 2" in output
    assert "ema 0.13" in output
    assert "post-hoc" in output


def test_figures_come_with_their_passport(trained: Path) -> None:
    data = str(ROOT / "tests" / "data" / "fashion-1000")
    words = [GENUS, "evaluate", str(trained), "--n", "500", "--steps", "2", "--likelihood", "4"]
    output = run([*words, "--reference", data], trained.parent)
    for word in ("FD-EffLite0", "KID-EffLite0", "precision", "bits/dim", "extractor sha256",
                 "euler, 2 steps", "reference fingerprint"):  # fmt: skip
        assert word in output
    document = json.loads(next((trained / "evaluations").glob("*.json")).read_text())
    passport = document["passports"][document["figures"]["FD-EffLite0"]["passport"]]
    assert passport["samples"] == 500
    assert passport["progress"] >= 640
    shown = run([GENUS, "show", str(trained)], trained.parent)
    assert "FD-EffLite0" in shown
    assert "n=500" in shown
    assert "FD-EffLite0" in run([GENUS, "runs", "."], trained.parent)


def test_dry_run_prints_config_and_sizes_and_writes_nothing(tmp_path: Path) -> None:
    output = run(command(1, *TINY, "--dry-run", "optim.lr=0.5"), tmp_path)
    assert '"lr": 0.5' in output
    assert "parameters" in output
    assert "GFLOPs a sample" in output
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["optim.lrr=1"], "did you mean 'optim.lr'", 2),
        (["optim.lr=fast"], "optim.lr", 2),
        (["data.url=nowhere"], "nowhere", 2),
        (["train.batch=20", "data.lanes=16"], "train.batch=20", 2),
        (["optim.lr=-1"], "lr >= 0", 2),
        (["train.batch=0"], "must be positive", 2),
        (["network.dropout=2"], "no probability", 2),
        (["network.patch=3"], "resolution 32 is not divisible", 2),
        (["sampling.steps=0", "train.samples=16", "train.sample_every=16"], "at least 1", 2),
    ],
)
def test_a_wrong_request_gets_one_clear_message(
    arguments: list[str], message: str, code: int, tmp_path: Path
) -> None:
    output = run(command(1, *TINY, "run.name=wrong", *arguments), tmp_path, expect=code)
    assert message in output
    assert "Traceback" not in output


def test_another_network_can_not_take_over_a_run(trained: Path) -> None:
    def kept() -> dict[Path, bytes]:
        files = (p for p in trained.glob("*.json") if p.name != "owner.json")  # who looked last
        return {path: path.read_bytes() for path in files}

    before = kept()
    words = command(1, *TINY, "run.name=run", "network.channels=32", "train.samples=1000")
    output = run(words, trained.parent, expect=1)
    assert kept() == before
    assert (trained / "done").exists()
    assert "Traceback" not in output
    assert "network" in output
    assert "run.name" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "absent"], "absent is no run folder"),
        (["digest", "absent"], "absent"),
        (["data", "fetch", "nothing"], "nothing"),
        (["data", "pack", "absent", "--out", "x"], "absent"),
    ],
)
def test_the_command_says_what_is_wrong(words: list[str], message: str, tmp_path: Path) -> None:
    output = run([GENUS, *words], tmp_path, expect=2)
    assert message in output
    assert "Traceback" not in output
