"""The autoregressive recipe and its commands as users meet them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from genus.tracking import read_events, read_metrics
from launching import BIN, ROOT, command, run

GENUS = str(BIN / "genus")
RECIPE = "recipes/autoregressive.py"
TINY = ("--preset", "tiny", "tracking.wandb=off", "run.root=.")
DATA = str(ROOT / "tests" / "data" / "fashion-1000")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the user's own text: the alphabet again and again."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "abc.txt").write_text("abcdefghijklmnopqrstuvwxyz\n" * 3000)
    words = [GENUS, "data", "tokens", "abc.txt", "--tokenizer", "characters"]
    run([*words, "--validation", "0.1", "--out", "abc"], folder)
    words = ["--preset", "shakespeare", "tracking.wandb=off", "run.root=.", "run.name=run",
             "data.url=abc", "data.size=32", "network.width=32", "network.depth=2",
             "network.heads=2", "train.samples=4800", "train.batch=16", "train.status_every=1600",
             "train.sample_every=2400", "train.validate_every=2400", "optim.lr=5e-3",
             "optim.schedule.warmup=320"]  # fmt: skip
    run(command(1, *words, recipe=RECIPE), folder)
    return folder / "run"


def test_text_is_learnt_validated_and_continued(text: Path) -> None:
    rows = [row["predict/loss"] for row in read_metrics(text) if "step" in row]
    assert rows[0] > rows[-1]
    values = [e["value"] for e in read_events(text) if e["event"] == "validation"]
    assert len(values) == 2
    assert values[-1] < 0.2  # an alphabet has no surprise but where it begins
    written = sorted((text / "samples").glob("*.txt"))
    assert len(written) == 2
    assert "defghijklm" in written[-1].read_text()
    words = [GENUS, "sample", str(text), "--prompt", "mnop", "--length", "12"]
    output = run([*words, "--temperature", "0"], text.parent)
    assert output.strip() == "mnopqrstuvwxyz\na"
    run([*words, "--top-k", "3", "--out", "t.txt", "--n", "2"], text.parent)
    assert (text.parent / "t.txt").read_text().count("uvw") == 2


def test_the_figure_of_text_is_nats_a_token(text: Path) -> None:
    output = run([GENUS, "evaluate", str(text)], text.parent)
    assert "nats/token" in output
    document = json.loads(next((text / "evaluations").glob("*.json")).read_text())
    figures = {name: figure["value"] for name, figure in document["figures"].items()}
    assert figures["nll"] < 0.2
    bits = figures["nll"] / math.log(2)  # a token is a character, and a byte
    assert figures["bits/char"] == pytest.approx(bits) == figures["bits/byte"]


def test_a_prompt_with_unknown_characters_is_refused(text: Path) -> None:
    words = [GENUS, "sample", str(text), "--prompt", "ABC"]
    output = run(words, text.parent, expect=2)
    assert "'A'" in output
    assert "Traceback" not in output


PIXELS = {
    "transformer": ["network.width=16", "network.depth=1"],
    "pixelcnn++": ["network=PixelCNNPlusPlusConfig", "network.width=8", "network.levels=2",
                   "objective=PixelLikelihoodConfig", "objective.mixtures=3",
                   "objective.label_dropout=0.2"],
    "gated": ["network=GatedPixelCNNConfig", "network.width=8", "network.layers=2",
              "network.head=16", "objective=PixelLikelihoodConfig", "objective.mixtures=0"],
}  # fmt: skip


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_are_learnt_sampled_and_resumed(name: str, tmp_path: Path) -> None:
    words = [*TINY, "run.name=run", "train.sample_every=320", *PIXELS[name]]
    run(command(1, *words, "train.samples=320", recipe=RECIPE), tmp_path)
    output = run(command(1, *words, "train.samples=640", recipe=RECIPE), tmp_path)
    assert "resumed from samples-000000000320" in output
    losses = [
        v for r in read_metrics(tmp_path / "run") for k, v in r.items() if k.endswith("/loss")
    ]
    assert np.mean(losses[-5:]) < losses[0]
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2
    words = [GENUS, "evaluate", "run", "--n", "0", "--likelihood", "20", "--reference", DATA]
    output = run(words, tmp_path)
    assert "bits/dim" in output
    assert "none: probabilities of levels" in output


def test_network_and_objective_go_together(tmp_path: Path) -> None:
    words = [*TINY, "run.name=wrong", "network=GatedPixelCNNConfig"]
    output = run(command(1, *words, recipe=RECIPE), tmp_path, expect=2)
    assert "set network and objective together" in output
