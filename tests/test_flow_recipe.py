"""The flow recipe and its commands as users meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genus.checkpoint_reader import newest, read_tensors
from genus.recipe_command import import_recipe
from genus.tracking import read_events, read_metrics
from launching import BIN, ROOT, command, run

GENUS = str(BIN / "genus")
RECIPE = "recipes/flow.py"
TINY = ("--preset", "tiny", "tracking.wandb=off", "run.root=.")
DATA = str(ROOT / "tests" / "data" / "fashion-1000")


def recipe() -> Any:
    return import_recipe(ROOT / RECIPE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(command(1, *TINY, "run.name=run", recipe=RECIPE), folder)
    return folder / "run"


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on a correlated Gaussian, packed from a .npy file as a user's own table."""
    folder = tmp_path_factory.mktemp("vectors")
    mixing = np.array([[2.0, 0, 0], [1, 0.5, 0], [-1, 0.3, 0.2]])
    rows = np.random.default_rng(0).normal(size=(2000, 3)) @ mixing.T + [5, -3, 100]
    np.save(folder / "table.npy", rows)
    run([GENUS, "data", "pack", "table.npy", "--out", "table"], folder)
    np.save(folder / "test.npy", rows[:300])
    run([GENUS, "data", "pack", "test.npy", "--out", "table/test"], folder)
    words = ("--preset", "power", "tracking.wandb=off", "run.root=.", "run.name=run",
             "data.url=table", "network.layers=3", "network.width=32", "train.samples=25_600",
             "train.batch=256", "train.status_every=6400", "train.sample_every=12_800",
             "train.validate_every=12_800", "optim.lr=2e-3")  # fmt: skip
    run(command(1, *words, recipe=RECIPE), folder)
    return folder / "run"


def test_a_run_is_initialised_once_and_its_inverse_is_watched(trained: Path) -> None:
    events = read_events(trained)
    assert [e["event"] for e in events[:2]] == ["start", "initialised"]
    assert [e["event"] for e in events].count("initialised") == 1
    trips = [e for e in events if e["event"] == "round trip"]
    assert len(trips) == 4
    assert all(trip["largest"] < 0.5 and not trip["drifts"] for trip in trips)
    measured = [row["round_trip"] for row in read_metrics(trained) if "round_trip" in row]
    assert measured == [trip["largest"] for trip in trips]


def test_all_ranks_begin_from_the_same_samples_as_one_process(tmp_path: Path) -> None:
    """With a learning rate of 0 the first checkpoint holds what initialisation made."""
    one_step = ("optim.lr=0", "train.samples=16", "train.sample_every=0")
    for processes in (1, 2):
        run(command(processes, *TINY, f"run.name={processes}", *one_step, recipe=RECIPE), tmp_path)
    one, two = (read_tensors(newest(tmp_path / str(n)), "networks.") for n in (1, 2))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(two[key], value), key
    made = [
        [row["initialised"] for row in map(json.loads, path.open()) if "initialised" in row]
        for n in (1, 2)
        for path in sorted((tmp_path / str(n) / "metrics").glob("rank-*.jsonl"))
    ]
    assert len(made) == 3
    assert made[0] == made[1] == made[2]  # each rank's own, before any exchange
    norms = [value for key, value in one.items() if key.endswith("log_scale")]
    assert len(norms) == 4
    assert all(value.abs().max() > 0.05 for value in norms)


def test_figures_of_an_exact_family(trained: Path) -> None:
    words = [GENUS, "evaluate", str(trained), "--n", "0", "--likelihood", "40"]
    output = run([*words, "--reference", DATA, "--double"], trained.parent)
    assert "exact" in output
    assert "uniform, 8 bits" in output
    document = json.loads(next((trained / "evaluations").glob("*.json")).read_text())
    assert 2 < document["figures"]["bits/dim"]["value"] < 8
    assert document["figures"]["round trip"]["value"] < 1e-6
    assert document["figures"]["pixels off"]["value"] == 0


def test_samples_temperature_and_walks(trained: Path) -> None:
    words = [GENUS, "sample", str(trained), "--n", "20", "--out"]
    assert "temperature 0.5" in run([*words, "a.npz", "--temperature", "0.5"], trained.parent)
    run([*words, "b.npz", "--temperature", "0.5", "--batch", "7"], trained.parent)
    with np.load(trained.parent / "a.npz") as a, np.load(trained.parent / "b.npz") as b:
        assert np.abs(a["images"].astype(int) - b["images"].astype(int)).max() <= 1
    output = run([*words, "c.png", "--steps", "3"], trained.parent, expect=2)
    assert "a flow, which is inverted and not integrated, has no --steps" in output
    walk = [GENUS, "interpolate", str(trained), "--pairs", "3", "--steps", "4"]
    run([*walk, "--reference", DATA, "--out", "walk.png"], trained.parent)
    assert (trained.parent / "walk.png").stat().st_size > 1000


