"""Figures of samples while a model trains: whatever the number of ranks, with passport and cost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from genus import cli
from genus.data.densities import draw
from genus.data.pack import from_arrays, pack_source
from genus.data.pack_vectors import pack_vectors
from genus.data.stream import DataConfig, read_info
from genus.evaluate.passport import Figure, read_evaluation
from genus.model import Model
from genus.tracking import read_metrics
from quality_worker import Noise, Scale, measure
from ranks import run_ranks

WORKER = Path(__file__).with_name("quality_worker.py")


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A little of 25-gaussians, with a test split."""
    for split in ("train", "test"):
        points = draw("25-gaussians", 50, 0)
        pack_vectors(points, tmp_path / "grid" / split, modes="25-gaussians")
    return tmp_path / "grid"


def measured(folder: Path, data: Path, count: int, size: int) -> dict[str, Any]:
    if size == 1:
        return measure(str(folder), str(data), count)
    outputs = run_ranks(WORKER, str(folder), str(data), str(count), size=size)
    found: dict[str, Any] = json.loads(outputs[0].strip().splitlines()[-1])
    return found


COSTS = {"seconds_drawing", "seconds_measuring", "share"}


def test_modes_are_the_same_on_one_rank_and_two(
    tmp_path: Path, grid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An odd number of samples, so that two ranks can't share them evenly."""
    found = [measured(tmp_path / str(size), grid, 61, size) for size in (1, 2)]
    names = ["modes covered", "high-quality share", "mode KL"]
    one, two = ({name: each[name] for name in names} for each in found)
    assert one == two
    assert one["modes covered"] <= 9  # of {-2, 0, 2}^2
    assert one["high-quality share"] == 1
    assert math.log(25 / 9) <= one["mode KL"] < math.log(25 / 9) + 0.2
    for size, each in enumerate(found, 1):
        folder = tmp_path / str(size) / "run"
        assert each["every"] == 100
        figures, about = read_evaluation(folder / each["passport"])
        assert {name: figures[name].value for name in names} == one
        passport = figures["mode KL"].passport
        assert (passport.samples, passport.progress, passport.ema) == (61, 100, "plain")
        assert (passport.sampler, passport.seeds) == ("noise", (3,))
        assert passport.reference == f"{grid}/test"
        assert about["parameters"] == {"net": 1}
        # its cost, in the event, the metrics and the log
        assert set(each) >= COSTS
        assert 0 < each["share"] <= 1
        assert min(each["seconds_drawing"], each["seconds_measuring"]) > 0
        rows = read_metrics(folder)
        assert rows[0]["samples"] == 100
        assert {f"quality/{name}" for name in {*names, *COSTS}} <= set(rows[0])
        # a run that went wrong goes on, and says so
        assert each["spoilt"]["modes covered"] == 0
        assert "mode KL" not in each["spoilt"]
        assert each["failed"]["error"] == "RuntimeError: out of memory"
    said = capsys.readouterr().out
    assert "% of the time so far" in said
    assert "no figures of samples: RuntimeError: out of memory" in said


def test_genus_evaluate_says_the_same_and_what_real_data_have(
    tmp_path: Path, grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_training = measured(tmp_path / "1", grid, 61, 1)
    folder, data = tmp_path / "1" / "run", DataConfig(url=str(grid))
    config = SimpleNamespace(data=data)
    objective, networks = Noise((2,)), {"net": Scale()}
    model = Model(folder, config, read_info(data), networks, objective, 100, "c", "plain")
    monkeypatch.setattr("genus.arguments.load_model", lambda *arguments: model)
    threads = torch.get_num_threads()

    def evaluate(*words: str) -> dict[str, Figure]:
        assert cli.main(["evaluate", str(folder), "--seed", "3", "--device", "cpu", *words]) == 0
        assert "25 Gaussians" in capsys.readouterr().out
        files = [p for p in (folder / "evaluations").iterdir() if "in-training" not in p.name]
        return read_evaluation(max(files, key=lambda path: path.stat().st_mtime_ns))[0]

    figures = evaluate("--n", "61")
    names = ["modes covered", "high-quality share", "mode KL"]
    assert list(figures) == [*names, *(f"{name} of the data" for name in names)]
    assert [figures[name].value for name in names] == [in_training[name] for name in names]
    kept = read_evaluation(folder / in_training["passport"])[0]["mode KL"].passport
    assert figures["mode KL"].passport == kept
    real = figures["mode KL of the data"]
    assert real.passport.samples == 50  # all that there are
    assert real.value < figures["mode KL"].value
    assert evaluate()["mode KL"].passport.samples == 10_000
    assert cli.main(["evaluate", str(folder), "--n", "0", "--device", "cpu"]) == 2
    assert "nothing to measure" in capsys.readouterr().err
    torch.set_num_threads(threads)


def test_data_without_such_figures_are_refused(tmp_path: Path) -> None:
    pack_vectors(np.zeros((20, 2)), tmp_path / "plain")
    found = measured(tmp_path / "1", tmp_path / "plain", 100, 1)
    assert found["kind"] == "ConfigError"
    assert "train.evaluate_every=100: only images and data with known modes" in found["refused"]


def test_all_ranks_learn_that_there_is_no_counter(tmp_path: Path, grid: Path) -> None:
    outputs = run_ranks(WORKER, str(tmp_path / "2"), str(grid), "0", "--broken", size=2)
    found = json.loads(outputs[0].strip().splitlines()[-1])
    assert found["kind"] == "ConfigError"
    assert found["refused"] == "train.evaluate_every=100: RuntimeError: out of memory"


def images(folder: Path, count: int) -> Path:
    labels = np.arange(count) % 10
    noise = np.random.default_rng(0).integers(0, 100, (count, 8, 8), np.uint8)
    pixels = (noise + 12 * labels[:, None, None]).astype(np.uint8)
    source = from_arrays(pixels, labels, classes=tuple("0123456789"))
    pack_source(source, folder, shard_size=1000, shuffle_seed=0)
    return folder


def test_too_few_images_are_refused_before_training(tmp_path: Path) -> None:
    few = images(tmp_path / "few", 40)
    for count, words in ((100, "evaluate_samples=100: these figures need at least 500"),
                         (600, "has 40")):  # fmt: skip
        assert words in measured(tmp_path / str(count), few, count, 1)["refused"]


@pytest.mark.slow
def test_distances_are_the_same_on_one_rank_and_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FD and KID by the real extractor; the reference's features are kept for the second time."""
    monkeypatch.setenv("GENUS_DATA", str(tmp_path / "root"))
    data = images(tmp_path / "images", 600)
    found = [measured(tmp_path / str(size), data, 501, size) for size in (1, 2)]
    for name in ("FD-EffLite0", "KID-EffLite0"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4)
        assert found[0][name] > 0
    figures, _ = read_evaluation(tmp_path / "2" / "run" / found[1]["passport"])
    passport = figures["FD-EffLite0"].passport
    assert (passport.samples, passport.reference_samples) == (501, 501)
    assert passport.labels == "all classes in turn"
    assert len([*(tmp_path / "root" / "features").iterdir()]) == 1
