"""Every benchmark runs with --quick --json and prints rows of the agreed form; what the benchmarks
of the stream measure with is held against known answers."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genus.loop import TrainConfig
from launching import ROOT, run

SCRIPTS = sorted(p for p in (ROOT / "benchmarks").glob("*.py") if "--quick" in p.read_text())


def test_the_benchmarks_are_there() -> None:
    speed = {"loop_overhead", "train_step", "stream", "glow", "tarflow_inverse", "transformer"}
    expected = speed | {"shuffle_quality", "flow_densities", "gan", "modulated_convolution"}
    assert expected <= {path.stem for path in SCRIPTS}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_quick_rows_have_the_agreed_form(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENUS_DATA", str(ROOT / "data"))  # what is here is not fetched again
    output = run([sys.executable, str(script), "--quick", "--json"], tmp_path, timeout=500)
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert rows
    for row in rows:
        assert {"row", "ours", "peer", "peer_name", "ratio", "goal"} <= set(row)
        assert row["ratio"] > 0


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of benchmarks/ can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


SAMPLES = 60_000


@pytest.mark.usefixtures("benchmarks")
def test_quality_of_the_stored_order_is_the_worst() -> None:
    quality = importlib.import_module("shuffle_quality").quality(np.arange(SAMPLES), SAMPLES)
    # a batch of one class alone has 9 B; batches that hold a class's end have less
    assert quality["chi-square"] == pytest.approx(9 * 64, rel=0.01)
    assert quality["chi-square of 16"] == pytest.approx(9 * 1024, rel=0.15)
    assert quality["run length"] == 6000
    assert quality["rank correlation"] == pytest.approx(1)
    assert quality["lag 1"] == pytest.approx(1, abs=1e-3)
    # at lag k, 9 k of the N - k pairs straddle two classes
    lags = np.arange(1, 65)
    agreement = 1 - 9 * lags / (SAMPLES - lags)
    expected = np.sqrt((((agreement - 0.1) / 0.9) ** 2).mean())
    assert quality["serial correlation"] == pytest.approx(expected)


@pytest.mark.usefixtures("benchmarks")
def test_quality_of_a_permutation_is_chance() -> None:
    module = importlib.import_module("shuffle_quality")
    quality = module.quality(module.permuted(0, shards=60), SAMPLES)
    assert quality["chi-square"] == pytest.approx(9, abs=5 * np.sqrt(18 / 937))
    assert quality["chi-square of 16"] == pytest.approx(9, abs=5 * np.sqrt(18 / 58))
    assert quality["serial correlation"] == pytest.approx(1 / np.sqrt(9 * SAMPLES), rel=0.5)
    assert quality["run length"] == pytest.approx(10 / 9, abs=0.02)
    assert abs(quality["rank correlation"]) < 5 / np.sqrt(SAMPLES)


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("name", ["genus", "webdataset"])
def test_orders_serve_every_sample_once(name: str) -> None:
    module = importlib.import_module("shuffle_quality")
    chosen = [serve for order, serve in module.orders(60).items() if order.startswith(name)]
    assert chosen
    for serve in chosen:
        ids = serve(1)
        assert len(np.unique(ids)) == len(ids) > SAMPLES - 64
        assert (ids != serve(2)).any()


def task(samples: int) -> dict[str, Any]:
    return {
        "channels": 1,
        "size": 4,
        "samples": samples,
        "classes": 10,
        "label_sum": sum(i % 10 for i in range(samples)),
        "workers": 0,
    }


def batches(samples: int, image: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    labels = torch.arange(samples) % 10
    for part in labels.split(64):
        yield image.expand(len(part), *image.shape), part


NOISE = (torch.arange(16, dtype=torch.uint8) * 16).reshape(1, 4, 4)


@pytest.mark.usefixtures("benchmarks")
def test_the_clock_counts_whole_passes_only() -> None:
    clock = importlib.import_module("stream_clock").clock
    assert clock(lambda: batches(200, NOISE), task(200))["rate"] > 0
    # a loader that never ends is stopped at the last whole batch
    assert clock(lambda: batches(10_000, NOISE), task(200))["rate"] > 0
    with pytest.raises(AssertionError, match="100 of 200 samples"):
        clock(lambda: batches(100, NOISE), task(200))
    with pytest.raises(AssertionError, match="labels sum"):
        clock(lambda: batches(200, NOISE), {**task(200), "label_sum": 2000})
    with pytest.raises(AssertionError, match="blank"):
        clock(lambda: batches(200, torch.zeros_like(NOISE)), task(200))
    with pytest.raises(AssertionError, match="float32"):
        clock(lambda: batches(200, NOISE.float()), task(200))


@pytest.mark.usefixtures("benchmarks")
def test_a_gans_kinds_of_steps_are_weighed_as_they_occur() -> None:
    gan, gan_peer = (importlib.import_module(name) for name in ("gan", "gan_peer"))
    for shares, penalty, path in zip(gan.CADENCES.values(), (4, 16), (32, 4), strict=True):
        # what a step adds to a plain one, as often as it is due
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["penalty"] + shares["penalty and path"] == pytest.approx(1 / penalty)
        assert shares["penalty and path"] == pytest.approx(1 / path)
    names = {phase for phases in gan.PHASES.values() for phase in phases}
    networks = gan.sizes(1, 1)[0].build()
    objective = gan.OBJECTIVE.build(networks, (3, 64, 64), 0)
    every = {phase.name: phase.every for phase in objective.phases}
    assert every.keys() == names
    assert (every["penalty"], every["path_length"]) == (4, 32)
    for kind, step in gan_peer.STEPS.items():  # due in the peer's train() by these numbers
        assert (step % 4 == 0, step % 32 == 0) == ("penalty" in kind, "path" in kind)
        assert step > 25_000
        assert step % 10


@pytest.mark.usefixtures("benchmarks")
def test_a_gans_widths_are_those_of_its_networks() -> None:
    gan = importlib.import_module("gan")
    for size in gan.sizes(2, 1):
        networks = size.build()
        widths = [block.conv1.weight.shape[0] for block in networks["synthesis"].blocks]
        assert size.widths["synthesis"][0] == widths
        judge = [block.conv0.weight.shape[0] for block in networks["discriminator"].blocks]
        last = networks["discriminator"].conv.weight.shape[0]
        assert size.widths["discriminator"][0] == [last, *judge[::-1]]
        assert size.widths["discriminator"][0] == size.widths["discriminator"][1]


@pytest.mark.usefixtures("benchmarks")
def test_a_gans_cycle_has_each_phase_as_often_as_it_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gan, training = (importlib.import_module(name) for name in ("gan", "gan_training"))
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(training.Training, "step", lambda self, due: seen.append(due))
    networks = gan.sizes(1, 1)[0].build()
    train = TrainConfig(batch=4, strategy="ddp")
    training.Training(networks, gan.OBJECTIVE, train, (3, 64, 64)).cycle()
    due = [name for names in seen for name in names]
    counted = {name: due.count(name) for name in sorted(set(due))}
    assert counted == {"discriminator": 32, "generator": 32, "path_length": 1, "penalty": 8}
