"""Aspect-ratio buckets and mixtures through a recipe: one process or two, cut or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genus.checkpoint_reader import digest, newest, read_tensors
from genus.data.pack import pack
from launching import command, run

COMMON = ("--preset", "tiny", "tracking.wandb=off", "run.root=.", "train.sample_every=0")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of many shapes, in colour."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(300):
        height, width = generator.integers(20, 60, 2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    pack(folder / "images", folder / "out", shard_size=50)
    return folder / "out"


def modes(shapes: Path) -> dict[str, tuple[str, ...]]:
    buckets = (f"data.url={shapes}", "data.fit=resize", "data.bucket_step=8")
    return {
        "buckets": buckets,
        "mixture": (f"data.url={shapes}", f"data.also={shapes}", "data.weights=1,3", *buckets[1:2]),
    }


@pytest.mark.parametrize("name", ["buckets", pytest.param("mixture", marks=pytest.mark.slow)])
def test_one_process_or_two_cut_or_not(shapes: Path, tmp_path: Path, name: str) -> None:
    data = modes(shapes)[name]
    run(command(1, *COMMON, *data, "run.name=one", "train.samples=320"), tmp_path)
    run(command(2, *COMMON, *data, "run.name=cut", "train.samples=160"), tmp_path)
    run(command(1, *COMMON, *data, "run.name=cut", "train.samples=320"), tmp_path)
    run(command(1, *COMMON, *data, "run.name=same", "train.samples=160"), tmp_path)
    run(command(1, *COMMON, *data, "run.name=same", "train.samples=320"), tmp_path)
    one, cut = (read_tensors(newest(tmp_path / n), "networks.") for n in ("one", "cut"))
    for key, value in one.items():
        torch.testing.assert_close(cut[key], value, rtol=0, atol=1e-5)
    assert digest(newest(tmp_path / "same")) == digest(newest(tmp_path / "one"))


def test_networks_that_can_not_take_the_shapes_say_so(shapes: Path, tmp_path: Path) -> None:
    data = modes(shapes)["buckets"]
    for changes, message in (
        (("data.bucket_step=4", "network.patch=8"), "data.bucket_step a multiple of 16"),
        (("network=DiTConfig", "network.width=64", "network.depth=1", "network.heads=2"),
         "set data.bucket_step=0"),
    ):  # fmt: skip
        words = command(1, *COMMON, *data, *changes, "run.name=wrong")
        output = run(words, tmp_path, expect=2)
        assert message in output
        assert "Traceback" not in output
