"""The GPU's benchmarks as far as a CPU goes: rows, refusals, and how they count FLOPs."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import pytest
import torch

from launching import ROOT

pytest.importorskip("transformers")


@pytest.fixture
def gpt2(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module benchmarks/gpu/gpt2.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gpu"))
    return importlib.import_module("gpt2")


@pytest.fixture
def stylegan2(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module benchmarks/gpu/stylegan2.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gpu"))
    return importlib.import_module("stylegan2")


def told(gpt2: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpt2.py", *words])
    gpt2.main()


def test_a_tiny_run_on_the_cpu_gives_rows_of_the_agreed_form(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpt2, "peak_tflops", lambda device: 2.0)
    told(gpt2, monkeypatch, "--device", "cpu", "--tiny", "--json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    peers = ["hand-written PyTorch", "transformers GPT2LMHeadModel, sdpa", "peak, bf16 dense"]
    assert [row["peer_name"] for row in rows] == [*peers, "ours, rows whole"]
    for row in rows:
        assert {"row", "ours", "peer", "peer_name", "ratio", "goal", "unit", "device"} <= set(row)
        assert row["ratio"] > 0
    share = rows[2]["tokens_per_second"] * rows[2]["flops_per_token"] / 2e12
    assert rows[2]["ratio"] == pytest.approx(share, rel=0.05, abs=1e-4)


def test_without_a_gpu_it_says_so(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, message in [([], "no CUDA device"), (["--device", "cpu"], "give --tiny")]:
        with pytest.raises(SystemExit) as ended:
            told(gpt2, monkeypatch, *words)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_the_formula_and_the_meter_differ_by_biases_and_gains(gpt2: Any) -> None:
    for size in (gpt2.TINY, gpt2.GPT2):
        formula, metered = gpt2.flops_of(size)
        D, L = size.width, size.depth
        # a block: biases of 9 D outputs, two norms of 2 D; and the last norm
        in_no_product = L * (9 * D + 4 * D) + 2 * D
        assert formula - metered == 6 * in_no_product
    matrices = 50304 * 768 + 12 * 12 * 768**2
    assert metered == 6 * matrices + 12 * 12 * 768 * 1024


def test_documents_have_the_mean_length_and_numbers_that_rise(gpt2: Any) -> None:
    torch.manual_seed(0)
    document = gpt2.random_documents(gpt2.GPT2, 500, "cpu")
    assert document.shape == (500, 1024)
    steps = document.diff(dim=1)
    assert set(steps.unique().tolist()) == {0, 1}
    lengths = torch.cat([row.bincount()[:-1] for row in document])  # the last one is cut
    assert (int(lengths.min()), int(lengths.max())) == (128, 384)


def test_a_tiny_gan_gives_rows_of_the_agreed_form(
    stylegan2: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # two precisions in one process, with second derivatives and without
    words = ["--tiny", "--json", "--only", "bf16-ada", "--only", "single", "--only", "fp32"]
    told(stylegan2, monkeypatch, *words)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert {"row", "ours", "peer", "peer_name", "ratio", "goal", "unit", "device"} <= set(row)
        assert row["ratio"] == pytest.approx(7 / row["ours"], rel=0.05)
        phases = {"discriminator", "penalty", "generator"}
        with_path = "no path lengths" not in row["row"]
        assert set(row["phases_ms"]) == phases | ({"path_length"} if with_path else set())
        assert row["micro"] == row["batch"] == 16


def test_without_a_gpu_a_gans_benchmark_says_so(
    stylegan2: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        told(stylegan2, monkeypatch)
    assert ended.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_a_gans_cases_are_runs_that_would_not_be_refused(stylegan2: Any) -> None:
    preset = stylegan2.import_recipe(ROOT / "recipes" / "gan.py").PRESETS["stylegan2-ffhq256"]
    for name, case in stylegan2.CASES.items():
        cfg = case.changed(preset)  # the config's own check would raise
        assert cfg.train.batch == 64
        assert cfg.train.compile == (name == "compiled")
        assert (cfg.objective.augment.kind == "ada") == name.endswith("ada")
        assert (cfg.objective.path_length == 0) == (name in ("single", "compiled"))


def test_a_micro_batch_that_has_no_room_is_halved(
    stylegan2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crowded:
        micro, tried = 0, ()

        def cycle(self) -> None:
            self.tried = (*self.tried, self.micro)
            if self.micro > 16:
                raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    training = Crowded()
    stylegan2.warmed_up(training, 64, group=8)
    assert training.tried == (64, 32, 16)
    with pytest.raises(SystemExit, match="no room"):
        stylegan2.warmed_up(Crowded(), 64, group=32)