def test_outliers_are_told_by_likelihood(trained: Path) -> None:
    words = [GENUS, "anomaly", str(trained), "--n", "60", "--reference", DATA]
    output = run([*words, "--outliers", DATA], trained.parent)
    for word in ("AUROC nll", "AUROC typicality", "AUROC nll - PNG", "bits/dim"):
        assert word in output


def test_vectors_are_learnt_in_their_own_unit(vectors: Path) -> None:
    output = run([GENUS, "evaluate", str(vectors)], vectors.parent)
    assert "nats" in output
    document = json.loads(next((vectors / "evaluations").glob("*.json")).read_text())
    entropy = 1.5 * (1 + np.log(2 * np.pi)) + np.log(2.0 * 0.5 * 0.2)
    assert document["figures"]["nll"]["value"] == pytest.approx(entropy, abs=0.15)
    # the same rows with the same average while it trained; the noise of draws has no part in it
    validations = [e["value"] for e in read_events(vectors) if e["event"] == "validation"]
    assert len(validations) == 2
    assert validations[-1] == pytest.approx(document["figures"]["nll"]["value"], abs=1e-5)
    run([GENUS, "sample", str(vectors), "--n", "2000", "--out", "s.npz"], vectors.parent)
    with np.load(vectors.parent / "s.npz") as file:
        drawn = file["vectors"]
    assert drawn.shape == (2000, 3)
    assert drawn.mean(0) == pytest.approx([5, -3, 100], abs=0.3)
    assert list((vectors / "samples").glob("*.png"))


ARCHITECTURES = {
    "nice": ["network=NICEConfig", "network.width=32", "objective.base=logistic"],
    "realnvp": ["network=RealNVPConfig", "network.width=8", "network.blocks=1", "logit=0.05"],
    "tarflow": ["network=TarFlowConfig", "network.patch=8", "network.width=32",
                "network.blocks=2", "network.layers=1", "network.head_width=16",
                "objective.noise=0.05", "objective.label_dropout=0.2", "objective.guidance=2"],
    "variational": ["objective.dequantisation=variational", "dequantiser.width=8"],
    "5 bits": ["objective.bits=5", "network.coupling=additive"],
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains_resumes_and_is_sampled(name: str, tmp_path: Path) -> None:
    words = [*TINY, "run.name=run", *ARCHITECTURES[name], "train.sample_every=320"]
    run(command(1, *words, "train.samples=320", recipe=RECIPE), tmp_path)
    output = run(command(1, *words, "train.samples=640", recipe=RECIPE), tmp_path)
    assert "resumed from samples-000000000320" in output
    assert [e["event"] for e in read_events(tmp_path / "run")].count("initialised") == 1
    losses = [r["likelihood/loss"] for r in read_metrics(tmp_path / "run") if "step" in r]
    assert losses[-1] < losses[0]
    trips = [e for e in read_events(tmp_path / "run") if e["event"] == "round trip"]
    assert len(trips) == (0 if name == "5 bits" else 2)
    assert not any(trip["drifts"] for trip in trips)
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["network=VectorFlowConfig"], "takes vectors"),
        (["network.levels=6"], "no multiple of 64"),
        (["objective.bits=9"], "bits from 1 to 8"),
        (["objective.guidance=2", "train.sample_every=16"], "guidance needs"),
        (["logit=0.7"], "below 0.5"),
        (["logit=1e-3", "objective.noise=0.05"], "leaves [-1, 1]"),
    ],
)
def test_wrong_requests_get_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    output = run(command(1, *TINY, "run.name=wrong", *words, recipe=RECIPE), tmp_path, expect=2)
    assert message in output
    assert "Traceback" not in output


def test_the_large_presets_build() -> None:
    from genus.data.manifest import DataInfo

    module = recipe()
    shapes = {"cifar10": (3, 32), "mnist": (1, 28), "celebahq256": (3, 256), "imagenet64": (3, 64)}
    for name, cfg in module.PRESETS.items():
        kind = name.rpartition("-")[2]
        if kind not in shapes:
            continue
        channels, resolution = shapes[kind]
        info = DataInfo(name, 1, channels, resolution, 10, tuple("0123456789"), ("image",), "")
        with torch.device("meta"):
            networks, objective = module.build(cfg, info)
        count = sum(p.numel() for p in networks["flow"].parameters()) / 1e6
        assert count > 10, f"{name}: {count:.1f} M"
        assert objective.shape == (channels, resolution, resolution)
        assert module.flops(cfg, info) > 1e8
